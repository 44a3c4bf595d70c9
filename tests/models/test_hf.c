/* Hugging Face folders: every fixture loads number by number; what is written reads back bitwise, in one file and in many; a
 * folder that lacks a tensor, has one too many, points outside itself or asks for what is not computed is refused. */
#include <criterion/criterion.h>
#include <dirent.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kernels/matmul.h"
#include "models/formats/hf.h"
#include "models/formats/hf_private.h"
#include "models/formats/safetensors.h"
#include "tests/fixtures/fixture.h"
#include "tests/models/make_spec.h"

static char dir[64]; /* a fresh folder's path for each test; the folder itself does not exist yet */

static void setup(void)
{
    snprintf(dir, sizeof dir, "/tmp/moe-hf-XXXXXX");
    cr_assert_not_null(mkdtemp(dir));
    rmdir(dir);
}

static void teardown(void)
{
    DIR *d = opendir(dir);
    char path[400];
    for (struct dirent *e; d != NULL && (e = readdir(d)) != NULL;) {
        snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        unlink(path);
    }
    if (d != NULL)
        closedir(d);
    rmdir(dir);
}

TestSuite(hf, .init = setup, .fini = teardown);

static size_t section_floats(const tensor_info *t)
{
    return t->offset + t->floats + 32; /* room behind, to see what is written there */
}

/* A tensor's numbers from its section, row-major; the pads must be zero. */
static float *unpack(const tensor_info *t, const float *section)
{
    float *x = malloc((size_t)(t->rows * t->cols) * sizeof *x);
    const float *at = section + t->offset;
    if (t->layout != TENSOR_PANELS) {
        memcpy(x, at, (size_t)(t->rows * t->cols) * sizeof *x);
        for (size_t i = (size_t)(t->rows * t->cols); i < t->floats; i++)
            cr_assert_eq(at[i], 0, "%s: pad %zu is %g", t->name, i, (double)at[i]);
        return x;
    }
    panel_unpack(x, at, 0, t->rows, t->cols);
    for (int64_t n = t->rows; n < panel_pad(t->rows); n++)
        for (int64_t k = 0; k < t->cols; k++)
            cr_assert_eq(at[panel_index(n, k, t->cols)], 0, "%s: pad row %lld", t->name, (long long)n);
    return x;
}

static float *read_section(hf_reader *r, const tensor_info *t)
{
    const size_t n = section_floats(t);
    float *s = malloc(n * sizeof *s);
    for (size_t i = 0; i < n; i++)
        s[i] = 77.0f;
    cr_assert_eq(hf_reader_read(r, t, s), MOE_OK, "%s: %s", t->name, moe_error_text());
    for (size_t i = 0; i < t->offset; i++)
        cr_assert_eq(s[i], 77.0f, "%s: float %zu before it was touched", t->name, i);
    for (size_t i = t->offset + t->floats; i < n; i++)
        cr_assert_eq(s[i], 77.0f, "%s: float %zu behind it was touched", t->name, i);
    return s;
}

/* The tensor in the fixture's file, by name or inside the fused one. */
static float *read_file(const safetensors *s, const model_spec *m, const tensor_info *t)
{
    float *x = malloc((size_t)(t->rows * t->cols) * sizeof *x);
    const st_tensor *f = safetensors_find(s, t->name);
    int64_t first = 0;
    if (f == NULL) {
        const bool down = strstr(t->name, "down_proj") != NULL, up = strstr(t->name, ".up_proj") != NULL;
        char name[96];
        snprintf(name, sizeof name, "model.layers.%d.mlp.experts.%s", t->layer, down ? "down_proj" : "gate_up_proj");
        f = safetensors_find(s, name);
        cr_assert_not_null(f, "%s", t->name);
        first = down ? (int64_t)t->expert * m->D * m->F : (2 * (int64_t)t->expert + up) * m->F * m->D;
    }
    cr_assert_eq(safetensors_read_f32(s, f, first, t->rows * t->cols, x), MOE_OK);
    return x;
}

Test(hf, every_fixture_loads)
{
    for (int i = 0; fixture_names[i] != NULL; i++) {
        char folder[256], path[300];
        model_spec m;
        hf_reader *r;
        safetensors *s;
        tensor_info *t;
        int64_t n;
        snprintf(folder, sizeof folder, "tests/fixtures/train/%s", fixture_names[i]);
        snprintf(path, sizeof path, "%s/model.safetensors", folder);
        cr_assert_eq(hf_config_load(&m, folder), MOE_OK, "%s", moe_error_text());
        cr_assert_eq(hf_reader_open(&r, folder, &m), MOE_OK, "%s", moe_error_text());
        cr_assert_eq(safetensors_open(&s, path), MOE_OK);
        cr_assert_eq(spec_tensors(&m, &t, &n), MOE_OK);
        for (int64_t k = 0; k < n; k++) {
            float *section = read_section(r, &t[k]), *got = unpack(&t[k], section), *expected = read_file(s, &m, &t[k]);
            cr_assert_eq(memcmp(got, expected, (size_t)(t[k].rows * t[k].cols) * sizeof *got), 0, "%s: %s", folder, t[k].name);
            free(section), free(got), free(expected);
        }
        free(t);
        safetensors_close(s);
        hf_reader_close(r);
    }
}

Test(hf, fixtures_open)
{
    for (int i = 0; fixture_names[i] != NULL; i++) {
        fixture f;
        tensor_info *t;
        int64_t n;
        cr_assert_eq(fixture_open(&f, fixture_names[i]), MOE_OK, "%s", moe_error_text());
        cr_assert_eq(spec_tensors(&f.spec, &t, &n), MOE_OK);
        for (int64_t k = 0; k < n; k++) {
            float *x = malloc((size_t)(t[k].rows * t[k].cols) * sizeof *x);
            cr_assert_eq(fixture_tensor(&f, "final", &t[k], x), MOE_OK, "%s", moe_error_text());
            cr_assert_eq(fixture_tensor(&f, "grad", &t[k], x), t[k].state ? MOE_E_DATA : MOE_OK, "%s", moe_error_text());
            free(x);
        }
        free(t);
        fixture_close(&f);
    }
}

/* Some number for element i of tensor id: many exponents, both signs, ties of bf16 among them. */
static float number(uint32_t id, int64_t i)
{
    const uint32_t x = (uint32_t)(i + 1) * 2654435761u ^ id * 40503u;
    return ldexpf((float)((int)(x >> 8 & 0xFFFF) - 0x8000), -20 + (int)(x & 15));
}

/* The section of one tensor, filled. */
static float *make_section(const tensor_info *t)
{
    float *s = calloc(section_floats(t), sizeof *s), *x = malloc((size_t)(t->rows * t->cols) * sizeof *x);
    for (int64_t i = 0; i < t->rows * t->cols; i++)
        x[i] = number(t->id, i);
    if (t->layout == TENSOR_PANELS)
        panel_pack(s + t->offset, x, t->rows, t->cols);
    else
        memcpy(s + t->offset, x, (size_t)(t->rows * t->cols) * sizeof *x);
    free(x);
    return s;
}

static void write_model(const model_spec *m, hf_dtype dtype, uint64_t shard_bytes)
{
    hf_writer *w;
    tensor_info *t;
    int64_t n;
    cr_assert_eq(hf_writer_open_sharded(&w, dir, m, dtype, shard_bytes), MOE_OK, "%s", moe_error_text());
    cr_assert_eq(spec_tensors(m, &t, &n), MOE_OK);
    for (int64_t i = 0; i < n; i++) {
        float *s = make_section(&t[i]);
        cr_assert_eq(hf_writer_write(w, &t[i], s), MOE_OK, "%s", moe_error_text());
        free(s);
    }
    cr_assert_eq(hf_writer_finish(w), MOE_OK, "%s", moe_error_text());
    hf_writer_close(w);
    free(t);
}

static void check_roundtrip(const char *type, const char *pairs, hf_dtype dtype, uint64_t shard_bytes)
{
    model_spec m, back;
    hf_reader *r;
    tensor_info *t;
    int64_t n;
    cr_assert_eq(make_spec(&m, type, pairs), MOE_OK, "%s", moe_error_text());
    write_model(&m, dtype, shard_bytes);
    cr_assert_eq(hf_config_load(&back, dir), MOE_OK, "%s", moe_error_text());
    cr_assert_eq(memcmp(&m, &back, sizeof m), 0, "%s: the config does not say the same", pairs);
    cr_assert_eq(hf_reader_open(&r, dir, &back), MOE_OK, "%s", moe_error_text());
    cr_assert_eq(spec_tensors(&m, &t, &n), MOE_OK);
    for (int64_t i = 0; i < n; i++) {
        float *section = read_section(r, &t[i]), *x = unpack(&t[i], section);
        for (int64_t k = 0; k < t[i].rows * t[i].cols; k++) {
            const float w = number(t[i].id, k), expected = dtype == HF_BF16 ? st_f32_from_bf16(st_bf16_from_f32(w)) : w;
            cr_assert_eq(memcmp(&x[k], &expected, sizeof expected), 0, "%s[%lld]: %a, expected %a", t[i].name, (long long)k,
                         (double)x[k], (double)expected);
        }
        free(section), free(x);
    }
    free(t);
    hf_reader_close(r);
    teardown();
}

#define SIZES                                                                                                                    \
    "vocab_size=97 hidden_size=48 num_hidden_layers=3 num_attention_heads=4 num_key_value_heads=2 num_experts=6 "                \
    "num_experts_per_tok=2 "

#define DENSE                                                                                                                    \
    "vocab_size=97 hidden_size=48 num_hidden_layers=2 num_attention_heads=4 num_key_value_heads=2 intermediate_size=20 "

Test(hf, roundtrip)
{
    check_roundtrip("qwen3_moe", SIZES "moe_intermediate_size=20 norm_topk_prob=true head_dim=10", HF_F32, HF_SHARD_BYTES);
    check_roundtrip("qwen3_moe",
                    SIZES "moe_intermediate_size=33 intermediate_size=35 mlp_only_layers=[1] tie_word_embeddings=true "
                          "rope_theta=1e6 rms_norm_eps=1e-5 router_aux_loss_coef=0 initializer_range=0.0123456789",
                    HF_F32, HF_SHARD_BYTES);
    check_roundtrip("qwen3_moe", SIZES "moe_intermediate_size=20 first_k_dense_replace=2", HF_BF16, HF_SHARD_BYTES);
    check_roundtrip("olmoe", SIZES "intermediate_size=20 clip_qkv=0.3", HF_F32, 20000);
    check_roundtrip("olmoe", SIZES "intermediate_size=20", HF_BF16, 1);
    check_roundtrip("qwen3_moe", SIZES "moe_intermediate_size=20 attention_bias=true rope_type=linear rope_factor=2.5", HF_F32, HF_SHARD_BYTES);
}

Test(hf, roundtrip_of_other_families)
{
    check_roundtrip("mixtral", SIZES "intermediate_size=20 head_dim=10", HF_F32, 20000);
    check_roundtrip("qwen2_moe", SIZES "moe_intermediate_size=20 shared_expert_intermediate_size=19 mlp_only_layers=[0] intermediate_size=18",
                    HF_F32, HF_SHARD_BYTES);
    check_roundtrip("glm4_moe", SIZES "moe_intermediate_size=11 n_shared_experts=2 head_dim=28 partial_rotary_factor=0.7142857142857143 "
                                      "n_group=3 topk_group=2 routed_scaling_factor=2.5 attention_bias=true intermediate_size=18",
                    HF_F32, HF_SHARD_BYTES);
    check_roundtrip("llama", DENSE "attention_bias=true head_dim=10 rope_type=llama3 rope_factor=8 rope_high_freq_factor=3 "
                                   "rope_original_max_position_embeddings=77",
                    HF_F32, HF_SHARD_BYTES);
    check_roundtrip("llama", DENSE "head_dim=10 rope_type=yarn rope_factor=8 rope_beta_fast=20 rope_beta_slow=2.5 rope_truncate=false rope_mscale=0.5 "
                                   "rope_mscale_all_dim=0.25 rope_original_max_position_embeddings=77", HF_F32, HF_SHARD_BYTES);
    check_roundtrip("llama", DENSE "head_dim=10 rope_type=yarn rope_factor=8 rope_attention_factor=0.8", HF_F32, HF_SHARD_BYTES);
    check_roundtrip("qwen2", DENSE "tie_word_embeddings=true", HF_BF16, HF_SHARD_BYTES);
    check_roundtrip("qwen3", DENSE "head_dim=14", HF_F32, HF_SHARD_BYTES);
}

static void write_text(const char *name, const char *text)
{
    char path[200];
    mkdir(dir, 0700);
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "w");
    fputs(text, f);
    fclose(f);
}

Test(hf, config_spellings)
{
    model_spec m;
    write_text("config.json",
               "{\"model_type\": \"qwen3_moe\", \"num_local_experts\": 6, \"num_experts\": 6, \"num_experts_per_tok\": 2, "
               "\"rope_parameters\": "
               "{\"rope_type\": \"default\", \"rope_theta\": 5e5}, \"unheard_of\": null, \"architectures\": [\"x\", {}], "
               "\"rope_scaling\": null, \"head_dim\": 32, \"mlp_only_layers\": [3, 1], \"sliding_window\": null}");
    cr_assert_eq(hf_config_load(&m, dir), MOE_OK, "%s", moe_error_text());
    cr_assert(m.E == 6 && m.rope_theta == 5e5 && m.hd == 32 && !m.moe_layer[3] && !m.moe_layer[1] && m.moe_layer[0] &&
              m.V == 151936);
    write_text("config.json", "{\"rope_theta\": 5e5, \"rope_scaling\": {\"type\": \"default\"}, \"torch_dtype\": \"float32\", "
                              "\"model_type\": \"olmoe\"}");
    cr_assert_eq(hf_config_load(&m, dir), MOE_OK, "%s", moe_error_text());
    cr_assert(m.rope_theta == 5e5 && m.E == 64);
}

#define QUANTIZATION(value) "{\"model_type\": \"olmoe\", \"quantization_config\": " value "}"
#define FP8(size) "{\"quant_method\": \"fp8\", \"weight_block_size\": " size "}"

Test(hf, config_refused)
{
    static const struct {
        const char *text, *reason;
        moe_err code;
    } cases[] = {
        {"", "", MOE_E_DATA},
        {"[]", "", MOE_E_DATA},
        {"{\"model_type\": \"qwen3_moe\"", "", MOE_E_DATA},
        {"{\"model_type\": \"qwen3_moe\"} x", "", MOE_E_DATA},
        {"{}", "no model_type", MOE_E_CONFIG},
        {"{\"model_type\": \"gpt2\"}", "model_type is \"gpt2\"", MOE_E_CONFIG},
        {QUANTIZATION("{}"), "quantization_config has no quant_method", MOE_E_CONFIG},
        {QUANTIZATION("7"), "quantization_config is a number", MOE_E_CONFIG},
        {QUANTIZATION("{\"quant_method\": \"awq\"}"), "quant_method is \"awq\": expected \"fp8\" or \"mxfp4\"", MOE_E_CONFIG},
        {QUANTIZATION("{\"quant_method\": \"fp8\"}"), "no weight_block_size: expected [128, 128]", MOE_E_CONFIG},
        {QUANTIZATION(FP8("[128, 64]")), "weight_block_size: expected [128, 128]", MOE_E_CONFIG},
        {QUANTIZATION(FP8("[128]")), "weight_block_size: expected [128, 128]", MOE_E_CONFIG},
        {QUANTIZATION(FP8("[128, 128, 128]")), "weight_block_size: expected [128, 128]", MOE_E_CONFIG},
        {QUANTIZATION(FP8("null")), "weight_block_size: expected [128, 128]", MOE_E_CONFIG},
        {QUANTIZATION(FP8("[128, 128], \"fmt\": \"e5m2\"")), "quantization_config.fmt: expected \"e4m3\"", MOE_E_CONFIG},
        {QUANTIZATION(FP8("[128, 128], \"activation_scheme\": \"static\"")), "activation_scheme: expected \"dynamic\"", MOE_E_CONFIG},
        {QUANTIZATION(FP8("[128, 128], \"bits\": 4")), "quantization_config.bits is not known", MOE_E_CONFIG},
        {"{\"model_type\": \"olmoe\", \"sliding_window\": 128}", "sliding_window", MOE_E_CONFIG},
        {"{\"model_type\": \"olmoe\", \"hidden_size\": \"2048\"}", "hidden_size is a string: expected a whole number",
         MOE_E_CONFIG},
        {"{\"model_type\": \"olmoe\", \"norm_topk_prob\": 1}", "norm_topk_prob is a number: expected true or false",
         MOE_E_CONFIG},
        {"{\"model_type\": \"olmoe\", \"hidden_size\": 2048.5}", "", MOE_E_DATA},
        {"{\"model_type\": \"olmoe\", \"hidden_size\": 64, \"hidden_size\": 64}", "hidden_size occurs twice", MOE_E_DATA},
        {"{\"model_type\": \"olmoe\", \"hidden_act\": \"gelu\"}", "hidden_act is \"gelu\"", MOE_E_CONFIG},
        {"{\"model_type\": \"olmoe\", \"rope_scaling\": {\"rope_type\": \"dynamic\", \"factor\": 4.0}}",
         "rope_type is \"dynamic\"", MOE_E_CONFIG},
        {"{\"model_type\": \"olmoe\", \"rope_parameters\": {\"factor\": 4.0}}", "rope_factor is 4 with rope_type default", MOE_E_CONFIG},
        {"{\"model_type\": \"olmoe\", \"rope_theta\": 1e4, \"rope_parameters\": {\"rope_theta\": 1e6}}",
         "rope_theta is 10000 but", MOE_E_CONFIG},
        {"{\"model_type\": \"olmoe\", \"num_experts\": 64, \"num_local_experts\": 32}", "num_experts is 64 but", MOE_E_CONFIG},
        {"{\"model_type\": \"qwen3_moe\", \"mlp_only_layers\": [1, \"2\"]}", "whole numbers", MOE_E_DATA},
        {"{\"model_type\": \"qwen3_moe\", \"num_attention_heads\": 5}", "num_attention_heads is 5", MOE_E_CONFIG},
    };
    model_spec m;
    cr_assert_eq(hf_config_load(&m, dir), MOE_E_NOINPUT);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_text("config.json", cases[i].text);
        cr_assert_eq(hf_config_load(&m, dir), cases[i].code, "%s: %s", cases[i].text, moe_error_text());
        cr_assert_not_null(strstr(moe_error_text(), cases[i].reason), "%s: %s", cases[i].text, moe_error_text());
        cr_assert_not_null(strstr(moe_error_text(), "config.json"), "%s", moe_error_text());
    }
}

/* Writes model.safetensors with all tensors of the spec but `without`, and perhaps one more. */
static void write_tensors(const model_spec *m, const char *without, const char *more)
{
    char path[200];
    tensor_info *t;
    int64_t n, k = 0;
    st_writer *w;
    mkdir(dir, 0700);
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    unlink(path);
    cr_assert_eq(spec_tensors(m, &t, &n), MOE_OK);
    st_declare *d = calloc((size_t)n + 1, sizeof *d);
    size_t total = 0;
    for (int64_t i = 0; i < n; i++) {
        if (strcmp(t[i].name, without) == 0)
            continue;
        d[k] = (st_declare){t[i].name, ST_F32, t[i].layout == TENSOR_VECTOR ? 1 : 2, {t[i].rows, t[i].cols}};
        if (t[i].layout == TENSOR_VECTOR)
            d[k].shape[0] = t[i].cols;
        total += (size_t)(t[i].rows * t[i].cols);
        k++;
    }
    if (more != NULL) {
        d[k++] = (st_declare){more, ST_F32, 2, {m->V, m->D}};
        total += (size_t)m->V * (size_t)m->D;
    }
    float *x = calloc(total, sizeof *x);
    if (more != NULL)
        x[total - 1] = 1;
    cr_assert_eq(safetensors_create(&w, path, d, k), MOE_OK, "%s", moe_error_text());
    cr_assert_eq(safetensors_append(w, x, total * sizeof *x), MOE_OK);
    cr_assert_eq(safetensors_finish(w), MOE_OK);
    safetensors_abandon(w);
    free(x), free(d), free(t);
}

Test(hf, missing_and_unknown_tensors)
{
    model_spec m, other;
    hf_reader *r;
    const char *small = SIZES "intermediate_size=20 num_hidden_layers=1";
    cr_assert_eq(make_spec(&m, "olmoe", small), MOE_OK);
    cr_assert_eq(hf_reader_open(&r, dir, &m), MOE_E_NOINPUT);
    write_tensors(&m, "", NULL);
    cr_assert_eq(hf_reader_open(&r, dir, &m), MOE_OK, "%s", moe_error_text());
    hf_reader_close(r);
    write_tensors(&m, "model.layers.0.mlp.gate.weight", NULL);
    cr_assert_eq(hf_reader_open(&r, dir, &m), MOE_E_DATA);
    cr_assert_not_null(strstr(moe_error_text(), "model.layers.0.mlp.gate.weight is missing"), "%s", moe_error_text());
    write_tensors(&m, "model.layers.0.mlp.experts.3.up_proj.weight", NULL);
    cr_assert_eq(hf_reader_open(&r, dir, &m), MOE_E_DATA);
    cr_assert_not_null(strstr(moe_error_text(), "experts.3.up_proj"), "%s", moe_error_text());
    write_tensors(&m, "", "model.layers.0.self_attn.q_proj.bias");
    cr_assert_eq(hf_reader_open(&r, dir, &m), MOE_E_DATA);
    cr_assert_not_null(strstr(moe_error_text(), "q_proj.bias is not a tensor of this"), "%s", moe_error_text());
    write_tensors(&m, "", "model.layers.0.self_attn.rotary_emb.inv_freq");
    cr_assert_eq(hf_reader_open(&r, dir, &m), MOE_OK, "%s", moe_error_text());
    hf_reader_close(r);
    other = m;
    other.F = 21;
    cr_assert_eq(hf_reader_open(&r, dir, &other), MOE_E_DATA);
    cr_assert_not_null(strstr(moe_error_text(), "has shape [20, 48]: expected [21, 48]"), "%s", moe_error_text());
    cr_assert_null(r);
}

Test(hf, a_tied_head_is_the_embedding)
{
    model_spec m, untied;
    hf_reader *r;
    cr_assert_eq(make_spec(&m, "olmoe", SIZES "intermediate_size=20 num_hidden_layers=1 tie_word_embeddings=true"), MOE_OK);
    write_tensors(&m, "", NULL);
    cr_assert_eq(hf_reader_open(&r, dir, &m), MOE_OK, "%s", moe_error_text());
    hf_reader_close(r);
    untied = m;
    untied.tied = false;
    write_tensors(&untied, "", NULL); /* all zero: the same */
    cr_assert_eq(hf_reader_open(&r, dir, &m), MOE_OK, "%s", moe_error_text());
    hf_reader_close(r);
    write_tensors(&m, "", "lm_head.weight"); /* its last number is 1 */
    cr_assert_eq(hf_reader_open(&r, dir, &m), MOE_E_DATA);
    cr_assert_not_null(strstr(moe_error_text(), "lm_head.weight is not model.embed_tokens.weight"), "%s", moe_error_text());
}

Test(hf, hostile_index)
{
    static const struct {
        const char *text, *reason;
        moe_err code;
    } cases[] = {
        {"{}", "no weight_map", MOE_E_DATA},
        {"{\"weight_map\": {}}", "no weight_map", MOE_E_DATA},
        {"{\"weight_map\": []}", "", MOE_E_DATA},
        {"{\"weight_map\": {\"a\": 1}}", "", MOE_E_DATA},
        {"{\"weight_map\": {\"a\": \"../x.safetensors\"}}", "not the name of", MOE_E_DATA},
        {"{\"weight_map\": {\"a\": \"/etc/x.safetensors\"}}", "not the name of", MOE_E_DATA},
        {"{\"weight_map\": {\"a\": \"..\"}}", "not the name of", MOE_E_DATA},
        {"{\"weight_map\": {\"a\": \".safetensors\"}}", "not the name of", MOE_E_DATA},
        {"{\"weight_map\": {\"a\": \"config.json\"}}", "not the name of", MOE_E_DATA},
        {"{\"weight_map\": {\"a\": \"b/../c.safetensors\"}}", "not the name of", MOE_E_DATA},
        {"{\"weight_map\": {\"a\": \"x.safetensors\"}}", "cannot open", MOE_E_NOINPUT},
        {"{\"weight_map\": {\"a\": \"x.safetensors\"}", "", MOE_E_DATA},
        {"{\"weight_map\": {\"a\": \"x.safetensors\"}, \"weight_map\": {}}", "twice", MOE_E_DATA},
    };
    model_spec m;
    hf_reader *r;
    cr_assert_eq(make_spec(&m, "olmoe", SIZES "intermediate_size=20"), MOE_OK);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_text(HF_INDEX, cases[i].text);
        cr_assert_eq(hf_reader_open(&r, dir, &m), cases[i].code, "%s: %s", cases[i].text, moe_error_text());
        cr_assert_null(r);
        cr_assert_not_null(strstr(moe_error_text(), cases[i].reason), "%s: %s", cases[i].text, moe_error_text());
    }
}

Test(hf, writer_leaves_nothing_behind)
{
    model_spec m;
    hf_writer *w;
    tensor_info *t;
    int64_t n;
    struct stat st;
    cr_assert_eq(make_spec(&m, "olmoe", SIZES "intermediate_size=20"), MOE_OK);
    cr_assert_eq(spec_tensors(&m, &t, &n), MOE_OK);
    cr_assert_eq(hf_writer_open_sharded(&w, dir, &m, HF_F32, 1), MOE_OK);
    float *s = make_section(&t[0]);
    cr_assert_eq(hf_writer_write(w, &t[0], s), MOE_OK);
    cr_assert_eq(hf_writer_write(w, &t[2], s), MOE_E_DATA, "out of order");
    cr_assert_eq(hf_writer_finish(w), MOE_E_DATA, "not complete");
    hf_writer_close(w);
    cr_assert_neq(stat(dir, &st), 0, "the folder went away");
    write_text("mine.txt", "");
    cr_assert_eq(hf_writer_open(&w, dir, &m, HF_F32), MOE_E_CREATE);
    cr_assert_null(w);
    char path[100];
    snprintf(path, sizeof path, "%s/mine.txt", dir);
    cr_assert_eq(access(path, F_OK), 0);
    free(s), free(t);
}

Test(hf, full_disk)
{
    model_spec m;
    hf_writer *w;
    tensor_info *t;
    int64_t n;
    struct stat st;
    const struct rlimit most = {20000, 20000}; /* bytes of a file; each Test is a process of its own */
    signal(SIGXFSZ, SIG_IGN);
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &most), 0);
    cr_assert_eq(make_spec(&m, "olmoe", SIZES "intermediate_size=20"), MOE_OK);
    cr_assert_eq(spec_tensors(&m, &t, &n), MOE_OK);
    cr_assert_eq(hf_writer_open(&w, dir, &m, HF_F32), MOE_OK, "%s", moe_error_text());
    moe_err rc = MOE_OK;
    for (int64_t i = 0; i < n && rc == MOE_OK; i++) {
        float *s = make_section(&t[i]);
        rc = hf_writer_write(w, &t[i], s);
        free(s);
    }
    cr_assert_eq(rc, MOE_E_IO);
    cr_assert_not_null(strstr(moe_error_text(), "model.safetensors"), "%s", moe_error_text());
    hf_writer_close(w);
    cr_assert_neq(stat(dir, &st), 0, "nothing stays");
    free(t);
}

Test(hf, cannot_create)
{
    model_spec m;
    hf_writer *w;
    cr_assert_eq(make_spec(&m, "olmoe", SIZES "intermediate_size=20"), MOE_OK);
    cr_assert_eq(hf_writer_open(&w, "/tmp/moe-no-such-folder/x", &m, HF_F32), MOE_E_CREATE);
    cr_assert_eq(hf_writer_open(&w, "/dev/null", &m, HF_F32), MOE_E_CREATE);
    cr_assert_null(w);
}

Test(hf, not_exportable)
{
    static const char *const pairs[] = {
        "shared_expert_intermediate_size=8", "use_correction_bias=true", "scoring_func=sigmoid", "n_group=2",
        "routed_scaling_factor=2.5",         "first_k_dense_replace=1"};
    hf_writer *w;
    struct stat st;
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        model_spec m;
        char text[300], key[64];
        snprintf(text, sizeof text, "%sintermediate_size=20 %s", SIZES, pairs[i]);
        snprintf(key, sizeof key, "%.*s", (int)strcspn(pairs[i], "="), pairs[i]);
        cr_assert_eq(make_spec(&m, "olmoe", text), MOE_OK, "%s", moe_error_text());
        cr_assert_eq(hf_writer_open(&w, dir, &m, HF_F32), MOE_E_CONFIG, "%s", pairs[i]);
        cr_assert_not_null(strstr(moe_error_text(), key), "%s: %s", pairs[i], moe_error_text());
        cr_assert_neq(stat(dir, &st), 0, "nothing was made");
    }
}
