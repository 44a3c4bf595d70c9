/* Text from a run: one token at a time over a cache of rotated keys and values. Every new token runs only its own row through the
 * products; attention is recomputed over the cached rows with the training kernel, so the numbers are those of a whole forward pass. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/carve.h"
#include "engine/decoder/decoder_private.h"
#include "engine/train/commands.h"
#include "kernels/math.h"
#include "memory/budget.h"
#include "models/text/tokenizer.h"

typedef struct sampler {
    trainer *t;
    int64_t capacity;   /* tokens of prompt and answer together */
    int64_t n;          /* tokens so far                        */
    float *cache;       /* [L, capacity, QKV] q, k after norm and rope, v */
    float *table;       /* [2, 1, rotary/2] rope of one position */
    float *rope;        /* [2, capacity, rotary/2]              */
    float *o, *lse;     /* [capacity, H*hd], [capacity, H]      */
    float *x, *xn, *raw;/* one row each                         */
    float *logits;      /* [V]                                  */
    int *order;         /* [V] */
    void *memory;
} sampler;

static size_t sampler_layout(sampler *s, char *base)
{
    const decoder *d = &s->t->decoder;
    const model_spec *m = &s->t->config->model;
    const size_t n = (size_t)s->capacity, D = (size_t)m->D, V = (size_t)m->V, O = (size_t)m->H * (size_t)m->hd;
    carve c = {base, 0};
    s->cache = carve_bytes(&c, (size_t)m->L * n * (size_t)d->QKV * sizeof *s->cache);
    s->table = carve_bytes(&c, (size_t)m->rotary * sizeof *s->table);
    s->rope = carve_bytes(&c, n * (size_t)m->rotary * sizeof *s->rope);
    s->o = carve_bytes(&c, n * O * sizeof *s->o);
    s->lse = carve_bytes(&c, n * (size_t)m->H * sizeof *s->lse);
    s->x = carve_bytes(&c, D * sizeof *s->x);
    s->xn = carve_bytes(&c, D * sizeof *s->xn);
    s->raw = carve_bytes(&c, (size_t)d->QKV * sizeof *s->raw);
    s->logits = carve_bytes(&c, V * sizeof *s->logits);
    s->order = carve_bytes(&c, V * sizeof *s->order);
    return c.used;
}

static moe_err sampler_open(sampler *s, trainer *t, int64_t capacity)
{
    *s = (sampler){.t = t, .capacity = capacity};
    TRY(budget_alloc(&s->memory, sampler_layout(s, NULL), "sampling cache"));
    sampler_layout(s, s->memory);
    spec_rope_table(&t->config->model, (int)capacity, s->rope);
    return MOE_OK;
}

/* The one new row through the attention half of a layer; s->x is the residual stream. */
static moe_err attend(sampler *s, int layer)
{
    decoder *d = &s->t->decoder;
    const model_spec *m = &s->t->config->model;
    const size_t row = (size_t)d->QKV, half = (size_t)m->rotary / 2, O = (size_t)(m->H * m->hd);
    float *cache = s->cache + (size_t)layer * (size_t)s->capacity * row;
    TRY(norm_forward(d, s->xn, s->x, layer_w(d, layer, d->c.dense->layout[layer].attn_norm), 1));
    TRY(attention_project(d, layer, s->raw, s->xn, 1));
    memcpy(s->table, s->rope + (size_t)s->n * half, half * sizeof *s->table);
    memcpy(s->table + half, s->rope + (size_t)s->capacity * half + (size_t)s->n * half, half * sizeof *s->table);
    TRY(attention_rotate(d, layer, cache + (size_t)s->n * row, s->raw, s->table, 1, 1));
    const attention_args a = {
        .o = s->o, .lse = s->lse, .q = cache, .k = cache + d->q_pad, .v = cache + d->q_pad + d->kv_pad, .ldq = row, .ldk = row, .ldo = O,
        .B = 1, .S = (int)s->n + 1, .H = m->H, .Hkv = m->Hkv, .hd = m->hd, .scale = 1.0f / sqrtf((float)m->hd),
    };
    TRY(d->c.be->attention_forward(&a, d->c.stream));
    return attention_output(d, layer, s->x, s->o + (size_t)s->n * O, 1);
}

/* Feeds one token; the logits of the next one lie in s->logits. */
static moe_err feed(sampler *s, int32_t token)
{
    decoder *d = &s->t->decoder;
    const model_spec *m = &s->t->config->model;
    const dense_part *p = d->c.dense;
    const embedding_args e = {
        .x = s->x, .table = p->w + p->embed + p->embed_layout.table, .id = &token, .T = 1, .V = m->V, .D = m->D, .panels = m->tied,
    };
    TRY(d->c.be->embedding_forward(&e, d->c.stream));
    for (int l = 0; l < m->L; l++) {
        const dense_layout *lay = &p->layout[l];
        TRY(attend(s, l));
        TRY(norm_forward(d, s->xn, s->x, layer_w(d, l, lay->ffn_norm), 1));
        if (m->moe_layer[l]) {
            const router_weights r = {layer_w(d, l, lay->router), layer_w(d, l, lay->router_bias), NULL};
            TRY(moe_forward(&d->moe, spec_moe_index(m, l), r, s->x, s->xn, 1, 0, false));
        }
        if (layer_ffn_width(m, l) > 0)
            TRY(ffn_block_forward(d, l, d->a, s->x, s->xn, 1));
    }
    s->n++;
    d->T = 1;
    memcpy(d->x, s->x, (size_t)m->D * sizeof *s->x);
    return decoder_logits(d, 0, 1, s->logits);
}

static int by_logit(const void *a, const void *b, void *logits)
{
    const float x = ((const float *)logits)[*(const int *)a], y = ((const float *)logits)[*(const int *)b];
    return x > y ? -1 : x < y ? 1 : *(const int *)a - *(const int *)b;
}

/* Draws from softmax(logits / temperature), among the top_k largest when top_k > 0; temperature 0 takes the largest. */
static int32_t draw(sampler *s, const sample_options *o)
{
    const int V = s->t->config->model.V;
    for (int v = 0; v < V; v++)
        s->order[v] = v;
    qsort_r(s->order, (size_t)V, sizeof *s->order, by_logit, s->logits);
    if (o->temperature <= 0)
        return s->order[0];
    const int k = o->top_k > 0 && o->top_k < V ? o->top_k : V;
    const float top = s->logits[s->order[0]];
    double total = 0;
    for (int i = 0; i < k; i++)
        total += moe_exp((double)(s->logits[s->order[i]] - top) / o->temperature);
    double u = random_uniform((random_key){o->seed, UINT32_MAX, 0}, (uint64_t)s->n) * total;
    for (int i = 0; i < k; i++) {
        u -= moe_exp((double)(s->logits[s->order[i]] - top) / o->temperature);
        if (u < 0)
            return s->order[i];
    }
    return s->order[k - 1];
}

static moe_err emit(const tokenizer *tok, int32_t id, FILE *out)
{
    const char *bytes;
    size_t n;
    TRY(tokenizer_piece(tok, id, &bytes, &n));
    if (fwrite(bytes, 1, n, out) != n || fflush(out) != 0)
        return moe_fail(MOE_E_IO, "cannot write the sample");
    return MOE_OK;
}

static moe_err generate(sampler *s, const tokenizer *tok, const token_ids *prompt, const sample_options *o, FILE *out)
{
    for (size_t i = 0; i < prompt->n; i++) {
        TRY(feed(s, prompt->id[i]));
        TRY(emit(tok, prompt->id[i], out));
    }
    for (int64_t i = 0; i < o->tokens; i++) {
        const int32_t id = draw(s, o);
        if (id >= tokenizer_vocab(tok) || id == tokenizer_eos(tok))
            break;
        TRY(emit(tok, id, out));
        if (i + 1 < o->tokens)
            TRY(feed(s, id));
    }
    fputc('\n', out);
    return MOE_OK;
}

moe_err command_sample(trainer *t, const sample_options *o, FILE *out)
{
    tokenizer *tok = NULL;
    token_ids prompt = {0};
    sampler s = {0};
    moe_err rc;
    TRY_GOTO(tokenizer_open(&tok, t->config->data_path), rc, done);
    TRY_GOTO(tokenizer_encode(tok, o->prompt, strlen(o->prompt), false, &prompt), rc, done);
    if (prompt.n == 0)
        TRY_GOTO(moe_fail(MOE_E_USAGE, "--prompt: expected at least one token of text"), rc, done);
    for (size_t i = 0; i < prompt.n; i++)
        if (prompt.id[i] >= t->config->model.V)
            TRY_GOTO(moe_fail(MOE_E_DATA, "--prompt: token %d is not in the model's vocabulary of %d", prompt.id[i], t->config->model.V), rc, done);
    TRY_GOTO(sampler_open(&s, t, (int64_t)prompt.n + o->tokens), rc, done);
    rc = generate(&s, tok, &prompt, o, out);
done:
    budget_free(s.memory);
    free(prompt.id);
    tokenizer_close(tok);
    return rc;
}
