/* Cross-entropy (kernels/loss.h): every backend against the definition bit by bit, the definition against double precision, wrong
 * targets, odd logits. Owns nothing beyond a test. One thread. Rule: comparisons are memcmp unless a bound is derived. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/kernels/harness.h"

static int32_t *targets(int64_t T, int V)
{
    int32_t *target = malloc(((size_t)T + 1) * sizeof *target);
    cr_assert_not_null(target);
    for (int64_t t = 0; t < T; t++)
        target[t] = t == 0 ? V - 1 : (int32_t)(test_bits(9, (uint64_t)t) % (uint64_t)V);
    return target;
}

static void same_case(const moe_backend *b, moe_stream *s, const char *where, int64_t T, int V, size_t gap, float scale)
{
    const size_t ld = (size_t)V + gap;
    int32_t *target = targets(T, V);
    float *got = test_new_filled((size_t)T * ld, 1), *want = test_new_filled((size_t)T * ld, 1);
    float *got_loss = test_new((size_t)T, false), *want_loss = test_new((size_t)T, false);
    cross_entropy_args a = {.logits = want, .loss = want_loss, .target = target, .ld = ld, .T = T, .V = V, .scale = scale};
    cr_assert_eq(test_reference()->cross_entropy(&a, test_stream()), MOE_OK);
    a.logits = got, a.loss = got_loss;
    cr_assert_eq(b->cross_entropy(&a, s), MOE_OK);
    test_same(where, got_loss, want_loss, 1, (size_t)T, 0);
    test_same(where, got, want, (size_t)T, ld, ld);
    for (size_t t = 0; t < (size_t)T && scale != 0.0f; t++)
        for (size_t v = (size_t)V; v < ld; v++)
            cr_assert_eq(memcmp(&want[t * ld + v], &(float){0}, 4), 0, "the pad [%zu, %zu] is not zero", t, v);
    if (scale == 0.0f) { /* untouched */
        test_fill(want, (size_t)T * ld, 1);
        test_same(where, got, want, (size_t)T, ld, ld);
    }
    test_free(got), test_free(want), test_free(got_loss), test_free(want_loss);
    free(target);
}

static void same_bits(const moe_backend *b, moe_stream *s, const char *where, void *ctx)
{
    (void)ctx;
    for (const test_shape *p = test_shapes; p->name != NULL; p++) {
        same_case(b, s, where, test_tokens(p), p->V, 0, 1.0f / 64);
        same_case(b, s, where, test_tokens(p), p->V, 3, 0.1f);
        same_case(b, s, where, test_tokens(p), p->V, 16, 0.0f);
    }
    same_case(b, s, where, 5, 1, 15, 1.0f);
    same_case(b, s, where, 2, 5003, 5, 1.0f);
}

Test(loss, same_bits) { test_each_backend(same_bits, NULL); }

Test(loss, formula_in_double)
{
    enum { V = 301 };
    float *logits = test_new(V, false), loss;
    double e[V], sum = 0.0, most = -1e30;
    const int32_t target = 77;
    moe_stream *s = test_stream();
    for (int v = 0; v < V; v++) {
        logits[v] = (float)(test_bits(1, (uint64_t)v) % 20001) / 1000 - 10;
        most = fmax(most, (double)logits[v]);
        sum += e[v] = exp((double)logits[v]);
    }
    const double want = log(sum) - (double)logits[target];
    const cross_entropy_args a = {.logits = logits, .loss = &loss, .target = &target, .ld = V, .T = 1, .V = V, .scale = 0.25f};
    cr_assert_eq(test_reference()->cross_entropy(&a, s), MOE_OK);
    /* S: exp 2 roundings and its argument's (|x| < 20: 10 ulp of 1), V/16 + 4 additions; log and two sums of numbers below 16 */
    const double rel = (12 + V / 16 + 4) * 0x1p-24;
    cr_assert(fabs((double)loss - want) <= rel + 3 * 16 * 0x1p-24, "got %.9g, expected %.9g", (double)loss, want);
    for (int v = 0; v < V; v++) {
        const double p = e[v] / sum, d = (p - (v == target)) * 0.25;
        cr_assert(fabs((double)logits[v] - d) <= (rel + 14 * 0x1p-24) * 0.25 * p + 2 * 0x1p-24 * fabs(d),
                  "dlogits[%d]: got %.9g, expected %.9g", v, (double)logits[v], d);
    }
    test_free(logits);
}

static void wrong_target(const moe_backend *b, moe_stream *s, const char *where, void *ctx)
{
    static const int32_t bad[] = {-1, 50, INT32_MAX, INT32_MIN};
    (void)ctx;
    for (int i = 0; i < 4; i++) {
        int32_t target[30] = {0};
        float *logits = test_new_filled(30 * 50, 1), *kept = test_new_filled(30 * 50, 1), *loss = test_new(30, false);
        char says[64];
        target[21] = bad[i], target[25] = -3;
        const cross_entropy_args a = {
            .logits = logits, .loss = loss, .target = target, .ld = 50, .T = 30, .V = 50, .scale = 1.0f};
        cr_assert_eq(b->cross_entropy(&a, s), MOE_E_DATA, "%s", where);
        snprintf(says, sizeof says, "token 21 has target %d,", (int)bad[i]);
        cr_assert_not_null(strstr(moe_error_text(), says), "%s: \"%s\"", where, moe_error_text());
        test_same(where, logits, kept, 1, 30 * 50, 0);
        test_free(logits), test_free(kept), test_free(loss);
    }
}

Test(loss, wrong_target_is_named) { test_each_backend(wrong_target, NULL); }

/* Large logits do not overflow; a NaN anywhere reaches the loss, so that the run can stop. */
static void odd_logits(const moe_backend *b, moe_stream *s, const char *where, void *ctx)
{
    (void)ctx;
    for (int at = 0; at < 70; at++) {
        float *logits = test_new_filled(70, 1), loss = 0.0f;
        const int32_t target = 3;
        const cross_entropy_args a = {
            .logits = logits, .loss = &loss, .target = &target, .ld = 70, .T = 1, .V = 70, .scale = 0.0f};
        logits[at] = 1e30f;
        cr_assert_eq(b->cross_entropy(&a, s), MOE_OK);
        cr_assert(isfinite(loss), "%s: a logit of 1e30 gives %g", where, (double)loss);
        logits[at] = NAN;
        cr_assert_eq(b->cross_entropy(&a, s), MOE_OK);
        cr_assert(isnan(loss), "%s: a NaN at %d gives %g", where, at, (double)loss);
        test_free(logits);
    }
}

Test(loss, odd_logits) { test_each_backend(odd_logits, NULL); }
