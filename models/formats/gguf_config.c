/* Owns the reading of a GGUF file's metadata: the keys of an architecture -> the text of a config.json. What that means is the families' (families/).
 * Does not know where tensors lie (model_gguf.c).
 * Threads: one.
 * Rule: a key of the architecture that is not in the tables here is refused: it could change the numbers. */
#include "models/formats/gguf_config.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "models/family.h"
#include "models/formats/model_private.h"

static const gguf_architecture ARCHITECTURES[] = {
    {.name = "llama", .model_type = "llama", .routed_type = "mixtral", .interleaved = true},
    {.name = "qwen2", .model_type = "qwen2"},
    {.name = "qwen3", .model_type = "qwen3"},
    {.name = "olmoe", .model_type = "olmoe"},
    {.name = "qwen2moe", .model_type = "qwen2_moe"},
    {.name = "qwen3moe", .model_type = "qwen3_moe", .normalize = true},
    {.name = "glm4moe", .model_type = "glm4_moe", .sigmoid = true, .post_norm = true},
    {.name = "deepseek2", .model_type = "deepseek_v2", .sigmoid_type = "deepseek_v3", .latent = true},
    {.name = "gpt-oss", .model_type = "gpt_oss", .post_norm = true, .untruncated = true},
};

enum {
    NARCHITECTURES = sizeof ARCHITECTURES / sizeof *ARCHITECTURES,
    MAX_FREQUENCIES = 1024 /* of rope_freqs.weight */,
    SIGMOID = 2            /* expert_gating_func; 1: softmax */
};

/* Keys behind "<architecture>." under the name of config.json. */
static const struct {
    const char *key, *name;
    model_value_kind kind;
    bool required; /* of expert_...: in a model with experts */
} KEYS[] = {
    {"embedding_length", "hidden_size", MODEL_INT, true},
    {"context_length", "max_position_embeddings", MODEL_INT, true},
    {"attention.head_count", "num_attention_heads", MODEL_INT, true},
    {"attention.head_count_kv", "num_key_value_heads", MODEL_INT, false},
    {"attention.key_length", "head_dim", MODEL_INT, false},
    {"attention.kv_lora_rank", "kv_lora_rank", MODEL_INT, false},
    {"attention.q_lora_rank", "q_lora_rank", MODEL_INT, false},
    {"feed_forward_length", "intermediate_size", MODEL_INT, false},
    {"expert_count", "num_experts", MODEL_INT, false},
    {"expert_used_count", "num_experts_per_tok", MODEL_INT, true},
    {"expert_feed_forward_length", "moe_intermediate_size", MODEL_INT, false},
    {"expert_shared_count", "n_shared_experts", MODEL_INT, false},
    {"expert_shared_feed_forward_length", "shared_expert_intermediate_size", MODEL_INT, false},
    {"expert_group_count", "n_group", MODEL_INT, false},
    {"expert_group_used_count", "topk_group", MODEL_INT, false},
    {"leading_dense_block_count", "first_k_dense_replace", MODEL_INT, false},
    {"attention.layer_norm_rms_epsilon", "rms_norm_eps", MODEL_NUMBER, true},
    {"attention.sliding_window", "sliding_window", MODEL_INT, false},
    {"attention.clamp_kqv", "clip_qkv", MODEL_NUMBER, false},
    {"expert_weights_norm", "norm_topk_prob", MODEL_BOOL, false},
    {"expert_weights_scale", "routed_scaling_factor", MODEL_NUMBER, false},
};

enum { NKEYS = sizeof KEYS / sizeof *KEYS };

/* Keys that are read elsewhere here, or say nothing that changes a number. */
static const char *const OTHER_KEYS[] = {
    "rope.freq_base",     "rope.scaling.type",      "rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.finetuned",
    "rope.dimension_count", "attention.value_length", "vocab_size",        "expert_gating_func",                   "rope.scale_linear",
    "block_count",        "nextn_predict_layers",   "rope.scaling.yarn_ext_factor", "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow", "rope.scaling.yarn_log_multiplier",
    "attention.key_length_mla", "attention.value_length_mla",
};

/* The metadata being read. */
typedef struct opening {
    const model *m; /* its files */
    const gguf *g;
    const gguf_architecture *arch;
    const model_family *family;
    text_buf *json;
    int64_t experts;
    bool sigmoid; /* the router's scores */
} opening;

/* "<architecture>.<key>". */
static const char *full_key(const opening *o, const char *key, char out[96])
{
    snprintf(out, 96, "%s.%s", o->arch->name, key);
    return out;
}

static bool has_key(const opening *o, const char *key)
{
    char full[96];
    return gguf_find(o->g, full_key(o, key, full)) != NULL;
}

static moe_err find_architecture(opening *o)
{
    const char *name;
    char full[96];
    size_t n;
    TRY(gguf_get_string(o->g, "general.architecture", &name, &n));
    for (int i = 0; i < NARCHITECTURES; i++)
        if (strlen(ARCHITECTURES[i].name) == n && memcmp(ARCHITECTURES[i].name, name, n) == 0)
            o->arch = &ARCHITECTURES[i];
    if (o->arch == NULL)
        return moe_fail(MOE_E_CONFIG, "%s: general.architecture is \"%.*s\": llama, qwen2, qwen3, olmoe, qwen2moe, qwen3moe, glm4moe, deepseek2 and gpt-oss are computed",
                        gguf_path(o->g, 0), n < 64 ? (int)n : 64, name);
    if (has_key(o, "expert_count"))
        TRY(gguf_get_int(o->g, full_key(o, "expert_count", full), 0, INT32_MAX, &o->experts));
    const char *type = o->experts > 0 && o->arch->routed_type != NULL ? o->arch->routed_type : o->arch->model_type;
    o->sigmoid = o->arch->sigmoid;
    if (o->arch->sigmoid_type != NULL && has_key(o, "expert_gating_func")) {
        int64_t gate;
        TRY(gguf_get_int(o->g, full_key(o, "expert_gating_func", full), 1, 2, &gate));
        o->sigmoid = gate == SIGMOID;
        type = o->sigmoid ? o->arch->sigmoid_type : type;
    }
    o->family = model_family_find(type);
    return MOE_OK;
}

static bool family_has(const opening *o, const char *name)
{
    for (int i = 0; i < o->family->nkeys; i++)
        if (strcmp(o->family->keys[i].name, name) == 0)
            return true;
    return false;
}

static void add(opening *o, const char *name, const char *fmt, ...) MOE_PRINTF(3, 4);

static void add(opening *o, const char *name, const char *fmt, ...)
{
    va_list ap;
    text_printf(o->json, ",\n  \"%s\": ", name);
    va_start(ap, fmt);
    text_vprintf(o->json, fmt, ap);
    va_end(ap);
}

/* The shortest decimal that is this number as the file has it: 1e-06 for the float32, not 9.999999974752427e-07. */
static void shortest(double x, char out[TEXT_NUMBER])
{
    text_double(out, x);
    for (int digits = 1; digits <= 9 && (double)(float)x == x; digits++) {
        snprintf(out, TEXT_NUMBER, "%.*g", digits, x);
        if (strtof(out, NULL) == (float)x)
            break;
    }
}

static moe_err number_text(const opening *o, const char *key, char out[TEXT_NUMBER])
{
    char full[96];
    double x;
    TRY(gguf_get_number(o->g, full_key(o, key, full), &x));
    shortest(x, out);
    return MOE_OK;
}

/* Keys that must agree with what is computed anyway. */
static moe_err check_key(const opening *o, const char *key, int64_t expected)
{
    char full[96];
    int64_t x;
    return has_key(o, key) ? gguf_get_int(o->g, full_key(o, key, full), expected, expected, &x) : MOE_OK;
}

/* Keys that mean something else beside latent attention (add_latent_heads). */
static bool is_of_heads(const char *name) { return strcmp(name, "head_dim") == 0 || strcmp(name, "num_key_value_heads") == 0; }

static moe_err add_key(opening *o, int i)
{
    char full[96], number[TEXT_NUMBER];
    int64_t whole;
    bool flag;
    if ((!has_key(o, KEYS[i].key) && !KEYS[i].required) || (o->arch->latent && is_of_heads(KEYS[i].name)))
        return MOE_OK;
    full_key(o, KEYS[i].key, full);
    if (!family_has(o, KEYS[i].name) && strcmp(KEYS[i].name, "moe_intermediate_size") == 0) { /* the same as intermediate_size */
        TRY(gguf_get_int(o->g, full_key(o, "feed_forward_length", full), 0, INT32_MAX, &whole));
        return check_key(o, KEYS[i].key, whole);
    }
    if (!family_has(o, KEYS[i].name))
        return moe_fail(MOE_E_CONFIG, "%s: key %s: a %s model has no %s", gguf_path(o->g, 0), full, o->family->model_type, KEYS[i].name);
    if (KEYS[i].kind == MODEL_INT) {
        TRY(gguf_get_int(o->g, full, 0, INT32_MAX, &whole));
        add(o, KEYS[i].name, "%lld", (long long)whole);
    } else if (KEYS[i].kind == MODEL_NUMBER) {
        TRY(number_text(o, KEYS[i].key, number));
        add(o, KEYS[i].name, "%s", number);
    } else {
        TRY(gguf_get_bool(o->g, full, &flag));
        add(o, KEYS[i].name, "%s", flag ? "true" : "false");
    }
    return MOE_OK;
}

/* The factors of rope_freqs.weight: each inverse frequency is divided by its own. */
static moe_err read_factors(const opening *o, const gguf_tensor *t, int64_t n, float factors[MAX_FREQUENCIES])
{
    if (t->format != NUM_F32 || n > MAX_FREQUENCIES || t->dims != 1 || t->shape[0] != n)
        return moe_fail(MOE_E_DATA, "%s: rope_freqs.weight has %lld numbers in %s: expected %lld (at most %d) in f32", gguf_path(o->g, t->file),
                        (long long)t->shape[0], numfmt_about(t->format)->name, (long long)n, (int)MAX_FREQUENCIES);
    return model_read(o->m, t->file, t->begin, factors, (size_t)n * sizeof *factors);
}

/* Are these the factors that the rule of Llama 3 gives? */
static bool is_llama3(const model_spec *rule, const float *factors)
{
    float plain[MAX_FREQUENCIES], scaled[MAX_FREQUENCIES];
    model_spec unscaled = *rule;
    unscaled.rope.type = ROPE_DEFAULT;
    spec_rope_frequencies(&unscaled, plain);
    spec_rope_frequencies(rule, scaled);
    for (int i = 0; i < rule->rotary / 2; i++)
        if (!(fabsf(scaled[i] * factors[i] - plain[i]) <= 1e-5f * plain[i]))
            return false;
    return true;
}

/* Llama 3.1 and later: llama.cpp keeps the outcome of rope_type "llama3", a factor for each frequency, and not its parameters. They are found again:
 * the largest factor is `factor`; low_freq_factor and high_freq_factor are 1 and 4 in all published models; the original positions are a power of two. */
static moe_err add_factors(opening *o, const gguf_tensor *t, int64_t rotary, double theta)
{
    float factors[MAX_FREQUENCIES];
    char number[TEXT_NUMBER];
    TRY(read_factors(o, t, rotary / 2, factors));
    model_spec rule = {.rotary = (int)rotary, .rope_theta = theta, .rope = {.type = ROPE_LLAMA3, .factor = 1, .low_freq_factor = 1, .high_freq_factor = 4,
                       .original_positions = 16}};
    for (int64_t i = 0; i < rotary / 2; i++)
        if (factors[i] > rule.rope.factor)
            rule.rope.factor = factors[i];
    while (rule.rope.original_positions < 1 << 24 && !is_llama3(&rule, factors))
        rule.rope.original_positions *= 2;
    if (rule.rope.original_positions == 1 << 24)
        return moe_fail(MOE_E_CONFIG, "%s: rope_freqs.weight is not what rope_type llama3 gives (low_freq_factor 1, high_freq_factor 4): other factors for each "
                        "frequency are not computed", gguf_path(o->g, t->file));
    shortest(rule.rope.factor, number);
    text_printf(o->json, ", \"rope_type\": \"llama3\", \"factor\": %s, \"low_freq_factor\": 1.0, \"high_freq_factor\": 4.0", number);
    text_printf(o->json, ", \"original_max_position_embeddings\": %d", rule.rope.original_positions);
    return MOE_OK;
}

static moe_err add_member(opening *o, const char *key, const char *name)
{
    char number[TEXT_NUMBER];
    if (!has_key(o, key))
        return MOE_OK;
    TRY(number_text(o, key, number));
    text_printf(o->json, ", \"%s\": %s", name, number);
    return MOE_OK;
}

/* DeepSeek's mscale is its mscale_all_dim in all models that llama.cpp converts; it keeps a tenth of the latter. */
static moe_err add_yarn(opening *o)
{
    char number[TEXT_NUMBER], full[96];
    int64_t positions;
    double extrapolated = 1, tenth;
    TRY(number_text(o, "rope.scaling.factor", number));
    TRY(gguf_get_int(o->g, full_key(o, "rope.scaling.original_context_length", full), 1, INT32_MAX, &positions));
    text_printf(o->json, ", \"rope_type\": \"yarn\", \"factor\": %s, \"original_max_position_embeddings\": %lld", number, (long long)positions);
    text_printf(o->json, ", \"truncate\": %s", o->arch->untruncated ? "false" : "true");
    TRY(add_member(o, "rope.scaling.yarn_beta_fast", "beta_fast"));
    TRY(add_member(o, "rope.scaling.yarn_beta_slow", "beta_slow"));
    TRY(add_member(o, "rope.scaling.yarn_attn_factor", "attention_factor"));
    if (has_key(o, "rope.scaling.yarn_ext_factor"))
        TRY(gguf_get_number(o->g, full_key(o, "rope.scaling.yarn_ext_factor", full), &extrapolated));
    if (extrapolated != 1)
        return moe_fail(MOE_E_CONFIG, "%s: key %s is %g: only 1 is computed", gguf_path(o->g, 0),
                        full_key(o, "rope.scaling.yarn_ext_factor", full), extrapolated);
    if (!has_key(o, "rope.scaling.yarn_log_multiplier"))
        return MOE_OK;
    TRY(gguf_get_number(o->g, full_key(o, "rope.scaling.yarn_log_multiplier", full), &tenth));
    shortest(tenth, number);
    shortest((double)(float)(10 * strtod(number, NULL)), number);
    text_printf(o->json, ", \"mscale\": %s, \"mscale_all_dim\": %s", number, number);
    return MOE_OK;
}

/* rotary: floats of a head of hd that turn. */
static moe_err add_rope(opening *o, int64_t hd, int64_t rotary)
{
    const gguf_tensor *factors = gguf_tensor_find(o->g, GGUF_ROPE_FACTORS);
    char number[TEXT_NUMBER] = "10000.0", full[96];
    const char *type = has_key(o, "rope.scaling.factor") ? "linear" : "none", *linear = NULL; /* without a word on it, as llama.cpp */
    double part = (double)rotary / (double)hd;
    size_t n = strlen(type);
    if (has_key(o, "rope.freq_base"))
        TRY(number_text(o, "rope.freq_base", number));
    add(o, "rope_parameters", "{\"rope_theta\": %s", number);
    const double theta = strtod(number, NULL);
    if (family_has(o, "partial_rotary_factor")) {
        part = (int64_t)((double)hd * part) == rotary ? part : nextafter(part, 1.0);
        text_double(number, part);
        text_printf(o->json, ", \"partial_rotary_factor\": %s", number);
    }
    if (has_key(o, "rope.scaling.type"))
        TRY(gguf_get_string(o->g, full_key(o, "rope.scaling.type", full), &type, &n));
    const bool yarn = n == 4 && memcmp(type, "yarn", n) == 0;
    if (n == 6 && memcmp(type, "linear", n) == 0)
        linear = "rope.scaling.factor";
    else if (!yarn && (n != 4 || memcmp(type, "none", n) != 0))
        return moe_fail(MOE_E_CONFIG, "%s: key %s.rope.scaling.type is \"%.*s\": none, linear and yarn are computed", gguf_path(o->g, 0), o->arch->name,
                        n < 64 ? (int)n : 64, type);
    else if (!yarn && has_key(o, "rope.scale_linear"))
        linear = "rope.scale_linear";
    if ((linear != NULL || yarn) && factors != NULL)
        return moe_fail(MOE_E_CONFIG, "%s: key %s.%s and tensor rope_freqs.weight at once are not computed", gguf_path(o->g, 0), o->arch->name,
                        yarn ? "rope.scaling.type" : linear);
    if (yarn)
        TRY(add_yarn(o));
    if (linear != NULL) {
        TRY(number_text(o, linear, number));
        text_printf(o->json, ", \"rope_type\": \"linear\", \"factor\": %s", number);
    }
    if (factors != NULL)
        TRY(add_factors(o, factors, rotary, theta));
    else if (!yarn && linear == NULL) /* gpt_oss has another default */
        text_add(o->json, ", \"rope_type\": \"default\"");
    text_add(o->json, "}");
    return MOE_OK;
}

/* head_dim, and how much of it turns. */
static moe_err add_heads(opening *o)
{
    char full[96];
    int64_t heads, width, hd, rotary;
    TRY(gguf_get_int(o->g, full_key(o, "attention.head_count", full), 1, INT32_MAX, &heads));
    TRY(gguf_get_int(o->g, full_key(o, "embedding_length", full), 1, INT32_MAX, &width));
    hd = width / heads;
    if (has_key(o, "attention.key_length"))
        TRY(gguf_get_int(o->g, full_key(o, "attention.key_length", full), 1, INT32_MAX, &hd));
    if (hd < 1)
        return moe_fail(MOE_E_CONFIG, "%s: key %s is %lld: more heads than %lld, the numbers of a token", gguf_path(o->g, 0),
                        full_key(o, "attention.head_count", full), (long long)heads, (long long)width);
    TRY(check_key(o, "attention.value_length", hd));
    rotary = hd;
    if (!family_has(o, "partial_rotary_factor"))
        TRY(check_key(o, "rope.dimension_count", hd));
    else if (has_key(o, "rope.dimension_count"))
        TRY(gguf_get_int(o->g, full_key(o, "rope.dimension_count", full), 1, hd, &rotary));
    if (!has_key(o, "attention.head_count_kv") && family_has(o, "num_key_value_heads"))
        add(o, "num_key_value_heads", "%lld", (long long)heads);
    if (!has_key(o, "attention.key_length") && family_has(o, "head_dim"))
        add(o, "head_dim", "%lld", (long long)hd);
    return add_rope(o, hd, rotary);
}

/* Since 2025 attention.key_length is of the one key that all heads read, and .._mla of a head; before, the former was of a head. */
static moe_err add_latent_heads(opening *o)
{
    char full[96];
    int64_t heads, rank, key, value, rope, kept;
    const bool apart = has_key(o, "attention.key_length_mla");
    TRY(gguf_get_int(o->g, full_key(o, "attention.head_count", full), 1, INT32_MAX, &heads));
    TRY(gguf_get_int(o->g, full_key(o, "attention.kv_lora_rank", full), 1, INT32_MAX, &rank));
    TRY(gguf_get_int(o->g, full_key(o, apart ? "attention.key_length_mla" : "attention.key_length", full), 1, INT32_MAX, &key));
    TRY(gguf_get_int(o->g, full_key(o, apart ? "attention.value_length_mla" : "attention.value_length", full), 1, INT32_MAX, &value));
    TRY(gguf_get_int(o->g, full_key(o, "rope.dimension_count", full), 1, key, &rope));
    if (apart) {
        TRY(check_key(o, "attention.key_length", rank + rope));
        TRY(check_key(o, "attention.value_length", rank));
    }
    if (has_key(o, "attention.head_count_kv"))
        TRY(gguf_get_int(o->g, full_key(o, "attention.head_count_kv", full), 1, heads, &kept));
    if (!has_key(o, "attention.q_lora_rank"))
        add(o, "q_lora_rank", "null");
    add(o, "qk_rope_head_dim", "%lld", (long long)rope);
    add(o, "qk_nope_head_dim", "%lld", (long long)(key - rope));
    add(o, "v_head_dim", "%lld", (long long)value);
    return add_rope(o, rope, rope);
}

/* DeepSeek-V2 with groups; transformers' greedy choice does not look at them. */
static moe_err add_groups(opening *o)
{
    char full[96];
    int64_t groups = 1;
    if (!family_has(o, "topk_method") || o->sigmoid || !has_key(o, "expert_group_count"))
        return MOE_OK;
    TRY(gguf_get_int(o->g, full_key(o, "expert_group_count", full), 1, INT32_MAX, &groups));
    add(o, "topk_method", "\"%s\"", groups > 1 ? "group_limited_greedy" : "greedy");
    return MOE_OK;
}

/* Layers that predict further tokens are the last blocks of the file; they come after the logits. */
static moe_err add_layers(opening *o)
{
    char full[96];
    int64_t blocks, beyond = 0;
    TRY(gguf_get_int(o->g, full_key(o, "block_count", full), 1, INT32_MAX, &blocks));
    if (has_key(o, "nextn_predict_layers"))
        TRY(gguf_get_int(o->g, full_key(o, "nextn_predict_layers", full), 0, blocks - 1, &beyond));
    add(o, "num_hidden_layers", "%lld", (long long)(blocks - beyond));
    if (o->experts > 0 && family_has(o, "first_k_dense_replace") && !has_key(o, "leading_dense_block_count"))
        add(o, "first_k_dense_replace", "0");
    return MOE_OK;
}

static void add_whether(opening *o, const char *name, bool x)
{
    if (family_has(o, name))
        add(o, name, "%s", x ? "true" : "false");
}

/* What the metadata says in other words than config.json. */
static moe_err add_derived(opening *o)
{
    const gguf_tensor *embed = gguf_tensor_find(o->g, "token_embd.weight");
    if (embed == NULL)
        return moe_fail(MOE_E_DATA, "%s: tensor token_embd.weight is missing", gguf_path(o->g, 0));
    TRY(check_key(o, "vocab_size", embed->shape[1]));
    TRY(check_key(o, "expert_gating_func", o->sigmoid ? SIGMOID : 1));
    add(o, "vocab_size", "%lld", (long long)embed->shape[1]);
    add_whether(o, "tie_word_embeddings", gguf_tensor_find(o->g, "output.weight") == NULL);
    add_whether(o, "attention_bias", gguf_tensor_find(o->g, "blk.0.attn_q.bias") != NULL);
    add_whether(o, "qkv_bias", gguf_tensor_find(o->g, "blk.0.attn_q.bias") != NULL);
    add_whether(o, "use_qk_norm", gguf_tensor_find(o->g, "blk.0.attn_q_norm.weight") != NULL);
    if (!has_key(o, "expert_weights_norm"))
        add_whether(o, "norm_topk_prob", o->arch->normalize);
    TRY(add_layers(o));
    TRY(add_groups(o));
    return o->arch->latent ? add_latent_heads(o) : add_heads(o);
}

static bool is_known_key(const opening *o, const char *key)
{
    if (strcmp(key, "attention.sliding_window") == 0)
        return family_has(o, "sliding_attention_layers");
    for (int i = 0; i < NKEYS; i++)
        if (strcmp(KEYS[i].key, key) == 0)
            return true;
    for (size_t i = 0; i < sizeof OTHER_KEYS / sizeof *OTHER_KEYS; i++)
        if (strcmp(OTHER_KEYS[i], key) == 0)
            return true;
    return false;
}

static moe_err check_keys(const opening *o)
{
    const size_t n = strlen(o->arch->name);
    for (int64_t i = 0; i < gguf_keys(o->g); i++) {
        const char *key = gguf_key(o->g, i)->key;
        if (strncmp(key, o->arch->name, n) == 0 && key[n] == '.' && !is_known_key(o, key + n + 1))
            return moe_fail(MOE_E_CONFIG, "%s: key %s is not known for %s and might change the numbers", gguf_path(o->g, 0), key, o->arch->name);
    }
    return MOE_OK;
}

moe_err gguf_config(text_buf *json, const gguf_architecture **arch, const model *m, const gguf *g)
{
    opening o = {.m = m, .g = g, .json = json};
    TRY(find_architecture(&o));
    TRY(check_keys(&o));
    text_printf(json, "{\n  \"model_type\": \"%s\"", o.family->model_type);
    for (int i = 0; i < NKEYS; i++)
        if (o.experts > 0 || (strncmp(KEYS[i].key, "expert_", 7) != 0 && strncmp(KEYS[i].key, "leading_", 8) != 0))
            TRY(add_key(&o, i));
    TRY(add_derived(&o));
    text_add(json, "\n}\n");
    *arch = o.arch;
    return MOE_OK;
}
