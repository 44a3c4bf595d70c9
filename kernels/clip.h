/* Clamping to [-limit, limit], as OLMoE does with q, k and v (clip_qkv).
 *   forward   x[i] = min(max(x[i], -limit), limit), in place
 *   backward  x[i] (a gradient, in place) = 0 where the forward result kept[i] lies on or outside the limit */
#ifndef MOE_KERNELS_CLIP_H
#define MOE_KERNELS_CLIP_H

#include "kernels/stream.h"

typedef struct clip_args {
    float *x;          /* [n] in/out                               */
    const float *kept; /* [n] backward: the forward result         */
    size_t n;
    float limit;
} clip_args;

typedef moe_err (*clip_fn)(const clip_args *a, moe_stream *s);

#endif
