/* What a panel looks like inside: 16 outputs side by side, in their own format (kernels/qmatmul.h). Private to kernels/. Owns no
 * data.
 *
 * Plain formats: element (n, k) at panel_index(n, k, K), as in matmul.h, in 2 or 4 bytes.
 * Block formats: K is cut into pieces of QBLOCK; a matrix is first the data of all its panels, then what scales them, so that data
 * stays on whole cache lines and both are read as one stream:
 *     data  [panels][K / 32][data bytes]    side  [panels][K / 32][side bytes]
 * A line of data is 16 outputs x 4 bytes. A step is 4 numbers of k (what vpdpbusd adds up):
 *     8 lines of bytes    Q8_0: step s is line s
 *     4 lines of nibbles  step s < 4 is the low nibbles of line s, step 4 + s the high ones; the bytes of a Q4_0 block stay what they are
 *     + 1 line of bits    Q5: bit s of byte j is the fifth bit of number 4 s + j
 *     + 2 lines of twos   Q6_K: bits 2 s, 2 s + 1 of byte j are the high bits of number 4 s + j (first line), 16 + 4 s + j (second)
 * The side is one fp16 for each output (d), and a second row of them where the format has a least (m); one byte in MXFP4.
 * In the K formats eight pieces share a side: fp16 d (and dmin) of the 16 outputs, then for each piece 16 bytes of scales and 16 of leasts
 * (Q4_K, Q5_K; 6 bits each), or of the scales of its two halves (Q6_K). Pads are zeros.
 * F8_E4M3: pairs of k instead of steps: byte 0 of word n of pair p is number (n, 2 p), byte 1 is (n, 2 p + 1); four pieces share a side, the
 * fp32 scales of the 16 outputs. */
#ifndef MOE_KERNELS_QPANEL_H
#define MOE_KERNELS_QPANEL_H

#include "kernels/half.h"
#include "kernels/qmatmul.h"

enum { QBLOCK = 32, QEIGHT = 128 /* numbers that share a scale in F8_E4M3 */, QSTEPS = QBLOCK / 4, QLINE = PANEL * 4 /* bytes of a step */, QSUPER = 8 /* pieces of a K block */ };

typedef struct qpanel_layout {
    int data, side; /* bytes of a piece of a panel; 0, 0: a plain format */
} qpanel_layout;

qpanel_layout qpanel_about(numfmt f);

KERNEL_INLINE int64_t qpanel_pieces(int64_t N, int64_t K) { return panel_pad(N) / PANEL * (K / QBLOCK); }
/* The pieces of panel p, one after the other. */
static inline const uint8_t *qpanel_data(const void *panels, qpanel_layout l, int64_t p, int64_t K)
{
    return (const uint8_t *)panels + (size_t)(p * (K / QBLOCK)) * (size_t)l.data;
}
static inline const uint8_t *qpanel_side(const void *panels, qpanel_layout l, int64_t p, int64_t N, int64_t K)
{
    return (const uint8_t *)panels + (size_t)qpanel_pieces(N, K) * (size_t)l.data + (size_t)(p * (K / QBLOCK)) * (size_t)l.side;
}

/* 32 numbers of one output: scale[i / 16] * q[i] + least. The two scales differ only in formats with halves. */
typedef struct qpanel_piece {
    int8_t q[QBLOCK];
    float scale[2], least;
} qpanel_piece;

/* What the order of sums of a format depends on (kernels/qmatmul.h). Chained: no quantised activations, one fma chain over k. */
static inline bool qpanel_chained(numfmt f) { return f == NUM_F32 || f == NUM_F16 || f == NUM_BF16 || f == NUM_F8_E4M3; }
static inline bool qpanel_least(numfmt f) { return f == NUM_Q4_1 || f == NUM_Q5_1 || f == NUM_Q4_K || f == NUM_Q5_K; }
static inline bool qpanel_halves(numfmt f) { return f == NUM_Q6_K; }

void qpanel_read(qpanel_piece *out, const void *panels, numfmt f, int64_t n, int64_t b, int64_t N, int64_t K);
/* Element (n, k) of a chained format. */
float qpanel_element(const void *panels, numfmt f, int64_t n, int64_t k, int64_t N, int64_t K);

/* Full panels of a block format, `head` bytes of fp16 before the `steps` words of data of each block: one panel. The second where there is
 * AVX2. */
void qpanel_pack_blocks(uint8_t *data, uint8_t *side, const uint8_t *rows, size_t stride, int64_t K, int head, int steps);
void qpanel_pack_blocks_avx2(uint8_t *data, uint8_t *side, const uint8_t *rows, size_t stride, int64_t K, int head, int steps);

/* What every backend asks first: matrices, formats, sizes. */
moe_err qmatmul_check(const qmatmul_args *a) MOE_MUST_CHECK;

/* Activations whose largest magnitude is smaller are zeros: 127 / amax must be a number. */
static const float QACT_LEAST = 0x1p-100f;

/* Scales of activations as ggml keeps them, in fp16, where that is a normal number; others stay as they are. */
KERNEL_INLINE float qact_scale(float x)
{
    const uint32_t magnitude = float_bits(x) & 0x7fffffffu;
    return magnitude < 0x38800000u || magnitude >= 0x477ff000u ? x : half_to_float(half_from_float(x));
}

#endif
