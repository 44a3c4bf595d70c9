/* Where each dense tensor lies in memory: vectors as fp32, matrices as panels in their own format, an embedding that is not also the
 * head as rows. Owns the block. Reading it is load.c's.
 * Rule: the same lines measure (no block) and point. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <xxh_x86dispatch.h>

#include "engine/base/carve.h"
#include "engine/serve/serve_private.h"
#include "memory/budget.h"

static const float **vector_of(serve_layer *l, tensor_role role)
{
    switch (role) {
    case ROLE_ATTN_NORM: return &l->attn_norm;
    case ROLE_FFN_NORM: return &l->ffn_norm;
    case ROLE_Q_NORM: return &l->q_norm;
    case ROLE_K_NORM: return &l->k_norm;
    case ROLE_Q_BIAS: return &l->q_bias;
    case ROLE_K_BIAS: return &l->k_bias;
    case ROLE_V_BIAS: return &l->v_bias;
    case ROLE_O_BIAS: return &l->o_bias;
    case ROLE_Q_A_NORM: return &l->q_a_norm;
    case ROLE_KV_A_NORM: return &l->kv_a_norm;
    case ROLE_Q_A_BIAS: return &l->q_a_bias;
    case ROLE_KV_A_BIAS: return &l->kv_a_bias;
    case ROLE_ROUTER_BIAS: return &l->router_bias;
    case ROLE_SINKS: return &l->sinks;
    case ROLE_LOGIT_BIAS: return &l->logit_bias;
    case ROLE_GATE_BIAS: return &l->expert_bias[0];
    case ROLE_UP_BIAS: return &l->expert_bias[1];
    case ROLE_DOWN_BIAS: return &l->expert_bias[2];
    default: return NULL;
    }
}

static weight *matrix_of(serve_layer *l, tensor_role role)
{
    switch (role) {
    case ROLE_Q: return &l->q;
    case ROLE_K: return &l->k;
    case ROLE_V: return &l->v;
    case ROLE_O: return &l->o;
    case ROLE_Q_A: return &l->q_a;
    case ROLE_Q_B: return &l->q_b;
    case ROLE_KV_A: return &l->kv_a;
    case ROLE_K_B: return &l->k_b;
    case ROLE_V_B: return &l->v_b;
    case ROLE_ROUTER: return &l->router;
    case ROLE_GATE: return &l->gate;
    case ROLE_UP: return &l->up;
    case ROLE_DOWN: return &l->down;
    case ROLE_SHARED_GATE: return &l->shared_gate;
    case ROLE_SHARED_UP: return &l->shared_up;
    case ROLE_SHARED_DOWN: return &l->shared_down;
    case ROLE_SHARED_SWITCH: return &l->shared_switch;
    default: return NULL;
    }
}

static size_t tensor_bytes(const model_spec *m, const tensor_info *t, const model_extent *e)
{
    if (t->layout == TENSOR_HEADS)
        return (size_t)m->H * qpanel_bytes(e->format, t->rows / m->H, t->cols);
    if (t->layout == TENSOR_VECTOR)
        return (size_t)t->cols * sizeof(float);
    if (t->layout == TENSOR_ROWS)
        return (size_t)t->rows * numfmt_row_bytes(e->format, t->cols);
    return qpanel_bytes(e->format, t->rows, t->cols);
}

/* The engine's name for the tensor. */
static moe_err point(serve_dense *d, const model_spec *spec, const tensor_info *t, const model_extent *e, void *at)
{
    const weight w = {at, e->format, (int)(t->layout == TENSOR_HEADS ? t->rows / spec->H : t->rows), (int)t->cols};
    serve_layer *l = t->layer >= 0 ? &d->layer[t->layer] : NULL;
    if (t->role == ROLE_EMBED) {
        d->embed = at;
        d->embed_format = e->format;
        if (spec->tied)
            d->head = w;
    } else if (t->role == ROLE_LM_HEAD) {
        d->head = w;
    } else if (t->role == ROLE_FINAL_NORM) {
        d->final_norm = at;
    } else if (l != NULL && t->layout == TENSOR_VECTOR && vector_of(l, t->role) != NULL) {
        *vector_of(l, t->role) = at;
    } else if (l != NULL && (t->layout == TENSOR_PANELS || t->layout == TENSOR_HEADS) && matrix_of(l, t->role) != NULL) {
        *matrix_of(l, t->role) = w;
    } else {
        return moe_fail(MOE_E_CONFIG, "%s: the serving engine does not know this tensor", t->name);
    }
    return MOE_OK;
}

/* base NULL: measures. part, when not NULL: what is to be read where. */
static moe_err lay_out(const serve *s, serve_dense *d, const tensor_info *table, int64_t n, char *base, load_part *part, int64_t *parts, size_t *bytes)
{
    carve c = {base, 0};
    if (parts != NULL)
        *parts = 0;
    for (int64_t i = 0; i < n; i++) {
        if (table[i].kind == SECTION_EXPERT)
            continue;
        model_extent e;
        model_find(s->c.model, &table[i], &e);
        void *at = carve_bytes(&c, tensor_bytes(s->spec, &table[i], &e));
        if (base == NULL)
            continue;
        TRY(point(d, s->spec, &table[i], &e, at));
        part[(*parts)++] = (load_part){.at = e, .info = table[i], .to = at};
    }
    *bytes = c.used;
    return MOE_OK;
}

moe_err serve_weights_begin(serve *s)
{
    serve_dense *d = &s->dense;
    d->layer = calloc((size_t)s->spec->L, sizeof *d->layer);
    if (d->layer == NULL)
        return moe_fail(MOE_E_OS, "%d layers: out of memory", s->spec->L);
    for (int i = 0; i < s->spec->L; i++)
        d->layer[i].moe = s->spec->moe_layer[i] ? spec_moe_index(s->spec, i) : -1;
    return MOE_OK;
}

moe_err serve_weights_measure(const serve *s, uint64_t *bytes)
{
    tensor_info *table;
    int64_t n;
    size_t used = 0;
    TRY(spec_tensors(s->spec, &table, &n));
    const moe_err rc = lay_out(s, NULL, table, n, NULL, NULL, NULL, &used);
    free(table);
    *bytes = used + (size_t)s->spec->L * sizeof(serve_layer);
    return rc;
}

static void sum_parts(void *ctx, int64_t begin, int64_t end, int worker)
{
    load_part *part = ctx;
    (void)worker;
    for (int64_t i = begin; i < end; i++)
        part[i].damaged = part[i].at.summed && XXH3_64bits(part[i].to, part[i].at.bytes) != part[i].at.sum;
}

/* Packed folders say what the bytes sum up to; they lie in memory as they lie in the file. */
static moe_err check_sums(serve *s, load_part *part, int64_t n)
{
    moe_pool_for(s->c.stream->pool, n, 1, sum_parts, part);
    for (int64_t i = 0; i < n; i++)
        if (part[i].damaged)
            return moe_fail(MOE_E_DATA, "%s: %s is damaged: its checksum is not that of the manifest; pack the model again",
                            model_path(s->c.model, part[i].at.file), part[i].info.name);
    return MOE_OK;
}

static moe_err load(serve *s, const tensor_info *table, int64_t n)
{
    serve_dense *d = &s->dense;
    size_t used = 0;
    int64_t parts = 0, dense = 0;
    moe_err rc;
    for (int64_t i = 0; i < n; i++)
        dense += table[i].kind != SECTION_EXPERT;
    load_part *part = calloc((size_t)(dense > 0 ? dense : 1), sizeof *part);
    if (part == NULL)
        return moe_fail(MOE_E_OS, "dense part: out of memory");
    TRY_GOTO(lay_out(s, d, table, n, NULL, NULL, NULL, &used), rc, done);
    TRY_GOTO(budget_alloc(&d->memory, used, "dense weights"), rc, done);
    d->bytes = used;
    TRY_GOTO(lay_out(s, d, table, n, d->memory, part, &parts, &used), rc, done);
    TRY_GOTO(serve_load(s, part, parts), rc, done);
    TRY_GOTO(check_sums(s, part, parts), rc, done);
    (void)mlock(d->memory, used); /* where it is allowed: every token needs all of it */
done:
    free(part);
    return rc;
}

moe_err serve_weights_load(serve *s)
{
    tensor_info *table;
    int64_t n;
    TRY(spec_tensors(s->spec, &table, &n));
    const moe_err rc = load(s, table, n);
    free(table);
    return rc;
}

void serve_weights_close(serve *s)
{
    budget_free(s->dense.memory);
    free(s->dense.layer);
    s->dense = (serve_dense){0};
}

typedef struct packing {
    const pack_args *a;
    moe_pool *pool;
    _Atomic int64_t bad; /* a row that cannot be put together, -1: none */
} packing;

static void pack_panels(void *ctx, int64_t begin, int64_t end, int worker)
{
    packing *p = ctx;
    const model_source *s = p->a->from;
    const numfmt f = s->at->format;
    const bool plain = model_rows_plain(s->at);
    const size_t length = plain ? s->at->row_bytes : numfmt_row_bytes(f, s->cols);
    const int64_t step = plain ? end - begin : 1; /* panels at a time */
    for (int64_t i = begin; i < end; i += step) {
        const int64_t row = i * PANEL, left = p->a->n - row, n = left < step * PANEL ? left : step * PANEL;
        const void *rows = plain ? s->stored + (size_t)row * length : moe_pool_scratch(p->pool, worker);
        if (!plain && model_rows(s, s->first + row, n, moe_pool_scratch(p->pool, worker)) != MOE_OK) {
            p->bad = s->first + row;
            return;
        }
        qpanel_pack(p->a->panels, rows, length, f, p->a->N, s->cols, s->first + row, n);
    }
}

/* Panels of whole heads, a head at a time. */
static void pack_heads(void *ctx, int64_t begin, int64_t end, int worker)
{
    packing *p = ctx;
    const model_source *s = p->a->from;
    const numfmt f = s->at->format;
    const int64_t rows = p->a->N;
    void *scratch = moe_pool_scratch(p->pool, worker);
    for (int64_t i = begin; i < end; i++) {
        char *to = (char *)p->a->panels + (size_t)(s->first / rows + i) * qpanel_bytes(f, rows, s->cols);
        if (model_rows(s, s->first + i * rows, rows, scratch) != MOE_OK)
            p->bad = s->first + i * rows;
        else
            qpanel_pack(to, scratch, numfmt_row_bytes(f, s->cols), f, rows, s->cols, 0, rows);
    }
}

moe_err serve_pack_heads(moe_stream *stream, const pack_args *a)
{
    const model_source *s = a->from;
    packing p = {.a = a, .pool = stream->pool, .bad = -1};
    if ((size_t)a->N * numfmt_row_bytes(s->at->format, s->cols) > moe_pool_scratch_bytes(stream->pool))
        return moe_fail(MOE_E_CONFIG, "%s: %s: a head of %lld rows does not fit the %zu bytes of scratch of a thread", s->path, s->name,
                        (long long)a->N, moe_pool_scratch_bytes(stream->pool));
    moe_pool_for(stream->pool, a->n / a->N, 1, pack_heads, &p);
    return p.bad < 0 ? MOE_OK : model_rows(s, p.bad, a->N, moe_pool_scratch(stream->pool, 0)); /* once more, for the sentence */
}

moe_err serve_pack(moe_stream *stream, const pack_args *a)
{
    enum { PIECE_BYTES = 128 << 10 };
    const model_source *s = a->from;
    const size_t panel = numfmt_row_bytes(s->at->format, s->cols) * PANEL;
    const int64_t grain = panel >= PIECE_BYTES || panel == 0 ? 1 : (int64_t)(PIECE_BYTES / panel);
    packing p = {.a = a, .pool = stream->pool, .bad = -1};
    if (!model_rows_plain(s->at) && panel > moe_pool_scratch_bytes(stream->pool))
        return moe_fail(MOE_E_CONFIG, "%s: %s: %d rows of %zu bytes that must be put together do not fit the %zu bytes of scratch of a thread", s->path,
                        s->name, (int)PANEL, panel / PANEL, moe_pool_scratch_bytes(stream->pool));
    moe_pool_for(stream->pool, (a->n + PANEL - 1) / PANEL, grain, pack_panels, &p);
    if (p.bad < 0)
        return MOE_OK;
    const int64_t left = s->first + a->n - p.bad; /* once more, for the sentence: an error belongs to the thread that met it */
    return model_rows(s, p.bad, left < PANEL ? left : PANEL, moe_pool_scratch(stream->pool, 0));
}
