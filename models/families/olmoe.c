/* OLMoE (model_type olmoe): keys and defaults of transformers 5.23.0's OlmoeConfig, and how they become a spec.
 * Does not know files nor numbers.
 * Threads: pure functions.
 * Rule: intermediate_size is the width of an expert; QK-norm spans the whole projection, so heads must fill hidden_size. */
#include "models/families/common.h"

static const model_key KEYS[] = {
    {"vocab_size", MODEL_INT, "50304", "tokens in the vocabulary"},
    {"hidden_size", MODEL_INT, "2048", "width of the residual stream"},
    {"intermediate_size", MODEL_INT, "2048", "width of an expert"},
    {"num_hidden_layers", MODEL_INT, "16", "decoder layers"},
    {"num_attention_heads", MODEL_INT, "16", "query heads"},
    {"num_key_value_heads", MODEL_INT, "null", "key and value heads; null: num_attention_heads"},
    {"head_dim", MODEL_INT, "null", "width of a head; null (or the same number): hidden_size / num_attention_heads"},
    {"hidden_act", MODEL_STRING, "silu", "activation of the feed-forward; only silu"},
    {"max_position_embeddings", MODEL_INT, "4096", "longest sequence the model is meant for, in tokens"},
    {"initializer_range", MODEL_NUMBER, "0.02", "standard deviation of the initial weights"},
    {"rms_norm_eps", MODEL_NUMBER, "1e-05", "added to the mean square in RMSNorm"},
    {"tie_word_embeddings", MODEL_BOOL, "false", "use the embedding as the output projection"},
    FAMILY_ROPE_KEYS("10000.0"),
    {"attention_bias", MODEL_BOOL, "false", "biases in the attention projections"},
    {"attention_dropout", MODEL_NUMBER, "0.0", "only 0"},
    {"clip_qkv", MODEL_NUMBER, "null", "queries, keys and values are clamped to [-clip, clip] after QK-norm; null: not"},
    {"num_experts_per_tok", MODEL_INT, "8", "experts a token is routed to"},
    {"num_experts", MODEL_INT, "64", "experts per layer"},
    {"norm_topk_prob", MODEL_BOOL, "false", "divide the chosen experts' weights by their sum"},
    {"router_aux_loss_coef", MODEL_NUMBER, "0.01", "coefficient of the load-balancing loss"},
    {"moe_intermediate_size", MODEL_INT, "null", "width of an expert beside dense layers; null: intermediate_size"},
    FAMILY_EXTENSION_KEYS,
};

enum { NKEYS = sizeof KEYS / sizeof *KEYS };

static moe_err build(model_spec *m, const model_value *values)
{
    const family_values v = {KEYS, NKEYS, values};
    TRY(family_fill(m, "olmoe", &v));
    TRY(family_int(&v, "intermediate_size", 0, &m->F_dense));
    TRY(family_int(&v, "moe_intermediate_size", m->F_dense, &m->F));
    if (m->F != m->F_dense && m->moe_layer[0])
        return moe_fail(MOE_E_CONFIG,
                        "moe_intermediate_size is %d but intermediate_size, the width of an OLMoE expert, is %d: expected the "
                        "same number (they differ only beside dense layers, first_k_dense_replace)",
                        m->F, m->F_dense);
    const model_value *clip = family_get(&v, "clip_qkv");
    if (!clip->null && !(clip->number > 0))
        return moe_fail(MOE_E_CONFIG, "clip_qkv is %g: expected a number > 0, or null", clip->number);
    m->clip_qkv = (float)family_number(&v, "clip_qkv", 0);
    m->qk_norm = QK_NORM_FULL;
    TRY(spec_validate(m));
    if (m->H * m->hd != m->D)
        return moe_fail(MOE_E_CONFIG,
                        "%d heads of %d do not fill hidden_size (%d): OLMoE normalises queries over the whole of it", m->H, m->hd,
                        m->D);
    return MOE_OK;
}

const model_family family_olmoe = {"olmoe", "OlmoeForCausalLM", KEYS, NKEYS, NKEYS - FAMILY_EXTENSIONS - 1 /* moe_intermediate_size */, build, NULL};
