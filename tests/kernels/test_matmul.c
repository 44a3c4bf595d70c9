/* The three products with a weight matrix (kernels/matmul.h): fast versions against the definition, bit by bit; the definition
 * against double precision. Owns nothing beyond a test. One thread. Rule: comparisons are memcmp unless a bound is derived. */
#include <criterion/criterion.h>
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/halves.h"
#include "tests/kernels/harness.h"

enum { GROUPS_MOST = 64, SLACK_X = 3, SLACK_Y = 5 }; /* SLACK: floats between rows, which no product may write */

/* One set of groups with inputs and, for each product, the output to start from and the one expected. */
typedef struct product {
    int G, N, K, rows; /* rows: of the arrays; the groups own [offset[0], offset[G]) */
    int32_t offset[GROUPS_MOST + 1];
    size_t ldx, ldy, x_floats, y_floats, w_floats;
    float *x, *y, *w[GROUPS_MOST];
    uint16_t *w16[GROUPS_MOST]; /* what w was made of, when `half` is set */
    bool half;
    bool accumulate;
    const char *name;
} product;

static product product_new(const char *name, int G, int N, int K, const int32_t *offset, int rows)
{
    product p = {.G = G, .N = N, .K = K, .rows = rows, .name = name};
    memcpy(p.offset, offset, sizeof *offset * (size_t)(G + 1));
    p.ldx = (size_t)K + SLACK_X, p.ldy = (size_t)N + SLACK_Y;
    p.x_floats = (size_t)rows * p.ldx, p.y_floats = (size_t)rows * p.ldy, p.w_floats = panel_floats(N, K);
    p.x = test_new_filled(p.x_floats, 11), p.y = test_new_filled(p.y_floats, 12);
    float *rowmajor = test_new(p.w_floats, false);
    for (int g = 0; g < G; g++) {
        p.w[g] = test_new(p.w_floats, g % 2 == 0);
        test_fill(rowmajor, (size_t)N * (size_t)K, 100 + (uint64_t)g);
        panel_pack(p.w[g], rowmajor, N, K);
    }
    test_free(rowmajor);
    return p;
}

static void product_free(product *p)
{
    test_free(p->x), test_free(p->y);
    for (int g = 0; g < p->G; g++)
        test_free(p->w[g]);
}

static matmul_args product_args(const product *p, float *x, float *y, float *const *dw)
{
    return (matmul_args){.dw = dw,
                         .w = (const float *const *)p->w,
                         .y = y,
                         .x = x,
                         .ldy = p->ldy,
                         .ldx = p->ldx,
                         .offset = p->offset,
                         .G = p->G,
                         .N = p->N,
                         .K = p->K,
                         .accumulate = p->accumulate};
}

/* w becomes bf16 numbers, w16 the same numbers in 16 bits, at the end of guarded memory. */
static void product_halve(product *p)
{
    for (int g = 0; g < p->G; g++) {
        float *memory = test_new(p->w_floats / 2, false);
        p->w16[g] = (uint16_t *)(void *)memory;
        halves_split(p->w16[g], NULL, p->w[g], p->w_floats);
        halves_join(p->w[g], p->w16[g], NULL, p->w_floats);
    }
}

static void product_unhalve(product *p)
{
    for (int g = 0; g < p->G; g++)
        test_free((float *)(void *)p->w16[g]);
}

/* The whole array is compared, slack and rows outside the groups included: those must still hold what they held. */
static float *run_rows(const product *p, matmul_fn fn, moe_stream *s, bool forward)
{
    const size_t n = forward ? p->y_floats : p->x_floats;
    float *out = test_new_filled(n, 13);
    matmul_args a = product_args(p, forward ? p->x : out, forward ? out : p->y, NULL);
    if (p->half)
        a.w = NULL, a.w16 = (const uint16_t *const *)p->w16;
    cr_assert_eq(fn(&a, s), MOE_OK, "%s", moe_error_text());
    return out;
}

/* All dw's one after the other; gradients start with zero pads as the layout promises. */
static float *run_dw(const product *p, matmul_fn fn, moe_stream *s)
{
    float *out = test_new((size_t)p->G * p->w_floats, true), *dw[GROUPS_MOST];
    for (int g = 0; g < p->G; g++) {
        dw[g] = out + (size_t)g * p->w_floats;
        memcpy(dw[g], p->w[g], p->w_floats * sizeof *out);
    }
    const matmul_args a = product_args(p, p->x, p->y, dw);
    cr_assert_eq(fn(&a, s), MOE_OK, "%s", moe_error_text());
    return out;
}

typedef struct wanted {
    const product *p;
    float *forward, *dx, *dw;
} wanted;

static void compare(const moe_backend *b, moe_stream *s, const char *where, void *ctx)
{
    const wanted *w = ctx;
    const product *p = w->p;
    char what[160];
    float *got = run_rows(p, b->matmul_forward, s, true);
    snprintf(what, sizeof what, "%s: forward, %s%s", p->name, where, p->accumulate ? ", accumulate" : "");
    test_same(what, got, w->forward, 1, p->y_floats, p->y_floats);
    test_free(got), got = run_rows(p, b->matmul_dx, s, false);
    snprintf(what, sizeof what, "%s: dx, %s%s", p->name, where, p->accumulate ? ", accumulate" : "");
    test_same(what, got, w->dx, 1, p->x_floats, p->x_floats);
    test_free(got), got = run_dw(p, b->matmul_dw, s);
    snprintf(what, sizeof what, "%s: dw [group, element], %s%s", p->name, where, p->accumulate ? ", accumulate" : "");
    test_same(what, got, w->dw, (size_t)p->G, p->w_floats, p->w_floats);
    test_free(got);
}

static void check_all_backends(product *p)
{
    const moe_backend *ref = test_reference();
    for (int accumulate = 0; accumulate <= 1; accumulate++) {
        p->accumulate = accumulate != 0;
        wanted w = {.p = p, .forward = run_rows(p, ref->matmul_forward, test_stream(), true)};
        w.dx = run_rows(p, ref->matmul_dx, test_stream(), false);
        w.dw = run_dw(p, ref->matmul_dw, test_stream());
        test_each_backend(compare, &w);
        test_free(w.forward), test_free(w.dx), test_free(w.dw);
    }
}

static void compare_half(const moe_backend *b, moe_stream *s, const char *where, void *ctx)
{
    const wanted *w = ctx;
    const product *p = w->p;
    char what[160];
    float *got = run_rows(p, b->matmul_forward, s, true);
    snprintf(what, sizeof what, "%s: forward with bf16 weights, %s%s", p->name, where, p->accumulate ? ", accumulate" : "");
    test_same(what, got, w->forward, 1, p->y_floats, p->y_floats);
    test_free(got), got = run_rows(p, b->matmul_dx, s, false);
    snprintf(what, sizeof what, "%s: dx with bf16 weights, %s%s", p->name, where, p->accumulate ? ", accumulate" : "");
    test_same(what, got, w->dx, 1, p->x_floats, p->x_floats);
    test_free(got);
}

/* bf16 weights against the same numbers in fp32: the reference on fp32 says what is right for all. */
static void check_half(product *p)
{
    const moe_backend *ref = test_reference();
    product_halve(p);
    for (int accumulate = 0; accumulate <= 1; accumulate++) {
        p->accumulate = accumulate != 0;
        p->half = false;
        wanted w = {.p = p, .forward = run_rows(p, ref->matmul_forward, test_stream(), true)};
        w.dx = run_rows(p, ref->matmul_dx, test_stream(), false);
        p->half = true;
        test_each_backend(compare_half, &w);
        test_free(w.forward), test_free(w.dx);
    }
    product_unhalve(p);
}

static product product_of_shape(const test_shape *s, int N, int K)
{
    int32_t *ids = calloc((size_t)(test_tokens(s) * s->K + 1), sizeof *ids), offset[GROUPS_MOST + 1];
    test_route(s, ids, offset, 5);
    free(ids);
    return product_new(s->name, s->E, N, K, offset, offset[s->E]);
}

Test(matmul, same_bits_on_the_awkward_shapes)
{
    for (const test_shape *s = test_shapes; s->name != NULL; s++) {
        product up = product_of_shape(s, s->F, s->D), down = product_of_shape(s, s->D, s->F);
        check_all_backends(&up), check_all_backends(&down);
        check_half(&up), check_half(&down);
        product_free(&up), product_free(&down);
    }
}

/* Ragged groups longer than every block of the fast versions (steps 256, rows 588, k's 1024), rows before and after the groups.
 */
Test(matmul, same_bits_past_every_block)
{
    static const int32_t ragged[] = {2, 2, 3, 16, 16, 45}, longer[] = {0, 1300, 1301}, one[] = {0, 1}, few[] = {1, 9};
    const struct {
        const char *name;
        int G, N, K;
        const int32_t *offset;
        int rows;
    } cases[] = {
        {"deep reduction", 5, 600, 530, ragged, 50}, {"many rows", 2, 35, 70, longer, 1310},
        {"one row", 1, 130, 2100, one, 1},           {"wide k", 1, 20, 2100, few, 12},
        {"one output", 1, 1, 300, few, 9},           {"one input", 1, 300, 1, few, 9},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        product p = product_new(cases[i].name, cases[i].G, cases[i].N, cases[i].K, cases[i].offset, cases[i].rows);
        check_all_backends(&p), check_half(&p);
        product_free(&p);
    }
}

/* Every number of rows that a tile can be cut into, for both sides of the tile. */
Test(matmul, same_bits_for_every_tile_height)
{
    for (int rows = 1; rows <= 32; rows++) {
        const int32_t offset[] = {0, rows};
        product p = product_new("tile height", 1, 16 + rows, 33 - rows, offset, rows);
        check_all_backends(&p), check_half(&p);
        product_free(&p);
    }
}

static void split_rows(const moe_backend *b, moe_stream *s, const char *where, void *ctx)
{
    product p = *(const product *)ctx;
    const int32_t whole[] = {0, p.rows}, first[] = {0, p.rows / 3}, second[] = {p.rows / 3, p.rows};
    float *dw[2];
    matmul_args a = product_args(&p, p.x, p.y, dw);
    for (int i = 0; i < 2; i++)
        dw[i] = test_new(p.w_floats, true);
    a.offset = whole, a.accumulate = false;
    cr_assert_eq(b->matmul_dw(&a, s), MOE_OK);
    a.offset = first, a.dw = dw + 1;
    cr_assert_eq(b->matmul_dw(&a, s), MOE_OK);
    a.offset = second, a.accumulate = true;
    cr_assert_eq(b->matmul_dw(&a, s), MOE_OK);
    char what[96];
    snprintf(what, sizeof what, "dw over two calls, %s", where);
    test_same(what, dw[1], dw[0], 1, p.w_floats, p.w_floats);
    for (int n = p.N; n < (int)panel_pad(p.N); n++)
        for (int k = 0; k < p.K; k++)
            cr_assert_eq(dw[0][panel_index(n, k, p.K)], 0.0f, "%s: pad [%d, %d]", where, n, k);
    test_free(dw[0]), test_free(dw[1]);
}

/* Micro-batches continue the chain: any cut of the rows gives the bits of one call, and pads stay zero even for infinite inputs.
 */
Test(matmul, weight_gradient_split_by_rows_is_the_whole)
{
    const int32_t offset[] = {0, 301};
    product p = product_new("split", 1, 45, 50, offset, 301);
    p.x[7 * p.ldx + 3] = INFINITY;
    test_each_backend(split_rows, &p);
    product_free(&p);
}

/* |fl(chain) - exact| <= n u / (1 - n u) * sum of |terms|, u = 2^-24 (Higham, Accuracy and Stability, 3.1, with one rounding a
 * term), plus what flush-to-zero drops: one FLT_MIN a term and one for each denormal input times at most 2^10. */
static void check_bound(const char *what, float got, double exact, double sum_abs, int terms)
{
    const double nu = terms * 0x1p-24, bound = nu / (1 - nu) * sum_abs + terms * (1 + 0x1p10) * FLT_MIN;
    cr_assert(fabs((double)got - exact) <= bound, "%s: got %.9g, exact %.17g, bound %g", what, (double)got, exact, bound);
}

Test(matmul, definition_agrees_with_double_precision)
{
    for (const test_shape *s = test_shapes; s->name != NULL; s++) {
        product p = product_of_shape(s, s->F, s->D);
        float *y = run_rows(&p, test_reference()->matmul_forward, test_stream(), true);
        float *x = run_rows(&p, test_reference()->matmul_dx, test_stream(), false);
        float *dw = run_dw(&p, test_reference()->matmul_dw, test_stream());
        for (int g = 0; g < p.G; g++) {
            double *sum = calloc(2 * p.w_floats, sizeof *sum), *sum_abs = sum + p.w_floats;
            for (int r = p.offset[g]; r < p.offset[g + 1]; r++) {
                double *row = calloc(2 * (size_t)p.K, sizeof *row);
                for (int n = 0; n < p.N; n++) {
                    double t = 0, t_abs = 0;
                    for (int k = 0; k < p.K; k++) {
                        const size_t at = panel_index(n, k, p.K);
                        const double w = (double)p.w[g][at], xv = (double)p.x[(size_t)r * p.ldx + (size_t)k];
                        const double dy = (double)p.y[(size_t)r * p.ldy + (size_t)n];
                        t += w * xv, t_abs += fabs(w * xv);
                        row[k] += w * dy, row[p.K + k] += fabs(w * dy);
                        sum[at] += xv * dy, sum_abs[at] += fabs(xv * dy);
                    }
                    check_bound("forward", y[(size_t)r * p.ldy + (size_t)n], t, t_abs, p.K);
                }
                for (int k = 0; k < p.K; k++)
                    check_bound("dx", x[(size_t)r * p.ldx + (size_t)k], row[k], row[p.K + k], p.N);
                free(row);
            }
            for (size_t i = 0; i < p.w_floats; i++)
                check_bound("dw", dw[(size_t)g * p.w_floats + i], sum[i], sum_abs[i], p.offset[g + 1] - p.offset[g]);
            free(sum);
        }
        test_free(y), test_free(x), test_free(dw);
        product_free(&p);
    }
}

/* Every pair of halves is one number and every number one pair, but for the bits no arithmetic makes; near is the nearest. */
Test(matmul, halves_are_the_number)
{
    for (uint64_t i = 0; i < 1u << 20; i++) {
        const uint32_t bits =
            i < 1u << 18 ? (uint32_t)(i << 14 | 0x1fff) + (uint32_t)(i & 3) * 0x2001 : (uint32_t)test_bits(4, i);
        float x, back;
        memcpy(&x, &bits, sizeof x);
        const uint16_t near = halves_near(x), rest = halves_rest(x);
        back = halves_number(near, rest);
        cr_assert(memcmp(&back, &x, sizeof x) == 0, "%08x: %04x %04x", bits, near, rest);
        const float half = halves_number(near, 0), below = halves_number((uint16_t)(near - 1), 0),
                    above = halves_number((uint16_t)(near + 1), 0);
        if (!isfinite(x) || !isfinite(half) || !isfinite(below) || !isfinite(above) || (near & 0x7fff) == 0)
            continue;
        const double off = fabs((double)x - (double)half);
        cr_assert(off <= fabs((double)x - (double)below) && off <= fabs((double)x - (double)above),
                  "%a is nearer to another than %a", (double)x, (double)half);
    }
    cr_assert_eq(halves_near(0x1.01p0f), 0x3f81); /* half-way: away from zero */
    cr_assert_eq(halves_near(-0x1.01p0f), 0xbf81);
    cr_assert_eq(halves_near(0x1.03p0f), 0x3f82);
    cr_assert_eq(halves_near(0x1.fffffep127f), 0x7f80);
}

Test(matmul, panels_round_trip)
{
    for (const test_shape *s = test_shapes; s->name != NULL; s++) {
        const size_t N = (size_t)s->F, K = (size_t)s->D;
        float *row = test_new_filled(N * K, 1), *panels = test_new(panel_floats(s->F, s->D), true),
              *back = test_new(N * K, false);
        panel_pack(panels, row, s->F, s->D);
        panel_unpack(back, panels, 0, s->F, s->D);
        test_same("pack, unpack", back, row, N, K, K);
        for (size_t n = 0; n < (size_t)panel_pad(s->F); n++)
            for (size_t k = 0; k < K; k++) {
                const float want = n < N ? row[n * K + k] : 0.0f;
                cr_assert_eq(memcmp(&panels[panel_index((int64_t)n, (int64_t)k, s->D)], &want, 4), 0, "%s: panel [%zu, %zu]",
                             s->name, n, k);
            }
        panel_unpack(back, panels, s->F - 1, 1, s->D);
        test_same("unpack of the last row", back, row + (N - 1) * K, 1, K, K);
        test_free(row), test_free(panels), test_free(back);
    }
}
