/* Owns what test_serve_open opens. One engine, one thread. */
#include "tests/engine/serve_harness.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "engine/train/run_model.h"
#include "memory/budget.h"

static moe_err open_engine(test_serve *t, uint64_t bytes)
{
    t->c.host_bytes = bytes;
    return serve_open(&t->s, &t->c);
}

void test_serve_open(test_serve *t, const char *path, test_serve_options o)
{
    char note[256];
    *t = (test_serve){0};
    MUST(run_model_open(&t->model, path));
    MUST(io_open(&t->io, "auto", note));
    MUST(moe_pool_open(&t->pool, o.threads ? o.threads : 2, KERNEL_SCRATCH_BYTES));
    t->stream = (moe_stream){.pool = t->pool};
    t->V = model_spec_of(t->model)->V;
    t->c = (serve_config){.model = t->model, .stream = &t->stream, .io = t->io, .kv = o.kv, .max_sequences = o.sequences ? o.sequences : 8,
                          .max_context = o.context ? o.context : 128, .chunk = o.chunk ? o.chunk : 64, .policy = o.policy, .hot = o.hot};
    MUST(moe_backend_find(&t->c.be, o.backend));
    const uint64_t plenty = budget_rss() + ((uint64_t)256 << 20);
    MUST(open_engine(t, o.host_bytes ? o.host_bytes : plenty));
    if (o.least) {
        serve_stats stats;
        serve_get_stats(t->s, &stats);
        serve_close(t->s);
        uint64_t low = stats.least_bytes / 2, high = plenty; /* what is left of the first one makes the least larger than it said */
        while (high - low > 1 << 20) {
            const uint64_t mid = low + (high - low) / 2;
            if (open_engine(t, mid) == MOE_OK) {
                serve_close(t->s);
                high = mid;
            } else {
                low = mid;
            }
        }
        MUST(open_engine(t, high + (1 << 20)));
    }
}

void test_serve_close(test_serve *t)
{
    serve_close(t->s);
    moe_pool_close(t->pool);
    io_close(t->io);
    model_close(t->model);
}

float *test_serve_logits(test_serve *t, const int32_t *token, int n, int cut)
{
    float *out = malloc((size_t)n * (size_t)t->V * sizeof *out);
    int sequence;
    cr_assert(out != NULL);
    MUST(serve_sequence_begin(t->s, &sequence));
    for (int at = 0; at < n; at += cut) {
        serve_span span = {.sequence = sequence, .token = token + at, .n = n - at < cut ? n - at : cut, .want = SERVE_ALL};
        MUST(serve_step(t->s, &span, 1, out + (size_t)at * (size_t)t->V));
        cr_assert_eq(span.rc, MOE_OK, "%s", span.text);
    }
    cr_assert_eq(serve_sequence_length(t->s, sequence), n);
    serve_sequence_end(t->s, sequence);
    return out;
}

void test_serve_tokens(const test_serve *t, int32_t *token, int n, uint64_t seed)
{
    uint64_t x = seed * 0x9e3779b97f4a7c15u + 1;
    for (int i = 0; i < n; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        token[i] = (int32_t)((x >> 33) % (uint64_t)t->V);
    }
}

void test_serve_same(const char *what, const float *got, const float *want, int rows, int V)
{
    for (size_t i = 0; i < (size_t)rows * (size_t)V; i++)
        cr_assert(memcmp(&got[i], &want[i], sizeof got[i]) == 0, "%s: logits[%zu, %zu]: %a, expected %a", what, i / (size_t)V, i % (size_t)V,
                  (double)got[i], (double)want[i]);
}

float *test_serve_logits_of(const char *path, test_serve_options o, int n, int cut, int *V)
{
    test_serve t;
    int32_t *token = calloc((size_t)n, sizeof *token);
    cr_assert_not_null(token);
    test_serve_open(&t, path, o);
    test_serve_tokens(&t, token, n, 5);
    float *logits = test_serve_logits(&t, token, n, cut);
    *V = t.V;
    test_serve_close(&t);
    free(token);
    return logits;
}

void test_serve_expect(const char *what, const char *path, test_serve_options o, int n, int cut, const float *want, int V)
{
    int got_V;
    float *got = test_serve_logits_of(path, o, n, cut, &got_V);
    cr_assert_eq(got_V, V);
    test_serve_same(what, got, want, n, V);
    free(got);
}
