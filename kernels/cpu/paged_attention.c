/* Attention over pages, fast (kernels/paged_attention.h). A task is a block of neighbouring tokens of one sequence (a chunk of a prompt, or one decoded
 * token), for query heads of one kv head, so that a page's keys and values are read and widened once for all of them. NUM_F32 pages are used
 * where they lie.
 * Rule: same bits as ref/paged_attention.c; a task writes its own rows of o only. */
#include "kernels/cpu/attention_softmax.h"
#include "kernels/kv_page.h"
#include "kernels/tables.h"

enum {
    ROWS = 512,       /* (token, head) pairs of a task at most: widening a page costs as much as 8 of them */
    ROWS_LEAST = 128, /* when more tasks are wanted                                                      */
    ROW_FLOATS = 256 * ATTENTION_MAX_HD,
    BLOCKS = 256, /* blocks of tokens handed out at one time */
    TASKS_PER_THREAD = 4,
};
_Static_assert(ROWS_LEAST * ATTENTION_MAX_HD <= ROW_FLOATS, "a task fits");
_Static_assert((2 * ROW_FLOATS + 2 * TILE * ATTENTION_MAX_HD + SOFTMAX_ROWS * (TILE + 1) + 2 * ROWS) * sizeof(float) <= KERNEL_SCRATCH_BYTES,
               "scratch");

/* Tokens [token, token + n) of one sequence at successive positions. */
typedef struct block {
    int64_t token;
    int n;
} block;

typedef struct plan {
    const paged_attention_args *a;
    moe_pool *pool;
    kv_layout layout;
    int queries;           /* tokens of a block at most                              */
    int heads, head_parts; /* query heads of one task; tasks that share a kv head    */
    int nblocks;
    block block[BLOCKS];
} plan;

/* Row r is token first + r / heads of the block, head `head` + r % heads. */
typedef struct task {
    const paged_attention_args *a;
    const kv_layout *layout;
    const void *const *pages;
    int64_t token, first; /* row 0: token of the call, position in its sequence */
    size_t head, kv;
    int rows, heads;
    size_t qwidth, width;  /* of a key, of a value; padded                     */
    size_t head_q, head_o; /* floats from head to head in q and o              */
    float *q, *o;          /* [rows, qwidth], [rows, width]                    */
    float *kt, *wide; /* [qwidth, TILE], [TILE, width]: a page widened    */
    float *p;         /* [SOFTMAX_ROWS, TILE]                             */
    float *factor;    /* [SOFTMAX_ROWS]                                   */
    float *m, *l;     /* [rows]                                           */
} task;

SIMD v16 load_bf16(const uint16_t *p) { return i16_float(i16_shl(i16_load_u16(p), 16)); }

SIMD v16 load_i8(const int8_t *p)
{
    const __m128i x = _mm_loadu_si128((const __m128i *)(const void *)p);
#if MOE_SIMD_512
    return i16_to_v16(_mm512_cvtepi8_epi32(x));
#else
    return i16_to_v16((i16){_mm256_cvtepi8_epi32(x), _mm256_cvtepi8_epi32(_mm_unpackhi_epi64(x, x))});
#endif
}

/* Keys [0, 16 * vecs) of a kv head as floats [hd, TILE]. */
static void widen_keys(float *to, const char *head, const kv_layout *l, numfmt f, int hd, int vecs)
{
    const uint16_t *half = (const uint16_t *)(const void *)head, *scale = (const uint16_t *)(const void *)(head + l->key_scale);
    for (int v = 0; v < vecs; v++)
        for (int first = 0; first < hd; first += KV_BLOCK) {
            const int end = first + KV_BLOCK < hd ? first + KV_BLOCK : hd;
            const v16 s = f == NUM_Q8_0 ? load_bf16(scale + first / KV_BLOCK * TILE + v * V16) : v16_zero();
            for (int d = first; d < end; d++) {
                const int at = d * TILE + v * V16;
                v16_store(to + at, f == NUM_BF16 ? load_bf16(half + at) : v16_mul(load_i8((const int8_t *)head + at), s));
            }
        }
}

/* Values [0, keys) of a kv head as floats [TILE, width]; what lies in the pads is not used. */
static void widen_values(float *to, const char *head, const kv_layout *l, numfmt f, int keys)
{
    const uint16_t *half = (const uint16_t *)(const void *)(head + l->value);
    const uint16_t *scale = (const uint16_t *)(const void *)(head + l->value_scale);
    for (int j = 0; j < keys; j++)
        for (size_t d = 0; d < l->width; d += V16) {
            const size_t at = (size_t)j * l->width + d;
            if (f == NUM_BF16)
                v16_store(to + at, load_bf16(half + at));
            else
                v16_store(to + at, v16_mul(load_i8((const int8_t *)(head + l->value) + at),
                                           v16_set1(kv_from_bf16(scale[(size_t)(j * l->blocks) + d / KV_BLOCK]))));
        }
}

/* Values that are the first numbers of their keys: kt [>= width, TILE] turned over, for `keys` keys. */
static void turn_values(float *to, const float *kt, size_t width, int keys)
{
    for (size_t j = 0; j < (size_t)keys; j += V16)
        for (size_t d = 0; d < width; d += V16)
            v16_transpose(to + j * width + d, width, kt + d * TILE + j, TILE, V16);
}

/* Few rows (decoded tokens) read a page as it lies: what would be stored widened is used at once. rows and f are constants where these
 * are inlined. Scores of whole tiles: columns past the last visible key hold anything and are masked later. */
SIMD void scores_direct(const task *k, const char *head, const int rows, const numfmt f)
{
    const uint16_t *half = (const uint16_t *)(const void *)head, *scale = (const uint16_t *)(const void *)(head + k->layout->key_scale);
    for (int v = 0; v < TILE_VECS; v += PRODUCT_VECS) {
        v16 acc[PRODUCT_ROWS][PRODUCT_VECS], s[PRODUCT_VECS] = {v16_zero()}, b[PRODUCT_VECS];
#pragma GCC unroll 6
        for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
            for (int j = 0; j < PRODUCT_VECS; j++)
                acc[i][j] = v16_zero();
        for (int d = 0; d < k->a->hd; d++) {
            const int at = d * TILE + v * V16;
#pragma GCC unroll 4
            for (int j = 0; j < PRODUCT_VECS; j++) {
                if (f == NUM_Q8_0 && d % KV_BLOCK == 0)
                    s[j] = load_bf16(scale + d / KV_BLOCK * TILE + (v + j) * V16);
                b[j] = f == NUM_BF16 ? load_bf16(half + at + j * V16) : v16_mul(load_i8((const int8_t *)head + at + j * V16), s[j]);
            }
#pragma GCC unroll 6
            for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
                for (int j = 0; j < PRODUCT_VECS; j++)
                    acc[i][j] = v16_fma(v16_set1(k->q[(size_t)i * k->width + (size_t)d]), b[j], acc[i][j]);
        }
#pragma GCC unroll 6
        for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
            for (int j = 0; j < PRODUCT_VECS; j++)
                v16_store(k->p + i * TILE + (v + j) * V16, acc[i][j]);
    }
}

/* Columns [d, d + 16 * vecs) of o. */
SIMD void values_columns(const task *k, const char *head, int keys, size_t d, const int rows, const int vecs, const numfmt f)
{
    const kv_layout *l = k->layout;
    const uint16_t *half = (const uint16_t *)(const void *)(head + l->value), *scale = (const uint16_t *)(const void *)(head + l->value_scale);
    v16 acc[PRODUCT_ROWS][PRODUCT_VECS];
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < vecs; j++)
            acc[i][j] = v16_mul(v16_load(k->o + (size_t)i * k->width + d + (size_t)(j * V16)), v16_set1(k->factor[i]));
    for (int key = 0; key < keys; key++) {
        const size_t at = (size_t)key * l->width + d;
        v16 b[PRODUCT_VECS];
#pragma GCC unroll 4
        for (int j = 0; j < vecs; j++) {
            const size_t column = at + (size_t)(j * V16);
            if (f == NUM_BF16)
                b[j] = load_bf16(half + column);
            else
                b[j] = v16_mul(load_i8((const int8_t *)(head + l->value) + column),
                               v16_set1(kv_from_bf16(scale[(size_t)(key * l->blocks) + (d + (size_t)(j * V16)) / KV_BLOCK])));
        }
#pragma GCC unroll 6
        for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
            for (int j = 0; j < vecs; j++)
                acc[i][j] = v16_fma(v16_set1(k->p[i * TILE + key]), b[j], acc[i][j]);
    }
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < vecs; j++)
            v16_store(k->o + (size_t)i * k->width + d + (size_t)(j * V16), acc[i][j]);
}

SIMD void values_direct(const task *k, const char *head, int keys, const int rows, const numfmt f)
{
    size_t d = 0;
    for (; d + PRODUCT_VECS * V16 <= k->width; d += PRODUCT_VECS * V16)
        values_columns(k, head, keys, d, rows, PRODUCT_VECS, f);
    for (; d < k->width; d += V16)
        values_columns(k, head, keys, d, rows, 1, f);
}

#define DIRECT_DEFINE(r, f)                                                                                              \
    static void scores_##f##_##r(const task *k, const char *head) { scores_direct(k, head, r, f); }                       \
    static void values_##f##_##r(const task *k, const char *head, int keys) { values_direct(k, head, keys, r, f); }
#define DIRECT_EACH(X, f) X(1, f) X(2, f) X(3, f) X(4, f) X(5, f) X(6, f)
DIRECT_EACH(DIRECT_DEFINE, NUM_BF16)
DIRECT_EACH(DIRECT_DEFINE, NUM_Q8_0)
#define DIRECT_SCORES(r, f) scores_##f##_##r,
#define DIRECT_VALUES(r, f) values_##f##_##r,
typedef void (*scores_fn)(const task *k, const char *head);
typedef void (*values_fn)(const task *k, const char *head, int keys);
static const scores_fn scores_table[2][PRODUCT_ROWS] = {{DIRECT_EACH(DIRECT_SCORES, NUM_BF16)}, {DIRECT_EACH(DIRECT_SCORES, NUM_Q8_0)}};
static const values_fn values_table[2][PRODUCT_ROWS] = {{DIRECT_EACH(DIRECT_VALUES, NUM_BF16)}, {DIRECT_EACH(DIRECT_VALUES, NUM_Q8_0)}};

static void task_open(task *k, float *scratch)
{
    k->q = scratch;
    k->o = k->q + (size_t)k->rows * k->qwidth;
    k->kt = k->o + (size_t)k->rows * k->width;
    k->wide = k->kt + TILE * k->qwidth;
    k->p = k->wide + TILE * k->width;
    k->factor = k->p + SOFTMAX_ROWS * TILE;
    k->m = k->factor + SOFTMAX_ROWS;
    k->l = k->m + k->rows;
    for (int r = 0; r < k->rows; r++) {
        const float *sinks = k->a->sinks;
        k->m[r] = sinks != NULL ? sinks[k->head + (size_t)(r % k->heads)] : -INFINITY;
        k->l[r] = sinks != NULL ? 1.0f : 0.0f;
    }
    memset(k->o, 0, (size_t)k->rows * k->width * sizeof *k->o);
}

/* Offset of row r in an array whose tokens are ld and whose heads are `head` floats apart: q or o. */
static size_t row_at(const task *k, int r, size_t ld, size_t head)
{
    return (size_t)(k->token + r / k->heads) * ld + (k->head + (size_t)(r % k->heads)) * head;
}

/* Rows [r0, r0 + rows) against one page, whose first key is position t0. */
static void attend_rows(const task *k, int r0, int rows, int64_t t0, const float *kt, const float *value)
{
    for (int r = 0; r < rows; r += PRODUCT_ROWS) {
        const int n = rows - r < PRODUCT_ROWS ? rows - r : PRODUCT_ROWS, most = visible(k->first + (r0 + r + n - 1) / k->heads, t0, TILE);
        const product s = {.c = k->p + r * TILE, .a = k->q + (size_t)(r0 + r) * k->qwidth, .b = kt, .ldc = TILE, .lda = k->qwidth,
                           .ldb = TILE, .steps = k->a->hd, .zero = true};
        product_columns(&s, n, (most + V16 - 1) / V16, false);
    }
    const softmax_args soft = {.p = k->p, .factor = k->factor, .m = k->m + r0, .l = k->l + r0, .scale = k->a->scale, .first = k->first,
                               .row = r0, .heads = k->heads, .window = k->a->window};
    softmax_tile(&soft, rows, t0, TILE);
    for (int r = 0; r < rows; r += PRODUCT_ROWS) {
        const int n = rows - r < PRODUCT_ROWS ? rows - r : PRODUCT_ROWS, most = visible(k->first + (r0 + r + n - 1) / k->heads, t0, TILE);
        const product o = {.c = k->o + (size_t)(r0 + r) * k->width, .a = k->p + r * TILE, .b = value, .factor = k->factor + r,
                           .ldc = k->width, .lda = TILE, .ldb = k->width, .steps = most};
        product_columns(&o, n, (int)(k->width / V16), false);
    }
}

/* Rows [0, rows) against one page as it lies. */
static void attend_direct(const task *k, int rows, int64_t t0, const char *head, int keys)
{
    const bool q8 = k->a->format == NUM_Q8_0;
    const softmax_args soft = {.p = k->p, .factor = k->factor, .m = k->m, .l = k->l, .scale = k->a->scale, .first = k->first,
                               .heads = k->heads, .window = k->a->window};
    scores_table[q8][rows - 1](k, head);
    softmax_tile(&soft, rows, t0, TILE);
    values_table[q8][rows - 1](k, head, keys);
}

/* Rows of a task that see something of the page at t0, or of a later one: the windows of those behind them begin after it. */
static int rows_reaching(const task *k, int64_t t0)
{
    const int window = k->a->window;
    const int64_t tokens = t0 + TILE - 1 + window - k->first;
    return window > 0 && tokens < (k->rows + k->heads - 1) / k->heads ? (int)tokens * k->heads : k->rows;
}

static void attend_page(const task *k, int64_t t0)
{
    const paged_attention_args *a = k->a;
    const char *head = (const char *)k->pages[t0 / TILE] + k->kv * k->layout->head;
    const float *kt = (const float *)(const void *)head, *value = (const float *)(const void *)(head + k->layout->value);
    const int until = rows_reaching(k, t0), most = visible(k->first + (until - 1) / k->heads, t0, TILE);
    const int from = t0 > k->first ? (int)(t0 - k->first) * k->heads : 0; /* earlier rows see nothing of this page */
    if (a->format != NUM_F32 && a->hdv == 0 && from == 0 && until <= PRODUCT_ROWS) {
        attend_direct(k, until, t0, head, most);
        return;
    }
    if (a->format != NUM_F32) {
        widen_keys(k->kt, head, k->layout, a->format, a->hd, (most + V16 - 1) / V16);
        kt = k->kt;
    }
    if (a->hdv > 0)
        turn_values(k->wide, kt, k->width, most);
    else if (a->format != NUM_F32)
        widen_values(k->wide, head, k->layout, a->format, most);
    if (a->hdv > 0 || a->format != NUM_F32)
        value = k->wide;
    for (int r = from; r < until; r += SOFTMAX_ROWS)
        attend_rows(k, r, until - r < SOFTMAX_ROWS ? until - r : SOFTMAX_ROWS, t0, kt, value);
}

static void write_rows(const task *k)
{
    const int width = k->a->hdv > 0 ? k->a->hdv : k->a->hd;
    for (int r = 0; r < k->rows; r++) {
        const v16 inverse = v16_set1(1.0f / k->l[r]);
        float *o = k->a->o + row_at(k, r, k->a->ldo, k->head_o);
        for (int d = 0; d < width; d += V16)
            row_store(o + d, v16_fma(v16_load(k->o + (size_t)r * k->width + (size_t)d), inverse, v16_zero()), width - d);
    }
}

static void run_task(const plan *p, int64_t n, float *scratch)
{
    const paged_attention_args *a = p->a;
    const int part = (int)(n % p->head_parts), group = a->H / a->Hkv, skip = part * p->heads;
    n /= p->head_parts;
    const size_t kv = (size_t)(n % a->Hkv);
    const block *b = &p->block[p->nblocks - 1 - n / a->Hkv]; /* of a long chunk, the block that sees most first */
    task k = {.a = a, .layout = &p->layout, .pages = a->pages[b->token], .token = b->token, .first = a->pos[b->token], .kv = kv,
              .head = kv * (size_t)group + (size_t)skip, .heads = group - skip < p->heads ? group - skip : p->heads,
              .qwidth = padded(a->hd), .width = p->layout.width, .head_q = a->head_q, .head_o = a->head_o};
    if (k.head_q == 0)
        k.head_q = (size_t)a->hd;
    if (k.head_o == 0)
        k.head_o = (size_t)(a->hdv > 0 ? a->hdv : a->hd);
    k.rows = b->n * k.heads;
    task_open(&k, scratch);
    for (int r = 0; r < k.rows; r++)
        pack_rows(k.q + (size_t)r * k.qwidth, a->q + row_at(&k, r, a->ldq, k.head_q), 0, 1, a->hd);
    const int64_t oldest = a->window > 0 && k.first >= a->window ? k.first - a->window + 1 : 0;
    for (int64_t t0 = oldest / TILE * TILE; t0 < k.first + b->n; t0 += TILE)
        attend_page(&k, t0);
    write_rows(&k);
}

static void run_tasks(void *ctx, int64_t begin, int64_t end, int worker)
{
    const plan *p = ctx;
    for (int64_t n = begin; n < end; n++)
        run_task(p, n, moe_pool_scratch(p->pool, worker));
}

/* Tokens from t on that stand in one block: same table, successive positions, at most `most`. */
static int block_length(const paged_attention_args *a, int64_t t, int most)
{
    int n = 1;
    while (n < most && t + n < a->T && a->pages[t + n] == a->pages[t] && a->pos[t + n] == a->pos[t] + n)
        n++;
    return n;
}

static int64_t count_blocks(const paged_attention_args *a, int most)
{
    int64_t blocks = 0;
    for (int64_t t = 0; t < a->T; t += block_length(a, t, most))
        blocks++;
    return blocks;
}

/* How many rows a task has: as many as fit, fewer where threads would idle; then the heads of a group are shared out too. */
static void plan_tasks(plan *p)
{
    const paged_attention_args *a = p->a;
    const int group = a->H / a->Hkv, threads = moe_pool_threads(p->pool);
    int rows = ROWS;
    p->heads = group < rows ? group : rows;
    for (;;) {
        p->heads = p->heads < rows ? p->heads : rows;
        p->head_parts = (group + p->heads - 1) / p->heads;
        p->queries = rows / p->heads;
        const int64_t tasks = count_blocks(a, p->queries) * a->Hkv * p->head_parts;
        const bool fits = (size_t)rows * padded(a->hd) <= ROW_FLOATS;
        if (rows > ROWS_LEAST && (!fits || tasks < TASKS_PER_THREAD * threads))
            rows /= 2;
        else if (p->heads > 1 && tasks < TASKS_PER_THREAD * threads && tasks % threads != 0)
            p->heads = (p->heads + 1) / 2;
        else
            return;
    }
}

moe_err ISA(paged_attention)(const paged_attention_args *a, moe_stream *s)
{
    TRY(kv_check("paged attention", a->format, a->H, a->Hkv, a->hd, a->hdv));
    plan p = {.a = a, .pool = s->pool, .layout = kv_layout_of(a->format, a->hd, a->hdv)};
    plan_tasks(&p);
    for (int64_t t = 0; t < a->T;) {
        for (p.nblocks = 0; p.nblocks < BLOCKS && t < a->T; t += p.block[p.nblocks++].n)
            p.block[p.nblocks] = (block){t, block_length(a, t, p.queries)};
        moe_pool_for(s->pool, (int64_t)p.nblocks * a->Hkv * p.head_parts, 1, run_tasks, &p);
    }
    return MOE_OK;
}
