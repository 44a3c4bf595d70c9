/* GLM-4.5 (model_type glm4_moe): keys and defaults of transformers 5.23.0's Glm4MoeConfig, and how they become a spec.
 * Does not know files nor numbers.
 * Threads: pure functions.
 * Rule: the router is DeepSeek-V3's: sigmoid scores, a correction bias for the choice, groups; only a part of each head turns. */
#include "models/families/common.h"

static const model_key KEYS[] = {
    {"vocab_size", MODEL_INT, "151552", "tokens in the vocabulary"},
    {"hidden_size", MODEL_INT, "4096", "width of the residual stream"},
    {"intermediate_size", MODEL_INT, "10944", "width of the feed-forward of dense layers"},
    {"num_hidden_layers", MODEL_INT, "46", "decoder layers"},
    {"num_attention_heads", MODEL_INT, "96", "query heads"},
    {"num_key_value_heads", MODEL_INT, "8", "key and value heads"},
    {"head_dim", MODEL_INT, "null", "width of a head; null: hidden_size / num_attention_heads"},
    {"hidden_act", MODEL_STRING, "silu", "activation of the feed-forward; only silu"},
    {"max_position_embeddings", MODEL_INT, "131072", "longest sequence the model is meant for, in tokens"},
    {"initializer_range", MODEL_NUMBER, "0.02", "standard deviation of the initial weights"},
    {"rms_norm_eps", MODEL_NUMBER, "1e-5", "added to the mean square in RMSNorm"},
    {"tie_word_embeddings", MODEL_BOOL, "false", "use the embedding as the output projection"},
    FAMILY_ROPE_KEYS("10000.0"),
    {"partial_rotary_factor", MODEL_NUMBER, "0.5", "part of a head that the rotary embedding turns, from its first number"},
    {"attention_bias", MODEL_BOOL, "false", "biases in the projections of queries, keys and values"},
    {"attention_dropout", MODEL_NUMBER, "0.0", "only 0"},
    {"use_qk_norm", MODEL_BOOL, "false", "RMSNorm of each query and key head"},
    {"moe_intermediate_size", MODEL_INT, "1408", "width of an expert"},
    {"num_experts_per_tok", MODEL_INT, "8", "experts a token is routed to"},
    {"n_shared_experts", MODEL_INT, "1", "experts that every token uses besides, side by side as one of their width together"},
    {"num_experts", MODEL_INT, "128", "experts per layer (n_routed_experts)"},
    {"routed_scaling_factor", MODEL_NUMBER, "1.0", "factor on the weights of the routed experts"},
    {"n_group", MODEL_INT, "1", "groups of experts; a token uses only its best topk_group groups"},
    {"topk_group", MODEL_INT, "1", "groups a token may use"},
    {"first_k_dense_replace", MODEL_INT, "1", "leading layers with a dense feed-forward instead of experts"},
    {"norm_topk_prob", MODEL_BOOL, "true", "divide the chosen experts' weights by their sum"},
};

enum { NKEYS = sizeof KEYS / sizeof *KEYS };

static moe_err build(model_spec *m, const model_value *values)
{
    const family_values v = {KEYS, NKEYS, values};
    TRY(family_fill(m, "glm4_moe", &v));
    TRY(family_int(&v, "moe_intermediate_size", 0, &m->F));
    TRY(family_int(&v, "intermediate_size", 0, &m->F_dense));
    TRY(family_shared_experts(m, &v));
    m->names = NAMES_DEEPSEEK;
    m->o_bias = false;
    m->qk_norm = family_bool(&v, "use_qk_norm") ? QK_NORM_HEAD : QK_NORM_NONE;
    m->router.score = ROUTER_SIGMOID;
    m->correction_bias = true;
    return spec_validate(m);
}

const model_family family_glm4_moe = {"glm4_moe", "Glm4MoeForCausalLM", KEYS, NKEYS, NKEYS, build, NULL};
