/* What a panel looks like inside: 16 outputs side by side, in their own format (kernels/qmatmul.h). Private to kernels/. Owns no
 * data.
 *
 * Plain formats: element (n, k) at panel_index(n, k, K), as in matmul.h, in 2 or 4 bytes.
 * Block formats: K is cut into pieces of QBLOCK; a matrix is first the data of all its panels, then what scales them, so that data
 * stays on whole cache lines and both are read as one stream:
 *     data  [panels][K / 32][data bytes]    side  [panels][K / 32][side bytes]
 * A piece's data is 16 outputs x 4 bytes for each of its steps; a step holds 4 numbers of k (what vpdpbusd adds up), a nibble step
 * holds numbers 4 s .. 4 s + 3 in the low nibbles and 16 more in the high ones. The bytes of a ggml block stay what they are: packing
 * is a transposition of 32-bit words. The side is one fp16 for each output (d), and a second row of them where the format has a least (m).
 * Pads hold scale 0, so whatever their data, they are zeros. */
#ifndef MOE_KERNELS_QPANEL_H
#define MOE_KERNELS_QPANEL_H

#include "kernels/qmatmul.h"

enum { QBLOCK = 32, QSTEPS = QBLOCK / 4, QLINE = PANEL * 4 /* bytes of a step */ };

typedef struct qpanel_layout {
    int data, side; /* bytes of a piece of a panel; 0, 0: a plain format */
} qpanel_layout;

qpanel_layout qpanel_about(numfmt f);

static inline int64_t qpanel_pieces(int64_t N, int64_t K) { return panel_pad(N) / PANEL * (K / QBLOCK); }
/* The pieces of panel p, one after the other. */
static inline const uint8_t *qpanel_data(const void *panels, qpanel_layout l, int64_t p, int64_t K)
{
    return (const uint8_t *)panels + (size_t)(p * (K / QBLOCK)) * (size_t)l.data;
}
static inline const uint8_t *qpanel_side(const void *panels, qpanel_layout l, int64_t p, int64_t N, int64_t K)
{
    return (const uint8_t *)panels + (size_t)qpanel_pieces(N, K) * (size_t)l.data + (size_t)(p * (K / QBLOCK)) * (size_t)l.side;
}

/* 32 numbers of one output: scale * q[i] + least. */
typedef struct qpanel_piece {
    int8_t q[QBLOCK];
    float scale, least;
} qpanel_piece;

void qpanel_read(qpanel_piece *out, const void *panels, numfmt f, int64_t n, int64_t b, int64_t N, int64_t K);
/* Element (n, k) of a plain format. */
float qpanel_element(const void *panels, numfmt f, int64_t n, int64_t k, int64_t K);

/* Full panels of a block format, `head` bytes of fp16 before the `steps` words of data of each block: one panel. The second where there is
 * AVX2. */
void qpanel_pack_blocks(uint8_t *data, uint8_t *side, const uint8_t *rows, size_t stride, int64_t K, int head, int steps);
void qpanel_pack_blocks_avx2(uint8_t *data, uint8_t *side, const uint8_t *rows, size_t stride, int64_t K, int head, int steps);

/* What every backend asks first: matrices, formats, sizes. */
moe_err qmatmul_check(const qmatmul_args *a) MOE_MUST_CHECK;

/* Activations whose largest magnitude is smaller are zeros: 127 / amax must be a number. */
static const float QACT_LEAST = 0x1p-100f;

#endif
