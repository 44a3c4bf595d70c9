/* Rotary position embedding, in place, on heads of width hd inside rows: "half" pairing (i, i + hd/2) as transformers:
 *   a' = a*cos - b*sin,  b' = b*cos + a*sin,  angle = position * inv_freq[i], by default theta^(-2i/hd).
 * Rounding: the product with sin is rounded, then one fma: a' = fma(a, cos, -(b*sin)), b' = fma(b, cos, a*sin).
 * `inverse` rotates back (sin negated): the backward pass. The table holds cos then sin, [S, hd/2] each, made by rope_table with the
 * project's own cos and sin: angle = position * inv_freq is rounded to fp32 as transformers does, cos and sin of that fp32 angle are
 * taken in double and rounded, then multiplied with `scale` (1, but for YaRN). What inv_freq is, the model says (models/spec.h). Where only
 * the first `rotary` floats of a head turn (partial rotary embedding), rotary stands for hd in all of this and the others stay. rotary is
 * even, and so is hd where all of it turns. With `interleaved` the pairs are (2i, 2i+1) instead, in place (DeepSeek's rope_interleave). Source: arXiv 2104.09864. */
#ifndef MOE_KERNELS_ROPE_H
#define MOE_KERNELS_ROPE_H

#include <stdbool.h>

#include "kernels/inline.h"
#include "kernels/stream.h"

typedef struct rope_args {
    float *x;           /* [T, ld]: head h of token t at t * ld + h * hd, changed in place */
    const float *table; /* [2, S, rotary/2]                                                */
    size_t ld;
    int64_t T;          /* token t has position t % S                                      */
    int S, heads, hd;
    bool inverse;
    int rotary;         /* floats of a head that turn, from its first; 0: all              */
    bool interleaved;   /* pairs (2i, 2i+1)                                                */
} rope_args;

KERNEL_INLINE int rope_width(const rope_args *a) { return a->rotary > 0 ? a->rotary : a->hd; }

typedef moe_err (*rope_fn)(const rope_args *a, moe_stream *s);

/* table: [2, S, rotary/2] floats, of positions 0 .. S-1; inv_freq: [rotary/2], which may be the last row of the table. */
void rope_table(float *table, int S, int rotary, const float *inv_freq, float scale);
/* Its row of one position: [rotary/2] each. */
void rope_row(float *cosine, float *sine, int64_t position, int rotary, const float *inv_freq, float scale);

#endif
