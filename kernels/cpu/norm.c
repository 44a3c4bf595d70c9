/* RMSNorm, fast (kernels/norm.h). Owns nothing. Forward and dx are parallel over rows; dgain is a chain over all rows, so it is
 * parallel over columns, with the chains of GAIN_VECTORS * 16 columns in registers.
 * Rule: same bits as ref/norm.c; dgain is finished before dx is written, because dx may be dy. */
#include "kernels/norm.h"

#include <math.h>

#include "kernels/cpu/row.h"
#include "kernels/tables.h"

enum { GAIN_VECTORS = 4 }; /* 64 columns: four cache lines of a row, four chains in flight */

/* The rows r, r + 1, ... of a piece, without a division for each. */
typedef struct row_walk {
    size_t token;
    int head;
} row_walk;

SIMD row_walk walk_from(const rmsnorm_args *a, int64_t r) { return (row_walk){(size_t)(r / a->heads), (int)(r % a->heads)}; }

SIMD void walk_next(const rmsnorm_args *a, row_walk *w)
{
    if (++w->head == a->heads) {
        w->head = 0;
        w->token++;
    }
}

SIMD size_t row_at(const rmsnorm_args *a, row_walk w, size_t ld) { return w.token * ld + (size_t)w.head * (size_t)a->D; }

static void forward_rows(void *ctx, int64_t begin, int64_t end, int worker)
{
    const rmsnorm_args *a = ctx;
    const int D = a->D;
    (void)worker;
    row_walk w = walk_from(a, begin);
    for (int64_t r = begin; r < end; r++, walk_next(a, &w)) {
        const float *x = a->x + row_at(a, w, a->ldx);
        float *y = a->y + row_at(a, w, a->ldy);
        v16 squares = v16_zero();
        for (int d = 0; d < D; d += V16) {
            const v16 v = row_load(x + d, D - d);
            squares = v16_fma(v, v, squares);
        }
        const float inv = 1.0f / sqrtf(v16_sum(squares) / (float)D + a->eps);
        for (int d = 0; d < D; d += V16)
            row_store(y + d, v16_mul(v16_mul(row_load(x + d, D - d), v16_set1(inv)), row_load(a->gain + d, D - d)), D - d);
        if (a->inv != NULL)
            a->inv[r] = inv;
    }
}

moe_err ISA(rmsnorm_forward)(const rmsnorm_args *a, moe_stream *s)
{
    moe_pool_for(s->pool, a->T * a->heads, row_grain(a->D), forward_rows, (void *)a);
    return MOE_OK;
}

/* Chains of `vectors` * 16 columns from d on, over all rows. `left` columns remain in the row. */
SIMD void gain_block(const rmsnorm_args *a, int d, int vectors, int64_t left)
{
    v16 sum[GAIN_VECTORS];
    for (int j = 0; j < vectors; j++)
        sum[j] = row_load(a->dgain + d + j * V16, left - j * V16);
    for (int64_t t = 0, r = 0; t < a->T; t++)
        for (int h = 0; h < a->heads; h++, r++) {
            const float *x = a->x + (size_t)t * a->ldx + (size_t)h * (size_t)a->D + d;
            const float *dy = a->dy + (size_t)t * a->ldy + (size_t)h * (size_t)a->D + d;
            const v16 inv = v16_set1(a->inv[r]);
            for (int j = 0; j < vectors; j++) {
                const v16 n = v16_mul(row_load(x + j * V16, left - j * V16), inv);
                sum[j] = v16_fma(row_load(dy + j * V16, left - j * V16), n, sum[j]);
            }
        }
    for (int j = 0; j < vectors; j++)
        row_store(a->dgain + d + j * V16, sum[j], left - j * V16);
}

/* Pieces of vectors of 16 columns. */
static void gain_columns(void *ctx, int64_t begin, int64_t end, int worker)
{
    const rmsnorm_args *a = ctx;
    int64_t v = begin;
    (void)worker;
    for (; v + GAIN_VECTORS <= end && (v + GAIN_VECTORS) * V16 <= a->D; v += GAIN_VECTORS)
        gain_block(a, (int)v * V16, GAIN_VECTORS, GAIN_VECTORS * V16);
    for (; v < end; v++)
        gain_block(a, (int)v * V16, 1, a->D - v * V16);
}

static void dx_rows(void *ctx, int64_t begin, int64_t end, int worker)
{
    const rmsnorm_args *a = ctx;
    const int D = a->D;
    (void)worker;
    row_walk w = walk_from(a, begin);
    for (int64_t r = begin; r < end; r++, walk_next(a, &w)) {
        const float *x = a->x + row_at(a, w, a->ldx), *dy = a->dy + row_at(a, w, a->ldy);
        float *dx = a->dx + row_at(a, w, a->ldx);
        const v16 inv = v16_set1(a->inv[r]);
        v16 sum = v16_zero();
        for (int d = 0; d < D; d += V16)
            sum = v16_fma(v16_mul(row_load(dy + d, D - d), row_load(a->gain + d, D - d)), v16_mul(row_load(x + d, D - d), inv),
                          sum);
        const v16 c = v16_set1(v16_sum(sum) / (float)D);
        for (int d = 0; d < D; d += V16) {
            const v16 g = v16_mul(row_load(dy + d, D - d), row_load(a->gain + d, D - d));
            const v16 e = v16_fnma(c, v16_mul(row_load(x + d, D - d), inv), g);
            row_store(dx + d, a->accumulate ? v16_fma(inv, e, row_load(dx + d, D - d)) : v16_mul(inv, e), D - d);
        }
    }
}

moe_err ISA(rmsnorm_backward)(const rmsnorm_args *a, moe_stream *s)
{
    const int64_t vectors = (a->D + V16 - 1) / V16, share = (vectors + moe_pool_threads(s->pool) - 1) / moe_pool_threads(s->pool);
    moe_pool_for(s->pool, vectors, share < GAIN_VECTORS ? share : GAIN_VECTORS, gain_columns, (void *)a);
    moe_pool_for(s->pool, a->T * a->heads, row_grain(a->D), dx_rows, (void *)a);
    return MOE_OK;
}
