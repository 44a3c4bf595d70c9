/* The online softmax of one tile of keys, shared by attention.c (windows) and paged_attention.c (pages).
 * Row i of a block is query position first + (row + i) / heads: heads of one group lie side by side.
 * Owns nothing. Rule: the order of sums is that of kernels/attention.h, forward. */
#ifndef MOE_KERNELS_CPU_ATTENTION_SOFTMAX_H
#define MOE_KERNELS_CPU_ATTENTION_SOFTMAX_H

#include "kernels/cpu/attention_tile.h"
#include "kernels/cpu/vmath.h"

enum { SOFTMAX_ROWS = 48 }; /* of a block at most */
_Static_assert(SOFTMAX_ROWS % V16 == 0 && SOFTMAX_ROWS % PRODUCT_ROWS == 0, "whole vectors and blocks");

typedef struct softmax_args {
    float *p;      /* [rows, TILE] q.k in, weights out                              */
    float *factor; /* [rows] out: what the output so far is multiplied with         */
    float *m, *l;  /* [rows] running maximum and sum                                */
    float scale;
    int64_t first;
    int row, heads;
    int window; /* newest positions a query sees; 0: all */
} softmax_args;

/* Of a tile that begins at key t0: how many keys are before the window of query i. */
SIMD int hidden(int64_t i, int64_t t0, int window) { return window > 0 && i - t0 >= window ? (int)(i - t0) - window + 1 : 0; }

/* s = q.k * scale in p, masked; the new maximum of the row. `vecs` vectors of the row are read and written. */
SIMD float score_row(float *p, float m, float scale, int keys, int vecs)
{
    v16 top = v16_set1(m);
    for (int v = 0; v < vecs; v++) {
        v16 s = v16_mul(v16_load(p + v * V16), v16_set1(scale));
        s = row_pad(s, keys - v * V16 > 0 ? keys - v * V16 : 0, -INFINITY);
        v16_store(p + v * V16, s);
        top = v16_max(top, s);
    }
    return v16_max_lane(top);
}

/* p = exp(s - top), at most 1, and its sum. */
SIMD float weigh_row(float *p, float top, int vecs)
{
    v16 sum = v16_zero();
    for (int v = 0; v < vecs; v++) {
        const v16 e = v16_exp_down(v16_sub(v16_load(p + v * V16), v16_set1(top)));
        v16_store(p + v * V16, e);
        sum = v16_add(sum, e);
    }
    return v16_sum(sum);
}

/* Against the tile of `keys` keys that begins at t0, of which every row sees one at least. Columns past the last visible key, up to a whole vector of the block of rows, become 0. */
SIMD void softmax_tile(const softmax_args *a, int rows, int64_t t0, int keys)
{
    float top[SOFTMAX_ROWS], sum[SOFTMAX_ROWS];
    for (int r = 0; r < rows; r += PRODUCT_ROWS) {
        const int end = r + PRODUCT_ROWS < rows ? r + PRODUCT_ROWS : rows;
        const int vecs = (visible(a->first + (a->row + end - 1) / a->heads, t0, keys) + V16 - 1) / V16;
        for (int i = r; a->window > 0 && i < end; i++)
            for (int j = 0, n = hidden(a->first + (a->row + i) / a->heads, t0, a->window); j < n; j++)
                a->p[i * TILE + j] = -INFINITY;
        for (int i = r; i < end; i++)
            top[i] = score_row(a->p + i * TILE, a->m[i], a->scale, visible(a->first + (a->row + i) / a->heads, t0, keys), vecs);
        for (int i = r; i < end; i++)
            sum[i] = weigh_row(a->p + i * TILE, top[i], vecs);
    }
    for (int r = 0; r < rows; r += V16) {
        const int n = rows - r < V16 ? rows - r : V16;
        const v16 t = v16_load_n(top + r, n), c = v16_exp_down(v16_sub(v16_load_n(a->m + r, n), t));
        v16_store_n(a->factor + r, c, n);
        v16_store_n(a->l + r, v16_fma(v16_load_n(a->l + r, n), c, v16_load_n(sum + r, n)), n);
        v16_store_n(a->m + r, t, n);
    }
}

#endif
