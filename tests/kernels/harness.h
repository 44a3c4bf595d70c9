/* What every kernel test shares: the awkward shapes, deterministic fill, guarded arrays, bitwise comparison, and the walk over all
 * backends and thread counts. Owns the pools while it walks; knows no operation. One thread.
 * Rule: a test computes its expectation with the reference row (test_reference) or in double, never with a second fast version. */
#ifndef MOE_TESTS_KERNELS_HARNESS_H
#define MOE_TESTS_KERNELS_HARNESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/backend.h"

/* One alphabet (DESIGN.md section 2). T = B * S tokens; N = T * K routed rows. */
typedef struct test_shape {
    const char *name;
    int B, S;        /* windows, tokens a window      */
    int D, F;        /* model width, expert width     */
    int E, K;        /* experts, experts per token    */
    int H, Hkv, hd;  /* query heads, kv heads, width (even) */
    int V;           /* vocabulary                    */
    int used;        /* experts that receive rows: <= E, >= K */
} test_shape;

/* The table; ends with name == NULL. */
extern const test_shape test_shapes[];
static inline int test_tokens(const test_shape *s) { return s->B * s->S; }

/* Values in (-1, 1) from (seed, index), among them exact zeros of both signs, denormals and a few of 2^10 and 2^-20. */
void test_fill(float *x, size_t n, uint64_t seed);
/* 64 random bits of (seed, index). */
uint64_t test_bits(uint64_t seed, uint64_t index);

/* n floats (0 allowed) between guard words, filled with NaN; 4 bytes past 64-byte alignment unless `aligned`.
 * test_free fails the test when a guard was overwritten. */
float *test_new(size_t n, bool aligned);
void test_free(float *x);
/* A filled array in one call. */
float *test_new_filled(size_t n, uint64_t seed);

/* ids [T, K]: distinct in a token, from the first `used` experts counted downwards from E - 1; offset [E + 1]: rows by expert. */
void test_route(const test_shape *s, int32_t *ids, int32_t *offset, uint64_t seed);

/* memcmp of rows x cols floats, `ld` floats from row to row. On a difference prints what, the first coordinate and both values
 * and fails the test. */
void test_same(const char *what, const float *got, const float *want, size_t rows, size_t cols, size_t ld);
void test_same_bytes(const char *what, const void *got, const void *want, size_t bytes);

/* The reference row, and a stream of one thread for it (lives until the process ends). */
const moe_backend *test_reference(void);
moe_stream *test_stream(void);

/* Calls fn for every backend that runs here and for 1, 2 and 3 threads. `where` ("avx2, 2 threads") is for messages. */
typedef void (*test_backend_fn)(const moe_backend *b, moe_stream *s, const char *where, void *ctx);
void test_each_backend(test_backend_fn fn, void *ctx);

#endif
