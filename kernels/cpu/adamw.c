/* AdamW, fast (kernels/adamw.h): one pass over w, m, v and the gradient for up to STEPS_PER_PASS steps, the element in registers.
 * Owns nothing. Parallel over elements.
 * Rule: same bits as ref/adamw.c; a step of the vector is the line of the reference with the same name. */
#include "kernels/adamw.h"

#include "kernels/cpu/adamw_step.h"
#include "kernels/tables.h"

enum {
    STEPS_PER_PASS = 64, /* scalars on the stack; past it a second pass over memory costs little against 64 divisions */
    ADAMW_GRAIN = 16384, /* elements: 448 KiB read and written, ~30 us */
};

typedef struct pass {
    const adamw_args *a;
    const float *grad; /* of the first step of this pass, or NULL */
    int nsteps;
    adamw_scalars step[STEPS_PER_PASS];
} pass;

SIMD element element_steps(const pass *p, element e, v16 grad)
{
    e = element_step(e, grad, &p->step[0]);
    for (int j = 1; j < p->nsteps; j++)
        e = element_step(e, v16_zero(), &p->step[j]);
    return e;
}

static void pass_elements(void *ctx, int64_t begin, int64_t end, int worker)
{
    const pass *p = ctx;
    const adamw_weights w = p->a->w;
    float *m = p->a->m, *v = p->a->v;
    int64_t i = begin;
    (void)worker;
    for (; i + V16 <= end; i += V16) {
        element e = {weights_load(w, i), v16_load(m + i), v16_load(v + i)};
        e = element_steps(p, e, p->grad != NULL ? v16_load(p->grad + i) : v16_zero());
        weights_store(w, i, e.w), v16_store(m + i, e.m), v16_store(v + i, e.v);
    }
    if (i < end) {
        const int n = (int)(end - i);
        weights_edge copy = {0};
        const adamw_weights edge = edge_of(&copy, w.w == NULL);
        weights_copy(edge, 0, w, i, n);
        element e = {weights_load(edge, 0), v16_load_n(m + i, n), v16_load_n(v + i, n)};
        e = element_steps(p, e, p->grad != NULL ? v16_load_n(p->grad + i, n) : v16_zero());
        weights_store(edge, 0, e.w);
        weights_copy(w, i, edge, 0, n);
        v16_store_n(m + i, e.m, n), v16_store_n(v + i, e.v, n);
    }
}

moe_err ISA(adamw)(const adamw_args *a, moe_stream *s)
{
    pass p = {.a = a};
    for (int at = 0; at < a->nsteps; at += p.nsteps) {
        p.nsteps = a->nsteps - at < STEPS_PER_PASS ? a->nsteps - at : STEPS_PER_PASS;
        p.grad = at == 0 ? a->grad : NULL;
        for (int j = 0; j < p.nsteps; j++)
            p.step[j] = adamw_scalars_of(&a->steps[at + j], a->decay);
        moe_pool_for(s->pool, (int64_t)a->n, ADAMW_GRAIN, pass_elements, &p);
    }
    return MOE_OK;
}
