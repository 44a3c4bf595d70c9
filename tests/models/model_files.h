/* Models on disk for tests: GGUF files of any spec, and the numbers of any open model. */
#ifndef MOE_TESTS_MODELS_MODEL_FILES_H
#define MOE_TESTS_MODELS_MODEL_FILES_H

#include "models/model.h"
#include "tests/models/gguf_build.h"

/* Number i of tensor id of every model made here. */
float model_number(uint32_t id, int64_t i);
/* llama.cpp's name of a Hugging Face tensor: "blk.3.attn_q.weight"; experts: "blk.3.ffn_up_exps.weight". */
void gguf_name(const tensor_info *t, char out[96]);
/* Metadata and tensors of a spec as llama.cpp's converter writes them; matrices in `type` (GGML_F32, _BF16, _Q8_0, _Q4_0), q and k of llama permuted. */
void gguf_model(gguf_build *b, const char *arch, const model_spec *m, uint32_t type);
/* The same of an open model, with its numbers in F32. apart: a tensor for each expert, as in the first files of Mixtral. */
void gguf_of_model(gguf_build *b, const char *arch, const model *m, bool apart);
/* [rows, cols] in logical order as fp32, whatever the model is made of. malloc'ed. */
float *model_numbers(const model *m, const tensor_info *t);

#endif
