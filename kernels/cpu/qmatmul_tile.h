/* The inner loop of the block formats: rows x 16 outputs stay in registers while up to QCHUNK blocks of 32 k pass by.
 * Rows of one tile read the panel as it is stored and unpack it on the way (a source per format). More rows read a piece that was unpacked
 * before for all of them (the wide sources): bytes of weights, and scales in fp32.
 * VNNI: 12 rows: 12 integer and 12 fp32 accumulators, a weight, a scale; a block is 8 x 12 dot products, and 3 instructions more a row.
 * AVX2: 4 rows: 8 registers of integer sums; the fp32 accumulators are touched once a block and live in memory. Private to kernels/cpu/qmatmul.c.
 * Rule: how rows and blocks are cut changes nothing but speed: each output is one chain over the blocks, continued through y. */
#ifndef MOE_KERNELS_CPU_QMATMUL_TILE_H
#define MOE_KERNELS_CPU_QMATMUL_TILE_H

#include <stdbool.h>

#include "kernels/cpu/qmatmul_dot.h"

#if defined(__AVX512VNNI__)
#define QVNNI 1
enum { QROWS = 12 };
#elif MOE_SIMD_512
#define QVNNI 0
enum { QROWS = 8 };
#else
#define QVNNI 0
enum { QROWS = 4 };
#endif
enum { QCHUNK = 32 /* blocks */, QAHEAD = 3072 /* bytes of weights that are fetched ahead when they are read once */ };

/* 32 quantised activations of a row: one cache line. */
typedef struct qact {
    int8_t a[QBLOCK];
    float d, s;         /* scale; d * sum of a                                  */
    int32_t by8, by128; /* -8 and -128 times the sum of a: what centres q and what brings unsigned bytes back */
    int32_t zero;       /* for formats that need neither */
    int32_t unused[3];
} qact;
_Static_assert(sizeof(qact) == 64, "a block of activations is a cache line");
enum { QACT_ROW = QCHUNK + 1 /* from row to row, in blocks: an odd number of lines, so rows do not share cache sets */ };

/* What a tile reads: a format as it is stored, or a piece unpacked by qmatmul.c. */
typedef enum qsource { FROM_Q4_0, FROM_Q4_1, FROM_Q8_0, WIDE_NIBBLE, WIDE_NIBBLE_LEAST, WIDE_BYTE, QSOURCES } qsource;

typedef struct qtile {
    const uint8_t *w, *side; /* blocks, as the source has them */
    const qact *a;           /* [rows, QACT_ROW]               */
    float *y;                /* [rows, ldy]                    */
    const char *next;        /* fetched on the way, 64 * next_lines bytes a block; NULL: nothing */
    int next_lines;
    size_t ldy;
    int blocks, last; /* last: outputs that exist, 1 .. 16      */
    bool load;        /* the chain continues what y holds       */
} qtile;

typedef void (*qtile_fn)(const qtile *t);

SIMD bool source_wide(qsource s) { return s >= WIDE_NIBBLE; }
SIMD bool source_least(qsource s) { return s == FROM_Q4_1 || s == WIDE_NIBBLE_LEAST; }
SIMD bool source_bytes(qsource s) { return s == FROM_Q8_0 || s == WIDE_BYTE; }
SIMD size_t source_data(qsource s) { return (size_t)(s == FROM_Q4_0 || s == FROM_Q4_1 ? 4 : 8) * QLINE; }
SIMD size_t source_side(qsource s) { return (size_t)(source_wide(s) ? 2 : 1) * (size_t)(source_least(s) ? 2 : 1) * 2 * PANEL; }

/* The 64 weights of a step: VNNI wants them unsigned. */
SIMD i16 source_step(qsource s, const uint8_t *w, int step)
{
    if (s == FROM_Q4_0 || s == FROM_Q4_1)
        return step < 4 ? q_low(q_load(w + step * QLINE)) : q_high(q_load(w + (step - 4) * QLINE));
#if QVNNI
    if (s == FROM_Q8_0)
        return q_flip(q_load(w + step * QLINE));
#endif
    return q_load(w + step * QLINE);
}

SIMD v16 source_scale(qsource s, const uint8_t *side, int row)
{
    return source_wide(s) ? v16_load((const float *)(const void *)side + row * PANEL) : q_halves(side + row * 2 * PANEL);
}

/* sum[r] = the exact sum of the block's 32 products with centred weights. */
SIMD void block_sums(i16 *sum, const int rows, qsource s, const uint8_t *w, const qact *a)
{
#if QVNNI
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) {
        const qact *x = a + r * QACT_ROW;
        sum[r] = source_least(s) ? i16_set1(0) : i16_set1(source_bytes(s) ? x->by128 : x->by8);
    }
#pragma GCC unroll 8
    for (int step = 0; step < QSTEPS; step++) {
        const i16 v = source_step(s, w, step);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) /* the broadcast belongs to the operand, which the compiler does not see: + 5 % */
            __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum[r]) : "v"(v), "m"(*(const int32_t *)(const void *)(a[r * QACT_ROW].a + 4 * step)));
    }
#else
#pragma GCC unroll 8
    for (int step = 0; step < QSTEPS; step++) {
        const i16 v = source_step(s, w, step), size = source_bytes(s) ? q_abs(v) : v;
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            const i16 x = q_four(a[r * QACT_ROW].a + 4 * step);
            if (source_bytes(s)) {
                const i16 four = q_widen(q_pairs(size, q_signed(x, v)));
                sum[r] = step == 0 ? four : i16_add(sum[r], four);
            } else
                sum[r] = step == 0 ? q_pairs(v, x) : q_add16(sum[r], q_pairs(v, x));
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) {
        if (!source_bytes(s))
            sum[r] = q_widen(sum[r]);
        if (!source_bytes(s) && !source_least(s))
            sum[r] = i16_add(sum[r], i16_set1(a[r * QACT_ROW].by8));
    }
#endif
}

SIMD void qtile_run(const qtile *t, const int rows, const qsource s)
{
    v16 acc[QROWS];
    const uint8_t *w = t->w, *side = t->side;
    const qact *a = t->a;
    const char *next = t->next;
    for (int r = 0; r < rows; r++)
        acc[r] = t->load ? v16_load_n(t->y + (size_t)r * t->ldy, t->last) : v16_zero();
    for (int b = 0; b < t->blocks; b++) {
        i16 sum[QROWS];
        if (source_wide(s)) {
            for (int i = 0; next != NULL && i < t->next_lines; i++, next += 64)
                _mm_prefetch(next, _MM_HINT_T1);
        } else {
            for (size_t i = 0; i < source_data(s); i += 64)
                _mm_prefetch((const char *)w + QAHEAD + i, _MM_HINT_T0);
            _mm_prefetch((const char *)side + QAHEAD / 8, _MM_HINT_T0);
        }
        block_sums(sum, rows, s, w, a);
        const v16 scale = source_scale(s, side, 0);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++)
            acc[r] = v16_fma(i16_to_v16(sum[r]), v16_mul(scale, v16_set1(a[r * QACT_ROW].d)), acc[r]);
        if (source_least(s)) {
            const v16 least = source_scale(s, side, 1);
#pragma GCC unroll 16
            for (int r = 0; r < rows; r++)
                acc[r] = v16_fma(v16_set1(a[r * QACT_ROW].s), least, acc[r]);
        }
        w += source_data(s), side += source_side(s), a++;
    }
    for (int r = 0; r < rows; r++)
        v16_store_n(t->y + (size_t)r * t->ldy, acc[r], t->last);
}

/* tiles[source][rows - 1] */
#define QTILE_DEFINE(r, s) \
    static void tile_##s##_##r(const qtile *t) { qtile_run(t, r, s); }
#define QTILE_ENTRY(r, s) [s][r - 1] = tile_##s##_##r,
#define QTILE_4(X, s) X(1, s) X(2, s) X(3, s) X(4, s)
#define QTILE_8(X, s) QTILE_4(X, s) X(5, s) X(6, s) X(7, s) X(8, s)
#if QVNNI
#define QTILE_ROWS(X, s) QTILE_8(X, s) X(9, s) X(10, s) X(11, s) X(12, s)
#elif MOE_SIMD_512
#define QTILE_ROWS(X, s) QTILE_8(X, s)
#else
#define QTILE_ROWS(X, s) QTILE_4(X, s)
#endif
#define QTILE_ALL(X)                                                                                              \
    QTILE_ROWS(X, FROM_Q4_0) QTILE_ROWS(X, FROM_Q4_1) QTILE_ROWS(X, FROM_Q8_0) QTILE_ROWS(X, WIDE_NIBBLE)         \
    QTILE_ROWS(X, WIDE_NIBBLE_LEAST) QTILE_ROWS(X, WIDE_BYTE)
QTILE_ALL(QTILE_DEFINE)
static const qtile_fn tiles[QSOURCES][QROWS] = {QTILE_ALL(QTILE_ENTRY)};

#endif
