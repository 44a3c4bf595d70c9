/* Qwen2 (model_type qwen2): keys and defaults of transformers 5.23.0's Qwen2Config, and how they become a spec.
 * Does not know files nor numbers.
 * Threads: pure functions.
 * Rule: queries, keys and values have biases, the output projection has none. */
#include "models/families/common.h"

static const model_key KEYS[] = {
    {"vocab_size", MODEL_INT, "151936", "tokens in the vocabulary"},
    {"hidden_size", MODEL_INT, "4096", "width of the residual stream"},
    {"intermediate_size", MODEL_INT, "22016", "width of the feed-forward"},
    {"num_hidden_layers", MODEL_INT, "32", "decoder layers"},
    {"num_attention_heads", MODEL_INT, "32", "query heads"},
    {"num_key_value_heads", MODEL_INT, "32", "key and value heads; null: num_attention_heads"},
    {"head_dim", MODEL_INT, "null", "width of a head; null: hidden_size / num_attention_heads"},
    {"hidden_act", MODEL_STRING, "silu", "activation of the feed-forward; only silu"},
    {"max_position_embeddings", MODEL_INT, "32768", "longest sequence the model is meant for, in tokens"},
    {"initializer_range", MODEL_NUMBER, "0.02", "standard deviation of the initial weights"},
    {"rms_norm_eps", MODEL_NUMBER, "1e-6", "added to the mean square in RMSNorm"},
    {"tie_word_embeddings", MODEL_BOOL, "false", "use the embedding as the output projection"},
    FAMILY_ROPE_KEYS("10000.0"),
    {"attention_dropout", MODEL_NUMBER, "0.0", "only 0"},
    {"use_sliding_window", MODEL_BOOL, "false", "attention over a sliding window; only false"},
    {"sliding_window", MODEL_INT, "4096", "tokens in the window; without effect while use_sliding_window is false"},
};

enum { NKEYS = sizeof KEYS / sizeof *KEYS };

static moe_err build(model_spec *m, const model_value *values)
{
    const family_values v = {KEYS, NKEYS, values};
    TRY(family_fill(m, "qwen2", &v));
    m->qkv_bias = true;
    return family_dense(m, &v);
}

const model_family family_qwen2 = {"qwen2", "Qwen2ForCausalLM", KEYS, NKEYS, NKEYS, build, NULL};
