/* The decoder: a group of whole windows through all layers, forward and backward, in vertical order: every token of the group
 * passes a layer before the next layer begins, so an expert is brought in once per pass.
 * Owns the working buffers of a pass; weights are in dense_part and the tier, saved activations in the stash.
 * Order of sums: pieces (micro-batches) only cut the dense work; gradients are chains over the tokens in order, whatever the cut.
 * Threads: one compute thread. */
#ifndef MOE_ENGINE_DECODER_DECODER_H
#define MOE_ENGINE_DECODER_DECODER_H

#include <stdatomic.h>

#include "engine/decoder/dense.h"
#include "experts/experts.h"

typedef struct decoder_config {
    const moe_backend *be;
    moe_stream *stream;
    const model_spec *spec;
    dense_part *dense;
    tier *tier;
    stash *stash;              /* NULL: no training                                         */
    const step_log *log;
    balance *balance;          /* NULL: no training                                         */
    const atomic_int *stop;    /* non-zero: leave with MOE_E_TEMP before the next piece of work; or NULL */
    int seq_len;
    int64_t max_tokens;        /* of a group, a multiple of seq_len                         */
    int64_t piece_tokens;      /* tokens of one piece of dense work, a multiple of seq_len  */
    int64_t expert_rows;       /* rows of one expert at a time                              */
    bool bf16_moments;         /* of the experts (experts.h), their rounding keyed by seed  */
    bool bf16_weights;         /* of the experts (experts.h)                                */
    uint64_t seed;
    int64_t logits_bytes;      /* of one chunk of logits, 64 to 1024 tokens; changes no bit */
} decoder_config;

typedef struct decoder_times {
    double attention, ffn, head, embedding; /* seconds of dense work; experts: moe.times    */
} decoder_times;

typedef struct decoder {
    decoder_config c;
    moe_layers moe;
    int QKV, q_pad, kv_pad;    /* width of a q | k | v row, padded parts                    */
    int64_t head_chunk;        /* tokens of one chunk of logits                             */
    int64_t T;                 /* tokens of the current group                               */
    int64_t first_token;       /* position of its first token in the step                   */
    const int32_t *tokens;     /* [T] of the current group                                  */
    float *x;                  /* [max_tokens, D] residual stream; in backward: gradient of the experts' input */
    float *xn;                 /* [max_tokens, D] normed input of the experts               */
    float *dx;                 /* [max_tokens, D] gradient of the residual stream; training only */
    float *mid;                /* [max_tokens, D] residual stream after attention; training only */
    float *qkv;                /* [piece, QKV] q and k after norm and rope                  */
    float *raw;                /* [piece, QKV] projections; in backward: gradient of q, k, v */
    float *wide, *wide2;       /* [piece, max(H*hd, D, padded F of dense or shared)] scratch */
    float *a;                  /* [piece, 2 * Fp of dense or shared] when nothing is kept   */
    float *inv;                /* [max(max_tokens, piece * H)] reciprocals of norms         */
    float *lse;                /* [piece, H] when nothing is kept                           */
    float *logits;             /* [head_chunk, Vpad]                                        */
    float *token_loss;         /* [head_chunk]                                              */
    float *gate;               /* [3, piece] gate of the shared expert, its logits, its gradient; in attention: ones */
    int32_t *identity;         /* [piece] 0, 1, 2, ...                                      */
    int pieces;                /* of max_tokens                                             */
    stash_id *mid_block;       /* [L] residual stream after attention, all tokens           */
    stash_id *attn_block;      /* [L, pieces]                                               */
    stash_id *ffn_block;       /* [L, pieces] dense FFN or shared expert                    */
    decoder_times times;
    void *memory;
} decoder;

size_t decoder_bytes(const decoder_config *c);
/* Bytes of activations that a training pass over `tokens` keeps in the stash, and of its largest block. */
uint64_t decoder_stash_bytes(const decoder_config *c, int64_t tokens, uint64_t *largest);

moe_err decoder_open(decoder *d, const decoder_config *c) MOE_MUST_CHECK;
void decoder_close(decoder *d);

/* tokens [T]: whole windows of seq_len. keep: training. */
moe_err decoder_forward(decoder *d, const int32_t *tokens, int64_t T, int64_t first_token, bool keep) MOE_MUST_CHECK;
/* Adds the token losses to *loss_sum in token order. scale != 0: also starts backward (dx, gradients of head and final norm), with
 * d loss / d logits scaled by it; scale 0: evaluation. */
moe_err decoder_head(decoder *d, const int32_t *targets, float scale, double *loss_sum) MOE_MUST_CHECK;
/* The rest of backward. Gradients go to dense.g and the tier (stamped `step`). */
moe_err decoder_backward(decoder *d, uint64_t step, const adamw_step *speculate) MOE_MUST_CHECK;
/* Forgets an unfinished pass. */
void decoder_abandon(decoder *d);

/* logits [n, V] of tokens [first, first + n) of the group after decoder_forward; row-major, ld = V. */
moe_err decoder_logits(decoder *d, int64_t first, int64_t n, float *logits) MOE_MUST_CHECK;

#endif
