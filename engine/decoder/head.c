/* The output end of the decoder: final norm, logits chunk by chunk, cross-entropy; no [T, V] matrix is ever stored. */
#include "engine/base/clock.h"
#include "engine/decoder/decoder_private.h"

static const float *head_w(const decoder *d)
{
    const dense_part *p = d->c.dense;
    return d->c.spec->tied ? p->w + p->embed + p->embed_layout.table : p->w + p->head + p->head_layout.lm_head;
}

static float *head_g(const decoder *d)
{
    const dense_part *p = d->c.dense;
    return d->c.spec->tied ? p->g + p->embed + p->embed_layout.table : p->g + p->head + p->head_layout.lm_head;
}

/* Normed rows into d->xn and their logits (padded rows) into d->logits. */
static moe_err chunk_logits(decoder *d, int64_t first, int64_t n, matmul_args *a)
{
    const dense_part *p = d->c.dense;
    const model_spec *s = d->c.spec;
    const size_t at = (size_t)first * (size_t)s->D;
    TRY(norm_forward(d, d->xn + at, d->x + at, p->w + p->head + p->head_layout.norm, n));
    *a = (matmul_args){.y = d->logits, .ldy = (size_t)panel_pad(s->V), .x = d->xn + at, .ldx = (size_t)s->D, .N = s->V, .K = s->D};
    return matmul_one(d, d->c.be->matmul_forward, *a, head_w(d), NULL, n);
}

static moe_err chunk_backward(decoder *d, int64_t first, int64_t n, matmul_args a)
{
    const dense_part *p = d->c.dense;
    const size_t at = (size_t)first * (size_t)d->c.spec->D;
    a.accumulate = true;
    TRY(matmul_one(d, d->c.be->matmul_dw, a, NULL, head_g(d), n));
    a.x = d->dx + at;
    a.accumulate = false;
    TRY(matmul_one(d, d->c.be->matmul_dx, a, head_w(d), NULL, n));
    return norm_backward(d, d->dx + at, p->g + p->head + p->head_layout.norm, d->dx + at, d->x + at,
                         p->w + p->head + p->head_layout.norm, n, false);
}

moe_err decoder_head(decoder *d, const int32_t *targets, float scale, double *loss_sum)
{
    const double t0 = moe_seconds();
    for (int64_t first = 0; first < d->T; first += d->head_chunk) {
        const int64_t n = d->T - first < d->head_chunk ? d->T - first : d->head_chunk;
        matmul_args a;
        TRY(decoder_stopped(d));
        TRY(chunk_logits(d, first, n, &a));
        const cross_entropy_args ce = {
            .logits = d->logits, .loss = d->token_loss, .target = targets + first, .ld = a.ldy, .T = n, .V = d->c.spec->V, .scale = scale,
        };
        TRY(d->c.be->cross_entropy(&ce, d->c.stream));
        for (int64_t t = 0; t < n; t++)
            *loss_sum += (double)d->token_loss[t];
        if (scale != 0)
            TRY(chunk_backward(d, first, n, a));
    }
    d->times.head += moe_seconds() - t0;
    return MOE_OK;
}

moe_err decoder_logits(decoder *d, int64_t first, int64_t n, float *logits)
{
    const int V = d->c.spec->V;
    for (int64_t at = 0; at < n; at += d->head_chunk) {
        const int64_t m = n - at < d->head_chunk ? n - at : d->head_chunk;
        matmul_args a;
        TRY(chunk_logits(d, first + at, m, &a));
        for (int64_t t = 0; t < m; t++)
            for (int v = 0; v < V; v++)
                logits[(size_t)(at + t) * (size_t)V + (size_t)v] = d->logits[(size_t)t * a.ldy + (size_t)v];
    }
    return MOE_OK;
}
