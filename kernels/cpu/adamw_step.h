/* One AdamW step on sixteen elements in registers, for fp32 and bf16 moments (kernels/adamw.h). Owns nothing. No state, any
 * thread. Rule: same bits as ref/adamw.c; a line here is the line of the reference with the same name. */
#ifndef MOE_KERNELS_CPU_ADAMW_STEP_H
#define MOE_KERNELS_CPU_ADAMW_STEP_H

#include "kernels/adamw.h"
#include "kernels/cpu/simd.h"

typedef struct element {
    v16 w, m, v;
} element;

SIMD element element_step(element e, v16 grad, const adamw_scalars *k)
{
    const v16 g = v16_mul(v16_set1(k->clip), grad);
    e.w = v16_mul(e.w, v16_set1(k->decay));
    e.m = v16_fma(v16_set1(k->c1), v16_sub(g, e.m), k->from_g ? g : e.m);
    e.v = v16_fma(v16_mul(v16_set1(k->c2), g), g, v16_mul(e.v, v16_set1(k->beta2)));
    const v16 below = v16_add(v16_div(v16_sqrt(e.v), v16_set1(k->root2)), v16_set1(k->eps));
    e.w = v16_add(e.w, v16_div(v16_mul(v16_set1(k->minus_size), e.m), below));
    return e;
}

#endif
