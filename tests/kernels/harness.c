/* The shared parts of the kernel tests (harness.h). Owns one single-threaded pool for the reference and the pools of a walk.
 * Knows no operation. One thread. Rule: nothing here depends on time, address or a library's random numbers. */
#include "tests/kernels/harness.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const test_shape test_shapes[] = {
    {.name = "one token", .B = 1, .S = 1, .D = 16, .F = 16, .E = 4, .K = 1, .H = 2, .Hkv = 1, .hd = 8, .V = 16, .used = 4},
    {.name = "nothing divides",
     .B = 1,
     .S = 37,
     .D = 53,
     .F = 29,
     .E = 7,
     .K = 3,
     .H = 3,
     .Hkv = 1,
     .hd = 10,
     .V = 61,
     .used = 7},
    {.name = "most experts empty",
     .B = 3,
     .S = 5,
     .D = 40,
     .F = 24,
     .E = 64,
     .K = 2,
     .H = 4,
     .Hkv = 2,
     .hd = 16,
     .V = 33,
     .used = 3},
    {.name = "K == E", .B = 2, .S = 9, .D = 33, .F = 48, .E = 4, .K = 4, .H = 4, .Hkv = 4, .hd = 6, .V = 17, .used = 4},
    {.name = "empty batch", .B = 0, .S = 4, .D = 32, .F = 16, .E = 8, .K = 2, .H = 2, .Hkv = 2, .hd = 16, .V = 32, .used = 8},
    {.name = "past every tile",
     .B = 2,
     .S = 131,
     .D = 144,
     .F = 97,
     .E = 3,
     .K = 2,
     .H = 4,
     .Hkv = 2,
     .hd = 36,
     .V = 270,
     .used = 3},
    {.name = NULL},
};

enum { GUARD = 64 }; /* floats on each side */
static const uint32_t GUARD_WORD = 0x7fc0beefu;

typedef struct guard_head {
    float *base;
    size_t n;
} guard_head;

uint64_t test_bits(uint64_t seed, uint64_t index)
{
    uint64_t z = seed * 0xd1342543de82ef95u + (index + 1) * 0x9e3779b97f4a7c15u; /* splitmix64 */
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static float fill_value(uint64_t bits)
{
    const float plain = (float)((int64_t)(bits >> 40) - (1 << 23)) / (float)(1 << 23);
    switch (bits & 63) {
    case 0:
        return 0.0f;
    case 1:
        return -0.0f;
    case 2:
        return plain * 0x1p-130f; /* denormal or close to it */
    case 3:
        return plain * 0x1p-20f;
    case 4:
        return plain * 0x1p+10f;
    default:
        return plain;
    }
}

void test_fill(float *x, size_t n, uint64_t seed)
{
    for (size_t i = 0; i < n; i++)
        x[i] = fill_value(test_bits(seed, i));
}

float *test_new(size_t n, bool aligned)
{
    float *base = aligned_alloc(64, ((n + 2 * GUARD + 16) * sizeof(float) + 63) / 64 * 64);
    cr_assert_not_null(base, "out of memory");
    float *x = base + GUARD + (aligned ? 0 : 1);
    for (float *p = base; p < x + n + GUARD; p++)
        memcpy(p, &GUARD_WORD, sizeof *p);
    memcpy(x - 16, &(guard_head){base, n}, sizeof(guard_head));
    return x;
}

void test_free(float *x)
{
    if (x == NULL)
        return;
    guard_head head;
    memcpy(&head, x - 16, sizeof head);
    for (int i = 1; i <= GUARD; i++) {
        if (i < 13)
            cr_assert_eq(memcmp(x - i, &GUARD_WORD, sizeof *x), 0, "element -%d was written", i);
        cr_assert_eq(memcmp(x + head.n - 1 + i, &GUARD_WORD, sizeof *x), 0, "element %zu of %zu was written",
                     head.n - 1 + (size_t)i, head.n);
    }
    free(head.base);
}

float *test_new_filled(size_t n, uint64_t seed)
{
    float *x = test_new(n, false);
    test_fill(x, n, seed);
    return x;
}

void test_route(const test_shape *s, int32_t *ids, int32_t *offset, uint64_t seed)
{
    memset(offset, 0, sizeof *offset * (size_t)(s->E + 1));
    for (int t = 0; t < test_tokens(s); t++) {
        const int first = (int)(test_bits(seed, (uint64_t)t) % (uint64_t)s->used);
        for (int k = 0; k < s->K; k++) {
            ids[t * s->K + k] = s->E - 1 - (first + k) % s->used;
            offset[ids[t * s->K + k] + 1]++;
        }
    }
    for (int e = 0; e < s->E; e++)
        offset[e + 1] += offset[e];
}

void test_same(const char *what, const float *got, const float *want, size_t rows, size_t cols, size_t ld)
{
    for (size_t r = 0; r < rows; r++) {
        if (memcmp(got + r * ld, want + r * ld, cols * sizeof *got) == 0)
            continue;
        for (size_t c = 0; c < cols; c++) {
            const float g = got[r * ld + c], w = want[r * ld + c];
            cr_assert_eq(memcmp(&g, &w, sizeof g), 0, "%s: first difference at [%zu, %zu]: got %a (%.9g), expected %a (%.9g)",
                         what, r, c, (double)g, (double)g, (double)w, (double)w);
        }
    }
}

void test_same_bytes(const char *what, const void *got, const void *want, size_t bytes)
{
    const unsigned char *g = got, *w = want;
    for (size_t i = 0; i < bytes && memcmp(got, want, bytes) != 0; i++)
        cr_assert_eq(g[i], w[i], "%s: first difference at byte %zu: got %#x, expected %#x", what, i, g[i], w[i]);
}

const moe_backend *test_reference(void) { return moe_backend_at(0); }

moe_stream *test_stream(void)
{
    static moe_stream stream;
    if (stream.pool == NULL)
        cr_assert_eq(moe_pool_open(&stream.pool, 1, KERNEL_SCRATCH_BYTES), MOE_OK, "%s", moe_error_text());
    return &stream;
}

void test_each_backend(test_backend_fn fn, void *ctx)
{
    for (int threads = 1; threads <= 3; threads++) {
        moe_stream stream;
        cr_assert_eq(moe_pool_open(&stream.pool, threads, KERNEL_SCRATCH_BYTES), MOE_OK, "%s", moe_error_text());
        for (int i = 0; moe_backend_at(i) != NULL; i++) {
            char where[64];
            snprintf(where, sizeof where, "%s, %d thread%s", moe_backend_at(i)->name, threads, threads == 1 ? "" : "s");
            fn(moe_backend_at(i), &stream, where, ctx);
        }
        moe_pool_close(stream.pool);
    }
}
