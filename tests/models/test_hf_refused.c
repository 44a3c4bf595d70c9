/* Hugging Face folders that lack a tensor, have one too many, point outside of themselves or ask for what is not computed are refused; what cannot be
 * written leaves nothing behind. */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "models/formats/hf.h"
#include "models/formats/hf_private.h"
#include "models/formats/safetensors.h"
#include "tests/models/hf_folder.h"
#include "tests/models/make_spec.h"

TestSuite(hf_refused, .init = hf_folder_setup, .fini = hf_folder_teardown);

static void write_text(const char *name, const char *text)
{
    char path[200];
    mkdir(hf_dir, 0700);
    snprintf(path, sizeof path, "%s/%s", hf_dir, name);
    FILE *f = fopen(path, "w");
    fputs(text, f);
    fclose(f);
}

Test(hf_refused, config_spellings)
{
    model_spec m;
    write_text("config.json",
               "{\"model_type\": \"qwen3_moe\", \"num_local_experts\": 6, \"num_experts\": 6, \"num_experts_per_tok\": 2, "
               "\"rope_parameters\": "
               "{\"rope_type\": \"default\", \"rope_theta\": 5e5}, \"unheard_of\": null, \"architectures\": [\"x\", {}], "
               "\"rope_scaling\": null, \"head_dim\": 32, \"mlp_only_layers\": [3, 1], \"sliding_window\": null}");
    cr_assert_eq(hf_config_load(&m, hf_dir), MOE_OK, "%s", moe_error_text());
    cr_assert(m.E == 6 && m.rope_theta == 5e5 && m.hd == 32 && !m.moe_layer[3] && !m.moe_layer[1] && m.moe_layer[0] &&
              m.V == 151936);
    write_text("config.json", "{\"rope_theta\": 5e5, \"rope_scaling\": {\"type\": \"default\"}, \"torch_dtype\": \"float32\", "
                              "\"model_type\": \"olmoe\"}");
    cr_assert_eq(hf_config_load(&m, hf_dir), MOE_OK, "%s", moe_error_text());
    cr_assert(m.rope_theta == 5e5 && m.E == 64);
}

#define QUANTIZATION(value) "{\"model_type\": \"olmoe\", \"quantization_config\": " value "}"
#define FP8(size) "{\"quant_method\": \"fp8\", \"weight_block_size\": " size "}"

Test(hf_refused, config_refused)
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
        {"{\"model_type\": \"gpt_oss\", \"layer_types\": []}", "layer_types has no entries", MOE_E_CONFIG},
        {"{\"model_type\": \"gpt_oss\", \"num_hidden_layers\": 2, \"layer_types\": [\"full_attention\"]}", "layer_types has 1 entries", MOE_E_CONFIG},
        {"{\"model_type\": \"gpt_oss\", \"rope_scaling\": {\"factor\": 8}}", "rope_factor is given without rope_type", MOE_E_CONFIG},
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
    cr_assert_eq(hf_config_load(&m, hf_dir), MOE_E_NOINPUT);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_text("config.json", cases[i].text);
        cr_assert_eq(hf_config_load(&m, hf_dir), cases[i].code, "%s: %s", cases[i].text, moe_error_text());
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
    mkdir(hf_dir, 0700);
    snprintf(path, sizeof path, "%s/model.safetensors", hf_dir);
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

Test(hf_refused, missing_and_unknown_tensors)
{
    model_spec m, other;
    hf_reader *r;
    const char *small = SIZES "intermediate_size=20 num_hidden_layers=1";
    cr_assert_eq(make_spec(&m, "olmoe", small), MOE_OK);
    cr_assert_eq(hf_reader_open(&r, hf_dir, &m), MOE_E_NOINPUT);
    write_tensors(&m, "", NULL);
    cr_assert_eq(hf_reader_open(&r, hf_dir, &m), MOE_OK, "%s", moe_error_text());
    hf_reader_close(r);
    write_tensors(&m, "model.layers.0.mlp.gate.weight", NULL);
    cr_assert_eq(hf_reader_open(&r, hf_dir, &m), MOE_E_DATA);
    cr_assert_not_null(strstr(moe_error_text(), "model.layers.0.mlp.gate.weight is missing"), "%s", moe_error_text());
    write_tensors(&m, "model.layers.0.mlp.experts.3.up_proj.weight", NULL);
    cr_assert_eq(hf_reader_open(&r, hf_dir, &m), MOE_E_DATA);
    cr_assert_not_null(strstr(moe_error_text(), "experts.3.up_proj"), "%s", moe_error_text());
    write_tensors(&m, "", "model.layers.0.self_attn.q_proj.bias");
    cr_assert_eq(hf_reader_open(&r, hf_dir, &m), MOE_E_DATA);
    cr_assert_not_null(strstr(moe_error_text(), "q_proj.bias is not a tensor of this"), "%s", moe_error_text());
    write_tensors(&m, "", "model.layers.0.self_attn.rotary_emb.inv_freq");
    cr_assert_eq(hf_reader_open(&r, hf_dir, &m), MOE_OK, "%s", moe_error_text());
    hf_reader_close(r);
    other = m;
    other.F = 21;
    cr_assert_eq(hf_reader_open(&r, hf_dir, &other), MOE_E_DATA);
    cr_assert_not_null(strstr(moe_error_text(), "has shape [20, 48]: expected [21, 48]"), "%s", moe_error_text());
    cr_assert_null(r);
}

Test(hf_refused, a_tied_head_is_the_embedding)
{
    model_spec m, untied;
    hf_reader *r;
    cr_assert_eq(make_spec(&m, "olmoe", SIZES "intermediate_size=20 num_hidden_layers=1 tie_word_embeddings=true"), MOE_OK);
    write_tensors(&m, "", NULL);
    cr_assert_eq(hf_reader_open(&r, hf_dir, &m), MOE_OK, "%s", moe_error_text());
    hf_reader_close(r);
    untied = m;
    untied.tied = false;
    write_tensors(&untied, "", NULL); /* all zero: the same */
    cr_assert_eq(hf_reader_open(&r, hf_dir, &m), MOE_OK, "%s", moe_error_text());
    hf_reader_close(r);
    write_tensors(&m, "", "lm_head.weight"); /* its last number is 1 */
    cr_assert_eq(hf_reader_open(&r, hf_dir, &m), MOE_E_DATA);
    cr_assert_not_null(strstr(moe_error_text(), "lm_head.weight is not model.embed_tokens.weight"), "%s", moe_error_text());
}

Test(hf_refused, hostile_index)
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
        cr_assert_eq(hf_reader_open(&r, hf_dir, &m), cases[i].code, "%s: %s", cases[i].text, moe_error_text());
        cr_assert_null(r);
        cr_assert_not_null(strstr(moe_error_text(), cases[i].reason), "%s: %s", cases[i].text, moe_error_text());
    }
}

Test(hf_refused, writer_leaves_nothing_behind)
{
    model_spec m;
    hf_writer *w;
    tensor_info *t;
    int64_t n;
    struct stat st;
    cr_assert_eq(make_spec(&m, "olmoe", SIZES "intermediate_size=20"), MOE_OK);
    cr_assert_eq(spec_tensors(&m, &t, &n), MOE_OK);
    cr_assert_eq(hf_writer_open_sharded(&w, hf_dir, &m, HF_F32, 1), MOE_OK);
    float *s = hf_make_section(&t[0]);
    cr_assert_eq(hf_writer_write(w, &t[0], s), MOE_OK);
    cr_assert_eq(hf_writer_write(w, &t[2], s), MOE_E_DATA, "out of order");
    cr_assert_eq(hf_writer_finish(w), MOE_E_DATA, "not complete");
    hf_writer_close(w);
    cr_assert_neq(stat(hf_dir, &st), 0, "the folder went away");
    write_text("mine.txt", "");
    cr_assert_eq(hf_writer_open(&w, hf_dir, &m, HF_F32), MOE_E_CREATE);
    cr_assert_null(w);
    char path[100];
    snprintf(path, sizeof path, "%s/mine.txt", hf_dir);
    cr_assert_eq(access(path, F_OK), 0);
    free(s), free(t);
}

Test(hf_refused, full_disk)
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
    cr_assert_eq(hf_writer_open(&w, hf_dir, &m, HF_F32), MOE_OK, "%s", moe_error_text());
    moe_err rc = MOE_OK;
    for (int64_t i = 0; i < n && rc == MOE_OK; i++) {
        float *s = hf_make_section(&t[i]);
        rc = hf_writer_write(w, &t[i], s);
        free(s);
    }
    cr_assert_eq(rc, MOE_E_IO);
    cr_assert_not_null(strstr(moe_error_text(), "model.safetensors"), "%s", moe_error_text());
    hf_writer_close(w);
    cr_assert_neq(stat(hf_dir, &st), 0, "nothing stays");
    free(t);
}

Test(hf_refused, cannot_create)
{
    model_spec m;
    hf_writer *w;
    cr_assert_eq(make_spec(&m, "olmoe", SIZES "intermediate_size=20"), MOE_OK);
    cr_assert_eq(hf_writer_open(&w, "/tmp/moe-no-such-folder/x", &m, HF_F32), MOE_E_CREATE);
    cr_assert_eq(hf_writer_open(&w, "/dev/null", &m, HF_F32), MOE_E_CREATE);
    cr_assert_null(w);
}

Test(hf_refused, not_exportable)
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
        cr_assert_eq(hf_writer_open(&w, hf_dir, &m, HF_F32), MOE_E_CONFIG, "%s", pairs[i]);
        cr_assert_not_null(strstr(moe_error_text(), key), "%s: %s", pairs[i], moe_error_text());
        cr_assert_neq(stat(hf_dir, &st), 0, "nothing was made");
    }
}
