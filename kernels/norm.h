/* RMSNorm over rows of D: y[t, d] = x[t, d] * inv[t] * gain[d], inv[t] = 1 / sqrt(mean(x[t]^2) + eps).
 * Source: arXiv 1910.07467; as transformers' Qwen3MoeRMSNorm, all in fp32.
 *
 * Order of sums: a sum along a row uses 16 lanes (lane i adds the elements d with d % 16 == i, in order of d, by fma) and the
 * fixed tree of reduce.h. dgain[d] is one fma chain over the rows in order, continued from what dgain holds.
 *   forward   inv = 1 / sqrt(sum(x*x) / D + eps);  y = (x * inv) * gain
 *   backward  n = x * inv, g = dy * gain, c = sum(g * n) / D;  e = fma(-c, n, g);  dx = inv * e, or fma(inv, e, dx) with accumulate
 *             dgain = fma(dy, n, dgain)
 * Rows are ldx / ldy floats apart; per-head QK-norm is the same operation with T*H rows of head_dim (see rmsnorm_args). */
#ifndef MOE_KERNELS_NORM_H
#define MOE_KERNELS_NORM_H

#include <stdbool.h>

#include "kernels/stream.h"

/* Row r = (t, h), t = r / heads, h = r % heads, begins at t * ld + h * D: heads = 1 for plain rows of D. */
typedef struct rmsnorm_args {
    float *y;          /* rows of D: forward out; may be x                                */
    float *inv;        /* [T * heads] forward out (may be NULL), backward in              */
    const float *x;    /* rows of D                                                       */
    const float *gain; /* [D]                                                             */
    const float *dy;   /* rows of D: backward in                                          */
    float *dx;         /* rows of D: backward out; may be dy (ldx == ldy, no accumulate)  */
    float *dgain;      /* [D] backward, continued                                         */
    size_t ldx, ldy;   /* floats from token to token: x and dx / y and dy                 */
    int64_t T;
    int heads, D;
    float eps;
    bool accumulate;   /* backward: dx is continued (one fma), else set                   */
} rmsnorm_args;

typedef moe_err (*rmsnorm_fn)(const rmsnorm_args *a, moe_stream *s);

#endif
