/* Router, fast (kernels/router.h). Owns nothing; the scores of a token's choice, and dp in backward,
 * lie in the worker's scratch. Forward and backward are
 * parallel over tokens, the sums of router_stats over columns.
 * The choice takes the largest score K times: a maximum over vectors, then the first lane that holds it. That needs finite scores
 * and no groups; anything else goes to router_choose.
 * Rule: same bits and the same ids as ref/router.c. */
#include "kernels/ref/router.h"

#include <math.h>
#include <stddef.h>

#include "kernels/cpu/row.h"
#include "kernels/cpu/vmath.h"
#include "kernels/tables.h"

static float row_max(const float *row, int n)
{
    v16 m = v16_set1(-INFINITY);
    for (int i = 0; i < n; i += V16)
        m = v16_max(row_pad(row_load(row + i, n - i), n - i, -INFINITY), m);
    return v16_max_lane(m);
}

/* Softmax or sigmoid of a row; returns logsumexp. */
static float row_probs(float *p, const float *l, int E, router_score score)
{
    const float m = row_max(l, E);
    v16 sum = v16_zero();
    for (int e = 0; e < E; e += V16) {
        const v16 x = row_pad(v16_exp(v16_sub(row_load(l + e, E - e), v16_set1(m))), E - e, 0.0f);
        sum = v16_add(sum, x);
        row_store(p + e, x, E - e);
    }
    const float S = v16_sum(sum);
    for (int e = 0; e < E; e += V16)
        row_store(p + e,
                  score == ROUTER_SOFTMAX ? v16_div(row_load(p + e, E - e), v16_set1(S)) : v16_sigmoid(row_load(l + e, E - e)),
                  E - e);
    return m + moe_logf(S);
}

/* score[E padded to 16] = p + bias, the pad -inf; false when a score is not finite. */
static bool row_scores(float *score, const float *p, const float *bias, int E)
{
    unsigned finite = 0xffff;
    for (int e = 0; e < E; e += V16) {
        const v16 x = row_load(p + e, E - e), c = bias != NULL ? v16_add(x, row_load(bias + e, E - e)) : x;
        finite &= m16_mask(v16_lt(v16_abs(c), v16_set1(INFINITY)));
        v16_store(score + e, row_pad(c, E - e, -INFINITY));
    }
    return finite == 0xffff;
}

static void take_largest(int32_t *ids, float *score, int E, int K)
{
    for (int k = 0; k < K; k++) {
        v16 m = v16_load(score);
        for (int e = V16; e < E; e += V16)
            m = v16_max(v16_load(score + e), m);
        const v16 most = v16_set1(v16_max_lane(m));
        int e = 0;
        unsigned lane = m16_mask(v16_eq(v16_load(score), most));
        while (lane == 0) {
            e += V16;
            lane = m16_mask(v16_eq(v16_load(score + e), most));
        }
        ids[k] = e + __builtin_ctz(lane);
        score[ids[k]] = -INFINITY;
    }
}

typedef struct router_work {
    const router_args *a;
    moe_pool *pool;
} router_work;

static void forward_tokens(void *ctx, int64_t begin, int64_t end, int worker)
{
    const router_work *k = ctx;
    const router_args *a = k->a;
    const size_t E = (size_t)a->E, K = (size_t)a->K;
    float *score = moe_pool_scratch(k->pool, worker);
    const bool groups = a->rule.groups_used < a->rule.groups;
    for (size_t t = (size_t)begin; t < (size_t)end; t++) {
        const float *l = a->logits + t * E;
        float *p = a->probs + t * E;
        a->lse[t] = row_probs(p, l, a->E, a->rule.score);
        if (!groups && row_scores(score, p, a->bias, a->E))
            take_largest(a->ids + t * K, score, a->E, a->K);
        else
            router_choose(a->ids + t * K, p, a->bias, a->E, a->K, &a->rule);
        router_weigh(a->weights + t * K, a->ids + t * K, l, p, a->K, &a->rule);
    }
}

moe_err ISA(router_forward)(const router_args *a, moe_stream *s)
{
    TRY(router_check(a));
    router_work k = {a, s->pool};
    moe_pool_for(s->pool, a->T, row_grain((int64_t)a->E * 8), forward_tokens, &k);
    return MOE_OK;
}

/* From dp to dL/dlogits, without the part of topk_first; dl may be l. */
static void row_backward(float *dl, const float *dp, const float *p, const float *l, const router_args *a, float lse)
{
    const int E = a->E;
    const bool softmax = a->rule.score == ROUTER_SOFTMAX;
    const v16 z = v16_set1(2.0f * a->dz * lse), one = v16_set1(1.0f);
    v16 sum = v16_zero();
    for (int e = 0; softmax && e < E; e += V16)
        sum = v16_fma(row_load(p + e, E - e), v16_load(dp + e), sum);
    const v16 c = v16_set1(v16_sum(sum));
    for (int e = 0; e < E; e += V16) {
        const v16 x = row_load(p + e, E - e), g = v16_load(dp + e);
        v16 d = softmax ? v16_mul(x, v16_sub(g, c)) : v16_mul(g, v16_mul(x, v16_sub(one, x)));
        if (a->dz != 0.0f)
            d = v16_fma(z, softmax ? x : v16_exp(v16_sub(row_load(l + e, E - e), v16_set1(lse))), d);
        row_store(dl + e, d, E - e);
    }
}

static void backward_tokens(void *ctx, int64_t begin, int64_t end, int worker)
{
    const router_work *k = ctx;
    const router_args *a = k->a;
    const size_t E = (size_t)a->E, K = (size_t)a->K;
    float *dp = moe_pool_scratch(k->pool, worker);
    for (size_t t = (size_t)begin; t < (size_t)end; t++) {
        const float *p = a->probs + t * E, *weights = a->weights + t * K, *dweights = a->dweights + t * K;
        const float *l = a->rule.score == ROUTER_SIGMOID && a->dz != 0.0f ? a->logits + t * E : NULL;
        const int32_t *ids = a->ids + t * K;
        float *dl = a->dlogits + t * E;
        for (int e = 0; e < a->E; e += V16)
            v16_store(dp + e, a->dprobs != NULL ? row_load(a->dprobs + e, a->E - e) : v16_zero());
        router_unweigh(dp, ids, weights, dweights, p, a->K, &a->rule);
        row_backward(dl, dp, p, l, a, a->lse[t]);
        router_unweigh_chosen(dl, ids, weights, dweights, a->K, &a->rule);
    }
}

moe_err ISA(router_backward)(const router_args *a, moe_stream *s)
{
    TRY(router_check(a));
    router_work k = {a, s->pool};
    moe_pool_for(s->pool, a->T, row_grain((int64_t)a->E * 3), backward_tokens, &k);
    return MOE_OK;
}

/* Piece 0 counts the ids; piece 1 + v sums the probabilities of experts 16v .. 16v + 15. */
static void stats_pieces(void *ctx, int64_t begin, int64_t end, int worker)
{
    const router_stats_args *a = ctx;
    (void)worker;
    for (int64_t piece = begin; piece < end; piece++) {
        if (piece == 0) {
            for (int64_t i = 0; i < a->T * a->K; i++)
                a->counts[a->ids[i]]++;
            continue;
        }
        const int first = (int)(piece - 1) * V16, n = a->E - first < V16 ? a->E - first : V16;
        double held[V16] = {0};
        for (int i = 0; i < n; i++)
            held[i] = a->prob_sum[first + i];
        d16 sum = d16_load(held);
        for (int64_t t = 0; t < a->T; t++)
            sum = d16_add(sum, d16_from_v16(row_load(a->probs + t * a->E + first, n)));
        d16_store(held, sum);
        for (int i = 0; i < n; i++)
            a->prob_sum[first + i] = held[i];
    }
}

moe_err ISA(router_stats)(const router_stats_args *a, moe_stream *s)
{
    uint32_t most = 0; /* a negative id is a huge one */
    for (int64_t i = 0; i < a->T * a->K; i++)
        most = (uint32_t)a->ids[i] > most ? (uint32_t)a->ids[i] : most;
    if (a->T > 0 && most >= (uint32_t)a->E)
        return router_stats_ref(a, s); /* it names the first one */
    moe_pool_for(s->pool, 1 + (a->E + V16 - 1) / V16, 1, stats_pieces, (void *)a);
    return MOE_OK;
}
