/* The other side of models/formats/model_gguf.c, written from llama.cpp's names and convert_hf_to_gguf's permutation. Single-threaded. */
#include "tests/models/model_files.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/qmatmul.h"

float model_number(uint32_t id, int64_t i)
{
    const uint32_t x = (uint32_t)(i + 1) * 2654435761u ^ (id + 1) * 40503u;
    return ldexpf((float)((int)(x >> 8 & 0xFFFF) - 0x8000), -18 + (int)(x & 3));
}

void gguf_name(const tensor_info *t, char out[96])
{
    static const char *const names[][2] = {
        {"model.embed_tokens.weight", "token_embd.weight"}, {"model.norm.weight", "output_norm.weight"}, {"lm_head.weight", "output.weight"},
        {"input_layernorm.weight", "attn_norm.weight"},     {"post_attention_layernorm.weight", "ffn_norm.weight"},
        {"self_attn.q_proj.weight", "attn_q.weight"},       {"self_attn.k_proj.weight", "attn_k.weight"},
        {"self_attn.v_proj.weight", "attn_v.weight"},       {"self_attn.o_proj.weight", "attn_output.weight"},
        {"self_attn.q_proj.bias", "attn_q.bias"},           {"self_attn.k_proj.bias", "attn_k.bias"},
        {"self_attn.v_proj.bias", "attn_v.bias"},           {"self_attn.o_proj.bias", "attn_output.bias"},
        {"self_attn.q_norm.weight", "attn_q_norm.weight"},  {"self_attn.k_norm.weight", "attn_k_norm.weight"},
        {"mlp.gate.weight", "ffn_gate_inp.weight"},         {"mlp.gate_proj.weight", "ffn_gate.weight"},
        {"mlp.up_proj.weight", "ffn_up.weight"},            {"mlp.down_proj.weight", "ffn_down.weight"},
        {"mlp.gate.e_score_correction_bias", "exp_probs_b.bias"},
        {"mlp.shared_expert_gate.weight", "ffn_gate_inp_shexp.weight"},
        {"mlp.shared_expert.gate_proj.weight", "ffn_gate_shexp.weight"},
        {"mlp.shared_expert.up_proj.weight", "ffn_up_shexp.weight"},
        {"mlp.shared_expert.down_proj.weight", "ffn_down_shexp.weight"},
        {"mlp.shared_experts.gate_proj.weight", "ffn_gate_shexp.weight"},
        {"mlp.shared_experts.up_proj.weight", "ffn_up_shexp.weight"},
        {"mlp.shared_experts.down_proj.weight", "ffn_down_shexp.weight"},
        {"block_sparse_moe.gate.weight", "ffn_gate_inp.weight"},
        {"w1.weight", "ffn_gate_exps.weight"},              {"w3.weight", "ffn_up_exps.weight"},
        {"w2.weight", "ffn_down_exps.weight"},
        {"gate_proj.weight", "ffn_gate_exps.weight"},       {"up_proj.weight", "ffn_up_exps.weight"},
        {"down_proj.weight", "ffn_down_exps.weight"},
    };
    char hf[96];
    snprintf(hf, sizeof hf, "%s", t->name);
    const char *rest = hf;
    if (t->layer >= 0) {
        char prefix[64];
        snprintf(prefix, sizeof prefix, "model.layers.%d.", t->layer);
        cr_assert_eq(strncmp(hf, prefix, strlen(prefix)), 0);
        rest += strlen(prefix);
        for (int i = 0; i < 2; i++) {
            snprintf(prefix, sizeof prefix, "%s.experts.%d.", i == 0 ? "mlp" : "block_sparse_moe", t->expert);
            if (strncmp(rest, prefix, strlen(prefix)) == 0)
                rest += strlen(prefix);
        }
    }
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(rest, names[i][0]) == 0) {
            if (t->layer >= 0)
                snprintf(out, 96, "blk.%d.%s", t->layer, names[i][1]);
            else
                snprintf(out, 96, "%s", names[i][1]);
            return;
        }
    cr_assert_fail("%s has no name in GGUF", t->name);
}

static numfmt format_of(uint32_t type)
{
    return type == GGML_F32 ? NUM_F32 : type == GGML_BF16 ? NUM_BF16 : type == GGML_Q8_0 ? NUM_Q8_0 : NUM_Q4_0;
}

/* LlamaModel.permute of convert_hf_to_gguf.py: w.reshape(heads, 2, hd / 2, cols).swapaxes(1, 2). */
static void permute(float *x, int64_t rows, int64_t cols, int hd)
{
    float *y = malloc((size_t)(rows * cols) * sizeof *y);
    for (int64_t h = 0; h < rows / hd; h++)
        for (int half = 0; half < 2; half++)
            for (int i = 0; i < hd / 2; i++)
                memcpy(y + (h * hd + 2 * i + half) * cols, x + (h * hd + half * (hd / 2) + i) * cols, (size_t)cols * sizeof *y);
    memcpy(x, y, (size_t)(rows * cols) * sizeof *x);
    free(y);
}

/* Appends a tensor's rows in its format; llama: as its converter stores them. from: whose numbers, NULL: model_number. */
static void add_rows(text_buf *out, const char *arch, const model_spec *m, const model *from, const tensor_info *t, numfmt f)
{
    const int64_t n = t->rows * t->cols;
    float *x = from != NULL ? model_numbers(from, t) : malloc((size_t)n * sizeof *x);
    for (int64_t i = 0; i < n && from == NULL; i++)
        x[i] = model_number(t->id, i);
    if (strcmp(arch, "llama") == 0 && (strstr(t->name, "q_proj") != NULL || strstr(t->name, "k_proj") != NULL))
        permute(x, t->layout == TENSOR_VECTOR ? t->cols : t->rows, t->layout == TENSOR_VECTOR ? 1 : t->cols, m->hd);
    const size_t row = numfmt_row_bytes(f, t->cols);
    char *bytes = malloc(row);
    for (int64_t r = 0; r < t->rows; r++) {
        numfmt_from_f32(bytes, x + r * t->cols, f, t->cols);
        text_add_bytes(out, bytes, row);
    }
    free(bytes);
    free(x);
}

/* Its converter counts the layers that predict further tokens among the blocks. */
static void add_glm(gguf_build *b, const model_spec *m)
{
    int dense = 0;
    while (dense < m->L && !m->moe_layer[dense])
        dense++;
    gguf_build_u32(b, "glm4moe.rope.dimension_count", (uint32_t)m->rotary);
    gguf_build_u32(b, "glm4moe.attention.value_length", (uint32_t)m->hd);
    gguf_build_u32(b, "glm4moe.expert_shared_count", (uint32_t)(m->F_shared / m->F));
    gguf_build_u32(b, "glm4moe.leading_dense_block_count", (uint32_t)dense);
    gguf_build_u32(b, "glm4moe.expert_group_count", (uint32_t)m->router.groups);
    gguf_build_u32(b, "glm4moe.expert_group_used_count", (uint32_t)m->router.groups_used);
    gguf_build_u32(b, "glm4moe.expert_gating_func", 2);
    gguf_build_f32(b, "glm4moe.expert_weights_scale", m->router.scale);
    gguf_build_bool(b, "glm4moe.expert_weights_norm", m->router.normalize);
    gguf_build_u32(b, "glm4moe.nextn_predict_layers", 1);
}

/* A layer that predicts a further token: in the file, not read. */
static void add_beyond(gguf_build *b, const model_spec *m)
{
    char name[96];
    float *x = calloc((size_t)(2 * m->D) * (size_t)m->D, sizeof *x);
    snprintf(name, sizeof name, "blk.%d.nextn.eh_proj.weight", m->L);
    gguf_build_tensor(b, name, GGML_F32, 2, (uint64_t[]){2 * (uint64_t)m->D, (uint64_t)m->D}, x, 2 * (size_t)m->D * (size_t)m->D * sizeof *x);
    snprintf(name, sizeof name, "blk.%d.attn_norm.weight", m->L);
    gguf_build_tensor(b, name, GGML_F32, 1, (uint64_t[]){(uint64_t)m->D}, x, (size_t)m->D * sizeof *x);
    free(x);
}

static void add_metadata(gguf_build *b, const char *arch, const model_spec *m)
{
    char key[96];
    const struct {
        const char *key;
        uint32_t value;
    } ints[] = {
        {"embedding_length", (uint32_t)m->D},    {"block_count", (uint32_t)(m->L + (strcmp(arch, "glm4moe") == 0))},          {"context_length", (uint32_t)m->max_positions},
        {"attention.head_count", (uint32_t)m->H}, {"attention.head_count_kv", (uint32_t)m->Hkv},
        {"feed_forward_length", (uint32_t)(m->F_dense > 0 ? m->F_dense : m->F)},
        {"vocab_size", (uint32_t)m->V},          {"expert_count", (uint32_t)m->E},         {"expert_used_count", (uint32_t)m->K},
    };
    gguf_build_string(b, "general.architecture", arch);
    for (size_t i = 0; i < sizeof ints / sizeof *ints; i++) {
        snprintf(key, sizeof key, "%s.%s", arch, ints[i].key);
        if (ints[i].value > 0)
            gguf_build_u32(b, key, ints[i].value);
    }
    if (strcmp(arch, "olmoe") != 0) {
        snprintf(key, sizeof key, "%s.attention.key_length", arch);
        gguf_build_u32(b, key, (uint32_t)m->hd);
    }
    if (m->E > 0 && strcmp(arch, "olmoe") != 0 && strcmp(arch, "llama") != 0) {
        snprintf(key, sizeof key, "%s.expert_feed_forward_length", arch);
        gguf_build_u32(b, key, (uint32_t)m->F);
    }
    if (strcmp(arch, "qwen2moe") == 0)
        gguf_build_u32(b, "qwen2moe.expert_shared_feed_forward_length", (uint32_t)m->F_shared);
    if (strcmp(arch, "glm4moe") == 0)
        add_glm(b, m);
    snprintf(key, sizeof key, "%s.attention.layer_norm_rms_epsilon", arch);
    gguf_build_f32(b, key, m->rms_eps);
    snprintf(key, sizeof key, "%s.rope.freq_base", arch);
    gguf_build_f32(b, key, (float)m->rope_theta);
    if (m->rope.type == ROPE_LINEAR) {
        snprintf(key, sizeof key, "%s.rope.scaling.type", arch);
        gguf_build_string(b, key, "linear");
        snprintf(key, sizeof key, "%s.rope.scaling.factor", arch);
        gguf_build_f32(b, key, (float)m->rope.factor);
    }
}

/* The tensor's name in files of this architecture. */
static void name_in(const char *arch, const tensor_info *t, char out[96])
{
    gguf_name(t, out);
    if (strcmp(arch, "glm4moe") == 0 && t->role == ROLE_FFN_NORM)
        snprintf(out, 96, "blk.%d.post_attention_norm.weight", t->layer);
}

static void add_tensors(gguf_build *b, const char *arch, const model_spec *m, const model *from, uint32_t type, bool apart)
{
    tensor_info *t;
    int64_t n;
    cr_assert_eq(spec_tensors(m, &t, &n), MOE_OK);
    for (int64_t i = 0; i < n; i++) {
        char name[96];
        text_buf data = {0};
        const bool expert = t[i].kind == SECTION_EXPERT, together = expert && !apart;
        if (together && t[i].expert > 0)
            continue;
        name_in(arch, &t[i], name);
        if (expert && apart)
            snprintf(strstr(name, "_exps"), 32, ".%d.weight", t[i].expert);
        /* the gate of the shared expert, [1, D], is squeezed */
        const bool vector = t[i].layout == TENSOR_VECTOR || t[i].role == ROLE_SHARED_SWITCH;
        const uint32_t as = vector || strstr(name, "ffn_gate_inp") != NULL ? GGML_F32 : type;
        for (int e = 0; e < (together ? m->E : 1); e++)
            add_rows(&data, arch, m, from, &t[i + 3 * (int64_t)e], format_of(as));
        gguf_build_tensor(b, name, as, vector ? 1 : together ? 3 : 2,
                          (uint64_t[]){(uint64_t)t[i].cols, (uint64_t)t[i].rows, (uint64_t)m->E}, data.data, data.used);
        text_free(&data);
    }
    if (strcmp(arch, "glm4moe") == 0)
        add_beyond(b, m);
    free(t);
}

void gguf_model(gguf_build *b, const char *arch, const model_spec *m, uint32_t type)
{
    add_metadata(b, arch, m);
    add_tensors(b, arch, m, NULL, type, false);
}

void gguf_of_model(gguf_build *b, const char *arch, const model *m, bool apart)
{
    add_metadata(b, arch, model_spec_of(m));
    add_tensors(b, arch, model_spec_of(m), m, GGML_F32, apart);
}

float *model_numbers(const model *m, const tensor_info *t)
{
    const int hd = model_spec_of(m)->hd;
    model_extent e;
    model_find(m, t, &e);
    cr_assert_leq(e.offset + e.bytes, model_file_bytes(m, e.file));
    uint8_t *raw = malloc(e.bytes);
    float *x = malloc((size_t)(t->rows * t->cols) * sizeof *x), *y = malloc((size_t)t->cols * sizeof *y);
    cr_assert_eq(model_read(m, e.file, e.offset, raw, e.bytes), MOE_OK, "%s", moe_error_text());
    for (int64_t r = 0; r < t->rows; r++) {
        const int64_t h = r / hd, i = r % hd;
        const int64_t at = !e.heads_interleaved || t->layout == TENSOR_VECTOR ? r : h * hd + (i < hd / 2 ? 2 * i : 2 * (i - hd / 2) + 1);
        if (e.panels)
            qpanel_row(x + r * t->cols, raw, e.format, r, t->rows, t->cols);
        else
            numfmt_to_f32(x + r * t->cols, raw + (size_t)at * e.row_bytes, e.format, t->cols);
    }
    if (e.heads_interleaved && t->layout == TENSOR_VECTOR) {
        memcpy(y, x, (size_t)t->cols * sizeof *y);
        for (int64_t k = 0; k < t->cols; k++)
            x[k] = y[k / hd * hd + (k % hd < hd / 2 ? 2 * (k % hd) : 2 * (k % hd - hd / 2) + 1)];
    }
    free(y);
    free(raw);
    return x;
}
