/* AdamW as torch.optim.AdamW (single tensor, fp32), for any number of steps in one pass over the data. One step on one element,
 * every operation rounded to fp32 once, denormals flushed:
 *   g = clip * g
 *   w = w * decay                                  decay = 1 - lr*wd
 *   m = fma(c1, g - m, m)                          c1 = 1 - beta1; when c1 >= 0.5: m = fma(c1 - 1, g - m, g)   (Tensor.lerp_)
 *   v = fma(c2 * g, g, v * beta2)                  c2 = 1 - beta2                                              (addcmul_)
 *   w = w + (-size * m) / (sqrt(v) / root2 + eps)  size = lr / bias1, root2 = sqrt(bias2), bias_i = 1 - beta_i^step  (addcdiv_)
 * The scalars are computed in double and rounded once to fp32 (adamw_scalars_of); c1 - 1 is taken in fp32. Steps after the first
 * use g = 0: the decay of an expert that received no tokens. `grad` NULL: all steps use g = 0. nsteps steps in one call are bitwise
 * nsteps calls; nsteps 0 changes nothing. Source: arXiv 1711.05101. */
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

typedef struct adamw_args {
    float *w, *m, *v;         /* [n] in/out                                */
    const float *grad;        /* [n] of steps[0], or NULL                  */
    const adamw_step *steps;  /* [nsteps] in order                         */
    int nsteps;
    size_t n;
    bool decay;               /* weight decay applies to this tensor       */
} adamw_args;

typedef moe_err (*adamw_fn)(const adamw_args *a, moe_stream *s);

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
