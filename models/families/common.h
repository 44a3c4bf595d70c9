/* What the families share: how a key's value is found and read, the keys for parts that the engine trains but a family's transformers
 * class lacks (all off by default), the settings that are refused, and the fields every decoder of this kind has.
 * Private to models/families. Every sentence names the key, what was found and what is computed. */
#ifndef MOE_MODELS_FAMILIES_COMMON_H
#define MOE_MODELS_FAMILIES_COMMON_H

#include "models/family.h"

typedef struct family_values {
    const model_key *keys;
    int n;
    const model_value *values; /* [n] */
} family_values;

/* The value of a key of this family; NULL when the family has no such key. */
const model_value *family_get(const family_values *v, const char *key);
/* null (or no such key) reads as `fallback`; a value outside int is MOE_E_CONFIG. */
moe_err family_int(const family_values *v, const char *key, int fallback, int *out) MOE_MUST_CHECK;
double family_number(const family_values *v, const char *key, double fallback);
bool family_bool(const family_values *v, const char *key);

/* Sizes, heads, rotary embedding, router, shared expert, leading dense layers: all but what the families differ in (width of experts and
 * of dense layers, QK-norm, clip). head_dim null is hidden_size / num_attention_heads, num_key_value_heads null is
 * num_attention_heads. moe_layer[] is set from num_experts and first_k_dense_replace. Refuses what is not computed. */
moe_err family_fill(model_spec *out, const char *model_type, const family_values *v) MOE_MUST_CHECK;

/* Layers with a dense feed-forward instead of experts, by decoder_sparse_step and mlp_only_layers (Qwen2-MoE, Qwen3-MoE). */
moe_err family_sparse_layers(model_spec *m, const family_values *v) MOE_MUST_CHECK;
/* Latent attention (DeepSeek): kv_lora_rank, q_lora_rank and the widths of heads, instead of head_dim and num_key_value_heads. */
moe_err family_latent(model_spec *m, const family_values *v) MOE_MUST_CHECK;
#define FAMILY_LATENT_SERVED "the gradients of latent attention (kv_lora_rank) are not computed"
/* n_shared_experts side by side are one of their width together. Needs F. */
moe_err family_shared_experts(model_spec *m, const family_values *v) MOE_MUST_CHECK;
/* A model without experts: every layer has a feed-forward of intermediate_size. */
moe_err family_dense(model_spec *m, const family_values *v) MOE_MUST_CHECK;

/* The members of rope_parameters (rope_scaling in transformers 4) in config.json, one key each. */
#define FAMILY_ROPE_KEYS(theta)                                                                                                      \
    {"rope_theta", MODEL_NUMBER, theta, "base of the rotary embedding"},                                                             \
    {"rope_type", MODEL_STRING, "default", "scaling of its frequencies: default (none), linear, llama3 or yarn"},                    \
    {"rope_factor", MODEL_NUMBER, "1.0", "linear, llama3, yarn: long wavelengths are divided by it"},                                \
    {"rope_low_freq_factor", MODEL_NUMBER, "1.0", "llama3: wavelengths over original positions / this are long"},                    \
    {"rope_high_freq_factor", MODEL_NUMBER, "4.0", "llama3: wavelengths under original positions / this stay"},                      \
    {"rope_original_max_position_embeddings", MODEL_INT, "null", "llama3, yarn: positions before scaling; null: max_position_embeddings"}, \
    {"rope_beta_fast", MODEL_NUMBER, "null", "yarn: what turns more often over the original positions stays; null: 32"},             \
    {"rope_beta_slow", MODEL_NUMBER, "null", "yarn: what turns less often is divided by the factor; null: 1"},                       \
    {"rope_truncate", MODEL_BOOL, "true", "yarn: the range between both begins and ends at whole dimensions"},                       \
    {"rope_attention_factor", MODEL_NUMBER, "null", "yarn: factor on cosines and sines; null: by the factor and the next two"},      \
    {"rope_mscale", MODEL_NUMBER, "null", "yarn: with rope_mscale_all_dim, for the attention factor"},                               \
    {"rope_mscale_all_dim", MODEL_NUMBER, "null", "yarn: the same; DeepSeek scales its scores by it too"}

enum { FAMILY_EXTENSIONS = 9 }; /* keys of FAMILY_EXTENSION_KEYS */

/* Names as in the configs of Qwen2-MoE (shared expert) and DeepSeek-V3 (the rest), where they have one. */
#define FAMILY_EXTENSION_KEYS                                                                                                        \
    {"shared_expert_intermediate_size", MODEL_INT, "0", "width of the shared expert; 0: none"},                                      \
    {"shared_expert_gate", MODEL_BOOL, "false", "multiply the shared expert by sigmoid(x . gate)"},                                  \
    {"first_k_dense_replace", MODEL_INT, "0", "leading layers with a dense feed-forward instead of experts"},                        \
    {"scoring_func", MODEL_STRING, "softmax", "router scores: softmax or sigmoid"},                                                  \
    {"n_group", MODEL_INT, "1", "groups of experts; a token uses only its best topk_group groups"},                                  \
    {"topk_group", MODEL_INT, "1", "groups a token may use"},                                                                        \
    {"routed_scaling_factor", MODEL_NUMBER, "1.0", "factor on the weights of the routed experts"},                                   \
    {"topk_before_softmax", MODEL_BOOL, "false", "choose experts first, softmax over the chosen logits (Mixtral)"},                  \
    {"use_correction_bias", MODEL_BOOL, "false", "bias on the scores for the choice only (balance without an auxiliary loss)"}

extern const model_family family_qwen3_moe;
extern const model_family family_olmoe;
extern const model_family family_qwen2_moe;
extern const model_family family_mixtral;
extern const model_family family_glm4_moe;
extern const model_family family_gpt_oss;
extern const model_family family_deepseek_v2;
extern const model_family family_deepseek_v3;
extern const model_family family_kimi_k2;
extern const model_family family_llama;
extern const model_family family_qwen2;
extern const model_family family_qwen3;

#endif
