/* The inner products of attention and the packed tiles they read; shared by attention.c (forward) and attention_backward.c.
 * Owns no memory: every buffer is the worker's scratch, 64-byte aligned, rows padded with zeros to whole vectors of 16.
 *
 *     c[i, :] = chain over s of a(i, s) * b[s, :]          i: broadcast side, vectors along the columns of b and c
 *
 * forward   scores  a = rows of q, b = K^T;   o    a = rows of p, b = V
 * backward  scores, do.v as above (V^T);      dq   a = rows of ds, b = K;   dv, dk   a = columns of p, ds, b = rows of do, q
 *
 * AVX-512: 6 x 4 accumulators, 4 b, 1 broadcast: 29 of 32 registers; a step is 24 FMAs (12 cycles) and 10 loads (5 cycles).
 * AVX2: 6 x 1 vectors = 12 ymm, 2 b, 1 broadcast: 15 of 16; a step is 12 FMAs (6 cycles) and 8 loads (4 cycles).
 * Rule: how the rows and columns are cut changes nothing but speed: every output is one chain in the order of s. */
#ifndef MOE_KERNELS_CPU_ATTENTION_TILE_H
#define MOE_KERNELS_CPU_ATTENTION_TILE_H

#include <stdbool.h>
#include <string.h>

#include "kernels/attention.h"
#include "kernels/cpu/row.h"
#include "kernels/cpu/simd.h"

enum {
    PRODUCT_ROWS = 6,
    PRODUCT_VECS = MOE_SIMD_512 ? 4 : 1,
    TILE = ATTENTION_TILE,
    TILE_VECS = TILE / V16,
};
_Static_assert(TILE % V16 == 0, "a row of scores is whole vectors");

typedef struct product {
    float *c;            /* [rows, ldc]                                           */
    const float *a;      /* by row: [rows, lda]; by column: [steps, lda]          */
    const float *b;      /* [steps, ldb]                                          */
    const float *factor; /* [rows] the chain starts from c * factor; NULL: from c */
    size_t ldc, lda, ldb;
    int steps;
    bool zero; /* the chain starts from +0 */
} product;

typedef void (*product_fn)(const product *p);

SIMD void product_start(const product *p, v16 acc[PRODUCT_ROWS][PRODUCT_VECS], const int rows, const int vecs)
{
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++) {
        const float *c = p->c + (size_t)i * p->ldc;
#pragma GCC unroll 4
        for (int j = 0; j < vecs; j++) {
            if (p->zero)
                acc[i][j] = v16_zero();
            else if (p->factor != NULL)
                acc[i][j] = v16_mul(v16_load(c + j * V16), v16_set1(p->factor[i]));
            else
                acc[i][j] = v16_load(c + j * V16);
        }
    }
}

/* One block of rows x vecs; everything but p is a constant where it is inlined. */
SIMD void product_run(const product *p, const int rows, const int vecs, const bool by_column)
{
    v16 acc[PRODUCT_ROWS][PRODUCT_VECS];
    const size_t a_row = by_column ? 1 : p->lda, a_step = by_column ? p->lda : 1, ldb = p->ldb, ldc = p->ldc;
    const float *a = p->a, *b = p->b;
    float *c = p->c;
    product_start(p, acc, rows, vecs);
    for (int s = p->steps; s > 0; s--) {
        v16 bv[PRODUCT_VECS];
#pragma GCC unroll 4
        for (int j = 0; j < vecs; j++)
            bv[j] = v16_load(b + j * V16);
#pragma GCC unroll 6
        for (int i = 0; i < rows; i++) {
            const v16 av = v16_set1(a[(size_t)i * a_row]);
#pragma GCC unroll 4
            for (int j = 0; j < vecs; j++)
                acc[i][j] = v16_fma(av, bv[j], acc[i][j]);
        }
        a += a_step, b += ldb;
    }
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < vecs; j++)
            v16_store(c + (size_t)i * ldc + j * V16, acc[i][j]);
}

#define PRODUCT_DEFINE(r, v)                                                         \
    static void product_row_##r##_##v(const product *p) { product_run(p, r, v, false); } \
    static void product_column_##r##_##v(const product *p) { product_run(p, r, v, true); }
#define PRODUCT_ENTRY(r, v) [0][v - 1][r - 1] = product_row_##r##_##v, [1][v - 1][r - 1] = product_column_##r##_##v,
#define PRODUCT_EACH_ROW(X, v) X(1, v) X(2, v) X(3, v) X(4, v) X(5, v) X(6, v)
#if MOE_SIMD_512
#define PRODUCT_EACH(X) PRODUCT_EACH_ROW(X, 1) PRODUCT_EACH_ROW(X, 2) PRODUCT_EACH_ROW(X, 3) PRODUCT_EACH_ROW(X, 4)
#else
#define PRODUCT_EACH(X) PRODUCT_EACH_ROW(X, 1)
#endif
PRODUCT_EACH(PRODUCT_DEFINE)
static const product_fn product_table[2][PRODUCT_VECS][PRODUCT_ROWS] = {PRODUCT_EACH(PRODUCT_ENTRY)};

/* rows <= PRODUCT_ROWS, any number of vectors. */
SIMD void product_columns(const product *p, int rows, int vecs, bool by_column)
{
    for (int v = 0; v < vecs; v += PRODUCT_VECS) {
        product part = *p;
        part.c += v * V16, part.b += v * V16;
        product_table[by_column][(vecs - v < PRODUCT_VECS ? vecs - v : PRODUCT_VECS) - 1][rows - 1](&part);
    }
}

/* Rows of n floats that will be read (or written) soon: a row lies 2 KiB or more behind the one before, so the hardware does not guess it. */
SIMD void prefetch_rows(const float *from, size_t ld, int64_t rows, int n)
{
    for (int64_t r = 0; r < rows; r++)
        for (int d = 0; d < n; d += V16)
            _mm_prefetch((const char *)(from + (size_t)r * ld + d), _MM_HINT_T1);
}

SIMD size_t padded(int n) { return ((size_t)n + V16 - 1) / V16 * V16; }

/* rows x n floats into rows of `width` (n padded), zeros behind. */
SIMD void pack_rows(float *to, const float *from, size_t ld, int64_t rows, int n)
{
    const size_t width = padded(n);
    for (int64_t r = 0; r < rows; r++)
        for (int d = 0; d < n; d += V16)
            v16_store(to + (size_t)r * width + d, row_load(from + (size_t)r * ld + d, n - d));
}

/* One tile of keys as rows [TILE, width], zero rows behind the last key. */
SIMD void pack_tile(float *to, const float *from, size_t ld, int keys, int n)
{
    pack_rows(to, from, ld, keys, n);
    memset(to + (size_t)keys * padded(n), 0, (size_t)(TILE - keys) * padded(n) * sizeof *to);
}

/* [TILE, width] -> [width, TILE] */
SIMD void transpose_tile(float *to, const float *from, size_t width)
{
    for (size_t d = 0; d < width; d += V16)
        for (size_t j = 0; j < TILE; j += V16)
            v16_transpose(to + d * TILE + j, TILE, from + j * width + d, width, V16);
}

/* Of a tile that begins at key t0 and holds `keys`: how many are visible to query i. */
SIMD int visible(int64_t i, int64_t t0, int keys)
{
    const int64_t n = i - t0 + 1;
    return n <= 0 ? 0 : n < keys ? (int)n : keys;
}

#endif
