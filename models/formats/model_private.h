/* What model.c and the openers of each kind share. Private to models/.
 * An opener fills spec, config, the files (model_add_file), the extents and the tokenizer of an empty model; on failure the caller closes what is there. */
#ifndef MOE_MODELS_FORMATS_MODEL_PRIVATE_H
#define MOE_MODELS_FORMATS_MODEL_PRIVATE_H

#include "models/model_build.h"

typedef struct model_file {
    char *path;
    int fd;
    uint64_t bytes;
} model_file;

struct model {
    model_kind kind;
    char *name;
    model_spec spec;
    char *config;
    model_file *file; /* [files] */
    int files;
    model_extent *extent; /* [tensors] by tensor_info.id */
    int64_t tensors;
    model_record *record; /* [MoE layers * E], packed folders only */
    char *tokenizer;
    model_experts experts; /* ranges NULL: not this kind */
    char note[512];
};

moe_err model_open_hf(model *m, const char *dir) MOE_MUST_CHECK;
moe_err model_open_gguf(model *m, const char *path) MOE_MUST_CHECK;
moe_err model_open_packed(model *m, const char *dir) MOE_MUST_CHECK;

/* row_bytes and bytes of rows in `format`. MOE_E_DATA when a row is no whole number of blocks. */
moe_err model_rows_extent(model_extent *e, const char *path, const tensor_info *info, numfmt format) MOE_MUST_CHECK;

#define PACKED_MANIFEST "packed.json"

#endif
