/* Sparse upcycling: the new model computes what the dense one did, and is a model like any other. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "models/upcycle.h"
#include "tests/engine/serve_harness.h"

enum { N = 40 };

static char folder[64];

static void make_folder(void)
{
    snprintf(folder, sizeof folder, "/tmp/moe-upcycle-XXXXXX");
    cr_assert_not_null(mkdtemp(folder));
}

static void remove_folder(void)
{
    char command[96];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    cr_assert_eq(system(command), 0);
}

TestSuite(upcycle, .init = make_folder, .fini = remove_folder);

/* Upcycles the model at `path` into folder/name. */
static moe_err upcycle(const char *path, const char *name, upcycle_options o)
{
    char dir[128];
    model *dense;
    moe_stream stream;
    moe_err rc;
    snprintf(dir, sizeof dir, "%s/%s", folder, name);
    MUST(model_open(&dense, path));
    MUST(moe_pool_open(&stream.pool, 2, KERNEL_SCRATCH_BYTES));
    MUST(moe_backend_find(&o.be, NULL));
    o.stream = &stream;
    rc = upcycle_write(dense, dir, &o);
    moe_pool_close(stream.pool);
    model_close(dense);
    return rc;
}

/* Logits of the same N tokens; malloc'ed. */
static float *logits_of(const char *path, int *V)
{
    test_serve t;
    int32_t token[N];
    test_serve_open(&t, path, (test_serve_options){.chunk = N});
    test_serve_tokens(&t, token, N, 3);
    float *logits = test_serve_logits(&t, token, N, N);
    *V = t.V;
    test_serve_close(&t);
    return logits;
}

/* Valid until the next but one call. */
static const char *made(const char *name)
{
    static char path[2][128];
    static int turn;
    turn = 1 - turn;
    snprintf(path[turn], sizeof path[turn], "%s/%s", folder, name);
    return path[turn];
}

/* Largest difference over the largest logit. */
static double distance(const char *a, const char *b)
{
    int V, Vb;
    float *x = logits_of(a, &V), *y = logits_of(b, &Vb);
    double most = 0, scale = 0;
    cr_assert_eq(V, Vb);
    for (int64_t i = 0; i < (int64_t)N * V; i++) {
        most = fmax(most, fabs((double)x[i] - (double)y[i]));
        scale = fmax(scale, fabs((double)x[i]));
    }
    free(x), free(y);
    return most / scale;
}

/* 1e-5: a weight of K experts that sum to 1 is off by an ulp or two (1.2e-7) a layer, and a layer multiplies it by about ten. */
Test(upcycle, computes_what_the_dense_model_did)
{
    static const char *const dense[] = {"tests/fixtures/serve/llama", "tests/fixtures/serve/qwen3", "tests/fixtures/serve/llama3_rope"};
    for (int i = 0; i < 3; i++) {
        char name[8];
        snprintf(name, sizeof name, "m%d", i);
        MUST(upcycle(dense[i], name, (upcycle_options){.experts = 5, .top_k = 2, .seed = 1, .dtype = HF_F32}));
        const double d = distance(dense[i], made(name));
        cr_assert(d <= 1e-5, "%s: logits differ by %g of their scale", dense[i], d);
    }
}

Test(upcycle, noise_makes_the_experts_differ)
{
    MUST(upcycle("tests/fixtures/serve/llama", "still", (upcycle_options){.experts = 4, .top_k = 1, .seed = 1, .dtype = HF_F32}));
    MUST(upcycle("tests/fixtures/serve/llama", "noisy", (upcycle_options){.experts = 4, .top_k = 1, .seed = 1, .noise = 0.1, .dtype = HF_F32}));
    const double d = distance(made("still"), made("noisy"));
    cr_assert(d > 1e-3 && d < 1, "noise of 0.1 moved the logits by %g of their scale", d);
}

Test(upcycle, a_seed_gives_the_same_model)
{
    int V;
    const upcycle_options o = {.experts = 3, .top_k = 2, .seed = 9, .noise = 0.2, .dtype = HF_BF16};
    MUST(upcycle("tests/fixtures/serve/qwen3", "one", o));
    MUST(upcycle("tests/fixtures/serve/qwen3", "two", o));
    float *x = logits_of(made("one"), &V), *y = logits_of(made("two"), &V);
    test_serve_same("the same seed", y, x, N, V);
    free(x), free(y);
}

Test(upcycle, refuses_what_it_cannot_do)
{
    static const struct {
        const char *path;
        int experts, top_k;
        const char *says;
    } cases[] = {
        {"tests/fixtures/serve/mixtral", 4, 2, "has experts already"},
        {"tests/fixtures/serve/qwen2", 4, 2, "qwen2"},
        {"tests/fixtures/serve/llama_bias", 4, 2, "attention_bias"},
        {"tests/fixtures/serve/llama", 4, 5, "top-k"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const moe_err rc = upcycle(cases[i].path, "no", (upcycle_options){.experts = cases[i].experts, .top_k = cases[i].top_k});
        cr_assert(rc == MOE_E_CONFIG && strstr(moe_error_text(), cases[i].says) != NULL, "%s: %d, %s", cases[i].path, rc, moe_error_text());
        cr_assert_neq(access(made("no"), F_OK), 0, "%s: a folder was left", cases[i].path);
    }
}

Test(upcycle, does_not_write_into_a_folder_that_is_in_use)
{
    char file[160];
    snprintf(file, sizeof file, "touch %s/mine", folder);
    cr_assert_eq(system(file), 0);
    cr_assert_eq(upcycle("tests/fixtures/serve/llama", ".", (upcycle_options){.experts = 2, .top_k = 1}), MOE_E_CREATE);
}
