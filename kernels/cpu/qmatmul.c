/* Products with weights as they are stored, fast (kernels/qmatmul.h): the block formats; the others are in qmatmul_plain.c.
 * Rows are quantised once a call into the scratch of worker 0, a chunk of k after the other, where all workers read them. Then a task
 * is (group, row block, range of panels) over all matrices: few rows stream their panels once; for many rows a chunk of a panel is
 * unpacked into the worker's own scratch and all rows pass over it. Compiled for AVX2, AVX-512 and AVX-512 with VNNI.
 * Rule: a task writes its own rows and columns only; which worker runs it and how it was cut cannot change a bit. */
#include "kernels/cpu/qmatmul_tile.h"

#include "kernels/cpu/qmatmul_plain.h"
#include "kernels/cpu/row.h"
#include "kernels/half.h"
#include "kernels/tables.h"

#if QVNNI
#define PLAIN qmatmul_plain_avx512
#define ENTRY qmatmul_vnni
#elif MOE_SIMD_512
#define PLAIN qmatmul_plain_avx512
#define ENTRY qmatmul_avx512bw
#else
#define PLAIN qmatmul_plain_avx2
#define ENTRY qmatmul_avx2
#endif

/* The end of a worker's scratch: unpacked chunks of BATCH panels. */
typedef struct unpacked {
    uint8_t w[QCHUNK * QSTEPS * QLINE];
    float side[QCHUNK * 2 * PANEL];
} unpacked;

typedef struct plan {
    const qmatmul_args *a;
    moe_pool *pool;
    qact *act;                     /* [chunks, rows, QACT_ROW] */
    int64_t first, rows;           /* of x that are in act     */
    int blocks, chunks;            /* of K                     */
    int panels[QMATMUL_MOST], all; /* of the block formats; the others have none here */
    int range, ranges;             /* panels of a task; tasks of a row block */
    int row_blocks;
} plan;

typedef struct task {
    const plan *p;
    const qmatrix *m;
    const void *w;
    int64_t row, rows; /* of act */
    int panel, panel_end;
    unpacked *buffer; /* [BATCH] */
} task;

#if MOE_SIMD_512
enum { ROW_BLOCK = 504 /* 2 KB of activations a chunk: half of a 2 MB L2 */, BATCH = 4 /* panels unpacked at a time: 80 KB */ };
#else
enum { ROW_BLOCK = 120 /* half of a 512 KB L2 */, BATCH = 1 /* its few rows would wait for L2 */ };
#endif
enum { RANGE_BYTES = 1 << 17 /* of weights: what a task reads once */, RANGE_MANY = 16 /* panels, for many rows */ };

SIMD int64_t least64(int64_t a, int64_t b) { return a < b ? a : b; }
SIMD int64_t parts_of(int64_t n, int64_t most) { return (n + most - 1) / most; }
SIMD int chunk_blocks(const plan *p, int chunk) { return (int)least64(QCHUNK, p->blocks - (int64_t)chunk * QCHUNK); }
SIMD qact *act_at(const plan *p, int64_t row, int chunk)
{
    return p->act + ((size_t)chunk * (size_t)p->rows + (size_t)row) * QACT_ROW;
}

static void quantise_block(qact *q, const float *x)
{
    const v16 x0 = v16_load(x), x1 = v16_load(x + V16);
    const uint32_t most = (uint32_t)q_most(q_max(v16_bits(v16_abs(x0)), v16_bits(v16_abs(x1))));
    const float amax = bits_float(most);
    *q = (qact){.d = 0};
    if (most >= 0x7f800000u)
        q->d = q->s = bits_float(0x7fc00000u);
    if (most >= 0x7f800000u || amax < QACT_LEAST)
        return;
    const v16 scale = v16_set1(127.0f / amax);
    const i16 a0 = v16_to_i16(v16_mul(x0, scale)), a1 = v16_to_i16(v16_mul(x1, scale));
    const int32_t half = q_sum(a0), sum = half + q_sum(a1);
    q_store_bytes(q->a, a0, a1);
    const float d = amax / 127.0f;
    q->d = qact_scale(d);
    q->s = qact_scale((float)sum * d);
    q->by8 = -8 * sum, q->by16 = -16 * sum, q->by128 = -128 * sum;
    q->by32[0] = -32 * half, q->by32[1] = -32 * (sum - half);
}

static void quantise_rows(void *ctx, int64_t begin, int64_t end, int worker)
{
    const plan *p = ctx;
    (void)worker;
    for (int64_t r = begin; r < end; r++) {
        const float *x = p->a->x + (size_t)(p->first + r) * p->a->ldx;
        for (int c = 0; c < p->chunks; c++)
            for (int b = 0; b < chunk_blocks(p, c); b++, x += QBLOCK)
                quantise_block(act_at(p, r, c) + b, x);
    }
}

/* The formats that most models come in have tiles for more than QFEW rows. */
static const struct {
    qsource source;
    int rows; /* that read it as it is stored */
} stored[NUM_FORMATS] = {
    [NUM_Q4_0] = {FROM_Q4_0, QROWS}, [NUM_Q4_1] = {FROM_Q4_1, QROWS}, [NUM_Q8_0] = {FROM_Q8_0, QROWS},
    [NUM_Q5_0] = {FROM_Q5_0, QFEW},  [NUM_Q5_1] = {FROM_Q5_1, QFEW},  [NUM_Q4_K] = {FROM_Q4_K, QROWS},
    [NUM_Q5_K] = {FROM_Q5_K, QFEW},  [NUM_Q6_K] = {FROM_Q6_K, QROWS},  [NUM_IQ4_NL] = {FROM_IQ4_NL, QFEW},
    [NUM_MXFP4] = {FROM_MXFP4, QROWS},
};

/* What all tiles of a panel and chunk share. */
static qtile tile_new(const task *t, int panel, int chunk)
{
    const plan *p = t->p;
    const qpanel_layout l = qpanel_about(t->m->format);
    const size_t at = (size_t)chunk * QCHUNK;
    return (qtile){.w = qpanel_data(t->w, l, panel, p->a->K) + at * (size_t)l.data,
                   .side = qpanel_side(t->w, l, panel, t->m->N, p->a->K) + at * (size_t)l.side,
                   .ldy = t->m->ldy,
                   .blocks = chunk_blocks(p, chunk),
                   .last = (int)least64(PANEL, t->m->N - (int64_t)panel * PANEL),
                   .load = chunk > 0 || p->a->accumulate};
}

static float *y_at(const task *t, int64_t row, int panel)
{
    return t->m->y + (size_t)(t->p->first + t->row + row) * t->m->ldy + (size_t)panel * PANEL;
}

static void run_few(const task *t)
{
    const qtile_fn fn = tiles[stored[t->m->format].source][t->rows - 1];
    for (int panel = t->panel; panel < t->panel_end; panel++)
        for (int chunk = 0; chunk < t->p->chunks; chunk++) {
            qtile run = tile_new(t, panel, chunk);
            run.a = act_at(t->p, t->row, chunk), run.y = y_at(t, 0, panel);
            fn(&run);
        }
}

SIMD void unpack_chunk(unpacked *out, const qtile *t, const qsource from)
{
    const int rows = source_least(from) || source_halves(from) ? 2 : 1;
    const uint8_t *w = t->w;
    for (int b = 0; b < t->blocks; b++, w += source_data(from)) {
        uint8_t *to = out->w + (size_t)b * QSTEPS * QLINE;
#pragma GCC unroll 8
        for (int step = 0; step < QSTEPS; step++)
            q_store(to + step * QLINE, source_step(from, w, step));
        for (int i = 0; i < rows; i++)
            v16_store(out->side + (b * rows + i) * PANEL, source_scale(from, t->side, b, i));
    }
}

static void unpack(unpacked *out, const qtile *t, numfmt f)
{
    switch (stored[f].source) {
#define UNPACK(s)                  \
    case s:                        \
        unpack_chunk(out, t, s);   \
        return;
        UNPACK(FROM_Q4_0)
        UNPACK(FROM_Q4_1)
        UNPACK(FROM_Q8_0)
        UNPACK(FROM_Q5_0)
        UNPACK(FROM_Q5_1)
        UNPACK(FROM_Q4_K)
        UNPACK(FROM_Q5_K)
        UNPACK(FROM_Q6_K)
        UNPACK(FROM_IQ4_NL)
        UNPACK(FROM_MXFP4)
#undef UNPACK
    default:
        return;
    }
}

/* The panels of a batch are unpacked, then every tile of rows passes over all of them; the first one fetches the next batch. */
static void run_batch(const task *t, int chunk, int panel, int panels)
{
    const qpanel_layout l = qpanel_about(t->m->format);
    const qsource from = source_widened(stored[t->m->format].source);
    const int64_t parts = parts_of(t->rows, QROWS);
    qtile run[BATCH];
    for (int j = 0; j < panels; j++) {
        run[j] = tile_new(t, panel + j, chunk);
        unpack(&t->buffer[j], &run[j], t->m->format);
        run[j].next = (const char *)run[j].w + (size_t)panels * (size_t)t->p->blocks * (size_t)l.data,
        run[j].next_lines = l.data / 64;
        run[j].w = t->buffer[j].w, run[j].side = (const uint8_t *)t->buffer[j].side;
    }
    for (int64_t i = 0, row = 0; i < parts; i++) {
        const int64_t rows = (t->rows - row + parts - i - 1) / (parts - i);
        for (int j = 0; j < panels; j++) {
            run[j].a = act_at(t->p, t->row + row, chunk), run[j].y = y_at(t, row, panel + j);
            tiles[from][rows - 1](&run[j]);
            run[j].next = NULL;
        }
        row += rows;
    }
}

static void run_many(const task *t)
{
    for (int chunk = 0; chunk < t->p->chunks; chunk++)
        for (int panel = t->panel; panel < t->panel_end; panel += BATCH)
            run_batch(t, chunk, panel, (int)least64(BATCH, t->panel_end - panel));
}

static void run_tasks(void *ctx, int64_t begin, int64_t end, int worker)
{
    const plan *p = ctx;
    const qmatmul_args *a = p->a;
    char *scratch = (char *)moe_pool_scratch(p->pool, worker) + moe_pool_scratch_bytes(p->pool) - BATCH * sizeof(unpacked);
    for (int64_t i = begin; i < end; i++) {
        const int g = (int)(i / p->ranges / p->row_blocks), block = (int)(i / p->ranges % p->row_blocks);
        const int64_t from = a->offset[g] > p->first ? a->offset[g] : p->first,
                      to = least64(a->offset[g + 1], p->first + p->rows);
        const int64_t blocks = parts_of(to - from, ROW_BLOCK);
        if (from >= to || block >= blocks)
            continue;
        task t = {.p = p, .buffer = (unpacked *)(void *)scratch};
        t.row = from - p->first + (to - from) * block / blocks;
        t.rows = from - p->first + (to - from) * (block + 1) / blocks - t.row;
        const int begin_panel = (int)(i % p->ranges) * p->range;
        for (int m = 0, base = 0; m < a->M; base += p->panels[m++]) {
            t.m = &a->mat[m];
            t.panel = begin_panel > base ? begin_panel - base : 0;
            t.panel_end = (int)least64(p->panels[m], (int64_t)begin_panel + p->range - base);
            if (t.panel >= t.panel_end)
                continue;
            t.w = t.m->w[g];
            if (t.rows <= stored[t.m->format].rows)
                run_few(&t);
            else
                run_many(&t);
        }
    }
}

/* Tasks of about RANGE_BYTES for few rows, RANGE_MANY panels for many; smaller where the threads would not be filled. */
static void choose_cut(plan *p, int64_t groups, int64_t most, int64_t bytes)
{
    const int64_t threads = moe_pool_threads(p->pool);
    int64_t range = most > QROWS ? RANGE_MANY : RANGE_BYTES / (bytes / p->all + 1) + 1;
    p->row_blocks = (int)parts_of(most, ROW_BLOCK);
    const int64_t fill = p->all * groups * p->row_blocks / (4 * threads); /* four tasks a thread */
    range = least64(range, fill < 1 ? 1 : fill);
    p->range = (int)(threads == 1 ? (most > QROWS ? RANGE_MANY : p->all) : range);
    p->ranges = (int)parts_of(p->all, p->range);
}

static void run_slab(plan *p)
{
    const qmatmul_args *a = p->a;
    int64_t most = 0, groups = 0, bytes = 0;
    for (int g = 0; g < a->G; g++) {
        const int64_t from = a->offset[g] > p->first ? a->offset[g] : p->first,
                      to = least64(a->offset[g + 1], p->first + p->rows);
        most = to - from > most ? to - from : most;
        groups += to > from;
    }
    for (int m = 0; m < a->M; m++)
        bytes += p->panels[m] > 0 ? (int64_t)qpanel_bytes(a->mat[m].format, a->mat[m].N, a->K) : 0;
    moe_pool_for(p->pool, p->rows, row_grain(a->K), quantise_rows, p);
    choose_cut(p, groups, most, bytes);
    moe_pool_for(p->pool, (int64_t)a->G * p->row_blocks * p->ranges, 1, run_tasks, p);
}

/* A product without terms is what the chain starts from. */
static void clear_rows(const qmatmul_args *a, const qmatrix *m)
{
    for (int64_t r = a->offset[0]; r < a->offset[a->G] && !a->accumulate; r++)
        for (int n = 0; n < m->N; n++)
            m->y[(size_t)r * m->ldy + (size_t)n] = 0.0f;
}

static moe_err run_blocks(plan *p)
{
    const qmatmul_args *a = p->a;
    p->blocks = a->K / QBLOCK, p->chunks = (int)parts_of(p->blocks, QCHUNK);
    const size_t row_bytes = (size_t)p->chunks * QACT_ROW * sizeof(qact);
    const int64_t slab = (int64_t)((moe_pool_scratch_bytes(p->pool) - BATCH * sizeof(unpacked)) / row_bytes);
    if (slab < 1)
        return moe_fail(MOE_E_CONFIG, "qmatmul: %d inputs do not fit the %zu bytes of scratch of a thread", a->K,
                        moe_pool_scratch_bytes(p->pool));
    p->act = moe_pool_scratch(p->pool, 0);
    for (p->first = a->offset[0]; p->first < a->offset[a->G]; p->first += p->rows) {
        p->rows = least64(slab, a->offset[a->G] - p->first);
        run_slab(p);
    }
    return MOE_OK;
}

moe_err ENTRY(const qmatmul_args *a, moe_stream *s)
{
    plan p = {.a = a, .pool = s->pool};
    TRY(qmatmul_check(a));
    for (int m = 0; m < a->M; m++) {
        if (qpanel_chained(a->mat[m].format))
            TRY(PLAIN(a, &a->mat[m], s));
        else if (a->K == 0)
            clear_rows(a, &a->mat[m]);
        else
            p.all += p.panels[m] = (int)(panel_pad(a->mat[m].N) / PANEL);
    }
    return p.all > 0 ? run_blocks(&p) : MOE_OK;
}
