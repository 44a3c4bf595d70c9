/* Opens a model for serving and runs sequences through it in all the ways that must not change a bit. For tests. */
#ifndef MOE_TESTS_ENGINE_SERVE_HARNESS_H
#define MOE_TESTS_ENGINE_SERVE_HARNESS_H

#include "engine/serve/serve.h"

typedef struct test_serve {
    model *model;
    io *io;
    moe_pool *pool;
    moe_stream stream;
    serve_config c;
    serve *s;
    int V;
} test_serve;

/* What a test changes; zero: 256 MiB, 2 threads, fastest backend, F32 pages, 8 sequences of 128 tokens, steps of 64. */
typedef struct test_serve_options {
    uint64_t host_bytes;
    bool least; /* as little memory as it opens in */
    int threads, sequences, chunk;
    int64_t context;
    const char *backend, *policy, *hot;
    numfmt kv;
} test_serve_options;

/* Stops the test when it cannot. */
void test_serve_open(test_serve *t, const char *path, test_serve_options o);
void test_serve_close(test_serve *t);

/* Logits [n, V] of all tokens of a new sequence, fed in pieces of `cut`; malloc'ed. The sequence is ended. */
float *test_serve_logits(test_serve *t, const int32_t *token, int n, int cut);
/* The model at `path` opened for this alone: logits [n, V] of n pseudo-random tokens, fed in pieces of `cut`; malloc'ed. */
float *test_serve_logits_of(const char *path, test_serve_options o, int n, int cut, int *V);
/* The same, bit for bit those that are wanted: [n, V]. */
void test_serve_expect(const char *what, const char *path, test_serve_options o, int n, int cut, const float *want, int V);
/* n pseudo-random ids. */
void test_serve_tokens(const test_serve *t, int32_t *token, int n, uint64_t seed);
/* memcmp of rows of V; prints the first difference. */
void test_serve_same(const char *what, const float *got, const float *want, int rows, int V);

#define MUST(call)                                                                          \
    do {                                                                                    \
        const moe_err must_rc = (call);                                                     \
        cr_assert(must_rc == MOE_OK, "%s: %s\n%s", #call, moe_error_text(), moe_error_traces()); \
    } while (0)

#endif
