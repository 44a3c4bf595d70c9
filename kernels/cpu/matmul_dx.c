/* The input gradient, fast: dx[r, k] = chain over n of dy[r, n] * w[n, k] (kernels/matmul.h).
 * Vectors run along the rows: dy is transposed into [vector of 16 rows][n][16], w is broadcast out of its panels as it is stored
 * (the 16 outputs of one k are one cache line, so 14 k's by 16 n's are 14 lines), and the result is transposed back once. So
 * weights are read once from memory and never rearranged, which costs more than few rows can repay; bf16 weights are widened to
 * scratch, a strip of k's at a time. A task is (group, row block, range of k). Rule: rows that pad a vector to 16 are computed
 * from zeros and never stored. */
#include "kernels/cpu/matmul_tile.h"
#include "kernels/tables.h"

TILE_TABLE(input_tile, PANEL, 1)

enum {
    BLOCK_VECS = 16, /* vectors of rows in a task                                   */
    BLOCK_ROWS = BLOCK_VECS * V16,
    RANGE_LEAST = 64,
    RANGE_MOST = 512, /* k's of a task                                             */
    OUT_LD = BLOCK_ROWS + V16,
    IN_VEC = STEPS * V16,             /* floats from vector to vector of transposed dy               */
    SCRATCH_IN = BLOCK_VECS * IN_VEC, /* 512 KB or 256 KB                                            */
    SCRATCH_OUT = RANGE_MOST * OUT_LD,
    SCRATCH_WIDE = STEPS * TILE_ROWS,
};
_Static_assert((SCRATCH_IN + SCRATCH_OUT + SCRATCH_WIDE) * sizeof(float) <= KERNEL_SCRATCH_BYTES,
               "scratch of the input gradient");

typedef struct plan {
    const matmul_args *a;
    moe_pool *pool;
    int row_blocks, ranges; /* tasks of a group: row_blocks * ranges */
} plan;

typedef struct task {
    const float *w;
    const uint16_t *w16; /* or NULL: w */
    int64_t row, rows;
    int k, k_end;
    float *in, *out; /* scratch: dy [vec][n][16], dx [k][OUT_LD]        */
    float *wide;     /* scratch: the strip at work, [panel][k][PANEL] */
} task;

/* One block: to[c * to_ld + r] = from[r * from_ld + c] for r < rows, c < cols; what is missing of 16 x 16 reads as zero. */
static void transpose_edge(float *to, size_t to_ld, const float *from, size_t from_ld, int rows, int cols)
{
    float block[V16 * V16];
    for (int r = 0; r < V16; r++)
        v16_store(block + r * V16, r < rows ? v16_load_n(from + (size_t)r * from_ld, cols) : v16_zero());
    v16_transpose(to, to_ld, block, V16, V16);
}

static void pack_in(const plan *p, const task *t, int n0, int steps)
{
    for (int64_t r = 0; r < t->rows; r += V16) {
        const int rows = t->rows - r < V16 ? (int)(t->rows - r) : V16;
        const float *from = p->a->y + (size_t)(t->row + r) * p->a->ldy + n0;
        float *to = t->in + (size_t)(r / V16) * IN_VEC;
        for (int n = 0; n < steps; n += V16) {
            if (rows == V16 && steps - n >= V16)
                v16_transpose(to + (size_t)n * V16, V16, from + n, p->a->ldy, V16);
            else
                transpose_edge(to + (size_t)n * V16, V16, from + n, p->a->ldy, rows, steps - n < V16 ? steps - n : V16);
        }
    }
}

/* dx -> out, where the chains continue. */
static void pack_out(const plan *p, const task *t)
{
    for (int64_t r = 0; r < t->rows; r += V16)
        for (int k = t->k; k < t->k_end; k += V16)
            transpose_edge(t->out + (size_t)(k - t->k) * OUT_LD + r, OUT_LD, p->a->x + (size_t)(t->row + r) * p->a->ldx + k,
                           p->a->ldx, t->rows - r < V16 ? (int)(t->rows - r) : V16, t->k_end - k < V16 ? t->k_end - k : V16);
}

/* out -> dx: only rows and k's that exist. */
static void unpack_out(const plan *p, const task *t)
{
    for (int64_t r = 0; r < t->rows; r += V16)
        for (int k = t->k; k < t->k_end; k += V16) {
            const int rows = t->rows - r < V16 ? (int)(t->rows - r) : V16, ks = t->k_end - k < V16 ? t->k_end - k : V16;
            const float *from = t->out + (size_t)(k - t->k) * OUT_LD + r;
            float *to = p->a->x + (size_t)(t->row + r) * p->a->ldx + k, block[V16 * V16];
            if (rows == V16 && ks == V16) {
                v16_transpose(to, p->a->ldx, from, OUT_LD, V16);
                continue;
            }
            transpose_edge(block, V16, from, OUT_LD, ks, V16);
            for (int i = 0; i < rows; i++)
                v16_store_n(to + (size_t)i * p->a->ldx, v16_load(block + i * V16), ks);
        }
}

/* Weights of k's [k, k + ks), n's [n0, n0 + steps), as fp32. */
static void widen_strip(const plan *p, const task *t, int n0, int steps, int k, int ks)
{
    for (int panel = 0; panel * PANEL < steps; panel++) {
        const uint16_t *from = t->w16 + ((size_t)(n0 / PANEL + panel) * (size_t)p->a->K + (size_t)k) * PANEL;
        float *to = t->wide + (size_t)(panel * ks) * PANEL;
        for (int i = 0; i < ks; i++)
            v16_store(to + (size_t)i * PANEL, v16_widen(from + (size_t)i * PANEL));
    }
}

/* Steps [n0, n0 + steps) of all chains of the task. While the last tiles of a strip run, the next strip of w is fetched. */
static void run_steps(const plan *p, const task *t, int n0, int steps)
{
    const size_t K = (size_t)p->a->K;
    const int vecs = (int)tile_count(t->rows, V16);
    const int64_t strips = tile_count(t->k_end - t->k, TILE_ROWS);
    tile run = {.b_vec = IN_VEC, .c_row = OUT_LD, .c_vec = V16, .a_block = K * PANEL, .steps = steps, .last = V16};
    run.load = n0 > 0 || p->a->accumulate;
    for (int64_t i = 0; i < strips; i++) {
        const int cut = (int)tile_cut(t->k_end - t->k, strips, i), ks = (int)tile_cut(t->k_end - t->k, strips, i + 1) - cut;
        if (t->w16 != NULL) {
            widen_strip(p, t, n0, steps, t->k + cut, ks);
            run.a = t->wide, run.a_block = (size_t)ks * PANEL;
        } else {
            run.a = t->w + ((size_t)(n0 / PANEL) * K + (size_t)(t->k + cut)) * PANEL;
        }
        for (int vec = 0; vec < vecs; vec += TILE_VECS) {
            const int width = vecs - vec < TILE_VECS ? vecs - vec : TILE_VECS;
            const bool fetch = t->w16 == NULL && vec + width >= vecs;
            run.b = t->in + (size_t)vec * IN_VEC;
            run.c = t->out + (size_t)cut * OUT_LD + (size_t)vec * V16;
            run.next[0] = fetch ? run.a + (size_t)ks * PANEL : run.b;
            run.next[1] = run.b;
            run.next_block = fetch ? K * PANEL : V16 * V16;
            input_tile[width - 1][ks - 1](&run);
        }
    }
}

static void run_tasks(void *ctx, int64_t begin, int64_t end, int worker)
{
    const plan *p = ctx;
    float *scratch = moe_pool_scratch(p->pool, worker);
    const int64_t k_vecs = tile_count(p->a->K, V16);
    for (int64_t i = begin; i < end; i++) {
        const int range = (int)(i % p->ranges), block = (int)(i / p->ranges % p->row_blocks);
        const int64_t g = i / p->ranges / p->row_blocks, rows = p->a->offset[g + 1] - p->a->offset[g];
        const int64_t blocks = tile_count(tile_count(rows, V16), BLOCK_VECS);
        if (block >= blocks)
            continue;
        const int64_t row = V16 * tile_cut(tile_count(rows, V16), blocks, block),
                      row_end = V16 * tile_cut(tile_count(rows, V16), blocks, block + 1);
        task t = {.row = p->a->offset[g] + row, .in = scratch, .out = scratch + SCRATCH_IN};
        t.wide = t.out + SCRATCH_OUT;
        if (p->a->w16 != NULL)
            t.w16 = p->a->w16[g];
        else
            t.w = p->a->w[g];
        t.rows = (row_end < rows ? row_end : rows) - row;
        t.k = V16 * (int)tile_cut(k_vecs, p->ranges, range), t.k_end = V16 * (int)tile_cut(k_vecs, p->ranges, range + 1);
        t.k_end = t.k_end < p->a->K ? t.k_end : p->a->K;
        if (p->a->accumulate)
            pack_out(p, &t);
        for (int n = 0; n < p->a->N; n += STEPS) {
            const int steps = p->a->N - n < STEPS ? p->a->N - n : STEPS;
            pack_in(p, &t, n, steps);
            run_steps(p, &t, n, steps);
        }
        unpack_out(p, &t);
    }
}

moe_err ISA(matmul_dx)(const matmul_args *a, moe_stream *s)
{
    plan p = {.a = a, .pool = s->pool};
    int64_t blocks = 0, most = 0;
    for (int g = 0; g < a->G; g++) {
        const int64_t n = tile_count(a->offset[g + 1] - a->offset[g], BLOCK_ROWS);
        blocks += n, most = n > most ? n : most;
    }
    if (blocks == 0 || a->K == 0)
        return MOE_OK;
    double best = 1e30; /* transposing dy costs 10 FMA cycles of 16 lanes an element, shared by the k's of a range */
    for (int range = RANGE_LEAST; range <= RANGE_MOST; range *= 2) {
        const int64_t ranges = tile_count(a->K, range);
        const double cost = 10.0 * (double)ranges / (double)a->K + tile_idle(blocks * ranges, moe_pool_threads(s->pool));
        if (cost < best)
            best = cost, p.ranges = (int)ranges;
    }
    p.row_blocks = (int)most;
    moe_pool_for(s->pool, (int64_t)a->G * p.row_blocks * p.ranges, 1, run_tasks, &p);
    return MOE_OK;
}
