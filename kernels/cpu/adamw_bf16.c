/* AdamW with bf16 moments, fast (kernels/adamw.h): one pass over w, m, v and the gradient for up to STEPS_PER_PASS steps, a block
 * of 64 elements in registers: as many as the random words of sixteen counters round. Owns nothing. Parallel over blocks. Rule:
 * same bits as ref/adamw.c. */
#include <string.h>

#include "kernels/adamw.h"
#include "kernels/cpu/adamw_step.h"
#include "kernels/cpu/philox.h"
#include "kernels/tables.h"

enum {
    STEPS_PER_PASS = 64, /* scalars on the stack, as in cpu/adamw.c      */
    BLOCK = 4 * V16,     /* elements that one call of philox serves      */
    BLOCK_GRAIN = 256,   /* blocks: 16384 elements, as in cpu/adamw.c    */
};

typedef struct pass {
    const adamw_bf16_args *a;
    const float *grad; /* of the first step of this pass, or NULL */
    int nsteps;
    adamw_scalars scalars[STEPS_PER_PASS];
    uint32_t step[STEPS_PER_PASS];
} pass;

/* adamw_round_bf16, left as fp32 whose lower half is zero. */
SIMD v16 round_bf16(v16 x, i16 bits)
{
    const i16 infinite = i16_set1(0x7f800000), u = v16_bits(x);
    const i16 size = i16_and(u, i16_set1(0x7fffffff)), sign = i16_xor(u, size);
    const i16 sum = i16_add(size, bits);
    const m16 over = m16_and(i16_gt(infinite, size), i16_gt(sum, i16_set1(0x7f7fffff)));
    const v16 rounded = v16_select(over, i16_float(i16_set1(0x7f7f0000)), i16_float(sum));
    const i16 kept = i16_and(i16_or(v16_bits(rounded), sign), i16_set1((int32_t)0xffff0000u));
    return v16_select(i16_gt(size, infinite), i16_float(i16_set1(0x7fc00000)), i16_float(kept));
}

SIMD void narrow(uint16_t *p, v16 x) { i16_store_u16(p, i16_shr(v16_bits(x), 16)); }

/* Block `at` of the section, its weights from i on; g: its gradient, or NULL. */
SIMD void block_steps(const pass *p, int64_t at, adamw_weights w, int64_t i, uint16_t *m, uint16_t *v, const float *g)
{
    const uint64_t first = (uint64_t)at * V16; /* its sixteen counters share the upper word */
    const counters c = {i16_add(i16_set1((int32_t)(uint32_t)first), i16_iota()), i16_set1((int32_t)(uint32_t)(first >> 32))};
    element e[4];
#pragma GCC unroll 4
    for (int q = 0; q < 4; q++)
        e[q] = (element){weights_load(w, i + q * V16), v16_widen(m + q * V16), v16_widen(v + q * V16)};
    for (int j = 0; j < p->nsteps; j++) {
        i16 word[4];
        philox(word, c, (random_key){p->a->seed, p->a->section, p->step[j]});
#pragma GCC unroll 4
        for (int q = 0; q < 4; q++) {
            e[q] = element_step(e[q], j == 0 && g != NULL ? v16_load(g + q * V16) : v16_zero(), &p->scalars[j]);
            e[q].m = round_bf16(e[q].m, i16_and(word[q], i16_set1(0xffff)));
            e[q].v = round_bf16(e[q].v, i16_shr(word[q], 16));
        }
    }
#pragma GCC unroll 4
    for (int q = 0; q < 4; q++) {
        weights_store(w, i + q * V16, e[q].w);
        narrow(m + q * V16, e[q].m);
        narrow(v + q * V16, e[q].v);
    }
}

/* The last block, n < BLOCK elements of it. */
static void part_block(const pass *p, int64_t at, int64_t n)
{
    const adamw_bf16_args *a = p->a;
    const size_t i = (size_t)at * BLOCK, count = (size_t)n;
    weights_edge copy = {0};
    const adamw_weights edge = edge_of(&copy, a->w.w == NULL);
    float g[BLOCK] = {0};
    uint16_t m[BLOCK] = {0}, v[BLOCK] = {0};
    weights_copy(edge, 0, a->w, (int64_t)i, n);
    memcpy(m, a->m + i, count * sizeof *m);
    memcpy(v, a->v + i, count * sizeof *v);
    if (p->grad != NULL)
        memcpy(g, p->grad + i, count * sizeof *g);
    block_steps(p, at, edge, 0, m, v, g);
    weights_copy(a->w, (int64_t)i, edge, 0, n);
    memcpy(a->m + i, m, count * sizeof *m);
    memcpy(a->v + i, v, count * sizeof *v);
}

static void pass_blocks(void *ctx, int64_t begin, int64_t end, int worker)
{
    const pass *p = ctx;
    const adamw_bf16_args *a = p->a;
    (void)worker;
    for (int64_t at = begin; at < end; at++) {
        const int64_t i = at * BLOCK, left = (int64_t)a->n - i;
        if (left >= BLOCK)
            block_steps(p, at, a->w, i, a->m + i, a->v + i, p->grad != NULL ? p->grad + i : NULL);
        else
            part_block(p, at, left);
    }
}

moe_err ISA(adamw_bf16)(const adamw_bf16_args *a, moe_stream *s)
{
    pass p = {.a = a};
    for (int at = 0; at < a->nsteps; at += p.nsteps) {
        p.nsteps = a->nsteps - at < STEPS_PER_PASS ? a->nsteps - at : STEPS_PER_PASS;
        p.grad = at == 0 ? a->grad : NULL;
        for (int j = 0; j < p.nsteps; j++) {
            p.scalars[j] = adamw_scalars_of(&a->steps[at + j], a->decay);
            p.step[j] = (uint32_t)a->steps[at + j].step;
        }
        moe_pool_for(s->pool, ((int64_t)a->n + BLOCK - 1) / BLOCK, BLOCK_GRAIN, pass_blocks, &p);
    }
    return MOE_OK;
}
