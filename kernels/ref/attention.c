/* Causal attention: the definition (kernels/attention.h). One query row at a time, keys in tiles; backward writes its chains straight
 * into dq, dk and dv. Owns nothing. Split over (window, head) forward and (window, kv head) backward.
 * Rule: the tile, the chains and the places of the roundings are the contract; every fast version is compared with it bit by bit. */
#include "kernels/attention.h"

#include <math.h>
#include <string.h>

#include "kernels/math.h"
#include "kernels/ref/lanes.h"
#include "kernels/tables.h"

moe_err attention_check(const attention_args *a)
{
    if (a->H < 1 || a->Hkv < 1 || a->H % a->Hkv != 0)
        return moe_fail(MOE_E_CONFIG, "attention: %d query heads cannot share %d key heads; expected a multiple", a->H, a->Hkv);
    if (a->hd < 1 || a->hd > ATTENTION_MAX_HD)
        return moe_fail(MOE_E_CONFIG, "attention: head width %d is not in 1 to %d", a->hd, (int)ATTENTION_MAX_HD);
    return MOE_OK;
}

static float dot(const float *x, const float *y, int n)
{
    float sum = 0.0f;
    for (int d = 0; d < n; d++)
        sum = fmaf(x[d], y[d], sum);
    return sum;
}

/* chain[d] = fma(x, y[d], chain[d]) */
static void add_scaled(float *chain, float x, const float *y, int n)
{
    for (int d = 0; d < n; d++)
        chain[d] = fmaf(x, y[d], chain[d]);
}

/* Query i against keys [0, i]; k and v begin at key 0 of the window. */
static float attend(float *o, const float *q, const float *k, const float *v, int64_t i, const attention_args *a)
{
    float m = -INFINITY, l = 0.0f;
    memset(o, 0, sizeof *o * (size_t)a->hd);
    for (int64_t first = 0; first <= i; first += ATTENTION_TILE) {
        const int n = i + 1 - first < ATTENTION_TILE ? (int)(i + 1 - first) : ATTENTION_TILE;
        const float *kt = k + (size_t)first * a->ldk, *vt = v + (size_t)first * a->ldk;
        float s[ATTENTION_TILE], top = m;
        lanes sum = {{0}};
        for (int j = 0; j < n; j++) {
            s[j] = dot(q, kt + (size_t)j * a->ldk, a->hd) * a->scale;
            top = s[j] > top ? s[j] : top;
        }
        const float c = moe_expf(m - top);
        for (int d = 0; d < a->hd; d++)
            o[d] *= c;
        for (int j = 0; j < n; j++) {
            const float p = moe_expf(s[j] - top);
            lanes_add(&sum, j, p);
            add_scaled(o, p, vt + (size_t)j * a->ldk, a->hd);
        }
        l = fmaf(l, c, lanes_sum(&sum, n));
        m = top;
    }
    const float inverse = 1.0f / l;
    for (int d = 0; d < a->hd; d++)
        o[d] = fmaf(o[d], inverse, 0.0f);
    return m + moe_logf(l);
}

static void forward_heads(void *ctx, int64_t begin, int64_t end, int worker)
{
    const attention_args *a = ctx;
    (void)worker;
    for (int64_t n = begin; n < end; n++) {
        const size_t t0 = (size_t)(n / a->H) * (size_t)a->S, h = (size_t)(n % a->H), kv = h / (size_t)(a->H / a->Hkv);
        const size_t at = t0 * a->ldk + kv * (size_t)a->hd;
        for (int64_t i = 0; i < a->S; i++) {
            const size_t t = t0 + (size_t)i;
            a->lse[t * (size_t)a->H + h] = attend(a->o + t * a->ldo + h * (size_t)a->hd, a->q + t * a->ldq + h * (size_t)a->hd, a->k + at,
                                                  a->v + at, i, a);
        }
    }
}

/* The part of one query (token t, head h) in dq, dk and dv; `at` is key 0 of its window and kv head. */
static void backward_query(const attention_args *a, size_t t, size_t h, size_t at, int64_t i)
{
    const size_t row = t * a->ldq + h * (size_t)a->hd, out = t * a->ldo + h * (size_t)a->hd;
    const float *q = a->q + row, *o = a->o + out, *d_o = a->d_o + out, lse = a->lse[t * (size_t)a->H + h];
    float *dq = a->dq + row;
    lanes sum = {{0}};
    for (int d = 0; d < a->hd; d++)
        lanes_fma(&sum, d, d_o[d], o[d]);
    const float delta = lanes_sum(&sum, a->hd);
    memset(dq, 0, sizeof *dq * (size_t)a->hd);
    for (int64_t j = 0; j <= i; j++) {
        const size_t key = at + (size_t)j * a->ldk;
        const float p = moe_expf(fmaf(dot(q, a->k + key, a->hd), a->scale, -lse));
        const float ds = p * (dot(d_o, a->v + key, a->hd) - delta);
        add_scaled(dq, ds, a->k + key, a->hd);
        add_scaled(a->dk + key, ds, q, a->hd);
        add_scaled(a->dv + key, p, d_o, a->hd);
    }
    for (int d = 0; d < a->hd; d++)
        dq[d] = fmaf(dq[d], a->scale, 0.0f);
}

static void backward_heads(void *ctx, int64_t begin, int64_t end, int worker)
{
    const attention_args *a = ctx;
    const size_t group = (size_t)(a->H / a->Hkv), hd = (size_t)a->hd;
    (void)worker;
    for (int64_t n = begin; n < end; n++) {
        const size_t t0 = (size_t)(n / a->Hkv) * (size_t)a->S, kv = (size_t)(n % a->Hkv), at = t0 * a->ldk + kv * hd;
        for (size_t j = 0; j < (size_t)a->S; j++) {
            memset(a->dk + at + j * a->ldk, 0, sizeof(float) * hd);
            memset(a->dv + at + j * a->ldk, 0, sizeof(float) * hd);
        }
        for (size_t h = kv * group; h < (kv + 1) * group; h++)
            for (int64_t i = 0; i < a->S; i++)
                backward_query(a, t0 + (size_t)i, h, at, i);
        for (size_t j = 0; j < (size_t)a->S; j++)
            for (size_t d = at + j * a->ldk; d < at + j * a->ldk + hd; d++) {
                a->dk[d] = fmaf(a->dk[d], a->scale, 0.0f);
                a->dv[d] += 0.0f;
            }
    }
}

moe_err attention_forward_ref(const attention_args *a, moe_stream *s)
{
    TRY(attention_check(a));
    moe_pool_for(s->pool, (int64_t)a->B * a->H, 1, forward_heads, (void *)a);
    return MOE_OK;
}

moe_err attention_backward_ref(const attention_args *a, moe_stream *s)
{
    TRY(attention_check(a));
    moe_pool_for(s->pool, (int64_t)a->B * a->Hkv, 1, backward_heads, (void *)a);
    return MOE_OK;
}
