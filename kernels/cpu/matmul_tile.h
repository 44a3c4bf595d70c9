/* The inner loop of all three products: a tile of TILE_ROWS x TILE_VECS vectors of 16 outputs stays in registers while the chain runs.
 *
 *     c[i, j] = chain over s of a[i, s] * b[s, j]      i: broadcast side, j: vectors, s: the reduction, in order
 *
 * forward: i = row, j = panel,    s = k     a = copied rows of x,        b = panels of w as stored
 * dx:      i = k,   j = 16 rows,  s = n     a = panels of w as stored,   b = transposed dy
 * dw:      i = k,   j = panel,    s = row   a = packed x,                b = packed dy
 *
 * AVX-512: 14 x 2 accumulators, 2 b, 1 broadcast: 31 of 32 registers; a step is 28 FMAs (14 cycles) and 16 loads (8 cycles).
 * AVX2: 6 x 1 vectors = 12 ymm, 2 b, 1 broadcast: 15 of 16; a step is 12 FMAs (6 cycles) and 8 loads (4 cycles).
 * The reduction is cut into STEPS at a time so that b (TILE_VECS * STEPS * 64 bytes) stays close while the rows pass by; the chain
 * continues through c, and the longer a cut the less c is read and written (sweep: 512 against 256, + 5 % at 512 rows on AVX-512). Rule: how a tile is cut changes nothing but speed: every output is one chain in the order of s. */
#ifndef MOE_KERNELS_CPU_MATMUL_TILE_H
#define MOE_KERNELS_CPU_MATMUL_TILE_H

#include <stdbool.h>

#include "kernels/cpu/simd.h"

#if MOE_SIMD_512
enum { TILE_ROWS = 14, TILE_VECS = 2, STEPS = 512, ROW_BLOCK = 588 /* rows of a copied at a time: 1.2 MB of a 2 MB L2 */ };
#else
enum { TILE_ROWS = 6, TILE_VECS = 1, STEPS = 256, ROW_BLOCK = 264 /* 287 KB of a 512 KB L2 */ };
#endif
enum { A_LD = STEPS + V16 }; /* floats from row to row of the copied a: an odd number of lines, so rows do not share cache sets */

typedef struct tile {
    const float *a;    /* steps a_step apart, every 16 steps a_block apart */
    const float *b;    /* vector j of step s at b + j * b_vec + s * 16 */
    float *c;          /* vector (i, j) at c + i * c_row + j * c_vec   */
    const float *next[2]; /* prefetched: each 16 lines every 16 steps, next_block floats apart */
    size_t a_block, b_vec, c_row, c_vec, next_block;
    int steps;
    int last;    /* lanes of the last vector that exist, 1 .. 16 */
    bool load;   /* the chain continues what c holds             */
    bool stream; /* c is aligned and will not be read soon       */
} tile;

typedef void (*tile_fn)(const tile *t);

/* One tile; everything but t is a constant where it is inlined. a[i, s] at a + i * a_row + s * a_step, see a_block. */
SIMD void tile_run(const tile *t, const int rows, const int vecs, const size_t a_row, const size_t a_step)
{
    v16 acc[TILE_ROWS][TILE_VECS];
    const float *a = t->a, *b = t->b, *next0 = t->next[0], *next1 = t->next[1];
    const size_t b_vec = t->b_vec, c_row = t->c_row, c_vec = t->c_vec;
/* Every row of the tile in turn: its first vector at `at` (when there are two) and its last at `end`. The empty asm keeps the compiler
 * from working out all addresses in advance, which takes longer than the few steps of a short tile. */
#define TILE_EACH(first, edge)                                                  \
    do {                                                                        \
        float *at = t->c;                                                       \
        _Pragma("GCC unroll 16") for (int i = 0; i < rows; i++, at += c_row)    \
        {                                                                       \
            __asm__("" : "+r"(at));                                             \
            float *const end = at + (size_t)(vecs - 1) * c_vec;                 \
            if (vecs == 2)                                                      \
                first;                                                          \
            edge;                                                               \
        }                                                                       \
    } while (0)
    if (!t->load)
        TILE_EACH(acc[i][0] = v16_zero(), ((void)end, acc[i][vecs - 1] = v16_zero()));
    else if (t->last == V16)
        TILE_EACH(acc[i][0] = v16_load(at), acc[i][vecs - 1] = v16_load(end));
    else
        TILE_EACH(acc[i][0] = v16_load(at), acc[i][vecs - 1] = v16_load_n(end, t->last));
#define TILE_STEP(s)                                                                                         \
    do {                                                                                                     \
        v16 bv[TILE_VECS];                                                                                   \
        _Pragma("GCC unroll 2") for (int j = 0; j < vecs; j++) bv[j] = v16_load(b + (size_t)j * b_vec + (s) * V16); \
        _Pragma("GCC unroll 16") for (int i = 0; i < rows; i++)                                              \
        {                                                                                                    \
            const v16 av = v16_set1(a[(size_t)i * a_row + (s) * a_step]);                                    \
            _Pragma("GCC unroll 2") for (int j = 0; j < vecs; j++) acc[i][j] = v16_fma(av, bv[j], acc[i][j]); \
        }                                                                                                    \
    } while (0)
    int left = t->steps;
    for (; left >= V16; left -= V16) {
        for (int q = 0; q < V16; q += 4) {
#pragma GCC unroll 4
            for (size_t s = 0; s < 4; s++) {
                _mm_prefetch((const char *)(next0 + s * V16), _MM_HINT_T1);
                _mm_prefetch((const char *)(next1 + s * V16), _MM_HINT_T1);
                TILE_STEP(s);
            }
            a += 4 * a_step, b += 4 * V16, next0 += 4 * V16, next1 += 4 * V16;
        }
        a += t->a_block - V16 * a_step;
        next0 += t->next_block - V16 * V16, next1 += t->next_block - V16 * V16;
    }
    for (; left > 0; left--) {
        TILE_STEP((size_t)0);
        a += a_step, b += V16;
    }
#undef TILE_STEP
    if (t->last < V16)
        TILE_EACH(v16_store(at, acc[i][0]), v16_store_n(end, acc[i][vecs - 1], t->last));
    else if (t->stream)
        TILE_EACH(v16_stream(at, acc[i][0]), v16_stream(end, acc[i][vecs - 1]));
    else
        TILE_EACH(v16_store(at, acc[i][0]), v16_store(end, acc[i][vecs - 1]));
#undef TILE_EACH
}

/* TILE_TABLE(name, a_row, a_step): static const tile_fn name[TILE_VECS][TILE_ROWS], by vectors - 1 and rows - 1. */
#define TILE_ONE(name, r, v, a_row, a_step) \
    static void name##_##r##_##v(const tile *t) { tile_run(t, r, v, a_row, a_step); }
#if MOE_SIMD_512
#define TILE_ALL(X, ...)                                                                                                       \
    X(1, 1, __VA_ARGS__) X(2, 1, __VA_ARGS__) X(3, 1, __VA_ARGS__) X(4, 1, __VA_ARGS__) X(5, 1, __VA_ARGS__)                   \
    X(6, 1, __VA_ARGS__) X(7, 1, __VA_ARGS__) X(8, 1, __VA_ARGS__) X(9, 1, __VA_ARGS__) X(10, 1, __VA_ARGS__)                  \
    X(11, 1, __VA_ARGS__) X(12, 1, __VA_ARGS__) X(13, 1, __VA_ARGS__) X(14, 1, __VA_ARGS__) X(1, 2, __VA_ARGS__)               \
    X(2, 2, __VA_ARGS__) X(3, 2, __VA_ARGS__) X(4, 2, __VA_ARGS__) X(5, 2, __VA_ARGS__) X(6, 2, __VA_ARGS__)                   \
    X(7, 2, __VA_ARGS__) X(8, 2, __VA_ARGS__) X(9, 2, __VA_ARGS__) X(10, 2, __VA_ARGS__) X(11, 2, __VA_ARGS__)                 \
    X(12, 2, __VA_ARGS__) X(13, 2, __VA_ARGS__) X(14, 2, __VA_ARGS__)
#else
#define TILE_ALL(X, ...)                                                                                                       \
    X(1, 1, __VA_ARGS__) X(2, 1, __VA_ARGS__) X(3, 1, __VA_ARGS__) X(4, 1, __VA_ARGS__) X(5, 1, __VA_ARGS__) X(6, 1, __VA_ARGS__)
#endif
#define TILE_DEFINE(r, v, name, a_row, a_step) TILE_ONE(name, r, v, a_row, a_step)
#define TILE_ENTRY(r, v, name) [v - 1][r - 1] = name##_##r##_##v,
#define TILE_TABLE(name, a_row, a_step)            \
    TILE_ALL(TILE_DEFINE, name, a_row, a_step)     \
    static const tile_fn name[TILE_VECS][TILE_ROWS] = {TILE_ALL(TILE_ENTRY, name)};

/* A worker's share that is lost when `tasks` equal tasks meet `threads` threads: the uneven last round, and a quarter of a task for
 * cores that are not alike. Cuts are chosen by the least sum of this and the overheads; they change the time and no bit. */
SIMD double tile_idle(int64_t tasks, int threads)
{
    const double rounds = (double)((tasks + threads - 1) / threads);
    return rounds * threads / (double)tasks - 1 + 0.25 * threads / (double)tasks;
}

/* [0, n) in `parts` pieces that differ by at most one: the begin of piece i. */
SIMD int64_t tile_cut(int64_t n, int64_t parts, int64_t i) { return n / parts * i + (i < n % parts ? i : n % parts); }
SIMD int64_t tile_count(int64_t n, int64_t most) { return (n + most - 1) / most; }

#endif
