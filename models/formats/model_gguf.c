/* Owns the opening of a GGUF file as a model: metadata -> the text of a config.json, tensors by role -> extents.
 * Does not know what a configuration means (families/) nor the file format (gguf.h).
 * Threads: one.
 * Rule: a key of the architecture that is not in the tables here is refused: it could change the numbers. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "models/family.h"
#include "models/formats/gguf.h"
#include "models/formats/hf_private.h"
#include "models/formats/model_private.h"

/* general.architecture -> model_type, and what llama.cpp's graph of that architecture does without a key. */
typedef struct architecture {
    const char *name, *model_type;
    bool interleaved;   /* rows of q and k stand pairwise                         */
    bool normalize;     /* the weights of the chosen experts are divided by their sum */
} architecture;

static const architecture ARCHITECTURES[] = {
    {"llama", "llama", true, false},   {"qwen2", "qwen2", false, false},        {"qwen3", "qwen3", false, false},
    {"olmoe", "olmoe", false, false},  {"qwen3moe", "qwen3_moe", false, true},
};

enum { NARCHITECTURES = sizeof ARCHITECTURES / sizeof *ARCHITECTURES };

/* Keys behind "<architecture>." under the name of config.json. */
static const struct {
    const char *key, *name;
    model_value_kind kind;
    bool required;
} KEYS[] = {
    {"embedding_length", "hidden_size", MODEL_INT, true},
    {"block_count", "num_hidden_layers", MODEL_INT, true},
    {"context_length", "max_position_embeddings", MODEL_INT, true},
    {"attention.head_count", "num_attention_heads", MODEL_INT, true},
    {"attention.head_count_kv", "num_key_value_heads", MODEL_INT, false},
    {"attention.key_length", "head_dim", MODEL_INT, false},
    {"feed_forward_length", "intermediate_size", MODEL_INT, false},
    {"expert_count", "num_experts", MODEL_INT, false},
    {"expert_used_count", "num_experts_per_tok", MODEL_INT, false},
    {"expert_feed_forward_length", "moe_intermediate_size", MODEL_INT, false},
    {"attention.layer_norm_rms_epsilon", "rms_norm_eps", MODEL_NUMBER, true},
    {"attention.clamp_kqv", "clip_qkv", MODEL_NUMBER, false},
    {"expert_weights_norm", "norm_topk_prob", MODEL_BOOL, false},
    {"expert_weights_scale", "routed_scaling_factor", MODEL_NUMBER, false},
};

enum { NKEYS = sizeof KEYS / sizeof *KEYS };

/* Keys that are read elsewhere here, or say nothing that changes a number. */
static const char *const OTHER_KEYS[] = {
    "rope.freq_base",     "rope.scaling.type",      "rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.finetuned",
    "rope.dimension_count", "attention.value_length", "vocab_size",        "expert_gating_func",                   "rope.scale_linear",
};

static const struct {
    tensor_role role;
    const char *name;
} ROLES[] = {
    {ROLE_EMBED, "token_embd.weight"},       {ROLE_ATTN_NORM, "attn_norm.weight"},      {ROLE_Q, "attn_q.weight"},
    {ROLE_K, "attn_k.weight"},               {ROLE_V, "attn_v.weight"},                 {ROLE_Q_BIAS, "attn_q.bias"},
    {ROLE_K_BIAS, "attn_k.bias"},            {ROLE_V_BIAS, "attn_v.bias"},              {ROLE_Q_NORM, "attn_q_norm.weight"},
    {ROLE_K_NORM, "attn_k_norm.weight"},     {ROLE_O, "attn_output.weight"},            {ROLE_O_BIAS, "attn_output.bias"},
    {ROLE_FFN_NORM, "ffn_norm.weight"},      {ROLE_ROUTER, "ffn_gate_inp.weight"},      {ROLE_ROUTER_BIAS, "exp_probs_b.bias"},
    {ROLE_GATE, "ffn_gate.weight"},          {ROLE_UP, "ffn_up.weight"},                {ROLE_DOWN, "ffn_down.weight"},
    {ROLE_SHARED_GATE, "ffn_gate_shexp.weight"}, {ROLE_SHARED_UP, "ffn_up_shexp.weight"}, {ROLE_SHARED_DOWN, "ffn_down_shexp.weight"},
    {ROLE_SHARED_SWITCH, "ffn_gate_inp_shexp.weight"}, {ROLE_FINAL_NORM, "output_norm.weight"}, {ROLE_LM_HEAD, "output.weight"},
};

/* The name of a tensor in the file. */
static void tensor_name(const tensor_info *info, char out[64])
{
    const char *name = "";
    for (size_t i = 0; i < sizeof ROLES / sizeof *ROLES; i++)
        if (ROLES[i].role == info->role)
            name = ROLES[i].name;
    if (info->kind == SECTION_EXPERT)
        snprintf(out, 64, "blk.%d.%s_exps.weight", info->layer,
                 info->role == ROLE_GATE ? "ffn_gate" : info->role == ROLE_UP ? "ffn_up" : "ffn_down");
    else if (info->layer >= 0)
        snprintf(out, 64, "blk.%d.%s", info->layer, name);
    else
        snprintf(out, 64, "%s", name);
}

/* The file being opened. */
typedef struct opening {
    const gguf *g;
    const architecture *arch;
    const model_family *family;
    text_buf json;
    uint8_t *used; /* [gguf_count] the tensor belongs to the spec */
} opening;

static moe_err find_architecture(opening *o)
{
    const char *name;
    size_t n;
    TRY(gguf_get_string(o->g, "general.architecture", &name, &n));
    for (int i = 0; i < NARCHITECTURES; i++)
        if (strlen(ARCHITECTURES[i].name) == n && memcmp(ARCHITECTURES[i].name, name, n) == 0)
            o->arch = &ARCHITECTURES[i];
    if (o->arch == NULL)
        return moe_fail(MOE_E_CONFIG, "%s: general.architecture is \"%.*s\": llama, qwen2, qwen3, olmoe and qwen3moe are computed", gguf_path(o->g, 0),
                        n < 64 ? (int)n : 64, name);
    o->family = model_family_find(o->arch->model_type);
    return MOE_OK;
}

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
    text_printf(&o->json, ",\n  \"%s\": ", name);
    va_start(ap, fmt);
    text_vprintf(&o->json, fmt, ap);
    va_end(ap);
}

/* The shortest decimal that is this number as the file has it: 1e-06 for the float32, not 9.999999974752427e-07. */
static moe_err number_text(const opening *o, const char *key, char out[TEXT_NUMBER])
{
    char full[96];
    double x;
    TRY(gguf_get_number(o->g, full_key(o, key, full), &x));
    text_double(out, x);
    for (int digits = 1; digits <= 9 && (double)(float)x == x; digits++) {
        snprintf(out, TEXT_NUMBER, "%.*g", digits, x);
        if (strtof(out, NULL) == (float)x)
            break;
    }
    return MOE_OK;
}

static moe_err add_key(opening *o, int i)
{
    char full[96], number[TEXT_NUMBER];
    int64_t whole;
    bool flag;
    if (!has_key(o, KEYS[i].key) && !KEYS[i].required)
        return MOE_OK;
    full_key(o, KEYS[i].key, full);
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

/* Keys that must agree with what is computed anyway. */
static moe_err check_key(const opening *o, const char *key, int64_t expected)
{
    char full[96];
    int64_t x;
    return has_key(o, key) ? gguf_get_int(o->g, full_key(o, key, full), expected, expected, &x) : MOE_OK;
}

static moe_err add_rope(opening *o)
{
    char number[TEXT_NUMBER] = "10000.0", full[96];
    const char *type = "none";
    size_t n = 4;
    if (has_key(o, "rope.freq_base"))
        TRY(number_text(o, "rope.freq_base", number));
    add(o, "rope_parameters", "{\"rope_theta\": %s", number);
    if (has_key(o, "rope.scaling.type"))
        TRY(gguf_get_string(o->g, full_key(o, "rope.scaling.type", full), &type, &n));
    if (n == 6 && memcmp(type, "linear", n) == 0) {
        TRY(number_text(o, "rope.scaling.factor", number));
        text_printf(&o->json, ", \"rope_type\": \"linear\", \"factor\": %s", number);
    } else if (n != 4 || memcmp(type, "none", n) != 0) {
        return moe_fail(MOE_E_CONFIG, "%s: key %s.rope.scaling.type is \"%.*s\": none and linear are computed", gguf_path(o->g, 0), o->arch->name,
                        n < 64 ? (int)n : 64, type);
    } else if (has_key(o, "rope.scale_linear")) {
        TRY(number_text(o, "rope.scale_linear", number));
        text_printf(&o->json, ", \"rope_type\": \"linear\", \"factor\": %s", number);
    }
    text_add(&o->json, "}");
    return MOE_OK;
}

/* What the metadata says in other words than config.json. */
static moe_err add_derived(opening *o)
{
    const gguf_tensor *embed = gguf_tensor_find(o->g, "token_embd.weight");
    char full[96];
    int64_t heads, width, hd;
    if (embed == NULL)
        return moe_fail(MOE_E_DATA, "%s: tensor token_embd.weight is missing", gguf_path(o->g, 0));
    TRY(gguf_get_int(o->g, full_key(o, "attention.head_count", full), 1, INT32_MAX, &heads));
    TRY(gguf_get_int(o->g, full_key(o, "embedding_length", full), 1, INT32_MAX, &width));
    hd = width / heads;
    if (has_key(o, "attention.key_length"))
        TRY(gguf_get_int(o->g, full_key(o, "attention.key_length", full), 1, INT32_MAX, &hd));
    TRY(check_key(o, "attention.value_length", hd));
    TRY(check_key(o, "rope.dimension_count", hd));
    TRY(check_key(o, "vocab_size", embed->shape[1]));
    TRY(check_key(o, "expert_gating_func", 1)); /* softmax */
    add(o, "vocab_size", "%lld", (long long)embed->shape[1]);
    add(o, "tie_word_embeddings", "%s", gguf_tensor_find(o->g, "output.weight") == NULL ? "true" : "false");
    if (!has_key(o, "attention.head_count_kv") && family_has(o, "num_key_value_heads"))
        add(o, "num_key_value_heads", "%lld", (long long)heads);
    if (!has_key(o, "attention.key_length") && family_has(o, "head_dim"))
        add(o, "head_dim", "%lld", (long long)hd);
    if (family_has(o, "attention_bias"))
        add(o, "attention_bias", "%s", gguf_tensor_find(o->g, "blk.0.attn_q.bias") != NULL ? "true" : "false");
    if (family_has(o, "norm_topk_prob") && !has_key(o, "expert_weights_norm"))
        add(o, "norm_topk_prob", "%s", o->arch->normalize ? "true" : "false");
    return add_rope(o);
}

static bool is_known_key(const char *key)
{
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
        if (strncmp(key, o->arch->name, n) == 0 && key[n] == '.' && !is_known_key(key + n + 1))
            return moe_fail(MOE_E_CONFIG, "%s: key %s is not known for %s and might change the numbers", gguf_path(o->g, 0), key, o->arch->name);
    }
    return MOE_OK;
}

static moe_err read_spec(opening *o, model *m)
{
    char name[4096], full[96];
    int64_t experts = 0;
    TRY(find_architecture(o));
    TRY(check_keys(o));
    if (has_key(o, "expert_count"))
        TRY(gguf_get_int(o->g, full_key(o, "expert_count", full), 0, INT32_MAX, &experts));
    if (experts > 0 && !family_has(o, "num_experts"))
        return moe_fail(MOE_E_CONFIG, "%s: key %s is %lld: Mixtral-like models in GGUF are not read, only as Hugging Face folders", gguf_path(o->g, 0), full,
                        (long long)experts);
    text_printf(&o->json, "{\n  \"model_type\": \"%s\"", o->arch->model_type);
    for (int i = 0; i < NKEYS; i++)
        if (experts > 0 || strncmp(KEYS[i].key, "expert_", 7) != 0)
            TRY(add_key(o, i));
    TRY(add_derived(o));
    text_add(&o->json, "\n}\n");
    const size_t bytes = o->json.used;
    TRY(text_take(&o->json, &m->config));
    snprintf(name, sizeof name, "%s (its metadata)", gguf_path(o->g, 0));
    return hf_config_parse(&m->spec, m->config, bytes, name);
}

static moe_err check_shape(const opening *o, const gguf_tensor *t, const tensor_info *info, int experts)
{
    const bool vector = info->layout == TENSOR_VECTOR;
    const int64_t expected[GGUF_DIMS] = {info->cols, vector ? 1 : info->rows, info->kind == SECTION_EXPERT ? experts : 1, 1};
    if (memcmp(t->shape, expected, sizeof expected) == 0)
        return MOE_OK;
    return moe_fail(MOE_E_DATA, "%s: %s has shape [%lld, %lld, %lld, %lld]: expected [%lld, %lld, %lld, 1] (a row's length first)",
                    gguf_path(o->g, t->file), t->name, (long long)t->shape[0], (long long)t->shape[1], (long long)t->shape[2],
                    (long long)t->shape[3], (long long)expected[0], (long long)expected[1], (long long)expected[2]);
}

static bool is_query_or_key(tensor_role r) { return r == ROLE_Q || r == ROLE_K || r == ROLE_Q_BIAS || r == ROLE_K_BIAS; }

static moe_err fill_extent(const opening *o, model *m, const tensor_info *info)
{
    char name[64];
    model_extent *e = &m->extent[info->id];
    tensor_name(info, name);
    const gguf_tensor *t = gguf_tensor_find(o->g, name);
    if (t == NULL)
        return moe_fail(MOE_E_DATA, "%s: tensor %s is missing", gguf_path(o->g, 0), name);
    TRY(check_shape(o, t, info, m->spec.E));
    TRY(model_rows_extent(e, gguf_path(o->g, t->file), info, t->format));
    e->file = t->file;
    e->offset = t->begin + (info->kind == SECTION_EXPERT ? (uint64_t)info->expert * e->bytes : 0);
    e->heads_interleaved = o->arch->interleaved && is_query_or_key(info->role);
    o->used[t - gguf_at(o->g, 0)] = 1;
    return MOE_OK;
}

static moe_err fill_extents(opening *o, model *m)
{
    tensor_info *table;
    int64_t n;
    moe_err rc;
    TRY(spec_tensors(&m->spec, &table, &n));
    TRY_GOTO(model_make_extents(m, n), rc, out);
    o->used = calloc((size_t)gguf_count(o->g) + 1, 1);
    if (o->used == NULL) {
        rc = moe_fail(MOE_E_OS, "out of memory");
        goto out;
    }
    for (int64_t i = 0; i < n; i++)
        TRY_GOTO(fill_extent(o, m, &table[i]), rc, out);
    for (int64_t i = 0; i < gguf_count(o->g); i++)
        if (!o->used[i]) {
            rc = moe_fail(MOE_E_DATA, "%s: %.200s is not a tensor of this %s model as its metadata describes it", gguf_path(o->g, gguf_at(o->g, i)->file),
                          gguf_at(o->g, i)->name, o->arch->name);
            goto out;
        }
out:
    free(table);
    return rc;
}

moe_err model_open_gguf(model *m, const char *path)
{
    gguf *g = NULL;
    moe_err rc;
    TRY(gguf_open(&g, path));
    opening o = {.g = g};
    TRY_GOTO(read_spec(&o, m), rc, out);
    for (int i = 0; i < gguf_files(g); i++) {
        TRY_GOTO(model_add_file(m, gguf_path(g, i)), rc, out);
        if (m->file[i].bytes != gguf_file_bytes(g, i)) {
            rc = moe_fail(MOE_E_DATA, "%s changed while it was opened", gguf_path(g, i));
            goto out;
        }
    }
    TRY_GOTO(fill_extents(&o, m), rc, out);
    if (gguf_find(g, "tokenizer.ggml.model") != NULL && (m->tokenizer = strdup(path)) == NULL)
        rc = moe_fail(MOE_E_OS, "out of memory");
out:
    free(o.used);
    text_free(&o.json);
    gguf_close(g);
    return rc;
}
