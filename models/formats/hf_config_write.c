/* Owns the writing of config.json for transformers 4 and 5. Keys that one of them spells differently are written in both ways.
 * Threads: pure.
 * Rule: what transformers' class does not compute is refused, never left out. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "models/family.h"
#include "models/formats/hf_private.h"

/* Always with a point or an exponent: the config classes check types, and 10000 is no float. */
static void add_number(text_buf *t, const char *key, double x)
{
    char n[TEXT_NUMBER];
    text_double(n, x);
    text_printf(t, ",\n  \"%s\": %s%s", key, n, strpbrk(n, ".en") == NULL ? ".0" : "");
}

/* The shortest decimal that is this float: 1e-06, not 9.999999974752427e-07. */
static void add_float(text_buf *t, const char *key, float x)
{
    char n[TEXT_NUMBER];
    for (int digits = 1; digits <= 9; digits++) {
        snprintf(n, sizeof n, "%.*g", digits, (double)x);
        if (strtof(n, NULL) == x)
            break;
    }
    add_number(t, key, strtod(n, NULL));
}

static void add_int(text_buf *t, const char *key, int64_t x) { text_printf(t, ",\n  \"%s\": %lld", key, (long long)x); }

static void add_bool(text_buf *t, const char *key, bool x) { text_printf(t, ",\n  \"%s\": %s", key, x ? "true" : "false"); }

static void add_raw(text_buf *t, const char *key, const char *x) { text_printf(t, ",\n  \"%s\": %s", key, x); }

static bool is_family(const model_spec *m, const char *model_type) { return strcmp(m->model_type, model_type) == 0; }

static moe_err check_exportable(const model_spec *m)
{
    const char *what = NULL;
    if (is_family(m, "glm4_moe"))
        return MOE_OK;
    if (model_family_find(m->model_type)->served_only != NULL)
        return moe_fail(MOE_E_CONFIG, "a %s model is served only: its checkpoints are not written", m->model_type);
    if (m->F_shared > 0 && !is_family(m, "qwen2_moe"))
        what = "a shared expert (shared_expert_intermediate_size)";
    else if (m->correction_bias)
        what = "a correction bias (use_correction_bias)";
    else if (m->router.score != ROUTER_SOFTMAX)
        what = "sigmoid scores (scoring_func)";
    else if (m->router.groups_used < m->router.groups)
        what = "groups of experts (n_group, topk_group)";
    else if (m->router.scale != 1.0f)
        what = "scaled weights (routed_scaling_factor)";
    else if (is_family(m, "olmoe") && spec_moe_layers(m) < m->L)
        what = "dense layers (first_k_dense_replace)";
    if (what != NULL)
        return moe_fail(MOE_E_CONFIG, "a %s model with %s: transformers has no class that computes it, so it cannot be exported",
                        m->model_type, what);
    return MOE_OK;
}

/* head_dim times it, cut to a whole number as transformers does, is what turns. */
static double rotary_part(const model_spec *m)
{
    const double part = (double)m->rotary / m->hd;
    return (int)(m->hd * part) == m->rotary ? part : nextafter(part, 1.0);
}

static void add_yarn(text_buf *t, const rope_scaling *r)
{
    add_number(t, "beta_fast", r->beta_fast);
    add_number(t, "beta_slow", r->beta_slow);
    add_bool(t, "truncate", r->truncate);
    add_int(t, "original_max_position_embeddings", r->original_positions);
    if (r->attention_factor > 0)
        add_number(t, "attention_factor", r->attention_factor);
    if (r->mscale != 0)
        add_number(t, "mscale", r->mscale);
    if (r->mscale_all_dim != 0)
        add_number(t, "mscale_all_dim", r->mscale_all_dim);
}

/* The members of rope_parameters and rope_scaling but the base. */
static void add_scaling(text_buf *t, const char *key, const model_spec *m)
{
    const rope_scaling *r = &m->rope;
    text_printf(t, ",\n  \"%s\": {\"rope_type\": \"%s\"", key, rope_type_names[r->type]);
    if (r->type != ROPE_DEFAULT)
        add_number(t, "factor", r->factor);
    if (r->type == ROPE_LLAMA3) {
        add_number(t, "low_freq_factor", r->low_freq_factor);
        add_number(t, "high_freq_factor", r->high_freq_factor);
        add_int(t, "original_max_position_embeddings", r->original_positions);
    }
    if (r->type == ROPE_YARN)
        add_yarn(t, r);
}

static void add_rope(text_buf *t, const model_spec *m)
{
    add_scaling(t, "rope_parameters", m); /* transformers 5 */
    add_number(t, "rope_theta", m->rope_theta);
    if (m->rotary != m->hd)
        add_number(t, "partial_rotary_factor", rotary_part(m));
    text_add(t, "}");
    add_number(t, "rope_theta", m->rope_theta); /* transformers 4 */
    if (m->rope.type == ROPE_DEFAULT) {
        add_raw(t, "rope_scaling", "null");
        return;
    }
    add_scaling(t, "rope_scaling", m);
    text_add(t, "}");
}

static void add_common(text_buf *t, const model_spec *m, hf_dtype dtype)
{
    const char *type = dtype == HF_BF16 ? "\"bfloat16\"" : "\"float32\"";
    add_raw(t, "attention_dropout", "0.0");
    add_raw(t, "bos_token_id", "null");
    add_raw(t, "eos_token_id", "null");
    add_raw(t, "pad_token_id", "null");
    add_raw(t, "dtype", type);       /* transformers 5 */
    add_raw(t, "torch_dtype", type); /* transformers 4 */
    add_raw(t, "hidden_act", "\"silu\"");
    add_int(t, "hidden_size", m->D);
    add_number(t, "initializer_range", m->init_std);
    add_int(t, "max_position_embeddings", m->max_positions);
    add_int(t, "num_attention_heads", m->H);
    add_int(t, "num_hidden_layers", m->L);
    add_int(t, "num_key_value_heads", m->Hkv);
    add_float(t, "rms_norm_eps", m->rms_eps);
    add_rope(t, m);
    add_bool(t, "tie_word_embeddings", m->tied);
    add_bool(t, "use_cache", true);
    add_int(t, "vocab_size", m->V);
}

static void add_experts(text_buf *t, const model_spec *m)
{
    add_int(t, "num_experts", m->E);
    add_int(t, "num_local_experts", m->E); /* transformers 5; Mixtral in 4 too */
    add_int(t, "num_experts_per_tok", m->K);
    add_bool(t, "output_router_logits", false);
    add_number(t, "router_aux_loss_coef", m->aux_coef);
}

/* Qwen2-MoE and Qwen3-MoE. */
static void add_qwen_moe(text_buf *t, const model_spec *m)
{
    bool first = true;
    add_bool(t, "norm_topk_prob", m->router.normalize || m->router.topk_first); /* softmax over the chosen: the same weights */
    add_int(t, "intermediate_size", m->F_dense);
    add_int(t, "moe_intermediate_size", m->F);
    add_int(t, "decoder_sparse_step", 1);
    add_raw(t, "mlp_only_layers", "[");
    for (int l = 0; l < m->L; l++)
        if (!m->moe_layer[l]) {
            text_printf(t, "%s%d", first ? "" : ", ", l);
            first = false;
        }
    text_add(t, "]");
}

static void add_no_window(text_buf *t)
{
    add_bool(t, "use_sliding_window", false);
    add_raw(t, "sliding_window", "null");
}

static void add_qwen3_moe(text_buf *t, const model_spec *m)
{
    add_experts(t, m);
    add_qwen_moe(t, m);
    add_bool(t, "attention_bias", m->qkv_bias);
    add_int(t, "head_dim", m->hd);
    add_no_window(t);
}

static void add_qwen2_moe(text_buf *t, const model_spec *m)
{
    add_experts(t, m);
    add_qwen_moe(t, m);
    add_bool(t, "qkv_bias", m->qkv_bias);
    add_int(t, "head_dim", m->hd);
    add_int(t, "shared_expert_intermediate_size", m->F_shared);
    add_no_window(t);
}

static void add_olmoe(text_buf *t, const model_spec *m)
{
    add_experts(t, m);
    add_bool(t, "norm_topk_prob", m->router.normalize || m->router.topk_first);
    add_bool(t, "attention_bias", m->qkv_bias);
    add_int(t, "intermediate_size", m->F);
    if (m->clip_qkv > 0)
        add_float(t, "clip_qkv", m->clip_qkv);
    else
        add_raw(t, "clip_qkv", "null");
}

static void add_mixtral(text_buf *t, const model_spec *m)
{
    add_experts(t, m);
    add_int(t, "head_dim", m->hd);
    add_int(t, "intermediate_size", m->F);
    add_raw(t, "router_jitter_noise", "0.0");
    add_raw(t, "sliding_window", "null");
}

static void add_glm4_moe(text_buf *t, const model_spec *m)
{
    add_bool(t, "attention_bias", m->qkv_bias);
    add_int(t, "first_k_dense_replace", m->L - spec_moe_layers(m));
    add_int(t, "head_dim", m->hd);
    add_int(t, "intermediate_size", m->F_dense);
    add_int(t, "moe_intermediate_size", m->F);
    add_int(t, "n_group", m->router.groups);
    add_int(t, "n_routed_experts", m->E);
    add_int(t, "n_shared_experts", m->F_shared / m->F);
    add_bool(t, "norm_topk_prob", m->router.normalize);
    add_int(t, "num_experts_per_tok", m->K);
    add_int(t, "num_nextn_predict_layers", 0);
    add_number(t, "partial_rotary_factor", rotary_part(m));
    add_float(t, "routed_scaling_factor", m->router.scale);
    add_int(t, "topk_group", m->router.groups_used);
    add_bool(t, "use_qk_norm", m->qk_norm == QK_NORM_HEAD);
}

static void add_llama(text_buf *t, const model_spec *m)
{
    add_bool(t, "attention_bias", m->qkv_bias);
    add_bool(t, "mlp_bias", false);
    add_int(t, "head_dim", m->hd);
    add_int(t, "intermediate_size", m->F_dense);
}

static void add_qwen2(text_buf *t, const model_spec *m)
{
    add_int(t, "head_dim", m->hd);
    add_int(t, "intermediate_size", m->F_dense);
    add_no_window(t);
}

static void add_qwen3(text_buf *t, const model_spec *m)
{
    add_bool(t, "attention_bias", m->qkv_bias);
    add_qwen2(t, m);
}

/* The keys beside the common ones, family by family. */
static const struct {
    const char *model_type;
    void (*add)(text_buf *t, const model_spec *m);
} FAMILY_KEYS[] = {
    {"qwen3_moe", add_qwen3_moe}, {"qwen2_moe", add_qwen2_moe}, {"olmoe", add_olmoe}, {"mixtral", add_mixtral},
    {"llama", add_llama},         {"qwen2", add_qwen2},         {"qwen3", add_qwen3}, {"glm4_moe", add_glm4_moe},
};

moe_err hf_config_text(text_buf *t, const model_spec *m, hf_dtype dtype)
{
    const model_family *f = model_family_find(m->model_type);
    if (f == NULL)
        return moe_fail(MOE_E_CONFIG, "model_type %s has no transformers class that is known here", m->model_type);
    TRY(check_exportable(m));
    text_printf(t, "{\n  \"architectures\": [\"%s\"],\n  \"model_type\": \"%s\"", f->architecture, f->model_type);
    add_common(t, m, dtype);
    for (size_t i = 0; i < sizeof FAMILY_KEYS / sizeof *FAMILY_KEYS; i++)
        if (is_family(m, FAMILY_KEYS[i].model_type))
            FAMILY_KEYS[i].add(t, m);
    text_add(t, "\n}\n");
    return MOE_OK;
}
