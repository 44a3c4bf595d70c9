/* Causal attention backward, fast (kernels/attention.h).
 * A block is BLOCK queries of one head; against each tile of keys, scores and do.v are recomputed, then dq of the block and dk, dv of the
 * tile go on by one link of their chains. Several tiles are packed at a time (a span), so that a block is fetched once for all of them.
 * Two ways over the blocks, the same bits:
 *   together   a task is one kv head of one window: spans in order, under each the heads of the group and their blocks in order. dq waits
 *              in the output between spans. Five products a block and tile.
 *   apart      for few windows and many threads: tasks per (head, block of queries) for dq, then per (kv head, tile) for dk, dv.
 *              Seven products, as both need the scores.
 * Rule: same bits as ref/attention.c; a task writes its own rows only. */
#include "kernels/cpu/attention_tile.h"
#include "kernels/cpu/vmath.h"
#include "kernels/tables.h"

enum {
    BLOCK = 96, /* queries: p and ds are 24 KiB each, as are q and do at hd = 64                              */
    SPAN = 8,   /* tiles at most                                                                              */
    SPAN_FLOATS = 6 * TILE * 64 * 4, /* 384 KiB, 4 tiles at hd = 64: a part of the L2 cache of every processor */
};
_Static_assert(((6 * TILE + 3 * BLOCK) * ATTENTION_MAX_HD + 2 * BLOCK * TILE + 2 * BLOCK) * sizeof(float) <= KERNEL_SCRATCH_BYTES &&
                   (3 * BLOCK * ATTENTION_MAX_HD + SPAN_FLOATS + 2 * BLOCK * TILE + 2 * BLOCK) * sizeof(float) <= KERNEL_SCRATCH_BYTES,
               "scratch: one tile of the widest head, or a span of narrower ones");

typedef struct plan {
    const attention_args *a;
    moe_pool *pool;
    int tiles, blocks; /* of one window */
} plan;

/* A packed tile of keys. */
typedef struct tile {
    size_t at; /* offset of its first row in k, v, dk, dv */
    int64_t t0;
    int keys;
    float *key, *kt, *value, *vt; /* [TILE, width], [width, TILE], the same of v */
    float *dk, *dv;               /* [TILE, width]                               */
} tile;

typedef struct work {
    const attention_args *a;
    size_t width;  /* hd padded                    */
    size_t token;  /* of the window's position 0   */
    tile tiles[SPAN];
    int span, count; /* tiles there is room for; tiles that are loaded */
    /* the block of queries */
    size_t head;
    int64_t first;
    int rows;
    float *q, *d_o, *dq; /* [BLOCK, width]             */
    float *lse, *delta;  /* [BLOCK]                    */
    float *p, *ds;       /* [BLOCK, TILE]            */
    /* the block after it, to be fetched meanwhile; next_rows 0: none */
    size_t next_q, next_o; /* offsets of its first row in q, dq and in do, o */
    int next_rows;
} work;

static work work_open(const attention_args *a, float *scratch)
{
    work w = {.a = a, .width = padded(a->hd)};
    const size_t one = TILE * w.width;
    w.span = (int)(SPAN_FLOATS / (6 * one));
    w.span = w.span < 1 ? 1 : w.span > SPAN ? SPAN : w.span;
    for (int i = 0; i < w.span; i++, scratch += 6 * one)
        w.tiles[i] = (tile){.key = scratch, .kt = scratch + one, .value = scratch + 2 * one, .vt = scratch + 3 * one,
                            .dk = scratch + 4 * one, .dv = scratch + 5 * one};
    w.q = scratch;
    w.d_o = w.q + BLOCK * w.width;
    w.dq = w.d_o + BLOCK * w.width;
    w.lse = w.dq + BLOCK * w.width;
    w.delta = w.lse + BLOCK;
    w.p = w.delta + BLOCK;
    w.ds = w.p + BLOCK * TILE;
    return w;
}

static void load_tile(const work *w, tile *k, size_t kv, int64_t t0)
{
    const attention_args *a = w->a;
    k->t0 = t0;
    k->keys = a->S - t0 < TILE ? (int)(a->S - t0) : TILE;
    k->at = (w->token + (size_t)t0) * a->ldk + kv * (size_t)a->hd;
    pack_tile(k->key, a->k + k->at, a->ldk, k->keys, a->hd);
    pack_tile(k->value, a->v + k->at, a->ldk, k->keys, a->hd);
    transpose_tile(k->kt, k->key, w->width);
    transpose_tile(k->vt, k->value, w->width);
    memset(k->dk, 0, TILE * w->width * sizeof *k->dk);
    memset(k->dv, 0, TILE * w->width * sizeof *k->dv);
}

/* Tiles from t0 on, at most `most`. */
static void load_span(work *w, size_t kv, int64_t t0, int most)
{
    w->count = 0;
    for (; w->count < w->span && w->count < most && t0 < w->a->S; w->count++, t0 += TILE)
        load_tile(w, &w->tiles[w->count], kv, t0);
}

static void write_span(const work *w)
{
    const attention_args *a = w->a;
    for (const tile *k = w->tiles; k < w->tiles + w->count; k++)
        for (int j = 0; j < k->keys; j++)
            for (int d = 0; d < a->hd; d += V16) {
                const size_t from = (size_t)j * w->width + (size_t)d, to = k->at + (size_t)j * a->ldk + (size_t)d;
                row_store(a->dk + to, v16_fma(v16_load(k->dk + from), v16_set1(a->scale), v16_zero()), a->hd - d);
                row_store(a->dv + to, v16_add(v16_load(k->dv + from), v16_zero()), a->hd - d);
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

/* A row that has seen all its keys is scaled. */
static void write_dq(const work *w)
{
    const attention_args *a = w->a;
    const int64_t seen = w->tiles[w->count - 1].t0 + TILE;
    for (int r = 0; r < w->rows; r++) {
        const bool last = w->first + r < seen;
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

/* Scores or do.v of row block r, of the vectors of keys that any of its rows sees. */
SIMD void product_scores(const work *w, const tile *k, float *c, const float *rows, const float *transposed, int r, int n)
{
    const product s = {.c = c + r * TILE, .a = rows + (size_t)r * w->width, .b = transposed, .ldc = TILE, .lda = w->width, .ldb = TILE,
                       .steps = w->a->hd, .zero = true};
    product_columns(&s, n, (visible(w->first + r + n - 1, k->t0, k->keys) + V16 - 1) / V16, false);
}

static void prefetch_block(const work *w, int r, int n)
{
    const attention_args *a = w->a;
    if (r + n > w->next_rows)
        return;
    prefetch_rows(a->q + w->next_q + (size_t)r * a->ldq, a->ldq, n, a->hd);
    prefetch_rows(a->dq + w->next_q + (size_t)r * a->ldq, a->ldq, n, a->hd);
    prefetch_rows(a->o + w->next_o + (size_t)r * a->ldo, a->ldo, n, a->hd);
    prefetch_rows(a->d_o + w->next_o + (size_t)r * a->ldo, a->ldo, n, a->hd);
}

/* p and ds of the block against the tile. */
static void weigh_block(const work *w, const tile *k)
{
    for (int r = 0; r < w->rows; r += PRODUCT_ROWS) {
        const int n = w->rows - r < PRODUCT_ROWS ? w->rows - r : PRODUCT_ROWS;
        if (k == w->tiles)
            prefetch_block(w, r, n);
        product_scores(w, k, w->p, w->q, k->kt, r, n);
    }
    for (int r = 0; r < w->rows; r += PRODUCT_ROWS)
        product_scores(w, k, w->ds, w->d_o, k->vt, r, w->rows - r < PRODUCT_ROWS ? w->rows - r : PRODUCT_ROWS);
    for (int r = 0; r < w->rows; r++)
        weigh_row(w->p + r * TILE, w->ds + r * TILE, w->a->scale, w->lse[r], w->delta[r], visible(w->first + r, k->t0, k->keys));
}

static void add_dq(const work *w, const tile *k)
{
    for (int r = 0; r < w->rows; r += PRODUCT_ROWS) {
        const int n = w->rows - r < PRODUCT_ROWS ? w->rows - r : PRODUCT_ROWS;
        const product dq = {.c = w->dq + (size_t)r * w->width, .a = w->ds + r * TILE, .b = k->key, .ldc = w->width, .lda = TILE,
                            .ldb = w->width, .steps = visible(w->first + r + n - 1, k->t0, k->keys)};
        product_columns(&dq, n, (int)(w->width / V16), false);
    }
}

/* c[j, :] += sum over the block's rows of weight[r, j] * b[r, :]; rows before key j's own query are masked and skipped. */
static void add_tile(const work *w, const tile *k, float *c, const float *weight, const float *b)
{
    for (int j = 0; j < k->keys; j += PRODUCT_ROWS) {
        const int n = k->keys - j < PRODUCT_ROWS ? k->keys - j : PRODUCT_ROWS;
        const int64_t before = k->t0 + j - w->first;
        const int from = before <= 0 ? 0 : before < w->rows ? (int)before : w->rows;
        const product g = {.c = c + (size_t)j * w->width, .a = weight + from * TILE + j, .b = b + (size_t)from * w->width,
                           .ldc = w->width, .lda = TILE, .ldb = w->width, .steps = w->rows - from};
        product_columns(&g, n, (int)(w->width / V16), true);
    }
}

static void add_dkv(const work *w, const tile *k)
{
    add_tile(w, k, k->dv, w->p, w->d_o);
    add_tile(w, k, k->dk, w->ds, w->q);
}

static bool block_sees(const work *w, const tile *k) { return k->t0 < w->first + w->rows; }

/* What load_block will read after the present block: the next of this head, or the first of head + 1 (`end`: no head). */
static void announce_block(work *w, int64_t from, size_t end)
{
    const attention_args *a = w->a;
    int64_t first = w->first + BLOCK;
    size_t head = w->head;
    if (first >= a->S)
        first = from, head++;
    w->next_rows = head == end ? 0 : a->S - first < BLOCK ? (int)(a->S - first) : BLOCK;
    w->next_q = (w->token + (size_t)first) * a->ldq + head * (size_t)a->hd;
    w->next_o = (w->token + (size_t)first) * a->ldo + head * (size_t)a->hd;
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
        for (int64_t t0 = 0; t0 < a->S; t0 += w.count * TILE) {
            load_span(&w, kv, t0, SPAN);
            for (size_t h = kv * group; h < (kv + 1) * group; h++)
                for (int64_t first = t0; first < a->S; first += BLOCK) {
                    load_block(&w, h, first);
                    load_dq(&w, t0 == 0);
                    announce_block(&w, t0, (kv + 1) * group);
                    for (const tile *k = w.tiles; k < w.tiles + w.count && block_sees(&w, k); k++) {
                        weigh_block(&w, k);
                        add_dq(&w, k);
                        add_dkv(&w, k);
                    }
                    write_dq(&w);
                }
            write_span(&w);
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
            load_span(&w, h / (size_t)(a->H / a->Hkv), t0, 1);
            weigh_block(&w, w.tiles);
            add_dq(&w, w.tiles);
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
        load_span(&w, kv, t0, 1);
        for (size_t h = kv * group; h < (kv + 1) * group; h++)
            for (int64_t first = t0; first < a->S; first += BLOCK) {
                load_block(&w, h, first);
                announce_block(&w, t0, (kv + 1) * group);
                weigh_block(&w, w.tiles);
                add_dkv(&w, w.tiles);
            }
        write_span(&w);
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
