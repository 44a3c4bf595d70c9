/* The inner loop of the block formats: rows x 16 outputs stay in registers while up to QCHUNK blocks of 32 k pass by.
 * Rows of one tile read the panel as it is stored and unpack it on the way (a source per format). More rows read a piece that was unpacked
 * before for all of them (the wide sources): bytes of weights, and scales in fp32.
 * VNNI: 12 rows: 12 integer and 12 fp32 accumulators, a weight, a scale; a block is 8 x 12 dot products, and 3 instructions more a row.
 * AVX2: 4 rows: 8 registers of integer sums; the fp32 accumulators are touched once a block and live in memory. Private to kernels/cpu/qmatmul.c.
 * Rule: how rows and blocks are cut changes nothing but speed: each output is one chain over the blocks, continued through y. */
#ifndef MOE_KERNELS_CPU_QMATMUL_TILE_H
#define MOE_KERNELS_CPU_QMATMUL_TILE_H

#include "kernels/cpu/qmatmul_source.h"

#if QVNNI
enum { QROWS = 12 };
#elif MOE_SIMD_512
enum { QROWS = 8 };
#else
enum { QROWS = 4 };
#endif
enum {
    QFEW = 4,     /* rows that read every format as it is stored */
    QCHUNK = 32,  /* blocks, a multiple of QSUPER */
    QAHEAD = 3072 /* bytes of weights that are fetched ahead when they are read once */
};

/* 32 quantised activations of a row: one cache line. */
typedef struct qact {
    int8_t a[QBLOCK];
    float d, s;         /* qact_scale of the scale, of it times the sum of a    */
    int32_t by8, by16, by128; /* -8, -16 and -128 times the sum of a: what centres unsigned weights */
    int32_t by32[2];          /* -32 times the sum of the first half, of the second */
    int32_t unused;
} qact;
_Static_assert(sizeof(qact) == 64, "a block of activations is a cache line");
enum { QACT_ROW = QCHUNK + 1 /* from row to row, in blocks: an odd number of lines, so rows do not share cache sets */ };

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

SIMD int32_t act_centre(const qact *x, qsource s, int half)
{
    switch (source_widened(s)) {
    case WIDE_NIBBLE:
        return x->by8;
    case WIDE_FIVE:
        return x->by16;
    case WIDE_SIX:
        return x->by32[half];
    case WIDE_BYTE:
        return x->by128;
    default:
        return 0;
    }
}

/* sum[r] = the exact sum of the products with centred weights of steps [first, first + steps). */
SIMD void block_sums(i16 *sum, const int rows, const qsource s, const uint8_t *w, const qact *a, const int first, const int steps)
{
#if QVNNI
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
        sum[r] = i16_set1(act_centre(a + r * QACT_ROW, s, first > 0));
#pragma GCC unroll 8
    for (int step = first; step < first + steps; step++) {
        const i16 v = source_step(s, w, step);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) /* the broadcast belongs to the operand, which the compiler does not see: + 5 % */
            __asm__("vpdpbusd %2%{1to16%}, %1, %0"
                    : "+v"(sum[r])
                    : "v"(v), "m"(*(const int32_t *)(const void *)(a[r * QACT_ROW].a + 4 * step)));
    }
#else
    const int span = source_span(s) < steps ? source_span(s) : steps;
    i16 pairs[QROWS];
#pragma GCC unroll 8
    for (int step = first; step < first + steps; step++) {
        const i16 v = source_step(s, w, step), size = source_bytes(s) ? q_abs(v) : v;
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            const i16 x = q_four(a[r * QACT_ROW].a + 4 * step);
            if (source_bytes(s)) {
                const i16 four = q_widen(q_pairs(size, q_signed(x, v)));
                sum[r] = step == 0 ? four : i16_add(sum[r], four);
                continue;
            }
            pairs[r] = step % span == 0 ? q_pairs(v, x) : q_add16(pairs[r], q_pairs(v, x));
            if (step % span == span - 1)
                sum[r] = step - first < span ? q_widen(pairs[r]) : i16_add(sum[r], q_widen(pairs[r]));
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
        if (!source_bytes(s) && !source_least(s))
            sum[r] = i16_add(sum[r], i16_set1(act_centre(a + r * QACT_ROW, s, first > 0)));
#endif
}

SIMD void qtile_run(const qtile *t, const int rows, const qsource s)
{
    const int parts = source_halves(s) ? 2 : 1, steps = QSTEPS / parts;
    v16 acc[QROWS];
    const uint8_t *w = t->w;
    const qact *a = t->a;
    const char *next = t->next;
    for (int r = 0; r < rows; r++)
        acc[r] = t->load ? v16_load_n(t->y + (size_t)r * t->ldy, t->last) : v16_zero();
    for (int b = 0; b < t->blocks; b++) {
        if (source_wide(s)) {
            for (int i = 0; next != NULL && i < t->next_lines; i++, next += 64)
                _mm_prefetch(next, _MM_HINT_T1);
        } else {
            for (size_t i = 0; i < source_data(s); i += 64)
                _mm_prefetch((const char *)w + QAHEAD + i, _MM_HINT_T0);
            _mm_prefetch((const char *)t->side + QAHEAD / 8 + b * 2 * PANEL, _MM_HINT_T0);
        }
#pragma GCC unroll 2
        for (int part = 0; part < parts; part++) {
            i16 sum[QROWS];
            block_sums(sum, rows, s, w, a, part * steps, steps);
            const v16 scale = source_scale(s, t->side, b, part);
#pragma GCC unroll 16
            for (int r = 0; r < rows; r++)
                acc[r] = v16_fma(i16_to_v16(sum[r]), v16_mul(scale, v16_set1(a[r * QACT_ROW].d)), acc[r]);
        }
        if (source_least(s)) {
            const v16 least = source_scale(s, t->side, b, 1);
#pragma GCC unroll 16
            for (int r = 0; r < rows; r++)
                acc[r] = v16_fma(v16_set1(a[r * QACT_ROW].s), least, acc[r]);
        }
        w += source_data(s), a++;
    }
    for (int r = 0; r < rows; r++)
        v16_store_n(t->y + (size_t)r * t->ldy, acc[r], t->last);
}

/* tiles[source][rows - 1]: the formats that most models come in, and the wide sources, for all rows; the other formats up to QFEW. */
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
#define QTILE_ALL(X)                                                                                                             \
    QTILE_ROWS(X, FROM_Q4_0) QTILE_ROWS(X, FROM_Q4_1) QTILE_ROWS(X, FROM_Q8_0) QTILE_4(X, FROM_Q5_0) QTILE_4(X, FROM_Q5_1)       \
    QTILE_ROWS(X, FROM_Q4_K) QTILE_4(X, FROM_Q5_K) QTILE_ROWS(X, FROM_Q6_K) QTILE_4(X, FROM_IQ4_NL) QTILE_ROWS(X, FROM_MXFP4)             \
    QTILE_ROWS(X, WIDE_NIBBLE) QTILE_ROWS(X, WIDE_NIBBLE_LEAST) QTILE_ROWS(X, WIDE_FIVE) QTILE_ROWS(X, WIDE_FIVE_LEAST)          \
    QTILE_ROWS(X, WIDE_SIX) QTILE_ROWS(X, WIDE_BYTE)
QTILE_ALL(QTILE_DEFINE)
static const qtile_fn tiles[QSOURCES][QROWS] = {QTILE_ALL(QTILE_ENTRY)};

#endif
