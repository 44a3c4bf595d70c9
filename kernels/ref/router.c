/* Router: the definition (kernels/router.h), and the scalar parts that the fast versions share (ref/router.h). Owns nothing, runs on
 * the calling thread.
 * Rule: whatever the logits hold, the ids of a token are distinct and exist; ties go to the lowest id. */
#include "kernels/ref/router.h"

#include <math.h>
#include <string.h>

#include "kernels/math.h"
#include "kernels/ref/lanes.h"
#include "kernels/tables.h"

moe_err router_check(const router_args *a)
{
    const router_rule *rule = &a->rule;
    if (a->E < 1 || a->K < 1 || a->K > a->E)
        return moe_fail(MOE_E_CONFIG, "router: %d experts per token of %d experts; expected 1 to %d", a->K, a->E, a->E);
    if ((size_t)a->E > KERNEL_SCRATCH_BYTES / sizeof(float) - LANES)
        return moe_fail(MOE_E_CONFIG, "router: %d experts; expected at most %zu", a->E,
                        KERNEL_SCRATCH_BYTES / sizeof(float) - LANES);
    if (rule->groups < 1 || a->E % rule->groups != 0)
        return moe_fail(MOE_E_CONFIG, "router: %d experts do not divide into %d groups", a->E, rule->groups);
    if (rule->groups_used < 1 || rule->groups_used > rule->groups || a->K > rule->groups_used * (a->E / rule->groups))
        return moe_fail(MOE_E_CONFIG,
                        "router: %d experts per token from %d of %d groups of %d experts; expected at most %d groups with room",
                        a->K, rule->groups_used, rule->groups, a->E / rule->groups, rule->groups);
    if (rule->scale == 0.0f)
        return moe_fail(MOE_E_CONFIG, "router: the scale of the weights is 0; expected another number (1 for no scaling)");
    return MOE_OK;
}

static bool better(float score, float best) { return score > best || (isnan(best) && !isnan(score)); }

static float choice_score(const float *p, const float *bias, int e) { return bias != NULL ? p[e] + bias[e] : p[e]; }

/* The sum of the two best scores of a group (of the only one, when it has one expert), or the best one. */
static float group_score(const float *p, const float *bias, int first, int experts, bool group_best)
{
    float best = -INFINITY, second = -INFINITY;
    for (int e = first; e < first + experts; e++) {
        const float score = choice_score(p, bias, e);
        if (better(score, best)) {
            second = best;
            best = score;
        } else if (better(score, second)) {
            second = score;
        }
    }
    return experts > 1 && !group_best ? best + second : best;
}

/* How many groups stand before g in the order of falling score, then rising number. */
static int group_rank(const float *p, const float *bias, int g, const router_rule *rule, int experts)
{
    const float score = group_score(p, bias, g * experts, experts, rule->group_best);
    int rank = 0;
    for (int other = 0; other < rule->groups; other++) {
        const float value = group_score(p, bias, other * experts, experts, rule->group_best);
        rank += other < g ? !better(score, value) : better(value, score);
    }
    return rank;
}

void router_choose(int32_t *ids, const float *p, const float *bias, int E, int K, const router_rule *rule)
{
    const int experts = E / rule->groups;
    for (int k = 0; k < K; k++)
        ids[k] = -1;
    for (int g = 0; g < rule->groups; g++) {
        if (rule->groups_used < rule->groups && group_rank(p, bias, g, rule, experts) >= rule->groups_used)
            continue;
        for (int e = g * experts; e < (g + 1) * experts; e++) { /* insertion into the K best so far, behind equal ones */
            int at = K;
            while (at > 0 && (ids[at - 1] < 0 || better(choice_score(p, bias, e), choice_score(p, bias, ids[at - 1]))))
                at--;
            if (at == K)
                continue;
            memmove(ids + at + 1, ids + at, (size_t)(K - 1 - at) * sizeof *ids);
            ids[at] = e;
        }
    }
}

void router_weigh(float *weights, const int32_t *ids, const float *logits, const float *p, int K, const router_rule *rule)
{
    float n = -INFINITY, sum = 0.0f;
    for (int k = 0; k < K; k++)
        n = logits[ids[k]] > n ? logits[ids[k]] : n;
    for (int k = 0; k < K; k++) {
        weights[k] = rule->topk_first ? moe_expf(logits[ids[k]] - n) : p[ids[k]];
        sum += weights[k];
    }
    if (rule->score == ROUTER_SIGMOID && !rule->topk_first)
        sum += 1e-20f;
    for (int k = 0; k < K; k++)
        weights[k] = (rule->topk_first || rule->normalize ? weights[k] / sum : weights[k]) * rule->scale;
}

static float weighted_sum(const float *weights, const float *dweights, int K)
{
    float x = 0.0f;
    for (int k = 0; k < K; k++)
        x = fmaf(weights[k], dweights[k], x);
    return x;
}

void router_unweigh(float *dp, const int32_t *ids, const float *weights, const float *dweights, const float *p, int K,
                    const router_rule *rule)
{
    float sum = 0.0f;
    if (rule->topk_first)
        return;
    for (int k = 0; k < K; k++)
        sum += p[ids[k]];
    if (rule->score == ROUTER_SIGMOID)
        sum += 1e-20f;
    const float x = weighted_sum(weights, dweights, K);
    for (int k = 0; k < K; k++)
        dp[ids[k]] += rule->normalize ? (rule->scale * dweights[k] - x) / sum : rule->scale * dweights[k];
}

void router_unweigh_chosen(float *dlogits, const int32_t *ids, const float *weights, const float *dweights, int K,
                           const router_rule *rule)
{
    if (!rule->topk_first)
        return;
    const float x = weighted_sum(weights, dweights, K) / rule->scale;
    for (int k = 0; k < K; k++)
        dlogits[ids[k]] += weights[k] * (dweights[k] - x);
}

moe_err router_forward_ref(const router_args *a, moe_stream *s)
{
    const size_t E = (size_t)a->E, K = (size_t)a->K;
    (void)s;
    TRY(router_check(a));
    for (size_t t = 0; t < (size_t)a->T; t++) {
        const float *l = a->logits + t * E;
        float *p = a->probs + t * E, m = -INFINITY;
        lanes sum = {0};
        for (int e = 0; e < a->E; e++)
            m = l[e] > m ? l[e] : m;
        for (int e = 0; e < a->E; e++)
            lanes_add(&sum, e, moe_expf(l[e] - m));
        const float S = lanes_sum(&sum, a->E);
        for (int e = 0; e < a->E; e++)
            p[e] = a->rule.score == ROUTER_SOFTMAX ? moe_expf(l[e] - m) / S : moe_sigmoidf(l[e]);
        a->lse[t] = m + moe_logf(S);
        router_choose(a->ids + t * K, p, a->bias, a->E, a->K, &a->rule);
        router_weigh(a->weights + t * K, a->ids + t * K, l, p, a->K, &a->rule);
    }
    return MOE_OK;
}

/* dp: scratch for a row of E, because dlogits may be logits. */
static void token_backward(const router_args *a, size_t t, float *dp)
{
    const size_t E = (size_t)a->E, K = (size_t)a->K;
    const float *p = a->probs + t * E, z = 2.0f * a->dz * a->lse[t];
    float *dl = a->dlogits + t * E;
    lanes sum = {0};
    for (size_t e = 0; e < E; e++)
        dp[e] = a->dprobs != NULL ? a->dprobs[e] : 0.0f;
    router_unweigh(dp, a->ids + t * K, a->weights + t * K, a->dweights + t * K, p, a->K, &a->rule);
    for (int e = 0; e < a->E; e++)
        lanes_fma(&sum, e, p[e], dp[e]);
    const float c = lanes_sum(&sum, a->E);
    for (size_t e = 0; e < E; e++) {
        const bool softmax = a->rule.score == ROUTER_SOFTMAX;
        float d = softmax ? p[e] * (dp[e] - c) : dp[e] * (p[e] * (1.0f - p[e]));
        if (a->dz != 0.0f)
            d = fmaf(z, softmax ? p[e] : moe_expf(a->logits[t * E + e] - a->lse[t]), d);
        dl[e] = d;
    }
    router_unweigh_chosen(dl, a->ids + t * K, a->weights + t * K, a->dweights + t * K, a->K, &a->rule);
}

moe_err router_backward_ref(const router_args *a, moe_stream *s)
{
    TRY(router_check(a));
    for (int64_t t = 0; t < a->T; t++)
        token_backward(a, (size_t)t, moe_pool_scratch(s->pool, 0));
    return MOE_OK;
}

moe_err router_stats_ref(const router_stats_args *a, moe_stream *s)
{
    (void)s;
    for (int64_t i = 0; i < a->T * a->K; i++)
        if (a->ids[i] < 0 || a->ids[i] >= a->E)
            return moe_fail(MOE_E_DATA, "router: token %lld, choice %d: expert %d does not exist, expected 0 to %d",
                            (long long)(i / a->K), (int)(i % a->K), (int)a->ids[i], a->E - 1);
    for (int64_t i = 0; i < a->T * a->K; i++)
        a->counts[a->ids[i]]++;
    for (int64_t t = 0; t < a->T; t++)
        for (int e = 0; e < a->E; e++)
            a->prob_sum[e] += (double)a->probs[t * a->E + e];
    return MOE_OK;
}
