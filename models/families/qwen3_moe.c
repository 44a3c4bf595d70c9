/* Qwen3-MoE (model_type qwen3_moe): keys and defaults of transformers 5.23.0's Qwen3MoeConfig, and how they become a spec.
 * Does not know files nor numbers.
 * Threads: pure functions.
 * Rule: a default here is the one of the class, not of a published model. */
#include "models/families/common.h"

static const model_key KEYS[] = {
    {"vocab_size", MODEL_INT, "151936", "tokens in the vocabulary"},
    {"hidden_size", MODEL_INT, "2048", "width of the residual stream"},
    {"intermediate_size", MODEL_INT, "6144", "width of the feed-forward of dense layers"},
    {"num_hidden_layers", MODEL_INT, "24", "decoder layers"},
    {"num_attention_heads", MODEL_INT, "32", "query heads"},
    {"num_key_value_heads", MODEL_INT, "4", "key and value heads"},
    {"head_dim", MODEL_INT, "null", "width of a head; null: hidden_size / num_attention_heads"},
    {"hidden_act", MODEL_STRING, "silu", "activation of the feed-forward; only silu"},
    {"max_position_embeddings", MODEL_INT, "32768", "longest sequence the model is meant for, in tokens"},
    {"initializer_range", MODEL_NUMBER, "0.02", "standard deviation of the initial weights"},
    {"rms_norm_eps", MODEL_NUMBER, "1e-6", "added to the mean square in RMSNorm"},
    {"tie_word_embeddings", MODEL_BOOL, "false", "use the embedding as the output projection"},
    FAMILY_ROPE_KEYS("10000.0"),
    {"attention_bias", MODEL_BOOL, "false", "biases in the attention projections"},
    {"use_sliding_window", MODEL_BOOL, "false", "attention over a sliding window; only false"},
    {"sliding_window", MODEL_INT, "4096", "tokens in the window; without effect while use_sliding_window is false"},
    {"attention_dropout", MODEL_NUMBER, "0.0", "only 0"},
    {"decoder_sparse_step", MODEL_INT, "1", "layer l has experts when (l + 1) is a multiple of it"},
    {"moe_intermediate_size", MODEL_INT, "768", "width of an expert"},
    {"num_experts_per_tok", MODEL_INT, "8", "experts a token is routed to"},
    {"num_experts", MODEL_INT, "128", "experts per layer"},
    {"norm_topk_prob", MODEL_BOOL, "false", "divide the chosen experts' weights by their sum"},
    {"router_aux_loss_coef", MODEL_NUMBER, "0.001", "coefficient of the load-balancing loss"},
    {"mlp_only_layers", MODEL_INTS, "[]", "layers with a dense feed-forward instead of experts"},
    FAMILY_EXTENSION_KEYS,
};

enum { NKEYS = sizeof KEYS / sizeof *KEYS };

static moe_err build(model_spec *m, const model_value *values)
{
    const family_values v = {KEYS, NKEYS, values};
    TRY(family_fill(m, "qwen3_moe", &v));
    TRY(family_int(&v, "moe_intermediate_size", 0, &m->F));
    TRY(family_int(&v, "intermediate_size", 0, &m->F_dense));
    TRY(family_sparse_layers(m, &v));
    m->qk_norm = QK_NORM_HEAD;
    return spec_validate(m);
}

const model_family family_qwen3_moe = {"qwen3_moe", "Qwen3MoeForCausalLM", KEYS, NKEYS, NKEYS - FAMILY_EXTENSIONS, build, NULL};
