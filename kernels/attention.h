/* Causal grouped-query attention over B windows of S tokens, tiled: no S x S matrix is ever stored.
 *   o[i] = sum over j <= i of softmax_j(scale * q[i].k[j]) * v[j];   query head h reads kv head h / (H / Hkv)
 *   lse[t, h] = log of the sum of exp(scale * q.k): all that backward needs besides q, k, v, o.
 * Source: FlashAttention, arXiv 2205.14135, 2307.08691.
 *
 * Order of sums (ATTENTION_TILE keys a tile, the same for any S; written out in ref/attention.c):
 *   forward: tile by tile in key order, running maximum m, running sum l, o rescaled by exp(m_old - m_new); inside a tile
 *   q.k is one fma chain over hd, l adds the 16-lane sum of the tile, o[d] one fma chain over the keys.
 *   backward: delta = sum(do * o) in 16 lanes; dq[i] one chain over j; dk[j], dv[j] one chain over (query head of the group, i).
 * Windows are independent. Rows are ldq (q, dq), ldk (k, v, dk, dv) and ldo (o, do) floats apart, so q, k, v may lie in one [T, ..] row. */
#ifndef MOE_KERNELS_ATTENTION_H
#define MOE_KERNELS_ATTENTION_H

#include "kernels/stream.h"

enum { ATTENTION_TILE = 64 }; /* keys */

typedef struct attention_args {
    float *o;               /* [T, ldo] head h at h * hd: forward out, backward in    */
    float *lse;             /* [T, H] forward out, backward in                        */
    const float *q;         /* [T, ldq]                                               */
    const float *k, *v;     /* [T, ldk]                                               */
    const float *d_o;       /* [T, ldo] backward in                                   */
    float *dq, *dk, *dv;    /* backward out, set (not added)                          */
    size_t ldq, ldk, ldo;
    int B, S, H, Hkv, hd;   /* T = B * S                                              */
    float scale;            /* 1 / sqrt(hd)                                           */
} attention_args;

typedef moe_err (*attention_fn)(const attention_args *a, moe_stream *s);

#endif
