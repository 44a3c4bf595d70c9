/* Models opened in place: Hugging Face folders and GGUF files of every family give each number of each tensor; what is packed is the same model;
 * what does not fit its description is refused by name. */
#include <criterion/criterion.h>
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "kernels/qmatmul.h"
#include "models/formats/hf.h"
#include "models/formats/packed.h"
#include "tests/fixtures/fixture.h"
#include "tests/models/make_spec.h"
#include "tests/models/model_files.h"

static char dir[64];

static void setup(void)
{
    snprintf(dir, sizeof dir, "/tmp/moe-model-XXXXXX");
    cr_assert_not_null(mkdtemp(dir));
}

static void remove_all(const char *path)
{
    char command[300];
    snprintf(command, sizeof command, "rm -rf %s", path);
    cr_assert_eq(system(command), 0);
}

static void teardown(void) { remove_all(dir); }

TestSuite(model, .init = setup, .fini = teardown);

static const char *file(const char *name)
{
    static char path[4][200];
    static int i;
    i = (i + 1) % 4;
    snprintf(path[i], sizeof path[i], "%s/%s", dir, name);
    return path[i];
}

static void write_text(const char *path, const char *text)
{
    FILE *f = fopen(path, "we");
    cr_assert(f != NULL && fputs(text, f) >= 0 && fclose(f) == 0, "%s", path);
}

/* Every number of a is the same in b. */
static void expect_same(const model *a, const model *b)
{
    tensor_info *t;
    int64_t n;
    cr_assert_eq(memcmp(model_spec_of(a), model_spec_of(b), sizeof(model_spec)), 0);
    cr_assert_eq(spec_tensors(model_spec_of(a), &t, &n), MOE_OK);
    for (int64_t i = 0; i < n; i++) {
        float *x = model_numbers(a, &t[i]), *y = model_numbers(b, &t[i]);
        cr_assert_eq(memcmp(x, y, (size_t)(t[i].rows * t[i].cols) * sizeof *x), 0, "%s", t[i].name);
        free(x), free(y);
    }
    free(t);
}

Test(model, hugging_face_fixtures)
{
    for (int i = 0; fixture_names[i] != NULL; i++) {
        char folder[256];
        model *m;
        hf_reader *r;
        tensor_info *t;
        int64_t n;
        snprintf(folder, sizeof folder, "tests/fixtures/train/%s", fixture_names[i]);
        cr_assert_eq(model_open(&m, folder), MOE_OK, "%s", moe_error_text());
        cr_assert(model_kind_of(m) == MODEL_HF && strcmp(model_name(m), folder) == 0 && model_tokenizer(m) == NULL);
        cr_assert_eq(hf_reader_open(&r, folder, model_spec_of(m)), MOE_OK);
        cr_assert_eq(spec_tensors(model_spec_of(m), &t, &n), MOE_OK);
        for (int64_t k = 0; k < n; k++) {
            float *section = calloc(t[k].offset + t[k].floats, sizeof *section), *x = model_numbers(m, &t[k]);
            cr_assert_eq(hf_reader_read(r, &t[k], section), MOE_OK);
            for (int64_t row = 0; row < t[k].rows; row++)
                for (int64_t c = 0; c < t[k].cols; c++) {
                    const float y = t[k].layout == TENSOR_PANELS ? section[t[k].offset + panel_index(row, c, t[k].cols)]
                                                                 : section[t[k].offset + (size_t)(row * t[k].cols + c)];
                    cr_assert_eq(memcmp(&x[row * t[k].cols + c], &y, sizeof y), 0, "%s: %s [%lld, %lld]", folder, t[k].name, (long long)row,
                                 (long long)c);
                }
            free(section), free(x);
        }
        free(t);
        hf_reader_close(r);
        model_close(m);
    }
}

static const struct {
    const char *arch, *type, *pairs;
} FAMILIES[] = {
    {"llama", "llama", "hidden_size=64 intermediate_size=96 num_hidden_layers=2 num_attention_heads=4 num_key_value_heads=2 vocab_size=37 tie_word_embeddings=true "
                       "rms_norm_eps=1e-5 rope_theta=100000.0 max_position_embeddings=8192 head_dim=16"},
    {"llama", "llama", "hidden_size=32 intermediate_size=64 num_hidden_layers=1 num_attention_heads=2 num_key_value_heads=2 vocab_size=37 attention_bias=true "
                       "head_dim=16 rms_norm_eps=1e-5"},
    {"qwen2", "qwen2", "hidden_size=64 intermediate_size=96 num_hidden_layers=2 num_attention_heads=4 num_key_value_heads=2 vocab_size=37 rms_norm_eps=1e-6"},
    {"qwen3", "qwen3", "hidden_size=64 intermediate_size=96 num_hidden_layers=2 num_attention_heads=4 num_key_value_heads=2 head_dim=32 vocab_size=37"},
    {"olmoe", "olmoe", "hidden_size=64 intermediate_size=32 num_hidden_layers=2 num_attention_heads=4 num_key_value_heads=4 vocab_size=37 num_experts=5 "
                       "num_experts_per_tok=2 rms_norm_eps=1e-5"},
    {"qwen3moe", "qwen3_moe", "hidden_size=64 intermediate_size=96 moe_intermediate_size=32 num_hidden_layers=3 num_attention_heads=4 num_key_value_heads=2 head_dim=32 "
                              "vocab_size=37 num_experts=5 num_experts_per_tok=2 norm_topk_prob=true rope_theta=1000000.0"},
    {"llama", "mixtral", "hidden_size=64 intermediate_size=32 num_hidden_layers=2 num_attention_heads=4 num_key_value_heads=2 vocab_size=37 num_experts=5 "
                         "num_experts_per_tok=2 rope_theta=1000000.0"},
    {"qwen2moe", "qwen2_moe", "hidden_size=64 intermediate_size=96 moe_intermediate_size=32 shared_expert_intermediate_size=64 num_hidden_layers=2 "
                              "num_attention_heads=4 num_key_value_heads=2 vocab_size=37 num_experts=5 num_experts_per_tok=2"},
    {"glm4moe", "glm4_moe", "hidden_size=64 intermediate_size=96 moe_intermediate_size=32 n_shared_experts=2 num_hidden_layers=3 num_attention_heads=4 "
                            "num_key_value_heads=2 head_dim=32 vocab_size=37 num_experts=6 num_experts_per_tok=2 n_group=2 topk_group=1 routed_scaling_factor=2.5 "
                            "first_k_dense_replace=2 attention_bias=true use_qk_norm=true"},
};

enum { NFAMILIES = sizeof FAMILIES / sizeof *FAMILIES };

static void make_gguf(int family, uint32_t type, const char *path, model_spec *spec)
{
    gguf_build b = GGUF_BUILD;
    cr_assert_eq(make_spec(spec, FAMILIES[family].type, FAMILIES[family].pairs), MOE_OK, "%s", moe_error_text());
    gguf_model(&b, FAMILIES[family].arch, spec, type);
    gguf_build_write(&b, path);
    gguf_build_free(&b);
}

/* What the format makes of a row. */
static void round_row(float *x, numfmt f, int64_t n)
{
    char *row = malloc(numfmt_row_bytes(f, n));
    numfmt_from_f32(row, x, f, n);
    numfmt_to_f32(x, row, f, n);
    free(row);
}

Test(model, gguf_of_every_family_and_type)
{
    static const uint32_t types[] = {GGML_F32, GGML_BF16, GGML_Q8_0, GGML_Q4_0};
    for (int f = 0; f < NFAMILIES; f++)
        for (size_t k = 0; k < sizeof types / sizeof *types; k++) {
            model_spec spec;
            model *m;
            tensor_info *t;
            int64_t n;
            make_gguf(f, types[k], file("m.gguf"), &spec);
            cr_assert_eq(model_open(&m, file("m.gguf")), MOE_OK, "%s: %s", FAMILIES[f].arch, moe_error_text());
            const model_spec *got = model_spec_of(m);
            cr_assert_eq(model_kind_of(m), MODEL_GGUF);
            spec.init_std = got->init_std, spec.aux_coef = got->aux_coef; /* of training: not in the file */
            if (spec.E == 0)
                spec.K = got->K;
            cr_assert_eq(memcmp(got, &spec, sizeof spec), 0, "%s", FAMILIES[f].arch);
            cr_assert_eq(spec_tensors(got, &t, &n), MOE_OK);
            for (int64_t i = 0; i < n; i++) {
                model_extent e;
                model_find(m, &t[i], &e);
                float *x = model_numbers(m, &t[i]), *y = malloc((size_t)t[i].cols * sizeof *y);
                for (int64_t r = 0; r < t[i].rows; r++) {
                    for (int64_t c = 0; c < t[i].cols; c++)
                        y[c] = model_number(t[i].id, r * t[i].cols + c);
                    round_row(y, e.format, t[i].cols);
                    cr_assert_eq(memcmp(x + r * t[i].cols, y, (size_t)t[i].cols * sizeof *y), 0, "%s: %s row %lld", FAMILIES[f].arch, t[i].name,
                                 (long long)r);
                }
                free(x), free(y);
            }
            free(t);
            model_close(m);
        }
}

Test(model, what_is_no_model)
{
    model *m;
    cr_assert_eq(model_open(&m, file("none")), MOE_E_NOINPUT);
    cr_assert_eq(model_open(&m, dir), MOE_E_NOINPUT);
    cr_assert_not_null(strstr(moe_error_text(), "holds no model"), "%s", moe_error_text());
    write_text(file("x"), "text");
    cr_assert_eq(model_open(&m, file("x")), MOE_E_DATA);
    cr_assert_eq(model_open(&m, "/proc/self/mem"), MOE_E_NOINPUT); /* a file that opens, and whose first byte cannot be read */
    cr_assert_not_null(strstr(moe_error_text(), "cannot read /proc/self/mem: Input/output error"), "%s", moe_error_text());
    write_text(file("config.yaml"), "");
    write_text(file("uuid"), "");
    cr_assert_eq(model_open(&m, dir), MOE_E_NOINPUT);
    cr_assert_not_null(strstr(moe_error_text(), "moe-train export"), "%s", moe_error_text());
}

static model *pack(const char *from, int experts, int dense)
{
    const packed_options o = {.experts = experts, .dense = dense};
    model *m, *p;
    uint64_t dense_bytes, expert_bytes;
    cr_assert_eq(model_open(&m, from), MOE_OK, "%s", moe_error_text());
    cr_assert_eq(packed_write(m, file("packed"), &o), MOE_OK, "%s", moe_error_text());
    cr_assert_eq(packed_size(m, &o, &dense_bytes, &expert_bytes), MOE_OK);
    cr_assert_eq(model_open(&p, file("packed")), MOE_OK, "%s", moe_error_text());
    cr_assert_eq(model_file_bytes(p, 0), dense_bytes);
    cr_assert_eq(model_files(p) > 1 ? model_file_bytes(p, 1) : 0, expert_bytes);
    cr_assert_eq(access(file("packed.partial"), F_OK), -1);
    model_close(m);
    return p;
}

static void unpack(model *p)
{
    model_close(p);
    remove_all(file("packed"));
}

/* Sums are those of the bytes; records are aligned. */
static void check_sums(const model *p)
{
    const model_spec *s = model_spec_of(p);
    tensor_info *t;
    int64_t n;
    cr_assert_eq(spec_tensors(s, &t, &n), MOE_OK);
    for (int64_t i = 0; i < n; i++) {
        model_extent e;
        model_record r;
        model_find(p, &t[i], &e);
        uint64_t offset = e.offset, bytes = e.bytes, sum = e.sum;
        if (t[i].kind == SECTION_EXPERT) {
            cr_assert(e.panels && model_find_record(p, t[i].layer, t[i].expert, &r));
            cr_assert(r.offset % 4096 == 0 && r.bytes % 4096 == 0 && r.used <= r.bytes && r.file == e.file);
            cr_assert(e.offset >= r.offset && e.offset + e.bytes <= r.offset + r.used);
            cr_assert_eq(t[i].role == ROLE_GATE, e.offset == r.offset);
            offset = r.offset, bytes = r.used, sum = r.sum;
        } else {
            cr_assert(e.summed && e.panels == (t[i].layout == TENSOR_PANELS) && e.offset % 4096 == 0);
        }
        uint8_t *raw = malloc(bytes);
        cr_assert_eq(model_read(p, e.file, offset, raw, bytes), MOE_OK);
        cr_assert_eq(XXH3_64bits(raw, bytes), sum, "%s", t[i].name);
        free(raw);
    }
    free(t);
}

Test(model, packed_fixtures_are_the_same_model)
{
    for (int i = 0; fixture_names[i] != NULL; i++) {
        char folder[256];
        model *m;
        snprintf(folder, sizeof folder, "tests/fixtures/train/%s", fixture_names[i]);
        model *p = pack(folder, PACKED_AS_IS, PACKED_AS_IS);
        cr_assert_eq(model_kind_of(p), MODEL_PACKED);
        cr_assert_eq(model_open(&m, folder), MOE_OK);
        expect_same(m, p);
        check_sums(p);
        model_close(m);
        unpack(p);
    }
}

Test(model, packed_gguf_is_the_same_model)
{
    static const uint32_t types[] = {GGML_F32, GGML_BF16, GGML_Q8_0, GGML_Q4_0};
    for (int f = 0; f < NFAMILIES; f++)
        for (size_t k = 0; k < sizeof types / sizeof *types; k++) {
            model_spec spec;
            model *m;
            make_gguf(f, types[k], file("m.gguf"), &spec);
            model *p = pack(file("m.gguf"), PACKED_AS_IS, PACKED_AS_IS);
            cr_assert_eq(model_open(&m, file("m.gguf")), MOE_OK);
            expect_same(m, p);
            check_sums(p);
            model_close(m);
            unpack(p);
        }
}

/* Quantising twice, from the model and from what is packed of it, is quantising once. */
Test(model, quantized)
{
    static const int formats[] = {NUM_Q8_0, NUM_Q4_0, NUM_BF16, NUM_Q5_1, NUM_MXFP4};
    model_spec spec;
    model *m;
    tensor_info *t;
    int64_t n;
    make_gguf(5, GGML_F32, file("m.gguf"), &spec);
    cr_assert_eq(model_open(&m, file("m.gguf")), MOE_OK);
    cr_assert_eq(spec_tensors(model_spec_of(m), &t, &n), MOE_OK);
    for (size_t k = 0; k < sizeof formats / sizeof *formats; k++) {
        model *p = pack(file("m.gguf"), formats[k], k == 0 ? NUM_Q8_0 : PACKED_AS_IS);
        for (int64_t i = 0; i < n; i++) {
            model_extent e;
            model_find(p, &t[i], &e);
            const bool converted = t[i].kind == SECTION_EXPERT || (k == 0 && t[i].layout != TENSOR_VECTOR && t[i].role != ROLE_ROUTER);
            cr_assert_eq(e.format, converted ? (numfmt)(t[i].kind == SECTION_EXPERT ? formats[k] : NUM_Q8_0) : NUM_F32, "%s", t[i].name);
            float *x = model_numbers(p, &t[i]), *y = model_numbers(m, &t[i]);
            for (int64_t r = 0; r < t[i].rows; r++)
                round_row(y + r * t[i].cols, e.format, t[i].cols);
            cr_assert_eq(memcmp(x, y, (size_t)(t[i].rows * t[i].cols) * sizeof *x), 0, "%s", t[i].name);
            free(x), free(y);
        }
        check_sums(p);
        const packed_options again = {.experts = NUM_BF16, .dense = PACKED_AS_IS};
        model *twice;
        cr_assert_eq(packed_write(p, file("twice"), &again), MOE_OK, "%s", moe_error_text());
        cr_assert_eq(model_open(&twice, file("twice")), MOE_OK, "%s", moe_error_text());
        check_sums(twice);
        model_close(twice);
        remove_all(file("twice"));
        unpack(p);
    }
    free(t);
    model_close(m);
}

Test(model, packing_leaves_nothing_behind)
{
    const packed_options as_is = {.experts = PACKED_AS_IS, .dense = PACKED_AS_IS}, q4 = {.experts = NUM_Q4_0, .dense = PACKED_AS_IS};
    model *m;
    cr_assert_eq(model_open(&m, "tests/fixtures/train/qwen3_moe"), MOE_OK);
    cr_assert_eq(mkdir(file("full"), 0777), 0);
    write_text(file("full/x"), "");
    cr_assert_eq(packed_write(m, file("full"), &as_is), MOE_E_CREATE);
    cr_assert_eq(packed_write(m, file("none/x"), &as_is), MOE_E_CREATE);
    cr_assert(model_spec_of(m)->D % 32 != 0 || model_spec_of(m)->F % 32 != 0);
    cr_assert_eq(packed_write(m, file("q4"), &q4), MOE_E_CONFIG);
    cr_assert_not_null(strstr(moe_error_text(), "q4_0 needs a multiple of 32"), "%s", moe_error_text());
    cr_assert_eq(access(file("q4.partial"), F_OK), -1);
    const packed_options q6 = {.experts = NUM_Q6_K, .dense = PACKED_AS_IS};
    cr_assert_eq(packed_write(m, file("q6"), &q6), MOE_E_CONFIG);
    cr_assert_not_null(strstr(moe_error_text(), "cannot become q6_k"), "%s", moe_error_text());
    /* The write that fails, as on a full disk; what an attempt before it left is gone as well. */
    cr_assert_eq(mkdir(file("out.partial"), 0777), 0);
    write_text(file("out.partial/experts.bin"), "old");
    cr_assert_eq(packed_write(m, file("out"), &as_is), MOE_E_CREATE); /* nobody knows whose it is */
    cr_assert_not_null(strstr(moe_error_text(), "out.partial is in the way"), "%s", moe_error_text());
    cr_assert_eq(access(file("out.partial/experts.bin"), F_OK), 0);
    write_text(file("out.partial/moe-model-writes-here"), "");
    struct rlimit old, small;
    getrlimit(RLIMIT_FSIZE, &old);
    small = old;
    small.rlim_cur = 8192;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &small);
    const moe_err rc = packed_write(m, file("out"), &as_is);
    setrlimit(RLIMIT_FSIZE, &old);
    cr_assert_eq(rc, MOE_E_IO, "%s", moe_error_text());
    cr_assert_not_null(strstr(moe_error_text(), "cannot write"), "%s", moe_error_text());
    cr_assert(access(file("out"), F_OK) == -1 && access(file("out.partial"), F_OK) == -1);
    cr_assert_eq(mkdir(file("out"), 0777), 0); /* an empty folder is fine */
    cr_assert_eq(packed_write(m, file("out"), &as_is), MOE_OK, "%s", moe_error_text());
    model_close(m);
}

/* Whatever byte of the manifest is changed: an error or the same model, and the data stays inside its files. */
Test(model, damaged_manifests)
{
    model_spec spec;
    char *text;
    make_gguf(4, GGML_Q8_0, file("m.gguf"), &spec);
    model *p = pack(file("m.gguf"), PACKED_AS_IS, PACKED_AS_IS);
    model_close(p);
    FILE *f = fopen(file("packed/packed.json"), "re");
    text = calloc(1, 1 << 20);
    const size_t n = fread(text, 1, (1 << 20) - 1, f);
    fclose(f);
    cr_assert_gt(n, 1000);
    for (size_t i = 0; i < n; i += 7) {
        const char before = text[i];
        text[i] = before == '9' ? '1' : before >= '0' && before < '9' ? (char)(before + 1) : '!';
        write_text(file("packed/packed.json"), text);
        if (model_open(&p, file("packed")) == MOE_OK) {
            tensor_info *t;
            int64_t count;
            cr_assert_eq(spec_tensors(model_spec_of(p), &t, &count), MOE_OK);
            for (int64_t k = 0; k < count; k++) {
                model_extent e;
                model_find(p, &t[k], &e);
                cr_assert(e.offset <= model_file_bytes(p, e.file) && e.bytes <= model_file_bytes(p, e.file) - e.offset);
            }
            free(t);
            model_close(p);
        }
        text[i] = before;
    }
    write_text(file("packed/packed.json"), text);
    cr_assert_eq(truncate(file("packed/experts.bin"), 4096), 0);
    cr_assert_eq(model_open(&p, file("packed")), MOE_E_DATA);
    cr_assert_not_null(strstr(moe_error_text(), "experts.bin ends at 4096"), "%s", moe_error_text());
    free(text);
}
