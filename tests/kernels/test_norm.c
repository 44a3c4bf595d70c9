/* RMSNorm (kernels/norm.h): every backend against the definition bit by bit, the definition against double precision, gradients
 * against central differences in double. Owns nothing beyond a test. One thread.
 * Rule: comparisons are memcmp unless a bound is derived. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/kernels/harness.h"

/* Rows of `D` in `heads` per token, with a gap after each token. */
typedef struct norm_case {
    int64_t T;
    int heads, D;
    size_t ldx, ldy;
    float *x, *y, *inv, *gain, *dy, *dx, *dgain;
} norm_case;

static norm_case case_new(int64_t T, int heads, int D)
{
    norm_case c = {.T = T, .heads = heads, .D = D, .ldx = (size_t)(heads * D) + 5, .ldy = (size_t)(heads * D) + 3};
    c.x = test_new_filled((size_t)T * c.ldx, 1);
    c.y = test_new_filled((size_t)T * c.ldy, 2);
    c.inv = test_new_filled((size_t)(T * heads), 3);
    c.gain = test_new_filled((size_t)D, 4);
    c.dy = test_new_filled((size_t)T * c.ldy, 5);
    c.dx = test_new_filled((size_t)T * c.ldx, 6);
    c.dgain = test_new_filled((size_t)D, 7);
    return c;
}

static void case_free(norm_case *c)
{
    test_free(c->x), test_free(c->y), test_free(c->inv), test_free(c->gain), test_free(c->dy), test_free(c->dx),
        test_free(c->dgain);
}

static rmsnorm_args case_args(norm_case *c, bool accumulate)
{
    return (rmsnorm_args){.y = c->y,
                          .inv = c->inv,
                          .x = c->x,
                          .gain = c->gain,
                          .dy = c->dy,
                          .dx = c->dx,
                          .dgain = c->dgain,
                          .ldx = c->ldx,
                          .ldy = c->ldy,
                          .T = c->T,
                          .heads = c->heads,
                          .D = c->D,
                          .eps = 1e-6f,
                          .accumulate = accumulate};
}

static void case_run(const moe_backend *b, moe_stream *s, norm_case *c, bool accumulate)
{
    const rmsnorm_args a = case_args(c, accumulate);
    cr_assert_eq(b->rmsnorm_forward(&a, s), MOE_OK);
    cr_assert_eq(b->rmsnorm_backward(&a, s), MOE_OK);
}

static void same_case(const moe_backend *b, moe_stream *s, const char *where, int64_t T, int heads, int D, bool accumulate)
{
    norm_case got = case_new(T, heads, D), want = case_new(T, heads, D);
    case_run(test_reference(), test_stream(), &want, accumulate);
    case_run(b, s, &got, accumulate);
    test_same(where, got.y, want.y, (size_t)T, got.ldy, got.ldy); /* gaps too: nothing may be written there */
    test_same(where, got.inv, want.inv, 1, (size_t)(T * heads), 0);
    test_same(where, got.dx, want.dx, (size_t)T, got.ldx, got.ldx);
    test_same(where, got.dgain, want.dgain, 1, (size_t)D, 0);
    case_free(&got), case_free(&want);
}

static void same_bits(const moe_backend *b, moe_stream *s, const char *where, void *ctx)
{
    (void)ctx;
    for (const test_shape *p = test_shapes; p->name != NULL; p++) {
        same_case(b, s, where, test_tokens(p), 1, p->D, false);
        same_case(b, s, where, test_tokens(p), 1, p->D, true);
        same_case(b, s, where, test_tokens(p), p->H, p->hd, false);
    }
    same_case(b, s, where, 3, 1, 1, true);
    same_case(b, s, where, 300, 2, 64, false);
}

Test(norm, same_bits) { test_each_backend(same_bits, NULL); }

/* dx may be dy, y may be x, inv may be NULL in forward. */
static void in_place(const moe_backend *b, moe_stream *s, const char *where, void *ctx)
{
    norm_case got = case_new(21, 2, 40), want = case_new(21, 2, 40);
    (void)ctx;
    got.ldx = got.ldy = want.ldx = want.ldy = 80;
    case_run(test_reference(), test_stream(), &want, false);
    rmsnorm_args a = case_args(&got, false);
    cr_assert_eq(b->rmsnorm_forward(&a, s), MOE_OK);
    a.dx = got.dy;
    cr_assert_eq(b->rmsnorm_backward(&a, s), MOE_OK);
    test_same(where, got.dy, want.dx, 21, 80, 80);
    test_same(where, got.dgain, want.dgain, 1, 40, 0);
    a.y = got.x;
    a.inv = NULL;
    cr_assert_eq(b->rmsnorm_forward(&a, s), MOE_OK);
    test_same(where, got.x, want.y, 21, 80, 80);
    case_free(&got), case_free(&want);
}

Test(norm, in_place) { test_each_backend(in_place, NULL); }

static double norm_value(const double *x, const double *gain, const float *dy, int D, double eps)
{
    double squares = 0.0, sum = 0.0;
    for (int d = 0; d < D; d++)
        squares += x[d] * x[d];
    for (int d = 0; d < D; d++)
        sum += (double)dy[d] * x[d] / sqrt(squares / D + eps) * gain[d];
    return sum;
}

Test(norm, formula_and_finite_differences)
{
    enum { D = 37 };
    norm_case c = case_new(1, 1, D);
    double x[D], gain[D], squares = 0.0, absolute = 0.0;
    moe_stream *s = test_stream();
    for (int d = 0; d < D; d++) { /* no huge values: they would drown the differences */
        c.x[d] = (float)(test_bits(1, (uint64_t)d) % 2001) / 1000 - 1, c.gain[d] = 0.5f + (float)d / D;
        c.dy[d] = (float)(test_bits(2, (uint64_t)d) % 2001) / 1000 - 1, c.dgain[d] = 0.0f;
        x[d] = (double)c.x[d], gain[d] = (double)c.gain[d];
        squares += x[d] * x[d];
        absolute += fabs((double)c.dy[d]) * gain[d];
    }
    case_run(test_reference(), s, &c, false);
    const double inv = 1 / sqrt(squares / D + (double)1e-6f);
    for (int d = 0; d < D; d++) {
        /* the sum of squares: D/16 + 4 roundings, halved by the root, then division, addition, root, division and two products */
        const double y = x[d] * inv * gain[d], bound = (D / 16 + 4 + 6) * 0x1p-24;
        cr_assert(fabs((double)c.y[d] - y) <= bound * fabs(y), "y[%d]: got %.9g, expected %.9g", d, (double)c.y[d], y);
        const double h = 1e-6, keep = x[d];
        x[d] = keep + h;
        const double up = norm_value(x, gain, c.dy, D, (double)1e-6f);
        x[d] = keep - h;
        const double slope = (up - norm_value(x, gain, c.dy, D, (double)1e-6f)) / (2 * h);
        x[d] = keep;
        /* differences: h^2 plus 1e-16 / h, below 1e-8; the kernel: 20 roundings of terms that sum to at most absolute * inv */
        cr_assert(fabs((double)c.dx[d] - slope) <= 1e-8 * absolute + 20 * 0x1p-24 * absolute * inv,
                  "dx[%d]: got %.9g, expected %.9g", d, (double)c.dx[d], slope);
        const double dgain = (double)c.dy[d] * x[d] * inv;
        cr_assert(fabs((double)c.dgain[d] - dgain) <= (bound + 2 * 0x1p-24) * fabs(dgain), "dgain[%d]", d);
    }
    case_free(&c);
}
