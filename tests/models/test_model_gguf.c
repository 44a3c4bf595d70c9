/* GGUF files opened as models: a Hugging Face folder rewritten as GGUF is the same model; what does not fit its metadata is refused by name. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "models/model.h"
#include "tests/models/make_spec.h"
#include "tests/models/model_files.h"

static const char DENSE[] = "hidden_size=64 intermediate_size=96 num_hidden_layers=2 num_attention_heads=4 num_key_value_heads=2 vocab_size=37 "
                            "tie_word_embeddings=true rms_norm_eps=1e-5 rope_theta=100000.0 max_position_embeddings=8192 head_dim=16";
static const char SPARSE[] = "hidden_size=64 intermediate_size=96 moe_intermediate_size=32 num_hidden_layers=3 num_attention_heads=4 num_key_value_heads=2 "
                             "head_dim=32 vocab_size=37 num_experts=5 num_experts_per_tok=2 norm_topk_prob=true rope_theta=1000000.0";

static char dir[64];

static void setup(void)
{
    snprintf(dir, sizeof dir, "/tmp/moe-gguf-XXXXXX");
    cr_assert_not_null(mkdtemp(dir));
}

static void teardown(void)
{
    char command[300];
    snprintf(command, sizeof command, "rm -rf %s", dir);
    cr_assert_eq(system(command), 0);
}

TestSuite(model_gguf, .init = setup, .fini = teardown);

static const char *file(const char *name)
{
    static char path[200];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

static void refuse(gguf_build *b, moe_err expected, const char *sentence)
{
    model *m;
    gguf_build_write(b, file("bad.gguf"));
    cr_assert_eq(model_open(&m, file("bad.gguf")), expected, "%s: %s", sentence, moe_error_text());
    cr_assert_null(m);
    cr_assert_not_null(strstr(moe_error_text(), sentence), "expected \"%s\", found \"%s\"", sentence, moe_error_text());
    gguf_build_free(b);
}

/* The spec without what only training uses, which a GGUF file does not say. */
static model_spec of_inference(const model *m)
{
    model_spec s = *model_spec_of(m);
    s.init_std = s.aux_coef = 0;
    return s;
}

/* A Hugging Face folder as GGUF: the same spec, the same numbers. */
Test(model_gguf, of_the_serving_fixtures)
{
    static const struct {
        const char *folder, *arch;
        bool apart;
    } fixtures[] = {
        {"llama", "llama", false},        {"llama_bias", "llama", false},   {"mixtral", "llama", false},          {"mixtral", "llama", true},
        {"mixtral_fused", "llama", false}, {"qwen2_moe", "qwen2moe", false}, {"glm4_moe", "glm4moe", false},       {"glm4_moe_plain", "glm4moe", false},
        {"olmoe", "olmoe", false},         {"qwen2", "qwen2", false},       {"qwen3", "qwen3", false},
    };
    for (size_t f = 0; f < sizeof fixtures / sizeof *fixtures; f++) {
        char folder[256];
        model *m, *g;
        tensor_info *t;
        int64_t n;
        gguf_build b = GGUF_BUILD;
        snprintf(folder, sizeof folder, "tests/fixtures/serve/%s", fixtures[f].folder);
        cr_assert_eq(model_open(&m, folder), MOE_OK, "%s", moe_error_text());
        gguf_of_model(&b, fixtures[f].arch, m, fixtures[f].apart);
        gguf_build_write(&b, file("m.gguf"));
        gguf_build_free(&b);
        cr_assert_eq(model_open(&g, file("m.gguf")), MOE_OK, "%s: %s", folder, moe_error_text());
        const model_spec x = of_inference(m), y = of_inference(g);
        cr_assert_eq(memcmp(&x, &y, sizeof x), 0, "%s: %s", folder, model_config(g));
        cr_assert_eq(spec_tensors(&x, &t, &n), MOE_OK);
        for (int64_t i = 0; i < n; i++) {
            float *ours = model_numbers(m, &t[i]), *theirs = model_numbers(g, &t[i]);
            cr_assert_eq(memcmp(ours, theirs, (size_t)(t[i].rows * t[i].cols) * sizeof *ours), 0, "%s: %s", folder, t[i].name);
            free(ours), free(theirs);
        }
        free(t);
        model_close(m);
        model_close(g);
    }
}

/* Llama's file with these factors for its frequencies. */
static void add_factors(gguf_build *b, const model_spec *s, const float *factors, int n)
{
    *b = (gguf_build)GGUF_BUILD;
    gguf_model(b, "llama", s, GGML_F32);
    gguf_build_tensor(b, "rope_freqs.weight", GGML_F32, 1, (uint64_t[]){(uint64_t)n}, factors, (size_t)n * sizeof *factors);
}

/* Llama 3.1's rule as llama.cpp's converter keeps it, the factor of each frequency: the same rule again, and so the same frequencies. */
Test(model_gguf, with_llama3_frequencies)
{
    static const struct {
        double theta, factor;
        int positions;
    } rules[] = {{500000.0, 8.0, 8192}, {500000.0, 32.0, 8192}, {500.0, 8.0, 64}, {10000.0, 2.5, 1024}};
    model_spec s, unscaled;
    gguf_build b;
    model *m;
    float plain[32], scaled[32], got[32], factors[33] = {0};
    cr_assert_eq(make_spec(&s, "llama", "hidden_size=64 intermediate_size=32 num_hidden_layers=1 num_attention_heads=1 num_key_value_heads=1 vocab_size=37"), MOE_OK);
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++) {
        s.rope_theta = rules[i].theta;
        s.rope = (rope_scaling){.type = ROPE_LLAMA3, .factor = rules[i].factor, .low_freq_factor = 1, .high_freq_factor = 4,
                                .original_positions = rules[i].positions};
        unscaled = s;
        unscaled.rope.type = ROPE_DEFAULT;
        spec_rope_frequencies(&unscaled, plain);
        spec_rope_frequencies(&s, scaled);
        const double turn = 6.283185307179586, positions = rules[i].positions;
        for (int k = 0; k < 32; k++) {
            const double wavelength = turn / plain[k], smooth = (positions / wavelength - 1) / 3;
            factors[k] = wavelength > positions ? (float)rules[i].factor : wavelength < positions / 4 ? 1 : (float)(1 / ((1 - smooth) / rules[i].factor + smooth));
        }
        add_factors(&b, &s, factors, 32);
        gguf_build_write(&b, file("m.gguf"));
        gguf_build_free(&b);
        cr_assert_eq(model_open(&m, file("m.gguf")), MOE_OK, "%s", moe_error_text());
        spec_rope_frequencies(model_spec_of(m), got);
        cr_assert_eq(memcmp(got, scaled, sizeof got), 0);
        cr_assert(model_spec_of(m)->rope.type == ROPE_LLAMA3 && model_spec_of(m)->rope.original_positions == rules[i].positions);
        model_close(m);
    }
    const float kept = factors[20];
    factors[20] *= 1.01f;
    add_factors(&b, &s, factors, 32);
    refuse(&b, MOE_E_CONFIG, "rope_freqs.weight is not what rope_type llama3 gives");
    factors[20] = kept;
    add_factors(&b, &s, factors, 33);
    refuse(&b, MOE_E_DATA, "rope_freqs.weight has 33 numbers in f32: expected 32");
    add_factors(&b, &s, factors, 32);
    gguf_build_f32(&b, "llama.rope.scale_linear", 2);
    refuse(&b, MOE_E_CONFIG, "at once are not computed");
}

/* A factor without a word on its kind is of "linear", as llama.cpp has it. */
Test(model_gguf, with_a_factor_alone)
{
    model_spec s;
    model *m;
    gguf_build b = GGUF_BUILD;
    cr_assert_eq(make_spec(&s, "llama", "hidden_size=64 intermediate_size=32 num_hidden_layers=1 num_attention_heads=1 num_key_value_heads=1 vocab_size=37"), MOE_OK);
    gguf_model(&b, "llama", &s, GGML_F32);
    gguf_build_f32(&b, "llama.rope.scaling.factor", 4);
    gguf_build_write(&b, file("m.gguf"));
    gguf_build_free(&b);
    cr_assert_eq(model_open(&m, file("m.gguf")), MOE_OK, "%s", moe_error_text());
    cr_assert(model_spec_of(m)->rope.type == ROPE_LINEAR && model_spec_of(m)->rope.factor == 4);
    model_close(m);
}

/* gpt-oss without scaling: not its config.json's default, which is YaRN. */
Test(model_gguf, gpt_oss_without_scaling)
{
    model *m;
    FILE *f = fopen("tests/fixtures/serve/gpt_oss_mxfp4/model.gguf", "rb");
    char *text = calloc(1, 1 << 20);
    cr_assert(f != NULL && text != NULL);
    const size_t n = fread(text, 1, 1 << 20, f);
    fclose(f);
    char *key = memmem(text, n, "gpt-oss.rope.scaling.type", 25);
    cr_assert(key != NULL && memcmp(key + 37, "yarn", 4) == 0); /* behind the value's type and length */
    memcpy(key + 37, "none", 4);
    f = fopen(file("m.gguf"), "wb");
    cr_assert(f != NULL && fwrite(text, 1, n, f) == n && fclose(f) == 0);
    free(text);
    cr_assert_eq(model_open(&m, file("m.gguf")), MOE_OK, "%s", moe_error_text());
    cr_assert_eq(model_spec_of(m)->rope.type, ROPE_DEFAULT, "%s", model_config(m));
    model_close(m);
}

/* Llama's file with YaRN of 8 over 64 positions, and one number more. */
static void add_yarn(gguf_build *b, const char *key, float x)
{
    model_spec s;
    cr_assert_eq(make_spec(&s, "llama", "hidden_size=64 intermediate_size=32 num_hidden_layers=1 num_attention_heads=1 num_key_value_heads=1 vocab_size=37"), MOE_OK);
    *b = (gguf_build)GGUF_BUILD;
    gguf_model(b, "llama", &s, GGML_F32);
    gguf_build_string(b, "llama.rope.scaling.type", "yarn");
    gguf_build_f32(b, "llama.rope.scaling.factor", 8);
    gguf_build_u32(b, "llama.rope.scaling.original_context_length", 64);
    gguf_build_f32(b, key, x);
}

Test(model_gguf, with_yarn)
{
    static const struct {
        const char *key;
        float value;
        rope_scaling expected;
    } files[] = {
        {"llama.rope.scaling.yarn_beta_fast", 16, {.beta_fast = 16, .beta_slow = 1}},
        {"llama.rope.scaling.yarn_beta_slow", 0.5f, {.beta_fast = 32, .beta_slow = 0.5}},
        {"llama.rope.scaling.yarn_attn_factor", 0.75f, {.beta_fast = 32, .beta_slow = 1, .attention_factor = 0.75}},
        {"llama.rope.scaling.yarn_ext_factor", 1, {.beta_fast = 32, .beta_slow = 1}},
        {"llama.rope.scaling.yarn_log_multiplier", 0.0707f, {.beta_fast = 32, .beta_slow = 1, .mscale = 0.707, .mscale_all_dim = 0.707}},
    };
    gguf_build b;
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        model *m;
        add_yarn(&b, files[i].key, files[i].value);
        gguf_build_write(&b, file("m.gguf"));
        gguf_build_free(&b);
        cr_assert_eq(model_open(&m, file("m.gguf")), MOE_OK, "%s", moe_error_text());
        const rope_scaling *got = &model_spec_of(m)->rope, *want = &files[i].expected;
        cr_assert(got->type == ROPE_YARN && got->factor == 8 && got->original_positions == 64 && got->truncate, "%s", model_config(m));
        cr_assert(got->beta_fast == want->beta_fast && got->beta_slow == want->beta_slow && got->attention_factor == want->attention_factor, "%s",
                  model_config(m));
        cr_assert(got->mscale == want->mscale && got->mscale_all_dim == want->mscale_all_dim, "%s", model_config(m));
        model_close(m);
    }
    add_yarn(&b, "llama.rope.scaling.yarn_ext_factor", 0.5f);
    refuse(&b, MOE_E_CONFIG, "key llama.rope.scaling.yarn_ext_factor is 0.5: only 1 is computed");
}

/* Another value for a uint32 that is there. */
static void change_key(gguf_build *b, const char *key, uint32_t x)
{
    char *at = memmem(b->keys.data, b->keys.used, key, strlen(key));
    cr_assert_not_null(at);
    memcpy(at + strlen(key) + 4, &x, sizeof x);
}

Test(model_gguf, that_does_not_fit_its_metadata)
{
    static const float x[64];
    model_spec s, other;
    gguf_build b = GGUF_BUILD;
    cr_assert_eq(make_spec(&s, "qwen3_moe", SPARSE), MOE_OK);
    gguf_model(&b, "qwen3moe", &s, GGML_F32);
    gguf_build_tensor(&b, "blk.9.attn_q.weight", GGML_F32, 1, (uint64_t[]){64}, x, sizeof x);
    refuse(&b, MOE_E_DATA, "blk.9.attn_q.weight is not a tensor of this qwen3moe model");

    b = (gguf_build)GGUF_BUILD;
    gguf_model(&b, "qwen3moe", &s, GGML_F32);
    gguf_build_u32(&b, "qwen3moe.attention.sliding_window", 4096);
    refuse(&b, MOE_E_CONFIG, "key qwen3moe.attention.sliding_window is not known");

    b = (gguf_build)GGUF_BUILD;
    gguf_model(&b, "qwen3moe", &s, GGML_F32);
    gguf_build_u32(&b, "qwen3moe.rope.dimension_count", 16);
    refuse(&b, MOE_E_DATA, "key qwen3moe.rope.dimension_count is 16: expected 32 to 32");

    b = (gguf_build)GGUF_BUILD;
    gguf_model(&b, "qwen3moe", &s, GGML_F32);
    gguf_build_string(&b, "qwen3moe.rope.scaling.type", "longrope");
    refuse(&b, MOE_E_CONFIG, "rope.scaling.type is \"longrope\": none, linear and yarn are computed");

    other = s;
    other.F = 64;
    b = (gguf_build)GGUF_BUILD;
    gguf_model(&b, "qwen3moe", &other, GGML_F32);
    change_key(&b, "qwen3moe.expert_feed_forward_length", 32);
    refuse(&b, MOE_E_DATA, "blk.0.ffn_gate_exps.weight has shape [64, 64, 5, 1]: expected [64, 32, 5, 1]");

    b = (gguf_build)GGUF_BUILD;
    gguf_build_string(&b, "general.architecture", "rwkv7");
    refuse(&b, MOE_E_CONFIG, "general.architecture is \"rwkv7\"");

    b = (gguf_build)GGUF_BUILD;
    cr_assert_eq(make_spec(&s, "llama", DENSE), MOE_OK);
    gguf_model(&b, "llama", &s, GGML_F32);
    gguf_build_u32(&b, "llama.expert_count", 8);
    refuse(&b, MOE_E_DATA, "llama.expert_used_count");

    b = (gguf_build)GGUF_BUILD;
    gguf_model(&b, "llama", &s, GGML_F32);
    gguf_build_u32(&b, "llama.expert_count", 8);
    gguf_build_u32(&b, "llama.expert_used_count", 2);
    refuse(&b, MOE_E_DATA, "tensor blk.0.ffn_gate_inp.weight is missing");

    b = (gguf_build)GGUF_BUILD;
    s.L = 1;
    gguf_model(&b, "llama", &s, GGML_F32);
    change_key(&b, "llama.block_count", 2);
    refuse(&b, MOE_E_DATA, "tensor blk.1.attn_norm.weight is missing");
}
