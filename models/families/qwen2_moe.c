/* Qwen2-MoE (model_type qwen2_moe): keys and defaults of transformers 5.23.0's Qwen2MoeConfig, and how they become a spec.
 * Does not know files nor numbers.
 * Threads: pure functions.
 * Rule: every MoE layer has a shared expert behind a sigmoid gate. */
#include "models/families/common.h"

static const model_key KEYS[] = {
    {"vocab_size", MODEL_INT, "151936", "tokens in the vocabulary"},
    {"hidden_size", MODEL_INT, "2048", "width of the residual stream"},
    {"intermediate_size", MODEL_INT, "5632", "width of the feed-forward of dense layers"},
    {"num_hidden_layers", MODEL_INT, "24", "decoder layers"},
    {"num_attention_heads", MODEL_INT, "16", "query heads"},
    {"num_key_value_heads", MODEL_INT, "16", "key and value heads; null: num_attention_heads"},
    {"head_dim", MODEL_INT, "null", "width of a head; null: hidden_size / num_attention_heads"},
    {"hidden_act", MODEL_STRING, "silu", "activation of the feed-forward; only silu"},
    {"max_position_embeddings", MODEL_INT, "32768", "longest sequence the model is meant for, in tokens"},
    {"initializer_range", MODEL_NUMBER, "0.02", "standard deviation of the initial weights"},
    {"rms_norm_eps", MODEL_NUMBER, "1e-6", "added to the mean square in RMSNorm"},
    {"tie_word_embeddings", MODEL_BOOL, "false", "use the embedding as the output projection"},
    FAMILY_ROPE_KEYS("10000.0"),
    {"attention_dropout", MODEL_NUMBER, "0.0", "only 0"},
    {"qkv_bias", MODEL_BOOL, "true", "biases in the projections of queries, keys and values"},
    {"use_sliding_window", MODEL_BOOL, "false", "attention over a sliding window; only false"},
    {"sliding_window", MODEL_INT, "4096", "tokens in the window; without effect while use_sliding_window is false"},
    {"decoder_sparse_step", MODEL_INT, "1", "layer l has experts when (l + 1) is a multiple of it"},
    {"moe_intermediate_size", MODEL_INT, "1408", "width of an expert"},
    {"shared_expert_intermediate_size", MODEL_INT, "5632", "width of the shared expert"},
    {"num_experts_per_tok", MODEL_INT, "4", "experts a token is routed to"},
    {"num_experts", MODEL_INT, "60", "experts per layer"},
    {"norm_topk_prob", MODEL_BOOL, "false", "divide the chosen experts' weights by their sum"},
    {"router_aux_loss_coef", MODEL_NUMBER, "0.001", "coefficient of the load-balancing loss"},
    {"mlp_only_layers", MODEL_INTS, "[]", "layers with a dense feed-forward instead of experts"},
};

enum { NKEYS = sizeof KEYS / sizeof *KEYS };

static moe_err build(model_spec *m, const model_value *values)
{
    const family_values v = {KEYS, NKEYS, values};
    TRY(family_fill(m, "qwen2_moe", &v));
    TRY(family_int(&v, "moe_intermediate_size", 0, &m->F));
    TRY(family_int(&v, "intermediate_size", 0, &m->F_dense));
    TRY(family_sparse_layers(m, &v));
    m->qkv_bias = family_bool(&v, "qkv_bias");
    if (m->F_shared < 1 && spec_moe_layers(m) > 0)
        return moe_fail(MOE_E_CONFIG, "shared_expert_intermediate_size is %d: expected a number >= 1", m->F_shared);
    m->shared_gate = m->F_shared > 0;
    return spec_validate(m);
}

const model_family family_qwen2_moe = {"qwen2_moe", "Qwen2MoeForCausalLM", KEYS, NKEYS, NKEYS, build, NULL};
