/* Causal attention forward, fast (kernels/attention.h); backward is in attention_backward.c.
 * A task is a block of queries of one window, for all query heads of one kv head (so that a packed tile of keys serves the whole group).
 * It walks the key tiles once; running maximum, sum and output of its rows stay in the worker's scratch.
 * Rule: same bits as ref/attention.c; a task writes its own rows of o and lse only. */
#include "kernels/cpu/attention_softmax.h"
#include "kernels/tables.h"

enum {
    ROWS = 512,       /* (query, head) pairs of a task at most: packing a tile costs as much as 8 of them */
    ROWS_LEAST = 128, /* when more tasks are wanted                                                      */
    ROW_FLOATS = 256 * ATTENTION_MAX_HD,
    CHUNK = 48, /* rows whose scores live at one time: 12 KiB, beside K^T or V in the L1 cache */
    TASKS_PER_THREAD = 4,
};
_Static_assert((int)CHUNK <= (int)SOFTMAX_ROWS && CHUNK % PRODUCT_ROWS == 0 && ROWS_LEAST * ATTENTION_MAX_HD <= ROW_FLOATS, "whole blocks");
_Static_assert((2 * ROW_FLOATS + 3 * TILE * ATTENTION_MAX_HD + CHUNK * (TILE + 1) + 2 * ROWS) * sizeof(float) <= KERNEL_SCRATCH_BYTES,
               "scratch");

typedef struct plan {
    const attention_args *a;
    moe_pool *pool;
    int rows;              /* of one task, at most                                        */
    int heads, head_parts; /* query heads of one task; tasks that share a kv head's group */
    int queries, blocks;   /* positions of one task; tasks that share a window            */
    int64_t tasks;
} plan;

/* Row r is query position first + r / heads, head `head` + r % heads. */
typedef struct task {
    const attention_args *a;
    size_t token, head, kv; /* of the window's position 0; first query head; kv head */
    int64_t first;
    int rows, heads;
    size_t width;            /* hd padded                                   */
    float *q, *o;            /* [rows, width]                               */
    float *key, *kt, *value; /* [TILE, width], [width, TILE], [TILE, width] */
    float *p;                /* [CHUNK, TILE]                               */
    float *factor;           /* [CHUNK]                                     */
    float *m, *l;            /* [rows]                                      */
    int ahead;               /* rows of the next tile fetched beside each block of rows */
} task;

static int64_t row_query(const task *k, int r) { return k->first + r / k->heads; }

static void task_open(task *k, float *scratch)
{
    k->q = scratch;
    k->o = k->q + (size_t)k->rows * k->width;
    k->key = k->o + (size_t)k->rows * k->width;
    k->kt = k->key + TILE * k->width;
    k->value = k->kt + TILE * k->width;
    k->p = k->value + TILE * k->width;
    k->factor = k->p + CHUNK * TILE;
    k->m = k->factor + CHUNK;
    k->l = k->m + k->rows;
    for (int r = 0; r < k->rows; r++)
        k->m[r] = -INFINITY, k->l[r] = 0.0f;
    memset(k->o, 0, (size_t)k->rows * k->width * sizeof *k->o);
    k->ahead = (TILE * PRODUCT_ROWS + k->rows - 1) / k->rows;
}

/* Offset of row r in an array whose tokens are ld floats apart: q or o. */
static size_t row_at(const task *k, int r, size_t ld)
{
    return (k->token + (size_t)row_query(k, r)) * ld + (k->head + (size_t)(r % k->heads)) * (size_t)k->a->hd;
}

/* Rows [r0, r0 + rows) of q, and a look at the rows behind them. */
static void load_queries(task *k, int r0, int rows)
{
    const attention_args *a = k->a;
    for (int r = r0; r < r0 + rows; r++) {
        pack_rows(k->q + (size_t)r * k->width, a->q + row_at(k, r, a->ldq), 0, 1, a->hd);
        if (r + CHUNK < k->rows)
            prefetch_rows(a->q + row_at(k, r + CHUNK, a->ldq), 0, 1, a->hd);
    }
}

static void load_keys(task *k, int64_t t0, int keys)
{
    const attention_args *a = k->a;
    const size_t at = (k->token + (size_t)t0) * a->ldk + k->kv * (size_t)a->hd;
    pack_tile(k->key, a->k + at, a->ldk, keys, a->hd);
    transpose_tile(k->kt, k->key, k->width);
    pack_tile(k->value, a->v + at, a->ldk, keys, a->hd);
}

/* Of the tile behind t0, what falls to the block of n rows from r; behind the last tile, their places in o. */
static void prefetch_next(const task *k, int64_t t0, int r, int n)
{
    const attention_args *a = k->a;
    if (t0 + TILE > row_query(k, k->rows - 1))
        for (int i = r; i < r + n; i++)
            prefetch_rows(a->o + row_at(k, i, a->ldo), 0, 1, a->hd);
    const int64_t j = t0 + TILE + r / PRODUCT_ROWS * k->ahead, last = row_query(k, k->rows - 1) + 1;
    const int64_t end = t0 + 2 * TILE < last ? t0 + 2 * TILE : last;
    if (j >= end)
        return;
    const size_t at = (k->token + (size_t)j) * a->ldk + k->kv * (size_t)a->hd;
    prefetch_rows(a->k + at, a->ldk, end - j < k->ahead ? end - j : k->ahead, a->hd);
    prefetch_rows(a->v + at, a->ldk, end - j < k->ahead ? end - j : k->ahead, a->hd);
}

/* Scores of rows [r0, r0 + rows) become weights p; m, l and factor move on. */
static void softmax_rows(task *k, int r0, int rows, int64_t t0, int keys)
{
    const softmax_args s = {.p = k->p, .factor = k->factor, .m = k->m + r0, .l = k->l + r0, .scale = k->a->scale, .first = k->first,
                            .row = r0, .heads = k->heads};
    softmax_tile(&s, rows, t0, keys);
}

/* Rows [r0, r0 + rows) against one tile: scores, weights, output. */
static void attend_chunk(task *k, int r0, int rows, int64_t t0, int keys)
{
    for (int r = 0; r < rows; r += PRODUCT_ROWS) {
        const int n = rows - r < PRODUCT_ROWS ? rows - r : PRODUCT_ROWS, most = visible(row_query(k, r0 + r + n - 1), t0, keys);
        const product s = {.c = k->p + r * TILE, .a = k->q + (size_t)(r0 + r) * k->width, .b = k->kt, .ldc = TILE, .lda = k->width,
                           .ldb = TILE, .steps = k->a->hd, .zero = true};
        prefetch_next(k, t0, r0 + r, n);
        product_columns(&s, n, (most + V16 - 1) / V16, false);
    }
    softmax_rows(k, r0, rows, t0, keys);
    for (int r = 0; r < rows; r += PRODUCT_ROWS) {
        const int n = rows - r < PRODUCT_ROWS ? rows - r : PRODUCT_ROWS, most = visible(row_query(k, r0 + r + n - 1), t0, keys);
        const product o = {.c = k->o + (size_t)(r0 + r) * k->width, .a = k->p + r * TILE, .b = k->value, .factor = k->factor + r,
                           .ldc = k->width, .lda = TILE, .ldb = k->width, .steps = most};
        product_columns(&o, n, (int)(k->width / V16), false);
    }
}

static void write_rows(const task *k)
{
    const attention_args *a = k->a;
    for (int r = 0; r < k->rows; r++) {
        const v16 inverse = v16_set1(1.0f / k->l[r]);
        float *o = a->o + row_at(k, r, a->ldo);
        for (int d = 0; d < a->hd; d += V16)
            row_store(o + d, v16_fma(v16_load(k->o + (size_t)r * k->width + d), inverse, v16_zero()), a->hd - d);
        a->lse[(k->token + (size_t)row_query(k, r)) * (size_t)a->H + k->head + (size_t)(r % k->heads)] = k->m[r] + moe_logf(k->l[r]);
    }
}

static void run_task(const plan *p, int64_t n, float *scratch)
{
    const attention_args *a = p->a;
    const int64_t block = p->blocks - 1 - n % p->blocks; /* the longest first */
    n /= p->blocks;
    const int part = (int)(n % p->head_parts), group = a->H / a->Hkv;
    n /= p->head_parts;
    const int skip = part * p->heads;
    task k = {.a = a, .token = (size_t)(n / a->Hkv) * (size_t)a->S, .kv = (size_t)(n % a->Hkv), .first = block * p->queries};
    k.heads = group - skip < p->heads ? group - skip : p->heads;
    k.head = k.kv * (size_t)group + (size_t)skip;
    k.width = padded(a->hd);
    const int64_t queries = a->S - k.first < p->queries ? a->S - k.first : p->queries, end = k.first + queries;
    k.rows = (int)queries * k.heads;
    task_open(&k, scratch);
    for (int64_t t0 = 0; t0 < end; t0 += TILE) {
        const int keys = a->S - t0 < TILE ? (int)(a->S - t0) : TILE;
        load_keys(&k, t0, keys);
        const int from = t0 > k.first ? (int)(t0 - k.first) * k.heads : 0; /* earlier rows see nothing of this tile */
        for (int r = from; r < k.rows; r += CHUNK) {
            const int rows = k.rows - r < CHUNK ? k.rows - r : CHUNK;
            if (t0 == 0)
                load_queries(&k, r, rows);
            attend_chunk(&k, r, rows, t0, keys);
        }
    }
    write_rows(&k);
}

static void run_tasks(void *ctx, int64_t begin, int64_t end, int worker)
{
    const plan *p = ctx;
    for (int64_t n = begin; n < end; n++)
        run_task(p, n, moe_pool_scratch(p->pool, worker));
}

static plan plan_rows(const attention_args *a, moe_pool *pool, int rows)
{
    const int group = a->H / a->Hkv;
    plan p = {.a = a, .pool = pool, .rows = rows, .heads = group < rows ? group : rows};
    p.head_parts = (group + p.heads - 1) / p.heads;
    p.queries = rows / p.heads;
    p.blocks = (a->S + p.queries - 1) / p.queries;
    p.tasks = (int64_t)a->B * a->Hkv * p.head_parts * p.blocks;
    return p;
}

moe_err ISA(attention_forward)(const attention_args *a, moe_stream *s)
{
    TRY(attention_check(a));
    plan p = plan_rows(a, s->pool, ROWS);
    while (p.rows > ROWS_LEAST && (p.tasks < TASKS_PER_THREAD * moe_pool_threads(s->pool) || (size_t)p.rows * padded(a->hd) > ROW_FLOATS))
        p = plan_rows(a, s->pool, p.rows / 2);
    moe_pool_for(s->pool, p.tasks, 1, run_tasks, &p);
    return MOE_OK;
}
