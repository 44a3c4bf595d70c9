/* Serving gives the same logits, bit for bit, whatever the chunks, neighbours, memory, threads and instruction set, with and without
 * reuse of a prefix; with fp32 weights and pages they are those of the training decoder. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/serve/serve_private.h"
#include "tests/engine/serve_harness.h"

static const char *const models[] = {"qwen3_moe", "olmoe_clip", "shared_expert_gate", "leading_dense", "deepseek_router", "mixtral_router",
                                     "serve/deepseek_v3", "serve/gpt_oss", "serve/gpt_oss_mxfp4"};
enum { MODELS = sizeof models / sizeof *models, N = 75 }; /* tokens: more than a page */

static const char *path_of(const char *name)
{
    static char path[256];
    snprintf(path, sizeof path, "tests/fixtures/%s%s", strncmp(name, "serve/", 6) == 0 ? "" : "train/", name);
    return path;
}

static float *straight(const char *name, numfmt kv, int32_t *token, int *V)
{
    test_serve t;
    test_serve_open(&t, path_of(name), (test_serve_options){.chunk = N, .kv = kv});
    test_serve_tokens(&t, token, N, 7);
    float *logits = test_serve_logits(&t, token, N, N);
    *V = t.V;
    test_serve_close(&t);
    return logits;
}

static void compare(const char *name, numfmt kv, test_serve_options o, int cut, const char *what)
{
    int32_t token[N];
    int V;
    char text[128];
    test_serve t;
    float *want = straight(name, kv, token, &V);
    o.kv = kv;
    test_serve_open(&t, path_of(name), o);
    float *got = test_serve_logits(&t, token, N, cut);
    snprintf(text, sizeof text, "%s, %s, KV %s", name, what, numfmt_about(kv)->name);
    test_serve_same(text, got, want, N, V);
    test_serve_close(&t);
    free(got), free(want);
}

Test(serve, logits_do_not_depend_on_the_chunk)
{
    for (int m = 0; m < MODELS; m++) {
        compare(models[m], NUM_F32, (test_serve_options){0}, 1, "one token at a time");
        compare(models[m], NUM_BF16, (test_serve_options){0}, 7, "seven at a time");
        compare(models[m], NUM_Q8_0, (test_serve_options){0}, 64, "a page at a time");
    }
}

Test(serve, logits_do_not_depend_on_threads_and_instructions)
{
    for (int i = 0; moe_backend_at(i) != NULL; i++)
        for (int threads = 1; threads <= 3; threads++)
            compare(models[i % MODELS], NUM_BF16, (test_serve_options){.threads = threads, .backend = moe_backend_at(i)->name}, 40,
                    moe_backend_at(i)->name);
}

Test(serve, logits_do_not_depend_on_memory)
{
    for (int m = 0; m < MODELS; m++)
        compare(models[m], NUM_F32, (test_serve_options){.least = true}, 25, "the least memory");
}

/* Several sequences of different lengths, cut differently, together in every step. */
Test(serve, logits_do_not_depend_on_neighbours)
{
    enum { S = 5 };
    for (int m = 0; m < MODELS; m++) {
        test_serve t;
        int32_t token[S][N];
        float *alone[S], *together[S], *step;
        int sequence[S], at[S] = {0}, turn = 0;
        test_serve_open(&t, path_of(models[m]), (test_serve_options){.kv = NUM_BF16});
        step = malloc((size_t)t.c.chunk * (size_t)t.V * sizeof *step);
        for (int i = 0; i < S; i++) {
            test_serve_tokens(&t, token[i], N, 20 + (uint64_t)i);
            alone[i] = test_serve_logits(&t, token[i], N, 13);
            together[i] = malloc((size_t)N * (size_t)t.V * sizeof *step);
            MUST(serve_sequence_begin(t.s, &sequence[i]));
        }
        for (bool more = true; more; turn++) {
            serve_span span[S];
            int of[S], n = 0;
            for (int i = S - 1; i >= 0; i--) {
                const int left = N - at[i], cut = (i * 5 + turn * 3) % 12;
                if (left == 0 || cut == 0)
                    continue;
                of[n] = i;
                span[n++] = (serve_span){.sequence = sequence[i], .token = token[i] + at[i], .n = left < cut ? left : cut, .want = SERVE_ALL};
            }
            MUST(serve_step(t.s, span, n, step));
            const float *from = step;
            for (int j = 0; j < n; j++) {
                memcpy(together[of[j]] + (size_t)at[of[j]] * (size_t)t.V, from, (size_t)span[j].n * (size_t)t.V * sizeof *from);
                from += (size_t)span[j].n * (size_t)t.V;
                at[of[j]] += span[j].n;
            }
            MUST(kv_check_pool(&t.s->kv));
            more = false;
            for (int i = 0; i < S; i++)
                more = more || at[i] < N;
        }
        for (int i = 0; i < S; i++) {
            test_serve_same(models[m], together[i], alone[i], N, t.V);
            free(alone[i]), free(together[i]);
        }
        free(step);
        test_serve_close(&t);
    }
}

static void reuse_prefix(const char *name)
{
    test_serve t;
    int32_t a[N], b[N];
    int first, second, third;
    test_serve_open(&t, path_of(name), (test_serve_options){.sequences = 3});
    test_serve_tokens(&t, a, N, 1);
    test_serve_tokens(&t, b, N, 2);
    memcpy(b, a, KV_PAGE * sizeof *b); /* differs behind the first page */
    float *want = test_serve_logits(&t, b, N, N % 64 + 1), *got = malloc((size_t)t.V * sizeof *got);

    MUST(serve_sequence_begin(t.s, &first));
    cr_assert_eq(serve_sequence_reuse(t.s, first, a, N), KV_PAGE, "b's first page is known although b has ended");
    serve_span span = {.sequence = first, .token = a + KV_PAGE, .n = N - KV_PAGE, .want = SERVE_LAST};
    MUST(serve_step(t.s, &span, 1, got));
    MUST(serve_sequence_begin(t.s, &second));
    cr_assert_eq(serve_sequence_reuse(t.s, second, b, N), KV_PAGE);
    MUST(kv_check_pool(&t.s->kv));
    span = (serve_span){.sequence = second, .token = b + KV_PAGE, .n = N - KV_PAGE, .want = SERVE_LAST};
    MUST(serve_step(t.s, &span, 1, got));
    test_serve_same("a reused page", got, want + (size_t)(N - 1) * (size_t)t.V, 1, t.V);

    MUST(serve_sequence_begin(t.s, &third));
    cr_assert_eq(serve_sequence_reuse(t.s, third, b, KV_PAGE), 0, "the last token is always computed");
    span = (serve_span){.sequence = third, .token = b, .n = KV_PAGE, .want = SERVE_LAST};
    MUST(serve_step(t.s, &span, 1, got));
    cr_assert_eq(t.s->kv.sequence[third].block[0], t.s->kv.sequence[second].block[0], "equal pages become one");
    MUST(kv_check_pool(&t.s->kv));
    serve_sequence_end(t.s, first), serve_sequence_end(t.s, second), serve_sequence_end(t.s, third);
    MUST(kv_check_pool(&t.s->kv));
    free(want), free(got);
    test_serve_close(&t);
}

Test(serve, a_reused_prefix_gives_the_same_bits)
{
    reuse_prefix("qwen3_moe");
    reuse_prefix("serve/deepseek_v3");
}

/* More different prompts than the pool has blocks: old pages are forgotten, and what is found is right. */
Test(serve, pages_are_given_out_again)
{
    enum { ROUNDS = 12 };
    test_serve t;
    test_serve_open(&t, path_of("olmoe"), (test_serve_options){.sequences = 2});
    for (int i = 0; i < ROUNDS; i++) {
        int32_t token[N];
        int sequence;
        test_serve_tokens(&t, token, N, 100 + (uint64_t)(i % 5));
        float *want = test_serve_logits(&t, token, N, 30), *got = malloc((size_t)N * (size_t)t.V * sizeof *got);
        MUST(serve_sequence_begin(t.s, &sequence));
        const int64_t known = serve_sequence_reuse(t.s, sequence, token, N);
        cr_assert_eq(known, KV_PAGE, "round %d: %lld tokens were known", i, (long long)known);
        serve_span span = {.sequence = sequence, .token = token + known, .n = (int)(N - known), .want = SERVE_ALL};
        MUST(serve_step(t.s, &span, 1, got));
        test_serve_same("after reuse", got, want + (size_t)known * (size_t)t.V, (int)(N - known), t.V);
        serve_sequence_end(t.s, sequence);
        MUST(kv_check_pool(&t.s->kv));
        free(want), free(got);
    }
    test_serve_close(&t);
}

Test(serve, the_resident_experts_are_remembered)
{
    char path[64];
    int32_t token[N];
    test_serve t;
    float *logits[2];
    snprintf(path, sizeof path, "/tmp/moe_serve_%d.hot", (int)getpid());
    for (int i = 0; i < 2; i++) {
        test_serve_open(&t, path_of("olmoe"), (test_serve_options){.hot = path});
        test_serve_tokens(&t, token, N, 9);
        logits[i] = test_serve_logits(&t, token, N, 30);
        test_serve_close(&t);
        cr_assert_eq(access(path, R_OK), 0);
    }
    test_serve_same("after a restart", logits[1], logits[0], N, t.V);
    unlink(path);
    free(logits[0]), free(logits[1]);
}
