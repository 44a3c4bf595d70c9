/* Owns how values of config keys become the fields of a spec that all families share. Does not know where the values came from.
 * Threads: pure functions.
 * Rule: a setting that would change numbers is either computed as transformers computes it, or refused by name. */
#include "models/families/common.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

const model_value *family_get(const family_values *v, const char *key)
{
    for (int i = 0; i < v->n; i++)
        if (strcmp(v->keys[i].name, key) == 0)
            return &v->values[i];
    return NULL;
}

moe_err family_int(const family_values *v, const char *key, int fallback, int *out)
{
    const model_value *x = family_get(v, key);
    *out = fallback;
    if (x == NULL || x->null)
        return MOE_OK;
    if (x->integer < INT_MIN || x->integer > INT_MAX)
        return moe_fail(MOE_E_CONFIG, "%s is %lld: that is no model's size", key, (long long)x->integer);
    *out = (int)x->integer;
    return MOE_OK;
}

double family_number(const family_values *v, const char *key, double fallback)
{
    const model_value *x = family_get(v, key);
    return x == NULL || x->null ? fallback : x->number;
}

bool family_bool(const family_values *v, const char *key)
{
    const model_value *x = family_get(v, key);
    return x != NULL && !x->null && x->boolean;
}

/* null is a value only where it means something: the key's own default, or "not this part" in the configs the names come from. */
static moe_err refuse_null(const family_values *v)
{
    static const char *const optional[] = {"mlp_only_layers", "n_group", "topk_group", "sliding_window", "q_lora_rank"};
    for (int i = 0; i < v->n; i++) {
        bool legal = !v->values[i].null || strcmp(v->keys[i].fallback, "null") == 0;
        for (size_t j = 0; j < sizeof optional / sizeof *optional; j++)
            legal = legal || strcmp(v->keys[i].name, optional[j]) == 0;
        if (!legal)
            return moe_fail(MOE_E_CONFIG, "%s is null: expected a value, or no such key (the default is %s)", v->keys[i].name,
                            v->keys[i].fallback);
    }
    return MOE_OK;
}

static moe_err refuse_unsupported(const family_values *v)
{
    const model_value *act = family_get(v, "hidden_act");
    if (act != NULL && strcmp(act->string, "silu") != 0)
        return moe_fail(MOE_E_CONFIG, "hidden_act is \"%s\": only \"silu\" is computed", act->string);
    if (family_bool(v, "mlp_bias"))
        return moe_fail(MOE_E_CONFIG, "mlp_bias is true: a feed-forward with biases is not computed, expected false");
    if (family_number(v, "attention_dropout", 0) != 0)
        return moe_fail(MOE_E_CONFIG, "attention_dropout is %g: dropout is not computed, expected 0",
                        family_number(v, "attention_dropout", 0));
    if (family_bool(v, "use_sliding_window"))
        return moe_fail(MOE_E_CONFIG,
                        "use_sliding_window is true: attention over a sliding window is not computed, expected false");
    return MOE_OK;
}

static double positive(const family_values *v, const char *key, double otherwise)
{
    const double x = family_number(v, key, 0);
    return x != 0 ? x : otherwise; /* transformers takes 0 for nothing said */
}

static moe_err fill_yarn(rope_scaling *r, const family_values *v)
{
    const model_value *factor = family_get(v, "rope_attention_factor");
    r->beta_fast = positive(v, "rope_beta_fast", 32);
    r->beta_slow = positive(v, "rope_beta_slow", 1);
    r->truncate = family_bool(v, "rope_truncate");
    r->attention_factor = family_number(v, "rope_attention_factor", 0);
    r->mscale = family_number(v, "rope_mscale", 0);
    r->mscale_all_dim = family_number(v, "rope_mscale_all_dim", 0);
    if (factor != NULL && !factor->null && !(factor->number > 0))
        return moe_fail(MOE_E_CONFIG, "rope_attention_factor is %g: expected a number > 0, or null", factor->number);
    return MOE_OK;
}

static moe_err fill_rope(model_spec *m, const family_values *v)
{
    const double part = family_number(v, "partial_rotary_factor", 1);
    if (!(part > 0) || part > 1)
        return moe_fail(MOE_E_CONFIG, "partial_rotary_factor is %g: expected a number > 0, at most 1", part);
    rope_scaling *r = &m->rope;
    const char *name = family_get(v, "rope_type")->string;
    int type = 0;
    while (type < ROPE_TYPES && strcmp(name, rope_type_names[type]) != 0)
        type++;
    if (type == ROPE_TYPES)
        return moe_fail(MOE_E_CONFIG, "rope_type is \"%.64s\": only \"default\", \"linear\", \"llama3\" and \"yarn\" are computed", name);
    r->type = (rope_type)type;
    m->rotary = (int)(m->hd * part);
    m->rope_theta = family_number(v, "rope_theta", 0);
    r->factor = family_number(v, "rope_factor", 1);
    r->low_freq_factor = family_number(v, "rope_low_freq_factor", 1);
    r->high_freq_factor = family_number(v, "rope_high_freq_factor", 4);
    TRY(family_int(v, "rope_original_max_position_embeddings", m->max_positions, &r->original_positions));
    return r->type == ROPE_YARN ? fill_yarn(r, v) : MOE_OK;
}

static moe_err fill_router(model_spec *m, const family_values *v)
{
    router_rule *r = &m->router;
    const model_value *score = family_get(v, "scoring_func");
    r->score = ROUTER_SOFTMAX;
    if (score != NULL && strcmp(score->string, "sigmoid") == 0)
        r->score = ROUTER_SIGMOID;
    else if (score != NULL && strcmp(score->string, "softmax") != 0)
        return moe_fail(MOE_E_CONFIG, "scoring_func is \"%s\": expected \"softmax\" or \"sigmoid\"", score->string);
    r->topk_first = family_bool(v, "topk_before_softmax");
    r->normalize = family_bool(v, "norm_topk_prob");
    r->scale = (float)family_number(v, "routed_scaling_factor", 1.0);
    TRY(family_int(v, "n_group", 1, &r->groups));
    TRY(family_int(v, "topk_group", 1, &r->groups_used));
    m->correction_bias = family_bool(v, "use_correction_bias");
    return MOE_OK;
}

moe_err family_fill(model_spec *m, const char *model_type, const family_values *v)
{
    memset(m, 0, sizeof *m);
    snprintf(m->model_type, sizeof m->model_type, "%s", model_type);
    TRY(refuse_null(v));
    TRY(refuse_unsupported(v));
    TRY(family_int(v, "hidden_size", 0, &m->D));
    TRY(family_int(v, "num_hidden_layers", 0, &m->L));
    TRY(family_int(v, "vocab_size", 0, &m->V));
    TRY(family_int(v, "num_attention_heads", 0, &m->H));
    TRY(family_int(v, "num_key_value_heads", m->H, &m->Hkv));
    TRY(family_int(v, "head_dim", m->H > 0 ? m->D / m->H : 0, &m->hd));
    TRY(family_int(v, "num_experts", 0, &m->E));
    TRY(family_int(v, "num_experts_per_tok", 0, &m->K));
    TRY(family_int(v, "max_position_embeddings", 0, &m->max_positions));
    TRY(family_int(v, "shared_expert_intermediate_size", 0, &m->F_shared));
    m->shared_gate = family_bool(v, "shared_expert_gate");
    m->tied = family_bool(v, "tie_word_embeddings");
    m->rms_eps = (float)family_number(v, "rms_norm_eps", 0);
    TRY(fill_rope(m, v));
    m->qkv_bias = m->o_bias = family_bool(v, "attention_bias");
    m->init_std = family_number(v, "initializer_range", 0);
    m->aux_coef = family_number(v, "router_aux_loss_coef", 0);
    TRY(fill_router(m, v));

    int leading = 0;
    if (m->E < 0)
        return moe_fail(MOE_E_CONFIG, "num_experts is %d: expected a number >= 0 (0: every layer is dense)", m->E);
    TRY(family_int(v, "first_k_dense_replace", 0, &leading));
    if (m->L < 1 || m->L > MODEL_MAX_LAYERS)
        return moe_fail(MOE_E_CONFIG, "num_hidden_layers is %d: expected 1 to %d", m->L, (int)MODEL_MAX_LAYERS);
    if (leading < 0 || leading > m->L)
        return moe_fail(MOE_E_CONFIG, "first_k_dense_replace is %d: expected 0 to num_hidden_layers (%d)", leading, m->L);
    for (int l = 0; l < m->L; l++)
        m->moe_layer[l] = l >= leading && m->E > 0;
    return MOE_OK;
}

moe_err family_sparse_layers(model_spec *m, const family_values *v)
{
    int step = 1;
    TRY(family_int(v, "decoder_sparse_step", 1, &step));
    if (step < 1)
        return moe_fail(MOE_E_CONFIG, "decoder_sparse_step is %d: expected a number >= 1", step);
    for (int l = 0; l < m->L; l++)
        m->moe_layer[l] = m->moe_layer[l] && (l + 1) % step == 0;
    const model_value *dense = family_get(v, "mlp_only_layers");
    for (int i = 0; !dense->null && i < dense->nints; i++) {
        const int64_t l = dense->ints[i];
        if (l < 0 || l >= m->L)
            return moe_fail(MOE_E_CONFIG, "mlp_only_layers names layer %lld: expected 0 to %d", (long long)l, m->L - 1);
        m->moe_layer[l] = false;
    }
    return MOE_OK;
}

moe_err family_latent(model_spec *m, const family_values *v)
{
    int nope, given, heads;
    TRY(family_int(v, "kv_lora_rank", 0, &m->kv_lora_rank));
    TRY(family_int(v, "q_lora_rank", 0, &m->q_lora_rank));
    TRY(family_int(v, "v_head_dim", 0, &m->v_head_dim));
    TRY(family_int(v, "qk_rope_head_dim", 0, &m->rotary));
    TRY(family_int(v, "qk_nope_head_dim", 0, &nope));
    if (m->rotary < 1 || m->rotary > 1 << 20 || nope < 1 || nope > 1 << 20 || m->kv_lora_rank < 1)
        return moe_fail(MOE_E_CONFIG, "kv_lora_rank is %d, qk_nope_head_dim %d, qk_rope_head_dim %d: expected numbers from 1 to 2^20", m->kv_lora_rank, nope,
                        m->rotary);
    m->hd = nope + m->rotary;
    TRY(family_int(v, "head_dim", m->rotary, &given));
    if (given != m->rotary)
        return moe_fail(MOE_E_CONFIG, "head_dim is %d: expected qk_rope_head_dim (%d), or no such key", given, m->rotary);
    TRY(family_int(v, "qk_head_dim", m->hd, &given));
    if (given != m->hd)
        return moe_fail(MOE_E_CONFIG, "qk_head_dim is %d: expected qk_nope_head_dim + qk_rope_head_dim (%d), or no such key", given, m->hd);
    TRY(family_int(v, "num_key_value_heads", m->H, &heads));
    if (heads != m->H)
        return moe_fail(MOE_E_CONFIG, "num_key_value_heads is %d: expected num_attention_heads (%d)", heads, m->H);
    m->Hkv = 1;
    return MOE_OK;
}

moe_err family_shared_experts(model_spec *m, const family_values *v)
{
    int shared = 0;
    TRY(family_int(v, "n_shared_experts", 0, &shared));
    if (shared < 1 || shared > 1024 || m->F < 1 || m->F > (1 << 20))
        return moe_fail(MOE_E_CONFIG, "n_shared_experts is %d with a moe_intermediate_size of %d: expected 1 to 1024 of 1 to 2^20", shared,
                        m->F);
    m->F_shared = shared * m->F;
    return MOE_OK;
}

moe_err family_dense(model_spec *m, const family_values *v)
{
    TRY(family_int(v, "intermediate_size", 0, &m->F_dense));
    return spec_validate(m);
}
