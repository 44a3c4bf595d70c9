/* Forward products with weights as they are stored, for serving: up to QMATMUL_MOST matrices that share their input (q, k, v; gate, up),
 * for G groups of ragged rows.
 *     y_m[r, n] = sum over k of x[r, k] * w_m[g][n, k]        r in group g
 * Weights are panels of 16 outputs in their own format; what a panel looks like inside is private to kernels/ (qpanel_* below).
 *
 * Order of sums. F32, F16, BF16: one fma chain over k, as matmul.h (F32 gives matmul_forward's bits). F8_E4M3: the same chain, w the nearest
 * fp32 of code * scale (to be exact: of (code / 256) * (scale * 256), with denormals as zeros); the codes of NaN, 0x7f and 0xff, count as 480 and
 * -480 here: who makes panels refuses them first (models/rows.h).
 * Block formats: the activations of a row are quantised once, in blocks of 32 along k: amax = max |x|, d = amax / 127,
 * a = nearest even of x * (127 / amax), s = sum of a * d; a = 0, d = 0 where amax < 2^-100; a = 0, d = NaN where an x is not finite.
 * d and s are then rounded to fp16, nearest even, where that is a normal number, else left: the blocks are those of ggml's Q8_0 and Q8_1.
 * Then one chain per output over the blocks in order:
 *     Q4_0, Q5_0, Q8_0, IQ4_NL, MXFP4   acc = fma((float)sum of q * a, dw * d, acc)      q centred: Q4_0 is q - 8; or the table's number
 *     Q6_K                              the same for numbers 0 .. 15 and then 16 .. 31 of a block, each with its own dw
 *     Q4_1, Q5_1, Q4_K, Q5_K            as the first, then acc = fma(s, mw, acc)
 * In the K formats dw = d * scale and mw = -(dmin * least) of the block of 32 (Q6_K: of 16), exact in fp32.
 * The integer sums are exact, so every instruction set gives the same bits; so do one row and a thousand.
 * The chain starts from 0, or from what y holds when `accumulate`. Zero rows are normal. Pads of N are never stored to y.
 * Rows outside [offset[0], offset[G]) are not touched; x and the y's must not overlap. */
#ifndef MOE_KERNELS_QMATMUL_H
#define MOE_KERNELS_QMATMUL_H

#include <stdbool.h>

#include "kernels/matmul.h"
#include "kernels/numfmt.h"

enum { QMATMUL_MOST = 3 };

typedef struct qmatrix {
    float *y; /* [rows, ldy >= N] out                     */
    size_t ldy;
    const void *const *w; /* [G] panels (N, K) in `format`, 64-byte aligned */
    numfmt format;
    int N;
} qmatrix;

typedef struct qmatmul_args {
    qmatrix mat[QMATMUL_MOST];
    int M;          /* matrices, 1 .. QMATMUL_MOST              */
    const float *x; /* [rows, ldx >= K]                         */
    size_t ldx;
    const int32_t *offset; /* [G + 1] rows, not decreasing             */
    int G, K;
    bool accumulate;
} qmatmul_args;

/* MOE_E_CONFIG when K is no multiple of a matrix's block, or one quantised row does not fit the scratch of a worker (K > 2 million). */
typedef moe_err (*qmatmul_fn)(const qmatmul_args *a, moe_stream *s);

/* Bytes of panels (N, K), a multiple of 64. */
size_t qpanel_bytes(numfmt f, int64_t N, int64_t K);
/* Rows [first, first + n) of a matrix (N, K), as they are stored (row after row, row_stride bytes apart), into its panels. first is a
 * multiple of PANEL, and so is n unless the last rows are among them: then the pads are written too. Fast: this runs whenever an
 * expert lands. */
void qpanel_pack(void *panels, const void *rows, size_t row_stride, numfmt f, int64_t N, int64_t K, int64_t first, int64_t n);
/* Row n as fp32 (embedding lookup, tests). */
void qpanel_row(float *out, const void *panels, numfmt f, int64_t n, int64_t N, int64_t K);

#endif
