/* Causal attention backward, fast (kernels/attention.h).
 * A block is BLOCK queries of one head against one tile of keys: scores and do.v are recomputed, then dq of the block and dk, dv of the
 * tile go on by one link of their chains. Two ways over the blocks, the same bits:
 *   together   a task is one kv head of one window: tiles in order, under each the heads of the group and their blocks in order. dq waits
 *              in the output between tiles. Five products a block.
 *   apart      for few windows and many threads: tasks per (head, block of queries) for dq, then per (kv head, tile) for dk, dv.
 *              Seven products a block, as both need the scores.
 * Rule: same bits as ref/attention.c; a task writes its own rows only. */
#include "kernels/cpu/attention_tile.h"
#include "kernels/cpu/vmath.h"
#include "kernels/tables.h"

enum { BLOCK = 96 /* queries: p and ds are 24 KiB each, as are q and do at hd = 64 */ };
_Static_assert(((6 * TILE + 3 * BLOCK) * ATTENTION_MAX_HD + 2 * BLOCK * TILE + 2 * BLOCK + V16) * sizeof(float) <= KERNEL_SCRATCH_BYTES,
               "scratch");

typedef struct plan {
    const attention_args *a;
    moe_pool *pool;
    int tiles, blocks; /* of one window */
} plan;

typedef struct work {
    const attention_args *a;
    size_t width; /* hd padded */
    /* the tile of keys */
    size_t key_at; /* offset of its first row in k, v, dk, dv       */
    int64_t t0;
    int keys;
    float *key, *kt, *value, *vt; /* [TILE, width], [width, TILE], the same of v */
    float *dk, *dv;               /* [TILE, width]                               */
    /* the block of queries */
    size_t token, head; /* position 0 of the window; query head */
    int64_t first;
    int rows;
    float *q, *d_o, *dq; /* [BLOCK, width]             */
    float *lse, *delta;  /* [BLOCK]                    */
    float *p, *ds;       /* [BLOCK, TILE] (+ V16 read) */
} work;

static work work_open(const attention_args *a, float *scratch)
{
    work w = {.a = a, .width = padded(a->hd)};
    w.key = scratch;
    w.kt = w.key + TILE * w.width;
    w.value = w.kt + TILE * w.width;
    w.vt = w.value + TILE * w.width;
    w.dk = w.vt + TILE * w.width;
    w.dv = w.dk + TILE * w.width;
    w.q = w.dv + TILE * w.width;
    w.d_o = w.q + BLOCK * w.width;
    w.dq = w.d_o + BLOCK * w.width;
    w.lse = w.dq + BLOCK * w.width;
    w.delta = w.lse + BLOCK;
    w.p = w.delta + BLOCK;
    w.ds = w.p + BLOCK * TILE;
    return w;
}

static void load_tile(work *w, size_t kv, int64_t t0)
{
    const attention_args *a = w->a;
    w->t0 = t0;
    w->keys = a->S - t0 < TILE ? (int)(a->S - t0) : TILE;
    w->key_at = (w->token + (size_t)t0) * a->ldk + kv * (size_t)a->hd;
    pack_tile(w->key, a->k + w->key_at, a->ldk, w->keys, a->hd);
    pack_tile(w->value, a->v + w->key_at, a->ldk, w->keys, a->hd);
    transpose_tile(w->kt, w->key, w->width);
    transpose_tile(w->vt, w->value, w->width);
}

static void clear_tile(work *w) { memset(w->dk, 0, 2 * TILE * w->width * sizeof *w->dk); /* dv lies behind dk */ }

static void write_tile(const work *w)
{
    const attention_args *a = w->a;
    for (int j = 0; j < w->keys; j++)
        for (int d = 0; d < a->hd; d += V16) {
            const size_t from = (size_t)j * w->width + (size_t)d, to = w->key_at + (size_t)j * a->ldk + (size_t)d;
            row_store(a->dk + to, v16_fma(v16_load(w->dk + from), v16_set1(a->scale), v16_zero()), a->hd - d);
            row_store(a->dv + to, v16_add(v16_load(w->dv + from), v16_zero()), a->hd - d);
        }
}

static float delta_of(const float *d_o, const float *o, int n)
{
    v16 sum = v16_zero();
    for (int d = 0; d < n; d += V16)
        sum = v16_fma(row_load(d_o + d, n - d), row_load(o + d, n - d), sum);
    return v16_sum(sum);
}

static void load_block(work *w, size_t head, int64_t first)
{
    const attention_args *a = w->a;
    w->head = head, w->first = first;
    w->rows = a->S - first < BLOCK ? (int)(a->S - first) : BLOCK;
    const size_t t = w->token + (size_t)first, col = head * (size_t)a->hd;
    pack_rows(w->q, a->q + t * a->ldq + col, a->ldq, w->rows, a->hd);
    pack_rows(w->d_o, a->d_o + t * a->ldo + col, a->ldo, w->rows, a->hd);
    for (int r = 0; r < w->rows; r++) {
        const size_t at = (t + (size_t)r) * a->ldo + col;
        w->delta[r] = delta_of(a->d_o + at, a->o + at, a->hd);
        w->lse[r] = a->lse[(t + (size_t)r) * (size_t)a->H + head];
    }
}

/* dq so far: +0, or what an earlier tile left in the output. */
static void load_dq(work *w, bool zero)
{
    const attention_args *a = w->a;
    const size_t at = (w->token + (size_t)w->first) * a->ldq + w->head * (size_t)a->hd;
    if (zero)
        memset(w->dq, 0, (size_t)w->rows * w->width * sizeof *w->dq);
    else
        pack_rows(w->dq, a->dq + at, a->ldq, w->rows, a->hd);
}

/* A row whose last tile this was is scaled. */
static void write_dq(const work *w)
{
    const attention_args *a = w->a;
    for (int r = 0; r < w->rows; r++) {
        const bool last = w->first + r < w->t0 + TILE;
        float *to = a->dq + (w->token + (size_t)(w->first + r)) * a->ldq + w->head * (size_t)a->hd;
        for (int d = 0; d < a->hd; d += V16) {
            const v16 sum = v16_load(w->dq + (size_t)r * w->width + d);
            row_store(to + d, last ? v16_fma(sum, v16_set1(a->scale), v16_zero()) : sum, a->hd - d);
        }
    }
}

/* p and ds of one row from its scores and do.v; keys it does not see, and vectors that were not computed, become +0. */
SIMD void weigh_row(float *p, float *ds, float scale, float lse, float delta, int keys)
{
#pragma GCC unroll 4
    for (int v = 0; v < TILE_VECS; v++) {
        const int left = keys - v * V16;
        if (left <= 0) {
            v16_store(p + v * V16, v16_zero());
            v16_store(ds + v * V16, v16_zero());
            continue;
        }
        const v16 e = v16_exp(v16_fma(v16_load(p + v * V16), v16_set1(scale), v16_set1(-lse)));
        const v16 g = v16_mul(e, v16_sub(v16_load(ds + v * V16), v16_set1(delta)));
        v16_store(p + v * V16, row_pad(e, left, 0.0f));
        v16_store(ds + v * V16, row_pad(g, left, 0.0f));
    }
}

/* p and ds of the block against the tile. */
static void weigh_block(work *w)
{
    for (int r = 0; r < w->rows; r += PRODUCT_ROWS) {
        const int n = w->rows - r < PRODUCT_ROWS ? w->rows - r : PRODUCT_ROWS, most = visible(w->first + r + n - 1, w->t0, w->keys);
        product s = {.c = w->p + r * TILE, .a = w->q + (size_t)r * w->width, .b = w->kt, .ldc = TILE, .lda = w->width, .ldb = TILE,
                     .steps = w->a->hd, .zero = true};
        product_columns(&s, n, (most + V16 - 1) / V16, false);
    }
    for (int r = 0; r < w->rows; r += PRODUCT_ROWS) {
        const int n = w->rows - r < PRODUCT_ROWS ? w->rows - r : PRODUCT_ROWS, most = visible(w->first + r + n - 1, w->t0, w->keys);
        product s = {.c = w->ds + r * TILE, .a = w->d_o + (size_t)r * w->width, .b = w->vt, .ldc = TILE, .lda = w->width, .ldb = TILE,
                     .steps = w->a->hd, .zero = true};
        product_columns(&s, n, (most + V16 - 1) / V16, false);
    }
    for (int r = 0; r < w->rows; r++)
        weigh_row(w->p + r * TILE, w->ds + r * TILE, w->a->scale, w->lse[r], w->delta[r], visible(w->first + r, w->t0, w->keys));
}

static void add_dq(work *w)
{
    for (int r = 0; r < w->rows; r += PRODUCT_ROWS) {
        const int n = w->rows - r < PRODUCT_ROWS ? w->rows - r : PRODUCT_ROWS;
        const product dq = {.c = w->dq + (size_t)r * w->width, .a = w->ds + r * TILE, .b = w->key, .ldc = w->width, .lda = TILE,
                            .ldb = w->width, .steps = visible(w->first + r + n - 1, w->t0, w->keys)};
        product_columns(&dq, n, (int)(w->width / V16), false);
    }
}

/* c[j, :] += sum over the block's rows of weight[r, j] * b[r, :]; rows before key j's own query are masked and skipped. */
static void add_tile(const work *w, float *c, const float *weight, const float *b)
{
    for (int j = 0; j < w->keys; j += PRODUCT_ROWS) {
        const int n = w->keys - j < PRODUCT_ROWS ? w->keys - j : PRODUCT_ROWS;
        const int64_t before = w->t0 + j - w->first;
        const int from = before <= 0 ? 0 : before < w->rows ? (int)before : w->rows;
        const product g = {.c = c + (size_t)j * w->width, .a = weight + from * TILE + j, .b = b + (size_t)from * w->width,
                           .ldc = w->width, .lda = TILE, .ldb = w->width, .steps = w->rows - from};
        product_columns(&g, n, (int)(w->width / V16), true);
    }
}

static void add_dkv(work *w)
{
    add_tile(w, w->dv, w->p, w->d_o);
    add_tile(w, w->dk, w->ds, w->q);
}

static void together_tasks(void *ctx, int64_t begin, int64_t end, int worker)
{
    const plan *p = ctx;
    const attention_args *a = p->a;
    const size_t group = (size_t)(a->H / a->Hkv);
    work w = work_open(a, moe_pool_scratch(p->pool, worker));
    for (int64_t n = begin; n < end; n++) {
        const size_t kv = (size_t)(n % a->Hkv);
        w.token = (size_t)(n / a->Hkv) * (size_t)a->S;
        for (int64_t t0 = 0; t0 < a->S; t0 += TILE) {
            load_tile(&w, kv, t0);
            clear_tile(&w);
            for (size_t h = kv * group; h < (kv + 1) * group; h++)
                for (int64_t first = t0; first < a->S; first += BLOCK) {
                    load_block(&w, h, first);
                    load_dq(&w, t0 == 0);
                    weigh_block(&w);
                    add_dq(&w);
                    add_dkv(&w);
                    write_dq(&w);
                }
            write_tile(&w);
        }
    }
}

static void dq_tasks(void *ctx, int64_t begin, int64_t end, int worker)
{
    const plan *p = ctx;
    const attention_args *a = p->a;
    work w = work_open(a, moe_pool_scratch(p->pool, worker));
    for (int64_t n = begin; n < end; n++) {
        const int64_t first = (p->blocks - 1 - n % p->blocks) * BLOCK; /* the longest first */
        const int64_t pair = n / p->blocks;
        const size_t h = (size_t)(pair % a->H);
        w.token = (size_t)(pair / a->H) * (size_t)a->S;
        load_block(&w, h, first);
        load_dq(&w, true);
        for (int64_t t0 = 0; t0 < first + w.rows; t0 += TILE) {
            load_tile(&w, h / (size_t)(a->H / a->Hkv), t0);
            weigh_block(&w);
            add_dq(&w);
        }
        write_dq(&w);
    }
}

static void dkv_tasks(void *ctx, int64_t begin, int64_t end, int worker)
{
    const plan *p = ctx;
    const attention_args *a = p->a;
    const size_t group = (size_t)(a->H / a->Hkv);
    work w = work_open(a, moe_pool_scratch(p->pool, worker));
    for (int64_t n = begin; n < end; n++) {
        const int64_t t0 = n % p->tiles * TILE, pair = n / p->tiles;
        const size_t kv = (size_t)(pair % a->Hkv);
        w.token = (size_t)(pair / a->Hkv) * (size_t)a->S;
        load_tile(&w, kv, t0);
        clear_tile(&w);
        for (size_t h = kv * group; h < (kv + 1) * group; h++)
            for (int64_t first = t0; first < a->S; first += BLOCK) {
                load_block(&w, h, first);
                weigh_block(&w);
                add_dkv(&w);
            }
        write_tile(&w);
    }
}

moe_err ISA(attention_backward)(const attention_args *a, moe_stream *s)
{
    TRY(attention_check(a));
    const int64_t tasks = (int64_t)a->B * a->Hkv, threads = moe_pool_threads(s->pool);
    plan p = {.a = a, .pool = s->pool, .tiles = (a->S + TILE - 1) / TILE, .blocks = (a->S + BLOCK - 1) / BLOCK};
    if ((tasks + threads - 1) / threads * threads * 5 <= tasks * 7) { /* five products by whole rounds of tasks, or seven spread evenly */
        moe_pool_for(s->pool, tasks, 1, together_tasks, &p);
    } else {
        moe_pool_for(s->pool, (int64_t)a->B * a->H * p.blocks, 1, dq_tasks, &p);
        moe_pool_for(s->pool, tasks * p.tiles, 1, dkv_tasks, &p);
    }
    return MOE_OK;
}
