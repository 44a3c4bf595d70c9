/* Mixtral (model_type mixtral): keys and defaults of transformers 5.23.0's MixtralConfig, and how they become a spec.
 * Does not know files nor numbers.
 * Threads: pure functions.
 * Rule: the weights of the chosen experts are softmax scores divided by their sum, which is the softmax over the chosen logits. */
#include "models/families/common.h"

static const model_key KEYS[] = {
    {"vocab_size", MODEL_INT, "32000", "tokens in the vocabulary"},
    {"hidden_size", MODEL_INT, "4096", "width of the residual stream"},
    {"intermediate_size", MODEL_INT, "14336", "width of an expert"},
    {"num_hidden_layers", MODEL_INT, "32", "decoder layers"},
    {"num_attention_heads", MODEL_INT, "32", "query heads"},
    {"num_key_value_heads", MODEL_INT, "8", "key and value heads; null: num_attention_heads"},
    {"head_dim", MODEL_INT, "null", "width of a head; null: hidden_size / num_attention_heads"},
    {"hidden_act", MODEL_STRING, "silu", "activation of the feed-forward; only silu"},
    {"max_position_embeddings", MODEL_INT, "131072", "longest sequence the model is meant for, in tokens"},
    {"initializer_range", MODEL_NUMBER, "0.02", "standard deviation of the initial weights"},
    {"rms_norm_eps", MODEL_NUMBER, "1e-5", "added to the mean square in RMSNorm"},
    {"tie_word_embeddings", MODEL_BOOL, "false", "use the embedding as the output projection"},
    FAMILY_ROPE_KEYS("1000000.0"),
    {"attention_dropout", MODEL_NUMBER, "0.0", "only 0"},
    {"sliding_window", MODEL_INT, "null", "tokens attention looks back; only null"},
    {"num_experts_per_tok", MODEL_INT, "2", "experts a token is routed to"},
    {"num_experts", MODEL_INT, "8", "experts per layer"},
    {"router_aux_loss_coef", MODEL_NUMBER, "0.001", "coefficient of the load-balancing loss"},
    {"router_jitter_noise", MODEL_NUMBER, "0.0", "only 0"},
};

enum { NKEYS = sizeof KEYS / sizeof *KEYS };

static moe_err build(model_spec *m, const model_value *values)
{
    const family_values v = {KEYS, NKEYS, values};
    TRY(family_fill(m, "mixtral", &v));
    TRY(family_int(&v, "intermediate_size", 0, &m->F));
    m->names = NAMES_MIXTRAL;
    m->router.normalize = true;
    if (!family_get(&v, "sliding_window")->null)
        return moe_fail(MOE_E_CONFIG, "sliding_window is %lld: attention over a sliding window is not computed, expected null",
                        (long long)family_get(&v, "sliding_window")->integer);
    if (family_number(&v, "router_jitter_noise", 0) != 0)
        return moe_fail(MOE_E_CONFIG, "router_jitter_noise is %g: noise in the router is not computed, expected 0",
                        family_number(&v, "router_jitter_noise", 0));
    return spec_validate(m);
}

const model_family family_mixtral = {"mixtral", "MixtralForCausalLM", KEYS, NKEYS, NKEYS, build, NULL};
