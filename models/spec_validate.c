/* Owns the check of all sizes of a spec: every other function may assume that it passed. Does not know where a size came from.
 * Threads: pure functions of the spec.
 * Rule: a sentence begins with the key of config.json, then what was found and what was expected. */
#include <math.h>

#include "kernels/attention.h"
#include "models/spec.h"

/* Upper bounds that keep every product of two sizes (and the int arguments of kernels) in range; far above any model. */
enum { MAX_WIDTH = 1 << 20, MAX_VOCAB = 1 << 26, MAX_EXPERTS = 1 << 20 };

static moe_err check_range(const char *key, int64_t v, int64_t low, int64_t high)
{
    if (v < low || v > high)
        return moe_fail(MOE_E_CONFIG, "%s is %lld: expected %lld to %lld", key, (long long)v, (long long)low, (long long)high);
    return MOE_OK;
}

static moe_err validate_yarn(const model_spec *m)
{
    const rope_scaling *r = &m->rope;
    if (!(r->beta_slow > 0) || !isfinite(r->beta_slow))
        return moe_fail(MOE_E_CONFIG, "rope_beta_slow is %g: expected a number > 0", r->beta_slow);
    if (!(r->beta_fast >= r->beta_slow) || !isfinite(r->beta_fast))
        return moe_fail(MOE_E_CONFIG, "rope_beta_fast is %g: expected a number >= rope_beta_slow (%g)", r->beta_fast, r->beta_slow);
    if (!(m->rope_theta > 1))
        return moe_fail(MOE_E_CONFIG, "rope_theta is %g with rope_type yarn: expected a number > 1", m->rope_theta);
    if (r->attention_factor != 0 && (!((float)r->attention_factor > 0) || !isfinite((float)r->attention_factor)))
        return moe_fail(MOE_E_CONFIG, "rope_attention_factor is %g: expected a number > 0 that fp32 holds", r->attention_factor);
    if (!isfinite(r->mscale) || !isfinite(r->mscale_all_dim) || !(spec_rope_scale(m) > 0) ||
        !isfinite(spec_rope_scale(m)))
        return moe_fail(MOE_E_CONFIG, "rope_mscale %g and rope_mscale_all_dim %g make an attention factor of %g: expected a number > 0", r->mscale,
                        r->mscale_all_dim, (double)spec_rope_scale(m));
    return check_range("rope_original_max_position_embeddings", r->original_positions, 1, 1 << 30);
}

static moe_err validate_rope(const model_spec *m)
{
    const rope_scaling *r = &m->rope;
    if (!(m->rope_theta > 0) || !isfinite(m->rope_theta))
        return moe_fail(MOE_E_CONFIG, "rope_theta is %g: expected a number > 0", m->rope_theta);
    if (m->rotary < 2 || m->rotary > m->hd || m->rotary % 2 != 0)
        return moe_fail(MOE_E_CONFIG, "partial_rotary_factor makes %d of head_dim (%d) turn: expected an even number, 2 to head_dim",
                        m->rotary, m->hd);
    if (!(r->factor >= 1) || !isfinite(r->factor))
        return moe_fail(MOE_E_CONFIG, "rope_factor is %g: expected a number >= 1", r->factor);
    if (r->type == ROPE_DEFAULT && r->factor != 1)
        return moe_fail(MOE_E_CONFIG, "rope_factor is %g with rope_type default, which has none: expected 1", r->factor);
    if (r->type == ROPE_YARN)
        return validate_yarn(m);
    if (r->type != ROPE_LLAMA3)
        return MOE_OK;
    if (!(r->low_freq_factor > 0) || !isfinite(r->low_freq_factor))
        return moe_fail(MOE_E_CONFIG, "rope_low_freq_factor is %g: expected a number > 0", r->low_freq_factor);
    if (!(r->high_freq_factor > r->low_freq_factor) || !isfinite(r->high_freq_factor))
        return moe_fail(MOE_E_CONFIG, "rope_high_freq_factor is %g: expected a number > rope_low_freq_factor (%g)", r->high_freq_factor,
                        r->low_freq_factor);
    return check_range("rope_original_max_position_embeddings", r->original_positions, 1, 1 << 30);
}

/* What is kept of a position must fit a tile of attention, and a head of kv_b_proj the scratch of a thread. */
static moe_err validate_latent(const model_spec *m)
{
    if (m->rotary < 2 || m->rotary % 2 != 0 || m->rotary >= m->hd)
        return moe_fail(MOE_E_CONFIG, "qk_rope_head_dim is %d with a qk_nope_head_dim of %d: expected an even number >= 2, and a number >= 1",
                        m->rotary, spec_nope(m));
    TRY(check_range("qk_nope_head_dim", spec_nope(m), 1, ATTENTION_MAX_HD));
    TRY(check_range("v_head_dim", m->v_head_dim, 1, ATTENTION_MAX_HD));
    TRY(check_range("kv_lora_rank", m->kv_lora_rank, 1, ATTENTION_MAX_HD - m->rotary));
    TRY(check_range("q_lora_rank", m->q_lora_rank, 0, MAX_WIDTH));
    return check_range("v_head_dim x num_attention_heads", (int64_t)m->v_head_dim * m->H, 1, MAX_WIDTH);
}

static moe_err validate_attention(const model_spec *m)
{
    TRY(check_range("num_attention_heads", m->H, 1, MAX_WIDTH));
    TRY(check_range("num_key_value_heads", m->Hkv, 1, m->H));
    const bool latent = m->kv_lora_rank != 0;
    TRY(check_range(latent ? "qk_nope_head_dim + qk_rope_head_dim" : "head_dim", m->hd, 2, MAX_WIDTH));
    TRY(check_range(latent ? "(qk_nope_head_dim + qk_rope_head_dim) x num_attention_heads" : "head_dim x num_attention_heads", (int64_t)m->hd * m->H, 2,
                    MAX_WIDTH));
    if (m->H % m->Hkv != 0)
        return moe_fail(MOE_E_CONFIG, "num_attention_heads is %d: expected a multiple of num_key_value_heads (%d)", m->H, m->Hkv);
    if (latent)
        TRY(validate_latent(m));
    else if (m->hd % 2 != 0)
        return moe_fail(MOE_E_CONFIG, "head_dim is %d: expected an even number (rotary embedding pairs i with i + head_dim/2)",
                        m->hd);
    TRY(validate_rope(m));
    if (!(m->rms_eps >= 0) || !isfinite(m->rms_eps))
        return moe_fail(MOE_E_CONFIG, "rms_norm_eps is %g: expected a number >= 0", (double)m->rms_eps);
    if (!(m->clip_qkv >= 0) || !isfinite(m->clip_qkv))
        return moe_fail(MOE_E_CONFIG, "clip_qkv is %g: expected a number > 0, or null", (double)m->clip_qkv);
    return MOE_OK;
}

static moe_err validate_router(const model_spec *m)
{
    const router_rule *r = &m->router;
    TRY(check_range("num_experts", m->E, 1, 1 << 16));
    TRY(check_range("num_experts_per_tok", m->K, 1, m->E));
    TRY(check_range("n_group", r->groups, 1, m->E));
    TRY(check_range("topk_group", r->groups_used, 1, r->groups));
    if (m->E % r->groups != 0)
        return moe_fail(MOE_E_CONFIG, "n_group is %d: expected a divisor of num_experts (%d)", r->groups, m->E);
    if (r->groups > 1 && !r->group_best && m->E / r->groups < 2)
        return moe_fail(MOE_E_CONFIG,
                        "n_group is %d with %d experts: expected at least two experts in a group (a group's score is the sum "
                        "of its two best)",
                        r->groups, m->E);
    if (m->K > r->groups_used * (m->E / r->groups))
        return moe_fail(MOE_E_CONFIG,
                        "num_experts_per_tok is %d: the %d groups a token may use (topk_group) hold only %d experts", m->K,
                        r->groups_used, r->groups_used * (m->E / r->groups));
    if (r->topk_first && r->score == ROUTER_SIGMOID)
        return moe_fail(MOE_E_CONFIG, "topk_before_softmax is true with scoring_func sigmoid: expected scoring_func softmax");
    if (!(r->scale > 0) || !isfinite(r->scale))
        return moe_fail(MOE_E_CONFIG, "routed_scaling_factor is %g: expected a number > 0", (double)r->scale);
    if ((int64_t)m->E * spec_moe_layers(m) > MAX_EXPERTS)
        return moe_fail(MOE_E_CONFIG, "num_experts is %d in %d layers: expected at most %d experts in all", m->E,
                        spec_moe_layers(m), MAX_EXPERTS);
    return MOE_OK;
}

moe_err spec_validate(const model_spec *m)
{
    TRY(check_range("hidden_size", m->D, 1, MAX_WIDTH));
    TRY(check_range("num_hidden_layers", m->L, 1, MODEL_MAX_LAYERS));
    TRY(check_range("vocab_size", m->V, 1, MAX_VOCAB));
    TRY(validate_attention(m));
    if (spec_moe_layers(m) > 0) {
        TRY(check_range("moe_intermediate_size", m->F, 1, MAX_WIDTH));
        TRY(check_range("shared_expert_intermediate_size", m->F_shared, 0, MAX_WIDTH));
        TRY(validate_router(m));
    }
    if (spec_moe_layers(m) < m->L)
        TRY(check_range("intermediate_size", m->F_dense, 1, MAX_WIDTH));
    if (m->shared_gate && m->F_shared == 0)
        return moe_fail(MOE_E_CONFIG,
                        "shared_expert_gate is true but shared_expert_intermediate_size is 0: expected a shared expert");
    TRY(check_range("max_position_embeddings", m->max_positions, 1, 1 << 30));
    if (!(m->init_std >= 0) || !isfinite(m->init_std))
        return moe_fail(MOE_E_CONFIG, "initializer_range is %g: expected a number >= 0", m->init_std);
    if (!(m->aux_coef >= 0) || !isfinite(m->aux_coef))
        return moe_fail(MOE_E_CONFIG, "router_aux_loss_coef is %g: expected a number >= 0", m->aux_coef);
    /* With the bounds above an expert has at most 3 * 2^40 parameters: 2^20 of them still fit int64_t, their bytes might not. */
    if (spec_moe_layers(m) > 0 && (double)m->F * m->D * m->E * spec_moe_layers(m) > 1e15)
        return moe_fail(MOE_E_CONFIG,
                        "moe_intermediate_size x hidden_size x num_experts x layers is over 1e15: that is no model's size");
    return MOE_OK;
}
