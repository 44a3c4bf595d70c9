/* Products with a weight matrix W [N, K] (as in PyTorch's Linear: N outputs, K inputs), for G groups of ragged rows.
 *
 * Panels. W is stored in panels of PANEL outputs: element (n, k) at ((n / PANEL) * K + k) * PANEL + n % PANEL; the rows that
 * pad N up to a multiple of PANEL hold zeros, and so do their gradients. One layout serves all three products.
 *
 *   forward  y[r, n]  = sum over k of x[r, k]  * w[n, k]     chain over k = 0 .. K-1
 *   dx       dx[r, k] = sum over n of dy[r, n] * w[n, k]     chain over n = 0 .. N-1
 *   dw       dw[n, k] = sum over r of dy[r, n] * x[r, k]     chain over the rows of the group, in order
 *
 * Order of sums: one accumulator per output, one fused multiply-add per term, in the order named. The chain starts from 0,
 * or from what the output holds when `accumulate` is set (so a chain can be continued by a later call).
 * Group g owns rows [offset[g], offset[g + 1]) of x, y, dx, dy and the weights w[g] (dw[g]). A group without rows is normal;
 * with accumulate unset its dw is set to zero. Rows outside the groups are not touched. x/y and dy/dx must not overlap.
 * Weights may come as bf16 (w16): the bits are those of the product with the same numbers in fp32, read in half the bytes. */
#ifndef MOE_KERNELS_MATMUL_H
#define MOE_KERNELS_MATMUL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/inline.h"
#include "kernels/stream.h"

enum { PANEL = 16 }; /* outputs side by side: one AVX-512 register of fp32 */

KERNEL_INLINE int64_t panel_pad(int64_t n) { return (n + PANEL - 1) / PANEL * PANEL; }
KERNEL_INLINE size_t panel_floats(int64_t N, int64_t K) { return (size_t)panel_pad(N) * (size_t)K; }
KERNEL_INLINE size_t panel_index(int64_t n, int64_t k, int64_t K)
{
    return ((size_t)(n / PANEL) * (size_t)K + (size_t)k) * PANEL + (size_t)(n % PANEL);
}

typedef struct matmul_args {
    float *const *dw;       /* [G] panels (N, K), written by dw                       */
    const float *const *w;  /* [G] panels (N, K), read by forward and dx              */
    const uint16_t *const *w16; /* [G] the same panels in bf16, or NULL: w is read    */
    float *y;               /* [rows, ldy >= N] forward: out; dx and dw: dy, only read */
    float *x;               /* [rows, ldx >= K] dx: out (dx); forward and dw: only read */
    size_t ldy, ldx;        /* floats from one row to the next                        */
    const int32_t *offset;  /* [G + 1] rows, not decreasing                           */
    int G, N, K;
    bool accumulate;
} matmul_args;

typedef moe_err (*matmul_fn)(const matmul_args *a, moe_stream *s);

/* Row-major [N, K] <-> panels. `first` and `rows`: unpack only rows [first, first + rows). */
void panel_pack(float *panels, const float *rowmajor, int64_t N, int64_t K);
void panel_unpack(float *rowmajor, const float *panels, int64_t first, int64_t rows, int64_t K);

#endif
