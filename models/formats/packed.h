/* Packed folders: a model as the engine wants it in memory. Made by `moe-model pack` and `quantize`, read by model_open.
 *   packed.json   the manifest: version, the configuration (as config.json), where each tensor lies, checksums
 *   dense.bin     all but the experts, each tensor at a multiple of 4 KiB: matrices as the panels of kernels/qmatmul.h, an untied
 *                 embedding as rows, vectors as fp32
 *   experts.bin   one record an expert: panels of gate, up, down, one after the other; 4 KiB-aligned, so that it is read whole with O_DIRECT
 *   tokenizer.json and its companions, or tokenizer.gguf (metadata only)
 * Checksums are XXH3-64 of a tensor's bytes, or of a record's panels. */
#ifndef MOE_MODELS_FORMATS_PACKED_H
#define MOE_MODELS_FORMATS_PACKED_H

#include "models/model.h"

enum { PACKED_VERSION = 1, PACKED_ALIGN = 4096 /* bytes: O_DIRECT */, PACKED_AS_IS = -1 };

typedef struct packed_options {
    int experts; /* numfmt of the experts, PACKED_AS_IS: as they are                                              */
    int dense;   /* of attention, dense and shared feed-forward, embedding and output; the router, norms and biases stay */
    void (*progress)(void *user, uint64_t done, uint64_t total); /* bytes; NULL: none */
    void *user;
} packed_options;

/* Writes the model into `dir`, which may not exist, or must be an empty folder (MOE_E_CREATE). The folder appears whole or not at all: it is written beside
 * under the name dir.partial, synced and renamed; on an error (MOE_E_IO: the disk is full, ...) nothing is left. MOE_E_CONFIG when a
 * format does not fit a tensor. Holds one matrix in memory at a time. */
moe_err packed_write(const model *m, const char *dir, const packed_options *o) MOE_MUST_CHECK;

/* Bytes of the folder's two data files. */
moe_err packed_size(const model *m, const packed_options *o, uint64_t *dense, uint64_t *experts) MOE_MUST_CHECK;

#endif
