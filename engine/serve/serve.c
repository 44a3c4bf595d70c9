/* Opening and closing: the plan first, then the dense weights, the KV cache, the scratch; what is left goes to the experts. */
#include <stdlib.h>

#include "engine/base/clock.h"
#include "engine/serve/serve_private.h"
#include "memory/budget.h"

static moe_err check_config(const serve_config *c)
{
    const model_spec *m = model_spec_of(c->model);
    if (c->max_sequences < 1 || c->max_sequences > 1 << 16)
        return moe_fail(MOE_E_CONFIG, "sequences: expected 1 to %d, got %d", 1 << 16, c->max_sequences);
    if (c->chunk < 1 || c->chunk > 1 << 20 || (m->K > 0 && c->chunk > INT32_MAX / m->K))
        return moe_fail(MOE_E_CONFIG, "tokens of a step: expected 1 to %d, got %d", 1 << 20, c->chunk);
    if (c->max_context < 1 || c->max_context > (int64_t)1 << 30)
        return moe_fail(MOE_E_CONFIG, "context: expected 1 to %lld tokens, got %lld", 1LL << 30, (long long)c->max_context);
    if (c->max_context > INT32_MAX / c->max_sequences)
        return moe_fail(MOE_E_CONFIG, "%d sequences of %lld tokens are too many", c->max_sequences, (long long)c->max_context);
    if (c->kv != NUM_F32 && c->kv != NUM_BF16 && c->kv != NUM_Q8_0)
        return moe_fail(MOE_E_CONFIG, "KV cache: expected f32, bf16 or q8_0, got %s", numfmt_about(c->kv)->name);
    return MOE_OK;
}

static moe_err list_files(serve *s)
{
    const int n = model_files(s->c.model);
    s->path = calloc((size_t)n, sizeof *s->path);
    if (s->path == NULL)
        return moe_fail(MOE_E_OS, "out of memory");
    for (int f = 0; f < n; f++)
        s->path[f] = model_path(s->c.model, f);
    return MOE_OK;
}

/* Another model, or the same in other files, has other experts. */
static uint64_t fingerprint(const serve *s)
{
    const model_spec *m = s->spec;
    const uint64_t sizes[] = {(uint64_t)m->D, (uint64_t)m->L, (uint64_t)m->F, (uint64_t)m->E, (uint64_t)m->K, (uint64_t)m->V};
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        h = (h ^ sizes[i]) * 0x100000001b3u;
    for (int f = 0; f < model_files(s->c.model); f++)
        h = (h ^ model_file_bytes(s->c.model, f)) * 0x100000001b3u;
    return h;
}

static moe_err open_cache(serve *s, uint64_t bytes)
{
    if (spec_moe_layers(s->spec) == 0)
        return MOE_OK;
    const expert_cache_config cache = serve_cache_config(s, bytes);
    TRY(expert_cache_open(&s->cache, &cache));
    if (s->c.hot != NULL)
        (void)expert_cache_load_hot(s->cache, s->c.hot, fingerprint(s)); /* only speed */
    return MOE_OK;
}

moe_err serve_open(serve **out, const serve_config *c)
{
    const double t0 = moe_seconds();
    uint64_t experts = 0;
    moe_err rc;
    *out = NULL;
    TRY(check_config(c));
    serve *s = calloc(1, sizeof *s);
    if (s == NULL)
        return moe_fail(MOE_E_OS, "out of memory");
    s->c = *c;
    s->spec = model_spec_of(c->model);
    TRY_GOTO(list_files(s), rc, fail);
    TRY_GOTO(serve_weights_begin(s), rc, fail);
    TRY_GOTO(serve_experts_place(s), rc, fail);
    TRY_GOTO(serve_plan(s, &experts), rc, fail);
    TRY_GOTO(serve_weights_load(s), rc, fail);
    TRY_GOTO(kv_pool_open(&s->kv, c, s->spec), rc, fail);
    s->scratch_bytes = serve_scratch_layout(s, NULL);
    TRY_GOTO(budget_alloc(&s->scratch_memory, s->scratch_bytes, "working buffers"), rc, fail);
    serve_scratch_layout(s, s->scratch_memory);
    spec_rope_frequencies(s->spec, s->inv_freq);
    TRY_GOTO(open_cache(s, experts), rc, fail);
    s->open = true;
    s->open_seconds = moe_seconds() - t0;
    *out = s;
    return MOE_OK;
fail:
    serve_close(s);
    return rc;
}

/* Only speed: when it fails, the error that the caller may be carrying stays. */
static void save_hot(const serve *s)
{
    char text[MOE_ERROR_TEXT];
    if (!s->open || s->cache == NULL || s->c.hot == NULL)
        return;
    moe_error_take(text, sizeof text);
    const moe_err rc = expert_cache_save_hot(s->cache, s->c.hot, fingerprint(s));
    if (rc != MOE_OK)
        moe_error_set(rc, text);
}

void serve_close(serve *s)
{
    if (s == NULL)
        return;
    save_hot(s);
    expert_cache_close(s->cache);
    budget_free(s->scratch_memory);
    kv_pool_close(&s->kv);
    serve_weights_close(s);
    free(s->place);
    free(s->path);
    free(s);
}

void serve_get_stats(const serve *s, serve_stats *out)
{
    *out = (serve_stats){.dense_bytes = s->dense_bytes, .kv_bytes = s->kv.bytes, .scratch_bytes = s->scratch_bytes, .tokens = s->tokens,
                         .least_bytes = s->least_bytes,                         .open_seconds = s->open_seconds, .step_seconds = s->step_seconds};
    if (s->cache != NULL)
        expert_cache_get_stats(s->cache, &out->cache);
}
