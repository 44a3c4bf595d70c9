/* Router and dispatch on CUDA against the reference, bit by bit: every rule, groups, ties, NaN, capacity, wrong ids. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/cuda/device.h"

static void same_ids(const char *what, const int32_t *device, const int32_t *want, size_t n)
{
    int32_t *got = malloc(n * sizeof *got + 1);
    device_read(got, device, n * sizeof *got);
    for (size_t i = 0; i < n; i++)
        cr_assert_eq(got[i], want[i], "%s: first difference at %zu: got %d, expected %d", what, i, (int)got[i], (int)want[i]);
    free(got);
}

/* Logits with ties in every row; with NaN and infinities in the first ones when `odd`. */
static float *make_logits(size_t T, size_t E, bool odd)
{
    float *l = test_new_filled(T * E, 11);
    for (size_t i = 0; i < T * E; i++)
        l[i] = i % 5 == 0 ? 0.5f : l[i] * 3;
    if (odd && T > 2) {
        for (size_t e = 0; e < E; e++)
            l[e] = NAN;
        l[E + 1] = NAN, l[E + E - 1] = -INFINITY, l[2 * E] = INFINITY;
    }
    return l;
}

static void backward_case(const test_shape *s, const router_args *forward, const router_args *device, float dz, bool balanced)
{
    const size_t T = (size_t)test_tokens(s), E = (size_t)s->E, K = (size_t)s->K;
    float *dweights = test_new_filled(T * K, 21), *dprobs = test_new_filled(E, 22), *dl = test_new(T * E, false);
    router_args a = *forward, d = *device;
    a.dweights = dweights, a.dprobs = balanced ? dprobs : NULL, a.dz = dz, a.dlogits = dl;
    d.dweights = device_floats(dweights, T * K), d.dprobs = balanced ? device_floats(dprobs, E) : NULL, d.dz = dz;
    d.dlogits = (float *)d.logits; /* dlogits may be logits */
    cr_assert_eq(test_reference()->router_backward(&a, test_stream()), MOE_OK);
    cr_assert_eq(router_backward_cuda(&d, device_stream()), MOE_OK, "%s", moe_error_text());
    device_same("dlogits", d.dlogits, dl, T, E);
    test_free(dweights), test_free(dprobs), test_free(dl);
}

static void stats_case(const test_shape *s, const router_args *forward, const router_args *device)
{
    int64_t counts[64], got_counts[64];
    double sums[64], got_sums[64];
    for (int e = 0; e < s->E; e++)
        counts[e] = e, sums[e] = 0.25 * e;
    router_stats_args a = {forward->probs, forward->ids, counts, sums, forward->T, s->E, s->K}, d = a;
    d.probs = device->probs, d.ids = device->ids, d.counts = device_array(counts, sizeof counts), d.prob_sum = device_array(sums, sizeof sums);
    cr_assert_eq(test_reference()->router_stats(&a, test_stream()), MOE_OK);
    cr_assert_eq(router_stats_cuda(&d, device_stream()), MOE_OK, "%s", moe_error_text());
    device_read(got_counts, d.counts, sizeof counts), device_read(got_sums, d.prob_sum, sizeof sums);
    for (int e = 0; e < s->E; e++)
        cr_assert(got_counts[e] == counts[e] && (got_sums[e] == sums[e] || isnan(sums[e])), "expert %d", e);
}

static void router_case(const test_shape *s, router_rule rule, bool biased, bool odd, int part)
{
    const size_t T = (size_t)test_tokens(s), E = (size_t)s->E, K = (size_t)s->K;
    float *l = make_logits(T, E, odd), *bias = test_new_filled(E, 12), *p = test_new(T * E, false), *lse = test_new(T, false);
    float *weights = test_new(T * K, false);
    int32_t *ids = malloc((T * K + 1) * sizeof *ids);
    router_args a = {.logits = l, .bias = biased ? bias : NULL, .probs = p, .lse = lse, .ids = ids, .weights = weights, .T = (int64_t)T,
                     .E = s->E, .K = s->K, .rule = rule}, d = a;
    d.logits = device_floats(l, T * E), d.bias = biased ? device_floats(bias, E) : NULL, d.probs = device_floats(NULL, T * E);
    d.lse = device_floats(NULL, T), d.ids = device_array(NULL, T * K * sizeof *ids), d.weights = device_floats(NULL, T * K);
    cr_assert_eq(test_reference()->router_forward(&a, test_stream()), MOE_OK, "%s", moe_error_text());
    cr_assert_eq(router_forward_cuda(&d, device_stream()), MOE_OK, "%s", moe_error_text());
    device_same("probs", d.probs, p, T, E);
    device_same("lse", d.lse, lse, 1, T);
    same_ids("ids", d.ids, ids, T * K);
    device_same("weights", d.weights, weights, T, K);
    stats_case(s, &a, &d);
    backward_case(s, &a, &d, part % 2 ? 0.01f : 0.0f, part % 3 != 0);
    test_free(l), test_free(bias), test_free(p), test_free(lse), test_free(weights), free(ids);
    device_end();
}

Test(cuda, router_has_the_bits_of_the_reference)
{
    for (const test_shape *s = test_shapes; s->name != NULL; s++)
        for (int part = 0; part < 8; part++) {
            router_rule rule = {.score = part & 1 ? ROUTER_SIGMOID : ROUTER_SOFTMAX, .topk_first = part == 2, .normalize = part & 4,
                                .scale = part == 5 ? 2.5f : 1.0f, .groups = 1, .groups_used = 1, .group_best = part == 6};
            const int groups = s->E % 4 == 0 ? 4 : 1;
            if (part >= 3 && s->K <= s->E / groups * 2 && groups > 1)
                rule.groups = groups, rule.groups_used = 2;
            router_case(s, rule, part % 3 == 1, part >= 4, part);
        }
}

static void dispatch_case(const test_shape *s, int32_t capacity, int64_t set)
{
    const size_t T = (size_t)test_tokens(s), N = T * (size_t)s->K;
    int32_t *ids = malloc((N + 1) * sizeof *ids), *offset = malloc(((size_t)s->E + 1) * sizeof *offset);
    int32_t *token = malloc((N + 1) * sizeof *token), *slot = malloc((N + 1) * sizeof *slot), *row_of = malloc((N + 1) * sizeof *row_of);
    test_route(s, ids, offset, 31);
    dispatch_args a = {ids, offset, token, slot, row_of, (int64_t)T, s->E, s->K, capacity, set}, d = a;
    d.ids = device_array(ids, N * 4), d.offset = device_array(NULL, ((size_t)s->E + 1) * 4), d.row_token = device_array(NULL, N * 4);
    d.row_slot = device_array(NULL, N * 4), d.row_of = device_array(NULL, N * 4);
    cr_assert_eq(test_reference()->dispatch(&a, test_stream()), MOE_OK);
    cr_assert_eq(dispatch_cuda(&d, device_stream()), MOE_OK, "%s", moe_error_text());
    const size_t rows = (size_t)offset[s->E];
    same_ids("offset", d.offset, offset, (size_t)s->E + 1);
    same_ids("row_of", d.row_of, row_of, N);
    same_ids("row_token", d.row_token, token, rows);
    same_ids("row_slot", d.row_slot, slot, rows);
    free(ids), free(offset), free(token), free(slot), free(row_of);
    device_end();
}

Test(cuda, dispatch_is_that_of_the_reference)
{
    for (const test_shape *s = test_shapes; s->name != NULL; s++) {
        dispatch_case(s, 0, 0);
        dispatch_case(s, 2, 7);
        dispatch_case(s, 200, 1000);
    }
}

Test(cuda, a_wrong_expert_is_the_error_of_the_cpu)
{
    const int32_t ids[] = {0, 1, 3, 4, -2, 9};
    int32_t offset[5], token[6], slot[6], row_of[6];
    char want[256];
    dispatch_args a = {ids, offset, token, slot, row_of, 3, 4, 2, 0, 0}, d = a;
    cr_assert_eq(test_reference()->dispatch(&a, test_stream()), MOE_E_DATA);
    snprintf(want, sizeof want, "%s", moe_error_text());
    d.ids = device_array(ids, sizeof ids), d.offset = device_array(NULL, sizeof offset), d.row_token = device_array(NULL, sizeof token);
    d.row_slot = device_array(NULL, sizeof slot), d.row_of = device_array(NULL, sizeof row_of);
    cr_assert_eq(dispatch_cuda(&d, device_stream()), MOE_OK, "the call only queues");
    cr_assert_eq(moe_cuda_wait(device_stream()->cuda), MOE_E_DATA);
    cr_assert_str_eq(moe_error_text(), want);
}
