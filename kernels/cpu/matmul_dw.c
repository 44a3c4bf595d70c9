/* The weight gradient, fast: dw[n, k] = chain over the rows of dy[r, n] * x[r, k] (kernels/matmul.h).
 * Vectors run along n like the panels; x is packed in strips of TILE_ROWS k's, dy one strip of panels at a time, both in the worker's
 * scratch. A task is (group, range of panels, range of k) and owns those elements of dw; it walks all rows of the group in order.
 * Rule: pads are left as they are when accumulating and written as zero otherwise, whatever x holds. */
#include <string.h>

#include "kernels/cpu/matmul_tile.h"
#include "kernels/tables.h"

TILE_TABLE(weight_tile, 1, TILE_ROWS)

enum {
    K_MOST = 1024,     /* k's of a task                                                        */
    ROWS_MOST = 3 * STEPS, /* rows packed at a time: 3.2 MB of the scratch                     */
    SPAN = (K_MOST / TILE_ROWS + 2) * TILE_ROWS, /* packed floats a row: strips may all be one short */
    SCRATCH_X = ROWS_MOST * SPAN + V16,
    SCRATCH_DY = TILE_VECS * STEPS * V16,
    RANGE_LEAST = 4, RANGE_MOST = 64, /* panels of a task */
};
_Static_assert((SCRATCH_X + SCRATCH_DY) * sizeof(float) <= KERNEL_SCRATCH_BYTES, "scratch of the weight gradient");

typedef struct plan {
    const matmul_args *a;
    moe_pool *pool;
    int panels, range_panels, ranges; /* ranges of panels */
    int k_ranges;
} plan;

typedef struct task {
    float *dw;
    int64_t row, rows;    /* packed now: [row, row + rows) */
    int panel, panel_end;
    int k, k_end;
    float *x, *dy;        /* scratch */
    bool load, stream;
} task;

/* x[strip][row][TILE_ROWS]: whole vectors are written, the next row or strip repairs what they overlap. */
static void pack_x(const plan *p, const task *t)
{
    const int64_t strips = tile_count(t->k_end - t->k, TILE_ROWS);
    for (int64_t i = 0; i < strips; i++) {
        const int k = t->k + (int)tile_cut(t->k_end - t->k, strips, i);
        const int room = p->a->K - k;
        const float *from = p->a->x + (size_t)t->row * p->a->ldx + k;
        float *to = t->x + (size_t)i * (size_t)t->rows * TILE_ROWS;
        if (room >= V16)
            for (int64_t r = 0; r < t->rows; r++, from += p->a->ldx, to += TILE_ROWS)
                v16_store(to, v16_load(from));
        else
            for (int64_t r = 0; r < t->rows; r++, from += p->a->ldx, to += TILE_ROWS)
                v16_store(to, v16_load_n(from, room));
    }
}

/* dy[vec][row][16]; outputs past N read as zero. */
static void pack_dy(const plan *p, const task *t, int panel, int vecs, int64_t row, int steps)
{
    for (int j = 0; j < vecs; j++) {
        const int n = (panel + j) * PANEL, room = p->a->N - n < V16 ? p->a->N - n : V16;
        const float *from = p->a->y + (size_t)row * p->a->ldy + n;
        float *to = t->dy + (size_t)j * STEPS * V16;
        for (int r = 0; r < steps; r++, from += p->a->ldy, to += V16)
            v16_store(to, room == V16 ? v16_load(from) : v16_load_n(from, room));
    }
}

/* Pads of the last panel as they were, or zero: 0 * inf must not reach them. */
static void run_padded(tile *t, tile_fn run, int rows, int real)
{
    float pads[TILE_ROWS][V16];
    for (int i = 0; i < rows; i++)
        v16_store(pads[i], t->load ? v16_load(t->c + i * V16) : v16_zero());
    const bool stream = t->stream;
    t->stream = false;
    run(t);
    t->stream = stream;
    for (int i = 0; i < rows; i++)
        for (int lane = real; lane < V16; lane++)
            t->c[i * V16 + lane] = pads[i][lane];
}

static void run_strip(const plan *p, const task *k, int panel)
{
    const size_t K = (size_t)p->a->K;
    int vecs = k->panel_end - panel < TILE_VECS ? k->panel_end - panel : TILE_VECS;
    const int real = p->a->N - (panel + vecs - 1) * PANEL; /* outputs of the last panel */
    const int64_t strips = tile_count(k->k_end - k->k, TILE_ROWS);
    const int64_t parts = tile_count(k->rows, STEPS);
    for (int64_t part = 0; part < parts; part++) {
        const int64_t s = tile_cut(k->rows, parts, part);
        tile t = {.b_vec = (size_t)STEPS * V16, .c_row = PANEL, .c_vec = K * PANEL, .last = V16, .next_block = TILE_ROWS * PANEL};
        t.steps = (int)(tile_cut(k->rows, parts, part + 1) - s);
        t.load = k->load || s > 0;
        t.stream = k->stream && s + t.steps == k->rows;
        pack_dy(p, k, panel, vecs, k->row + s, t.steps);
        for (int64_t i = 0; i < strips; i++) {
            const int cut = (int)tile_cut(k->k_end - k->k, strips, i), next = (int)tile_cut(k->k_end - k->k, strips, i + 1);
            t.a = k->x + ((size_t)i * (size_t)k->rows + (size_t)s) * TILE_ROWS;
            t.b = k->dy;
            t.c = k->dw + ((size_t)panel * K + (size_t)(k->k + cut)) * PANEL;
            t.next[0] = t.stream ? t.b : t.c + TILE_ROWS * PANEL; /* the tiles that follow, unless they are only written */
            t.next[1] = t.stream ? t.b : t.next[0] + (size_t)(vecs - 1) * t.c_vec;
            if (real >= PANEL) {
                weight_tile[vecs - 1][next - cut - 1](&t);
                continue;
            }
            if (vecs > 1)
                weight_tile[vecs - 2][next - cut - 1](&t);
            t.b += (size_t)(vecs - 1) * t.b_vec, t.c += (size_t)(vecs - 1) * t.c_vec;
            run_padded(&t, weight_tile[0][next - cut - 1], next - cut, real);
        }
    }
}

static void clear_range(const plan *p, const task *t)
{
    for (int panel = t->panel; panel < t->panel_end; panel++)
        memset(t->dw + ((size_t)panel * (size_t)p->a->K + (size_t)t->k) * PANEL, 0, sizeof(float) * PANEL * (size_t)(t->k_end - t->k));
}

static void run_tasks(void *ctx, int64_t begin, int64_t end, int worker)
{
    const plan *p = ctx;
    const matmul_args *a = p->a;
    float *scratch = moe_pool_scratch(p->pool, worker);
    for (int64_t i = begin; i < end; i++) {
        const int k_range = (int)(i / p->ranges % p->k_ranges), range = (int)(i % p->ranges);
        const int64_t g = i / p->ranges / p->k_ranges, first = a->offset[g], rows = a->offset[g + 1] - first;
        task t = {.dw = a->dw[g], .panel = range * p->range_panels, .x = scratch, .dy = scratch + SCRATCH_X};
        t.panel_end = t.panel + p->range_panels < p->panels ? t.panel + p->range_panels : p->panels;
        t.k = (int)tile_cut(a->K, p->k_ranges, k_range), t.k_end = (int)tile_cut(a->K, p->k_ranges, k_range + 1);
        const int64_t blocks = tile_count(rows, ROWS_MOST);
        if (blocks == 0 && !a->accumulate)
            clear_range(p, &t);
        for (int64_t b = 0; b < blocks; b++) {
            t.row = first + tile_cut(rows, blocks, b);
            t.rows = first + tile_cut(rows, blocks, b + 1) - t.row;
            t.load = b > 0 || a->accumulate;
            t.stream = !t.load && blocks == 1 && rows <= STEPS && (uintptr_t)t.dw % 64 == 0;
            pack_x(p, &t);
            for (int panel = t.panel; panel < t.panel_end; panel += TILE_VECS)
                run_strip(p, &t, panel);
        }
    }
    _mm_sfence(); /* streamed stores, before another thread reads them */
}

/* Overheads of a cut as parts of the FMA time: packed x serves the outputs of its range, packed dy the k's of its range. */
static void choose_cut(plan *p, int64_t groups)
{
    double best = 1e30;
    for (int64_t k_ranges = tile_count(p->a->K, K_MOST); k_ranges <= tile_count(p->a->K, 8 * TILE_ROWS); k_ranges++)
        for (int range = RANGE_LEAST; range <= RANGE_MOST; range *= 2) {
            const int64_t ranges = tile_count(p->panels, range);
            const double cost = 13.0 / (double)(p->panels * PANEL / ranges) + 13.0 / (double)(p->a->K / k_ranges + 1) +
                                tile_idle(groups * ranges * k_ranges, moe_pool_threads(p->pool));
            if (cost >= best)
                continue;
            best = cost;
            p->range_panels = range, p->ranges = (int)ranges, p->k_ranges = (int)k_ranges;
        }
}

moe_err ISA(matmul_dw)(const matmul_args *a, moe_stream *s)
{
    plan p = {.a = a, .pool = s->pool, .panels = (int)(panel_pad(a->N) / PANEL)};
    int64_t busy = 0;
    for (int g = 0; g < a->G; g++)
        busy += !a->accumulate || a->offset[g + 1] > a->offset[g];
    if (busy == 0 || a->K == 0 || a->N == 0)
        return MOE_OK;
    choose_cut(&p, busy);
    moe_pool_for(s->pool, (int64_t)a->G * p.k_ranges * p.ranges, 1, run_tasks, &p);
    return MOE_OK;
}
