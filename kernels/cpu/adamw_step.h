/* One AdamW step on sixteen elements in registers, for fp32 and bf16 moments, and weights as fp32 or as halves (kernels/adamw.h).
 * Owns nothing. No state, any thread. Rule: same bits as ref/adamw.c; a line here is the line of the reference with the same
 * name. */
#ifndef MOE_KERNELS_CPU_ADAMW_STEP_H
#define MOE_KERNELS_CPU_ADAMW_STEP_H

#include <string.h>

#include "kernels/adamw.h"
#include "kernels/cpu/simd.h"

typedef struct element {
    v16 w, m, v;
} element;

/* Sixteen weights at i, from whichever form is there. */
SIMD v16 weights_load(adamw_weights w, int64_t i)
{
    if (w.w != NULL)
        return v16_load(w.w + i);
    const i16 rest = i16_load_u16(w.rest + i);
    return i16_float(i16_add(i16_shl(i16_load_u16(w.near + i), 16), i16_sar(i16_shl(rest, 16), 16)));
}

SIMD void weights_store(adamw_weights w, int64_t i, v16 x)
{
    if (w.w != NULL) {
        v16_store(w.w + i, x);
        return;
    }
    i16_store_u16(w.near + i, i16_shr(i16_add(v16_bits(x), i16_set1(0x8000)), 16));
    i16_store_u16(w.rest + i, i16_and(v16_bits(x), i16_set1(0xffff)));
}

/* The first n of up to 64 weights at i, in one place: a copy to work on, and back. */
typedef struct weights_edge {
    float w[4 * V16];
    uint16_t near[4 * V16], rest[4 * V16];
} weights_edge;

SIMD adamw_weights edge_of(weights_edge *e, bool halves)
{
    return halves ? (adamw_weights){.near = e->near, .rest = e->rest} : (adamw_weights){.w = e->w};
}

SIMD void weights_copy(adamw_weights to, int64_t at, adamw_weights from, int64_t i, int64_t n)
{
    if (from.w != NULL) {
        memcpy(to.w + at, from.w + i, (size_t)n * sizeof *to.w);
        return;
    }
    memcpy(to.near + at, from.near + i, (size_t)n * sizeof *to.near);
    memcpy(to.rest + at, from.rest + i, (size_t)n * sizeof *to.rest);
}

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
