/* The parts of the router that are scalar in every version: the check of a rule, the choice for one token, its weights, and the
 * gradient of the weights. Owned by ref/router.c; private to kernels/. Pure, any thread. */
#ifndef MOE_KERNELS_REF_ROUTER_H
#define MOE_KERNELS_REF_ROUTER_H

#include "kernels/router.h"

/* MOE_E_CONFIG when the rule cannot choose K of E experts, or a padded row of E floats does not fit KERNEL_SCRATCH_BYTES. */
moe_err router_check(const router_args *a) MOE_MUST_CHECK;
/* The K experts of one token by p[e] + bias[e] (bias NULL: p). */
void router_choose(int32_t *ids, const float *p, const float *bias, int E, int K, const router_rule *rule);
/* Their weights; logits and p are rows of E. */
void router_weigh(float *weights, const int32_t *ids, const float *logits, const float *p, int K, const router_rule *rule);
/* Adds the gradient of the weights to dp[E]: everything but topk_first. */
void router_unweigh(float *dp, const int32_t *ids, const float *weights, const float *dweights, const float *p, int K,
                    const router_rule *rule);
/* topk_first: adds the gradient of the weights to dlogits[E]. */
void router_unweigh_chosen(float *dlogits, const int32_t *ids, const float *weights, const float *dweights, int K,
                           const router_rule *rule);

#endif
