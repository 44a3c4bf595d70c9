/* The middle of an expert: h = silu(g) * u, g and u in one row [g (Fp) | u (Fp)], Fp = F padded to PANEL.
 *   forward   h[r, f] = (g * s) * u,  s = sigmoid(g)
 *             with limit > 0 (clamped, gpt-oss; no backward): g' = min(g, limit), u' = max(-limit, min(u, limit)),
 *             h[r, f] = (g' * sigmoid(alpha * g')) * (u' + 1); a NaN stays one
 *   backward  given dh = the gradient of the *unweighted* expert output behind the down product, and the row's router weight c:
 *             dweight[r] = sum over f of h * dh                        (fma in 16 lanes, tree of reduce.h)
 *             hc[r, f]   = c * h        (what the weight gradient of the down projection needs)
 *             dg = (c*dh * u * s) * (1 + g * (1 - s)),  du = c*dh * (g * s)     (1 + .. is one fma)
 * c NULL means 1 for all rows and no dweight (dense FFN). Columns F .. Fp-1 are written as zero; what they hold on input is not read.
 * dg, du may replace g, u in place (da == a); hc may be dh. Source: arXiv 2002.05202. */
#ifndef MOE_KERNELS_SWIGLU_H
#define MOE_KERNELS_SWIGLU_H

#include <stdint.h>

#include "kernels/stream.h"

typedef struct swiglu_args {
    float *h;           /* [rows, Fp] forward out                    */
    const float *a;     /* [rows, 2*Fp] g | u                        */
    const float *dh;    /* [rows, Fp] backward in                    */
    const float *c;     /* [rows] router weights, or NULL            */
    float *da;          /* [rows, 2*Fp] backward out: dg | du        */
    float *hc;          /* [rows, Fp] backward out                   */
    float *dweight;     /* [rows] backward out; NULL when c is NULL  */
    int64_t rows;
    int F, Fp;
    float alpha, limit; /* forward; limit 0: the plain one           */
} swiglu_args;

typedef moe_err (*swiglu_fn)(const swiglu_args *a, moe_stream *s);

/* A shared expert with a gate (Qwen2-MoE): y[t, :] *= s, s = sigmoid(z[t]).
 * backward: dz[t] = s * (1 - s) * sum(dy * y_ungated) (fma in 16 lanes, tree of reduce.h), then dy is scaled by s in place. */
typedef struct gate_args {
    float *y;          /* [T, D] forward in/out (gated result); backward: the ungated result, only read */
    const float *z;    /* [T] gate logits                                     */
    float *dy;         /* [T, D] backward: in dL/d(gated), out dL/d(ungated)  */
    float *dz;         /* [T] backward out                                    */
    int64_t T;
    int D;
} gate_args;

typedef moe_err (*gate_fn)(const gate_args *a, moe_stream *s);

#endif
