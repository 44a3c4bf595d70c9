/* Products of rows with a weight matrix, fast: forward and the input gradient (kernels/matmul.h). dw is in matmul_dw.c.
 * Owns no memory: copied rows and transposed blocks live in the worker's scratch. Work is cut into (group, row block, range of
 * vectors) so that many small groups and one large one both fill the threads.
 * Rule: a task writes its own rows and columns only; which worker runs it and how it was cut cannot change a bit. */
#include "kernels/cpu/matmul_tile.h"
#include "kernels/tables.h"

TILE_TABLE(row_tile, A_LD, 1)

typedef struct plan {
    const matmul_args *a;
    moe_pool *pool;
    const float *in; /* rows that are broadcast: x or dy */
    float *out;      /* rows of outputs: y or dx         */
    size_t ld_in, ld_out;
    int reduce, width;         /* K, N or N, K                                  */
    int vecs;                  /* vectors of 16 outputs in a row                */
    int block_rows;            /* most rows of a task                           */
    int range_vecs;            /* most vectors of a task                        */
    int row_blocks, ranges;    /* tasks of a group: row_blocks * ranges         */
    bool transposed;           /* b is made of blocks of w (dx), else it is w   */
} plan;

typedef struct task {
    const float *w;
    int64_t row, rows; /* of in and out    */
    int vec, vec_end;  /* vectors of 16    */
    float *a, *b;      /* scratch          */
} task;

enum {
    SCRATCH_A = ROW_BLOCK * A_LD,
    SCRATCH_B = TILE_VECS * STEPS * V16,
    RANGE_LEAST = 4, RANGE_MOST = 64, /* vectors of a task */
};
_Static_assert((SCRATCH_A + SCRATCH_B) * sizeof(float) <= KERNEL_SCRATCH_BYTES, "scratch of the row products");

static void copy_rows(float *a, const plan *p, const task *k, int s0, int steps)
{
    for (int64_t i = 0; i < k->rows; i++) {
        const float *from = p->in + (size_t)(k->row + i) * p->ld_in + s0;
        float *to = a + (size_t)i * A_LD;
        int s = 0;
        for (; s + V16 <= steps; s += V16)
            v16_store(to + s, v16_load(from + s));
        if (s < steps)
            v16_store(to + s, v16_load_n(from + s, steps - s));
    }
}

/* The place in w that strip (vec, s) is read from, and the distance to its next vector. */
static const float *strip_weights(const plan *p, const task *k, int vec, int s, size_t *next_vec)
{
    const size_t K = (size_t)p->a->K;
    *next_vec = p->transposed ? V16 * PANEL : K * PANEL;
    return k->w + (p->transposed ? (size_t)(s / PANEL) * K + (size_t)vec * V16 : (size_t)vec * K + (size_t)s) * PANEL;
}

/* b[j][s][16]: 16 inputs k of output n = s0 + s, for dx. The last panel's pads are transposed too but no step reads them.
 * Fetches the same places of `next`, where the next strip begins. */
static void transpose_weights(const plan *p, const task *k, int vec, int vecs, int s0, int steps, const float *next)
{
    const size_t K = (size_t)p->a->K;
    for (int s = 0; s < steps; s += V16) {
        const float *panel = k->w + (size_t)((s0 + s) / PANEL) * K * PANEL;
        for (int line = 0; line < V16 && next != NULL; line++)
            _mm_prefetch((const char *)(next + (size_t)(s / PANEL) * K * PANEL + line * PANEL), _MM_HINT_T1);
        for (int j = 0; j < vecs; j++) {
            const int column = (vec + j) * V16, rows = p->width - column < V16 ? p->width - column : V16;
            v16_transpose(k->b + ((size_t)j * STEPS + (size_t)s) * V16, V16, panel + (size_t)column * PANEL, PANEL, rows);
        }
    }
}

/* All row tiles of one strip of TILE_VECS vectors, steps [s0, s0 + steps). While they run, what the next strip reads is fetched:
 * by the first tile of few, or by one tile for each vector. */
static void run_strip(const plan *p, const task *k, int vec, int s0, int steps)
{
    const int vecs = k->vec_end - vec < TILE_VECS ? k->vec_end - vec : TILE_VECS;
    const bool row_ends = vec + vecs >= k->vec_end;
    const int64_t tiles = tile_count(k->rows, TILE_ROWS);
    tile t = {.c_row = p->ld_out, .c_vec = V16, .steps = steps, .load = s0 > 0 || p->a->accumulate};
    size_t next_vec;
    const float *next = strip_weights(p, k, row_ends ? k->vec : vec + vecs, row_ends ? s0 + STEPS : s0, &next_vec);
    if (row_ends && s0 + STEPS >= p->reduce)
        next = NULL;
    t.last = (vec + vecs) * V16 <= p->width ? V16 : V16 - ((vec + vecs) * V16 - p->width);
    t.b = strip_weights(p, k, vec, s0, &t.b_vec);
    if (p->transposed) {
        transpose_weights(p, k, vec, vecs, s0, steps, tiles == 1 ? next : NULL);
        t.b = k->b, t.b_vec = (size_t)STEPS * V16;
    }
    for (int64_t i = 0; i < tiles; i++) {
        const int64_t row = tile_cut(k->rows, tiles, i), rows = tile_cut(k->rows, tiles, i + 1) - row;
        const bool fetch = next != NULL && i < TILE_VECS;
        t.a = k->a + (size_t)row * A_LD;
        t.c = p->out + (size_t)(k->row + row) * p->ld_out + (size_t)vec * V16;
        t.next_block = fetch && p->transposed ? (size_t)p->a->K * PANEL : V16 * V16;
        t.next[0] = fetch ? next + (tiles > 1 ? (size_t)i * next_vec : 0) : t.b;
        t.next[1] = fetch && tiles == 1 ? next + next_vec : t.b;
        row_tile[vecs - 1][rows - 1](&t);
    }
}

static void run_tasks(void *ctx, int64_t begin, int64_t end, int worker)
{
    const plan *p = ctx;
    float *scratch = moe_pool_scratch(p->pool, worker);
    for (int64_t i = begin; i < end; i++) {
        const int range = (int)(i % p->ranges), block = (int)(i / p->ranges % p->row_blocks);
        const int64_t g = i / p->ranges / p->row_blocks, all = p->a->offset[g + 1] - p->a->offset[g];
        const int64_t blocks = tile_count(all, p->block_rows);
        if (block >= blocks)
            continue;
        task k = {.w = p->a->w[g], .vec = range * p->range_vecs, .a = scratch, .b = scratch + SCRATCH_A};
        k.row = p->a->offset[g] + tile_cut(all, blocks, block);
        k.rows = p->a->offset[g] + tile_cut(all, blocks, block + 1) - k.row;
        k.vec_end = k.vec + p->range_vecs < p->vecs ? k.vec + p->range_vecs : p->vecs;
        for (int s = 0; s < p->reduce; s += STEPS) {
            const int steps = p->reduce - s < STEPS ? p->reduce - s : STEPS;
            copy_rows(k.a, p, &k, s, steps);
            for (int vec = k.vec; vec < k.vec_end; vec += TILE_VECS)
                run_strip(p, &k, vec, s, steps);
        }
    }
}

/* Overheads of a cut as parts of the FMA time: a row that is copied serves the outputs of its range, a weight that is transposed (or
 * only read) serves the rows of its block. 13, 8 and 2 FMA cycles of 16 lanes an element: sweep of bench/kernels. */
static void choose_cut(plan *p, int64_t rows, int64_t groups, int64_t most)
{
    const int threads = moe_pool_threads(p->pool);
    const int64_t mean = (rows + groups - 1) / groups;
    double best = 1e30;
    p->vecs = (p->width + V16 - 1) / V16;
    for (int block = ROW_BLOCK; block >= 4 * TILE_ROWS; block /= 2)
        for (int range = RANGE_LEAST; range <= RANGE_MOST; range *= 2) {
            const int64_t blocks = tile_count(mean, block), ranges = tile_count(p->vecs, range);
            const double cost = 13.0 / (double)(p->vecs * V16 / ranges + 1) + (p->transposed ? 8.0 : 2.0) / (double)(mean / blocks + 1) +
                                tile_idle(groups * blocks * ranges, threads);
            if (cost >= best)
                continue;
            best = cost;
            p->block_rows = block, p->range_vecs = range, p->ranges = (int)ranges;
        }
    p->row_blocks = (int)tile_count(most, p->block_rows);
}

static moe_err run_plan(plan *p)
{
    int64_t most = 0, groups = 0, all = 0;
    for (int g = 0; g < p->a->G; g++) {
        const int64_t rows = p->a->offset[g + 1] - p->a->offset[g];
        most = rows > most ? rows : most;
        groups += rows > 0, all += rows;
    }
    if (all == 0)
        return MOE_OK;
    choose_cut(p, all, groups, most);
    moe_pool_for(p->pool, (int64_t)p->a->G * p->row_blocks * p->ranges, 1, run_tasks, p);
    return MOE_OK;
}

/* A product without terms is what the chain starts from. */
static void clear_rows(const plan *p)
{
    for (int64_t r = p->a->offset[0]; r < p->a->offset[p->a->G] && !p->a->accumulate; r++)
        for (int i = 0; i < p->width; i++)
            p->out[(size_t)r * p->ld_out + (size_t)i] = 0.0f;
}

moe_err ISA(matmul_forward)(const matmul_args *a, moe_stream *s)
{
    plan p = {.a = a, .pool = s->pool, .in = a->x, .out = a->y, .ld_in = a->ldx, .ld_out = a->ldy, .reduce = a->K, .width = a->N};
    if (a->K == 0)
        clear_rows(&p);
    return run_plan(&p);
}

moe_err ISA(matmul_dx)(const matmul_args *a, moe_stream *s)
{
    plan p = {.a = a, .pool = s->pool, .in = a->y, .out = a->x, .ld_in = a->ldy, .ld_out = a->ldx, .reduce = a->N, .width = a->K};
    p.transposed = true;
    if (a->N == 0)
        clear_rows(&p);
    return run_plan(&p);
}
