/* Models as GGUF files in all their formats, in place and packed: the same bits, whatever the chunks, memory and instruction set; block
 * formats are near the numbers they were made from. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "models/formats/packed.h"
#include "tests/engine/serve_harness.h"
#include "tests/models/make_spec.h"
#include "tests/models/model_files.h"

enum { N = 70 };

static const struct {
    const char *type, *arch, *pairs;
} shapes[] = {
    {"llama", "llama", "hidden_size=64 num_hidden_layers=2 num_attention_heads=2 num_key_value_heads=1 head_dim=32 intermediate_size=96 "
                       "vocab_size=131"},
    {"olmoe", "olmoe", "hidden_size=64 num_hidden_layers=3 num_attention_heads=2 num_key_value_heads=2 intermediate_size=32 num_experts=6 "
                       "num_experts_per_tok=2 vocab_size=131"},
    {"qwen3_moe", "qwen3moe", "hidden_size=64 num_hidden_layers=3 num_attention_heads=4 num_key_value_heads=2 head_dim=32 intermediate_size=64 "
                              "moe_intermediate_size=64 num_experts=10 num_experts_per_tok=3 norm_topk_prob=true vocab_size=131"},
    {"kimi_k2", "deepseek2", NULL}, /* tests/fixtures/gguf */
};
static const uint32_t types[] = {GGML_F32, GGML_BF16, GGML_Q8_0, GGML_Q4_0};
enum { TYPES = sizeof types / sizeof *types };

static const char *gguf_file(int shape, uint32_t type)
{
    static char path[64];
    model_spec spec;
    gguf_build b = GGUF_BUILD;
    MUST(make_spec(&spec, shapes[shape].type, shapes[shape].pairs));
    gguf_model(&b, shapes[shape].arch, &spec, type);
    snprintf(path, sizeof path, "/tmp/moe_serve_formats_%d_%d_%u.gguf", (int)getpid(), shape, type);
    gguf_build_write(&b, path);
    gguf_build_free(&b);
    return path;
}

static void same(const char *path, test_serve_options o, int cut, const float *want, int V, const char *what, int shape, uint32_t type)
{
    char text[128];
    snprintf(text, sizeof text, "%s, type %u, %s", shapes[shape].type, type, what);
    test_serve_expect(text, path, o, N, cut, want, V);
}

static void flip_bit(const char *dir, const char *file, long at)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", dir, file);
    FILE *f = fopen(path, "r+b");
    cr_assert_not_null(f);
    cr_assert_eq(fseek(f, at, SEEK_SET), 0);
    const int c = fgetc(f);
    cr_assert(fseek(f, at, SEEK_SET) == 0 && fputc(c ^ 16, f) != EOF && fclose(f) == 0);
}

/* One bit of an expert ends the sequences that need it; one of the dense part is refused on opening. */
static void damage(const char *dir)
{
    serve *s;
    test_serve t;
    int32_t token[N];
    int sequence;
    test_serve_open(&t, dir, (test_serve_options){.chunk = N});
    if (spec_moe_layers(model_spec_of(t.model)) > 0) {
        for (int e = 0; e < model_spec_of(t.model)->E; e++) {
            model_record r;
            cr_assert(model_find_record(t.model, 0, e, &r));
            flip_bit(dir, "experts.bin", (long)(r.offset + r.used / 2));
        }
        test_serve_tokens(&t, token, N, 5);
        MUST(serve_sequence_begin(t.s, &sequence));
        serve_span span = {.sequence = sequence, .token = token, .n = N};
        MUST(serve_step(t.s, &span, 1, NULL));
        cr_assert_eq(span.rc, MOE_E_DATA);
        cr_assert(strstr(span.text, "damaged") != NULL, "%s", span.text);
    }
    flip_bit(dir, "dense.bin", 0);
    cr_assert_eq(serve_open(&s, &t.c), MOE_E_DATA);
    cr_assert(strstr(moe_error_text(), "damaged") != NULL, "%s", moe_error_text());
    test_serve_close(&t);
}

/* Packed as it is, into a folder that is removed again. */
static void same_packed(const char *path, const float *want, int V, int shape, uint32_t type)
{
    char dir[96], command[128];
    model *m;
    const packed_options as_is = {.experts = PACKED_AS_IS, .dense = PACKED_AS_IS};
    snprintf(dir, sizeof dir, "%s.packed", path);
    MUST(model_open(&m, path));
    MUST(packed_write(m, dir, &as_is));
    model_close(m);
    same(dir, (test_serve_options){0}, 64, want, V, "packed", shape, type);
    same(dir, (test_serve_options){.least = true}, 9, want, V, "packed, the least memory", shape, type);
    damage(dir);
    snprintf(command, sizeof command, "rm -r %s", dir);
    cr_assert_eq(system(command), 0);
}

/* |a - b| / |b| over all logits. */
static double distance(const float *a, const float *b, int V)
{
    double d = 0, n = 0;
    for (int i = 0; i < N * V; i++) {
        d += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        n += (double)b[i] * (double)b[i];
    }
    return sqrt(d / n);
}

static void run_shape(int shape)
{
    static const double far[TYPES] = {0, 0.05, 0.1, 0.8}; /* random weights amplify; logits of wrong rows are 1.4 away */
    float *exact = NULL;
    for (int i = 0; i < TYPES; i++) {
        int V;
        const char *path = gguf_file(shape, types[i]);
        float *want = test_serve_logits_of(path, (test_serve_options){.chunk = N}, N, N, &V);
        if (exact == NULL)
            exact = want;
        const double d = distance(want, exact, V);
        fprintf(stderr, "%s, type %u: %.3g from fp32\n", shapes[shape].type, types[i], d);
        cr_expect(d <= far[i], "%s, type %u: %.3g from fp32, expected at most %.3g", shapes[shape].type, types[i], d, far[i]);
        if (i == TYPES - 1)
            same(path, (test_serve_options){.backend = "ref", .threads = 1}, 33, want, V, "the reference", shape, types[i]);
        same(path, (test_serve_options){.backend = "avx2", .threads = 3}, 64, want, V, "avx2", shape, types[i]);
        same(path, (test_serve_options){.least = true}, 1, want, V, "the least memory, one at a time", shape, types[i]);
        same_packed(path, want, V, shape, types[i]);
        unlink(path);
        if (want != exact)
            free(want);
    }
    free(exact);
}

Test(serve_formats, llama) { run_shape(0); }
Test(serve_formats, olmoe) { run_shape(1); }
Test(serve_formats, qwen3_moe) { run_shape(2); }

/* Latent attention: kv_b_proj of a folder, in one tensor of a GGUF file, or apart and transposed: the same bits, in place and packed. */
Test(serve_formats, deepseek2)
{
    static const char *const sources[] = {"serve/kimi_k2", "gguf/deepseek2_kv_b.gguf", "gguf/deepseek2_k_b.gguf"};
    int V;
    float *want = test_serve_logits_of("tests/fixtures/serve/kimi_k2", (test_serve_options){.chunk = N}, N, N, &V);
    for (int i = 0; i < 3; i++) {
        char path[64], command[256];
        snprintf(path, sizeof path, "/tmp/moe_serve_formats_%d_%d_deepseek", (int)getpid(), i);
        snprintf(command, sizeof command, "cp -rL tests/fixtures/%s %s", sources[i], path);
        cr_assert_eq(system(command), 0);
        same(path, (test_serve_options){.backend = "ref", .threads = 1}, 33, want, V, sources[i], 3, (uint32_t)i);
        same(path, (test_serve_options){.backend = "avx2", .threads = 3, .least = true}, 1, want, V, sources[i], 3, (uint32_t)i);
        same_packed(path, want, V, 3, (uint32_t)i);
        snprintf(command, sizeof command, "rm -r %s", path);
        cr_assert_eq(system(command), 0);
    }
    free(want);
}
