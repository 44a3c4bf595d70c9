/* Products with weights as they are stored (kernels/qmatmul.h): fast versions against the definition, bit by bit; the definition
 * against double precision; panels against the rows they were made of. Owns nothing beyond a test. One thread.
 * Rule: comparisons are memcmp unless a bound is derived. */
#include <criterion/criterion.h>
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/half.h"
#include "kernels/qpanel.h"
#include "kernels/tables.h"
#include "tests/kernels/harness.h"

enum { GROUPS_MOST = 8, SLACK_X = 3, SLACK_Y = 5 }; /* SLACK: floats between rows, which no product may write */

/* Rows as a file holds them: any bytes, scales of a sane size and both signs. */
static uint8_t *rows_new(numfmt f, int64_t N, int64_t K, uint64_t seed)
{
    const numfmt_info *about = numfmt_about(f);
    const size_t bytes = (size_t)N * numfmt_row_bytes(f, K);
    uint8_t *rows = malloc(bytes + 1);
    cr_assert_not_null(rows);
    if (about->block == 1) {
        float *plain = test_new_filled((size_t)(N * K), seed);
        numfmt_from_f32(rows, plain, f, N * K);
        test_free(plain);
        return rows;
    }
    for (size_t i = 0; i < bytes; i++)
        rows[i] = (uint8_t)test_bits(seed, i);
    for (size_t b = 0; b < bytes / (size_t)about->bytes; b++) {
        uint8_t *block = rows + b * (size_t)about->bytes;
        if (f == NUM_F8_E4M3) {
            const float d = b % 11 == 0 ? 0.0f : (float)(1 + test_bits(seed + 1, b) % 2001) * (b % 7 == 0 ? 1e-30f : 1e-5f);
            memcpy(block, &d, sizeof d);
            for (int i = 4; i < about->bytes; i++)
                block[i] = (block[i] & 0x7f) == 0x7f ? 0x7e : block[i]; /* who makes panels refuses NaN */
            continue;
        }
        if (f == NUM_MXFP4)
            block[0] = (uint8_t)(110 + block[0] % 20);
        for (int h = 0; h < (qpanel_least(f) ? 2 : f == NUM_MXFP4 ? 0 : 1); h++) {
            const float d = (float)((int)(test_bits(seed + 1, 2 * b + (size_t)h) % 2001) - 1000) * (b % 7 == 0 ? 1e-7f : 1e-4f);
            const uint16_t bits = half_from_float(d);
            memcpy(block + (f == NUM_Q6_K ? 208 : 2 * h), &bits, sizeof bits);
        }
    }
    if (bytes > 40 && f == NUM_Q8_0)
        memset(rows + 2, 0x80, 32); /* -128: no quantiser writes it, a file may */
    return rows;
}

static void *panels_new(const uint8_t *rows, numfmt f, int64_t N, int64_t K)
{
    const size_t bytes = qpanel_bytes(f, N, K);
    cr_assert_eq(bytes % 64, 0);
    uint8_t *panels = aligned_alloc(64, bytes + 64);
    cr_assert_not_null(panels);
    memset(panels, 0xee, bytes + 64);
    qpanel_pack(panels, rows, numfmt_row_bytes(f, K), f, N, K, 0, N);
    for (int i = 0; i < 64; i++)
        cr_assert_eq(panels[bytes + (size_t)i], 0xee, "%s %d x %d: byte %d past the panels was written", numfmt_about(f)->name,
                     (int)N, (int)K, i);
    return panels;
}

/* The next multiple of the format's block. */
static int whole_blocks(numfmt f, int K) { return (K + numfmt_about(f)->block - 1) / numfmt_about(f)->block * numfmt_about(f)->block; }

typedef struct product {
    const char *name;
    int M, G, K, rows; /* rows: of the arrays; the groups own [offset[0], offset[G]) */
    int32_t offset[GROUPS_MOST + 1];
    numfmt format[QMATMUL_MOST];
    int N[QMATMUL_MOST];
    void *w[QMATMUL_MOST][GROUPS_MOST];
    size_t ldx, ldy[QMATMUL_MOST], y_floats[QMATMUL_MOST];
    float *x;
    bool accumulate;
} product;

static void product_fill(product *p)
{
    p->ldx = (size_t)p->K + SLACK_X;
    p->x = test_new_filled((size_t)p->rows * p->ldx, 11);
    for (int m = 0; m < p->M; m++) {
        p->ldy[m] = (size_t)p->N[m] + SLACK_Y, p->y_floats[m] = (size_t)p->rows * p->ldy[m];
        for (int g = 0; g < p->G; g++) {
            uint8_t *rows = rows_new(p->format[m], p->N[m], p->K, (uint64_t)(100 * m + g));
            p->w[m][g] = panels_new(rows, p->format[m], p->N[m], p->K);
            free(rows);
        }
    }
}

static void product_free(product *p)
{
    test_free(p->x);
    for (int m = 0; m < p->M; m++)
        for (int g = 0; g < p->G; g++)
            free(p->w[m][g]);
}

typedef struct result {
    float *y[QMATMUL_MOST];
} result;

/* The whole arrays are compared, slack and rows outside the groups included: those must still hold what they held. */
static result run(const product *p, qmatmul_fn fn, moe_stream *s)
{
    result r = {{NULL}};
    qmatmul_args a = {
        .M = p->M, .x = p->x, .ldx = p->ldx, .offset = p->offset, .G = p->G, .K = p->K, .accumulate = p->accumulate};
    for (int m = 0; m < p->M; m++) {
        r.y[m] = test_new_filled(p->y_floats[m], 13 + (uint64_t)m);
        a.mat[m] =
            (qmatrix){.y = r.y[m], .ldy = p->ldy[m], .w = (const void *const *)p->w[m], .format = p->format[m], .N = p->N[m]};
    }
    cr_assert_eq(fn(&a, s), MOE_OK, "%s", moe_error_text());
    return r;
}

static void result_free(const product *p, result *r)
{
    for (int m = 0; m < p->M; m++)
        test_free(r->y[m]);
}

typedef struct wanted {
    const product *p;
    result want;
} wanted;

static void compare_fn(const wanted *w, qmatmul_fn fn, moe_stream *s, const char *where)
{
    const product *p = w->p;
    result got = run(p, fn, s);
    for (int m = 0; m < p->M; m++) {
        char what[192];
        snprintf(what, sizeof what, "%s: matrix %d (%s, %d x %d), %s%s", p->name, m, numfmt_about(p->format[m])->name, p->N[m],
                 p->K, where, p->accumulate ? ", accumulate" : "");
        test_same(what, got.y[m], w->want.y[m], (size_t)p->rows, p->ldy[m], p->ldy[m]);
    }
    result_free(p, &got);
}

/* The AVX-512 row holds one of two versions; both are compared where both run. */
static void compare(const moe_backend *b, moe_stream *s, const char *where, void *ctx)
{
    compare_fn(ctx, b->qmatmul, s, where);
    if (strcmp(b->name, "avx512") == 0 && kernels_have_vnni()) {
        compare_fn(ctx, qmatmul_vnni, s, "vnni");
        compare_fn(ctx, qmatmul_avx512bw, s, "avx512 without vnni");
    }
}

static void check_all_backends(product *p)
{
    product_fill(p);
    for (int accumulate = 0; accumulate <= 1; accumulate++) {
        p->accumulate = accumulate != 0;
        wanted w = {.p = p, .want = run(p, test_reference()->qmatmul, test_stream())};
        test_each_backend(compare, &w);
        result_free(p, &w.want);
    }
    product_free(p);
}

static void set_rows(product *p, int g, int rows)
{
    p->G = g + 1;
    p->offset[g + 1] = p->offset[g] + rows;
    p->rows = p->offset[g + 1] + 2;
}

Test(qmatmul, every_format_with_one_row_and_with_many)
{
    static const int counts[] = {0, 1, 2, 3, 4, 5, 12, 13, 37};
    for (int f = 0; f < NUM_FORMATS; f++)
        for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
            product p = {.name = "one group", .M = 1, .K = whole_blocks((numfmt)f, 96), .format = {(numfmt)f}, .N = {53}, .offset = {1}};
            set_rows(&p, 0, counts[i]);
            check_all_backends(&p);
        }
}

Test(qmatmul, all_formats_share_an_input_in_ragged_groups)
{
    static const int ragged[] = {1, 0, 7, 30, 2, 0, 14};
    for (int f = 0; f < NUM_FORMATS; f++) {
        product p = {.name = "ragged groups", .M = 3, .K = 256, .N = {17, 160, 16}, .offset = {3}};
        for (int m = 0; m < p.M; m++)
            p.format[m] = (numfmt)((f + 2 * m) % NUM_FORMATS);
        for (int g = 0; g < 7; g++)
            set_rows(&p, g, ragged[g]);
        check_all_backends(&p);
    }
}

/* More blocks than a chunk of quantised activations holds, and more rows than a row block. */
Test(qmatmul, past_every_tile)
{
    product p = {.name = "long rows", .M = 2, .K = 2144, .format = {NUM_Q4_0, NUM_Q8_0}, .N = {33, 20}};
    product k = {.name = "long K blocks", .M = 3, .K = 2304, .format = {NUM_Q4_K, NUM_Q6_K, NUM_Q5_K}, .N = {33, 20, 16}};
    set_rows(&p, 0, 3), set_rows(&p, 1, 29);
    check_all_backends(&p);
    set_rows(&k, 0, 2), set_rows(&k, 1, 19);
    check_all_backends(&k);
    product q = {.name = "many rows", .M = 2, .K = 32, .format = {NUM_Q4_1, NUM_BF16}, .N = {16, 40}};
    set_rows(&q, 0, 1117), set_rows(&q, 1, 6);
    check_all_backends(&q);
}

/* 4 MiB of scratch hold 1975 quantised rows of 32, and 29 of 65536: slabs must not end a chain or a group early. */
Test(qmatmul, rows_that_do_not_fit_the_scratch_at_once)
{
    product p = {.name = "two slabs of rows", .M = 1, .K = 32, .format = {NUM_Q4_0}, .N = {16}};
    set_rows(&p, 0, 1500), set_rows(&p, 1, 900);
    check_all_backends(&p);
    product q = {.name = "two slabs of wide rows", .M = 1, .K = 65536, .format = {NUM_Q8_0}, .N = {3}};
    set_rows(&q, 0, 20), set_rows(&q, 1, 23);
    check_all_backends(&q);
}

Test(qmatmul, no_inputs_and_no_outputs)
{
    product p = {.name = "no inputs", .M = 2, .K = 0, .format = {NUM_Q4_0, NUM_F16}, .N = {5, 5}};
    set_rows(&p, 0, 2);
    check_all_backends(&p);
    product q = {.name = "no outputs", .M = 2, .K = 32, .format = {NUM_Q8_0, NUM_BF16}, .N = {0, 0}};
    set_rows(&q, 0, 2);
    check_all_backends(&q);
}

/* Activations at the ends of what is quantised: all zero, below QACT_LEAST, the largest fp32, infinite, not a number. */
static void special_inputs(const moe_backend *b, moe_stream *s, const char *where, void *ctx)
{
    static const float special[] = {0.0f, 0x1p-101f, 0x1p-99f, FLT_MAX, INFINITY, NAN};
    const uint8_t *const panels = ctx;
    float x[6 * 64] = {0}, y[6 * 16], want[6 * 16];
    const int32_t offset[] = {0, 6};
    for (int r = 0; r < 6; r++)
        for (int k = 0; k < 64; k++)
            x[r * 64 + k] = k == 5 ? special[r] : k < 32 ? special[r] * 0.25f : (float)(k - 40);
    const void *w = panels;
    qmatmul_args a = {.M = 1, .x = x, .ldx = 64, .offset = offset, .G = 1, .K = 64};
    a.mat[0] = (qmatrix){.y = want, .ldy = 16, .w = &w, .format = NUM_Q4_1, .N = 16};
    cr_assert_eq(test_reference()->qmatmul(&a, test_stream()), MOE_OK);
    a.mat[0].y = y;
    cr_assert_eq(b->qmatmul(&a, s), MOE_OK);
    test_same(where, y, want, 4, 16, 16);
    for (int i = 4 * 16; i < 6 * 16; i++)
        cr_assert(!isfinite(want[i]) && !isfinite(y[i]), "%s: [%d, %d] is finite", where, i / 16, i % 16);
}

Test(qmatmul, what_is_not_finite_stays_so)
{
    uint8_t *rows = rows_new(NUM_Q4_1, 16, 64, 5), *panels = panels_new(rows, NUM_Q4_1, 16, 64);
    test_each_backend(special_inputs, panels);
    free(rows), free(panels);
}

Test(qmatmul, f32_has_the_bits_of_matmul_forward)
{
    enum { R = 9, N = 37, K = 70 };
    float *x = test_new_filled(R * K, 1), *w = test_new_filled(N * K, 2), *panels = test_new(panel_floats(N, K), true);
    float *want = test_new(R * N, false), *got = test_new(R * N, false);
    const int32_t offset[] = {0, R};
    void *packed = panels_new((const uint8_t *)w, NUM_F32, N, K);
    panel_pack(panels, w, N, K);
    test_same_bytes("panels", packed, panels, panel_floats(N, K) * sizeof(float));
    const float *wf = panels;
    const void *wq = packed;
    const matmul_args f = {.w = &wf, .y = want, .x = x, .ldy = N, .ldx = K, .offset = offset, .G = 1, .N = N, .K = K};
    qmatmul_args q = {.M = 1, .x = x, .ldx = K, .offset = offset, .G = 1, .K = K};
    q.mat[0] = (qmatrix){.y = got, .ldy = N, .w = &wq, .format = NUM_F32, .N = N};
    cr_assert_eq(test_reference()->matmul_forward(&f, test_stream()), MOE_OK);
    cr_assert_eq(test_reference()->qmatmul(&q, test_stream()), MOE_OK);
    test_same("f32", got, want, R, N, N);
    test_free(x), test_free(w), test_free(panels), test_free(want), test_free(got), free(packed);
}

/* The chain of the numbers that numfmt_to_f32 gives. */
Test(qmatmul, f8_has_the_bits_of_f32)
{
    enum { R = 19, N = 37, K = 640 };
    uint8_t *rows = rows_new(NUM_F8_E4M3, N, K, 21);
    float *x = test_new_filled(R * K, 1), *w = test_new(N * K, false), *want = test_new(R * N, false), *got = test_new(R * N, false);
    for (size_t n = 0; n < N; n++)
        numfmt_to_f32(w + n * K, rows + n * numfmt_row_bytes(NUM_F8_E4M3, K), NUM_F8_E4M3, K);
    void *packed[] = {panels_new(rows, NUM_F8_E4M3, N, K), panels_new((const uint8_t *)w, NUM_F32, N, K)};
    const void *w8 = packed[0], *w32 = packed[1];
    const int32_t offset[] = {0, R};
    qmatmul_args q = {.M = 1, .x = x, .ldx = K, .offset = offset, .G = 1, .K = K};
    q.mat[0] = (qmatrix){.y = want, .ldy = N, .w = &w32, .format = NUM_F32, .N = N};
    cr_assert_eq(test_reference()->qmatmul(&q, test_stream()), MOE_OK);
    q.mat[0] = (qmatrix){.y = got, .ldy = N, .w = &w8, .format = NUM_F8_E4M3, .N = N};
    cr_assert_eq(test_reference()->qmatmul(&q, test_stream()), MOE_OK);
    test_same("f8", got, want, R, N, N);
    test_free(x), test_free(w), test_free(want), test_free(got), free(rows), free(packed[0]), free(packed[1]);
}

/* Every code in every place of a pair, with scales at the ends of fp32: the same bits everywhere, NaN's codes as 480. */
static void every_code(const moe_backend *b, moe_stream *s, const char *where, void *ctx)
{
    enum { K = 256, N = 32, ROW = 2 * (4 + QEIGHT) };
    static const float scales[] = {0, 1, 0x1p-140f, 0x1p-126f, 0x1p-110f, 0x1p100f, 0x1p119f, 3e-5f};
    uint8_t rows[N * ROW];
    static float x[K * K], y[K * N], want[K * N]; /* row k of x has a one at k: y[k, n] is number (n, k) */
    const int32_t offset[] = {0, K};
    (void)ctx;
    for (int n = 0; n < N; n++)
        for (int k = 0; k < K; k++) {
            memcpy(rows + n * ROW + k / QEIGHT * (4 + QEIGHT), &scales[n % 8], 4);
            rows[n * ROW + k / QEIGHT * (4 + QEIGHT) + 4 + k % QEIGHT] = (uint8_t)(k + n);
        }
    for (int k = 0; k < K; k++)
        x[k * K + k] = 1;
    void *panels = panels_new(rows, NUM_F8_E4M3, N, K);
    const void *w = panels;
    qmatmul_args q = {.M = 1, .x = x, .ldx = K, .offset = offset, .G = 1, .K = K};
    q.mat[0] = (qmatrix){.y = want, .ldy = N, .w = &w, .format = NUM_F8_E4M3, .N = N};
    cr_assert_eq(test_reference()->qmatmul(&q, test_stream()), MOE_OK);
    q.mat[0].y = y;
    cr_assert_eq(b->qmatmul(&q, s), MOE_OK);
    test_same(where, y, want, K, N, N);
    cr_assert_eq(want[(0x7f - 1) * N + 1], 480.0f);
    cr_assert_eq(want[(0xff - 1) * N + 1], -480.0f);
    free(panels);
}

Test(qmatmul, every_code_of_f8) { test_each_backend(every_code, NULL); }

/* Against double: an activation is off by at most half a step, d / 2 of its block, and the chain rounds each of its K / 16 terms, which
 * together are below `size`. */
Test(qmatmul, the_definition_is_the_product)
{
    enum { R = 3, N = 20, K = 512 };
    for (int i = 0; i < NUM_FORMATS; i++) {
        product p = {.name = "double", .M = 1, .K = K, .format = {(numfmt)i}, .N = {N}};
        const bool plain = qpanel_chained((numfmt)i);
        set_rows(&p, 0, R);
        product_fill(&p);
        result got = run(&p, test_reference()->qmatmul, test_stream());
        for (int r = 0; r < R; r++)
            for (int n = 0; n < N; n++) {
                float w[K];
                double sum = 0, bound = 0, size = 0;
                qpanel_row(w, p.w[0][0], (numfmt)i, n, N, K);
                for (int b = 0; b < K / QBLOCK; b++) {
                    double amax = 0, weights = 0;
                    for (int k = b * QBLOCK; k < (b + 1) * QBLOCK; k++) {
                        const double x = (double)p.x[(size_t)r * p.ldx + (size_t)k];
                        amax = fmax(amax, fabs(x)), weights += fabs((double)w[k]);
                        sum += x * (double)w[k];
                    }
                    bound += plain ? 0 : amax / 127 * 0.5001 * weights;
                    size += amax * weights * 2;
                }
                const double y = (double)got.y[0][(size_t)r * p.ldy[0] + (size_t)n];
                cr_assert_leq(fabs(y - sum), bound + size * K * FLT_EPSILON, "%s: [%d, %d]: got %g, double gives %g, bound %g",
                              numfmt_about((numfmt)i)->name, r, n, y, sum, bound);
            }
        result_free(&p, &got);
        product_free(&p);
    }
}

Test(qmatmul, panels_hold_the_rows_they_were_made_of)
{
    static const int sizes[][2] = {{1, 32}, {16, 64}, {53, 352}, {40, 1024}};
    for (int f = 0; f < NUM_FORMATS; f++)
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            const int N = sizes[i][0], K = whole_blocks((numfmt)f, sizes[i][1]);
            uint8_t *rows = rows_new((numfmt)f, N, K, 77), *panels = panels_new(rows, (numfmt)f, N, K);
            float got[1024], want[1024];
            char what[64];
            for (int n = 0; n < N; n++) {
                snprintf(what, sizeof what, "%s, row %d of %d x %d", numfmt_about((numfmt)f)->name, n, N, K);
                numfmt_to_f32(want, rows + (size_t)n * numfmt_row_bytes((numfmt)f, K), (numfmt)f, K);
                qpanel_row(got, panels, (numfmt)f, n, N, K);
                test_same(what, got, want, 1, (size_t)K, (size_t)K);
            }
            free(rows), free(panels);
        }
}

/* An expert lands in parts, its rows further apart than they are long. */
Test(qmatmul, packing_in_parts_is_packing)
{
    enum { N = 53, GAP = 7 };
    for (int f = 0; f < NUM_FORMATS; f++) {
        const int K = whole_blocks((numfmt)f, 96);
        const size_t row = numfmt_row_bytes((numfmt)f, K), bytes = qpanel_bytes((numfmt)f, N, K);
        uint8_t *rows = rows_new((numfmt)f, N, K, 3), *want = panels_new(rows, (numfmt)f, N, K);
        uint8_t *apart = malloc(N * (row + GAP)), *got = aligned_alloc(64, bytes);
        cr_assert(apart != NULL && got != NULL);
        for (size_t n = 0; n < N; n++)
            memcpy(apart + n * (row + GAP), rows + n * row, row);
        memset(got, 0xee, bytes), memset(want, 0xee, bytes);
        qpanel_pack(want, rows, row, (numfmt)f, N, K, 0, N);
        qpanel_pack(got, apart + 48 * (row + GAP), row + GAP, (numfmt)f, N, K, 48, N - 48);
        qpanel_pack(got, apart, row + GAP, (numfmt)f, N, K, 0, 16);
        qpanel_pack(got, apart + 16 * (row + GAP), row + GAP, (numfmt)f, N, K, 16, 32);
        test_same_bytes(numfmt_about((numfmt)f)->name, got, want, bytes);
        free(rows), free(want), free(apart), free(got);
    }
}

Test(qmatmul, the_fast_packing_is_the_plain_one)
{
    static const numfmt formats[] = {NUM_Q4_0, NUM_Q4_1, NUM_Q8_0, NUM_IQ4_NL};
    enum { K = 160 };
    for (size_t i = 0; i < sizeof formats / sizeof *formats && __builtin_cpu_supports("avx2"); i++) {
        const qpanel_layout l = qpanel_about(formats[i]);
        const size_t bytes = qpanel_bytes(formats[i], PANEL, K);
        uint8_t *rows = rows_new(formats[i], PANEL, K, 9), *fast = aligned_alloc(64, bytes), *plain = aligned_alloc(64, bytes);
        cr_assert(fast != NULL && plain != NULL);
        memset(fast, 0, bytes), memset(plain, 0, bytes);
        const size_t row = numfmt_row_bytes(formats[i], K), data = (size_t)(K / QBLOCK * l.data);
        qpanel_pack_blocks_avx2(fast, fast + data, rows, row, K, l.side / PANEL, l.data / QLINE);
        qpanel_pack_blocks(plain, plain + data, rows, row, K, l.side / PANEL, l.data / QLINE);
        test_same_bytes(numfmt_about(formats[i])->name, fast, plain, bytes);
        free(rows), free(fast), free(plain);
    }
}

static void refuse(const moe_backend *b, moe_stream *s, const char *where, void *ctx)
{
    const int32_t offset[] = {0, 0};
    qmatmul_args a = {.M = 1, .offset = offset, .G = 1, .K = 48};
    (void)ctx;
    a.mat[0] = (qmatrix){.format = NUM_Q4_0, .N = 16};
    cr_assert_eq(b->qmatmul(&a, s), MOE_E_CONFIG, "%s", where);
    cr_assert_not_null(strstr(moe_error_text(), "48 inputs in q4_0: expected a multiple of 32"), "%s: %s", where,
                       moe_error_text());
    a.M = QMATMUL_MOST + 1;
    cr_assert_eq(b->qmatmul(&a, s), MOE_E_CONFIG, "%s", where);
    a.M = 1, a.mat[0].format = NUM_FORMATS;
    cr_assert_eq(b->qmatmul(&a, s), MOE_E_CONFIG, "%s", where);
}

Test(qmatmul, what_is_refused_is_a_sentence) { test_each_backend(refuse, NULL); }
