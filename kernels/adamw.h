/* AdamW as torch.optim.AdamW (single tensor, fp32), for any number of steps in one pass over the data:
 *   w *= 1 - lr*wd;  g' = clip * g;  m += (1 - beta1) * (g' - m);  v = beta2 * v + (1 - beta2) * g'^2
 *   w -= lr / bias1 * m / (sqrt(v) / sqrt(bias2) + eps),   bias_i = 1 - beta_i^step
 * written out with explicit fma, IEEE division and square root in ref/adamw.c. Steps after the first use g = 0: the decay of an
 * expert that received no tokens. `grad` NULL: all steps use g = 0. Source: arXiv 1711.05101. */
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

#endif
