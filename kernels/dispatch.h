/* Permute routed tokens to their experts and bring the weighted results back.
 *
 * Rows are sorted by expert, and inside an expert by token (a token chooses an expert at most once): row r of expert e lies in
 * [offset[e], offset[e + 1]), row_token[r] = t, row_slot[r] = t * K + k, and row_of[t * K + k] = r.
 * With a capacity, an expert takes at most that many rows of each set of `set_tokens` tokens, in token order; a choice past it is dropped:
 * it has no row, row_of is -1, and combine leaves it out.
 *   gather   dst[i, :] = src[row_token[i], :]        (the caller points row_token at the first row it wants)
 *   combine  out[t, :] = base[t, :] + sum over k of weight[t, k] * rows[row_of[t*K + k], :]   (fma chain over k from 0, then + base)
 *            with weight NULL every weight is 1 (plain sums of the chain: the backward of gather); base NULL: the chain alone.
 *            base may be out */
#ifndef MOE_KERNELS_DISPATCH_H
#define MOE_KERNELS_DISPATCH_H

#include <stdint.h>

#include "kernels/stream.h"

typedef struct dispatch_args {
    const int32_t *ids;  /* [T, K] in                */
    int32_t *offset;     /* [E + 1] out              */
    int32_t *row_token;  /* [T * K] out              */
    int32_t *row_slot;   /* [T * K] out              */
    int32_t *row_of;     /* [T * K] out              */
    int64_t T;           /* T * K < 2^31, else MOE_E_CONFIG */
    int E, K;
    int32_t capacity;    /* rows of an expert in a set; 0: no limit, nothing is dropped */
    int64_t set_tokens;  /* with a capacity: tokens of a set; the first begins at token 0 */
} dispatch_args;

/* MOE_E_DATA when an id is not in [0, E): names the first token, its choice and the id; nothing is written then. */
typedef moe_err (*dispatch_fn)(const dispatch_args *a, moe_stream *s);

typedef struct gather_args {
    float *dst;               /* [n, D]        */
    const float *src;         /* [T, ld]       */
    const int32_t *row_token; /* [n]           */
    size_t ld;
    int64_t n;
    int D;
} gather_args;

typedef moe_err (*gather_fn)(const gather_args *a, moe_stream *s);

typedef struct combine_args {
    float *out;            /* [T, D]           */
    const float *base;     /* [T, D] or NULL   */
    const float *rows;     /* [T * K, D]       */
    const int32_t *row_of; /* [T, K], -1: dropped */
    const float *weight;   /* [T, K] or NULL   */
    int64_t T;
    int K, D;
} combine_args;

typedef moe_err (*combine_fn)(const combine_args *a, moe_stream *s);

#endif
