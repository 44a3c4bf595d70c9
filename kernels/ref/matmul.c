/* The three products with a weight matrix: the definition (kernels/matmul.h). One chain per output, written as one loop.
 * Owns nothing. Split over groups only, so that a reader sees the sums and nothing else.
 * Rule: the order of the innermost loop is the contract; every fast version is compared with it bit by bit. */
#include <math.h>

#include "kernels/halves.h"
#include "kernels/tables.h"

static float weight(const matmul_args *a, int64_t g, int n, int k)
{
    const size_t i = panel_index(n, k, a->K);
    return a->w16 != NULL ? halves_number(a->w16[g][i], 0) : a->w[g][i];
}

static void forward_groups(void *ctx, int64_t begin, int64_t end, int worker)
{
    const matmul_args *a = ctx;
    (void)worker;
    for (int64_t g = begin; g < end; g++)
        for (size_t r = (size_t)a->offset[g]; r < (size_t)a->offset[g + 1]; r++)
            for (int n = 0; n < a->N; n++) {
                float sum = a->accumulate ? a->y[r * a->ldy + (size_t)n] : 0.0f;
                for (int k = 0; k < a->K; k++)
                    sum = fmaf(a->x[r * a->ldx + (size_t)k], weight(a, g, n, k), sum);
                a->y[r * a->ldy + (size_t)n] = sum;
            }
}

static void dx_groups(void *ctx, int64_t begin, int64_t end, int worker)
{
    const matmul_args *a = ctx;
    (void)worker;
    for (int64_t g = begin; g < end; g++)
        for (size_t r = (size_t)a->offset[g]; r < (size_t)a->offset[g + 1]; r++)
            for (int k = 0; k < a->K; k++) {
                float sum = a->accumulate ? a->x[r * a->ldx + (size_t)k] : 0.0f;
                for (int n = 0; n < a->N; n++)
                    sum = fmaf(a->y[r * a->ldy + (size_t)n], weight(a, g, n, k), sum);
                a->x[r * a->ldx + (size_t)k] = sum;
            }
}

static void dw_groups(void *ctx, int64_t begin, int64_t end, int worker)
{
    const matmul_args *a = ctx;
    (void)worker;
    for (int64_t g = begin; g < end; g++)
        for (int n = 0; n < (int)panel_pad(a->N); n++)
            for (int k = 0; k < a->K; k++) {
                float *out = &a->dw[g][panel_index(n, k, a->K)];
                float sum = a->accumulate ? *out : 0.0f;
                for (size_t r = (size_t)a->offset[g]; n < a->N && r < (size_t)a->offset[g + 1]; r++)
                    sum = fmaf(a->y[r * a->ldy + (size_t)n], a->x[r * a->ldx + (size_t)k], sum);
                *out = sum;
            }
}

moe_err matmul_forward_ref(const matmul_args *a, moe_stream *s)
{
    moe_pool_for(s->pool, a->G, 1, forward_groups, (void *)a);
    return MOE_OK;
}

moe_err matmul_dx_ref(const matmul_args *a, moe_stream *s)
{
    moe_pool_for(s->pool, a->G, 1, dx_groups, (void *)a);
    return MOE_OK;
}

moe_err matmul_dw_ref(const matmul_args *a, moe_stream *s)
{
    moe_pool_for(s->pool, a->G, 1, dw_groups, (void *)a);
    return MOE_OK;
}
