/* Dispatch, gather and combine, fast (kernels/dispatch.h). Owns nothing. Dispatch is a stable counting sort: blocks of tokens count
 * their ids apart, a prefix over (expert, block) gives each block its first row, then the blocks place their rows; counts lie in
 * worker 0's scratch. Gather and combine are parallel over rows and tokens.
 * Rule: the result does not depend on the number of blocks, because the sort is stable. */
#include "kernels/dispatch.h"

#include <string.h>

#include "kernels/cpu/row.h"
#include "kernels/tables.h"

enum { BLOCK_IDS = 8192 }; /* ids a block should have before a second one is worth a loop over the pool */

typedef struct sort_work {
    const dispatch_args *a;
    int32_t *count; /* [blocks, E]: ids of the block, then its next row of each expert */
    int64_t tokens; /* of a block */
    int64_t wrong;  /* ids outside [0, E) */
} sort_work;

static void count_blocks(void *ctx, int64_t begin, int64_t end, int worker)
{
    sort_work *k = ctx;
    const dispatch_args *a = k->a;
    (void)worker;
    for (int64_t b = begin; b < end; b++) {
        int32_t *count = k->count + b * a->E;
        const int64_t last = (b + 1) * k->tokens < a->T ? (b + 1) * k->tokens : a->T;
        int64_t wrong = 0;
        memset(count, 0, (size_t)a->E * sizeof *count);
        for (int64_t i = b * k->tokens * a->K; i < last * a->K; i++) {
            if ((uint32_t)a->ids[i] < (uint32_t)a->E)
                count[a->ids[i]]++;
            else
                wrong++;
        }
        if (wrong != 0)
            __atomic_fetch_add(&k->wrong, wrong, __ATOMIC_RELAXED);
    }
}

/* With a capacity: one walk over the ids on the calling thread, first to count what is kept, then to place it. seen: [E] rows of the set. */
static void place_with_capacity(const dispatch_args *a, int32_t *next, int32_t *seen)
{
    for (int place = 0; place < 2; place++) {
        for (int64_t t = 0; t < a->T; t++) {
            if (t % a->set_tokens == 0)
                memset(seen, 0, (size_t)a->E * sizeof *seen);
            for (int64_t i = t * a->K; i < (t + 1) * a->K; i++) {
                const int32_t e = a->ids[i];
                const int32_t row = seen[e]++ < a->capacity ? next[e]++ : -1;
                if (!place)
                    continue;
                a->row_of[i] = row;
                if (row < 0)
                    continue;
                a->row_token[row] = (int32_t)t;
                a->row_slot[row] = (int32_t)i;
            }
        }
        int32_t row = 0;
        for (int e = 0; e < a->E && !place; e++) { /* counts become first rows */
            const int32_t count = next[e];
            a->offset[e] = next[e] = row;
            row += count;
        }
        if (!place)
            a->offset[a->E] = row;
    }
}

static void place_blocks(void *ctx, int64_t begin, int64_t end, int worker)
{
    const sort_work *k = ctx;
    const dispatch_args *a = k->a;
    (void)worker;
    for (int64_t b = begin; b < end; b++) {
        int32_t *next = k->count + b * a->E;
        const int64_t last = (b + 1) * k->tokens < a->T ? (b + 1) * k->tokens : a->T;
        for (int64_t t = b * k->tokens; t < last; t++)
            for (int64_t i = t * a->K; i < (t + 1) * a->K; i++) {
                const int32_t row = next[a->ids[i]]++;
                a->row_token[row] = (int32_t)t;
                a->row_slot[row] = (int32_t)i;
                a->row_of[i] = row;
            }
    }
}

moe_err ISA(dispatch)(const dispatch_args *a, moe_stream *s)
{
    const int64_t room = (int64_t)(moe_pool_scratch_bytes(s->pool) / sizeof(int32_t)) / (a->E > 0 ? a->E : 1);
    if (room < 1 || a->E < 1 || (a->K > 0 && a->T > INT32_MAX / a->K))
        return dispatch_ref(a, s);
    int64_t blocks = a->T * a->K / BLOCK_IDS;
    blocks = blocks < moe_pool_threads(s->pool) ? blocks : moe_pool_threads(s->pool);
    blocks = blocks < room ? blocks : room;
    blocks = blocks > 1 ? blocks : 1;
    sort_work k = {a, moe_pool_scratch(s->pool, 0), (a->T + blocks - 1) / blocks, 0};
    moe_pool_for(s->pool, blocks, 1, count_blocks, &k);
    if (k.wrong != 0)
        return dispatch_ref(a, s); /* it names the first one */
    if (a->capacity > 0 && room >= 2) {
        memset(k.count, 0, 2 * (size_t)a->E * sizeof *k.count);
        place_with_capacity(a, k.count, k.count + a->E);
        return MOE_OK;
    }
    if (a->capacity > 0)
        return dispatch_ref(a, s);
    int32_t row = 0;
    for (int e = 0; e < a->E; e++) {
        a->offset[e] = row;
        for (int64_t b = 0; b < blocks; b++) {
            const int32_t count = k.count[b * a->E + e];
            k.count[b * a->E + e] = row;
            row += count;
        }
    }
    a->offset[a->E] = row;
    moe_pool_for(s->pool, blocks, 1, place_blocks, &k);
    return MOE_OK;
}

static void gather_rows(void *ctx, int64_t begin, int64_t end, int worker)
{
    const gather_args *a = ctx;
    (void)worker;
    for (int64_t i = begin; i < end; i++)
        memcpy(a->dst + (size_t)i * (size_t)a->D, a->src + (size_t)a->row_token[i] * a->ld, (size_t)a->D * sizeof *a->dst);
}

moe_err ISA(gather)(const gather_args *a, moe_stream *s)
{
    moe_pool_for(s->pool, a->n, row_grain(a->D), gather_rows, (void *)a);
    return MOE_OK;
}

/* `vectors` * 16 columns from d on of one token; `left` columns remain. */
SIMD void combine_block(const combine_args *a, size_t t, size_t d, int vectors, int64_t left)
{
    enum { MOST = 4 };
    const size_t D = (size_t)a->D;
    v16 sum[MOST];
    for (int j = 0; j < vectors; j++)
        sum[j] = v16_zero();
    for (size_t slot = t * (size_t)a->K; slot < (t + 1) * (size_t)a->K; slot++) {
        if (a->row_of[slot] < 0)
            continue;
        const float *row = a->rows + (size_t)a->row_of[slot] * D + d;
        const v16 weight = v16_set1(a->weight != NULL ? a->weight[slot] : 1.0f);
        for (int j = 0; j < vectors; j++)
            sum[j] = v16_fma(weight, row_load(row + j * V16, left - j * V16), sum[j]);
    }
    for (int j = 0; j < vectors; j++) {
        const size_t at = t * D + d + (size_t)(j * V16);
        row_store(a->out + at, a->base != NULL ? v16_add(sum[j], row_load(a->base + at, left - j * V16)) : sum[j],
                  left - j * V16);
    }
}

static void combine_tokens(void *ctx, int64_t begin, int64_t end, int worker)
{
    const combine_args *a = ctx;
    (void)worker;
    for (int64_t t = begin; t < end; t++) {
        int d = 0;
        for (; d + 4 * V16 <= a->D; d += 4 * V16)
            combine_block(a, (size_t)t, (size_t)d, 4, 4 * V16);
        for (; d < a->D; d += V16)
            combine_block(a, (size_t)t, (size_t)d, 1, a->D - d);
    }
}

moe_err ISA(combine)(const combine_args *a, moe_stream *s)
{
    moe_pool_for(s->pool, a->T, row_grain((int64_t)a->D * (a->K + 1)), combine_tokens, (void *)a);
    return MOE_OK;
}
