/* RMSNorm: the definition (kernels/norm.h). Owns nothing, runs on the calling thread.
 * Rule: dgain is finished before dx is written, because dx may be dy. */
#include "kernels/norm.h"

#include <math.h>

#include "kernels/ref/lanes.h"
#include "kernels/tables.h"

static size_t row_at(const rmsnorm_args *a, int64_t r, size_t ld)
{
    return (size_t)(r / a->heads) * ld + (size_t)(r % a->heads) * (size_t)a->D;
}

moe_err rmsnorm_forward_ref(const rmsnorm_args *a, moe_stream *s)
{
    (void)s;
    for (int64_t r = 0; r < a->T * a->heads; r++) {
        const float *x = a->x + row_at(a, r, a->ldx);
        float *y = a->y + row_at(a, r, a->ldy);
        lanes squares = {0};
        for (int d = 0; d < a->D; d++)
            lanes_fma(&squares, d, x[d], x[d]);
        const float inv = 1.0f / sqrtf(lanes_sum(&squares, a->D) / (float)a->D + a->eps);
        for (int d = 0; d < a->D; d++)
            y[d] = x[d] * inv * a->gain[d];
        if (a->inv != NULL)
            a->inv[r] = inv;
    }
    return MOE_OK;
}

static void row_dx(const rmsnorm_args *a, int64_t r)
{
    const float *x = a->x + row_at(a, r, a->ldx), *dy = a->dy + row_at(a, r, a->ldy), inv = a->inv[r];
    float *dx = a->dx + row_at(a, r, a->ldx);
    lanes sum = {0};
    for (int d = 0; d < a->D; d++)
        lanes_fma(&sum, d, dy[d] * a->gain[d], x[d] * inv);
    const float c = lanes_sum(&sum, a->D) / (float)a->D;
    for (int d = 0; d < a->D; d++) {
        const float e = fmaf(-c, x[d] * inv, dy[d] * a->gain[d]);
        dx[d] = a->accumulate ? fmaf(inv, e, dx[d]) : inv * e;
    }
}

moe_err rmsnorm_backward_ref(const rmsnorm_args *a, moe_stream *s)
{
    (void)s;
    for (int64_t r = 0; r < a->T * a->heads; r++) {
        const float *x = a->x + row_at(a, r, a->ldx), *dy = a->dy + row_at(a, r, a->ldy);
        for (int d = 0; d < a->D; d++)
            a->dgain[d] = fmaf(dy[d], x[d] * a->inv[r], a->dgain[d]);
    }
    for (int64_t r = 0; r < a->T * a->heads; r++)
        row_dx(a, r);
    return MOE_OK;
}
