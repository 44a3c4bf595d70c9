/* gpt-oss (model_type gpt_oss): keys and defaults of transformers 5.23.0's GptOssConfig, and how they become a spec.
 * Does not know files nor numbers.
 * Threads: pure functions.
 * Rule: layers see a window and everything in turn, each head has a sink; the weights of the chosen experts are the softmax over their logits. */
#include "models/families/common.h"

static const model_key KEYS[] = {
    {"vocab_size", MODEL_INT, "201088", "tokens in the vocabulary"},
    {"hidden_size", MODEL_INT, "2880", "width of the residual stream"},
    {"intermediate_size", MODEL_INT, "2880", "width of an expert"},
    {"num_hidden_layers", MODEL_INT, "36", "decoder layers"},
    {"num_attention_heads", MODEL_INT, "64", "query heads"},
    {"num_key_value_heads", MODEL_INT, "8", "key and value heads"},
    {"head_dim", MODEL_INT, "64", "width of a head"},
    {"hidden_act", MODEL_STRING, "silu", "activation of the feed-forward; only silu"},
    {"max_position_embeddings", MODEL_INT, "131072", "longest sequence the model is meant for, in tokens"},
    {"initializer_range", MODEL_NUMBER, "0.02", "standard deviation of the initial weights"},
    {"rms_norm_eps", MODEL_NUMBER, "1e-5", "added to the mean square in RMSNorm"},
    {"tie_word_embeddings", MODEL_BOOL, "false", "use the embedding as the output projection"},
    FAMILY_ROPE_KEYS("150000.0"),
    {"attention_bias", MODEL_BOOL, "true", "biases in the projections of attention"},
    {"attention_dropout", MODEL_NUMBER, "0.0", "only 0"},
    {"sliding_window", MODEL_INT, "128", "tokens that attention looks back in some layers, its own included"},
    {"sliding_attention_layers", MODEL_INTS, "null", "those layers (layer_types); null: every other one, from the first"},
    {"num_experts_per_tok", MODEL_INT, "4", "experts a token is routed to"},
    {"num_experts", MODEL_INT, "128", "experts per layer"},
    {"router_aux_loss_coef", MODEL_NUMBER, "0.001", "coefficient of the load-balancing loss"},
    {"swiglu_alpha", MODEL_NUMBER, "1.702", "factor on the gate inside the sigmoid of the experts' SwiGLU"},
    {"swiglu_limit", MODEL_NUMBER, "7.0", "gate and up are clamped to it"},
};

enum { NKEYS = sizeof KEYS / sizeof *KEYS };

/* Without a word on the rotary embedding in the configuration it is this one. */
static moe_err default_rope(model_spec *m, const family_values *v)
{
    static const char *const members[] = {"rope_factor", "rope_beta_fast", "rope_beta_slow", "rope_truncate", "rope_attention_factor"};
    if (family_get(v, "rope_type")->set)
        return MOE_OK;
    for (size_t i = 0; i < sizeof members / sizeof *members; i++)
        if (family_get(v, members[i])->set)
            return moe_fail(MOE_E_CONFIG, "%s is given without rope_type: expected both, or neither (yarn with a factor of 32)", members[i]);
    m->rope = (rope_scaling){.type = ROPE_YARN, .factor = 32, .low_freq_factor = 1, .high_freq_factor = 4, .original_positions = 4096,
                             .beta_fast = 32, .beta_slow = 1};
    return MOE_OK;
}

static moe_err fill_window(model_spec *m, const family_values *v)
{
    const model_value *layers = family_get(v, "sliding_attention_layers");
    bool any = false;
    TRY(family_int(v, "sliding_window", 0, &m->window));
    if (layers->integer > 0 && layers->integer != m->L)
        return moe_fail(MOE_E_CONFIG, "layer_types has %lld entries: expected one for each of num_hidden_layers (%d)", (long long)layers->integer,
                        m->L);
    for (int l = 0; l < m->L; l++)
        m->windowed[l] = layers->null && l % 2 == 0;
    for (int i = 0; !layers->null && i < layers->nints; i++) {
        if (layers->ints[i] < 0 || layers->ints[i] >= m->L)
            return moe_fail(MOE_E_CONFIG, "sliding_attention_layers names layer %lld: expected 0 to %d", (long long)layers->ints[i], m->L - 1);
        m->windowed[layers->ints[i]] = true;
    }
    for (int l = 0; l < m->L; l++)
        any = any || m->windowed[l];
    if (any && m->window < 1)
        return moe_fail(MOE_E_CONFIG, "sliding_window is %d: expected a number >= 1, for the layers of sliding attention", m->window);
    return MOE_OK;
}

static moe_err build(model_spec *m, const model_value *values)
{
    const family_values v = {KEYS, NKEYS, values};
    TRY(family_fill(m, "gpt_oss", &v));
    TRY(default_rope(m, &v));
    TRY(family_int(&v, "intermediate_size", 0, &m->F));
    TRY(fill_window(m, &v));
    m->names = NAMES_GPT_OSS;
    m->sinks = m->logit_bias = m->expert_bias = true;
    m->router.topk_first = true;
    m->swiglu_alpha = (float)family_number(&v, "swiglu_alpha", 0);
    m->swiglu_limit = (float)family_number(&v, "swiglu_limit", 0);
    if (m->E < 1)
        return moe_fail(MOE_E_CONFIG, "num_experts is %d: expected a number >= 1, a gpt_oss model has experts in every layer", m->E);
    if (!(m->swiglu_limit > 0) || !(m->swiglu_limit < 1e30f))
        return moe_fail(MOE_E_CONFIG, "swiglu_limit is %g: expected a number > 0 and < 1e30", (double)m->swiglu_limit);
    if (!(m->swiglu_alpha > -1e30f && m->swiglu_alpha < 1e30f))
        return moe_fail(MOE_E_CONFIG, "swiglu_alpha is %g: expected a number > -1e30 and < 1e30", (double)m->swiglu_alpha);
    return spec_validate(m);
}

const model_family family_gpt_oss = {
    .model_type = "gpt_oss", .architecture = "GptOssForCausalLM", .keys = KEYS, .nkeys = NKEYS, .class_keys = NKEYS, .build = build,
    .served_only = "the gradients of attention sinks, of a sliding window, of biases of experts and of the clamped SwiGLU are not computed",
};
