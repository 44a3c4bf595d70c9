/* DeepSeek V3 and R1 (model_type deepseek_v3) and Kimi K2 (kimi_k2, the same code): keys and defaults of transformers 5.23.0's DeepseekV3Config,
 * and how they become a spec. Does not know files nor numbers.
 * Threads: pure functions.
 * Rule: latent attention; sigmoid scores, a correction bias for the choice, groups. */
#include <string.h>

#include "models/families/common.h"

static const model_key KEYS[] = {
    {"vocab_size", MODEL_INT, "129280", "tokens in the vocabulary"},
    {"hidden_size", MODEL_INT, "7168", "width of the residual stream"},
    {"intermediate_size", MODEL_INT, "18432", "width of the feed-forward of dense layers"},
    {"num_hidden_layers", MODEL_INT, "61", "decoder layers"},
    {"num_attention_heads", MODEL_INT, "128", "query heads"},
    {"num_key_value_heads", MODEL_INT, "null", "only num_attention_heads"},
    {"hidden_act", MODEL_STRING, "silu", "activation of the feed-forward; only silu"},
    {"max_position_embeddings", MODEL_INT, "4096", "longest sequence the model is meant for, in tokens"},
    {"initializer_range", MODEL_NUMBER, "0.02", "standard deviation of the initial weights"},
    {"rms_norm_eps", MODEL_NUMBER, "1e-6", "added to the mean square in RMSNorm"},
    {"tie_word_embeddings", MODEL_BOOL, "false", "use the embedding as the output projection"},
    FAMILY_ROPE_KEYS("10000.0"),
    {"attention_bias", MODEL_BOOL, "false", "biases in q_a_proj, kv_a_proj_with_mqa and o_proj"},
    {"attention_dropout", MODEL_NUMBER, "0.0", "only 0"},
    {"kv_lora_rank", MODEL_INT, "512", "numbers that are kept of a position for keys and values, beside qk_rope_head_dim"},
    {"q_lora_rank", MODEL_INT, "1536", "queries are made of so many numbers; null: in one product"},
    {"qk_nope_head_dim", MODEL_INT, "128", "numbers of a head's query and key that do not turn"},
    {"qk_rope_head_dim", MODEL_INT, "64", "numbers that the rotary embedding turns; the key's are shared by all heads"},
    {"v_head_dim", MODEL_INT, "128", "numbers of a head's output"},
    {"head_dim", MODEL_INT, "null", "only qk_rope_head_dim"},
    {"qk_head_dim", MODEL_INT, "null", "only qk_nope_head_dim + qk_rope_head_dim"},
    {"moe_intermediate_size", MODEL_INT, "2048", "width of an expert"},
    {"num_experts_per_tok", MODEL_INT, "8", "experts a token is routed to"},
    {"n_shared_experts", MODEL_INT, "1", "experts that every token uses besides, side by side as one of their width together"},
    {"num_experts", MODEL_INT, "256", "experts per layer (n_routed_experts)"},
    {"first_k_dense_replace", MODEL_INT, "3", "leading layers with a dense feed-forward instead of experts"},
    {"moe_layer_freq", MODEL_INT, "1", "only 1: every layer behind the leading dense ones has experts"},
    {"routed_scaling_factor", MODEL_NUMBER, "2.5", "factor on the weights of the routed experts"},
    {"n_group", MODEL_INT, "8", "groups of experts; a token uses only its best topk_group groups"},
    {"topk_group", MODEL_INT, "4", "groups a token may use"},
    {"norm_topk_prob", MODEL_BOOL, "true", "divide the chosen experts' weights by their sum"},
    {"rope_interleave", MODEL_BOOL, "true", "pairs (2i, 2i+1) turn, not (i, i + qk_rope_head_dim / 2)"},
    {"scoring_func", MODEL_STRING, "sigmoid", "only sigmoid"},
    {"topk_method", MODEL_STRING, "noaux_tc", "only noaux_tc"},
};

enum { NKEYS = sizeof KEYS / sizeof *KEYS };

static moe_err build_as(model_spec *m, const char *model_type, const model_value *values)
{
    const family_values v = {KEYS, NKEYS, values};
    const char *method = family_get(&v, "topk_method")->string;
    int step = 1;
    TRY(family_fill(m, model_type, &v));
    TRY(family_latent(m, &v));
    TRY(family_int(&v, "moe_intermediate_size", 0, &m->F));
    TRY(family_int(&v, "intermediate_size", 0, &m->F_dense));
    TRY(family_int(&v, "moe_layer_freq", 1, &step));
    TRY(family_shared_experts(m, &v));
    if (step != 1)
        return moe_fail(MOE_E_CONFIG, "moe_layer_freq is %d: expected 1", step);
    if (m->router.score != ROUTER_SIGMOID)
        return moe_fail(MOE_E_CONFIG, "scoring_func is \"softmax\": a %s model has \"sigmoid\"", model_type);
    if (strcmp(method, "noaux_tc") != 0)
        return moe_fail(MOE_E_CONFIG, "topk_method is \"%.64s\": a %s model has \"noaux_tc\"", method, model_type);
    m->names = NAMES_DEEPSEEK;
    m->correction_bias = true;
    m->rope_interleave = family_bool(&v, "rope_interleave");
    return spec_validate(m);
}

static moe_err build_deepseek(model_spec *m, const model_value *values) { return build_as(m, "deepseek_v3", values); }
static moe_err build_kimi(model_spec *m, const model_value *values) { return build_as(m, "kimi_k2", values); }

const model_family family_deepseek_v3 = {"deepseek_v3", "DeepseekV3ForCausalLM", KEYS, NKEYS, NKEYS, build_deepseek, FAMILY_LATENT_SERVED};
const model_family family_kimi_k2 = {"kimi_k2", "DeepseekV3ForCausalLM", KEYS, NKEYS, NKEYS, build_kimi, FAMILY_LATENT_SERVED};
