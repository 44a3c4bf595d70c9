/* Load balance: statistics of the routed rows, the balance loss and its gradient, and the aux-loss-free bias update.
 *
 * Over a set of tokens: aux = E * sum over e of f_e * P_e, f_e = routed rows / tokens, P_e = mean probability; all MoE layers are one
 * set (as transformers' load_balancing_loss_func), or each layer is its own and the values are averaged (per_layer). The token set is
 * the micro-batch, the sequence or the whole step; values are averaged over the sets. f is a constant for the gradient:
 * d aux / d p[t, e] = E * f_e / (tokens of the set, all layers) / sets.
 * z = mean over tokens and MoE layers of logsumexp(logits)^2. */
#ifndef MOE_EXPERTS_BALANCE_H
#define MOE_EXPERTS_BALANCE_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/base/error.h"

typedef struct balance_config {
    double aux_coef, z_coef;
    bool per_layer;
    int64_t set_tokens;  /* tokens of one set: micro-batch, sequence or step               */
    int64_t step_tokens; /* of the whole step                                              */
    int layers, E, K;    /* MoE layers                                                     */
    int32_t capacity;    /* rows an expert takes of each capacity_tokens tokens; 0: all    */
    int64_t capacity_tokens;
} balance_config;

typedef struct balance {
    balance_config c;
    int64_t sets;        /* step_tokens / set_tokens                                       */
    int64_t *counts;     /* [sets, layers, E] routed rows                                  */
    double *prob_sum;    /* [sets, layers, E]                                              */
    double *z_sum;       /* [layers] over the tokens in order, however they were grouped   */
    float *dprobs;       /* [E] filled by balance_dprobs                                   */
} balance;

size_t balance_bytes(balance_config c); /* that balance_open will allocate */
moe_err balance_open(balance *b, balance_config c) MOE_MUST_CHECK;
void balance_close(balance *b);
void balance_begin_step(balance *b);

/* The set that token t of the step belongs to, and where its numbers are. */
int64_t *balance_counts(balance *b, int64_t set, int layer);
double *balance_prob_sum(balance *b, int64_t set, int layer);

/* Unscaled losses of the finished step. */
double balance_aux(const balance *b);
double balance_z(const balance *b);
/* Gradient of aux_coef * aux by any p[t, e] of this layer and set: [E], NULL when aux_coef is 0. */
const float *balance_dprobs(balance *b, int64_t set, int layer);
/* What router_args.dz wants: z_coef / (tokens * layers). */
float balance_dz(const balance *b);

/* bias[e] += rate * sign(mean load - load of e), over the step's rows of this layer (arXiv 2408.15664). */
void balance_update_bias(const balance *b, int layer, double rate, float *bias);
/* Largest load of an expert over the mean, all layers of the step. rows (may be NULL): [layers, E] routed rows of the step. */
double balance_max_over_mean(const balance *b, int64_t *rows);

#endif
