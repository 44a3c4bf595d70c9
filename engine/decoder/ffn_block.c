/* The FFN of a dense layer, and the shared expert of an MoE layer: a SwiGLU on every token, the shared one with or without a gate. */
#include <string.h>

#include "engine/decoder/decoder_private.h"

typedef struct ffn_weights {
    int F;
    int64_t w1, w2, gate; /* gate -1: none */
} ffn_weights;

static ffn_weights weights_of(const decoder *d, int layer)
{
    const model_spec *s = d->c.spec;
    const dense_layout *lay = &d->c.dense->layout[layer];
    if (s->moe_layer[layer])
        return (ffn_weights){s->F_shared, lay->shared_w1, lay->shared_w2, s->shared_gate ? lay->shared_gate : -1};
    return (ffn_weights){s->F_dense, lay->ffn_w1, lay->ffn_w2, -1};
}

int layer_ffn_width(const model_spec *s, int layer)
{
    const int F = s->moe_layer[layer] ? s->F_shared : s->F_dense;
    return F == 0 ? 0 : (int)panel_pad(F);
}

/* c[t] = sigmoid(xn[t] . gate) into d->gate; the logits stay behind it. */
static moe_err gate_values(decoder *d, int layer, int64_t gate, const float *xn, int64_t n)
{
    float *c = d->gate, *z = d->gate + d->c.piece_tokens;
    const matmul_args a = {.y = z, .ldy = 1, .x = (float *)xn, .ldx = (size_t)d->c.spec->D, .N = 1, .K = d->c.spec->D};
    TRY(matmul_one(d, d->c.be->matmul_forward, a, layer_w(d, layer, gate), NULL, n));
    for (int64_t t = 0; t < n; t++)
        c[t] = 1.0f;
    const gate_args g = {.y = c, .z = z, .T = n, .D = 1};
    return d->c.be->gate_forward(&g, d->c.stream);
}

moe_err ffn_block_forward(decoder *d, int layer, float *a, float *x, const float *xn, int64_t n)
{
    const ffn_weights f = weights_of(d, layer);
    const int D = d->c.spec->D, Fp = (int)panel_pad(f.F);
    const matmul_args first = {.y = a, .ldy = 2 * (size_t)Fp, .x = (float *)xn, .ldx = (size_t)D, .N = 2 * Fp, .K = D};
    TRY(matmul_one(d, d->c.be->matmul_forward, first, layer_w(d, layer, f.w1), NULL, n));
    const swiglu_args mid = {.h = d->wide, .a = a, .rows = n, .F = f.F, .Fp = Fp};
    TRY(d->c.be->swiglu_forward(&mid, d->c.stream));
    matmul_args second = {.y = d->wide2, .ldy = (size_t)D, .x = d->wide, .ldx = (size_t)Fp, .N = D, .K = f.F};
    TRY(matmul_one(d, d->c.be->matmul_forward, second, layer_w(d, layer, f.w2), NULL, n));
    if (f.gate >= 0)
        TRY(gate_values(d, layer, f.gate, xn, n));
    const combine_args c = {
        .out = x, .base = x, .rows = d->wide2, .row_of = d->identity, .weight = f.gate >= 0 ? d->gate : NULL, .T = n, .K = 1, .D = D,
    };
    return d->c.be->combine(&c, d->c.stream);
}

moe_err ffn_block_backward(decoder *d, int layer, float *a, float *dxn, const float *dy, const float *xn, int64_t n, bool accumulate)
{
    const ffn_weights f = weights_of(d, layer);
    const moe_backend *be = d->c.be;
    const int D = d->c.spec->D, Fp = (int)panel_pad(f.F);
    matmul_args second = {.y = (float *)dy, .ldy = (size_t)D, .x = d->wide, .ldx = (size_t)Fp, .N = D, .K = f.F};
    TRY(matmul_one(d, be->matmul_dx, second, layer_w(d, layer, f.w2), NULL, n));
    float *dc = d->gate + 2 * d->c.piece_tokens;
    if (f.gate >= 0)
        TRY(gate_values(d, layer, f.gate, xn, n));
    const swiglu_args mid = {
        .a = a, .dh = d->wide, .c = f.gate >= 0 ? d->gate : NULL, .da = a, .hc = d->wide, .dweight = f.gate >= 0 ? dc : NULL,
        .rows = n, .F = f.F, .Fp = Fp,
    };
    TRY(be->swiglu_backward(&mid, d->c.stream));
    second.accumulate = true;
    TRY(matmul_one(d, be->matmul_dw, second, NULL, layer_g(d, layer, f.w2), n));
    matmul_args first = {.y = a, .ldy = 2 * (size_t)Fp, .x = (float *)xn, .ldx = (size_t)D, .N = 2 * Fp, .K = D, .accumulate = true};
    TRY(matmul_one(d, be->matmul_dw, first, NULL, layer_g(d, layer, f.w1), n));
    first.x = dxn;
    first.accumulate = accumulate;
    TRY(matmul_one(d, be->matmul_dx, first, layer_w(d, layer, f.w1), NULL, n));
    if (f.gate < 0)
        return MOE_OK;

    /* c = sigmoid(z): the gate of a one-column matrix of ones, so its backward is the same operation */
    float *z = d->gate + d->c.piece_tokens, *dz = d->gate;
    float *ones = d->wide;
    for (int64_t t = 0; t < n; t++)
        ones[t] = 1.0f;
    const gate_args g = {.y = ones, .z = z, .dy = dc, .dz = dz, .T = n, .D = 1};
    TRY(be->gate_backward(&g, d->c.stream));
    matmul_args gate = {.y = dz, .ldy = 1, .x = (float *)xn, .ldx = (size_t)D, .N = 1, .K = D, .accumulate = true};
    TRY(matmul_one(d, be->matmul_dw, gate, NULL, layer_g(d, layer, f.gate), n));
    gate.x = dxn;
    return matmul_one(d, be->matmul_dx, gate, layer_w(d, layer, f.gate), NULL, n);
}
