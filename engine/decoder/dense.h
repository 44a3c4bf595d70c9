/* The dense part: embedding, attention, routers, norms, head. Resident, with gradient and moments, in one block: section after
 * section (embedding, layer 0 .. L-1, head), each laid out as models/spec.h says.
 * What a checkpoint writes is the first three arrays (w, m, v), contiguous. */
#ifndef MOE_ENGINE_DECODER_DENSE_H
#define MOE_ENGINE_DECODER_DENSE_H

#include "kernels/backend.h"
#include "models/formats/hf.h"
#include "models/spec.h"

typedef struct dense_range {
    size_t offset, floats; /* in the dense arrays */
    bool decay;
} dense_range;

typedef struct dense_part {
    const model_spec *spec;
    size_t floats;           /* of one array, a multiple of 1024 (4 KiB)                    */
    float *w, *m, *v, *g;    /* [floats] each; only w when not training                     */
    float *tied_g;           /* [embed floats] gradient of the lookups when the embedding is tied to the head, else NULL */
    size_t embed, head;      /* floats: where the sections begin                            */
    size_t *layer;           /* [L]                                                         */
    dense_layout *layout;    /* [L]                                                         */
    embed_layout embed_layout;
    head_layout head_layout;
    dense_range *range;      /* [nranges] what AdamW updates (not the correction biases)    */
    int nranges;
    float *rope;             /* [2, S, rotary/2]                                            */
    void *memory;
} dense_part;

/* Only where everything lies: floats, sections, layouts; no memory. */
moe_err dense_place(dense_part *d, const model_spec *spec) MOE_MUST_CHECK;
/* Where a tensor that is no expert's begins in the dense arrays, in floats. */
size_t dense_tensor_at(const dense_part *d, const tensor_info *t);

/* Bytes that dense_open will allocate. */
size_t dense_bytes(const model_spec *spec, int seq_len, bool training);
moe_err dense_open(dense_part *d, const model_spec *spec, int seq_len, bool training) MOE_MUST_CHECK;
void dense_close(dense_part *d);

/* Initial weights: random from `seed`, or read from a folder. */
moe_err dense_init(dense_part *d, const moe_backend *be, moe_stream *s, uint64_t seed) MOE_MUST_CHECK;
moe_err dense_import(dense_part *d, hf_reader *from) MOE_MUST_CHECK;

/* Length of w | m | v, the part of a checkpoint. */
static inline size_t dense_state_bytes(const dense_part *d) { return 3 * d->floats * sizeof(float); }

void dense_zero_gradients(dense_part *d);
/* Adds the gradient of the tied lookups to the head's; then squares[0 .. L+1] = sum of squares of embedding, layers, head. */
moe_err dense_gradient_squares(dense_part *d, const moe_backend *be, moe_stream *s, double *squares) MOE_MUST_CHECK;
moe_err dense_update(dense_part *d, const moe_backend *be, moe_stream *s, const adamw_step *step) MOE_MUST_CHECK;

#endif
