/* Owns the one place where sizes become offsets: the section layouts, the table of tensors, the counts, and the check of all
 * sizes. Does not know where a size came from (families/) nor any file.
 * Threads: pure functions of the spec.
 * Rule: every other function here may assume that spec_validate passed. */
#include "models/spec.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/matmul.h"

/* Upper bounds that keep every product of two sizes (and the int arguments of kernels) in range; far above any model. */
enum { MAX_WIDTH = 1 << 20, MAX_VOCAB = 1 << 26, MAX_EXPERTS = 1 << 20 };

static size_t pad16(size_t floats) { return (floats + 15) / 16 * 16; }

/* The next `floats` of a section, 64-byte aligned within it. */
static int64_t place(size_t *used, size_t floats)
{
    const size_t at = *used;
    *used += pad16(floats);
    return (int64_t)at;
}

void spec_dense_layout(const model_spec *m, int layer, dense_layout *out)
{
    const int64_t q = (int64_t)m->H * m->hd, kv = (int64_t)m->Hkv * m->hd;
    const size_t D = (size_t)m->D;
    size_t used = 0;
    *out = (dense_layout){-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0};
    out->attn_norm = place(&used, D);
    out->qkv = place(&used, (size_t)(panel_pad(q) + 2 * panel_pad(kv)) * D);
    if (m->qk_norm != QK_NORM_NONE) {
        out->q_norm = place(&used, (size_t)(m->qk_norm == QK_NORM_FULL ? q : m->hd));
        out->k_norm = place(&used, (size_t)(m->qk_norm == QK_NORM_FULL ? kv : m->hd));
    }
    out->o = place(&used, panel_floats(m->D, q));
    out->ffn_norm = place(&used, D);
    if (!m->moe_layer[layer]) {
        out->ffn_w1 = place(&used, 2 * panel_floats(m->F_dense, m->D));
        out->ffn_w2 = place(&used, panel_floats(m->D, m->F_dense));
    } else {
        out->router = place(&used, panel_floats(m->E, m->D));
        if (m->correction_bias)
            out->router_bias = place(&used, (size_t)m->E);
        if (m->F_shared > 0) {
            out->shared_w1 = place(&used, 2 * panel_floats(m->F_shared, m->D));
            out->shared_w2 = place(&used, panel_floats(m->D, m->F_shared));
            if (m->shared_gate)
                out->shared_gate = place(&used, panel_floats(1, m->D));
        }
    }
    out->floats = used;
}

void spec_expert_layout(const model_spec *m, expert_layout *out)
{
    size_t used = 0;
    out->w1 = place(&used, 2 * panel_floats(m->F, m->D));
    out->w2 = place(&used, panel_floats(m->D, m->F));
    out->floats = used;
}

void spec_embed_layout(const model_spec *m, embed_layout *out)
{
    size_t used = 0;
    out->table = place(&used, m->tied ? panel_floats(m->V, m->D) : (size_t)m->V * (size_t)m->D);
    out->floats = used;
}

void spec_head_layout(const model_spec *m, head_layout *out)
{
    size_t used = 0;
    out->norm = place(&used, (size_t)m->D);
    out->lm_head = m->tied ? -1 : place(&used, panel_floats(m->V, m->D));
    out->floats = used;
}

int spec_moe_layers(const model_spec *m)
{
    int n = 0;
    for (int l = 0; l < m->L; l++)
        n += m->moe_layer[l];
    return n;
}

int spec_moe_index(const model_spec *m, int layer)
{
    if (layer < 0 || layer >= m->L || !m->moe_layer[layer])
        return -1;
    int n = 0;
    for (int l = 0; l < layer; l++)
        n += m->moe_layer[l];
    return n;
}

/* The tensor table: emit() counts when t == NULL, so that the count and the table cannot disagree. */

typedef struct table {
    tensor_info *t;
    int64_t n;
    double std;
} table;

static void emit(table *b, tensor_info info, const char *fmt, ...) MOE_PRINTF(3, 4);

static void emit(table *b, tensor_info info, const char *fmt, ...)
{
    if (b->t != NULL) {
        va_list ap;
        va_start(ap, fmt);
        vsnprintf(info.name, sizeof info.name, fmt, ap);
        va_end(ap);
        if (info.layout == TENSOR_PANELS)
            info.floats = panel_floats(info.rows, info.cols);
        else
            info.floats = pad16((size_t)info.rows * (size_t)info.cols);
        info.decay = info.layout != TENSOR_VECTOR;
        info.init_std = info.layout != TENSOR_VECTOR ? b->std : 0.0;
        info.init_value = info.layout == TENSOR_VECTOR && !info.state ? 1.0f : 0.0f;
        info.id = (uint32_t)b->n;
        b->t[b->n] = info;
    }
    b->n++;
}

static tensor_info matrix(section_kind kind, int layer, int64_t rows, int64_t cols, int64_t at, int64_t panel_row)
{
    return (tensor_info){.kind = kind,
                         .layer = layer,
                         .expert = -1,
                         .layout = TENSOR_PANELS,
                         .rows = rows,
                         .cols = cols,
                         .offset = (size_t)at + (size_t)panel_row * (size_t)cols,
                         .panel_row = panel_row};
}

static tensor_info gain(section_kind kind, int layer, int64_t n, int64_t at)
{
    return (tensor_info){
        .kind = kind, .layer = layer, .expert = -1, .layout = TENSOR_VECTOR, .rows = 1, .cols = n, .offset = (size_t)at};
}

/* gate, up, down of a SwiGLU block whose names begin with `prefix`. */
static void emit_swiglu(table *b, const model_spec *m, tensor_info like, int64_t F, int64_t w1, int64_t w2, const char *prefix)
{
    tensor_info gate = matrix(like.kind, like.layer, F, m->D, w1, 0);
    tensor_info up = matrix(like.kind, like.layer, F, m->D, w1, panel_pad(F));
    tensor_info down = matrix(like.kind, like.layer, m->D, F, w2, 0);
    gate.expert = up.expert = down.expert = like.expert;
    emit(b, gate, "%s.gate_proj.weight", prefix);
    emit(b, up, "%s.up_proj.weight", prefix);
    emit(b, down, "%s.down_proj.weight", prefix);
}

static void emit_dense(table *b, const model_spec *m, int l)
{
    const int64_t q = (int64_t)m->H * m->hd, kv = (int64_t)m->Hkv * m->hd;
    const section_kind S = SECTION_DENSE;
    char prefix[64];
    dense_layout at;
    spec_dense_layout(m, l, &at);
    emit(b, gain(S, l, m->D, at.attn_norm), "model.layers.%d.input_layernorm.weight", l);
    emit(b, matrix(S, l, q, m->D, at.qkv, 0), "model.layers.%d.self_attn.q_proj.weight", l);
    emit(b, matrix(S, l, kv, m->D, at.qkv, panel_pad(q)), "model.layers.%d.self_attn.k_proj.weight", l);
    emit(b, matrix(S, l, kv, m->D, at.qkv, panel_pad(q) + panel_pad(kv)), "model.layers.%d.self_attn.v_proj.weight", l);
    if (at.q_norm >= 0) {
        const bool full = m->qk_norm == QK_NORM_FULL;
        emit(b, gain(S, l, full ? q : m->hd, at.q_norm), "model.layers.%d.self_attn.q_norm.weight", l);
        emit(b, gain(S, l, full ? kv : m->hd, at.k_norm), "model.layers.%d.self_attn.k_norm.weight", l);
    }
    emit(b, matrix(S, l, m->D, q, at.o, 0), "model.layers.%d.self_attn.o_proj.weight", l);
    emit(b, gain(S, l, m->D, at.ffn_norm), "model.layers.%d.post_attention_layernorm.weight", l);
    const tensor_info like = {.kind = S, .layer = l, .expert = -1};
    if (at.ffn_w1 >= 0) {
        snprintf(prefix, sizeof prefix, "model.layers.%d.mlp", l);
        emit_swiglu(b, m, like, m->F_dense, at.ffn_w1, at.ffn_w2, prefix);
        return;
    }
    emit(b, matrix(S, l, m->E, m->D, at.router, 0), "model.layers.%d.mlp.gate.weight", l);
    if (at.router_bias >= 0) {
        tensor_info bias = gain(S, l, m->E, at.router_bias);
        bias.state = true;
        emit(b, bias, "model.layers.%d.mlp.gate.e_score_correction_bias", l);
    }
    if (at.shared_w1 >= 0) {
        snprintf(prefix, sizeof prefix, "model.layers.%d.mlp.shared_expert", l);
        emit_swiglu(b, m, like, m->F_shared, at.shared_w1, at.shared_w2, prefix);
        if (at.shared_gate >= 0)
            emit(b, matrix(S, l, 1, m->D, at.shared_gate, 0), "model.layers.%d.mlp.shared_expert_gate.weight", l);
    }
}

static void emit_expert(table *b, const model_spec *m, const expert_layout *at, int l, int e)
{
    char prefix[64];
    snprintf(prefix, sizeof prefix, "model.layers.%d.mlp.experts.%d", l, e);
    emit_swiglu(b, m, (tensor_info){.kind = SECTION_EXPERT, .layer = l, .expert = e}, m->F, at->w1, at->w2, prefix);
}

static void emit_all(table *b, const model_spec *m)
{
    embed_layout embed;
    head_layout head;
    expert_layout expert;
    spec_embed_layout(m, &embed);
    spec_head_layout(m, &head);
    spec_expert_layout(m, &expert);
    tensor_info words = matrix(SECTION_EMBED, -1, m->V, m->D, embed.table, 0);
    words.layout = m->tied ? TENSOR_PANELS : TENSOR_ROWS;
    emit(b, words, "model.embed_tokens.weight");
    for (int l = 0; l < m->L; l++) {
        emit_dense(b, m, l);
        for (int e = 0; m->moe_layer[l] && e < m->E; e++)
            emit_expert(b, m, &expert, l, e);
    }
    emit(b, gain(SECTION_HEAD, -1, m->D, head.norm), "model.norm.weight");
    if (!m->tied)
        emit(b, matrix(SECTION_HEAD, -1, m->V, m->D, head.lm_head, 0), "lm_head.weight");
}

moe_err spec_tensors(const model_spec *m, tensor_info **out, int64_t *n)
{
    *out = NULL;
    *n = 0;
    table b = {NULL, 0, m->init_std};
    emit_all(&b, m);
    tensor_info *t = calloc((size_t)b.n, sizeof *t);
    if (t == NULL)
        return moe_fail(MOE_E_OS, "out of memory for a table of %lld tensors", (long long)b.n);
    b = (table){t, 0, m->init_std};
    emit_all(&b, m);
    *out = t;
    *n = b.n;
    return MOE_OK;
}

void spec_expert_tensors(const model_spec *m, int layer, int expert, tensor_info out[3])
{
    expert_layout at;
    spec_expert_layout(m, &at);
    table before = {NULL, 1, 0.0}; /* the embedding */
    for (int l = 0; l <= layer; l++) {
        emit_dense(&before, m, l);
        before.n += 3 * (int64_t)(l == layer ? expert : m->moe_layer[l] ? m->E : 0);
    }
    table b = {out, 0, m->init_std};
    emit_expert(&b, m, &at, layer, expert);
    for (int i = 0; i < 3; i++)
        out[i].id = (uint32_t)(before.n + i);
}

/* Parameters of one layer outside its routed experts; `used`: only those in a matrix product. */
static int64_t layer_parameters(const model_spec *m, int l, bool used)
{
    const int64_t D = m->D, q = (int64_t)m->H * m->hd, kv = (int64_t)m->Hkv * m->hd;
    int64_t n = 2 * q * D + 2 * kv * D;
    if (!used) {
        n += 2 * D;
        n += m->qk_norm == QK_NORM_FULL ? q + kv : m->qk_norm == QK_NORM_HEAD ? 2 * m->hd : 0;
    }
    if (!m->moe_layer[l])
        return n + 3 * (int64_t)m->F_dense * D;
    n += (int64_t)m->E * D + 3 * (int64_t)m->F_shared * D;
    return n + (m->F_shared > 0 && m->shared_gate ? D : 0);
}

int64_t spec_expert_parameters(const model_spec *m) { return 3 * (int64_t)m->F * m->D * m->E * spec_moe_layers(m); }

int64_t spec_parameters(const model_spec *m)
{
    int64_t n = (m->tied ? 1 : 2) * (int64_t)m->V * m->D + m->D + spec_expert_parameters(m);
    for (int l = 0; l < m->L; l++)
        n += layer_parameters(m, l, false);
    return n;
}

int64_t spec_active_parameters(const model_spec *m)
{
    int64_t n = (int64_t)m->V * m->D + 3 * (int64_t)m->F * m->D * m->K * spec_moe_layers(m);
    for (int l = 0; l < m->L; l++)
        n += layer_parameters(m, l, true);
    return n;
}

static moe_err check_range(const char *key, int64_t v, int64_t low, int64_t high)
{
    if (v < low || v > high)
        return moe_fail(MOE_E_CONFIG, "%s is %lld: expected %lld to %lld", key, (long long)v, (long long)low, (long long)high);
    return MOE_OK;
}

static moe_err validate_attention(const model_spec *m)
{
    TRY(check_range("num_attention_heads", m->H, 1, MAX_WIDTH));
    TRY(check_range("num_key_value_heads", m->Hkv, 1, m->H));
    TRY(check_range("head_dim", m->hd, 2, MAX_WIDTH / m->H));
    if (m->H % m->Hkv != 0)
        return moe_fail(MOE_E_CONFIG, "num_attention_heads is %d: expected a multiple of num_key_value_heads (%d)", m->H, m->Hkv);
    if (m->hd % 2 != 0)
        return moe_fail(MOE_E_CONFIG, "head_dim is %d: expected an even number (rotary embedding pairs i with i + head_dim/2)",
                        m->hd);
    if (!(m->rope_theta > 0) || !isfinite(m->rope_theta))
        return moe_fail(MOE_E_CONFIG, "rope_theta is %g: expected a number > 0", m->rope_theta);
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
    if (r->groups > 1 && m->E / r->groups < 2)
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
