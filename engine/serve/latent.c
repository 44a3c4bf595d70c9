/* Latent attention (MLA: DeepSeek-V2, arXiv 2405.04434), in the absorbed form for prefill and decode alike. What is kept of a position is the normed
 * latent c [kv_lora_rank] and one rotated key r for all heads; with k_b and v_b of a head (the two halves of kv_b_proj)
 *     q . k = (k_b q_nope) . c + q_rope . r        value = v_b c
 * so attention runs over (c, r) as one kv head whose values are its keys' first numbers, and v_b is applied to its output.
 * Owns nothing; works in the scratch of a step, LATENT_TOKENS tokens at a time: a latent query is several times as wide as a query.
 * Rule: every token's row is its own, so neither the chunk nor the slice changes a bit. */
#include <string.h>

#include "engine/serve/serve_private.h"

static moe_err rotate(serve *s, float *x, size_t ld, int heads, int width, int64_t T)
{
    const rope_args a = {.x = x, .table = s->w.rope, .ld = ld, .T = T, .S = (int)T, .heads = heads, .hd = width, .rotary = s->spec->rotary,
                         .interleaved = s->spec->rope_interleave};
    return s->c.be->rope(&a, s->c.stream);
}

/* transformers gives these two norms its own default, whatever rms_norm_eps is. */
static moe_err norm_part(serve *s, float *x, const float *gain, int width, size_t ld, int64_t T)
{
    const rmsnorm_args a = {.y = x, .x = x, .gain = gain, .ldx = ld, .ldy = ld, .T = T, .heads = 1, .D = width, .eps = 1e-6f};
    return s->c.be->rmsnorm_forward(&a, s->c.stream);
}

/* Queries to w.q [T, H * hd], latents and shared keys to w.k [T, key], both rotated. */
static moe_err project(serve *s, const serve_layer *l, int64_t T)
{
    const model_spec *m = s->spec;
    const serve_scratch *w = &s->w;
    const bool two = m->q_lora_rank > 0;
    const int key = l->kv_a.N, hd = m->hd, nope = spec_nope(m);
    const weight *const first[] = {two ? &l->q_a : &l->q, &l->kv_a};
    float *const out[] = {two ? w->q_a : w->q, w->k};
    const size_t ld[] = {(size_t)first[0]->N, (size_t)key};
    TRY(serve_product(s, first, out, ld, 2, w->xn, (size_t)m->D, T, false));
    if (two) {
        serve_add_bias(w->q_a, (size_t)m->q_lora_rank, l->q_a_bias, T, m->q_lora_rank);
        TRY(norm_part(s, w->q_a, l->q_a_norm, m->q_lora_rank, (size_t)m->q_lora_rank, T));
        TRY(serve_one_product(s, &l->q_b, w->q, (size_t)(m->H * hd), w->q_a, (size_t)m->q_lora_rank, T, false));
    }
    serve_add_bias(w->k, (size_t)key, l->kv_a_bias, T, key);
    TRY(norm_part(s, w->k, l->kv_a_norm, m->kv_lora_rank, (size_t)key, T));
    TRY(rotate(s, w->q + nope, (size_t)(m->H * hd), m->H, hd, T));
    return rotate(s, w->k + m->kv_lora_rank, (size_t)key, 1, m->rotary, T);
}

/* n tokens from t0 on, between rows of tokens and rows of heads. */
typedef struct slice {
    serve *s;
    int64_t t0, n;
} slice;

static void split_queries(void *ctx, int64_t begin, int64_t end, int worker)
{
    const slice *c = ctx;
    const model_spec *m = c->s->spec;
    const size_t H = (size_t)m->H, hd = (size_t)m->hd, nope = (size_t)spec_nope(m), rank = (size_t)m->kv_lora_rank, rope = (size_t)m->rotary;
    (void)worker;
    for (size_t i = (size_t)begin; i < (size_t)end; i++) {
        const size_t h = i / (size_t)c->n, t = (size_t)c->t0 + i % (size_t)c->n;
        const float *q = c->s->w.q + (t * H + h) * hd;
        memcpy(c->s->w.heads + i * nope, q, nope * sizeof *q);
        memcpy(c->s->w.q_latent + i * (rank + rope) + rank, q + nope, rope * sizeof *q);
    }
}

static void join_values(void *ctx, int64_t begin, int64_t end, int worker)
{
    const slice *c = ctx;
    const size_t H = (size_t)c->s->spec->H, v = (size_t)c->s->spec->v_head_dim;
    (void)worker;
    for (size_t i = (size_t)begin; i < (size_t)end; i++) {
        const size_t h = i / (size_t)c->n, t = (size_t)c->t0 + i % (size_t)c->n;
        memcpy(c->s->w.o + (t * H + h) * v, c->s->w.heads + i * v, v * sizeof(float));
    }
}

/* Rows [H, n, K] times each head's own matrix. */
static moe_err per_head(serve *s, const weight *w, float *y, size_t ldy, const float *x, int64_t n)
{
    const int H = s->spec->H;
    const size_t head = qpanel_bytes(w->format, w->N, w->K);
    for (int h = 0; h < H; h++) {
        s->w.head_offset[h] = (int32_t)(h * n);
        s->w.head_panels[h] = (const char *)w->panels + (size_t)h * head;
    }
    s->w.head_offset[H] = (int32_t)(H * n);
    const qmatmul_args a = {.mat = {{.y = y, .ldy = ldy, .w = s->w.head_panels, .format = w->format, .N = w->N}}, .M = 1, .x = x,
                            .ldx = (size_t)w->K, .offset = s->w.head_offset, .G = H, .K = w->K};
    return s->c.be->qmatmul(&a, s->c.stream);
}

static moe_err attend_slice(serve *s, const serve_layer *l, int64_t t0, int64_t n)
{
    enum { GRAIN = 32 /* rows of one copy */ };
    const model_spec *m = s->spec;
    const serve_scratch *w = &s->w;
    const size_t key = (size_t)l->kv_a.N, rank = (size_t)m->kv_lora_rank;
    slice part = {s, t0, n};
    moe_pool_for(s->c.stream->pool, m->H * n, GRAIN, split_queries, &part);
    TRY(per_head(s, &l->k_b, w->q_latent, key, w->heads, n));
    const paged_attention_args a = {.o = w->o_latent, .q = w->q_latent, .ldq = key, .ldo = rank, .head_q = (size_t)n * key,
                                    .head_o = (size_t)n * rank, .pos = w->pos + t0, .pages = w->tables + t0, .T = n, .H = m->H, .Hkv = 1,
                                    .hd = (int)key, .hdv = m->kv_lora_rank, .scale = spec_attention_scale(m), .format = s->c.kv};
    TRY(s->c.be->paged_attention(&a, s->c.stream));
    TRY(per_head(s, &l->v_b, w->heads, (size_t)m->v_head_dim, w->o_latent, n));
    moe_pool_for(s->c.stream->pool, m->H * n, GRAIN, join_values, &part);
    return MOE_OK;
}

moe_err serve_latent_attention(serve *s, int layer, int64_t T)
{
    const model_spec *m = s->spec;
    const serve_layer *l = &s->dense.layer[layer];
    const serve_scratch *w = &s->w;
    TRY(project(s, l, T));
    serve_find_pages(s, layer, T);
    const kv_store_args store = {.page = w->page, .pos = w->pos, .k = w->k, .ldk = (size_t)l->kv_a.N, .T = T, .Hkv = 1, .hd = l->kv_a.N,
                                 .hdv = m->kv_lora_rank, .format = s->c.kv};
    TRY(s->c.be->kv_store(&store, s->c.stream));
    for (int64_t t0 = 0; t0 < T; t0 += LATENT_TOKENS)
        TRY(attend_slice(s, l, t0, T - t0 < LATENT_TOKENS ? T - t0 : LATENT_TOKENS));
    TRY(serve_one_product(s, &l->o, w->x, (size_t)m->D, w->o, (size_t)(m->H * m->v_head_dim), T, true));
    serve_add_bias(w->x, (size_t)m->D, l->o_bias, T, m->D);
    return MOE_OK;
}
