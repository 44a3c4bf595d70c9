/* Causal grouped-query attention over B windows of S tokens, tiled: no S x S matrix is ever stored.
 *   o[i] = sum over j <= i of softmax_j(scale * q[i].k[j]) * v[j];   query head h reads kv head h / (H / Hkv)
 *   lse[t, h] = log of the sum of exp(scale * q.k): all that backward needs besides q, k, v, o.
 * Source: FlashAttention, arXiv 2205.14135, 2307.08691.
 *
 * Order of sums (ATTENTION_TILE keys a tile, from key 0, the same for any S; written out in ref/attention.c):
 *   forward, tile by tile in key order: s[j] = (q.k[j]) * scale with q.k one fma chain over hd; m' = max(m, max s), c = exp(m - m'),
 *     p[j] = exp(s[j] - m'), l = fma(l, c, 16-lane sum of p (reduce.h, lane j % 16)), o[d] = o[d] * c and then one fma chain over the
 *     keys of the tile. At the end o[d] = fma(o[d], 1 / l, +0), lse = m + log(l).
 *   backward: delta = 16-lane fma sum of do * o; p = exp(fma(q.k, scale, -lse)); ds = p * (do.v - delta), do.v one fma chain over hd;
 *     dq[i] one fma chain over j, dk[j] and dv[j] one over (query head of the group, i); at the end dq and dk = fma(chain, scale, +0),
 *     dv = chain + 0.
 * The +0 makes a zero positive, so that a masked key (p = +0) may be added or left out: the same bits, as long as k, v are finite.
 * Windows are independent. Rows are ldq (q, dq), ldk (k, v, dk, dv) and ldo (o, do) floats apart, so q, k, v may lie in one [T, ..] row.
 * Outputs overlap nothing else. MOE_E_CONFIG when Hkv does not divide H or hd is not in [1, ATTENTION_MAX_HD]. */
#ifndef MOE_KERNELS_ATTENTION_H
#define MOE_KERNELS_ATTENTION_H

#include "kernels/stream.h"

enum {
    ATTENTION_TILE = 64,     /* keys: part of the definition                                       */
    ATTENTION_MAX_HD = 1024, /* the tiles of one head must fit KERNEL_SCRATCH_BYTES                */
};

typedef struct attention_args {
    float *o;               /* [T, ldo] head h at h * hd: forward out, backward in    */
    float *lse;             /* [T, H] forward out, backward in                        */
    const float *q;         /* [T, ldq]                                               */
    const float *k, *v;     /* [T, ldk]                                               */
    const float *d_o;       /* [T, ldo] backward in                                   */
    float *dq, *dk, *dv;    /* backward out, set (not added)                          */
    size_t ldq, ldk, ldo;
    int B, S, H, Hkv, hd;   /* T = B * S                                              */
    float scale;            /* 1 / sqrt(hd); > 0                                      */
} attention_args;

typedef moe_err (*attention_fn)(const attention_args *a, moe_stream *s);

/* The conditions above, for every version of the operation. */
moe_err attention_check(const attention_args *a) MOE_MUST_CHECK;

#endif
