/* What a layer does besides the experts: norms, projections, rope, attention over the pages, dense and shared feed-forward. The order of
 * every sum is that of the training decoder, so fp32 weights and fp32 pages give its bits.
 * Owns nothing; works in the scratch of a step. */
#include <string.h>

#include "engine/serve/serve_private.h"

moe_err serve_product(serve *s, const weight *const *w, float *const *y, const size_t *ldy, int n, const float *x, size_t ldx, int64_t rows,
                      bool accumulate)
{
    const int32_t offset[2] = {0, (int32_t)rows};
    qmatmul_args a = {.M = n, .x = x, .ldx = ldx, .offset = offset, .G = 1, .K = w[0]->K, .accumulate = accumulate};
    for (int i = 0; i < n; i++)
        a.mat[i] = (qmatrix){.y = y[i], .ldy = ldy[i], .w = &w[i]->panels, .format = w[i]->format, .N = w[i]->N};
    return s->c.be->qmatmul(&a, s->c.stream);
}

moe_err serve_one_product(serve *s, const weight *w, float *y, size_t ldy, const float *x, size_t ldx, int64_t rows, bool accumulate)
{
    return serve_product(s, &w, &y, &ldy, 1, x, ldx, rows, accumulate);
}

static moe_err norm_rows(serve *s, float *y, const float *x, const float *gain, int64_t T, int heads, int width)
{
    const size_t ld = (size_t)heads * (size_t)width;
    const rmsnorm_args a = {.y = y, .x = x, .gain = gain, .ldx = ld, .ldy = ld, .T = T, .heads = heads, .D = width, .eps = s->spec->rms_eps};
    return s->c.be->rmsnorm_forward(&a, s->c.stream);
}

moe_err serve_norm(serve *s, float *y, const float *x, const float *gain, int64_t rows)
{
    return norm_rows(s, y, x, gain, rows, 1, s->spec->D);
}

void serve_add_bias(float *y, size_t ldy, const float *bias, int64_t rows, int n)
{
    if (bias == NULL)
        return;
    for (int64_t t = 0; t < rows; t++, y += ldy)
        for (int i = 0; i < n; i++)
            y[i] += bias[i];
}

static moe_err rotate(serve *s, float *x, int heads, int64_t T)
{
    const rope_args a = {.x = x, .table = s->w.rope, .ld = (size_t)(heads * s->spec->hd), .T = T, .S = (int)T, .heads = heads, .hd = s->spec->hd,
                         .rotary = s->spec->rotary};
    return s->c.be->rope(&a, s->c.stream);
}

/* Bias, norm and clip of q, k or v as they came from the projection; rope for the first two. */
static moe_err finish_projection(serve *s, float *x, const float *bias, const float *gain, int heads, int64_t T, bool rope)
{
    const model_spec *m = s->spec;
    const int width = heads * m->hd;
    serve_add_bias(x, (size_t)width, bias, T, width);
    if (gain != NULL)
        TRY(norm_rows(s, x, x, gain, T, m->qk_norm == QK_NORM_FULL ? 1 : heads, m->qk_norm == QK_NORM_FULL ? width : m->hd));
    if (m->clip_qkv > 0) {
        const clip_args c = {.x = x, .n = (size_t)T * (size_t)width, .limit = m->clip_qkv};
        TRY(s->c.be->clip_forward(&c, s->c.stream));
    }
    return rope ? rotate(s, x, heads, T) : MOE_OK;
}

void serve_find_pages(serve *s, int layer, int64_t T)
{
    serve_scratch *w = &s->w;
    const size_t of_layer = (size_t)layer * (size_t)s->kv.max_blocks;
    for (int64_t t = 0; t < T; t++) {
        void **table = s->kv.sequence[w->sequence[t]].page + of_layer;
        w->page[t] = table[w->pos[t] / KV_PAGE];
        w->tables[t] = (const void *const *)table;
    }
}

static moe_err attend(serve *s, int layer, int64_t T)
{
    const model_spec *m = s->spec;
    serve_scratch *w = &s->w;
    serve_find_pages(s, layer, T);
    const size_t ldk = (size_t)(m->Hkv * m->hd), ldq = (size_t)(m->H * m->hd);
    const kv_store_args store = {.page = w->page, .pos = w->pos, .k = w->k, .v = w->v, .ldk = ldk, .T = T, .Hkv = m->Hkv, .hd = m->hd,
                                 .format = s->c.kv};
    TRY(s->c.be->kv_store(&store, s->c.stream));
    const paged_attention_args a = {.o = w->o, .q = w->q, .ldq = ldq, .ldo = ldq, .pos = w->pos, .pages = w->tables, .T = T, .H = m->H,
                                    .Hkv = m->Hkv, .hd = m->hd, .scale = spec_attention_scale(m), .format = s->c.kv,
                                    .window = m->windowed[layer] ? m->window : 0, .sinks = s->dense.layer[layer].sinks};
    return s->c.be->paged_attention(&a, s->c.stream);
}

moe_err serve_attention(serve *s, int layer, int64_t T)
{
    const model_spec *m = s->spec;
    const serve_layer *l = &s->dense.layer[layer];
    const serve_scratch *w = &s->w;
    TRY(serve_norm(s, w->xn, w->x, l->attn_norm, T));
    if (m->kv_lora_rank > 0)
        return serve_latent_attention(s, layer, T);
    const weight *const project[] = {&l->q, &l->k, &l->v};
    float *const out[] = {w->q, w->k, w->v};
    const size_t ld[] = {(size_t)l->q.N, (size_t)l->k.N, (size_t)l->v.N};
    TRY(serve_product(s, project, out, ld, 3, w->xn, (size_t)m->D, T, false));
    TRY(finish_projection(s, w->q, l->q_bias, l->q_norm, m->H, T, true));
    TRY(finish_projection(s, w->k, l->k_bias, l->k_norm, m->Hkv, T, true));
    TRY(finish_projection(s, w->v, l->v_bias, NULL, m->Hkv, T, false));
    TRY(attend(s, layer, T));
    TRY(serve_one_product(s, &l->o, w->x, (size_t)m->D, w->o, (size_t)(m->H * m->hd), T, true));
    serve_add_bias(w->x, (size_t)m->D, l->o_bias, T, m->D);
    return MOE_OK;
}

/* sigmoid(xn . switch) of each token. */
static moe_err switch_values(serve *s, const weight *w, int64_t T)
{
    float *c = s->w.switches, *z = c + T;
    TRY(serve_one_product(s, w, z, 1, s->w.xn, (size_t)s->spec->D, T, false));
    for (int64_t t = 0; t < T; t++)
        c[t] = 1.0f;
    const gate_args g = {.y = c, .z = z, .T = T, .D = 1};
    return s->c.be->gate_forward(&g, s->c.stream);
}

moe_err serve_dense_ffn(serve *s, const serve_layer *l, int64_t T)
{
    const serve_scratch *w = &s->w;
    const bool shared = l->moe >= 0;
    const weight *const first[] = {shared ? &l->shared_gate : &l->gate, shared ? &l->shared_up : &l->up}, *down = shared ? &l->shared_down : &l->down;
    if (down->N == 0)
        return MOE_OK;
    const int D = s->spec->D, F = first[0]->N, Fp = (int)panel_pad(F);
    float *const out[] = {w->wide, w->wide + Fp};
    const size_t ld[] = {2 * (size_t)Fp, 2 * (size_t)Fp};
    TRY(serve_product(s, first, out, ld, 2, w->xn, (size_t)D, T, false));
    const swiglu_args mid = {.h = w->wide2, .a = w->wide, .rows = T, .F = F, .Fp = Fp};
    TRY(s->c.be->swiglu_forward(&mid, s->c.stream));
    TRY(serve_one_product(s, down, w->wide, (size_t)D, w->wide2, (size_t)Fp, T, false));
    if (l->shared_switch.N > 0)
        TRY(switch_values(s, &l->shared_switch, T));
    const combine_args c = {.out = w->x, .base = w->x, .rows = w->wide, .row_of = w->identity, .weight = l->shared_switch.N > 0 ? w->switches : NULL,
                            .T = T, .K = 1, .D = D};
    return s->c.be->combine(&c, s->c.stream);
}
