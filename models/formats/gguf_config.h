/* A GGUF file's metadata under Hugging Face's names. Private to models/formats. */
#ifndef MOE_MODELS_FORMATS_GGUF_CONFIG_H
#define MOE_MODELS_FORMATS_GGUF_CONFIG_H

#include "engine/base/text.h"
#include "models/formats/gguf.h"
#include "models/model.h"

#define GGUF_ROPE_FACTORS "rope_freqs.weight"

/* general.architecture -> model_type, and what llama.cpp's graph of that architecture does without a key. */
typedef struct gguf_architecture {
    const char *name, *model_type;
    const char *routed_type; /* model_type when there are experts; NULL: the same           */
    bool interleaved;        /* rows of q and k stand pairwise                              */
    bool normalize;          /* the weights of the chosen experts are divided by their sum  */
    bool sigmoid;            /* of the router's logits, not softmax                         */
    bool post_norm;          /* the norm before the feed-forward is called post_attention_norm */
    const char *sigmoid_type; /* model_type when expert_gating_func is sigmoid; NULL: the same */
    bool latent;             /* latent attention: attention.key_length is not head_dim, there is one key of a position */
    bool untruncated;        /* YaRN's range of frequencies is not cut to whole dimensions: the metadata cannot say so */
} gguf_architecture;

/* The text of a config.json, appended. The files of m (model_add_file) are those of g: the factors of the rotary frequencies are read. */
moe_err gguf_config(text_buf *json, const gguf_architecture **arch, const model *m, const gguf *g) MOE_MUST_CHECK;

#endif
