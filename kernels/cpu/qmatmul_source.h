/* Where a tile of qmatmul_tile.h gets its weights from: a format as it is stored in panels, or a chunk that was unpacked before for many rows
 * (the wide sources, which formats share): bytes of weights, and scales in fp32. Every property is a constant where it is inlined.
 * Owns no data. Private to kernels/cpu/qmatmul*. Any thread.
 * Rule: source_step gives the numbers that source_centre says, and the scales of kernels/qpanel.c to the bit. */
#ifndef MOE_KERNELS_CPU_QMATMUL_SOURCE_H
#define MOE_KERNELS_CPU_QMATMUL_SOURCE_H

#include <stdbool.h>

#include "kernels/cpu/qmatmul_dot.h"
#include "kernels/numfmt_parts.h"

#if defined(__AVX512VNNI__)
#define QVNNI 1
#else
#define QVNNI 0
#endif

typedef enum qsource {
    FROM_Q4_0,
    FROM_Q4_1,
    FROM_Q8_0,
    FROM_Q5_0,
    FROM_Q5_1,
    FROM_Q4_K,
    FROM_Q5_K,
    FROM_Q6_K,
    FROM_IQ4_NL,
    FROM_MXFP4,
    WIDE_NIBBLE,
    WIDE_NIBBLE_LEAST,
    WIDE_FIVE,
    WIDE_FIVE_LEAST,
    WIDE_SIX,
    WIDE_BYTE,
    QSOURCES
} qsource;

SIMD bool source_wide(qsource s) { return s >= WIDE_NIBBLE; }

/* The wide source that what `s` unpacks has the shape of. */
SIMD qsource source_widened(qsource s)
{
    switch (s) {
    case FROM_Q4_0:
        return WIDE_NIBBLE;
    case FROM_Q4_1:
    case FROM_Q4_K:
        return WIDE_NIBBLE_LEAST;
    case FROM_Q5_0:
    case FROM_MXFP4: /* -12 .. 12, stored with 16 added */
        return WIDE_FIVE;
    case FROM_Q5_1:
    case FROM_Q5_K:
        return WIDE_FIVE_LEAST;
    case FROM_Q6_K:
        return WIDE_SIX;
    case FROM_Q8_0:
    case FROM_IQ4_NL:
        return WIDE_BYTE;
    default:
        return s;
    }
}

SIMD bool source_least(qsource s) { return source_widened(s) == WIDE_NIBBLE_LEAST || source_widened(s) == WIDE_FIVE_LEAST; }
SIMD bool source_halves(qsource s) { return source_widened(s) == WIDE_SIX; }
SIMD bool source_bytes(qsource s) { return source_widened(s) == WIDE_BYTE; }
/* vpmaddubsw sums that an int16 holds. */
SIMD int source_span(qsource s)
{
    const qsource w = source_widened(s);
    return w == WIDE_NIBBLE || w == WIDE_NIBBLE_LEAST ? 8 : w == WIDE_SIX ? 2 : 4;
}
SIMD size_t source_data(qsource s)
{
    switch (s) {
    case FROM_Q4_0:
    case FROM_Q4_1:
    case FROM_Q4_K:
    case FROM_IQ4_NL:
    case FROM_MXFP4:
        return 4 * QLINE;
    case FROM_Q5_0:
    case FROM_Q5_1:
    case FROM_Q5_K:
        return 5 * QLINE;
    case FROM_Q6_K:
        return 6 * QLINE;
    default:
        return 8 * QLINE;
    }
}

/* The 64 weights of a step: unsigned, but for whole bytes where there is no VNNI. */
SIMD i16 source_step(qsource s, const uint8_t *w, int step)
{
    static const int8_t mxfp4[16] = {16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4}; /* + 16 */
    if (source_data(s) == 8 * QLINE) {
        const i16 v = q_load(w + step * QLINE);
#if QVNNI
        return s == FROM_Q8_0 ? q_flip(v) : v;
#else
        return v;
#endif
    }
    const i16 line = q_load(w + step % 4 * QLINE), nibble = step < 4 ? q_low(line) : q_high(line);
    if (s == FROM_MXFP4)
        return q_table(mxfp4, nibble);
#if QVNNI
    if (s == FROM_IQ4_NL)
        return q_flip(q_table(numfmt_iq4_nl, nibble));
#else
    if (s == FROM_IQ4_NL)
        return q_table(numfmt_iq4_nl, nibble);
#endif
    if (source_data(s) == 5 * QLINE) {
        const i16 bits = q_load(w + 4 * QLINE);
        return i16_or(nibble, q_and(step < 4 ? q_shl(bits, step < 4 ? 4 - step : 0) : q_shr(bits, step < 4 ? 0 : step - 4), 0x10));
    }
    if (source_data(s) == 6 * QLINE) {
        const i16 twos = q_load(w + (4 + step / 4) * QLINE);
        return i16_or(nibble, q_and(step % 4 < 2 ? q_shl(twos, step % 4 < 2 ? 4 - step % 4 * 2 : 0)
                                                 : q_shr(twos, step % 4 < 2 ? 0 : step % 4 * 2 - 4), 0x30));
    }
    return nibble;
}

/* The scales of block b of a chunk whose side begins at `side`. row 0: the scale, or that of the first half; 1: the least, or the scale of
 * the second half. */
SIMD v16 source_scale(qsource s, const uint8_t *side, int b, int row)
{
    enum { K_BYTES = 4 * PANEL + QSUPER * 2 * PANEL, SIX_BYTES = 2 * PANEL + QSUPER * 2 * PANEL };
    if (source_wide(s)) {
        const int rows = source_least(s) || source_halves(s) ? 2 : 1;
        return v16_load((const float *)(const void *)side + (b * rows + row) * PANEL);
    }
    if (s == FROM_MXFP4) { /* 2^(e - 128); what would be a denormal is 0 */
        const i16 e = q_bytes(side + b * PANEL), bits = i16_shl(i16_sub(e, i16_set1(1)), 23);
        return v16_select(i16_gt(e, i16_set1(1)), i16_float(bits), v16_zero());
    }
    if (s == FROM_Q6_K) {
        const uint8_t *super = side + b / QSUPER * SIX_BYTES;
        return v16_mul(q_halves(super), i16_to_v16(q_signed_bytes(super + 2 * PANEL + (b % QSUPER * 2 + row) * PANEL)));
    }
    if (s == FROM_Q4_K || s == FROM_Q5_K) {
        const uint8_t *super = side + b / QSUPER * K_BYTES;
        const v16 x = v16_mul(q_halves(super + row * 2 * PANEL), i16_to_v16(q_bytes(super + 4 * PANEL + (b % QSUPER * 2 + row) * PANEL)));
        return row == 0 ? x : v16_neg(x);
    }
    return q_halves(side + (b * (source_least(s) ? 2 : 1) + row) * 2 * PANEL);
}

#endif
