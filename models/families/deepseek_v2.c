/* DeepSeek V2 and V2-Lite (model_type deepseek_v2): keys and defaults of transformers 5.23.0's DeepseekV2Config, and how they become a spec.
 * Does not know files nor numbers.
 * Threads: pure functions.
 * Rule: latent attention; softmax scores, a group counts as much as its best expert, weights are not normalised. */
#include <string.h>

#include "models/families/common.h"

static const model_key KEYS[] = {
    {"vocab_size", MODEL_INT, "102400", "tokens in the vocabulary"},
    {"hidden_size", MODEL_INT, "4096", "width of the residual stream"},
    {"intermediate_size", MODEL_INT, "11008", "width of the feed-forward of dense layers"},
    {"num_hidden_layers", MODEL_INT, "32", "decoder layers"},
    {"num_attention_heads", MODEL_INT, "32", "query heads"},
    {"num_key_value_heads", MODEL_INT, "null", "only num_attention_heads"},
    {"hidden_act", MODEL_STRING, "silu", "activation of the feed-forward; only silu"},
    {"max_position_embeddings", MODEL_INT, "2048", "longest sequence the model is meant for, in tokens"},
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
    {"moe_intermediate_size", MODEL_INT, "1407", "width of an expert"},
    {"num_experts_per_tok", MODEL_INT, "null", "experts a token is routed to"},
    {"n_shared_experts", MODEL_INT, "2", "experts that every token uses besides, side by side as one of their width together"},
    {"num_experts", MODEL_INT, "64", "experts per layer (n_routed_experts)"},
    {"first_k_dense_replace", MODEL_INT, "0", "leading layers with a dense feed-forward instead of experts"},
    {"moe_layer_freq", MODEL_INT, "1", "only 1: every layer behind the leading dense ones has experts"},
    {"routed_scaling_factor", MODEL_NUMBER, "1.0", "factor on the weights of the routed experts"},
    {"n_group", MODEL_INT, "null", "groups of experts; a token uses only its best topk_group groups"},
    {"topk_group", MODEL_INT, "null", "groups a token may use"},
    {"norm_topk_prob", MODEL_BOOL, "false", "only false: weights are not divided by their sum"},
    {"mlp_bias", MODEL_BOOL, "false", "only false"},
    {"scoring_func", MODEL_STRING, "softmax", "only softmax"},
    {"topk_method", MODEL_STRING, "greedy", "greedy, or group_limited_greedy: n_group and topk_group count"},
};

enum { NKEYS = sizeof KEYS / sizeof *KEYS };

static moe_err take_groups(model_spec *m, const family_values *v)
{
    const char *method = family_get(v, "topk_method")->string;
    if (strcmp(method, "greedy") == 0)
        m->router.groups = m->router.groups_used = 1;
    else if (strcmp(method, "group_limited_greedy") != 0)
        return moe_fail(MOE_E_CONFIG, "topk_method is \"%.64s\": expected \"greedy\" or \"group_limited_greedy\"", method);
    m->router.group_best = true;
    return MOE_OK;
}

static moe_err build(model_spec *m, const model_value *values)
{
    const family_values v = {KEYS, NKEYS, values};
    int step = 1;
    TRY(family_fill(m, "deepseek_v2", &v));
    TRY(family_latent(m, &v));
    TRY(family_int(&v, "moe_intermediate_size", 0, &m->F));
    TRY(family_int(&v, "intermediate_size", 0, &m->F_dense));
    TRY(family_int(&v, "moe_layer_freq", 1, &step));
    TRY(family_shared_experts(m, &v));
    TRY(take_groups(m, &v));
    if (step != 1)
        return moe_fail(MOE_E_CONFIG, "moe_layer_freq is %d: expected 1", step);
    if (m->router.score != ROUTER_SOFTMAX)
        return moe_fail(MOE_E_CONFIG, "scoring_func is \"sigmoid\": a deepseek_v2 model has \"softmax\"");
    if (m->router.normalize)
        return moe_fail(MOE_E_CONFIG, "norm_topk_prob is true: transformers does not normalise in a deepseek_v2 model, expected false");
    m->names = NAMES_DEEPSEEK;
    m->rope_interleave = true;
    return spec_validate(m);
}

const model_family family_deepseek_v2 = {"deepseek_v2", "DeepseekV2ForCausalLM", KEYS, NKEYS, NKEYS, build, FAMILY_LATENT_SERVED};
