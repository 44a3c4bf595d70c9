/* Owns the table of a model's tensors: name, role, shape and place of each, in the order of the checkpoint files it writes.
 * Does not know where a size came from nor any file. Offsets are those of the layouts (spec.c).
 * Threads: pure functions of the spec.
 * Rule: the order is part of the format of runs and of the initial weights (tensor_info.id): new tensors only where a spec had none. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernels/matmul.h"
#include "models/spec.h"

typedef struct block_names {
    const char *moe, *shared, *gate, *up, *down; /* the MoE block, the shared expert in it, projections of an expert */
} block_names;

static const block_names NAMES[] = {
    [NAMES_QWEN] = {"mlp", "shared_expert", "gate_proj", "up_proj", "down_proj"},
    [NAMES_DEEPSEEK] = {"mlp", "shared_experts", "gate_proj", "up_proj", "down_proj"},
    [NAMES_GPT_OSS] = {"mlp", "shared_expert", "gate_proj", "up_proj", "down_proj"},
    [NAMES_MIXTRAL] = {"block_sparse_moe", "shared_expert", "w1", "w3", "w2"},
};
static const block_names DENSE_NAMES = {"mlp", "", "gate_proj", "up_proj", "down_proj"}; /* of a dense layer or a shared expert */

/* The tensor table: emit() counts when t == NULL, so that the count and the table cannot disagree. */

typedef struct table {
    tensor_info *t;
    int64_t n;
    double std;
} table;

static void emit(table *b, tensor_info info, const char *fmt, ...) MOE_PRINTF(3, 4);

static bool is_bias(tensor_role role)
{
    return role == ROLE_Q_A_BIAS || role == ROLE_KV_A_BIAS || role == ROLE_Q_BIAS || role == ROLE_K_BIAS || role == ROLE_V_BIAS || role == ROLE_O_BIAS || role == ROLE_ROUTER_BIAS ||
           role == ROLE_SINKS || role == ROLE_LOGIT_BIAS || role == ROLE_GATE_BIAS || role == ROLE_UP_BIAS || role == ROLE_DOWN_BIAS;
}

static void emit(table *b, tensor_info info, const char *fmt, ...)
{
    if (b->t != NULL) {
        va_list ap;
        va_start(ap, fmt);
        vsnprintf(info.name, sizeof info.name, fmt, ap);
        va_end(ap);
        if (info.layout == TENSOR_PANELS)
            info.floats = panel_floats(info.rows, info.cols);
        else if (info.layout != TENSOR_HEADS) /* which brings its own */
            info.floats = (size_t)panel_pad(info.rows * info.cols);
        info.decay = info.layout != TENSOR_VECTOR;
        info.init_std = info.layout != TENSOR_VECTOR ? b->std : 0.0;
        info.init_value = info.layout == TENSOR_VECTOR && !is_bias(info.role) ? 1.0f : 0.0f;
        info.id = (uint32_t)b->n;
        b->t[b->n] = info;
    }
    b->n++;
}

static tensor_info matrix(tensor_role role, section_kind kind, int layer, int64_t rows, int64_t cols, int64_t at, int64_t panel_row)
{
    return (tensor_info){.role = role,
                         .kind = kind,
                         .layer = layer,
                         .expert = -1,
                         .layout = TENSOR_PANELS,
                         .rows = rows,
                         .cols = cols,
                         .offset = (size_t)at + (size_t)panel_row * (size_t)cols,
                         .panel_row = panel_row};
}

/* A gain or a bias. */
static tensor_info vector(tensor_role role, section_kind kind, int layer, int64_t n, int64_t at)
{
    return (tensor_info){
        .role = role, .kind = kind, .layer = layer, .expert = -1, .layout = TENSOR_VECTOR, .rows = 1, .cols = n, .offset = (size_t)at};
}

/* gate, up, down of a SwiGLU block whose names begin with `prefix`; their roles follow each other from like.role. */
static void emit_swiglu(table *b, const model_spec *m, tensor_info like, int64_t F, int64_t w1, int64_t w2, const char *prefix,
                        const block_names *names)
{
    tensor_info gate = matrix(like.role, like.kind, like.layer, F, m->D, w1, 0);
    tensor_info up = matrix(like.role + 1, like.kind, like.layer, F, m->D, w1, panel_pad(F));
    tensor_info down = matrix(like.role + 2, like.kind, like.layer, m->D, F, w2, 0);
    gate.expert = up.expert = down.expert = like.expert;
    emit(b, gate, "%s.%s.weight", prefix, names->gate);
    emit(b, up, "%s.%s.weight", prefix, names->up);
    emit(b, down, "%s.%s.weight", prefix, names->down);
}

/* Names as in transformers; k_b_proj and v_b_proj are what kv_b_proj is made of (hf_names.c), each by itself as in GGUF. */
static void emit_latent(table *b, const model_spec *m, const dense_layout *at, int l)
{
    const int64_t q = (int64_t)m->H * m->hd, kv = m->kv_lora_rank + m->rotary;
    const section_kind S = SECTION_DENSE;
    if (at->q_a >= 0) {
        emit(b, matrix(ROLE_Q_A, S, l, m->q_lora_rank, m->D, at->q_a, 0), "model.layers.%d.self_attn.q_a_proj.weight", l);
        if (at->q_a_bias >= 0)
            emit(b, vector(ROLE_Q_A_BIAS, S, l, m->q_lora_rank, at->q_a_bias), "model.layers.%d.self_attn.q_a_proj.bias", l);
        emit(b, vector(ROLE_Q_A_NORM, S, l, m->q_lora_rank, at->q_a_norm), "model.layers.%d.self_attn.q_a_layernorm.weight", l);
        emit(b, matrix(ROLE_Q_B, S, l, q, m->q_lora_rank, at->q_b, 0), "model.layers.%d.self_attn.q_b_proj.weight", l);
    } else {
        emit(b, matrix(ROLE_Q, S, l, q, m->D, at->q_b, 0), "model.layers.%d.self_attn.q_proj.weight", l);
    }
    emit(b, matrix(ROLE_KV_A, S, l, kv, m->D, at->kv_a, 0), "model.layers.%d.self_attn.kv_a_proj_with_mqa.weight", l);
    if (at->kv_a_bias >= 0)
        emit(b, vector(ROLE_KV_A_BIAS, S, l, kv, at->kv_a_bias), "model.layers.%d.self_attn.kv_a_proj_with_mqa.bias", l);
    emit(b, vector(ROLE_KV_A_NORM, S, l, m->kv_lora_rank, at->kv_a_norm), "model.layers.%d.self_attn.kv_a_layernorm.weight", l);
    tensor_info keys = matrix(ROLE_K_B, S, l, (int64_t)m->H * m->kv_lora_rank, spec_nope(m), at->k_b, 0);
    tensor_info values = matrix(ROLE_V_B, S, l, (int64_t)m->H * m->v_head_dim, m->kv_lora_rank, at->v_b, 0);
    keys.layout = values.layout = TENSOR_HEADS;
    keys.floats = (size_t)m->H * panel_floats(m->kv_lora_rank, spec_nope(m));
    values.floats = (size_t)m->H * panel_floats(m->v_head_dim, m->kv_lora_rank);
    emit(b, keys, "model.layers.%d.self_attn.k_b_proj.weight", l);
    emit(b, values, "model.layers.%d.self_attn.v_b_proj.weight", l);
}

static void emit_qkv(table *b, const model_spec *m, const dense_layout *at, int l)
{
    const int64_t q = (int64_t)m->H * m->hd, kv = (int64_t)m->Hkv * m->hd, k_row = panel_pad(q), v_row = k_row + panel_pad(kv);
    const section_kind S = SECTION_DENSE;
    emit(b, matrix(ROLE_Q, S, l, q, m->D, at->qkv, 0), "model.layers.%d.self_attn.q_proj.weight", l);
    emit(b, matrix(ROLE_K, S, l, kv, m->D, at->qkv, k_row), "model.layers.%d.self_attn.k_proj.weight", l);
    emit(b, matrix(ROLE_V, S, l, kv, m->D, at->qkv, v_row), "model.layers.%d.self_attn.v_proj.weight", l);
    if (at->qkv_bias >= 0) {
        emit(b, vector(ROLE_Q_BIAS, S, l, q, at->qkv_bias), "model.layers.%d.self_attn.q_proj.bias", l);
        emit(b, vector(ROLE_K_BIAS, S, l, kv, at->qkv_bias + k_row), "model.layers.%d.self_attn.k_proj.bias", l);
        emit(b, vector(ROLE_V_BIAS, S, l, kv, at->qkv_bias + v_row), "model.layers.%d.self_attn.v_proj.bias", l);
    }
    if (at->q_norm >= 0) {
        const bool full = m->qk_norm == QK_NORM_FULL;
        emit(b, vector(ROLE_Q_NORM, S, l, full ? q : m->hd, at->q_norm), "model.layers.%d.self_attn.q_norm.weight", l);
        emit(b, vector(ROLE_K_NORM, S, l, full ? kv : m->hd, at->k_norm), "model.layers.%d.self_attn.k_norm.weight", l);
    }
}

static void emit_attention(table *b, const model_spec *m, const dense_layout *at, int l)
{
    const section_kind S = SECTION_DENSE;
    emit(b, vector(ROLE_ATTN_NORM, S, l, m->D, at->attn_norm), "model.layers.%d.input_layernorm.weight", l);
    if (m->kv_lora_rank > 0)
        emit_latent(b, m, at, l);
    else
        emit_qkv(b, m, at, l);
    emit(b, matrix(ROLE_O, S, l, m->D, (int64_t)m->H * spec_value(m), at->o, 0), "model.layers.%d.self_attn.o_proj.weight", l);
    if (at->o_bias >= 0)
        emit(b, vector(ROLE_O_BIAS, S, l, m->D, at->o_bias), "model.layers.%d.self_attn.o_proj.bias", l);
    if (at->sinks >= 0)
        emit(b, vector(ROLE_SINKS, S, l, m->H, at->sinks), "model.layers.%d.self_attn.sinks", l);
}

/* Of the router and of the experts (gpt-oss). */
static void emit_biases(table *b, const model_spec *m, const dense_layout *at, int l)
{
    const int64_t F = (int64_t)m->E * m->F, D = (int64_t)m->E * m->D;
    if (at->logit_bias >= 0)
        emit(b, vector(ROLE_LOGIT_BIAS, SECTION_DENSE, l, m->E, at->logit_bias), "model.layers.%d.mlp.router.bias", l);
    if (at->gate_bias < 0)
        return;
    emit(b, vector(ROLE_GATE_BIAS, SECTION_DENSE, l, F, at->gate_bias), "model.layers.%d.mlp.experts.gate_proj_bias", l);
    emit(b, vector(ROLE_UP_BIAS, SECTION_DENSE, l, F, at->up_bias), "model.layers.%d.mlp.experts.up_proj_bias", l);
    emit(b, vector(ROLE_DOWN_BIAS, SECTION_DENSE, l, D, at->down_bias), "model.layers.%d.mlp.experts.down_proj_bias", l);
}

static void emit_dense(table *b, const model_spec *m, int l)
{
    const section_kind S = SECTION_DENSE;
    const char *moe = NAMES[m->names].moe;
    char prefix[64];
    dense_layout at;
    spec_dense_layout(m, l, &at);
    emit_attention(b, m, &at, l);
    emit(b, vector(ROLE_FFN_NORM, S, l, m->D, at.ffn_norm), "model.layers.%d.post_attention_layernorm.weight", l);
    tensor_info like = {.role = ROLE_GATE, .kind = S, .layer = l, .expert = -1};
    if (at.ffn_w1 >= 0) {
        snprintf(prefix, sizeof prefix, "model.layers.%d.mlp", l);
        emit_swiglu(b, m, like, m->F_dense, at.ffn_w1, at.ffn_w2, prefix, &DENSE_NAMES);
        return;
    }
    emit(b, matrix(ROLE_ROUTER, S, l, m->E, m->D, at.router, 0), "model.layers.%d.%s.%s.weight", l, moe,
         m->names == NAMES_GPT_OSS ? "router" : "gate");
    emit_biases(b, m, &at, l);
    if (at.router_bias >= 0) {
        tensor_info bias = vector(ROLE_ROUTER_BIAS, S, l, m->E, at.router_bias);
        bias.state = true;
        emit(b, bias, "model.layers.%d.%s.gate.e_score_correction_bias", l, moe);
    }
    if (at.shared_w1 >= 0) {
        snprintf(prefix, sizeof prefix, "model.layers.%d.%s.%s", l, moe, NAMES[m->names].shared);
        like.role = ROLE_SHARED_GATE;
        emit_swiglu(b, m, like, m->F_shared, at.shared_w1, at.shared_w2, prefix, &DENSE_NAMES);
        if (at.shared_gate >= 0)
            emit(b, matrix(ROLE_SHARED_SWITCH, S, l, 1, m->D, at.shared_gate, 0), "model.layers.%d.%s.shared_expert_gate.weight", l, moe);
    }
}

static void emit_expert(table *b, const model_spec *m, const expert_layout *at, int l, int e)
{
    char prefix[64];
    const tensor_info like = {.role = ROLE_GATE, .kind = SECTION_EXPERT, .layer = l, .expert = e};
    snprintf(prefix, sizeof prefix, "model.layers.%d.%s.experts.%d", l, NAMES[m->names].moe, e);
    emit_swiglu(b, m, like, m->F, at->w1, at->w2, prefix, &NAMES[m->names]);
}

static void emit_all(table *b, const model_spec *m)
{
    embed_layout embed;
    head_layout head;
    expert_layout expert;
    spec_embed_layout(m, &embed);
    spec_head_layout(m, &head);
    spec_expert_layout(m, &expert);
    tensor_info words = matrix(ROLE_EMBED, SECTION_EMBED, -1, m->V, m->D, embed.table, 0);
    words.layout = m->tied ? TENSOR_PANELS : TENSOR_ROWS;
    emit(b, words, "model.embed_tokens.weight");
    for (int l = 0; l < m->L; l++) {
        emit_dense(b, m, l);
        for (int e = 0; m->moe_layer[l] && e < m->E; e++)
            emit_expert(b, m, &expert, l, e);
    }
    emit(b, vector(ROLE_FINAL_NORM, SECTION_HEAD, -1, m->D, head.norm), "model.norm.weight");
    if (!m->tied)
        emit(b, matrix(ROLE_LM_HEAD, SECTION_HEAD, -1, m->V, m->D, head.lm_head, 0), "lm_head.weight");
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
