/* What the engine needs at least, and what is left for experts. Sizes only; nothing is allocated here.
 * Rule: the plan takes 95 % of the limit; the rest is for what nobody can count. */
#include "engine/serve/serve_private.h"

#include "engine/base/carve.h"
#include "engine/base/text.h"
#include "memory/budget.h"

enum {
    OVERHEAD_BASE = 16 << 20,    /* bytes: what libraries, rings and libc still take after the engine is open */
    OVERHEAD_THREAD = 256 << 10, /* bytes of stack and arenas a thread really touches */
    ROWS_LEAST = 512,            /* rows of a batch of experts: enough for a product, little enough for the disk */
};

static int widest_ffn(const model_spec *m)
{
    int widest = 0;
    for (int l = 0; l < m->L; l++) {
        const int F = m->moe_layer[l] ? m->F_shared : m->F_dense;
        widest = F > widest ? F : widest;
    }
    return (int)panel_pad(widest);
}

static void layout_experts(serve *s, carve *c, size_t T)
{
    const model_spec *m = s->spec;
    serve_scratch *w = &s->w;
    if (spec_moe_layers(m) == 0)
        return;
    const size_t E = (size_t)m->E, N = T * (size_t)m->K, D = (size_t)m->D, Fp = (size_t)s->Fp;
    const size_t R = N < ROWS_LEAST ? N : T > ROWS_LEAST ? T : ROWS_LEAST;
    s->expert_rows = (int64_t)R;
    w->logits = carve_bytes(c, T * E * sizeof *w->logits);
    w->probs = carve_bytes(c, T * E * sizeof *w->probs);
    w->lse = carve_bytes(c, T * sizeof *w->lse);
    w->weights = carve_bytes(c, N * sizeof *w->weights);
    w->ids = carve_bytes(c, N * sizeof *w->ids);
    w->row_of = carve_bytes(c, N * sizeof *w->row_of);
    w->row_token = carve_bytes(c, N * sizeof *w->row_token);
    w->row_slot = carve_bytes(c, N * sizeof *w->row_slot);
    w->offset = carve_bytes(c, (E + 1) * sizeof *w->offset);
    w->rows = carve_bytes(c, N * D * sizeof *w->rows);
    w->xg = carve_bytes(c, R * D * sizeof *w->xg);
    w->a = carve_bytes(c, R * 2 * Fp * sizeof *w->a);
    w->h = carve_bytes(c, R * Fp * sizeof *w->h);
    w->batch_token = carve_bytes(c, R * sizeof *w->batch_token);
    w->union_of = carve_bytes(c, E * sizeof *w->union_of);
    w->wanted_id = carve_bytes(c, E * sizeof *w->wanted_id);
    w->lease = carve_bytes(c, E * sizeof *w->lease);
    w->batch_offset = carve_bytes(c, (E + 1) * sizeof *w->batch_offset);
    w->batch_expert = carve_bytes(c, E * sizeof *w->batch_expert);
    for (int i = 0; i < 3; i++)
        w->batch_w[i] = carve_bytes(c, E * sizeof *w->batch_w[i]);
}

static void layout_latent(serve *s, carve *c, size_t T)
{
    const model_spec *m = s->spec;
    serve_scratch *w = &s->w;
    if (m->kv_lora_rank == 0)
        return;
    const size_t H = (size_t)m->H, rows = H * (T < LATENT_TOKENS ? T : LATENT_TOKENS), f = sizeof(float);
    const int widest = spec_nope(m) > m->v_head_dim ? spec_nope(m) : m->v_head_dim;
    w->q_a = carve_bytes(c, T * (size_t)m->q_lora_rank * f);
    w->q_latent = carve_bytes(c, rows * (size_t)(m->kv_lora_rank + m->rotary) * f);
    w->o_latent = carve_bytes(c, rows * (size_t)m->kv_lora_rank * f);
    w->heads = carve_bytes(c, rows * (size_t)widest * f);
    w->head_offset = carve_bytes(c, (H + 1) * sizeof *w->head_offset);
    w->head_panels = carve_bytes(c, H * sizeof *w->head_panels);
}

size_t serve_scratch_layout(serve *s, char *base)
{
    const model_spec *m = s->spec;
    serve_scratch *w = &s->w;
    const size_t T = (size_t)s->c.chunk, D = (size_t)m->D, O = (size_t)m->H * (size_t)m->hd;
    const kv_shape kept = spec_kv(m);
    const size_t KV = (size_t)kept.heads * (size_t)kept.key;
    const size_t ffn = (size_t)widest_ffn(m), f = sizeof(float);
    carve c = {base, 0};
    s->Fp = (int)panel_pad(m->F);
    w->x = carve_bytes(&c, T * D * f);
    w->xn = carve_bytes(&c, T * D * f);
    w->q = carve_bytes(&c, T * O * f);
    w->k = carve_bytes(&c, T * KV * f);
    w->v = carve_bytes(&c, kept.value > 0 ? 0 : T * KV * f);
    w->o = carve_bytes(&c, T * (size_t)m->H * (size_t)spec_value(m) * f);
    layout_latent(s, &c, T);
    w->rope = carve_bytes(&c, T * (size_t)m->hd * f);
    w->wide = carve_bytes(&c, ffn > 0 ? T * (2 * ffn > D ? 2 * ffn : D) * f : 0);
    w->wide2 = carve_bytes(&c, T * ffn * f);
    w->switches = carve_bytes(&c, 2 * T * f);
    w->token = carve_bytes(&c, T * sizeof *w->token);
    w->pos = carve_bytes(&c, T * sizeof *w->pos);
    w->sequence = carve_bytes(&c, T * sizeof *w->sequence);
    w->span_of = carve_bytes(&c, T * sizeof *w->span_of);
    w->identity = carve_bytes(&c, T * sizeof *w->identity);
    w->want = carve_bytes(&c, T * sizeof *w->want);
    w->page = carve_bytes(&c, T * sizeof *w->page);
    w->tables = carve_bytes(&c, T * sizeof *w->tables);
    w->dead = carve_bytes(&c, (size_t)s->c.max_sequences * sizeof *w->dead);
    s->inv_freq = carve_bytes(&c, (size_t)m->hd / 2 * f);
    layout_experts(s, &c, T);
    return c.used;
}

moe_err serve_plan(serve *s, uint64_t *experts)
{
    const int threads = moe_pool_threads(s->c.stream->pool), moe = spec_moe_layers(s->spec);
    const uint64_t usable = s->c.host_bytes / 100 * 95;
    const uint64_t scratch = serve_scratch_layout(s, NULL) + (uint64_t)threads * KERNEL_SCRATCH_BYTES, kv = kv_pool_bytes(&s->c, s->spec);
    const uint64_t overhead = budget_rss() + budget_used() + OVERHEAD_BASE + (uint64_t)threads * OVERHEAD_THREAD;
    const expert_cache_config cache = serve_cache_config(s, 0);
    const uint64_t least = moe > 0 ? expert_cache_least_bytes(&cache) : 0;
    TRY(serve_weights_measure(s, &s->dense_bytes));
    const uint64_t fixed = overhead + s->dense_bytes + kv + scratch;
    s->least_bytes = (fixed + least) / 95 * 100 + 100;
    if (fixed + least > usable) {
        char all[TEXT_NUMBER], given[TEXT_NUMBER], d[TEXT_NUMBER], k[TEXT_NUMBER], w[TEXT_NUMBER], e[TEXT_NUMBER], o[TEXT_NUMBER];
        return moe_fail(MOE_E_CONFIG,
                        "%s does not fit into %s of host memory: at least %s is needed = dense weights %s + KV cache of %d x %lld tokens %s + "
                        "working buffers of %d tokens %s + two experts %s + program %s, plus 5 %%. Give more memory, or fewer or shorter sequences",
                        model_name(s->c.model), text_bytes(given, (double)s->c.host_bytes), text_bytes(all, (double)s->least_bytes),
                        text_bytes(d, (double)s->dense_bytes), s->c.max_sequences, (long long)s->c.max_context, text_bytes(k, (double)kv),
                        s->c.chunk, text_bytes(w, (double)scratch), text_bytes(e, (double)least), text_bytes(o, (double)overhead));
    }
    *experts = usable - fixed;
    return MOE_OK;
}
