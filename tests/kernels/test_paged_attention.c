/* Attention over pages: F32 pages against attention.h on whole sequences, however they were cut; bf16 against attention.h on rounded keys and
 * values; q8_0 within its step; every backend against the reference bit by bit, also in mixed batches; refusals. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/paged_attention.h"
#include "tests/kernels/harness.h"

typedef struct shape {
    const char *name;
    int S, H, Hkv, hd;
} shape;

static const shape shapes[] = {
    {"one token", 1, 1, 1, 1},         {"one page", 64, 4, 2, 64},           {"one past a page", 65, 4, 4, 32},
    {"wide heads", 200, 2, 1, 128},    {"nothing divides", 131, 9, 3, 20},   {"odd width", 70, 6, 2, 33},
    {"many share one", 130, 16, 1, 8}, {"blocks of queries", 330, 2, 2, 48}, {"more heads than rows", 3, 600, 1, 8},
    {"the widest head", 66, 1, 1, ATTENTION_MAX_HD},
};
enum { SHAPES = sizeof shapes / sizeof *shapes };

/* One sequence: its tokens' q | k | v rows, its pages, and what the kernel made of it. */
typedef struct sequence {
    shape s;
    size_t ld, ldo, page_bytes;
    float *qkv, *o;
    char *memory;
    void **pages;
    int npages;
    int window;         /* 0: none    */
    const float *sinks; /* NULL: none */
} sequence;

static sequence sequence_new(shape s, numfmt f, uint64_t seed, bool mild)
{
    sequence q = {.s = s, .ld = (size_t)(s.H + 2 * s.Hkv) * (size_t)s.hd + 5, .ldo = (size_t)(s.H * s.hd) + 3,
                  .page_bytes = kv_page_bytes(f, s.Hkv, s.hd, 0), .npages = (s.S + KV_PAGE - 1) / KV_PAGE};
    q.qkv = test_new_filled((size_t)s.S * q.ld, seed);
    for (size_t i = 0; mild && i < (size_t)s.S * q.ld; i++)
        q.qkv[i] = (float)((double)(test_bits(seed, i) >> 11) * 0x1p-52 - 1.0); /* [-1, 1) */
    q.o = test_new((size_t)s.S * q.ldo, false);
    for (size_t i = 0; i < (size_t)s.S * q.ldo; i++)
        q.o[i] = 7.0f; /* the gap must keep it */
    q.memory = aligned_alloc(64, (size_t)q.npages * q.page_bytes);
    q.pages = malloc((size_t)q.npages * sizeof *q.pages);
    cr_assert(q.memory != NULL && q.pages != NULL && q.page_bytes % 64 == 0);
    memset(q.memory, 0xff, (size_t)q.npages * q.page_bytes); /* NaN: what was not stored is not used */
    for (int p = 0; p < q.npages; p++)
        q.pages[p] = q.memory + (size_t)(q.npages - 1 - p) * q.page_bytes; /* in any order */
    return q;
}

static void sequence_free(sequence *q)
{
    test_free(q->qkv), test_free(q->o);
    free(q->memory), free(q->pages);
}

/* Tokens [first, first + n) of one sequence. */
typedef struct piece {
    sequence *q;
    int first, n;
} piece;

/* All pieces in one call: their rows are gathered into one batch, as a step does. */
static void run_batch(const moe_backend *b, moe_stream *s, const piece *part, int n, numfmt f)
{
    const sequence *any = part[0].q;
    int T = 0;
    for (int i = 0; i < n; i++)
        T += part[i].n;
    float *rows = test_new((size_t)T * any->ld, false), *o = test_new((size_t)T * any->ldo, false);
    void **page = malloc((size_t)T * sizeof *page);
    int32_t *pos = malloc((size_t)T * sizeof *pos);
    const void *const **tables = malloc((size_t)T * sizeof *tables);
    int t = 0;
    for (int i = 0; i < n; i++)
        for (int j = part[i].first; j < part[i].first + part[i].n; j++, t++) {
            memcpy(rows + (size_t)t * any->ld, part[i].q->qkv + (size_t)j * any->ld, any->ld * sizeof *rows);
            page[t] = part[i].q->pages[j / KV_PAGE];
            tables[t] = (const void *const *)part[i].q->pages;
            pos[t] = j;
        }
    const size_t hd = (size_t)any->s.hd, k = (size_t)any->s.H * hd, v = k + (size_t)any->s.Hkv * hd;
    const kv_store_args store = {.page = page, .pos = pos, .k = rows + k, .v = rows + v, .ldk = any->ld, .T = T, .Hkv = any->s.Hkv,
                                 .hd = any->s.hd, .format = f};
    const paged_attention_args a = {.o = o, .q = rows, .ldq = any->ld, .ldo = any->ldo, .pos = pos, .pages = tables, .T = T, .H = any->s.H,
                                    .Hkv = any->s.Hkv, .hd = any->s.hd, .scale = 1.0f / sqrtf((float)hd), .format = f,
                                    .window = any->window, .sinks = any->sinks};
    cr_assert_eq(b->kv_store(&store, s), MOE_OK, "%s", moe_error_text());
    cr_assert_eq(b->paged_attention(&a, s), MOE_OK, "%s", moe_error_text());
    t = 0;
    for (int i = 0; i < n; i++)
        for (int j = part[i].first; j < part[i].first + part[i].n; j++, t++)
            memcpy(part[i].q->o + (size_t)j * any->ldo, o + (size_t)t * any->ldo, k * sizeof *o);
    free(page), free(pos), free(tables);
    test_free(rows), test_free(o);
}

/* The whole sequence in pieces of `cut` tokens. */
static void run_cut(const moe_backend *b, moe_stream *s, sequence *q, int cut, numfmt f)
{
    for (int first = 0; first < q->s.S; first += cut) {
        for (int page = 0; q->window > 0 && (page + 1) * KV_PAGE <= first - q->window + 1; page++)
            q->pages[page] = NULL; /* before the window: not read */
        const piece p = {q, first, q->s.S - first < cut ? q->s.S - first : cut};
        run_batch(b, s, &p, 1, f);
    }
}

static float round_bf16(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    const uint32_t down = u & 0xffff0000u, rest = u & 0xffffu;
    u = rest > 0x8000u || (rest == 0x8000u && (down & 0x10000u)) ? down + 0x10000u : down;
    memcpy(&x, &u, sizeof u);
    return x;
}

/* What attention.h says about the same window, with k and v rounded first when bf16. */
static void whole_window(sequence *q, numfmt f)
{
    const size_t hd = (size_t)q->s.hd, k = (size_t)q->s.H * hd, v = k + (size_t)q->s.Hkv * hd;
    float *qkv = test_new((size_t)q->s.S * q->ld, false), *lse = test_new((size_t)(q->s.S * q->s.H), false);
    memcpy(qkv, q->qkv, (size_t)q->s.S * q->ld * sizeof *qkv);
    for (size_t t = 0; f == NUM_BF16 && t < (size_t)q->s.S; t++)
        for (size_t i = k; i < v + (v - k); i++)
            qkv[t * q->ld + i] = round_bf16(qkv[t * q->ld + i]);
    const attention_args a = {.o = q->o, .lse = lse, .q = qkv, .k = qkv + k, .v = qkv + v, .ldq = q->ld, .ldk = q->ld, .ldo = q->ldo,
                              .B = 1, .S = q->s.S, .H = q->s.H, .Hkv = q->s.Hkv, .hd = q->s.hd, .scale = 1.0f / sqrtf((float)hd)};
    cr_assert_eq(test_reference()->attention_forward(&a, test_stream()), MOE_OK, "%s", moe_error_text());
    test_free(qkv), test_free(lse);
}

typedef struct comparison {
    sequence *want;
    numfmt format;
    uint64_t seed;
    bool mild;
} comparison;

static void compare_cuts(const moe_backend *b, moe_stream *s, const char *where, void *ctx)
{
    const comparison *c = ctx;
    enum { WHOLE = 1 << 20 };
    static const int cuts[] = {1, 7, 100, WHOLE};
    const int S = c->want->s.S;
    const bool slow = strcmp(b->name, "ref") == 0 || (size_t)S * (size_t)c->want->s.hd * (size_t)c->want->s.H > 40000;
    for (size_t i = 0; i < sizeof cuts / sizeof *cuts; i++) {
        if (slow ? cuts[i] != 7 && cuts[i] != WHOLE : S < cuts[i] && cuts[i] != WHOLE)
            continue;
        sequence got = sequence_new(c->want->s, c->format, c->seed, c->mild);
        char what[160];
        got.window = c->want->window, got.sinks = c->want->sinks;
        run_cut(b, s, &got, cuts[i], c->format);
        snprintf(what, sizeof what, "%s, format %d, pieces of %d, %s", c->want->s.name, (int)c->format, cuts[i], where);
        test_same(what, got.o, c->want->o, (size_t)got.s.S, got.ldo, got.ldo);
        sequence_free(&got);
    }
}

static void compare_windows(bool mild, numfmt f)
{
    for (int i = 0; i < SHAPES; i++) {
        sequence want = sequence_new(shapes[i], f, 31 + (uint64_t)i, mild);
        comparison c = {&want, f, 31 + (uint64_t)i, mild};
        whole_window(&want, f);
        test_each_backend(compare_cuts, &c);
        sequence_free(&want);
    }
}

Test(paged_attention, f32_pages_give_the_bits_of_attention_on_the_whole_window)
{
    compare_windows(true, NUM_F32);
}

Test(paged_attention, so_they_do_on_saturated_rows_zeros_of_both_signs_and_denormals)
{
    compare_windows(false, NUM_F32);
}

Test(paged_attention, bf16_pages_give_the_bits_of_attention_on_rounded_keys_and_values) { compare_windows(true, NUM_BF16); }

Test(paged_attention, q8_pages_give_the_bits_of_the_reference_however_cut)
{
    for (int i = 0; i < SHAPES; i++) {
        sequence want = sequence_new(shapes[i], NUM_Q8_0, 61 + (uint64_t)i, true);
        comparison c = {&want, NUM_Q8_0, 61 + (uint64_t)i, true};
        run_cut(test_reference(), test_stream(), &want, 1 << 20, NUM_Q8_0);
        test_each_backend(compare_cuts, &c);
        sequence_free(&want);
    }
}

/* The formula in double. */
static void check_formula(const sequence *q)
{
    const size_t hd = (size_t)q->s.hd, H = (size_t)q->s.H, Hkv = (size_t)q->s.Hkv;
    for (size_t n = 0; n < (size_t)q->s.S * H; n++) {
        const size_t t = n / H, h = n % H, kv = h / (H / Hkv), low = q->window > 0 && t >= (size_t)q->window ? t + 1 - (size_t)q->window : 0;
        double sum = q->sinks != NULL ? exp((double)q->sinks[h]) : 0, o[ATTENTION_MAX_HD] = {0};
        for (size_t j = low; j <= t; j++) {
            const float *k = q->qkv + j * q->ld + (H + kv) * hd, *v = k + Hkv * hd;
            double dot = 0;
            for (size_t d = 0; d < hd; d++)
                dot += (double)q->qkv[t * q->ld + h * hd + d] * (double)k[d];
            const double p = exp(dot / sqrt((double)hd));
            sum += p;
            for (size_t d = 0; d < hd; d++)
                o[d] += p * (double)v[d];
        }
        for (size_t d = 0; d < hd; d++)
            cr_assert_leq(fabs(o[d] / sum - (double)q->o[t * q->ldo + h * hd + d]), 1e-5, "%s, window %d: token %zu, head %zu: o[%zu] is %g, expected %g",
                          q->s.name, q->window, t, h, d, (double)q->o[t * q->ldo + h * hd + d], o[d] / sum);
    }
}

/* Windows that begin anywhere in a page, one token and more than there are; sinks small, large and without weight. */
Test(paged_attention, a_window_and_sinks_follow_the_formula_and_give_the_same_bits_however_cut)
{
    static const int windows[] = {0, 1, 3, 64, 65, 100, 1000};
    static const shape sizes[] = {{"grouped", 200, 6, 2, 20}, {"alone", 201, 2, 2, 33}, {"many share one", 150, 16, 1, 8}};
    float sinks[16];
    for (int i = 0; i < 16; i++)
        sinks[i] = i == 5 ? -INFINITY : (float)(i % 4) * 1.7f - 2.0f;
    for (size_t i = 0; i < sizeof windows / sizeof *windows; i++)
        for (numfmt f = 0; f < NUM_FORMATS; f++) {
            if (f != NUM_F32 && f != NUM_BF16 && f != NUM_Q8_0)
                continue;
            sequence want = sequence_new(sizes[i % 3], f, 500 + i, true);
            comparison c = {&want, f, 500 + i, true};
            want.window = windows[i];
            want.sinks = i % 2 == 0 || f == NUM_BF16 ? sinks : NULL;
            run_cut(test_reference(), test_stream(), &want, 1 << 20, f);
            if (f == NUM_F32)
                check_formula(&want);
            test_each_backend(compare_cuts, &c);
            sequence_free(&want);
        }
}

/* Alone in its sequence a token's output is its value as stored. */
static void check_step(const moe_backend *b, moe_stream *s, const char *where, void *ctx)
{
    const shape one = {"a value alone", 1, 2, 2, 75};
    sequence q = sequence_new(one, NUM_Q8_0, 5, true);
    (void)ctx;
    float *v = q.qkv + 4 * 75;
    for (int i = 0; i < 32; i++)
        v[i] = (float)(i * 8 - 127) * 0.25f; /* a scale of 0.25 is exact */
    v[31] = 127 * 0.25f;
    for (int i = 32; i < 64; i++)
        v[i] = 0.0f;
    run_cut(b, s, &q, 1, NUM_Q8_0);
    for (int i = 0; i < 64; i++)
        cr_assert_eq(q.o[i], v[i], "%s: o[%d] %a, stored %a", where, i, (double)q.o[i], (double)v[i]);
    for (int i = 64; i < 150; i++)
        cr_assert_leq(fabsf(q.o[i] - v[i]), 0.51f / 127.0f, "%s: o[%d] %a, stored %a", where, i, (double)q.o[i], (double)v[i]);
    sequence_free(&q);
}

Test(paged_attention, a_q8_value_is_at_most_half_a_step_off) { test_each_backend(check_step, NULL); }

static void check_neighbours(const moe_backend *b, moe_stream *s, const char *where, void *ctx)
{
    const numfmt f = *(const numfmt *)ctx;
    const shape sizes[] = {{"a", 150, 6, 2, 40}, {"b", 70, 6, 2, 40}, {"c", 129, 6, 2, 40}};
    sequence alone[3], together[3];
    for (int i = 0; i < 3; i++) {
        alone[i] = sequence_new(sizes[i], f, 80 + (uint64_t)i, true);
        together[i] = sequence_new(sizes[i], f, 80 + (uint64_t)i, true);
        run_cut(test_reference(), test_stream(), &alone[i], 1 << 20, f);
    }
    sequence *x = together;
    const piece first[] = {{&x[0], 0, 100}, {&x[1], 0, 69}, {&x[2], 0, 1}};
    const piece second[] = {{&x[1], 69, 1}, {&x[2], 1, 127}, {&x[0], 100, 1}};
    const piece third[] = {{&x[0], 101, 49}, {&x[2], 128, 1}};
    run_batch(b, s, first, 3, f);
    run_batch(b, s, second, 3, f);
    run_batch(b, s, third, 2, f);
    for (int i = 0; i < 3; i++) {
        test_same(where, together[i].o, alone[i].o, (size_t)sizes[i].S, alone[i].ldo, alone[i].ldo);
        sequence_free(&alone[i]), sequence_free(&together[i]);
    }
}

Test(paged_attention, a_sequence_does_not_see_its_neighbours)
{
    for (numfmt f = 0; f < NUM_FORMATS; f++)
        if (f == NUM_F32 || f == NUM_BF16 || f == NUM_Q8_0)
            test_each_backend(check_neighbours, &f);
}

/* More single tokens than one round of the plan holds. */
static void check_many(const moe_backend *b, moe_stream *s, const char *where, void *ctx)
{
    enum { MANY = 300 };
    const shape one = {"one of many", 2, 3, 3, 16};
    static sequence q[MANY];
    static piece p[MANY];
    sequence want = sequence_new(one, NUM_F32, 300 + MANY - 1, true);
    (void)ctx;
    whole_window(&want, NUM_F32);
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < MANY; i++) {
            if (round == 0)
                q[i] = sequence_new(one, NUM_F32, 300 + (uint64_t)i, true);
            p[i] = (piece){&q[i], round, 1};
        }
        run_batch(b, s, p, MANY, NUM_F32);
    }
    test_same(where, q[MANY - 1].o, want.o, 2, want.ldo, want.ldo);
    for (int i = 0; i < MANY; i++)
        sequence_free(&q[i]);
    sequence_free(&want);
}

Test(paged_attention, hundreds_of_sequences_decode_together) { test_each_backend(check_many, NULL); }

static void check_refusals(const moe_backend *b, moe_stream *s, const char *where, void *ctx)
{
    const paged_attention_args heads = {.H = 3, .Hkv = 2, .hd = 8, .scale = 1}, wide = {.H = 1, .Hkv = 1, .hd = 4096, .scale = 1};
    const paged_attention_args format = {.H = 1, .Hkv = 1, .hd = 32, .scale = 1, .format = NUM_Q4_0};
    const kv_store_args store = {.Hkv = 1, .hd = 32, .format = NUM_F16};
    const paged_attention_args none = {.H = 1, .Hkv = 1, .hd = 32, .scale = 1};
    (void)ctx;
    cr_assert_eq(b->paged_attention(&heads, s), MOE_E_CONFIG, "%s", where);
    cr_assert_eq(b->paged_attention(&wide, s), MOE_E_CONFIG, "%s", where);
    cr_assert(strstr(moe_error_text(), "4096") != NULL, "%s", moe_error_text());
    cr_assert_eq(b->paged_attention(&format, s), MOE_E_CONFIG, "%s", where);
    cr_assert_eq(b->kv_store(&store, s), MOE_E_CONFIG, "%s", where);
    cr_assert_eq(b->paged_attention(&none, s), MOE_OK, "%s: no tokens", where);
}

Test(paged_attention, refuses_heads_that_do_not_divide_heads_too_wide_and_other_formats) { test_each_backend(check_refusals, NULL); }
