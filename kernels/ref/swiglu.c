/* SwiGLU and the gate of a shared expert: the definition (kernels/swiglu.h). Owns nothing, runs on the calling thread.
 * Rule: every input of an element is read before its outputs are written, because da may be a and hc may be dh. */
#include "kernels/swiglu.h"

#include <math.h>

#include "kernels/math.h"
#include "kernels/ref/lanes.h"
#include "kernels/tables.h"

static float middle(const swiglu_args *a, float g, float u)
{
    if (!(a->limit > 0))
        return g * moe_sigmoidf(g) * u;
    g = g > a->limit ? a->limit : g;
    u = u > a->limit ? a->limit : u < -a->limit ? -a->limit : u;
    return g * moe_sigmoidf(a->alpha * g) * (u + 1.0f);
}

moe_err swiglu_forward_ref(const swiglu_args *a, moe_stream *s)
{
    const size_t F = (size_t)a->F, Fp = (size_t)a->Fp;
    (void)s;
    for (size_t r = 0; r < (size_t)a->rows; r++)
        for (size_t f = 0; f < Fp; f++) {
            const float g = a->a[r * 2 * Fp + f], u = a->a[r * 2 * Fp + Fp + f];
            a->h[r * Fp + f] = f < F ? middle(a, g, u) : 0.0f;
        }
    return MOE_OK;
}

static void row_backward(const swiglu_args *a, size_t r)
{
    const size_t F = (size_t)a->F, Fp = (size_t)a->Fp;
    const float *gu = a->a + r * 2 * Fp, *dh = a->dh + r * Fp, c = a->c != NULL ? a->c[r] : 1.0f;
    float *da = a->da + r * 2 * Fp, *hc = a->hc + r * Fp;
    lanes sum = {0};
    for (size_t f = 0; f < Fp; f++) {
        if (f >= F) {
            da[f] = da[Fp + f] = hc[f] = 0.0f;
            continue;
        }
        const float g = gu[f], u = gu[Fp + f], d = dh[f];
        const float sig = moe_sigmoidf(g), silu = g * sig, h = silu * u, cd = c * d;
        lanes_fma(&sum, (int64_t)f, h, d);
        hc[f] = c * h;
        da[f] = cd * u * sig * fmaf(g, 1.0f - sig, 1.0f);
        da[Fp + f] = cd * silu;
    }
    if (a->c != NULL)
        a->dweight[r] = lanes_sum(&sum, a->F);
}

moe_err swiglu_backward_ref(const swiglu_args *a, moe_stream *s)
{
    (void)s;
    for (size_t r = 0; r < (size_t)a->rows; r++)
        row_backward(a, r);
    return MOE_OK;
}

moe_err gate_forward_ref(const gate_args *a, moe_stream *s)
{
    (void)s;
    for (size_t t = 0; t < (size_t)a->T; t++) {
        const float sig = moe_sigmoidf(a->z[t]);
        for (size_t d = 0; d < (size_t)a->D; d++)
            a->y[t * (size_t)a->D + d] *= sig;
    }
    return MOE_OK;
}

moe_err gate_backward_ref(const gate_args *a, moe_stream *s)
{
    (void)s;
    for (size_t t = 0; t < (size_t)a->T; t++) {
        const float sig = moe_sigmoidf(a->z[t]), *y = a->y + t * (size_t)a->D;
        float *dy = a->dy + t * (size_t)a->D;
        lanes sum = {0};
        for (int d = 0; d < a->D; d++) {
            lanes_fma(&sum, d, dy[d], y[d]);
            dy[d] *= sig;
        }
        a->dz[t] = sig * (1.0f - sig) * lanes_sum(&sum, a->D);
    }
    return MOE_OK;
}
