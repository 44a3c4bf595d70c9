/* y = x w^T for groups of rows, fast (kernels/matmul.h). The gradients are in matmul_dx.c and matmul_dw.c.
 * Vectors run along the outputs, weights are read as they are stored; rows of x are copied to the worker's scratch, where they do
 * not share cache sets; bf16 weights are widened there, a strip at a time, for all rows of the block. A task is (group, row
 * block, range of panels), so that many small groups and one large one both fill the threads. Rule: a task writes its own rows
 * and columns only; which worker runs it and how it was cut cannot change a bit. */
#include "kernels/cpu/matmul_tile.h"
#include "kernels/tables.h"

TILE_TABLE(row_tile, A_LD, 1)

typedef struct plan {
    const matmul_args *a;
    moe_pool *pool;
    int panels;
    int block_rows, range_panels; /* most of a task                       */
    int row_blocks, ranges;       /* tasks of a group: row_blocks * ranges */
} plan;

typedef struct task {
    const float *w;
    const uint16_t *w16; /* or NULL: w */
    int64_t row, rows;   /* of x and y */
    int panel, panel_end;
    float *x;    /* scratch: [rows, A_LD]                             */
    float *wide; /* scratch: the strip at work, [panel][STEPS][PANEL] */
} task;

enum { RANGE_LEAST = 4, RANGE_MOST = 64 }; /* panels of a task */
_Static_assert((ROW_BLOCK * A_LD + TILE_VECS * STEPS * PANEL) * sizeof(float) <= KERNEL_SCRATCH_BYTES, "scratch of the product");

/* Rows are too far apart for the processor to guess the next one: it is fetched. */
static void copy_rows(const plan *p, const task *t, int k0, int steps)
{
    for (int64_t i = 0; i < t->rows; i++) {
        const float *from = p->a->x + (size_t)(t->row + i) * p->a->ldx + k0;
        float *to = t->x + (size_t)i * A_LD;
        int k = 0;
        for (; k + V16 <= steps; k += V16) {
            _mm_prefetch((const char *)(from + p->a->ldx + k), _MM_HINT_T0);
            v16_store(to + k, v16_load(from + k));
        }
        if (k < steps)
            v16_store(to + k, v16_load_n(from + k, steps - k));
    }
}

/* Weights of `panels` panels from `panel`, k's [k0, k0 + steps), as fp32. */
static void widen_strip(const plan *p, const task *t, int panel, int panels, int k0, int steps)
{
    for (int j = 0; j < panels; j++) {
        const uint16_t *from = t->w16 + ((size_t)(panel + j) * (size_t)p->a->K + (size_t)k0) * PANEL;
        float *to = t->wide + (size_t)j * STEPS * PANEL;
        for (int s = 0; s < steps; s++)
            v16_store(to + (size_t)s * PANEL, v16_widen(from + (size_t)s * PANEL));
    }
}

/* All row tiles of `panels` panels from `panel`, k's [k0, k0 + steps). The next strip of weights begins at `next` (NULL: there is
 * none); a single tile fetches it, or the last ones, a panel each, so that it is used at once. */
static void run_strip(const plan *p, const task *t, int panel, int panels, int k0, int steps, const float *next)
{
    const size_t K = (size_t)p->a->K;
    const int64_t tiles = tile_count(t->rows, TILE_ROWS);
    tile run = {.b_vec = K * PANEL, .c_row = p->a->ldy, .c_vec = PANEL, .a_block = V16, .next_block = V16 * V16, .steps = steps};
    run.last = (panel + panels) * PANEL <= p->a->N ? V16 : V16 - ((panel + panels) * PANEL - p->a->N);
    run.load = k0 > 0 || p->a->accumulate;
    if (t->w16 != NULL) {
        widen_strip(p, t, panel, panels, k0, steps);
        run.b = t->wide, run.b_vec = (size_t)STEPS * PANEL;
    } else {
        run.b = t->w + ((size_t)panel * K + (size_t)k0) * PANEL;
    }
    for (int64_t i = 0; i < tiles; i++) {
        const int64_t row = tile_cut(t->rows, tiles, i), rows = tile_cut(t->rows, tiles, i + 1) - row;
        const int64_t turn = tiles > TILE_VECS ? i - (tiles - TILE_VECS) : i;
        const bool fetch = next != NULL && turn >= 0;
        run.a = t->x + (size_t)row * A_LD;
        run.c = p->a->y + (size_t)(t->row + row) * p->a->ldy + (size_t)panel * PANEL;
        run.next[0] = fetch ? next + (size_t)turn * K * PANEL : run.b;
        run.next[1] = fetch && tiles == 1 ? next + K * PANEL : run.b;
        row_tile[panels - 1][rows - 1](&run);
    }
}

static void run_task(const plan *p, const task *t)
{
    const size_t K = (size_t)p->a->K;
    for (int k0 = 0; k0 < p->a->K; k0 += STEPS) {
        const int steps = p->a->K - k0 < STEPS ? p->a->K - k0 : STEPS;
        copy_rows(p, t, k0, steps);
        for (int panel = t->panel; panel < t->panel_end; panel += TILE_VECS) {
            const int panels = t->panel_end - panel < TILE_VECS ? t->panel_end - panel : TILE_VECS;
            const float *next = NULL;
            if (t->w16 != NULL)
                next = NULL; /* widening walks them in order: the processor fetches ahead by itself */
            else if (panel + panels < t->panel_end)
                next = t->w + ((size_t)(panel + panels) * K + (size_t)k0) * PANEL;
            else if (k0 + STEPS < p->a->K)
                next = t->w + ((size_t)t->panel * K + (size_t)(k0 + STEPS)) * PANEL;
            run_strip(p, t, panel, panels, k0, steps, next);
        }
    }
}

static void run_tasks(void *ctx, int64_t begin, int64_t end, int worker)
{
    const plan *p = ctx;
    const matmul_args *a = p->a;
    for (int64_t i = begin; i < end; i++) {
        const int range = (int)(i % p->ranges), block = (int)(i / p->ranges % p->row_blocks);
        const int64_t g = i / p->ranges / p->row_blocks, rows = a->offset[g + 1] - a->offset[g];
        const int64_t blocks = tile_count(rows, p->block_rows);
        if (block >= blocks)
            continue;
        task t = {.panel = range * p->range_panels, .x = moe_pool_scratch(p->pool, worker)};
        t.wide = t.x + (size_t)ROW_BLOCK * A_LD;
        if (a->w16 != NULL)
            t.w16 = a->w16[g];
        else
            t.w = a->w[g];
        t.row = a->offset[g] + tile_cut(rows, blocks, block);
        t.rows = a->offset[g] + tile_cut(rows, blocks, block + 1) - t.row;
        t.panel_end = t.panel + p->range_panels < p->panels ? t.panel + p->range_panels : p->panels;
        run_task(p, &t);
    }
}

/* Overheads of a cut as parts of the FMA time: a row that is copied serves the outputs of its range (13 FMA cycles of 16 lanes an
 * element), a weight that is read serves the rows of its block (2). */
static void choose_cut(plan *p, int64_t rows, int64_t groups, int64_t most)
{
    const int64_t mean = (rows + groups - 1) / groups;
    double best = 1e30;
    for (int block = ROW_BLOCK; block >= 4 * TILE_ROWS; block /= 2)
        for (int range = RANGE_LEAST; range <= RANGE_MOST; range *= 2) {
            const int64_t blocks = tile_count(mean, block), ranges = tile_count(p->panels, range);
            const double cost = 13.0 * (double)ranges / (double)(p->panels * PANEL) + 2.0 * (double)blocks / (double)mean +
                                tile_idle(groups * blocks * ranges, moe_pool_threads(p->pool));
            if (cost >= best)
                continue;
            best = cost;
            p->block_rows = block, p->range_panels = range, p->ranges = (int)ranges;
        }
    p->row_blocks = (int)tile_count(most, p->block_rows);
}

/* A product without terms is what the chain starts from. */
static void clear_rows(const matmul_args *a)
{
    for (int64_t r = a->offset[0]; r < a->offset[a->G]; r++)
        for (int n = 0; n < a->N; n++)
            a->y[(size_t)r * a->ldy + (size_t)n] = 0.0f;
}

moe_err ISA(matmul_forward)(const matmul_args *a, moe_stream *s)
{
    plan p = {.a = a, .pool = s->pool, .panels = (int)(panel_pad(a->N) / PANEL)};
    int64_t most = 0, groups = 0, all = 0;
    for (int g = 0; g < a->G; g++) {
        const int64_t rows = a->offset[g + 1] - a->offset[g];
        most = rows > most ? rows : most;
        groups += rows > 0, all += rows;
    }
    if (all == 0 || a->N == 0)
        return MOE_OK;
    if (a->K == 0 && !a->accumulate)
        clear_rows(a);
    choose_cut(&p, all, groups, most);
    moe_pool_for(s->pool, (int64_t)a->G * p.row_blocks * p.ranges, 1, run_tasks, &p);
    return MOE_OK;
}
