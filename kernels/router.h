/* From router logits to the experts of each token, and back.
 *
 *   scores p = softmax(logits) or sigmoid(logits)                                      [T, E]
 *   choice   the K experts with the largest p + bias (ties: lowest id), after limiting to the best `groups_used` of `groups`
 *            groups (DeepSeek-V3: a group's score is the sum of its two best p + bias, DeepSeek-V2: its best one, `group_best`;
 *            equal scores: lowest group); listed by falling p + bias. A NaN score never wins against a number; the ids are distinct and in range whatever the logits hold
 *   weights  p at the chosen experts; softmax over the chosen logits when topk_first (Mixtral; `normalize` has no effect then);
 *            divided by their sum when `normalize` (sum + 1e-20 under sigmoid, as DeepSeek-V3); times `scale`
 * Losses (unscaled; the caller weights them): z = mean over tokens of logsumexp(logits)^2; the balance loss is computed by the
 * caller from counts and prob_sum (experts/balance). Sources: transformers Qwen3-MoE, OLMoE, Mixtral, DeepSeek-V3
 * (arXiv 2412.19437), ST-MoE z-loss (arXiv 2202.08906), aux-loss-free bias (arXiv 2408.15664).
 *
 * Order of sums: along E 16 lanes and the tree of reduce.h; the sum of the K weights is one chain in choice order;
 * prob_sum[e] adds in double over the tokens in order. Forward, one token:
 *   m = max(l), S = sum of exp(l - m), lse = m + log(S);  p = exp(l - m) / S, or sigmoid(l)
 *   topk_first  n = max of the chosen l, q = exp(l - n), weight = q / (q_0 + q_1 + ...) * scale
 *   normalize   weight = p / (p_0 + p_1 + ... [+ 1e-20]) * scale;   else  weight = p * scale
 * Backward (the choice is not differentiated, the bias takes no gradient). x = the chain over k of fma(weight, dweight, x):
 *   dp[e] = dprobs[e], plus at a chosen expert: 0 (topk_first); (scale * dweight - x) / sum of p (normalize); scale * dweight (else)
 *   softmax  dl = p * (dp - c), c = sum over e of fma(p, dp, ..);   sigmoid  dl = dp * (p * (1 - p))
 *   dz != 0  dl = fma(2 * dz * lse, softmax(l), dl)     (p, or under sigmoid exp(l - lse))
 *   topk_first  dl at a chosen expert += weight * (dweight - x / scale) */
#ifndef MOE_KERNELS_ROUTER_H
#define MOE_KERNELS_ROUTER_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/stream.h"

typedef enum router_score { ROUTER_SOFTMAX, ROUTER_SIGMOID } router_score;

typedef struct router_rule {
    router_score score;
    bool topk_first;    /* softmax over the chosen logits only                        */
    bool normalize;     /* divide the chosen weights by their sum                     */
    float scale;        /* routed_scaling_factor, 1 when the family has none; not 0   */
    int groups, groups_used; /* 1, 1: no limit                                        */
    bool group_best;    /* the score of a group is its best one's alone               */
} router_rule;

typedef struct router_args {
    const float *logits;   /* [T, E] forward; backward: read only under sigmoid with dz != 0 */
    const float *bias;     /* [E] correction bias, or NULL                            */
    float *probs;          /* [T, E] out; backward in                                 */
    float *lse;            /* [T] logsumexp of the logits, out; backward in           */
    int32_t *ids;          /* [T, K] out; backward in                                 */
    float *weights;        /* [T, K] out; backward in                                 */
    const float *dweights; /* [T, K] backward in                                      */
    const float *dprobs;   /* [E] gradient of the balance loss by any p[t, e], the same for all T tokens; NULL: none */
    float dz;              /* coefficient / number of tokens of the z-loss mean; 0: none */
    float *dlogits;        /* [T, E] backward out, set; may be logits                 */
    int64_t T;
    int E, K;
    router_rule rule;
} router_args;

/* MOE_E_CONFIG when the rule cannot choose K of E experts, or a row of E does not fit the scratch of a worker. */
typedef moe_err (*router_fn)(const router_args *a, moe_stream *s);

/* counts[e] += rows routed to e, prob_sum[e] += sum of probs over the tokens: what the balance losses are made of.
 * MOE_E_DATA when an id is not in [0, E): names the first token, its choice and the id; nothing is written then. */
typedef struct router_stats_args {
    const float *probs;  /* [T, E] */
    const int32_t *ids;  /* [T, K] */
    int64_t *counts;     /* [E]    */
    double *prob_sum;    /* [E]    */
    int64_t T;
    int E, K;
} router_stats_args;

typedef moe_err (*router_stats_fn)(const router_stats_args *a, moe_stream *s);

#endif
