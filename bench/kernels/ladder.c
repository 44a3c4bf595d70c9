/* The rungs between the definition and the shipped product, for README.md beside this file: each adds one idea to forward.
 * Compiled once per instruction set. Owns nothing. One thread; one group.
 * Rule: every rung gives the bits of kernels/ref/matmul.c; only the winner lives in kernels/. */
#include <math.h>

#include "bench/kernels/bench.h"
#include "kernels/cpu/simd.h"

/* Rung 2: panels. Sixteen outputs side by side in one vector, one chain at a time: bound by the latency of the FMA. */
void ISA(ladder_panels)(float *y, const float *x, const float *w, int rows, int N, int K)
{
    for (int n = 0; n < N; n += V16)
        for (int r = 0; r < rows; r++) {
            v16 sum = v16_zero();
            for (int k = 0; k < K; k++)
                sum = v16_fma(v16_set1(x[(size_t)r * (size_t)K + (size_t)k]),
                              v16_load(w + ((size_t)n * (size_t)K + (size_t)k * V16)), sum);
            v16_store(y + (size_t)r * (size_t)N + n, sum);
        }
}

/* Rung 3: a register tile of 6 rows. Independent chains hide the latency and each vector of w serves six rows; x is read where it
 * lies and the whole K runs at once, so w and the rows of x leave L1 between uses. */
void ISA(ladder_tile)(float *y, const float *x, const float *w, int rows, int N, int K)
{
    enum { R = 6 };
    for (int r = 0; r + R <= rows; r += R)
        for (int n = 0; n < N; n += V16) {
            v16 sum[R];
            const float *panel = w + (size_t)n * (size_t)K, *row = x + (size_t)r * (size_t)K;
#pragma GCC unroll 6
            for (int i = 0; i < R; i++)
                sum[i] = v16_zero();
            for (int k = 0; k < K; k++) {
                const v16 wv = v16_load(panel + (size_t)k * V16);
#pragma GCC unroll 6
                for (size_t i = 0; i < R; i++)
                    sum[i] = v16_fma(v16_set1(row[i * (size_t)K + (size_t)k]), wv, sum[i]);
            }
#pragma GCC unroll 6
            for (size_t i = 0; i < R; i++)
                v16_store(y + ((size_t)r + i) * (size_t)N + n, sum[i]);
        }
    if (rows % R != 0)
        ISA(ladder_panels)
        (y + (size_t)(rows - rows % R) * (size_t)N, x + (size_t)(rows - rows % R) * (size_t)K, w, rows % R, N, K);
}
