/* Hugging Face folders: every fixture loads number by number; what is written reads back bitwise, in one file and in many. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/matmul.h"
#include "models/formats/hf.h"
#include "models/formats/hf_private.h"
#include "models/formats/safetensors.h"
#include "tests/fixtures/fixture.h"
#include "tests/models/hf_folder.h"
#include "tests/models/make_spec.h"

TestSuite(hf, .init = hf_folder_setup, .fini = hf_folder_teardown);

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
    const size_t n = hf_section_floats(t);
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

static void write_model(const model_spec *m, hf_dtype dtype, uint64_t shard_bytes)
{
    hf_writer *w;
    tensor_info *t;
    int64_t n;
    cr_assert_eq(hf_writer_open_sharded(&w, hf_dir, m, dtype, shard_bytes), MOE_OK, "%s", moe_error_text());
    cr_assert_eq(spec_tensors(m, &t, &n), MOE_OK);
    for (int64_t i = 0; i < n; i++) {
        float *s = hf_make_section(&t[i]);
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
    cr_assert_eq(hf_config_load(&back, hf_dir), MOE_OK, "%s", moe_error_text());
    cr_assert_eq(memcmp(&m, &back, sizeof m), 0, "%s: the config does not say the same", pairs);
    cr_assert_eq(hf_reader_open(&r, hf_dir, &back), MOE_OK, "%s", moe_error_text());
    cr_assert_eq(spec_tensors(&m, &t, &n), MOE_OK);
    for (int64_t i = 0; i < n; i++) {
        float *section = read_section(r, &t[i]), *x = unpack(&t[i], section);
        for (int64_t k = 0; k < t[i].rows * t[i].cols; k++) {
            const float w = hf_number(t[i].id, k), expected = dtype == HF_BF16 ? st_f32_from_bf16(st_bf16_from_f32(w)) : w;
            cr_assert_eq(memcmp(&x[k], &expected, sizeof expected), 0, "%s[%lld]: %a, expected %a", t[i].name, (long long)k,
                         (double)x[k], (double)expected);
        }
        free(section), free(x);
    }
    free(t);
    hf_reader_close(r);
    hf_folder_teardown();
}

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
