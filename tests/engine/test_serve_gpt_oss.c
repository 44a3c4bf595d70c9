/* gpt-oss as OpenAI's checkpoint has it (tests/fixtures/serve/gpt_oss_mxfp4: blocks and scales, gate and up in turn) and as a GGUF file: the same bits from
 * both, in place, packed, in the least memory, in any pieces and on every instruction set; as bf16, which holds all MXFP4 numbers, transformers' logits and
 * greedy text. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "models/formats/packed.h"
#include "tests/engine/serve_harness.h"
#include "tests/fixtures/serve_fixture.h"

#define FOLDER "tests/fixtures/serve/gpt_oss_mxfp4"
#define FILE_GGUF FOLDER "/model.gguf"
enum { N = 90 }; /* tokens: more than a page, more than four windows */

static char dir[64];

static void setup(void)
{
    snprintf(dir, sizeof dir, "/tmp/moe-gpt-oss-XXXXXX");
    cr_assert_not_null(mkdtemp(dir));
}

static void teardown(void)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", dir);
    cr_assert_eq(system(command), 0);
}

TestSuite(serve_gpt_oss, .init = setup, .fini = teardown);

static const char *packed(const char *from, const char *name, int experts)
{
    static char path[128];
    const packed_options o = {.experts = experts, .dense = PACKED_AS_IS};
    model *m;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    MUST(model_open(&m, from));
    MUST(packed_write(m, path, &o));
    model_close(m);
    return path;
}

Test(serve_gpt_oss, the_same_bits_however_it_is_read)
{
    int V;
    float *want = test_serve_logits_of(FOLDER, (test_serve_options){.chunk = N}, N, N, &V);
    test_serve_expect("the reference", FOLDER, (test_serve_options){.backend = "ref", .threads = 1}, N, 33, want, V);
    test_serve_expect("avx2", FOLDER, (test_serve_options){.backend = "avx2", .threads = 3}, N, 64, want, V);
    test_serve_expect("the least memory, one at a time", FOLDER, (test_serve_options){.least = true}, N, 1, want, V);
    test_serve_expect("GGUF", FILE_GGUF, (test_serve_options){0}, N, 7, want, V);
    test_serve_expect("GGUF, the least memory", FILE_GGUF, (test_serve_options){.least = true}, N, 64, want, V);
    const char *path = packed(FOLDER, "folder", PACKED_AS_IS);
    test_serve_expect("packed", path, (test_serve_options){0}, N, 64, want, V);
    test_serve_expect("packed, the least memory", path, (test_serve_options){.least = true}, N, 9, want, V);
    test_serve_expect("GGUF, packed", packed(FILE_GGUF, "file", PACKED_AS_IS), (test_serve_options){0}, N, 64, want, V);
    free(want);
}

/* Of the prompt; the text goes on as transformers'. */
static void equals_transformers(const char *path, const serve_fixture *f)
{
    test_serve t;
    double worst = 0;
    test_serve_open(&t, path, (test_serve_options){.context = f->prompt_tokens + f->greedy_tokens});
    const int n = f->prompt_tokens + f->greedy_tokens - 1;
    int32_t *text = malloc((size_t)n * sizeof *text);
    memcpy(text, f->prompt, (size_t)f->prompt_tokens * sizeof *text);
    memcpy(text + f->prompt_tokens, f->greedy, (size_t)(f->greedy_tokens - 1) * sizeof *text);
    float *got = test_serve_logits(&t, text, n, f->prompt_tokens);
    for (int i = 0; i < f->prompt_tokens * f->V; i++)
        worst = fmax(worst, fabs((double)got[i] - (double)f->logits[i]));
    cr_assert_leq(worst, 1e-4 * f->scale, "%s: %.3g of the logit scale", path, worst / f->scale);
    fprintf(stderr, "%s: largest distance %.2g of the logit scale\n", path, worst / f->scale);
    for (int i = 0; i < f->greedy_tokens; i++) {
        const float *row = got + (size_t)(f->prompt_tokens - 1 + i) * (size_t)f->V;
        for (int v = 0; v < f->V; v++)
            cr_assert(row[v] <= row[f->greedy[i]], "%s: greedy token %d: %d, transformers %d", path, i, v, f->greedy[i]);
    }
    free(got), free(text);
    test_serve_close(&t);
}

Test(serve_gpt_oss, as_bf16_it_is_what_transformers_computes)
{
    serve_fixture f;
    MUST(serve_fixture_open(&f, "gpt_oss_mxfp4"));
    equals_transformers(packed(FOLDER, "folder", NUM_BF16), &f);
    equals_transformers(packed(FILE_GGUF, "file", NUM_BF16), &f);
    serve_fixture_close(&f);
}
