/* moe-serve logits and bench, called as the program calls them. */
#include <criterion/criterion.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/serve/commands.h"
#include "tests/engine/serve_harness.h"

#define MODEL "tests/fixtures/train/qwen3_moe"

static const char *temporary(const char *name)
{
    static char path[2][128];
    static int turn;
    turn ^= 1;
    snprintf(path[turn], sizeof path[turn], "/tmp/moe_serve_commands_%d_%s", (int)getpid(), name);
    return path[turn];
}

static void write_text(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");
    cr_assert_not_null(f);
    cr_assert(fputs(text, f) >= 0 && fclose(f) == 0);
}

/* The numbers behind the header, which must be this one. */
static float *read_npy(const char *path, int rows, int cols)
{
    char head[128], expected[128];
    FILE *f = fopen(path, "rb");
    cr_assert_not_null(f);
    cr_assert_eq(fread(head, 1, sizeof head, f), sizeof head);
    cr_assert(memcmp(head, "\x93NUMPY\x01\x00\x76\x00", 10) == 0 && head[127] == '\n');
    snprintf(expected, sizeof expected, "{'descr': '<f4', 'fortran_order': False, 'shape': (%d, %d), }", rows, cols);
    cr_assert(strncmp(head + 10, expected, strlen(expected)) == 0, "%.118s", head + 10);
    float *x = malloc((size_t)rows * (size_t)cols * sizeof *x);
    cr_assert_eq(fread(x, sizeof *x, (size_t)rows * (size_t)cols, f), (size_t)rows * (size_t)cols);
    cr_assert_eq(fgetc(f), EOF);
    fclose(f);
    return x;
}

Test(serve_commands, logits_are_written_as_npy)
{
    enum { N = 70 };
    test_serve t;
    int32_t token[N];
    char list[N * 8] = "", lines[N * 8] = "\n";
    test_serve_open(&t, MODEL, (test_serve_options){0});
    test_serve_tokens(&t, token, N, 4);
    for (int i = 0; i < N; i++) {
        sprintf(list + strlen(list), "%s%d", i > 0 ? "," : "", token[i]);
        sprintf(lines + strlen(lines), "%d%s", token[i], i % 7 == 0 ? "\n" : " , ");
    }
    float *want = test_serve_logits(&t, token, N, 64);
    const session_options o = {.path = MODEL, .threads = 2, .kv = "f32"};
    const char *ids = temporary("ids"), *out = temporary("npy");
    write_text(ids, lines);
    for (int i = 0; i < 2; i++) {
        MUST(command_logits(&o, i == 0 ? list : ids, out));
        float *got = read_npy(out, N, t.V);
        test_serve_same(i == 0 ? "from the command line" : "from a file", got, want, N, t.V);
        free(got);
        unlink(out);
    }
    unlink(ids);
    free(want);
    test_serve_close(&t);
}

Test(serve_commands, lists_that_are_none_are_refused)
{
    const session_options o = {.path = MODEL, .threads = 1};
    const char *ids = temporary("bad"), *out = temporary("out");
    cr_assert_eq(command_logits(&o, "1,2,99999999999999999999", out), MOE_E_DATA);
    cr_assert_eq(command_logits(&o, "1,100000", out), MOE_E_DATA);
    cr_assert(strstr(moe_error_text(), "vocabulary") != NULL, "%s", moe_error_text());
    cr_assert_eq(command_logits(&o, " , ", out), MOE_E_DATA);
    char many[2 * 257 + 1];
    for (int i = 0; i < 257; i++)
        memcpy(many + 2 * i, "1,", 3);
    many[2 * 257 - 1] = '\0';
    cr_assert_eq(command_logits(&o, many, out), MOE_E_USAGE, "more than the model has positions");
    cr_assert_eq(command_logits(&o, "/nonexistent", out), MOE_E_NOINPUT, "%s", moe_error_text());
    write_text(ids, "1, 2, -3");
    cr_assert_eq(command_logits(&o, ids, out), MOE_E_DATA);
    cr_assert(strstr(moe_error_text(), "byte 6") != NULL, "%s", moe_error_text());
    unlink(ids);
    cr_assert_eq(access(out, F_OK), -1);
    cr_assert_eq(command_logits(&o, "1,2", "/nonexistent/out.npy"), MOE_E_CREATE);
}

static double number(const json_t *o, const char *key)
{
    const json_t *x = json_object_get(o, key);
    cr_assert(json_is_number(x), "\"%s\" is missing", key);
    return json_number_value(x);
}

static json_t *benched(const bench_options *o)
{
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    MUST(command_bench(o, f));
    fclose(f);
    json_t *j = json_loads(text, 0, NULL);
    cr_assert_not_null(j, "%s", text);
    free(text);
    return j;
}

Test(serve_commands, bench_measures_prefill_and_decode)
{
    bench_options o = {.session = {.path = MODEL, .threads = 2}, .prefill = 40, .decode = 5, .streams = {1, 3}, .nstreams = 2, .json = true};
    json_t *j = benched(&o);
    cr_assert(number(j, "ready_seconds") > 0 && number(j, "dense_bytes") > 0 && number(j, "slots") > 0);
    const json_t *prefill = json_object_get(j, "prefill"), *decode = json_object_get(j, "decode");
    cr_assert_eq((int)number(prefill, "tokens"), 40);
    cr_assert(number(prefill, "bytes_per_token") > 0 && number(prefill, "hit_rate") < 1);
    cr_assert_eq(json_array_size(decode), 2);
    cr_assert_eq((int)number(json_array_get(decode, 1), "tokens"), 15);
    cr_assert(number(json_array_get(decode, 1), "tokens_per_second") > 0);
    json_decref(j);
    o.warmup = 128, o.seed = 3; /* of other tokens: every expert is there before anything is measured */
    j = benched(&o);
    cr_assert_eq(number(json_object_get(j, "prefill"), "bytes_per_token"), 0);
    json_decref(j);
    o.prefill = 129;
    cr_assert_eq(command_bench(&o, stdout), MOE_E_USAGE, "more than the model has positions");
    const bench_options bad = {.session = {.path = MODEL}, .decode = 5, .streams = {0}, .nstreams = 1};
    cr_assert_eq(command_bench(&bad, stdout), MOE_E_USAGE);
}
