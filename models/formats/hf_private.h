/* What the files of hf_*.c share. Private to models/formats. */
#ifndef MOE_MODELS_FORMATS_HF_PRIVATE_H
#define MOE_MODELS_FORMATS_HF_PRIVATE_H

#include "engine/base/text.h"
#include "models/formats/hf.h"
#include "models/formats/json_reader.h"

#define HF_CONFIG "config.json"
#define HF_SINGLE "model.safetensors"
#define HF_INDEX "model.safetensors.index.json"

/* "dir/name", malloc'ed. */
moe_err hf_path(char **out, const char *dir, const char *name) MOE_MUST_CHECK;
/* A whole small file, malloc'ed. MOE_E_NOINPUT when missing, MOE_E_DATA when longer than `limit`. */
moe_err hf_read_text(const char *path, size_t limit, char **text, size_t *bytes) MOE_MUST_CHECK;

/* hf_config_load on text; `name` is the file's, for messages. For tests and the fuzzer too. */
moe_err hf_config_parse(model_spec *out, const char *text, size_t bytes, const char *name) MOE_MUST_CHECK;

/* The value of quantization_config: null, or FP8 in blocks of 128 x 128, or MXFP4 (MOE_E_CONFIG). */
moe_err hf_read_quantization(json_reader *r) MOE_MUST_CHECK;

/* config.json of a spec; MOE_E_CONFIG when transformers has no class that computes it. */
moe_err hf_config_text(text_buf *out, const model_spec *m, hf_dtype dtype) MOE_MUST_CHECK;

/* Where a checkpoint may keep a tensor of the spec: from element `first` on in the tensor `name` of this shape, in this form (models/rows.h). */
typedef struct hf_place {
    char name[96];
    int dims;
    int64_t shape[4];
    int64_t first;
    model_stored stored;
    int row_step, row_first;
} hf_place;

enum { HF_PLACES = 3 };
/* All of them, in the order in which they are looked up; returns how many (1 .. HF_PLACES). */
int hf_places(const model_spec *m, const tensor_info *info, hf_place out[HF_PLACES]);

/* hf_writer_open with another size of shard than 5 GB, transformers' own default. */
#define HF_SHARD_BYTES UINT64_C(5000000000)
moe_err hf_writer_open_sharded(hf_writer **out, const char *dir, const model_spec *spec, hf_dtype dtype, uint64_t shard_bytes) MOE_MUST_CHECK;

#endif
