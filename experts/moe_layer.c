/* Forward of the MoE layer, its scratch, and the pending updates of the experts it touches. */
#include "experts/private.h"

#include <stdlib.h>
#include <string.h>

#include "engine/base/carve.h"
#include "engine/base/clock.h"
#include "memory/budget.h"

size_t routing_layout(routing *r, char *base, int64_t T, int E, int K)
{
    const size_t t = (size_t)T, N = t * (size_t)K;
    carve c = {base, 0};
    r->probs = carve_bytes(&c, t * (size_t)E * sizeof *r->probs);
    r->lse = carve_bytes(&c, t * sizeof *r->lse);
    r->weights = carve_bytes(&c, N * sizeof *r->weights);
    r->ids = carve_bytes(&c, N * sizeof *r->ids);
    r->row_of = carve_bytes(&c, N * sizeof *r->row_of);
    r->row_token = carve_bytes(&c, N * sizeof *r->row_token);
    r->row_slot = carve_bytes(&c, N * sizeof *r->row_slot);
    r->offset = carve_bytes(&c, ((size_t)E + 1) * sizeof *r->offset);
    return c.used;
}

/* Scratch shared by all layers: the same lines measure (base NULL) and point. */
static size_t layers_layout(moe_layers *m, char *base)
{
    const size_t T = (size_t)m->max_tokens, D = (size_t)m->D, C = (size_t)m->chunk, Fp = (size_t)m->Fp, E = (size_t)m->E;
    carve c = {base, 0};
    m->rows = carve_bytes(&c, T * (size_t)m->K * D * sizeof *m->rows);
    routing r;
    m->routing = carve_bytes(&c, routing_layout(&r, NULL, m->max_tokens, m->E, m->K));
    m->logits = carve_bytes(&c, T * (size_t)panel_pad(m->E) * sizeof *m->logits);
    m->dweights = carve_bytes(&c, T * (size_t)m->K * sizeof *m->dweights);
    m->xg = carve_bytes(&c, C * D * sizeof *m->xg);
    m->og = carve_bytes(&c, C * D * sizeof *m->og);
    m->h = carve_bytes(&c, C * Fp * sizeof *m->h);
    m->a = carve_bytes(&c, C * 2 * Fp * sizeof *m->a);
    m->weight_rows = carve_bytes(&c, C * sizeof *m->weight_rows);
    m->dweight_rows = carve_bytes(&c, C * sizeof *m->dweight_rows);
    m->wanted = carve_bytes(&c, E * sizeof *m->wanted);
    m->touch = carve_bytes(&c, E * sizeof *m->touch);
    m->grad_squares = carve_bytes(&c, (size_t)m->layers * E * sizeof *m->grad_squares);
    m->pass = carve_bytes(&c, (size_t)m->layers * sizeof *m->pass);
    for (int l = 0; l < m->layers; l++) {
        stash_id *first = carve_bytes(&c, E * sizeof *first);
        int32_t *order = carve_bytes(&c, E * sizeof *order);
        if (base != NULL)
            m->pass[l] = (moe_pass){.routing = -1, .first = first, .order = order};
    }
    return c.used;
}

static void layers_dims(moe_layers *m, const moe_config *c)
{
    const model_spec *s = c->spec;
    *m = (moe_layers){
        .be = c->be, .stream = c->stream, .tier = c->tier, .stash = c->stash, .log = c->log, .balance = c->balance,
        .stop = c->stop,
        .D = s->D, .F = s->F, .Fp = (int)panel_pad(s->F), .E = s->E, .K = s->K, .layers = spec_moe_layers(s), .rule = s->router,
        .max_tokens = c->max_tokens, .chunk = c->chunk < c->max_tokens ? c->chunk : c->max_tokens,
        .bf16_moments = c->bf16_moments, .seed = c->seed, .bf16_weights = c->bf16_weights,
    };
    spec_expert_layout(s, &m->layout);
}

size_t moe_layers_bytes(const moe_config *c)
{
    moe_layers m;
    layers_dims(&m, c);
    return layers_layout(&m, NULL);
}

moe_err moe_layers_open(moe_layers *m, const moe_config *c)
{
    layers_dims(m, c);
    TRY(budget_alloc(&m->memory, layers_layout(m, NULL), "MoE scratch"));
    layers_layout(m, m->memory);
    return MOE_OK;
}

void moe_layers_close(moe_layers *m)
{
    budget_free(m->memory);
    *m = (moe_layers){0};
}

void moe_abandon(moe_layers *m)
{
    for (int l = 0; l < m->layers; l++)
        m->pass[l].routing = -1;
}

unsigned moe_forward_parts(const moe_layers *m, section_id s)
{
    const record r = tier_record(m->tier, s);
    const uint64_t finished = m->log->n > 0 ? m->log->step[m->log->n - 1].step : 0;
    if (r.step >= finished)
        return TIER_W;
    return r.grad_step != 0 ? TIER_ALL : TIER_STATE;
}

static unsigned forward_parts(void *user, section_id s) { return moe_forward_parts(user, s); }

static unsigned backward_parts(void *user, section_id s)
{
    (void)user, (void)s;
    return TIER_W | TIER_G;
}

static unsigned speculative_parts(void *user, section_id s)
{
    (void)user, (void)s;
    return TIER_ALL;
}

moe_err moe_next_section(moe_layers *m, section_id *wanted, int *n, bool backward, unsigned fresh, tier_lease *out)
{
    *out = (tier_lease){0};
    if (m->stop != NULL && *m->stop)
        return moe_fail(MOE_E_TEMP, "stopped by a signal");
    const tier_parts_fn parts = !backward ? forward_parts : fresh & TIER_M ? speculative_parts : backward_parts;
    int which = -1;
    TRY(tier_acquire_any(m->tier, wanted, *n, parts, m, fresh & TIER_G, &which, out));
    memmove(wanted + which, wanted + which + 1, (size_t)(*n - which - 1) * sizeof *wanted);
    (*n)--;
    return MOE_OK;
}

moe_err moe_update(moe_layers *m, const tier_lease *l, const float *grad, const adamw_step *steps, int nsteps)
{
    const size_t n = m->layout.floats;
    const adamw_weights halves = {.near = (uint16_t *)(void *)l->part[STORE_W], .rest = (uint16_t *)(void *)l->part[STORE_R]};
    const adamw_weights w = m->bf16_weights ? halves : (adamw_weights){.w = l->part[STORE_W]};
    if (!m->bf16_moments) {
        const adamw_args a = {.w = w, .m = l->part[STORE_M], .v = l->part[STORE_V], .grad = grad, .steps = steps,
                              .nsteps = nsteps, .n = n, .decay = true};
        return m->be->adamw(&a, m->stream);
    }
    uint16_t *moments = (uint16_t *)(void *)l->part[STORE_M];
    const adamw_bf16_args a = {.w = w, .m = moments, .v = moments + n, .grad = grad, .steps = steps, .nsteps = nsteps,
                               .n = n, .decay = true, .seed = m->seed, .section = (uint32_t)l->section};
    return m->be->adamw_bf16(&a, m->stream);
}

/* One real gradient step when it is pending, then the zero-gradient steps that a dense optimizer would have made since. */
moe_err moe_apply_pending(moe_layers *m, tier_lease *l, tier_change *owed)
{
    *owed = (tier_change){0};
    const double t0 = moe_seconds();
    const record r = tier_record(m->tier, l->section);
    uint64_t n = 0;
    const adamw_step *steps = step_log_after(m->log, r.step, &n);
    if (n == 0)
        return moe_fail(MOE_E_DATA, "section %d stands at step %llu, but the step log does not reach back to it", l->section,
                        (unsigned long long)r.step);
    if (r.grad_step != 0 && r.grad_step != r.step + 1)
        return moe_fail(MOE_E_DATA, "section %d: a gradient of step %llu is pending on a state of step %llu", l->section,
                        (unsigned long long)r.grad_step, (unsigned long long)r.step);
    TRY(moe_update(m, l, r.grad_step != 0 ? l->part[STORE_G] : NULL, steps, (int)n));
    const uint64_t now = steps[n - 1].step;
    if (l->parts & TIER_G)
        tier_release(m->tier, l, TIER_G, (tier_change){.drop = TIER_G});
    tier_release(m->tier, l, TIER_M | TIER_V, (tier_change){.dirty = TIER_M | TIER_V, .step = now});
    *owed = (tier_change){.dirty = TIER_W | TIER_R, .step = now};
    m->times.update += moe_seconds() - t0;
    return MOE_OK;
}

moe_err moe_router_logits(moe_layers *m, router_weights w, const float *xn, int64_t T)
{
    const int32_t offset[2] = {0, (int32_t)T};
    const float *weights[1] = {w.w};
    const matmul_args a = {
        .w = weights, .y = m->logits, .ldy = (size_t)m->E, .x = (float *)xn, .ldx = (size_t)m->D, .offset = offset, .G = 1, .N = m->E, .K = m->D,
    };
    return m->be->matmul_forward(&a, m->stream);
}

/* Balance statistics of each token set that [first_token, first_token + T) covers. */
static moe_err count_routing(moe_layers *m, int layer, const routing *r, int64_t T, int64_t first_token)
{
    balance *b = m->balance;
    for (int64_t t = 0; t < T;) {
        const int64_t set = (first_token + t) / b->c.set_tokens;
        const int64_t end = (set + 1) * b->c.set_tokens - first_token;
        const int64_t n = (end < T ? end : T) - t;
        const router_stats_args s = {
            .probs = r->probs + t * m->E, .ids = r->ids + t * m->K, .counts = balance_counts(b, set, layer),
            .prob_sum = balance_prob_sum(b, set, layer), .T = n, .E = m->E, .K = m->K,
        };
        TRY(m->be->router_stats(&s, m->stream));
        t += n;
    }
    for (int64_t t = 0; t < T; t++)
        b->z_sum[layer] += (double)r->lse[t] * (double)r->lse[t];
    return MOE_OK;
}

/* Router, dispatch and statistics of one layer into the routing block. */
static moe_err route(moe_layers *m, int layer, router_weights w, const float *xn, int64_t T, int64_t first_token, const routing *r)
{
    TRY(moe_router_logits(m, w, xn, T));
    const router_args ra = {
        .logits = m->logits, .bias = w.bias, .probs = r->probs, .lse = r->lse, .ids = r->ids, .weights = r->weights,
        .T = T, .E = m->E, .K = m->K, .rule = m->rule,
    };
    TRY(m->be->router_forward(&ra, m->stream));
    const dispatch_args da = {
        .ids = r->ids, .offset = r->offset, .row_token = r->row_token, .row_slot = r->row_slot, .row_of = r->row_of,
        .T = T, .E = m->E, .K = m->K, .capacity = m->balance != NULL ? m->balance->c.capacity : 0,
        .set_tokens = m->balance != NULL ? m->balance->c.capacity_tokens : 0,
    };
    TRY(m->be->dispatch(&da, m->stream));
    return m->balance != NULL ? count_routing(m, layer, r, T, first_token) : MOE_OK;
}

/* Rows [begin, begin + n) of one expert: gather, first product (kept when a stash block is given), SwiGLU, second product. */
static moe_err expert_chunk(moe_layers *m, const expert_matrices *w, const routing *r, const float *xn, int64_t begin, int64_t n, float *a)
{
    const gather_args g = {.dst = m->xg, .src = xn, .row_token = r->row_token + begin, .ld = (size_t)m->D, .n = n, .D = m->D};
    TRY(m->be->gather(&g, m->stream));
    const int32_t offset[2] = {0, (int32_t)n};
    const bool half = m->bf16_weights;
    const matmul_args first = {
        .w = &w->w1, .w16 = half ? &w->h1 : NULL, .y = a, .ldy = 2 * (size_t)m->Fp,
        .x = m->xg, .ldx = (size_t)m->D, .offset = offset, .G = 1, .N = 2 * m->Fp, .K = m->D,
    };
    TRY(m->be->matmul_forward(&first, m->stream));
    const swiglu_args mid = {.h = m->h, .a = a, .rows = n, .F = m->F, .Fp = m->Fp};
    TRY(m->be->swiglu_forward(&mid, m->stream));
    const matmul_args second = {
        .w = &w->w2, .w16 = half ? &w->h2 : NULL, .y = m->rows + (size_t)begin * (size_t)m->D, .ldy = (size_t)m->D,
        .x = m->h, .ldx = (size_t)m->Fp, .offset = offset, .G = 1, .N = m->D, .K = m->F,
    };
    return m->be->matmul_forward(&second, m->stream);
}

/* Chunks from the last to the first, so that backward, which adds gradients in row order, finds them last in, first out. */
static moe_err expert_forward(moe_layers *m, moe_pass *pass, const tier_lease *l, const routing *r, int e, const float *xn, bool keep)
{
    const int64_t rows = r->offset[e + 1] - r->offset[e];
    const expert_matrices w = moe_expert_matrices(m, l);
    for (int64_t i = (rows + m->chunk - 1) / m->chunk - 1; i >= 0; i--) {
        const int64_t left = rows - i * m->chunk, n = left < m->chunk ? left : m->chunk;
        float *a = m->a;
        if (keep) {
            void *block;
            TRY(stash_new(m->stash, (size_t)n * 2 * (size_t)m->Fp * sizeof *a, &pass->first[e], &block));
            a = block;
        }
        TRY(expert_chunk(m, &w, r, xn, r->offset[e] + i * m->chunk, n, a));
        if (keep)
            stash_seal(m->stash, pass->first[e]);
    }
    return MOE_OK;
}

/* All touched experts of the layer, as they land. */
static moe_err experts_forward(moe_layers *m, int layer, const routing *r, const float *xn, bool keep)
{
    moe_pass *pass = &m->pass[layer];
    int n = 0;
    for (int e = 0; e < m->E; e++) {
        m->touch[e] = r->offset[e + 1] > r->offset[e];
        if (m->touch[e])
            m->wanted[n++] = layer * m->E + e;
    }
    tier_expect(m->tier, layer, m->touch);
    pass->norder = 0;
    while (n > 0) {
        tier_lease l;
        tier_change change = {0};
        moe_err rc = MOE_OK;
        TRY(moe_next_section(m, m->wanted, &n, false, 0, &l));
        const int e = l.section % m->E;
        if ((l.parts & TIER_M) != 0)
            rc = moe_apply_pending(m, &l, &change);
        if (rc == MOE_OK)
            rc = expert_forward(m, pass, &l, r, e, xn, keep);
        tier_release(m->tier, &l, TIER_ALL, change);
        TRY(rc);
        pass->order[pass->norder++] = e;
    }
    return MOE_OK;
}

static moe_err keep_routing(moe_layers *m, moe_pass *pass, size_t bytes)
{
    void *block;
    TRY(stash_new(m->stash, bytes, &pass->routing, &block));
    memcpy(block, m->routing, bytes);
    stash_seal(m->stash, pass->routing);
    return MOE_OK;
}

moe_err moe_forward(moe_layers *m, int layer, router_weights w, float *x, const float *xn, int64_t T, int64_t first_token, bool keep)
{
    const double t0 = moe_seconds(), update0 = m->times.update;
    tier_enter(m->tier, (tier_phase){layer, false});
    routing r;
    const size_t bytes = routing_layout(&r, m->routing, T, m->E, m->K);
    TRY(route(m, layer, w, xn, T, first_token, &r));
    const double t1 = moe_seconds();
    m->times.router += t1 - t0;
    TRY(experts_forward(m, layer, &r, xn, keep));
    if (keep)
        TRY(keep_routing(m, &m->pass[layer], bytes));
    const combine_args c = {.out = x, .base = x, .rows = m->rows, .row_of = r.row_of, .weight = r.weights, .T = T, .K = m->K, .D = m->D};
    TRY(m->be->combine(&c, m->stream));
    m->times.experts += moe_seconds() - t1 - (m->times.update - update0);
    return MOE_OK;
}
