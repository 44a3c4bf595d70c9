/* One step: tokens of several sequences through all layers, and the logits that were asked for. Everything is checked before anything
 * changes; a sequence grows only when the step is done.
 * Owns nothing; works in the scratch of the engine. */
#include <stdio.h>
#include <string.h>

#include "engine/base/clock.h"
#include "engine/serve/serve_private.h"

static moe_err check_span(const serve *s, const serve_span *span, int i)
{
    const serve_span *x = &span[i];
    if (x->sequence < 0 || x->sequence >= s->kv.sequences || !s->kv.sequence[x->sequence].used)
        return moe_fail(MOE_E_CONFIG, "span %d: sequence %d is not running", i, x->sequence);
    if (s->kv.sequence[x->sequence].broken)
        return moe_fail(MOE_E_CONFIG, "span %d: sequence %d ended with an error", i, x->sequence);
    for (int j = 0; j < i; j++)
        if (span[j].sequence == x->sequence)
            return moe_fail(MOE_E_CONFIG, "spans %d and %d: both belong to sequence %d; expected one span of a sequence", j, i, x->sequence);
    const int64_t length = s->kv.sequence[x->sequence].length;
    if (x->n < 1)
        return moe_fail(MOE_E_CONFIG, "span %d: %d tokens; expected at least 1", i, x->n);
    if (x->n > s->c.max_context - length)
        return moe_fail(MOE_E_CONFIG, "sequence %d: %lld tokens and %d more do not fit into a context of %lld", x->sequence, (long long)length,
                        x->n, (long long)s->c.max_context);
    for (int t = 0; t < x->n; t++)
        if (x->token[t] < 0 || x->token[t] >= s->spec->V)
            return moe_fail(MOE_E_DATA, "sequence %d, token %lld: id %d is not in the vocabulary of %d", x->sequence, (long long)(length + t),
                            x->token[t], s->spec->V);
    return MOE_OK;
}

static moe_err check_spans(const serve *s, const serve_span *span, int n, int64_t *T)
{
    *T = 0;
    for (int i = 0; i < n; i++) {
        TRY(check_span(s, span, i));
        *T += span[i].n;
    }
    if (*T > s->c.chunk)
        return moe_fail(MOE_E_CONFIG, "a step of %lld tokens: the engine was opened for %d", (long long)*T, s->c.chunk);
    return MOE_OK;
}

static void rope_rows(void *ctx, int64_t begin, int64_t end, int worker)
{
    const serve *s = ctx;
    const int rotary = s->spec->rotary;
    const float scale = spec_rope_scale(s->spec);
    const size_t half = (size_t)rotary / 2;
    float *cosine = s->w.rope, *sine = s->w.rope + half * (size_t)s->w.T;
    (void)worker;
    for (size_t t = (size_t)begin; t < (size_t)end; t++)
        rope_row(cosine + t * half, sine + t * half, s->w.pos[t], rotary, s->inv_freq, scale);
}

static void embed_rows(void *ctx, int64_t begin, int64_t end, int worker)
{
    const serve *s = ctx;
    const int64_t D = s->spec->D;
    const serve_dense *d = &s->dense;
    (void)worker;
    for (int64_t t = begin; t < end; t++) {
        float *x = s->w.x + t * D;
        if (s->spec->tied)
            qpanel_row(x, d->embed, d->embed_format, s->w.token[t], s->spec->V, D);
        else
            numfmt_to_f32(x, (const char *)d->embed + (size_t)s->w.token[t] * numfmt_row_bytes(d->embed_format, D), d->embed_format, D);
    }
}

static void begin(serve *s, serve_span *span, int n, int64_t T, int *wanted)
{
    serve_scratch *w = &s->w;
    int64_t t = 0;
    *wanted = 0;
    w->T = T;
    for (int i = 0; i < n; i++) {
        const int64_t length = s->kv.sequence[span[i].sequence].length;
        span[i].rc = MOE_OK;
        span[i].text[0] = '\0';
        w->dead[i] = false;
        kv_extend(&s->kv, span[i].sequence, span[i].n);
        for (int j = 0; j < span[i].n; j++, t++) {
            w->token[t] = span[i].token[j];
            w->pos[t] = (int32_t)(length + j);
            w->sequence[t] = span[i].sequence;
            w->span_of[t] = i;
            w->identity[t] = (int32_t)t;
            if (span[i].want == SERVE_ALL || (span[i].want == SERVE_LAST && j == span[i].n - 1))
                w->want[(*wanted)++] = (int32_t)t;
        }
    }
    moe_pool_for(s->c.stream->pool, T, 16, rope_rows, s);
    moe_pool_for(s->c.stream->pool, T, 16, embed_rows, s);
}

static moe_err head(serve *s, int wanted, float *logits)
{
    const serve_scratch *w = &s->w;
    const int D = s->spec->D;
    if (wanted == 0)
        return MOE_OK;
    const gather_args g = {.dst = w->xn, .src = w->x, .row_token = w->want, .ld = (size_t)D, .n = wanted, .D = D};
    TRY(s->c.be->gather(&g, s->c.stream));
    TRY(serve_norm(s, w->xn, w->xn, s->dense.final_norm, wanted));
    return serve_one_product(s, &s->dense.head, logits, (size_t)s->spec->V, w->xn, (size_t)D, wanted, false);
}

static bool all_dead(const serve *s, int spans)
{
    for (int i = 0; i < spans; i++)
        if (!s->w.dead[i])
            return false;
    return true;
}

static moe_err run(serve *s, serve_span *span, int n, int64_t T, float *logits)
{
    int wanted;
    begin(s, span, n, T, &wanted);
    for (int layer = 0; layer < s->spec->L; layer++) {
        const serve_layer *l = &s->dense.layer[layer];
        TRY(serve_attention(s, layer, T));
        TRY(serve_norm(s, s->w.xn, s->w.x, l->ffn_norm, T));
        TRY(l->moe >= 0 ? serve_experts(s, l, span, T) : serve_dense_ffn(s, l, T));
        if (all_dead(s, n))
            return MOE_OK;
    }
    return head(s, wanted, logits);
}

moe_err serve_step(serve *s, serve_span *span, int n, float *logits)
{
    const double t0 = moe_seconds();
    int64_t T;
    TRY(check_spans(s, span, n, &T));
    if (T == 0)
        return MOE_OK;
    TRY(run(s, span, n, T, logits));
    for (int i = 0; i < n; i++) {
        if (s->w.dead[i])
            s->kv.sequence[span[i].sequence].broken = true;
        else
            kv_commit(&s->kv, span[i].sequence, span[i].token, span[i].n);
    }
    s->tokens += (uint64_t)T;
    s->step_seconds += moe_seconds() - t0;
    return MOE_OK;
}
