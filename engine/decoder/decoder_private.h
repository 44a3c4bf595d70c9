/* Shared by the files of the decoder; not for others. */
#ifndef MOE_ENGINE_DECODER_DECODER_PRIVATE_H
#define MOE_ENGINE_DECODER_DECODER_PRIVATE_H

#include "engine/decoder/decoder.h"

/* Blocks of a layer in the stash, in this order: attention pieces, FFN pieces (last piece first), expert chunks (last first), routing, mid.
 * Backward takes them exactly in reverse, and none is held longer than one piece of work: a ring of a few blocks is enough. */

/* Kept activations of one piece of one layer's attention: the same lines measure (base NULL) and point. */
typedef struct piece_block {
    float *x_in;   /* [n, D]     input of the layer: a copy, the stream goes on in place */
    float *qkv;    /* [n, QKV]   projections, before norm and rope          */
    float *o;      /* [n, H*hd]  attention output                           */
    float *lse;    /* [n, H]                                                */
    float *x;      /* [n, D]     residual stream, not of this block: input in, after attention out */
} piece_block;

size_t piece_block_layout(piece_block *b, char *base, const decoder *d, int64_t n);

/* MOE_E_TEMP once a signal has asked for a stop; asked before every piece of work, so that the wait is that of one piece. */
moe_err decoder_stopped(const decoder *d);

/* Width (padded) of the dense FFN or shared expert of a layer, 0 when it has neither. */
int layer_ffn_width(const model_spec *s, int layer);

moe_err matmul_one(decoder *d, moe_err (*fn)(const matmul_args *, moe_stream *), matmul_args a, const float *w, float *dw, int64_t rows);

moe_err norm_forward(decoder *d, float *y, const float *x, const float *gain, int64_t rows);
/* dx (+)= gradient through the norm; dgain continued. */
moe_err norm_backward(decoder *d, float *dx, float *dgain, const float *dy, const float *x, const float *gain, int64_t rows, bool accumulate);

moe_err attention_block_forward(decoder *d, int layer, const piece_block *b, float *xn, int64_t n);
moe_err attention_block_backward(decoder *d, int layer, const piece_block *b, float *dx, float *xn, int64_t n);

/* The FFN of a dense layer, or the shared expert beside the routed ones: x[n, D] += ffn(xn). Backward adds to dxn. */
moe_err ffn_block_forward(decoder *d, int layer, float *a, float *x, const float *xn, int64_t n);
moe_err ffn_block_backward(decoder *d, int layer, float *a, float *dxn, const float *dy, const float *xn, int64_t n, bool accumulate);

const float *layer_w(const decoder *d, int layer, int64_t offset);
float *layer_g(const decoder *d, int layer, int64_t offset);

#endif
