/* The attention half of a layer: norm, projections, QK-norm, rope, attention, output projection, residual. */
#include <math.h>
#include <string.h>

#include "engine/decoder/decoder_private.h"

static rmsnorm_args head_norm(const decoder *d, int layer, bool key)
{
    const model_spec *s = d->c.spec;
    const dense_layout *lay = &d->c.dense->layout[layer];
    const bool full = s->qk_norm == QK_NORM_FULL;
    const int heads = key ? s->Hkv : s->H;
    return (rmsnorm_args){
        .inv = d->inv, .gain = layer_w(d, layer, key ? lay->k_norm : lay->q_norm), .dgain = layer_g(d, layer, key ? lay->k_norm : lay->q_norm),
        .ldx = (size_t)d->QKV, .ldy = (size_t)d->QKV, .heads = full ? 1 : heads, .D = full ? heads * s->hd : s->hd, .eps = s->rms_eps,
    };
}

static moe_err rotate(decoder *d, float *x, const float *table, int heads, int64_t n, int S, bool inverse)
{
    const rope_args a = {
        .x = x, .table = table, .ld = (size_t)d->QKV, .T = n, .S = S, .heads = heads, .hd = d->c.spec->hd, .inverse = inverse,
        .rotary = d->c.spec->rotary,
    };
    return d->c.be->rope(&a, d->c.stream);
}

/* Norm and clip, before rope: out may be raw. Columns of v are copied (clipped) too. */
static moe_err norm_and_clip(decoder *d, int layer, float *out, const float *raw, int64_t n)
{
    const model_spec *s = d->c.spec;
    if (s->qk_norm == QK_NORM_NONE && out != raw)
        memcpy(out, raw, (size_t)n * (size_t)d->QKV * sizeof *out);
    for (int key = 0; key < 2 && s->qk_norm != QK_NORM_NONE; key++) {
        rmsnorm_args a = head_norm(d, layer, key);
        a.x = raw + (key ? d->q_pad : 0);
        a.y = out + (key ? d->q_pad : 0);
        a.T = n;
        TRY(d->c.be->rmsnorm_forward(&a, d->c.stream));
    }
    if (s->qk_norm != QK_NORM_NONE && out != raw)
        for (int64_t t = 0; t < n; t++) {
            const size_t at = (size_t)t * (size_t)d->QKV + (size_t)(d->q_pad + d->kv_pad);
            memcpy(out + at, raw + at, (size_t)d->kv_pad * sizeof *out);
        }
    if (s->clip_qkv <= 0)
        return MOE_OK;
    const clip_args c = {.x = out, .n = (size_t)n * (size_t)d->QKV, .limit = s->clip_qkv};
    return d->c.be->clip_forward(&c, d->c.stream);
}

/* Norm, clip and rope of the projections of n tokens: q and k into d->qkv (or in place of it when they lie there). */
static moe_err attention_rotate(decoder *d, int layer, float *out, const float *raw, const float *rope, int64_t n, int S)
{
    TRY(norm_and_clip(d, layer, out, raw, n));
    TRY(rotate(d, out, rope, d->c.spec->H, n, S, false));
    return rotate(d, out + d->q_pad, rope, d->c.spec->Hkv, n, S, false);
}

/* y[n, N] += bias: a product with one column of ones, so that its gradient is one chain over the tokens. d->gate is free here. */
static matmul_args bias_shape(decoder *d, float *y, int N, int64_t n)
{
    for (int64_t t = 0; t < n; t++)
        d->gate[t] = 1.0f;
    return (matmul_args){.y = y, .ldy = (size_t)N, .x = d->gate, .ldx = 1, .N = N, .K = 1, .accumulate = true};
}

/* raw[n, QKV] = q | k | v of the normed rows, with their biases. */
static moe_err attention_project(decoder *d, int layer, float *raw, const float *xn, int64_t n)
{
    const dense_layout *lay = &d->c.dense->layout[layer];
    const int D = d->c.spec->D;
    const matmul_args a = {.y = raw, .ldy = (size_t)d->QKV, .x = (float *)xn, .ldx = (size_t)D, .N = d->QKV, .K = D};
    TRY(matmul_one(d, d->c.be->matmul_forward, a, layer_w(d, layer, lay->qkv), NULL, n));
    if (lay->qkv_bias < 0)
        return MOE_OK;
    return matmul_one(d, d->c.be->matmul_forward, bias_shape(d, raw, d->QKV, n), layer_w(d, layer, lay->qkv_bias), NULL, n);
}

/* x[n, D] += output projection of o[n, H*hd], with its bias. */
static moe_err attention_output(decoder *d, int layer, float *x, const float *o, int64_t n)
{
    const dense_layout *lay = &d->c.dense->layout[layer];
    const int D = d->c.spec->D, O = d->c.spec->H * d->c.spec->hd;
    const matmul_args a = {.y = x, .ldy = (size_t)D, .x = (float *)o, .ldx = (size_t)O, .N = D, .K = O, .accumulate = true};
    TRY(matmul_one(d, d->c.be->matmul_forward, a, layer_w(d, layer, lay->o), NULL, n));
    if (lay->o_bias < 0)
        return MOE_OK;
    return matmul_one(d, d->c.be->matmul_forward, bias_shape(d, x, D, n), layer_w(d, layer, lay->o_bias), NULL, n);
}

/* The bias's gradient goes on: the sum of dy over the tokens in order. */
static moe_err bias_backward(decoder *d, int layer, int64_t bias, const float *dy, int N, int64_t n)
{
    if (bias < 0)
        return MOE_OK;
    return matmul_one(d, d->c.be->matmul_dw, bias_shape(d, (float *)dy, N, n), NULL, layer_g(d, layer, bias), n);
}

static attention_args attention_shape(const decoder *d, int64_t n)
{
    const model_spec *s = d->c.spec;
    return (attention_args){
        .q = d->qkv, .k = d->qkv + d->q_pad, .v = d->qkv + d->q_pad + d->kv_pad, .ldq = (size_t)d->QKV, .ldk = (size_t)d->QKV,
        .ldo = (size_t)(s->H * s->hd), .B = (int)(n / d->c.seq_len), .S = d->c.seq_len, .H = s->H, .Hkv = s->Hkv, .hd = s->hd,
        .scale = 1.0f / sqrtf((float)s->hd),
    };
}

moe_err attention_block_forward(decoder *d, int layer, const piece_block *b, float *xn, int64_t n)
{
    TRY(norm_forward(d, xn, b->x_in, layer_w(d, layer, d->c.dense->layout[layer].attn_norm), n));
    TRY(attention_project(d, layer, b->qkv, xn, n));
    TRY(attention_rotate(d, layer, d->qkv, b->qkv, d->c.dense->rope, n, d->c.seq_len));
    attention_args a = attention_shape(d, n);
    a.o = b->o;
    a.lse = b->lse;
    TRY(d->c.be->attention_forward(&a, d->c.stream));
    return attention_output(d, layer, b->x, b->o, n);
}

/* From the gradient of the rotated q | k | v to that of the raw projections, in place in d->raw. */
static moe_err rotate_backward(decoder *d, int layer, const float *raw, int64_t n)
{
    const model_spec *s = d->c.spec;
    TRY(rotate(d, d->raw, d->c.dense->rope, s->H, n, d->c.seq_len, true));
    TRY(rotate(d, d->raw + d->q_pad, d->c.dense->rope, s->Hkv, n, d->c.seq_len, true));
    if (s->clip_qkv > 0) {
        TRY(norm_and_clip(d, layer, d->qkv, raw, n));
        const clip_args c = {.x = d->raw, .kept = d->qkv, .n = (size_t)n * (size_t)d->QKV, .limit = s->clip_qkv};
        TRY(d->c.be->clip_backward(&c, d->c.stream));
    }
    for (int key = 0; key < 2 && s->qk_norm != QK_NORM_NONE; key++) {
        rmsnorm_args a = head_norm(d, layer, key);
        const size_t at = key ? (size_t)d->q_pad : 0;
        a.T = n;
        a.x = raw + at;
        a.y = d->qkv + at; /* recomputed for the reciprocals; q and k are no longer needed */
        TRY(d->c.be->rmsnorm_forward(&a, d->c.stream));
        a.dx = d->raw + at;
        a.dy = d->raw + at;
        TRY(d->c.be->rmsnorm_backward(&a, d->c.stream));
    }
    return MOE_OK;
}

moe_err attention_block_backward(decoder *d, int layer, const piece_block *b, float *dx, float *xn, int64_t n)
{
    const model_spec *s = d->c.spec;
    const dense_layout *lay = &d->c.dense->layout[layer];
    const int O = s->H * s->hd;
    matmul_args out = {.y = dx, .ldy = (size_t)s->D, .x = d->wide, .ldx = (size_t)O, .N = s->D, .K = O};
    TRY(matmul_one(d, d->c.be->matmul_dx, out, layer_w(d, layer, lay->o), NULL, n));
    out.x = b->o;
    out.accumulate = true;
    TRY(matmul_one(d, d->c.be->matmul_dw, out, NULL, layer_g(d, layer, lay->o), n));
    TRY(bias_backward(d, layer, lay->o_bias, dx, s->D, n));

    TRY(attention_rotate(d, layer, d->qkv, b->qkv, d->c.dense->rope, n, d->c.seq_len));
    if (d->q_pad != O || d->kv_pad != s->Hkv * s->hd)
        memset(d->raw, 0, (size_t)n * (size_t)d->QKV * sizeof *d->raw);
    attention_args a = attention_shape(d, n);
    a.o = b->o;
    a.lse = b->lse;
    a.d_o = d->wide;
    a.dq = d->raw;
    a.dk = d->raw + d->q_pad;
    a.dv = d->raw + d->q_pad + d->kv_pad;
    TRY(d->c.be->attention_backward(&a, d->c.stream));
    TRY(rotate_backward(d, layer, b->qkv, n));
    TRY(bias_backward(d, layer, lay->qkv_bias, d->raw, d->QKV, n));

    TRY(norm_forward(d, xn, b->x_in, layer_w(d, layer, lay->attn_norm), n));
    matmul_args project = {.y = d->raw, .ldy = (size_t)d->QKV, .x = xn, .ldx = (size_t)s->D, .N = d->QKV, .K = s->D, .accumulate = true};
    TRY(matmul_one(d, d->c.be->matmul_dw, project, NULL, layer_g(d, layer, lay->qkv), n));
    project.x = d->wide;
    project.accumulate = false;
    TRY(matmul_one(d, d->c.be->matmul_dx, project, layer_w(d, layer, lay->qkv), NULL, n));
    return norm_backward(d, dx, layer_g(d, layer, lay->attn_norm), d->wide, b->x_in, layer_w(d, layer, lay->attn_norm), n, true);
}
