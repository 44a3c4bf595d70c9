/* Sparse upcycling (arXiv 2212.05055): a dense model becomes a Mixture-of-Experts whose every expert begins as a copy of the dense
 * feed-forward, behind a new random router. The chosen weights sum to 1, so that without noise the new model computes what
 * the dense one did, up to rounding, and trains on from there. Llama becomes Mixtral, Qwen3 becomes Qwen3-MoE; everything but the feed-forward is
 * copied. Written as a Hugging Face folder that transformers and `model.from` of moe-train open.
 * Rule: the folder appears whole or not at all (hf_writer). */
#ifndef MOE_MODELS_UPCYCLE_H
#define MOE_MODELS_UPCYCLE_H

#include "kernels/backend.h"
#include "models/formats/hf.h"
#include "models/model.h"

typedef struct upcycle_options {
    int experts, top_k;
    double noise;   /* standard deviation of the noise on each expert's matrix, in parts of that matrix's root mean square; 0: none */
    uint64_t seed;  /* of noise and router                                    */
    hf_dtype dtype; /* of the folder                                          */
    const moe_backend *be;
    moe_stream *stream;
    void (*progress)(void *user, uint64_t done, uint64_t total); /* tensors; NULL: none */
    void *user;
} upcycle_options;

/* What the dense model becomes. MOE_E_CONFIG: it is not dense, its family has no MoE of the same attention, or the numbers do not fit. */
moe_err upcycle_spec(model_spec *out, const model_spec *dense, const upcycle_options *o) MOE_MUST_CHECK;

/* Writes the folder `dir`, which may not exist or must be empty (MOE_E_CREATE). Holds one tensor (and its noise) in memory at a time.
 * MOE_E_DATA when a weight of the dense model is not finite. The tokenizer is the caller's to copy. */
moe_err upcycle_write(const model *dense, const char *dir, const upcycle_options *o) MOE_MUST_CHECK;

#endif
