/* Backward of the MoE layer: experts, router, balance losses. Leases are released once on every path, also when a product fails. */
#include "experts/private.h"

#include <string.h>

#include "engine/base/clock.h"

/* Rows [begin, begin + n) of one expert. `a` is the stash block [n, 2 Fp] of forward; it becomes the gradient of the first product.
 * continued: the section's gradient holds earlier rows of the step; else it is begun here: nobody zeroes a new slot. */
static moe_err expert_chunk_backward(moe_layers *m, const tier_lease *l, const routing *r, const moe_backward_args *args, int64_t begin,
                                     int64_t n, float *a, bool continued)
{
    const moe_backend *be = m->be;
    const int32_t offset[2] = {0, (int32_t)n};
    const expert_matrices w = moe_expert_matrices(m, l);
    const bool half = m->bf16_weights;
    float *g = l->part[STORE_G];
    float *dw1[1] = {g + m->layout.w1}, *dw2[1] = {g + m->layout.w2};

    const gather_args gather_out = {.dst = m->og, .src = args->dy, .row_token = r->row_token + begin, .ld = (size_t)m->D, .n = n, .D = m->D};
    TRY(be->gather(&gather_out, m->stream));
    const matmul_args dh = {
        .w = &w.w2, .w16 = half ? &w.h2 : NULL, .y = m->og, .ldy = (size_t)m->D,
        .x = m->h, .ldx = (size_t)m->Fp, .offset = offset, .G = 1, .N = m->D, .K = m->F,
    };
    TRY(be->matmul_dx(&dh, m->stream));
    for (int64_t i = 0; i < n; i++)
        m->weight_rows[i] = r->weights[r->row_slot[begin + i]];
    const swiglu_args mid = {
        .a = a, .dh = m->h, .c = m->weight_rows, .da = a, .hc = m->h, .dweight = m->dweight_rows, .rows = n, .F = m->F, .Fp = m->Fp,
    };
    TRY(be->swiglu_backward(&mid, m->stream));
    for (int64_t i = 0; i < n; i++)
        m->dweights[r->row_slot[begin + i]] = m->dweight_rows[i];

    const matmul_args second = {
        .dw = dw2, .y = m->og, .ldy = (size_t)m->D, .x = m->h, .ldx = (size_t)m->Fp, .offset = offset, .G = 1, .N = m->D, .K = m->F,
        .accumulate = continued,
    };
    TRY(be->matmul_dw(&second, m->stream));
    const gather_args gather_in = {.dst = m->xg, .src = args->xn, .row_token = r->row_token + begin, .ld = (size_t)m->D, .n = n, .D = m->D};
    TRY(be->gather(&gather_in, m->stream));
    matmul_args first = {
        .dw = dw1, .w = &w.w1, .w16 = half ? &w.h1 : NULL, .y = a, .ldy = 2 * (size_t)m->Fp,
        .x = m->xg, .ldx = (size_t)m->D, .offset = offset, .G = 1,
        .N = 2 * m->Fp, .K = m->D, .accumulate = continued,
    };
    TRY(be->matmul_dw(&first, m->stream));
    first.x = m->rows + (size_t)begin * (size_t)m->D;
    first.accumulate = false;
    return be->matmul_dx(&first, m->stream);
}

static moe_err expert_backward(moe_layers *m, int layer, const tier_lease *l, const routing *r, const moe_backward_args *args)
{
    const int e = l->section % m->E;
    stash_id id = m->pass[layer].first[e];
    bool continued = tier_record(m->tier, l->section).grad_step == args->step; /* by an earlier group of micro-batches */
    for (int64_t begin = r->offset[e]; begin < r->offset[e + 1]; begin += m->chunk, id--) {
        const int64_t left = r->offset[e + 1] - begin, n = left < m->chunk ? left : m->chunk;
        void *a;
        TRY(stash_take(m->stash, id, &a));
        const moe_err rc = expert_chunk_backward(m, l, r, args, begin, n, a, continued);
        stash_free(m->stash, id);
        TRY(rc);
        continued = true;
    }
    const sum_squares_args sq = {.out = &m->grad_squares[l->section], .x = l->part[STORE_G], .n = m->layout.floats};
    return m->be->sum_squares(&sq, m->stream);
}

/* The update with clip 1, before the gradient norm is known; the tier keeps the previous state until the step is resolved. */
static moe_err speculate(moe_layers *m, tier_lease *l, const adamw_step *step)
{
    const double t0 = moe_seconds();
    TRY(moe_update(m, l, l->part[STORE_G], step, 1));
    m->times.update += moe_seconds() - t0;
    return MOE_OK;
}

static moe_err experts_backward(moe_layers *m, int layer, const routing *r, const moe_backward_args *args)
{
    moe_pass *pass = &m->pass[layer];
    int n = 0;
    for (int i = pass->norder - 1; i >= 0; i--) /* the stash is last in, first out */
        m->wanted[n++] = layer * m->E + pass->order[i];
    while (n > 0) {
        tier_lease l;
        moe_err rc;
        tier_change change = {.dirty = TIER_G, .grad_step = args->step};
        TRY(moe_next_section(m, m->wanted, &n, true, args->speculate != NULL ? TIER_G | TIER_M : TIER_G, &l));
        TRY_GOTO(expert_backward(m, layer, &l, r, args), rc, fail);
        if (args->speculate != NULL) {
            TRY_GOTO(speculate(m, &l, args->speculate), rc, fail);
            change = (tier_change){.dirty = TIER_ALL, .grad_step = args->step, .step = args->step};
        }
        tier_release(m->tier, &l, TIER_ALL, change);
        continue;
    fail:
        tier_release(m->tier, &l, TIER_ALL, (tier_change){.dirty = TIER_G, .grad_step = args->step});
        return rc;
    }
    return MOE_OK;
}

/* Gradient of the router: through the weights of the chosen, the balance loss of each token set, and the z-loss. */
static moe_err router_backward(moe_layers *m, int layer, router_weights w, const routing *r, const moe_backward_args *args)
{
    balance *b = m->balance;
    for (int64_t t = 0; t < args->T;) {
        const int64_t set = (args->first_token + t) / b->c.set_tokens;
        const int64_t end = (set + 1) * b->c.set_tokens - args->first_token;
        const int64_t n = (end < args->T ? end : args->T) - t;
        const router_args ra = {
            .probs = r->probs + t * m->E, .lse = r->lse + t, .ids = r->ids + t * m->K, .weights = r->weights + t * m->K,
            .dweights = m->dweights + t * m->K, .dprobs = balance_dprobs(b, set, layer), .dz = balance_dz(b),
            .logits = m->logits + t * m->E, .dlogits = m->logits + t * m->E, .T = n, .E = m->E, .K = m->K, .rule = m->rule,
        };
        TRY(m->be->router_backward(&ra, m->stream));
        t += n;
    }
    const int32_t offset[2] = {0, (int32_t)args->T};
    const float *weights[1] = {w.w};
    float *dw[1] = {w.dw};
    matmul_args a = {
        .dw = dw, .w = weights, .y = m->logits, .ldy = (size_t)m->E, .x = (float *)args->xn, .ldx = (size_t)m->D, .offset = offset,
        .G = 1, .N = m->E, .K = m->D, .accumulate = true,
    };
    TRY(m->be->matmul_dw(&a, m->stream));
    a.x = args->dxn;
    a.accumulate = false;
    return m->be->matmul_dx(&a, m->stream);
}

static moe_err take_routing(moe_layers *m, int layer, int64_t T, routing *r)
{
    moe_pass *pass = &m->pass[layer];
    void *block;
    TRY(stash_take(m->stash, pass->routing, &block));
    memcpy(m->routing, block, routing_layout(r, m->routing, T, m->E, m->K));
    stash_free(m->stash, pass->routing);
    pass->routing = -1;
    return MOE_OK;
}

moe_err moe_backward(moe_layers *m, int layer, router_weights w, const moe_backward_args *args)
{
    const double t0 = moe_seconds(), update0 = m->times.update;
    tier_enter(m->tier, (tier_phase){layer, true});
    routing r;
    TRY(take_routing(m, layer, args->T, &r));
    if (m->balance->c.capacity > 0) /* a dropped choice has no row that would set it */
        memset(m->dweights, 0, (size_t)args->T * (size_t)m->K * sizeof *m->dweights);
    TRY(experts_backward(m, layer, &r, args));
    const double t1 = moe_seconds();
    m->times.experts += t1 - t0 - (m->times.update - update0);
    if (m->rule.score == ROUTER_SIGMOID && balance_dz(m->balance) != 0) /* the only rule whose backward reads logits */
        TRY(moe_router_logits(m, w, args->xn, args->T));
    TRY(router_backward(m, layer, w, &r, args));
    const combine_args c = {
        .out = args->dxn, .base = args->dxn, .rows = m->rows, .row_of = r.row_of, .T = args->T, .K = m->K, .D = m->D,
    };
    TRY(m->be->combine(&c, m->stream));
    m->times.router += moe_seconds() - t1;
    return MOE_OK;
}
