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
        snprintf(prefix, sizeof prefix, "mlp.experts.%d.", t->expert);
        if (strncmp(rest, prefix, strlen(prefix)) == 0)
            rest += strlen(prefix);
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

/* Appends a tensor's rows in its format; llama: as its converter stores them. */
static void add_rows(text_buf *out, const char *arch, const model_spec *m, const tensor_info *t, numfmt f)
{
    const int64_t n = t->rows * t->cols;
    float *x = malloc((size_t)n * sizeof *x);
    for (int64_t i = 0; i < n; i++)
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

static void add_metadata(gguf_build *b, const char *arch, const model_spec *m)
{
    char key[96];
    const struct {
        const char *key;
        uint32_t value;
    } ints[] = {
        {"embedding_length", (uint32_t)m->D},    {"block_count", (uint32_t)m->L},          {"context_length", (uint32_t)m->max_positions},
        {"attention.head_count", (uint32_t)m->H}, {"attention.head_count_kv", (uint32_t)m->Hkv}, {"feed_forward_length", (uint32_t)m->F_dense},
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
    if (strcmp(arch, "qwen3moe") == 0)
        gguf_build_u32(b, "qwen3moe.expert_feed_forward_length", (uint32_t)m->F);
    snprintf(key, sizeof key, "%s.attention.layer_norm_rms_epsilon", arch);
    gguf_build_f32(b, key, m->rms_eps);
    snprintf(key, sizeof key, "%s.rope.freq_base", arch);
    gguf_build_f32(b, key, (float)m->rope_theta);
}

void gguf_model(gguf_build *b, const char *arch, const model_spec *m, uint32_t type)
{
    tensor_info *t;
    int64_t n;
    add_metadata(b, arch, m);
    cr_assert_eq(spec_tensors(m, &t, &n), MOE_OK);
    for (int64_t i = 0; i < n; i++) {
        char name[96];
        text_buf data = {0};
        if (t[i].kind == SECTION_EXPERT && t[i].expert > 0)
            continue;
        gguf_name(&t[i], name);
        const bool vector = t[i].layout == TENSOR_VECTOR;
        const uint32_t as = vector || strstr(name, "ffn_gate_inp") != NULL ? GGML_F32 : type;
        for (int e = 0; e < (t[i].kind == SECTION_EXPERT ? m->E : 1); e++)
            add_rows(&data, arch, m, &t[i + 3 * (int64_t)e], format_of(as));
        gguf_build_tensor(b, name, as, vector ? 1 : t[i].kind == SECTION_EXPERT ? 3 : 2,
                          (uint64_t[]){(uint64_t)t[i].cols, (uint64_t)t[i].rows, (uint64_t)m->E}, data.data, data.used);
        text_free(&data);
    }
    free(t);
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
