/* SwiGLU and the gate of a shared expert, fast (kernels/swiglu.h). Owns nothing. Parallel over rows.
 * Rule: same bits as ref/swiglu.c; a vector is read in full before it is written, because da may be a and hc may be dh. */
#include "kernels/swiglu.h"

#include "kernels/cpu/row.h"
#include "kernels/cpu/vmath.h"
#include "kernels/tables.h"

/* Zeros in columns F .. Fp-1 of a row of Fp. */
SIMD void zero_pad(float *row, int F, int Fp)
{
    for (int f = F; f < Fp; f++)
        row[f] = 0.0f;
}

SIMD v16 clamped(v16 g, v16 u, float alpha, float limit)
{
    const v16 top = v16_set1(limit), bottom = v16_set1(-limit);
    g = v16_select(v16_gt(g, top), top, g);
    u = v16_select(v16_gt(u, top), top, v16_select(v16_lt(u, bottom), bottom, u));
    return v16_mul(v16_mul(g, v16_sigmoid(v16_mul(v16_set1(alpha), g))), v16_add(u, v16_set1(1.0f)));
}

static void forward_rows(void *ctx, int64_t begin, int64_t end, int worker)
{
    const swiglu_args *a = ctx;
    const size_t Fp = (size_t)a->Fp;
    (void)worker;
    for (size_t r = (size_t)begin; r < (size_t)end; r++) {
        const float *g = a->a + r * 2 * Fp, *u = g + Fp;
        float *h = a->h + r * Fp;
        for (int f = 0; f < a->F; f += V16) {
            const v16 x = row_load(g + f, a->F - f), y = row_load(u + f, a->F - f);
            row_store(h + f, a->limit > 0 ? clamped(x, y, a->alpha, a->limit) : v16_mul(v16_mul(x, v16_sigmoid(x)), y), a->F - f);
        }
        zero_pad(h, a->F, a->Fp);
    }
}

moe_err ISA(swiglu_forward)(const swiglu_args *a, moe_stream *s)
{
    moe_pool_for(s->pool, a->rows, row_grain((int64_t)a->Fp * 2), forward_rows, (void *)a);
    return MOE_OK;
}

SIMD void row_backward(const swiglu_args *a, size_t r)
{
    const size_t Fp = (size_t)a->Fp;
    const float *g = a->a + r * 2 * Fp, *u = g + Fp, *dh = a->dh + r * Fp;
    float *dg = a->da + r * 2 * Fp, *du = dg + Fp, *hc = a->hc + r * Fp;
    const v16 c = v16_set1(a->c != NULL ? a->c[r] : 1.0f), one = v16_set1(1.0f);
    v16 sum = v16_zero();
    for (int f = 0; f < a->F; f += V16) {
        const int left = a->F - f;
        const v16 x = row_load(g + f, left), y = row_load(u + f, left), d = row_load(dh + f, left);
        const v16 sig = v16_sigmoid(x), silu = v16_mul(x, sig), h = v16_mul(silu, y), cd = v16_mul(c, d);
        sum = v16_fma(h, d, sum);
        row_store(hc + f, v16_mul(c, h), left);
        row_store(dg + f, v16_mul(v16_mul(v16_mul(cd, y), sig), v16_fma(x, v16_sub(one, sig), one)), left);
        row_store(du + f, v16_mul(cd, silu), left);
    }
    zero_pad(dg, a->F, a->Fp), zero_pad(du, a->F, a->Fp), zero_pad(hc, a->F, a->Fp);
    if (a->c != NULL)
        a->dweight[r] = v16_sum(sum);
}

static void backward_rows(void *ctx, int64_t begin, int64_t end, int worker)
{
    (void)worker;
    for (int64_t r = begin; r < end; r++)
        row_backward(ctx, (size_t)r);
}

moe_err ISA(swiglu_backward)(const swiglu_args *a, moe_stream *s)
{
    moe_pool_for(s->pool, a->rows, row_grain((int64_t)a->Fp * 3), backward_rows, (void *)a);
    return MOE_OK;
}

static void gate_forward_rows(void *ctx, int64_t begin, int64_t end, int worker)
{
    const gate_args *a = ctx;
    (void)worker;
    for (int64_t t = begin; t < end; t++) {
        const v16 sig = v16_set1(moe_sigmoidf(a->z[t]));
        float *y = a->y + (size_t)t * (size_t)a->D;
        for (int d = 0; d < a->D; d += V16)
            row_store(y + d, v16_mul(row_load(y + d, a->D - d), sig), a->D - d);
    }
}

moe_err ISA(gate_forward)(const gate_args *a, moe_stream *s)
{
    moe_pool_for(s->pool, a->T, row_grain(a->D), gate_forward_rows, (void *)a);
    return MOE_OK;
}

static void gate_backward_rows(void *ctx, int64_t begin, int64_t end, int worker)
{
    const gate_args *a = ctx;
    (void)worker;
    for (int64_t t = begin; t < end; t++) {
        const float sig = moe_sigmoidf(a->z[t]), *y = a->y + (size_t)t * (size_t)a->D;
        float *dy = a->dy + (size_t)t * (size_t)a->D;
        v16 sum = v16_zero();
        for (int d = 0; d < a->D; d += V16) {
            const v16 x = row_load(dy + d, a->D - d);
            sum = v16_fma(x, row_load(y + d, a->D - d), sum);
            row_store(dy + d, v16_mul(x, v16_set1(sig)), a->D - d);
        }
        a->dz[t] = sig * (1.0f - sig) * v16_sum(sum);
    }
}

moe_err ISA(gate_backward)(const gate_args *a, moe_stream *s)
{
    moe_pool_for(s->pool, a->T, row_grain((int64_t)a->D * 2), gate_backward_rows, (void *)a);
    return MOE_OK;
}
