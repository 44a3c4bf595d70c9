/* Router (kernels/router.h): every rule on every backend against the definition bit by bit; the choice against a sort; weights against
 * double precision, gradients against central differences in double. Owns nothing beyond a test. One thread.
 * Rule: comparisons are memcmp unless a bound is derived; the choice is held fixed when logits are moved. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/kernels/harness.h"

static const router_rule rules[] = {
    {.score = ROUTER_SOFTMAX, .scale = 1.0f, .groups = 1, .groups_used = 1},                     /* OLMoE       */
    {.score = ROUTER_SOFTMAX, .normalize = true, .scale = 1.0f, .groups = 1, .groups_used = 1},  /* Qwen3-MoE   */
    {.score = ROUTER_SOFTMAX, .topk_first = true, .scale = 1.0f, .groups = 1, .groups_used = 1}, /* Mixtral     */
    {.score = ROUTER_SIGMOID, .normalize = true, .scale = 2.5f, .groups = 1, .groups_used = 1},  /* GLM-4.5     */
    {.score = ROUTER_SIGMOID, .normalize = true, .scale = 2.5f, .groups = 4, .groups_used = 2},  /* DeepSeek-V3 */
    {.score = ROUTER_SOFTMAX, .scale = 16.0f, .groups = 4, .groups_used = 2, .group_best = true}, /* DeepSeek-V2 */
    {.score = ROUTER_SIGMOID, .scale = 1.5f, .groups = 1, .groups_used = 1},
    {.score = ROUTER_SIGMOID, .topk_first = true, .scale = 0.5f, .groups = 1, .groups_used = 1},
    {.score = ROUTER_SOFTMAX, .normalize = true, .topk_first = true, .scale = 3.0f, .groups = 2, .groups_used = 1},
};
enum { RULES = sizeof rules / sizeof rules[0] };

typedef struct routing {
    float *logits, *bias, *probs, *lse, *weights, *dweights, *dprobs, *dlogits;
    int32_t *ids;
    int64_t T;
    int E, K;
} routing;

static routing routing_new(int64_t T, int E, int K)
{
    const size_t cells = (size_t)T * (size_t)E, N = (size_t)T * (size_t)K;
    routing r = {.T = T, .E = E, .K = K};
    r.logits = test_new_filled(cells, 1), r.bias = test_new_filled((size_t)E, 2), r.probs = test_new_filled(cells, 3);
    r.lse = test_new_filled((size_t)T, 4), r.weights = test_new_filled(N, 5), r.dweights = test_new_filled(N, 6);
    r.dprobs = test_new_filled((size_t)E, 7), r.dlogits = test_new_filled(cells, 8);
    r.ids = malloc((N + 1) * sizeof *r.ids);
    cr_assert_not_null(r.ids);
    return r;
}

static void routing_free(routing *r)
{
    test_free(r->logits), test_free(r->bias), test_free(r->probs), test_free(r->lse), test_free(r->weights),
        test_free(r->dweights);
    test_free(r->dprobs), test_free(r->dlogits);
    free(r->ids);
}

static router_args routing_args(routing *r, const router_rule *rule, bool bias, bool losses)
{
    return (router_args){.logits = r->logits,
                         .bias = bias ? r->bias : NULL,
                         .probs = r->probs,
                         .lse = r->lse,
                         .ids = r->ids,
                         .weights = r->weights,
                         .dweights = r->dweights,
                         .dprobs = losses ? r->dprobs : NULL,
                         .dz = losses ? 0.01f : 0.0f,
                         .dlogits = r->dlogits,
                         .T = r->T,
                         .E = r->E,
                         .K = r->K,
                         .rule = *rule};
}

static void same_case(const moe_backend *b, moe_stream *s, const char *where, int64_t T, int E, int K, const router_rule *rule,
                      int variant)
{
    routing got = routing_new(T, E, K), want = routing_new(T, E, K);
    if (variant & 4) /* few distinct values: many ties */
        for (size_t i = 0; i < (size_t)T * (size_t)E; i++)
            got.logits[i] = want.logits[i] = (float)(test_bits(4, i) % 3);
    const router_args w = routing_args(&want, rule, variant & 1, variant & 2),
                      g = routing_args(&got, rule, variant & 1, variant & 2);
    cr_assert_eq(test_reference()->router_forward(&w, test_stream()), MOE_OK, "%s", moe_error_text());
    cr_assert_eq(b->router_forward(&g, s), MOE_OK);
    test_same_bytes(where, got.ids, want.ids, sizeof *got.ids * (size_t)(T * K));
    test_same(where, got.probs, want.probs, (size_t)T, (size_t)E, (size_t)E);
    test_same(where, got.lse, want.lse, 1, (size_t)T, 0);
    test_same(where, got.weights, want.weights, (size_t)T, (size_t)K, (size_t)K);
    cr_assert_eq(test_reference()->router_backward(&w, test_stream()), MOE_OK);
    cr_assert_eq(b->router_backward(&g, s), MOE_OK);
    test_same(where, got.dlogits, want.dlogits, (size_t)T, (size_t)E, (size_t)E);
    router_args in_place = g;
    in_place.dlogits = got.logits;
    cr_assert_eq(b->router_backward(&in_place, s), MOE_OK);
    test_same(where, got.logits, want.dlogits, (size_t)T, (size_t)E, (size_t)E);
    routing_free(&got), routing_free(&want);
}

static bool rule_fits(const router_rule *rule, int E, int K)
{
    return E % rule->groups == 0 && K <= E / rule->groups * rule->groups_used;
}

static void same_bits(const moe_backend *b, moe_stream *s, const char *where, void *ctx)
{
    (void)ctx;
    for (int i = 0; i < RULES; i++)
        for (int variant = 0; variant < 8; variant++) {
            for (const test_shape *p = test_shapes; p->name != NULL; p++)
                if (rule_fits(&rules[i], p->E, p->K))
                    same_case(b, s, where, test_tokens(p), p->E, p->K, &rules[i], variant);
            same_case(b, s, where, 5, 48, 7, &rules[i], variant);
            if (rules[i].groups == 1)
                same_case(b, s, where, 40, 1, 1, &rules[i], variant);
        }
}

Test(router, same_bits) { test_each_backend(same_bits, NULL); }

/* The choice by sorting: score falling, id rising; groups the same way. */
typedef struct scored {
    float score;
    int id;
} scored;

static int by_score(const void *a_void, const void *b_void)
{
    const scored *a = a_void, *b = b_void;
    return a->score != b->score ? (a->score < b->score) - (a->score > b->score) : a->id - b->id;
}

static void sorted_choice(int32_t *ids, const routing *r, int64_t t, const float *bias, const router_rule *rule)
{
    const int size = r->E / rule->groups;
    scored group[64], all[64], kept[64];
    int n = 0;
    for (int e = 0; e < r->E; e++)
        all[e] = (scored){r->probs[t * r->E + e] + (bias != NULL ? bias[e] : 0.0f), e};
    for (int g = 0; g < rule->groups; g++) {
        memcpy(kept, all + g * size, sizeof *all * (size_t)size);
        qsort(kept, (size_t)size, sizeof *kept, by_score);
        group[g] = (scored){size > 1 && !rule->group_best ? kept[0].score + kept[1].score : kept[0].score, g};
    }
    qsort(group, (size_t)rule->groups, sizeof *group, by_score);
    for (int g = 0; g < rule->groups_used; g++)
        for (int e = 0; e < size; e++)
            kept[n++] = all[group[g].id * size + e];
    qsort(kept, (size_t)n, sizeof *kept, by_score);
    for (int k = 0; k < r->K; k++)
        ids[k] = kept[k].id;
}

Test(router, choice_is_the_sorted_one)
{
    moe_stream *s = test_stream();
    for (int i = 0; i < RULES; i++)
        for (int variant = 0; variant < 8; variant++) {
            routing r = routing_new(50, 32, variant & 4 ? 8 : 3);
            if (variant & 2)
                for (int j = 0; j < 50 * 32; j++)
                    r.logits[j] = (float)(test_bits(3, (uint64_t)j) % 4);
            for (int e = 0; e < 32 && (variant & 2); e++)
                r.bias[e] = (float)(e % 3) * 0.25f;
            const router_args a = routing_args(&r, &rules[i], variant & 1, false);
            cr_assert_eq(test_reference()->router_forward(&a, s), MOE_OK, "%s", moe_error_text());
            for (int64_t t = 0; t < r.T; t++) {
                int32_t want[8];
                sorted_choice(want, &r, t, a.bias, &rules[i]);
                for (int k = 0; k < r.K; k++)
                    cr_assert_eq(r.ids[t * r.K + k], want[k], "rule %d, token %d, choice %d: got %d, expected %d", i, (int)t, k,
                                 r.ids[t * r.K + k], want[k]);
            }
            routing_free(&r);
        }
}

/* Weights of the choice and the objective sum(dw * w) + sum(dprobs * p) + dz * lse^2 of one token, in double. */
static double objective(const double *l, const int32_t *ids, const routing *r, const router_rule *rule, double *weights)
{
    double p[64], sum = 0.0, chosen = 0.0, lse, value;
    for (int e = 0; e < r->E; e++)
        sum += exp(l[e]);
    lse = log(sum);
    value = (double)0.01f * lse * lse;
    for (int e = 0; e < r->E; e++) {
        p[e] = rule->score == ROUTER_SOFTMAX ? exp(l[e]) / sum : 1 / (1 + exp(-l[e]));
        value += (double)r->dprobs[e] * p[e];
    }
    for (int k = 0; k < r->K; k++) {
        weights[k] = rule->topk_first ? exp(l[ids[k]]) : p[ids[k]];
        chosen += weights[k];
    }
    for (int k = 0; k < r->K; k++) {
        weights[k] *= (rule->topk_first || rule->normalize ? 1 / chosen : 1.0) * (double)rule->scale;
        value += (double)r->dweights[k] * weights[k];
    }
    return value;
}

Test(router, weights_and_finite_differences)
{
    enum { E = 24, K = 5 };
    moe_stream *s = test_stream();
    for (int i = 0; i < RULES; i++) {
        routing r = routing_new(1, E, K);
        double l[E], weights[K], scratch[K], size = 0.01 * 2 * 5; /* |dz * 2 * lse|, lse below 5 */
        for (int e = 0; e < E; e++) {
            l[e] = (double)(r.logits[e] = (float)(test_bits(11, (uint64_t)e) % 4001) / 1000 - 2);
            r.dprobs[e] = (float)(test_bits(12, (uint64_t)e) % 2001) / 1000 - 1, r.bias[e] *= 0x1p-12f;
        }
        for (int k = 0; k < K; k++) {
            r.dweights[k] = (float)(test_bits(13, (uint64_t)k) % 2001) / 1000 - 1;
            size += fabs((double)r.dweights[k]) * (double)rules[i].scale + 1;
        }
        const router_args a = routing_args(&r, &rules[i], true, true);
        cr_assert_eq(test_reference()->router_forward(&a, s), MOE_OK, "%s", moe_error_text());
        cr_assert_eq(test_reference()->router_backward(&a, s), MOE_OK);
        objective(l, r.ids, &r, &rules[i], weights);
        for (int k = 0; k < K; k++) /* exp, the sum (E/16 + 4, or K), two divisions, the scale: each a rounding or two */
            cr_assert(fabs((double)r.weights[k] - weights[k]) <= (8 + E / 16 + 4 + K) * 0x1p-24 * weights[k],
                      "rule %d, weight %d: got %.9g, expected %.9g", i, k, (double)r.weights[k], weights[k]);
        for (int e = 0; e < E; e++) {
            const double h = 1e-5, keep = l[e];
            l[e] = keep + h;
            const double up = objective(l, r.ids, &r, &rules[i], scratch);
            l[e] = keep - h;
            const double slope = (up - objective(l, r.ids, &r, &rules[i], scratch)) / (2 * h);
            l[e] = keep;
            /* differences: h^2 and 1e-16 / h of the objective's size; the kernel: some 40 roundings of terms that sum to `size` */
            cr_assert(fabs((double)r.dlogits[e] - slope) <= (1e-9 + 40 * 0x1p-24) * size,
                      "rule %d, dlogits[%d]: got %.9g, expected %.9g", i, e, (double)r.dlogits[e], slope);
        }
        routing_free(&r);
    }
}

/* Whatever the logits hold, ids are distinct and exist; a number beats a NaN; the same on every backend. */
static void odd_logits(const moe_backend *b, moe_stream *s, const char *where, void *ctx)
{
    static const float odd[] = {NAN, INFINITY, -INFINITY, 1e30f, -1e30f, 0.0f};
    (void)ctx;
    for (int i = 0; i < RULES; i++) {
        routing r = routing_new(200, 24, 5), want = routing_new(200, 24, 5);
        for (int j = 0; j < 200 * 24; j++)
            r.logits[j] = want.logits[j] = odd[test_bits(21, (uint64_t)j) % (j < 2400 ? 6 : 1 + (uint64_t)j % 6)];
        const router_args a = routing_args(&r, &rules[i], i & 1, false), w = routing_args(&want, &rules[i], i & 1, false);
        cr_assert_eq(b->router_forward(&a, s), MOE_OK);
        cr_assert_eq(test_reference()->router_forward(&w, test_stream()), MOE_OK);
        test_same_bytes(where, r.ids, want.ids, sizeof *r.ids * 1000);
        for (int t = 0; t < 200; t++) {
            unsigned seen = 0;
            for (int k = 0; k < 5; k++) {
                const int id = r.ids[t * 5 + k];
                cr_assert(id >= 0 && id < 24 && !(seen >> id & 1), "%s, rule %d, token %d: id %d is wrong or double", where, i, t,
                          id);
                seen |= 1u << id;
            }
        }
        routing_free(&r), routing_free(&want);
    }
}

Test(router, odd_logits_give_distinct_ids) { test_each_backend(odd_logits, NULL); }

static void impossible(const moe_backend *b, moe_stream *s, const char *where, void *ctx)
{
    static const struct {
        int E, K;
        router_rule rule;
        const char *says;
    } cases[] = {
        {4, 5, {.scale = 1, .groups = 1, .groups_used = 1}, "5 experts per token of 4"},
        {4, 0, {.scale = 1, .groups = 1, .groups_used = 1}, "0 experts per token"},
        {6, 2, {.scale = 1, .groups = 4, .groups_used = 1}, "do not divide into 4 groups"},
        {8, 3, {.scale = 1, .groups = 4, .groups_used = 1}, "1 of 4 groups"},
        {8, 2, {.scale = 0, .groups = 1, .groups_used = 1}, "scale"},
        {1 << 20, 2, {.scale = 1, .groups = 1, .groups_used = 1}, "at most"},
    };
    (void)ctx;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const router_args a = {.T = 0, .E = cases[i].E, .K = cases[i].K, .rule = cases[i].rule};
        cr_assert_eq(b->router_forward(&a, s), MOE_E_CONFIG, "%s, case %zu", where, i);
        cr_assert_not_null(strstr(moe_error_text(), cases[i].says), "%s: \"%s\"", where, moe_error_text());
    }
}

Test(router, impossible_rules_are_refused) { test_each_backend(impossible, NULL); }

static void stats(const moe_backend *b, moe_stream *s, const char *where, void *ctx)
{
    (void)ctx;
    for (const test_shape *p = test_shapes; p->name != NULL; p++) {
        const int T = test_tokens(p), N = T * p->K;
        float *probs = test_new_filled((size_t)(T * p->E), 1);
        int32_t *ids = calloc((size_t)N + 1, sizeof *ids), *offset = calloc((size_t)p->E + 1, sizeof *offset);
        int64_t counts[64], want_counts[64];
        double sum[64], want_sum[64];
        test_route(p, ids, offset, 5);
        for (int e = 0; e < 64; e++) {
            counts[e] = want_counts[e] = e * 3;
            sum[e] = want_sum[e] = e / 7.0;
        }
        for (int e = 0; e < p->E; e++) {
            want_counts[e] += offset[e + 1] - offset[e];
            for (int t = 0; t < T; t++)
                want_sum[e] += (double)probs[t * p->E + e];
        }
        const router_stats_args a = {.probs = probs, .ids = ids, .counts = counts, .prob_sum = sum, .T = T, .E = p->E, .K = p->K};
        cr_assert_eq(b->router_stats(&a, s), MOE_OK);
        test_same_bytes(where, counts, want_counts, sizeof counts);
        test_same_bytes(where, sum, want_sum, sizeof sum);
        if (N > 0) {
            ids[N - 1] = p->E;
            char says[64];
            snprintf(says, sizeof says, "token %d, choice %d: expert %d ", T - 1, p->K - 1, p->E);
            cr_assert_eq(b->router_stats(&a, s), MOE_E_DATA);
            cr_assert_not_null(strstr(moe_error_text(), says), "%s: \"%s\"", where, moe_error_text());
            test_same_bytes(where, counts, want_counts, sizeof counts);
        }
        test_free(probs);
        free(ids), free(offset);
    }
}

Test(router, stats) { test_each_backend(stats, NULL); }
