/* The decoder's buffers and its passes, layer by layer; what happens inside a layer is in attention_block.c, ffn_block.c and experts/. */
#include <stdlib.h>
#include <string.h>

#include "engine/base/carve.h"
#include "engine/base/clock.h"
#include "engine/decoder/decoder_private.h"
#include "memory/budget.h"

size_t piece_block_layout(piece_block *b, char *base, const decoder *d, int64_t n)
{
    const model_spec *s = d->c.spec;
    const size_t T = (size_t)n;
    carve c = {base, 0};
    b->x_in = carve_bytes(&c, T * (size_t)s->D * sizeof(float));
    b->qkv = carve_bytes(&c, T * (size_t)d->QKV * sizeof(float));
    b->o = carve_bytes(&c, T * (size_t)s->H * (size_t)s->hd * sizeof(float));
    b->lse = carve_bytes(&c, T * (size_t)s->H * sizeof(float));
    return c.used;
}

static int widest_ffn(const model_spec *s)
{
    int widest = 0;
    for (int l = 0; l < s->L; l++)
        widest = layer_ffn_width(s, l) > widest ? layer_ffn_width(s, l) : widest;
    return widest;
}

static void decoder_dims(decoder *d, const decoder_config *c)
{
    const model_spec *s = c->spec;
    *d = (decoder){.c = *c};
    d->q_pad = (int)panel_pad((int64_t)s->H * s->hd);
    d->kv_pad = (int)panel_pad((int64_t)s->Hkv * s->hd);
    d->QKV = d->q_pad + 2 * d->kv_pad;
    d->pieces = (int)((c->max_tokens + c->piece_tokens - 1) / c->piece_tokens);
    const int64_t fit = c->logits_bytes / ((int64_t)panel_pad(s->V) * 4) / 16 * 16;
    d->head_chunk = fit < 64 ? 64 : fit > 1024 ? 1024 : fit;
    if (d->head_chunk > c->max_tokens)
        d->head_chunk = c->max_tokens;
}

/* Working buffers: the same lines measure (base NULL) and point. */
static size_t decoder_layout(decoder *d, char *base)
{
    const model_spec *s = d->c.spec;
    const size_t T = (size_t)d->c.max_tokens, P = (size_t)d->c.piece_tokens, D = (size_t)s->D, f = sizeof(float);
    const size_t ffn = (size_t)widest_ffn(s), O = (size_t)s->H * (size_t)s->hd;
    const size_t wide = ffn > O ? (ffn > D ? ffn : D) : (O > D ? O : D);
    const size_t blocks = (size_t)s->L * (size_t)d->pieces * sizeof(stash_id);
    carve c = {base, 0};
    d->x = carve_bytes(&c, T * D * f);
    d->xn = carve_bytes(&c, T * D * f);
    d->dx = d->c.stash != NULL ? carve_bytes(&c, T * D * f) : NULL;
    d->mid = d->c.stash != NULL ? carve_bytes(&c, T * D * f) : NULL;
    d->qkv = carve_bytes(&c, P * (size_t)d->QKV * f);
    d->raw = carve_bytes(&c, P * (size_t)d->QKV * f);
    d->wide = carve_bytes(&c, P * wide * f);
    d->wide2 = carve_bytes(&c, P * wide * f);
    d->a = carve_bytes(&c, P * 2 * ffn * f);
    d->inv = carve_bytes(&c, (T > P * (size_t)s->H ? T : P * (size_t)s->H) * f);
    d->lse = carve_bytes(&c, P * (size_t)s->H * f);
    d->logits = carve_bytes(&c, (size_t)d->head_chunk * (size_t)panel_pad(s->V) * f);
    d->token_loss = carve_bytes(&c, (size_t)d->head_chunk * f);
    d->gate = carve_bytes(&c, 3 * P * f);
    d->identity = carve_bytes(&c, P * sizeof *d->identity);
    d->mid_block = carve_bytes(&c, (size_t)s->L * sizeof(stash_id));
    d->attn_block = carve_bytes(&c, blocks);
    d->ffn_block = carve_bytes(&c, blocks);
    return c.used;
}

static moe_config moe_config_of(const decoder_config *c)
{
    return (moe_config){
        .be = c->be, .stream = c->stream, .spec = c->spec, .tier = c->tier, .stash = c->stash, .log = c->log, .balance = c->balance,
        .stop = c->stop, .max_tokens = c->max_tokens, .chunk = c->expert_rows, .bf16_moments = c->bf16_moments,
        .bf16_weights = c->bf16_weights, .seed = c->seed,
    };
}

size_t decoder_bytes(const decoder_config *c)
{
    decoder d;
    decoder_dims(&d, c);
    const moe_config m = moe_config_of(c);
    return decoder_layout(&d, NULL) + (spec_moe_layers(c->spec) > 0 ? moe_layers_bytes(&m) : 0);
}

static uint64_t block_pad(uint64_t bytes) { return (bytes + IO_ALIGN - 1) / IO_ALIGN * IO_ALIGN; }

uint64_t decoder_stash_bytes(const decoder_config *c, int64_t tokens, uint64_t *largest)
{
    decoder d;
    decoder_dims(&d, c);
    const model_spec *s = c->spec;
    piece_block b;
    const uint64_t mid = block_pad((uint64_t)tokens * (uint64_t)s->D * 4);
    const uint64_t pieces = (uint64_t)((tokens + c->piece_tokens - 1) / c->piece_tokens);
    const uint64_t attn = block_pad(piece_block_layout(&b, NULL, &d, c->piece_tokens));
    const uint64_t ffn = block_pad((uint64_t)c->piece_tokens * 2 * (uint64_t)widest_ffn(s) * 4);
    const uint64_t routing = block_pad((uint64_t)tokens * ((uint64_t)s->E + 5 * (uint64_t)s->K + 1) * 4 + ((uint64_t)s->E + 64) * 4 + 1024);
    const uint64_t row = 2 * (uint64_t)panel_pad(s->F) * 4, rows = (uint64_t)tokens * (uint64_t)s->K;
    const uint64_t chunk_rows = (uint64_t)(c->expert_rows < tokens ? c->expert_rows : tokens);
    /* every expert's last chunk may be partly filled: one page of padding each */
    const uint64_t experts = rows * row + ((uint64_t)s->E + rows / (chunk_rows ? chunk_rows : 1) + 1) * IO_ALIGN;
    uint64_t total = 0; /* one layer is below 2^60 bytes; 2^62 is more than anybody has */
    for (int l = 0; l < s->L && total < (uint64_t)1 << 62; l++)
        total += mid + pieces * (attn + (layer_ffn_width(s, l) > 0 ? ffn : 0)) + (s->moe_layer[l] ? routing + experts : 0);
    *largest = mid;
    const uint64_t others[] = {attn, ffn, routing, block_pad(chunk_rows * row)};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        *largest = others[i] > *largest ? others[i] : *largest;
    return total;
}

moe_err decoder_open(decoder *d, const decoder_config *c)
{
    moe_err rc;
    decoder_dims(d, c);
    TRY(budget_alloc(&d->memory, decoder_layout(d, NULL), "decoder scratch"));
    decoder_layout(d, d->memory);
    for (int64_t i = 0; i < c->piece_tokens; i++)
        d->identity[i] = (int32_t)i;
    const moe_config m = moe_config_of(c);
    if (spec_moe_layers(c->spec) > 0)
        TRY_GOTO(moe_layers_open(&d->moe, &m), rc, fail);
    return MOE_OK;
fail:
    decoder_close(d);
    return rc;
}

void decoder_close(decoder *d)
{
    moe_layers_close(&d->moe);
    budget_free(d->memory);
    *d = (decoder){0};
}

const float *layer_w(const decoder *d, int layer, int64_t offset)
{
    return offset < 0 ? NULL : d->c.dense->w + d->c.dense->layer[layer] + offset;
}

float *layer_g(const decoder *d, int layer, int64_t offset)
{
    return offset < 0 || d->c.dense->g == NULL ? NULL : d->c.dense->g + d->c.dense->layer[layer] + offset;
}

moe_err matmul_one(decoder *d, moe_err (*fn)(const matmul_args *, moe_stream *), matmul_args a, const float *w, float *dw, int64_t rows)
{
    const int32_t offset[2] = {0, (int32_t)rows};
    a.w = &w;
    a.dw = &dw;
    a.offset = offset;
    a.G = 1;
    return fn(&a, d->c.stream);
}

static rmsnorm_args whole_rows(const decoder *d, const float *x, const float *gain, int64_t rows)
{
    const int D = d->c.spec->D;
    return (rmsnorm_args){
        .inv = d->inv, .x = x, .gain = gain, .ldx = (size_t)D, .ldy = (size_t)D, .T = rows, .heads = 1, .D = D, .eps = d->c.spec->rms_eps,
    };
}

moe_err norm_forward(decoder *d, float *y, const float *x, const float *gain, int64_t rows)
{
    rmsnorm_args a = whole_rows(d, x, gain, rows);
    a.y = y;
    return d->c.be->rmsnorm_forward(&a, d->c.stream);
}

/* The reciprocals in d->inv are those of the norm_forward over the same rows just before. */
moe_err norm_backward(decoder *d, float *dx, float *dgain, const float *dy, const float *x, const float *gain, int64_t rows, bool accumulate)
{
    rmsnorm_args a = whole_rows(d, x, gain, rows);
    a.dx = dx;
    a.dgain = dgain;
    a.dy = dy;
    a.accumulate = accumulate;
    return d->c.be->rmsnorm_backward(&a, d->c.stream);
}

enum { COPY_FLOATS = 1 << 16 }; /* a thread copies this much at a time */

typedef struct copy_args {
    float *to;
    const float *from;
    size_t floats;
} copy_args;

static void copy_pieces(void *ctx, int64_t begin, int64_t end, int worker)
{
    const copy_args *a = ctx;
    const size_t first = (size_t)begin * COPY_FLOATS, past = (size_t)end * COPY_FLOATS;
    (void)worker;
    memcpy(a->to + first, a->from + first, ((past < a->floats ? past : a->floats) - first) * sizeof *a->to);
}

/* Rows of the residual stream, by all threads: one alone does not fill the memory bus. */
static void copy_stream(decoder *d, float *to, const float *from, int64_t rows)
{
    copy_args a = {to, from, (size_t)rows * (size_t)d->c.spec->D};
    moe_pool_for(d->c.stream->pool, (int64_t)((a.floats + COPY_FLOATS - 1) / COPY_FLOATS), 1, copy_pieces, &a);
}

static int64_t piece_length(const decoder *d, int j)
{
    const int64_t left = d->T - (int64_t)j * d->c.piece_tokens;
    return left < d->c.piece_tokens ? left : d->c.piece_tokens;
}

static int pieces_now(const decoder *d) { return (int)((d->T + d->c.piece_tokens - 1) / d->c.piece_tokens); }

static float *piece_of(const decoder *d, float *x, int j) { return x + (size_t)j * (size_t)d->c.piece_tokens * (size_t)d->c.spec->D; }

static router_weights router_of(const decoder *d, int layer)
{
    const dense_layout *lay = &d->c.dense->layout[layer];
    return (router_weights){layer_w(d, layer, lay->router), layer_w(d, layer, lay->router_bias), layer_g(d, layer, lay->router)};
}

moe_err decoder_stopped(const decoder *d)
{
    return d->c.stop != NULL && *d->c.stop ? moe_fail(MOE_E_TEMP, "stopped by a signal") : MOE_OK;
}

/* Attention of every piece; the residual stream d->x goes on in place. Last piece first: backward walks the tokens in order. */
static moe_err attention_forward_all(decoder *d, int layer, bool keep)
{
    for (int j = pieces_now(d) - 1; j >= 0; j--) {
        const int64_t n = piece_length(d, j);
        float *x = piece_of(d, d->x, j);
        piece_block b = {.x_in = x, .qkv = d->raw, .o = d->wide, .lse = d->lse};
        stash_id *id = &d->attn_block[(size_t)layer * (size_t)d->pieces + (size_t)j];
        TRY(decoder_stopped(d));
        if (keep) {
            void *block;
            TRY(stash_new(d->c.stash, piece_block_layout(&b, NULL, d, n), id, &block));
            piece_block_layout(&b, block, d, n);
            copy_stream(d, b.x_in, x, n);
        }
        b.x = x;
        const moe_err rc = attention_block_forward(d, layer, &b, piece_of(d, d->xn, j), n);
        if (keep)
            stash_seal(d->c.stash, *id);
        TRY(rc);
    }
    return MOE_OK;
}

static moe_err ffn_forward_all(decoder *d, int layer, bool keep)
{
    const int Fp = layer_ffn_width(d->c.spec, layer);
    for (int j = pieces_now(d) - 1; j >= 0 && Fp > 0; j--) {
        const int64_t n = piece_length(d, j);
        float *a = d->a;
        stash_id *id = &d->ffn_block[(size_t)layer * (size_t)d->pieces + (size_t)j];
        void *block;
        TRY(decoder_stopped(d));
        if (keep) {
            TRY(stash_new(d->c.stash, (size_t)n * 2 * (size_t)Fp * sizeof *a, id, &block));
            a = block;
        }
        const moe_err rc = ffn_block_forward(d, layer, a, piece_of(d, d->x, j), piece_of(d, d->xn, j), n);
        if (keep)
            stash_seal(d->c.stash, *id);
        TRY(rc);
    }
    return MOE_OK;
}

static size_t stream_bytes(const decoder *d) { return (size_t)d->T * (size_t)d->c.spec->D * sizeof(float); }

static moe_err layer_forward(decoder *d, int layer, bool keep)
{
    const model_spec *s = d->c.spec;
    const double t0 = moe_seconds();
    TRY(attention_forward_all(d, layer, keep));
    TRY(norm_forward(d, d->xn, d->x, layer_w(d, layer, d->c.dense->layout[layer].ffn_norm), d->T));
    if (keep)
        copy_stream(d, d->mid, d->x, d->T);
    const double t1 = moe_seconds();
    d->times.attention += t1 - t0;
    TRY(ffn_forward_all(d, layer, keep));
    d->times.ffn += moe_seconds() - t1;
    if (s->moe_layer[layer])
        TRY(moe_forward(&d->moe, spec_moe_index(s, layer), router_of(d, layer), d->x, d->xn, d->T, d->first_token, keep));
    if (!keep)
        return MOE_OK;
    void *block;
    TRY(stash_new(d->c.stash, stream_bytes(d), &d->mid_block[layer], &block));
    copy_stream(d, block, d->mid, d->T);
    stash_seal(d->c.stash, d->mid_block[layer]);
    return MOE_OK;
}

static moe_err embed(decoder *d, bool backward)
{
    const dense_part *dp = d->c.dense;
    const embedding_args a = {
        .x = backward ? d->dx : d->x, .table = dp->w + dp->embed + dp->embed_layout.table,
        .dtable = !backward ? NULL : (dp->tied_g != NULL ? dp->tied_g : dp->g + dp->embed) + dp->embed_layout.table,
        .id = d->tokens, .T = d->T, .V = d->c.spec->V, .D = d->c.spec->D, .panels = d->c.spec->tied,
    };
    return (backward ? d->c.be->embedding_backward : d->c.be->embedding_forward)(&a, d->c.stream);
}

moe_err decoder_forward(decoder *d, const int32_t *tokens, int64_t T, int64_t first_token, bool keep)
{
    if (T > d->c.max_tokens || T % d->c.seq_len != 0)
        return moe_fail(MOE_E_CONFIG, "decoder: a group of %lld tokens; expected whole windows of %d, at most %lld", (long long)T,
                        d->c.seq_len, (long long)d->c.max_tokens);
    d->tokens = tokens;
    d->T = T;
    d->first_token = first_token;
    const double t0 = moe_seconds();
    TRY(embed(d, false));
    d->times.embedding += moe_seconds() - t0;
    for (int l = 0; l < d->c.spec->L; l++)
        TRY(layer_forward(d, l, keep));
    return MOE_OK;
}

static moe_err attention_backward_all(decoder *d, int layer)
{
    for (int j = 0; j < pieces_now(d); j++) {
        const int64_t n = piece_length(d, j);
        const stash_id id = d->attn_block[(size_t)layer * (size_t)d->pieces + (size_t)j];
        piece_block b;
        void *block;
        TRY(decoder_stopped(d));
        TRY(stash_take(d->c.stash, id, &block));
        piece_block_layout(&b, block, d, n);
        const moe_err rc = attention_block_backward(d, layer, &b, piece_of(d, d->dx, j), piece_of(d, d->xn, j), n);
        stash_free(d->c.stash, id);
        TRY(rc);
    }
    return MOE_OK;
}

/* Adds to (MoE layer) or sets (dense layer) the gradient of the normed input, d->x. */
static moe_err ffn_backward_all(decoder *d, int layer)
{
    for (int j = 0; j < pieces_now(d) && layer_ffn_width(d->c.spec, layer) > 0; j++) {
        const stash_id id = d->ffn_block[(size_t)layer * (size_t)d->pieces + (size_t)j];
        void *a;
        TRY(decoder_stopped(d));
        TRY(stash_take(d->c.stash, id, &a));
        const moe_err rc = ffn_block_backward(d, layer, a, piece_of(d, d->x, j), piece_of(d, d->dx, j), piece_of(d, d->xn, j),
                                              piece_length(d, j), d->c.spec->moe_layer[layer]);
        stash_free(d->c.stash, id);
        TRY(rc);
    }
    return MOE_OK;
}

static moe_err take_mid(decoder *d, int layer)
{
    void *block;
    TRY(stash_take(d->c.stash, d->mid_block[layer], &block));
    copy_stream(d, d->mid, block, d->T);
    stash_free(d->c.stash, d->mid_block[layer]);
    return MOE_OK;
}

static moe_err layer_backward(decoder *d, int layer, uint64_t step, const adamw_step *speculate)
{
    const dense_layout *lay = &d->c.dense->layout[layer];
    const float *gain = layer_w(d, layer, lay->ffn_norm);
    TRY(take_mid(d, layer));
    TRY(norm_forward(d, d->xn, d->mid, gain, d->T));
    if (d->c.spec->moe_layer[layer]) {
        const moe_backward_args a = {
            .dxn = d->x, .dy = d->dx, .xn = d->xn, .T = d->T, .first_token = d->first_token, .step = step, .speculate = speculate,
        };
        TRY(moe_backward(&d->moe, spec_moe_index(d->c.spec, layer), router_of(d, layer), &a));
    }
    const double t0 = moe_seconds();
    TRY(ffn_backward_all(d, layer));
    TRY(norm_backward(d, d->dx, layer_g(d, layer, lay->ffn_norm), d->x, d->mid, gain, d->T, true));
    const double t1 = moe_seconds();
    d->times.ffn += t1 - t0;
    TRY(attention_backward_all(d, layer));
    d->times.attention += moe_seconds() - t1;
    return MOE_OK;
}

moe_err decoder_backward(decoder *d, uint64_t step, const adamw_step *speculate)
{
    for (int l = d->c.spec->L - 1; l >= 0; l--)
        TRY(layer_backward(d, l, step, speculate));
    const double t0 = moe_seconds();
    TRY(embed(d, true));
    d->times.embedding += moe_seconds() - t0;
    return MOE_OK;
}

void decoder_abandon(decoder *d)
{
    if (d->c.stash != NULL)
        stash_reset(d->c.stash);
    if (spec_moe_layers(d->c.spec) > 0)
        moe_abandon(&d->moe);
}
