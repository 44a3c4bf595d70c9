/* Attention: every backend against the reference bit by bit; the reference against attention in double, its gradients against central
 * differences of that; windows, edges and refusals. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/attention.h"
#include "tests/kernels/harness.h"

/* Beside the shared table: the widths models have, all kinds of groups, S on both sides of a tile and of a block of queries. */
static const test_shape more_shapes[] = {
    {.name = "a tile exactly", .B = 1, .S = 64, .H = 2, .Hkv = 2, .hd = 64},
    {.name = "one past a tile", .B = 2, .S = 65, .H = 4, .Hkv = 1, .hd = 24},
    {.name = "wide heads", .B = 1, .S = 100, .H = 2, .Hkv = 1, .hd = 128},
    {.name = "many heads share one", .B = 1, .S = 70, .H = 9, .Hkv = 1, .hd = 17},
    {.name = "groups of three", .B = 1, .S = 200, .H = 6, .Hkv = 2, .hd = 40},
    {.name = "single tokens", .B = 5, .S = 1, .H = 3, .Hkv = 3, .hd = 1},
    {.name = "several blocks of queries", .B = 1, .S = 330, .H = 2, .Hkv = 2, .hd = 16},
    {.name = "more heads than a block has rows", .B = 1, .S = 3, .H = 300, .Hkv = 1, .hd = 8},
    {.name = "the widest head", .B = 1, .S = 66, .H = 1, .Hkv = 1, .hd = ATTENTION_MAX_HD}, /* fills the scratch */
    {.name = NULL},
};

/* All arrays of one case; q, k and v lie in one row of `ld` floats, as a fused projection leaves them. */
typedef struct problem {
    const test_shape *shape;
    attention_args args;
    float *qkv, *dqkv, *o, *lse, *d_o;
    size_t T, ld, ldo;
} problem;

static problem problem_new(const test_shape *s, uint64_t seed, bool mild)
{
    problem p = {.shape = s, .T = (size_t)test_tokens(s), .ld = (size_t)(s->H + 2 * s->Hkv) * (size_t)s->hd};
    const size_t width = (size_t)s->H * (size_t)s->hd;
    p.ldo = width + 3;
    p.qkv = test_new_filled(p.T * p.ld, seed);
    p.d_o = test_new_filled(p.T * p.ldo, seed + 1);
    for (size_t i = 0; mild && i < p.T * p.ld; i++)
        p.qkv[i] = (float)((double)(test_bits(seed, i) >> 11) * 0x1p-52 - 1.0); /* [-1, 1) */
    for (size_t i = 0; mild && i < p.T * p.ldo; i++)
        p.d_o[i] = (float)((double)(test_bits(seed + 1, i) >> 11) * 0x1p-52 - 1.0);
    p.dqkv = test_new(p.T * p.ld, false);
    p.o = test_new(p.T * p.ldo, false);
    for (size_t i = 0; i < p.T * p.ldo; i++)
        p.o[i] = 7.0f; /* the gap of 3 floats must keep it */
    p.lse = test_new(p.T * (size_t)s->H, false);
    p.args = (attention_args){.o = p.o, .lse = p.lse, .q = p.qkv, .k = p.qkv + width, .v = p.qkv + width + (size_t)(s->Hkv * s->hd),
                              .d_o = p.d_o, .dq = p.dqkv, .dk = p.dqkv + width, .dv = p.dqkv + width + (size_t)(s->Hkv * s->hd),
                              .ldq = p.ld, .ldk = p.ld, .ldo = p.ldo, .B = s->B, .S = s->S, .H = s->H, .Hkv = s->Hkv, .hd = s->hd,
                              .scale = 1.0f / sqrtf((float)s->hd)};
    return p;
}

static void problem_free(problem *p)
{
    test_free(p->qkv), test_free(p->dqkv), test_free(p->o), test_free(p->lse), test_free(p->d_o);
}

static void solve_reference(problem *p)
{
    cr_assert_eq(test_reference()->attention_forward(&p->args, test_stream()), MOE_OK, "%s", moe_error_text());
    cr_assert_eq(test_reference()->attention_backward(&p->args, test_stream()), MOE_OK, "%s", moe_error_text());
}

static void compare(const moe_backend *b, moe_stream *s, const char *where, void *ctx)
{
    const problem *want = ctx;
    problem got = problem_new(want->shape, 1, false);
    char what[160];
    memcpy(got.qkv, want->qkv, got.T * got.ld * sizeof(float));
    memcpy(got.d_o, want->d_o, got.T * got.ldo * sizeof(float));
    cr_assert_eq(b->attention_forward(&got.args, s), MOE_OK, "%s", moe_error_text());
    snprintf(what, sizeof what, "attention o, %s, %s", where, want->shape->name);
    test_same(what, got.o, want->o, got.T, got.ldo, got.ldo);
    snprintf(what, sizeof what, "attention lse, %s, %s", where, want->shape->name);
    test_same(what, got.lse, want->lse, got.T, (size_t)want->shape->H, (size_t)want->shape->H);
    cr_assert_eq(b->attention_backward(&got.args, s), MOE_OK, "%s", moe_error_text());
    snprintf(what, sizeof what, "attention dq | dk | dv, %s, %s", where, want->shape->name);
    test_same(what, got.dqkv, want->dqkv, got.T, got.ld, got.ld);
    problem_free(&got);
}

static void compare_table(const test_shape *table, bool mild)
{
    for (const test_shape *s = table; s->name != NULL; s++) {
        problem p = problem_new(s, 11, mild);
        solve_reference(&p);
        test_each_backend(compare, &p);
        problem_free(&p);
    }
}

Test(attention, fast_has_the_bits_of_the_reference_on_the_shared_shapes)
{
    compare_table(test_shapes, true);
    compare_table(test_shapes, false); /* saturated rows, zeros of both signs, denormals */
}

Test(attention, fast_has_the_bits_of_the_reference_on_mild_values) { compare_table(more_shapes, true); }

Test(attention, fast_has_the_bits_of_the_reference_on_wild_values) { compare_table(more_shapes, false); }

/* Attention in double, from the same fp32 inputs (as doubles, so that finite differences can move them). */
typedef struct exact {
    int S, G, hd; /* one window, one kv head, G query heads */
    double scale;
    double *q, *k, *v; /* [G, S, hd], [S, hd], [S, hd] */
} exact;

static void exact_row(const exact *x, int g, int i, double *o, double *lse)
{
    double *p = malloc(sizeof *p * (size_t)x->S), top = -INFINITY, sum = 0;
    for (int j = 0; j <= i; j++) {
        p[j] = 0;
        for (int d = 0; d < x->hd; d++)
            p[j] += x->q[(g * x->S + i) * x->hd + d] * x->k[j * x->hd + d];
        p[j] *= x->scale;
        top = p[j] > top ? p[j] : top;
    }
    memset(o, 0, sizeof *o * (size_t)x->hd);
    for (int j = 0; j <= i; j++) {
        const double e = exp(p[j] - top);
        sum += e;
        for (int d = 0; d < x->hd; d++)
            o[d] += e * x->v[j * x->hd + d];
    }
    for (int d = 0; d < x->hd; d++)
        o[d] /= sum;
    *lse = top + log(sum);
    free(p);
}

static double *exact_copy(const float *x, size_t ld, int rows, int cols)
{
    double *y = malloc(sizeof *y * (size_t)rows * (size_t)cols + 1);
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < cols; c++)
            y[r * cols + c] = (double)x[(size_t)r * ld + (size_t)c];
    return y;
}

static exact exact_new(const problem *p, int b, int kv)
{
    const attention_args *a = &p->args;
    const size_t t0 = (size_t)b * (size_t)a->S;
    exact x = {.S = a->S, .G = a->H / a->Hkv, .hd = a->hd, .scale = (double)a->scale};
    x.q = malloc(sizeof(double) * (size_t)(x.G * x.S * x.hd));
    for (int g = 0; g < x.G; g++) {
        double *head = exact_copy(a->q + t0 * a->ldq + (size_t)((kv * x.G + g) * x.hd), a->ldq, x.S, x.hd);
        memcpy(x.q + g * x.S * x.hd, head, sizeof(double) * (size_t)(x.S * x.hd));
        free(head);
    }
    x.k = exact_copy(a->k + t0 * a->ldk + (size_t)(kv * x.hd), a->ldk, x.S, x.hd);
    x.v = exact_copy(a->v + t0 * a->ldk + (size_t)(kv * x.hd), a->ldk, x.S, x.hd);
    return x;
}

static void exact_free(exact *x) { free(x->q), free(x->k), free(x->v); }

static const double EPS = 0x1p-24; /* half an ulp of 1 in fp32 */

/* |q|, |k|, |v| < 1: a score is a chain of hd terms, each below 1, so it is off by hd * hd/2 * EPS at the very worst, times scale; rounding
 * errors have both signs, so sqrt(hd) * hd is already generous. p is off by that (relative) and by exp's and the subtraction's ulps; l and o
 * add a chain of up to S roundings with the weights p / l, which sum to 1. */
static double score_error(const exact *x) { return (sqrt((double)x->hd) * x->hd * x->scale + 8) * EPS; }
static double output_error(const exact *x) { return 2 * score_error(x) + (4 + sqrt((double)x->S)) * 2 * EPS; }

static void check_against_double(const problem *p, int b, int kv)
{
    exact x = exact_new(p, b, kv);
    const attention_args *a = &p->args;
    double *o = malloc(sizeof *o * (size_t)x.hd), lse;
    for (int g = 0; g < x.G; g++)
        for (int i = 0; i < x.S; i++) {
            const size_t t = (size_t)(b * x.S + i), h = (size_t)(kv * x.G + g);
            exact_row(&x, g, i, o, &lse);
            cr_assert_leq(fabs((double)a->lse[t * (size_t)a->H + h] - lse), output_error(&x) + fabs(lse) * EPS, "%s: lse of query %d, head %zu",
                          p->shape->name, i, h);
            for (int d = 0; d < x.hd; d++)
                cr_assert_leq(fabs((double)a->o[t * a->ldo + h * (size_t)x.hd + (size_t)d] - o[d]), output_error(&x), "%s: o[%zu, %zu, %d]",
                              p->shape->name, t, h, d);
        }
    free(o);
    exact_free(&x);
}

static void check_table_against_double(const test_shape *table)
{
    for (const test_shape *s = table; s->name != NULL; s++) {
        problem p = problem_new(s, 21, true);
        solve_reference(&p);
        for (int n = 0; n < s->B * s->Hkv; n++)
            check_against_double(&p, n / s->Hkv, n % s->Hkv);
        problem_free(&p);
    }
}

Test(attention, reference_is_attention_in_double)
{
    check_table_against_double(test_shapes);
    check_table_against_double(more_shapes);
}

/* sum of do * o over the rows that see key `from` or later, in double */
static double objective(const exact *x, const double *d_o, int from)
{
    double *o = malloc(sizeof *o * (size_t)x->hd), lse, sum = 0;
    for (int g = 0; g < x->G; g++)
        for (int i = from; i < x->S; i++) {
            exact_row(x, g, i, o, &lse);
            for (int d = 0; d < x->hd; d++)
                sum += o[d] * d_o[(g * x->S + i) * x->hd + d];
        }
    free(o);
    return sum;
}

/* Central difference with h = 2^-13: its own error is h^2/6 times the third derivative, some 1e-8 here, below the fp32 error allowed. */
static double slope(const exact *x, const double *d_o, double *at, int from)
{
    const double h = 0x1p-13, keep = *at;
    *at = keep + h;
    const double up = objective(x, d_o, from);
    *at = keep - h;
    const double down = objective(x, d_o, from);
    *at = keep;
    return (up - down) / (2 * h);
}

/* Gradients are sums of at most G * S terms p * (do.v - delta) * k with sum of p over a row 1: per row |terms| <= 2 * hd, relative error of
 * each term that of p plus the chains do.v and delta. */
Test(attention, backward_is_the_slope_of_forward)
{
    static const test_shape shapes[] = {
        {.name = "slopes of a group", .B = 1, .S = 9, .H = 2, .Hkv = 1, .hd = 6},
        {.name = "slopes across a tile", .B = 1, .S = 67, .H = 1, .Hkv = 1, .hd = 4},
    };
    for (int c = 0; c < 2; c++) {
        problem p = problem_new(&shapes[c], 31, true);
        solve_reference(&p);
        exact x = exact_new(&p, 0, 0);
        double *d_o = malloc(sizeof(double) * (size_t)(x.G * x.S * x.hd));
        for (int g = 0; g < x.G; g++)
            for (int i = 0; i < x.S * x.hd; i++)
                d_o[g * x.S * x.hd + i] = (double)p.args.d_o[(size_t)(i / x.hd) * p.ldo + (size_t)(g * x.hd + i % x.hd)];
        const double tolerance = 2 * x.hd * (output_error(&x) + 2 * x.hd * EPS) * x.G + 1e-7;
        for (int i = 0; i < x.S; i++)
            for (int d = 0; d < x.hd; d++) {
                const size_t key = (size_t)i * p.ld + (size_t)d;
                const double dk = slope(&x, d_o, &x.k[i * x.hd + d], i), dv = slope(&x, d_o, &x.v[i * x.hd + d], i);
                cr_assert_leq(fabs((double)p.args.dk[key] - dk), tolerance, "%s: dk[%d, %d]", shapes[c].name, i, d);
                cr_assert_leq(fabs((double)p.args.dv[key] - dv), tolerance, "%s: dv[%d, %d]", shapes[c].name, i, d);
                for (int g = 0; g < x.G; g++) {
                    const double dq = slope(&x, d_o, &x.q[(g * x.S + i) * x.hd + d], i);
                    cr_assert_leq(fabs((double)p.args.dq[key + (size_t)(g * x.hd)] - dq), tolerance, "%s: dq[%d, %d, %d]", shapes[c].name,
                                  i, g, d);
                }
            }
        free(d_o);
        exact_free(&x);
        problem_free(&p);
    }
}

static void check_windows(const moe_backend *b, moe_stream *s, const char *where, void *ctx)
{
    const test_shape three = {.name = "three windows", .B = 3, .S = 70, .H = 4, .Hkv = 2, .hd = 20}, *one = ctx;
    problem all = problem_new(&three, 41, true), alone = problem_new(one, 43, true);
    memcpy(alone.qkv, all.qkv + 70 * all.ld, alone.T * alone.ld * sizeof(float));
    memcpy(alone.d_o, all.d_o + 70 * all.ldo, alone.T * alone.ldo * sizeof(float));
    cr_assert_eq(b->attention_forward(&all.args, s), MOE_OK);
    cr_assert_eq(b->attention_backward(&all.args, s), MOE_OK);
    cr_assert_eq(b->attention_forward(&alone.args, s), MOE_OK);
    cr_assert_eq(b->attention_backward(&alone.args, s), MOE_OK);
    test_same(where, all.o + 70 * all.ldo, alone.o, alone.T, alone.ldo, alone.ldo);
    test_same(where, all.dqkv + 70 * all.ld, alone.dqkv, alone.T, alone.ld, alone.ld);
    problem_free(&all), problem_free(&alone);
}

Test(attention, a_window_does_not_see_its_neighbours)
{
    test_shape one = {.name = "one window", .B = 1, .S = 70, .H = 4, .Hkv = 2, .hd = 20};
    test_each_backend(check_windows, &one);
}

/* Query 64 forgets the first tile (exp(-200) = 0, so o becomes -1 * 0 = -0) and key 64 adds -0; key 65 is masked, and a fast version may add
 * its +0 * 1 all the same. The +0 of the definition makes both +0. */
static void check_zero_sign(const moe_backend *b, moe_stream *s, const char *where, void *ctx)
{
    enum { S = 66 };
    float q[S], k[S] = {0}, v[S], o[S], lse[S];
    (void)ctx;
    for (int i = 0; i < S; i++)
        q[i] = 1.0f, v[i] = i < 64 ? -1.0f : i == 64 ? -0.0f : 1.0f;
    k[64] = 200.0f;
    const attention_args a = {.o = o, .lse = lse, .q = q, .k = k, .v = v, .ldq = 1, .ldk = 1, .ldo = 1, .B = 1, .S = S, .H = 1, .Hkv = 1,
                              .hd = 1, .scale = 1};
    cr_assert_eq(b->attention_forward(&a, s), MOE_OK);
    cr_assert(o[63] == -1.0f && o[64] == 0.0f && !signbit(o[64]), "%s: o[63] %a, o[64] %a", where, (double)o[63], (double)o[64]);
}

Test(attention, a_zero_is_positive_whether_masked_keys_are_added_or_not) { test_each_backend(check_zero_sign, NULL); }

static void check_refusals(const moe_backend *b, moe_stream *s, const char *where, void *ctx)
{
    const attention_args heads = {.B = 1, .S = 1, .H = 3, .Hkv = 2, .hd = 8, .scale = 1}, width = {.B = 1, .S = 1, .H = 1, .Hkv = 1, .hd = 4096};
    (void)ctx;
    cr_assert_eq(b->attention_forward(&heads, s), MOE_E_CONFIG, "%s", where);
    cr_assert_eq(b->attention_backward(&heads, s), MOE_E_CONFIG, "%s", where);
    cr_assert_eq(b->attention_forward(&width, s), MOE_E_CONFIG, "%s", where);
    cr_assert(strstr(moe_error_text(), "4096") != NULL, "%s", moe_error_text());
}

Test(attention, refuses_heads_that_do_not_divide_and_heads_too_wide) { test_each_backend(check_refusals, NULL); }
