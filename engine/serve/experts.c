/* The experts of one layer for the tokens of a step: router, the union of what was chosen, and the feed-forward of each expert once it is
 * in memory: those that are resident run at once and together, the others as they land.
 *
 * Rows are computed in the order in which experts become ready; row_of is rewritten to point at them, and combine adds them in
 * choice order, so the order of arrival changes no bit. An expert that cannot be read ends the spans whose tokens chose it: their
 * rows are zero, and in later layers they follow another token's choice, so that nothing is read for them any more.
 *
 * Owns nothing. One thread; the products are parallel inside. */
#include <string.h>

#include "engine/serve/serve_private.h"

enum { RING_SHARE = 8 }; /* 7 of 8 experts of the layer: nearly the whole */

static moe_err route(serve *s, const serve_layer *l, int64_t T)
{
    const serve_scratch *w = &s->w;
    const model_spec *m = s->spec;
    TRY(serve_one_product(s, &l->router, w->logits, (size_t)m->E, w->xn, (size_t)m->D, T, false));
    serve_add_bias(w->logits, (size_t)m->E, l->logit_bias, T, m->E);
    const router_args ra = {.logits = w->logits, .bias = l->router_bias, .probs = w->probs, .lse = w->lse, .ids = w->ids, .weights = w->weights,
                            .T = T, .E = m->E, .K = m->K, .rule = m->router};
    return s->c.be->router_forward(&ra, s->c.stream);
}

/* Tokens of dead spans choose what a living one does. */
static void follow_the_living(serve *s, int64_t T)
{
    const serve_scratch *w = &s->w;
    const size_t K = (size_t)s->spec->K;
    int64_t living = 0;
    while (w->dead[w->span_of[living]])
        living++;
    for (int64_t t = 0; t < T; t++)
        if (w->dead[w->span_of[t]])
            memcpy(w->ids + (size_t)t * K, w->ids + (size_t)living * K, K * sizeof *w->ids);
}

static moe_err dispatch(serve *s, int64_t T, int *chosen)
{
    const serve_scratch *w = &s->w;
    const model_spec *m = s->spec;
    const dispatch_args da = {.ids = w->ids, .offset = w->offset, .row_token = w->row_token, .row_slot = w->row_slot, .row_of = w->row_of,
                              .T = T, .E = m->E, .K = m->K};
    TRY(s->c.be->dispatch(&da, s->c.stream));
    *chosen = 0;
    for (int e = 0; e < m->E; e++)
        if (w->offset[e + 1] > w->offset[e])
            w->union_of[(*chosen)++] = e;
    return MOE_OK;
}

/* Experts leased together, and their rows. done: rows of earlier batches; lost: of experts that could not be read. */
typedef struct batch {
    int n;
    int64_t rows, done, lost;
} batch;

static int expert_of(const serve *s, expert_id id) { return (int)(id % (expert_id)s->spec->E); }

static void batch_add(serve *s, const serve_layer *l, batch *b, const expert_lease *lease)
{
    const serve_scratch *w = &s->w;
    const int e = expert_of(s, lease->id);
    for (int32_t r = w->offset[e]; r < w->offset[e + 1]; r++) {
        w->batch_token[b->rows] = w->row_token[r];
        w->row_of[w->row_slot[r]] = (int32_t)(b->done + b->rows);
        b->rows++;
    }
    w->batch_expert[b->n] = e;
    for (int i = 0; i < 3; i++)
        w->batch_w[i][b->n] = (const char *)lease->slot + l->expert_at[i];
    w->lease[b->n++] = *lease;
    w->batch_offset[b->n] = (int32_t)b->rows;
}

/* Rows of a batch get the biases of their experts. */
typedef struct bias_args {
    const serve_scratch *w;
    float *y;
    size_t ldy;
    const float *bias; /* [E, n] */
    int n;
} bias_args;

static void add_biases(void *ctx, int64_t begin, int64_t end, int worker)
{
    const bias_args *a = ctx;
    (void)worker;
    for (int64_t i = begin; i < end; i++) {
        const int32_t first = a->w->batch_offset[i], rows = a->w->batch_offset[i + 1] - first;
        serve_add_bias(a->y + (size_t)first * a->ldy, a->ldy, a->bias + (size_t)a->w->batch_expert[i] * (size_t)a->n, rows, a->n);
    }
}

static void batch_bias(serve *s, const batch *b, const float *bias, float *y, size_t ldy, int n)
{
    const bias_args a = {.w = &s->w, .y = y, .ldy = ldy, .bias = bias, .n = n};
    if (bias != NULL)
        moe_pool_for(s->c.stream->pool, b->n, 1, add_biases, (void *)&a);
}

static moe_err batch_products(serve *s, const serve_layer *l, const batch *b)
{
    const serve_scratch *w = &s->w;
    const model_spec *m = s->spec;
    const size_t Fp = (size_t)s->Fp, D = (size_t)m->D;
    const gather_args g = {.dst = w->xg, .src = w->xn, .row_token = w->batch_token, .ld = D, .n = b->rows, .D = m->D};
    TRY(s->c.be->gather(&g, s->c.stream));
    const qmatmul_args first = {
        .mat = {{.y = w->a, .ldy = 2 * Fp, .w = w->batch_w[0], .format = l->expert_format[0], .N = m->F},
                {.y = w->a + Fp, .ldy = 2 * Fp, .w = w->batch_w[1], .format = l->expert_format[1], .N = m->F}},
        .M = 2, .x = w->xg, .ldx = D, .offset = w->batch_offset, .G = b->n, .K = m->D,
    };
    TRY(s->c.be->qmatmul(&first, s->c.stream));
    expert_cache_poll(s->cache); /* the disk shall not wait for a long product */
    batch_bias(s, b, l->expert_bias[0], w->a, 2 * Fp, m->F);
    batch_bias(s, b, l->expert_bias[1], w->a + Fp, 2 * Fp, m->F);
    const swiglu_args mid = {.h = w->h, .a = w->a, .rows = b->rows, .F = m->F, .Fp = s->Fp, .alpha = m->swiglu_alpha, .limit = m->swiglu_limit};
    TRY(s->c.be->swiglu_forward(&mid, s->c.stream));
    const qmatmul_args second = {
        .mat = {{.y = w->rows + (size_t)b->done * D, .ldy = D, .w = w->batch_w[2], .format = l->expert_format[2], .N = m->D}},
        .M = 1, .x = w->h, .ldx = Fp, .offset = w->batch_offset, .G = b->n, .K = m->F,
    };
    TRY(s->c.be->qmatmul(&second, s->c.stream));
    batch_bias(s, b, l->expert_bias[2], w->rows + (size_t)b->done * D, D, m->D);
    return MOE_OK;
}

static moe_err batch_run(serve *s, const serve_layer *l, batch *b)
{
    moe_err rc = b->rows > 0 ? batch_products(s, l, b) : MOE_OK;
    for (int i = 0; i < b->n; i++)
        expert_cache_release(s->cache, &s->w.lease[i]);
    *b = (batch){.done = b->done + b->rows, .lost = b->lost};
    return rc;
}

/* The spans whose tokens chose expert e end with the error of this thread. Its rows are zeros, from the other end of the array. */
static void batch_lost(serve *s, batch *b, int e, moe_err why, serve_span *span)
{
    const serve_scratch *w = &s->w;
    const size_t D = (size_t)s->spec->D;
    for (int32_t r = w->offset[e]; r < w->offset[e + 1]; r++) {
        const int i = w->span_of[w->row_token[r]];
        if (!w->dead[i]) {
            span[i].rc = why;
            moe_error_take(span[i].text, sizeof span[i].text);
        }
        w->dead[i] = true;
        const int32_t row = w->offset[s->spec->E] - 1 - (int32_t)b->lost++;
        w->row_of[w->row_slot[r]] = row;
        memset(w->rows + (size_t)row * D, 0, D * sizeof *w->rows);
    }
}

/* One more lease for the batch. *more false: run what is there first. */
static moe_err next_expert(serve *s, batch *b, int *n, serve_span *span, expert_lease *lease, bool *more)
{
    expert_id *wanted = s->w.wanted_id;
    int which = -1;
    *more = false;
    const moe_err rc = expert_cache_acquire_any(s->cache, wanted, *n, b->n == 0, &which, lease);
    if (rc == MOE_E_FULL && b->n > 0)
        return MOE_OK;
    const bool lost = (rc == MOE_E_IO || rc == MOE_E_DATA) && which >= 0;
    if (lost)
        batch_lost(s, b, expert_of(s, wanted[which]), rc, span);
    else
        TRY(rc);
    if (which >= 0) {
        memmove(wanted + which, wanted + which + 1, (size_t)(*n - which - 1) * sizeof *wanted);
        (*n)--;
    }
    *more = which >= 0 && !lost;
    return MOE_OK;
}

static moe_err run_union(serve *s, const serve_layer *l, int n, serve_span *span)
{
    const serve_scratch *w = &s->w;
    batch b = {0};
    moe_err rc = MOE_OK;
    while ((n > 0 || b.n > 0) && rc == MOE_OK) {
        expert_lease lease = {0};
        bool more = false;
        if (n > 0)
            rc = next_expert(s, &b, &n, span, &lease, &more);
        const int e = more ? expert_of(s, lease.id) : 0;
        const bool full = more && b.rows + w->offset[e + 1] - w->offset[e] > s->expert_rows;
        if (rc == MOE_OK && b.n > 0 && (!more || full))
            rc = batch_run(s, l, &b);
        if (more)
            batch_add(s, l, &b, &lease);
    }
    for (int i = 0; i < b.n; i++)
        expert_cache_release(s->cache, &w->lease[i]);
    return rc;
}

/* When the union is nearly the whole layer, so will the next ones be: they follow in layer order, and their reads run ahead. */
static void read_ahead(serve *s, const serve_layer *l, int chosen)
{
    const int E = s->spec->E, layers = spec_moe_layers(s->spec);
    if (chosen * RING_SHARE < E * (RING_SHARE - 1) || l->moe + 1 == layers)
        return;
    for (int e = 0; e < E; e++)
        s->w.union_of[e] = e;
    expert_cache_ahead(s->cache, l->moe + 1, s->w.union_of, E);
}

moe_err serve_experts(serve *s, const serve_layer *l, serve_span *span, int64_t T)
{
    const serve_scratch *w = &s->w;
    int n = 0;
    TRY(route(s, l, T));
    follow_the_living(s, T);
    TRY(dispatch(s, T, &n));
    TRY(expert_cache_tokens(s->cache, l->moe, w->ids, T, s->spec->K, n));
    TRY(expert_cache_choose(s->cache, l->moe, w->union_of, n));
    for (int i = 0; i < n; i++)
        w->wanted_id[i] = (expert_id)l->moe * (expert_id)s->spec->E + (expert_id)w->union_of[i];
    read_ahead(s, l, n);
    TRY(serve_dense_ffn(s, l, T)); /* the shared expert, while the disk works */
    w->batch_offset[0] = 0;
    TRY(run_union(s, l, n, span));
    const combine_args c = {.out = w->x, .base = w->x, .rows = w->rows, .row_of = w->row_of, .weight = w->weights, .T = T, .K = s->spec->K,
                            .D = s->spec->D};
    return s->c.be->combine(&c, s->c.stream);
}
