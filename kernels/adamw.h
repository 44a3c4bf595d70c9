/* AdamW as torch.optim.AdamW (single tensor, fp32), for any number of steps in one pass over the data. One step on one element,
 * every operation rounded to fp32 once, denormals flushed:
 *   g = clip * g
 *   w = w * decay                                  decay = 1 - lr*wd
 *   m = fma(c1, g - m, m)                          c1 = 1 - beta1; when c1 >= 0.5: m = fma(c1 - 1, g - m, g)   (Tensor.lerp_)
 *   v = fma(c2 * g, g, v * beta2)                  c2 = 1 - beta2                                              (addcmul_)
 *   w = w + (-size * m) / (sqrt(v) / root2 + eps)  size = lr / bias1, root2 = sqrt(bias2), bias_i = 1 - beta_i^step  (addcdiv_)
 * The scalars are computed in double and rounded once to fp32 (adamw_scalars_of); c1 - 1 is taken in fp32. Steps after the first
 * use g = 0: the decay of an expert that received no tokens. `grad` NULL: all steps use g = 0. nsteps steps in one call are
 * bitwise nsteps calls; nsteps 0 changes nothing. Source: arXiv 1711.05101.
 *
 * adamw_bf16: the same with m and v stored as bf16. A step widens m and v to fp32 (exact), does the five lines above in fp32 - so
 * w moves by the moments before they are rounded - and then rounds m and v stochastically, after every step, so that many steps
 * in one call are bitwise many calls. Rounding x with 16 random bits r: the magnitude of x as an integer plus r, its lower half
 * cut off; x is rounded away from zero with the probability of its lower half over 2^16, so the mean over r is x. The sign stays;
 * zeros, infinities and what bf16 holds exactly stay; a finite x beyond the largest bf16 becomes that; every NaN becomes 0x7fc0.
 * Denormals are flushed before (as everywhere), and cutting a normal number leaves a normal one. Source: arXiv 2010.06192. The
 * random bits of element i at step s: word (i mod 64) / 16 of the four that random_words gives for key (seed, section, s) and
 * counter i / 64 * 16 + i mod 16; the lower half rounds m, the upper half v. So a vector of sixteen counters serves 64 elements
 * and no word has to change its lane. Initial weights have the same key with step 0; steps of training begin at 1.
 *
 * The weights may come as halves (kernels/halves.h): the same numbers, so the same results to the bit. */
#ifndef MOE_KERNELS_ADAMW_H
#define MOE_KERNELS_ADAMW_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/stream.h"

/* One line of the step log: all that a replay needs. On disk too: no padding, fixed size. */
typedef struct adamw_step {
    uint64_t step;       /* global step, from 1                   */
    double lr;           /* of this step, schedule applied        */
    double beta1, beta2, eps, weight_decay;
    double clip;         /* coefficient on the gradient, <= 1     */
} adamw_step;
_Static_assert(sizeof(adamw_step) == 56, "adamw_step is a record of the checkpoint");

/* [n] weights in one of two forms: w, or near and rest with w NULL. */
typedef struct adamw_weights {
    float *w;
    uint16_t *near, *rest;
} adamw_weights;

typedef struct adamw_args {
    adamw_weights w;          /* [n] in/out                                */
    float *m, *v;             /* [n] in/out                                */
    const float *grad;        /* [n] of steps[0], or NULL                  */
    const adamw_step *steps;  /* [nsteps] in order                         */
    int nsteps;
    size_t n;
    bool decay;               /* weight decay applies to this tensor       */
} adamw_args;

typedef moe_err (*adamw_fn)(const adamw_args *a, moe_stream *s);

typedef struct adamw_bf16_args {
    adamw_weights w;          /* [n] in/out                                */
    uint16_t *m, *v;          /* [n] in/out, bf16                          */
    const float *grad;        /* as above                                  */
    const adamw_step *steps;
    int nsteps;
    size_t n;
    bool decay;
    uint64_t seed;            /* the key of the rounding                   */
    uint32_t section;
} adamw_bf16_args;

typedef moe_err (*adamw_bf16_fn)(const adamw_bf16_args *a, moe_stream *s);

/* Stochastic rounding as above; `bits` in [0, 2^16). */
uint16_t adamw_round_bf16(float x, uint32_t bits);

/* The scalars of one step, as the formula above names them. */
typedef struct adamw_scalars {
    float clip, decay;
    float c1;       /* 1 - beta1, or 1 - beta1 - 1 when from_g  */
    bool from_g;    /* 1 - beta1 >= 0.5: lerp starts from g     */
    float c2, beta2;
    float minus_size, root2, eps;
} adamw_scalars;

/* beta^step by squaring from the lowest bit, in double: the same bits on every machine. decay false: factor 1. */
adamw_scalars adamw_scalars_of(const adamw_step *step, bool decay);

#endif
