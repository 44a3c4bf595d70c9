/* The weight gradient, fast: dw[n, k] = chain over the rows of dy[r, n] * x[r, k] (kernels/matmul.h).
 * Vectors run along n like the panels; x is packed in strips of TILE_ROWS k's, dy one strip of panels at a time, both in the
 * worker's scratch. A task is (group, range of panels, range of k) and owns those elements of dw; it walks all rows of the group
 * in order. Rule: pads are left as they are when accumulating and written as zero otherwise, whatever x holds. */
#include <string.h>

#include "kernels/cpu/matmul_tile.h"
#include "kernels/tables.h"

TILE_TABLE(weight_tile, 1, TILE_ROWS)

enum {
    K_MOST = 1024,                               /* k's of a task                                                        */
    ROWS_MOST = STEPS,                           /* rows packed at a time: at most 2.1 MB                                */
    SPAN = (K_MOST / TILE_ROWS + 2) * TILE_ROWS, /* packed floats a row: strips may all be one short */
    SCRATCH_X = ROWS_MOST * SPAN + (SPAN / TILE_ROWS) * V16,
    PACK_PANELS = 8,      /* of dy packed at a time                                                */
    DY_VEC = STEPS * V16, /* floats from panel to panel of packed dy                            */
    SCRATCH_DY = PACK_PANELS * DY_VEC,
    RANGE_LEAST = 4,
    RANGE_MOST = 64, /* panels of a task */
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
    int64_t row, rows; /* packed now: [row, row + rows) */
    int panel, panel_end;
    int k, k_end;
    float *x, *dy; /* scratch */
    bool load, stream;
} task;

/* Floats from one strip of packed x to the next; the pad takes the overhang of the last row and spreads the strips over cache
 * sets. */
static size_t strip_floats(int64_t rows) { return (size_t)rows * TILE_ROWS + V16; }

/* x[strip][row][TILE_ROWS]: whole vectors are written, the next row repairs what they overlap. */
static void pack_x(const plan *p, const task *t)
{
    const int64_t strips = tile_count(t->k_end - t->k, TILE_ROWS);
    for (int64_t r = 0; r < t->rows; r++) {
        const float *row = p->a->x + (size_t)(t->row + r) * p->a->ldx;
        float *to = t->x + (size_t)r * TILE_ROWS;
        for (int64_t i = 0; i < strips; i++, to += strip_floats(t->rows)) {
            const int k = t->k + (int)tile_cut(t->k_end - t->k, strips, i), room = p->a->K - k;
            v16_store(to, room >= V16 ? v16_load(row + k) : v16_load_n(row + k, room));
        }
    }
}

/* dy[vec][row][16] for the panels that are next; outputs past N read as zero. Rows are too far apart for the processor to guess,
 * and a power of two of them apart share cache sets: so PACK_PANELS lines are taken from a row at once, and the rows to come are
 * fetched. */
static void pack_dy(const plan *p, const task *t, int panel, int panels)
{
    enum { AHEAD = 4 };
    for (int64_t r = 0; r < t->rows; r++) {
        const float *from = p->a->y + (size_t)(t->row + r) * p->a->ldy + (size_t)panel * PANEL;
        float *to = t->dy + (size_t)r * V16;
        for (int j = 0; j < panels; j++, from += PANEL, to += DY_VEC) {
            const int room = p->a->N - (panel + j) * PANEL;
            _mm_prefetch((const char *)(from + AHEAD * p->a->ldy), _MM_HINT_T0);
            v16_store(to, room >= V16 ? v16_load(from) : v16_load_n(from, room));
        }
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

/* All strips of k for the panels [panel, panel + vecs), whose dy is packed at `dy`. */
static void run_strip(const plan *p, const task *k, int panel, int vecs, const float *dy)
{
    const size_t K = (size_t)p->a->K;
    const int real = p->a->N - (panel + vecs - 1) * PANEL; /* outputs of the last panel */
    const int64_t strips = tile_count(k->k_end - k->k, TILE_ROWS);
    tile t = {.b_vec = DY_VEC,
              .c_row = PANEL,
              .c_vec = K * PANEL,
              .a_block = V16 * TILE_ROWS,
              .last = V16,
              .next_block = TILE_ROWS * PANEL};
    t.steps = (int)k->rows, t.load = k->load, t.stream = k->stream;
    for (int64_t i = 0; i < strips; i++) {
        const int cut = (int)tile_cut(k->k_end - k->k, strips, i), rows = (int)tile_cut(k->k_end - k->k, strips, i + 1) - cut;
        t.a = k->x + (size_t)i * strip_floats(k->rows);
        t.b = dy;
        t.c = k->dw + ((size_t)panel * K + (size_t)(k->k + cut)) * PANEL;
        t.next[0] = t.stream ? t.b : t.c + TILE_ROWS * PANEL; /* the tiles that follow, unless they are only written */
        t.next[1] = t.stream ? t.b : t.next[0] + (size_t)(vecs - 1) * t.c_vec;
        if (real >= PANEL) {
            weight_tile[vecs - 1][rows - 1](&t);
            continue;
        }
        if (vecs > 1)
            weight_tile[vecs - 2][rows - 1](&t);
        t.b += (size_t)(vecs - 1) * t.b_vec, t.c += (size_t)(vecs - 1) * t.c_vec;
        run_padded(&t, weight_tile[0][rows - 1], rows, real);
    }
}

static void run_block(const plan *p, const task *t)
{
    pack_x(p, t);
    for (int first = t->panel; first < t->panel_end; first += PACK_PANELS) {
        const int end = first + PACK_PANELS < t->panel_end ? first + PACK_PANELS : t->panel_end;
        pack_dy(p, t, first, end - first);
        for (int panel = first; panel < end; panel += TILE_VECS)
            run_strip(p, t, panel, end - panel < TILE_VECS ? end - panel : TILE_VECS, t->dy + (size_t)(panel - first) * DY_VEC);
    }
}

static void clear_range(const plan *p, const task *t)
{
    for (int panel = t->panel; panel < t->panel_end; panel++)
        memset(t->dw + ((size_t)panel * (size_t)p->a->K + (size_t)t->k) * PANEL, 0,
               sizeof(float) * PANEL * (size_t)(t->k_end - t->k));
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
            t.stream = !t.load && blocks == 1 && (uintptr_t)t.dw % 64 == 0;
            run_block(p, &t);
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
