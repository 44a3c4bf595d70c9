/* SwiGLU and the gate of a shared expert (kernels/swiglu.h): every backend against the definition bit by bit, the definition against
 * double precision, gradients against central differences in double. Owns nothing beyond a test. One thread.
 * Rule: comparisons are memcmp unless a bound is derived. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/matmul.h"
#include "tests/kernels/harness.h"

typedef struct middle {
    float *h, *a, *dh, *c, *da, *hc, *dweight;
    int64_t rows;
    int F, Fp;
} middle;

static middle middle_new(int64_t rows, int F)
{
    const int Fp = (int)panel_pad(F);
    const size_t cells = (size_t)rows * (size_t)Fp;
    middle x = {.rows = rows, .F = F, .Fp = Fp};
    x.h = test_new(cells, false), x.a = test_new_filled(2 * cells, 1), x.dh = test_new_filled(cells, 2);
    x.c = test_new_filled((size_t)rows, 3), x.da = test_new(2 * cells, false), x.hc = test_new(cells, false);
    x.dweight = test_new((size_t)rows, false);
    return x;
}

static void middle_free(middle *x)
{
    test_free(x->h), test_free(x->a), test_free(x->dh), test_free(x->c), test_free(x->da), test_free(x->hc),
        test_free(x->dweight);
}

static swiglu_args middle_args(middle *x, bool weighted)
{
    return (swiglu_args){.h = x->h,
                         .a = x->a,
                         .dh = x->dh,
                         .c = weighted ? x->c : NULL,
                         .da = x->da,
                         .hc = x->hc,
                         .dweight = weighted ? x->dweight : NULL,
                         .rows = x->rows,
                         .F = x->F,
                         .Fp = x->Fp};
}

static void same_case(const moe_backend *b, moe_stream *s, const char *where, int64_t rows, int F, bool weighted)
{
    middle got = middle_new(rows, F), want = middle_new(rows, F);
    const size_t Fp = (size_t)got.Fp;
    const swiglu_args w = middle_args(&want, weighted), g = middle_args(&got, weighted);
    cr_assert_eq(test_reference()->swiglu_forward(&w, test_stream()), MOE_OK);
    cr_assert_eq(test_reference()->swiglu_backward(&w, test_stream()), MOE_OK);
    cr_assert_eq(b->swiglu_forward(&g, s), MOE_OK);
    cr_assert_eq(b->swiglu_backward(&g, s), MOE_OK);
    test_same(where, got.h, want.h, (size_t)rows, Fp, Fp);
    test_same(where, got.da, want.da, (size_t)rows, 2 * Fp, 2 * Fp);
    test_same(where, got.hc, want.hc, (size_t)rows, Fp, Fp);
    if (weighted)
        test_same(where, got.dweight, want.dweight, 1, (size_t)rows, 0);
    for (size_t r = 0; r < (size_t)rows; r++)
        for (size_t f = (size_t)F; f < Fp; f++)
            cr_assert(memcmp(&want.h[r * Fp + f], &(float){0}, 4) == 0 && memcmp(&want.hc[r * Fp + f], &(float){0}, 4) == 0 &&
                          memcmp(&want.da[r * 2 * Fp + f], &(float){0}, 4) == 0 &&
                          memcmp(&want.da[r * 2 * Fp + Fp + f], &(float){0}, 4) == 0,
                      "row %zu, column %zu of the pad is not zero", r, f);
    swiglu_args in_place = g; /* da == a, hc == dh */
    in_place.da = got.a, in_place.hc = got.dh;
    cr_assert_eq(b->swiglu_backward(&in_place, s), MOE_OK);
    test_same(where, got.a, want.da, (size_t)rows, 2 * Fp, 2 * Fp);
    test_same(where, got.dh, want.hc, (size_t)rows, Fp, Fp);
    middle_free(&got), middle_free(&want);
}

/* Clamped: numbers on both sides of the limit, on it, infinite and NaN. */
static void same_clamped(const moe_backend *b, moe_stream *s, const char *where, void *ctx)
{
    static const float odd[] = {7.0f, -7.0f, 7.5f, -7.5f, INFINITY, -INFINITY, NAN, 0.0f, -0.0f};
    const int sizes[] = {1, 16, 37};
    (void)ctx;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        middle got = middle_new(19, sizes[i]), want = middle_new(19, sizes[i]);
        const size_t Fp = (size_t)got.Fp;
        for (size_t k = 0; k < 19 * 2 * Fp; k++)
            got.a[k] = want.a[k] = k % 5 == 0 ? odd[k % 9] : 20.0f * (float)((double)(test_bits(7, k) >> 11) * 0x1p-52 - 1.0);
        swiglu_args w = middle_args(&want, false), g = middle_args(&got, false);
        w.alpha = g.alpha = 1.702f, w.limit = g.limit = 7.0f;
        cr_assert_eq(test_reference()->swiglu_forward(&w, test_stream()), MOE_OK);
        cr_assert_eq(b->swiglu_forward(&g, s), MOE_OK);
        test_same(where, got.h, want.h, 19, Fp, Fp);
        for (size_t r = 0; r < 19; r++)
            for (size_t f = 0; f < (size_t)sizes[i]; f++) {
                const double x = fmin((double)want.a[r * 2 * Fp + f], 7), y = fmax(-7, fmin((double)want.a[r * 2 * Fp + Fp + f], 7));
                const double h = (y + 1) * (x / (1 + exp(-(double)1.702f * x))), found = (double)want.h[r * Fp + f];
                if (isnan(want.a[r * 2 * Fp + f]) || isnan(want.a[r * 2 * Fp + Fp + f]) || isinf(x))
                    cr_assert(isinf(x) || isnan(found), "%s: a NaN became %g", where, found);
                else
                    cr_assert_leq(fabs(found - h), 1e-5, "%s: row %zu, column %zu: %g, expected %g", where, r, f, found, h);
            }
        middle_free(&got), middle_free(&want);
    }
}

Test(swiglu, clamped_follows_its_formula_with_the_same_bits_everywhere) { test_each_backend(same_clamped, NULL); }

static void same_bits(const moe_backend *b, moe_stream *s, const char *where, void *ctx)
{
    (void)ctx;
    for (const test_shape *p = test_shapes; p->name != NULL; p++) {
        same_case(b, s, where, (int64_t)test_tokens(p) * p->K, p->F, true);
        same_case(b, s, where, test_tokens(p), p->F, false);
    }
    same_case(b, s, where, 3, 1, true);
}

Test(swiglu, same_bits) { test_each_backend(same_bits, NULL); }

static double middle_value(double g, double u) { return g / (1 + exp(-g)) * u; }

Test(swiglu, formula_and_finite_differences)
{
    enum { ROWS = 3, F = 21, Fp = 32 };
    middle x = middle_new(ROWS, F);
    moe_stream *s = test_stream();
    for (int i = 0; i < ROWS * 2 * Fp; i++)
        x.a[i] = (float)(test_bits(1, (uint64_t)i) % 8001) / 1000 - 4;
    for (int i = 0; i < ROWS * Fp; i++)
        x.dh[i] = (float)(test_bits(2, (uint64_t)i) % 2001) / 1000 - 1;
    for (int r = 0; r < ROWS; r++)
        x.c[r] = 0.3f + (float)r;
    const swiglu_args a = middle_args(&x, true);
    cr_assert_eq(test_reference()->swiglu_forward(&a, s), MOE_OK);
    cr_assert_eq(test_reference()->swiglu_backward(&a, s), MOE_OK);
    for (int r = 0; r < ROWS; r++) {
        double dweight = 0.0, absolute = 0.0;
        for (int f = 0; f < F; f++) {
            const double g = (double)x.a[r * 2 * Fp + f], u = (double)x.a[r * 2 * Fp + Fp + f], d = (double)x.dh[r * Fp + f],
                         c = (double)x.c[r];
            const double h = middle_value(g, u), step = 1e-5, u24 = 0x1p-24;
            const double dg = c * d * (middle_value(g + step, u) - middle_value(g - step, u)) / (2 * step),
                         du = c * d * middle_value(g, 1);
            dweight += h * d;
            absolute += fabs(h * d);
            /* sigmoid: 4 roundings, each product one; 1 + g(1 - s) cancels where it is small, so dg is bounded by its terms */
            cr_assert(fabs((double)x.h[r * Fp + f] - h) <= 8 * u24 * fabs(h), "h[%d, %d]", r, f);
            cr_assert(fabs((double)x.hc[r * Fp + f] - c * h) <= 9 * u24 * fabs(c * h), "hc[%d, %d]", r, f);
            cr_assert(fabs((double)x.da[r * 2 * Fp + Fp + f] - du) <= 9 * u24 * fabs(du), "du[%d, %d]", r, f);
            cr_assert(fabs((double)x.da[r * 2 * Fp + f] - dg) <= (16 * u24 * (1 + fabs(g)) + 1e-9) * fabs(c * d * u),
                      "dg[%d, %d]: got %.9g, expected %.9g", r, f, (double)x.da[r * 2 * Fp + f], dg);
        }
        cr_assert(fabs((double)x.dweight[r] - dweight) <= (8 + F / 16 + 5) * 0x1p-24 * absolute,
                  "dweight[%d]: got %.9g, expected %.9g", r, (double)x.dweight[r], dweight);
    }
    middle_free(&x);
}

typedef struct gated {
    float *y, *z, *dy, *dz;
} gated;

static gated gated_new(int64_t T, int D)
{
    const size_t cells = (size_t)T * (size_t)D;
    return (gated){test_new_filled(cells, 1), test_new_filled((size_t)T, 2), test_new_filled(cells, 3),
                   test_new((size_t)T, false)};
}

static void gated_free(gated *x) { test_free(x->y), test_free(x->z), test_free(x->dy), test_free(x->dz); }

static void gated_run(const moe_backend *b, moe_stream *s, gated *x, int64_t T, int D)
{
    const gate_args a = {.y = x->y, .z = x->z, .dy = x->dy, .dz = x->dz, .T = T, .D = D};
    cr_assert_eq(b->gate_backward(&a, s), MOE_OK); /* y is still the ungated one */
    cr_assert_eq(b->gate_forward(&a, s), MOE_OK);
}

static void gate_same_bits(const moe_backend *b, moe_stream *s, const char *where, void *ctx)
{
    (void)ctx;
    for (const test_shape *p = test_shapes; p->name != NULL; p++) {
        const int T = test_tokens(p);
        const size_t D = (size_t)p->D;
        gated got = gated_new(T, p->D), want = gated_new(T, p->D);
        gated_run(test_reference(), test_stream(), &want, T, p->D);
        gated_run(b, s, &got, T, p->D);
        test_same(where, got.y, want.y, (size_t)T, D, D);
        test_same(where, got.dy, want.dy, (size_t)T, D, D);
        test_same(where, got.dz, want.dz, 1, (size_t)T, 0);
        gated_free(&got), gated_free(&want);
    }
}

Test(swiglu, gate_same_bits) { test_each_backend(gate_same_bits, NULL); }

Test(swiglu, gate_formula)
{
    enum { T = 4, D = 19 };
    gated x = gated_new(T, D), in = gated_new(T, D);
    gated_run(test_reference(), test_stream(), &x, T, D);
    for (int t = 0; t < T; t++) {
        const double sig = 1 / (1 + exp(-(double)in.z[t]));
        double sum = 0.0, absolute = 0.0;
        for (int d = 0; d < D; d++) {
            const double y = (double)in.y[t * D + d], dy = (double)in.dy[t * D + d];
            sum += y * dy;
            absolute += fabs(y * dy);
            /* sigmoid 4 roundings, product 1; a denormal input counts as zero */
            cr_assert(fabs((double)x.y[t * D + d] - y * sig) <= 6 * 0x1p-24 * fabs(y) * sig + 0x1p-126, "y[%d, %d]", t, d);
            cr_assert(fabs((double)x.dy[t * D + d] - dy * sig) <= 6 * 0x1p-24 * fabs(dy) * sig + 0x1p-126, "dy[%d, %d]", t, d);
        }
        cr_assert(fabs((double)x.dz[t] - sig * (1 - sig) * sum) <= (12 + 5 + D / 16) * 0x1p-24 * absolute, "dz[%d]", t);
    }
    gated_free(&x), gated_free(&in);
}

/* A product under 2^-126 is flushed with its sign. The lanes that a short last group leaves out get +0, which decides the sign of a sum
 * of nothing but -0. */
static void flushed_sum(const moe_backend *b, moe_stream *s, const char *where, void *ctx)
{
    (void)ctx;
    for (int F = 1; F <= 32; F++) {
        middle x = middle_new(1, F);
        for (int f = 0; f < x.Fp; f++)
            x.a[f] = 0x1p-34f, x.a[x.Fp + f] = 0x1p-35f, x.dh[f] = -0x1p-70f;
        const swiglu_args a = middle_args(&x, true);
        cr_assert_eq(b->swiglu_backward(&a, s), MOE_OK);
        const float want = F % 16 == 0 ? -0.0f : 0.0f;
        cr_assert_eq(memcmp(x.dweight, &want, sizeof want), 0, "%s, F = %d: got %g, expected %g", where, F, (double)x.dweight[0],
                     (double)want);
        middle_free(&x);
    }
}

Test(swiglu, sign_of_a_flushed_sum) { test_each_backend(flushed_sum, NULL); }
