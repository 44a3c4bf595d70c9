/* A fresh folder for each test of Hugging Face folders, and tensors with known numbers to fill it. */
#ifndef MOE_TESTS_MODELS_HF_FOLDER_H
#define MOE_TESTS_MODELS_HF_FOLDER_H

#include "models/spec.h"

extern char hf_dir[64]; /* the folder's path; the folder itself does not exist yet */
void hf_folder_setup(void);
void hf_folder_teardown(void);

size_t hf_section_floats(const tensor_info *t);
/* What element i of tensor `id` is, and a section that holds the tensor; malloc'ed. */
float hf_number(uint32_t id, int64_t i);
float *hf_make_section(const tensor_info *t);

#define SIZES                                                                                                                    \
    "vocab_size=97 hidden_size=48 num_hidden_layers=3 num_attention_heads=4 num_key_value_heads=2 num_experts=6 "                \
    "num_experts_per_tok=2 "

#define DENSE                                                                                                                    \
    "vocab_size=97 hidden_size=48 num_hidden_layers=2 num_attention_heads=4 num_key_value_heads=2 intermediate_size=20 "

#endif
