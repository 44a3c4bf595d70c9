/* Hugging Face folders: config.json, model*.safetensors (one file or sharded with an index), in and out. Reads tensors one at a time
 * straight into the layouts of spec.h, so that neither import nor export ever holds a whole model.
 * Files are hostile until checked (safetensors.h). */
#ifndef MOE_MODELS_FORMATS_HF_H
#define MOE_MODELS_FORMATS_HF_H

#include "models/rows.h"
#include "models/spec.h"

/* config.json of a folder -> spec. MOE_E_NOINPUT when it is missing, MOE_E_CONFIG for a family or a setting we do not compute
 * (the sentence names the key, its value and what is supported). */
moe_err hf_config_load(model_spec *out, const char *dir) MOE_MUST_CHECK;

typedef struct hf_reader hf_reader;
/* Opens every shard and checks that all tensors of the spec are there with the right shapes: experts as separate tensors or as fused
 * 3-D ones; dtypes F32, F16, BF16, of matrices also F8_E4M3 with a scale for each 128 x 128 (.._scale_inv); gpt-oss' experts transposed, or as MXFP4 (U8 blocks and U8 scales). */
moe_err hf_reader_open(hf_reader **out, const char *dir, const model_spec *spec) MOE_MUST_CHECK;
void hf_reader_close(hf_reader *r);
/* Where the numbers of one tensor lie; files are indices for hf_reader_path. */
moe_err hf_reader_locate(const hf_reader *r, const tensor_info *info, model_extent *out) MOE_MUST_CHECK;
int hf_reader_files(const hf_reader *r);
const char *hf_reader_path(const hf_reader *r, int file);
/* Converts one tensor to fp32 and lays it out at section + info->offset (pads zero). Thread-safe. */
moe_err hf_reader_read(hf_reader *r, const tensor_info *info, float *section) MOE_MUST_CHECK;

typedef enum hf_dtype { HF_F32, HF_BF16 } hf_dtype;

typedef struct hf_writer hf_writer;
/* Makes the folder (MOE_E_CREATE when it exists and is not empty), writes config.json, then takes the tensors in the order of
 * spec_tensors; close writes the index. bf16 rounds to nearest even. A spec without a transformers class is MOE_E_CONFIG. */
moe_err hf_writer_open(hf_writer **out, const char *dir, const model_spec *spec, hf_dtype dtype) MOE_MUST_CHECK;
moe_err hf_writer_write(hf_writer *w, const tensor_info *info, const float *section) MOE_MUST_CHECK;
moe_err hf_writer_finish(hf_writer *w) MOE_MUST_CHECK; /* the folder is complete and synced */
void hf_writer_close(hf_writer *w); /* without finish: removes what was written */

#endif
