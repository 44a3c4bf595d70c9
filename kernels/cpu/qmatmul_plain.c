/* Products with weights in F32, F16, BF16 or F8_E4M3 (kernels/qmatmul.h): one fma chain over k. F32 is matmul_forward itself.
 * The others: few rows widen them on the way to the fma; for many rows a strip is widened into the worker's scratch and the tiles of
 * matmul_tile.h pass over it. A task is (group, row block, range of panels).
 * Rule: a task writes its own rows and columns only; which worker runs it and how it was cut cannot change a bit. */
#include "kernels/cpu/qmatmul_plain.h"

#include "kernels/cpu/matmul_tile.h"
#include "kernels/qpanel.h"
#include "kernels/tables.h"

TILE_TABLE(row_tile, A_LD, 1)

enum { RANGE = 8 /* panels of a task */, AHEAD = 64 /* k: 2 KB of a panel */ };
/* Rows of one pass over the weights; panels whose chains run side by side, to hide the latency of an fma. */
#if MOE_SIMD_512
enum { FEW = 8, TOGETHER = 4 };
#define TOGETHER_FOR(rows) ((rows) <= 4 ? 4 : 2)
#else
enum { FEW = 6, TOGETHER = 2 };
#define TOGETHER_FOR(rows) ((rows) <= 4 ? 2 : 1)
#endif

typedef struct scratch {
    float x[ROW_BLOCK * A_LD];
    float w[TILE_VECS * STEPS * PANEL];
} scratch;
_Static_assert(sizeof(scratch) <= KERNEL_SCRATCH_BYTES, "scratch of the product");

typedef struct plan {
    const qmatmul_args *a;
    const qmatrix *m;
    moe_pool *pool;
    int panels, ranges, row_blocks;
} plan;

typedef struct task {
    const plan *p;
    const void *w;
    int64_t row, rows; /* of x and y */
    int panel, panel_end;
    scratch *s;
} task;

SIMD v16 widen(const uint16_t *w, const bool half)
{
#if MOE_SIMD_512
    if (half)
        return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)w));
#else
    const __m128i *q = (const __m128i *)(const void *)w;
    if (half)
        return (v16){_mm256_cvtph_ps(_mm_loadu_si128(q)), _mm256_cvtph_ps(_mm_loadu_si128(q + 1))};
#endif
    return i16_float(i16_shl(i16_load_u16(w), 16));
}

/* Two pairs of E4M3, k .. k + 3 of 16 outputs: moved to where fp16 has sign, exponent and fraction they are 1/256 of the number, also where they are
 * denormals, which that conversion knows whatever the mode. */
SIMD void widen_f8(v16 out[4], const uint8_t *w)
{
#if MOE_SIMD_512
    const __m512i x = _mm512_loadu_si512(w), keep = _mm512_set1_epi16((short)0xbf80);
    const __m512i odd = _mm512_and_si512(_mm512_srai_epi16(x, 1), keep), even = _mm512_and_si512(_mm512_srai_epi16(_mm512_slli_epi16(x, 8), 1), keep);
    out[0] = _mm512_cvtph_ps(_mm512_castsi512_si256(even)), out[1] = _mm512_cvtph_ps(_mm512_castsi512_si256(odd));
    out[2] = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(even, 1)), out[3] = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(odd, 1));
#else
    const __m256i keep = _mm256_set1_epi16((short)0xbf80);
    for (int i = 0; i < 2; i++) {
        const __m256i x = _mm256_loadu_si256((const __m256i *)(const void *)(w + 32 * i));
        const __m256i odd = _mm256_and_si256(_mm256_srai_epi16(x, 1), keep), even = _mm256_and_si256(_mm256_srai_epi16(_mm256_slli_epi16(x, 8), 1), keep);
        out[2 * i] = (v16){_mm256_cvtph_ps(_mm256_castsi256_si128(even)), _mm256_cvtph_ps(_mm256_extracti128_si256(even, 1))};
        out[2 * i + 1] = (v16){_mm256_cvtph_ps(_mm256_castsi256_si128(odd)), _mm256_cvtph_ps(_mm256_extracti128_si256(odd, 1))};
    }
#endif
}

/* Codes of a panel, and 256 times the scales of its block b. */
SIMD const uint8_t *f8_codes(const task *t, int panel)
{
    return (const uint8_t *)t->w + (size_t)panel * (size_t)t->p->a->K * PANEL;
}
SIMD v16 f8_scale(const task *t, int panel, int b)
{
    const float *side = (const float *)(const void *)((const uint8_t *)t->w + (size_t)t->p->panels * (size_t)t->p->a->K * PANEL);
    return v16_mul(v16_load(side + ((size_t)panel * (size_t)(t->p->a->K / QEIGHT) + (size_t)b) * PANEL), v16_set1(256.0f));
}

SIMD int lanes_of(const task *t, int panel) { return t->p->m->N - panel * PANEL < PANEL ? t->p->m->N - panel * PANEL : PANEL; }

SIMD float *y_at(const task *t, int64_t row, int panel)
{
    return t->p->m->y + (size_t)(t->row + row) * t->p->m->ldy + (size_t)panel * PANEL;
}

SIMD void few_rows(const task *t, int panel, const int rows, const int panels, const bool half)
{
    const size_t K = (size_t)t->p->a->K, ldx = t->p->a->ldx;
    const uint16_t *w = (const uint16_t *)t->w + (size_t)panel * K * PANEL;
    const float *x = t->p->a->x + (size_t)t->row * ldx;
    v16 acc[FEW][TOGETHER];
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < panels; j++)
            acc[r][j] = t->p->a->accumulate ? v16_load_n(y_at(t, r, panel + j), lanes_of(t, panel + j)) : v16_zero();
    for (size_t k = 0; k < K; k++, w += PANEL) {
        v16 wide[TOGETHER];
#pragma GCC unroll 4
        for (int j = 0; j < panels; j++) {
            wide[j] = widen(w + (size_t)j * K * PANEL, half);
            _mm_prefetch((const char *)(w + (size_t)j * K * PANEL + AHEAD * PANEL), _MM_HINT_T0);
        }
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            const v16 v = v16_set1(x[(size_t)r * ldx + k]);
#pragma GCC unroll 4
            for (int j = 0; j < panels; j++)
                acc[r][j] = v16_fma(v, wide[j], acc[r][j]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < panels; j++)
            v16_store_n(y_at(t, r, panel + j), acc[r][j], lanes_of(t, panel + j));
}

SIMD void few_rows_f8(const task *t, int panel, const int rows, const int panels)
{
    const size_t K = (size_t)t->p->a->K, ldx = t->p->a->ldx;
    const uint8_t *w = f8_codes(t, panel);
    const float *x = t->p->a->x + (size_t)t->row * ldx;
    v16 acc[FEW][TOGETHER], scale[TOGETHER];
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < panels; j++)
            acc[r][j] = t->p->a->accumulate ? v16_load_n(y_at(t, r, panel + j), lanes_of(t, panel + j)) : v16_zero();
    for (int b = 0; b < (int)(K / QEIGHT); b++) {
        for (int j = 0; j < panels; j++)
            scale[j] = f8_scale(t, panel + j, b);
        for (int k = 0; k < QEIGHT; k += 4, x += 4, w += 4 * PANEL)
#pragma GCC unroll 4
            for (int j = 0; j < panels; j++) {
                v16 wide[4];
                widen_f8(wide, w + (size_t)j * K * PANEL);
                _mm_prefetch((const char *)w + ((size_t)j * K + 2 * AHEAD) * PANEL, _MM_HINT_T0);
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++) {
                    const v16 v = v16_mul(wide[i], scale[j]);
#pragma GCC unroll 8
                    for (int r = 0; r < rows; r++)
                        acc[r][j] = v16_fma(v16_set1(x[(size_t)r * ldx + (size_t)i]), v, acc[r][j]);
                }
            }
    }
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < panels; j++)
            v16_store_n(y_at(t, r, panel + j), acc[r][j], lanes_of(t, panel + j));
}

SIMD void few_panels(const task *t, int panel, const int rows, const int panels, const numfmt f)
{
    if (f == NUM_F8_E4M3)
        few_rows_f8(t, panel, rows, panels);
    else
        few_rows(t, panel, rows, panels, f == NUM_F16);
}

SIMD void run_few(const task *t, const int rows, const numfmt f)
{
    int panel = t->panel;
    for (; panel + TOGETHER_FOR(rows) <= t->panel_end; panel += TOGETHER_FOR(rows))
        few_panels(t, panel, rows, TOGETHER_FOR(rows), f);
    for (; panel < t->panel_end; panel++)
        few_panels(t, panel, rows, 1, f);
}

#define FEW_DEFINE(r)                                                                                                            \
    static void few_bf16_##r(const task *t) { run_few(t, r, NUM_BF16); }                                                         \
    static void few_f16_##r(const task *t) { run_few(t, r, NUM_F16); }                                                           \
    static void few_f8_##r(const task *t) { run_few(t, r, NUM_F8_E4M3); }
#define FEW_ENTRY(r) [r - 1] = {[NUM_BF16] = few_bf16_##r, [NUM_F16] = few_f16_##r, [NUM_F8_E4M3] = few_f8_##r},
#if MOE_SIMD_512
#define FEW_ALL(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8)
#else
#define FEW_ALL(X) X(1) X(2) X(3) X(4) X(5) X(6)
#endif
FEW_ALL(FEW_DEFINE)
static void (*const few[FEW][NUM_FORMATS])(const task *) = {FEW_ALL(FEW_ENTRY)};

static void copy_rows(const task *t, int k0, int steps)
{
    for (int64_t i = 0; i < t->rows; i++) {
        const float *from = t->p->a->x + (size_t)(t->row + i) * t->p->a->ldx + k0;
        float *to = t->s->x + (size_t)i * A_LD;
        for (int k = 0; k < steps; k += V16)
            v16_store(to + k, steps - k >= V16 ? v16_load(from + k) : v16_load_n(from + k, steps - k));
    }
}

static void widen_strip_f8(const task *t, int panel, int panels, int k0, int steps)
{
    _Static_assert(STEPS % QEIGHT == 0, "a strip is whole blocks");
    for (int j = 0; j < panels; j++) {
        const uint8_t *w = f8_codes(t, panel + j) + (size_t)k0 * PANEL;
        float *to = t->s->w + (size_t)j * STEPS * PANEL;
        for (int b = 0; b < steps / QEIGHT; b++) {
            const v16 scale = f8_scale(t, panel + j, k0 / QEIGHT + b);
            for (int k = 0; k < QEIGHT; k += 4, w += 4 * PANEL, to += 4 * PANEL) {
                v16 wide[4];
                widen_f8(wide, w);
                for (int i = 0; i < 4; i++)
                    v16_store(to + i * PANEL, v16_mul(wide[i], scale));
            }
        }
    }
}

static void widen_strip(const task *t, int panel, int panels, int k0, int steps)
{
    if (t->p->m->format == NUM_F8_E4M3) {
        widen_strip_f8(t, panel, panels, k0, steps);
        return;
    }
    const size_t K = (size_t)t->p->a->K;
    const bool half = t->p->m->format == NUM_F16;
    for (int j = 0; j < panels; j++) {
        const uint16_t *w = (const uint16_t *)t->w + ((size_t)(panel + j) * K + (size_t)k0) * PANEL;
        float *to = t->s->w + (size_t)j * STEPS * PANEL;
        for (int k = 0; k < steps; k++)
            v16_store(to + k * PANEL, half ? widen(w + k * PANEL, true) : widen(w + k * PANEL, false));
    }
}

static void run_many(const task *t)
{
    const int K = t->p->a->K;
    const int64_t parts = tile_count(t->rows, TILE_ROWS);
    for (int k0 = 0; k0 < K; k0 += STEPS) {
        const int steps = K - k0 < STEPS ? K - k0 : STEPS;
        copy_rows(t, k0, steps);
        for (int panel = t->panel; panel < t->panel_end; panel += TILE_VECS) {
            const int panels = t->panel_end - panel < TILE_VECS ? t->panel_end - panel : TILE_VECS;
            tile run = {
                .b = t->s->w, .b_vec = STEPS * PANEL, .c_row = t->p->m->ldy, .c_vec = PANEL, .a_block = V16, .steps = steps};
            run.last = lanes_of(t, panel + panels - 1), run.load = k0 > 0 || t->p->a->accumulate;
            run.next[0] = run.next[1] = run.b, run.next_block = V16 * V16;
            widen_strip(t, panel, panels, k0, steps);
            for (int64_t i = 0; i < parts; i++) {
                const int64_t row = tile_cut(t->rows, parts, i), rows = tile_cut(t->rows, parts, i + 1) - row;
                run.a = t->s->x + (size_t)row * A_LD, run.c = y_at(t, row, panel);
                row_tile[panels - 1][rows - 1](&run);
            }
        }
    }
}

static void run_tasks(void *ctx, int64_t begin, int64_t end, int worker)
{
    const plan *p = ctx;
    for (int64_t i = begin; i < end; i++) {
        const int range = (int)(i % p->ranges), block = (int)(i / p->ranges % p->row_blocks);
        const int64_t g = i / p->ranges / p->row_blocks, first = p->a->offset[g], rows = p->a->offset[g + 1] - first;
        const int64_t blocks = tile_count(rows, ROW_BLOCK);
        if (block >= blocks)
            continue;
        task t = {.p = p, .w = p->m->w[g], .panel = range * RANGE, .s = moe_pool_scratch(p->pool, worker)};
        t.row = first + tile_cut(rows, blocks, block);
        t.rows = first + tile_cut(rows, blocks, block + 1) - t.row;
        t.panel_end = t.panel + RANGE < p->panels ? t.panel + RANGE : p->panels;
        if (t.rows <= FEW)
            few[t.rows - 1][p->m->format](&t);
        else
            run_many(&t);
    }
}

static moe_err run_f32(const qmatmul_args *a, const qmatrix *m, moe_stream *s)
{
    const matmul_args f32 = {.w = (const float *const *)m->w,
                             .y = m->y,
                             .x = (float *)a->x, /* only read by forward */
                             .ldy = m->ldy,
                             .ldx = a->ldx,
                             .offset = a->offset,
                             .G = a->G,
                             .N = m->N,
                             .K = a->K,
                             .accumulate = a->accumulate};
    return ISA(matmul_forward)(&f32, s);
}

moe_err ISA(qmatmul_plain)(const qmatmul_args *a, const qmatrix *m, moe_stream *s)
{
    if (m->format == NUM_F32)
        return run_f32(a, m, s);
    plan p = {.a = a, .m = m, .pool = s->pool, .panels = (int)(panel_pad(m->N) / PANEL)};
    int64_t most = 0;
    for (int g = 0; g < a->G; g++)
        most = a->offset[g + 1] - a->offset[g] > most ? a->offset[g + 1] - a->offset[g] : most;
    p.row_blocks = (int)tile_count(most, ROW_BLOCK), p.ranges = (int)tile_count(p.panels, RANGE);
    moe_pool_for(s->pool, (int64_t)a->G * p.row_blocks * p.ranges, 1, run_tasks, &p);
    return MOE_OK;
}
