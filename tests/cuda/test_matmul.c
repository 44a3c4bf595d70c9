/* The grouped products on tensor cores against the reference, and those with Q4_0 and Q8_0 weights bit by bit.
 * Tolerance of the first: inputs are bf16 numbers on both sides, so every product is exact in fp32 and only the sums differ. Adding n terms in
 * any order, each addition off by at most one unit in the last place of the largest partial sum (a GPU may cut instead of rounding):
 * n * 2^-23 * sum |terms|, twice, for both sides; and what flushing loses. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/half.h"
#include "tests/cuda/device.h"

static float *new_bf16(size_t n, uint64_t seed)
{
    float *x = test_new_filled(n, seed);
    for (size_t i = 0; i < n; i++)
        x[i] = bf16_to_float(bf16_from_float(x[i]));
    return x;
}

/* A case: ragged groups by test_route; products (N, K) of N = F, K = D. */
typedef struct product {
    int G, N, K;
    size_t rows, ldx, ldy;
    int32_t *offset;
    float *x, *y;
    float **w, **dw; /* [G] */
    uint16_t **w16;
} product;

static product make_product(const test_shape *s)
{
    product p = {.G = s->E, .N = s->F, .K = s->D, .rows = (size_t)(test_tokens(s) * s->K), .ldx = (size_t)s->D + 3, .ldy = (size_t)s->F + 1};
    const size_t n = panel_floats(p.N, p.K);
    int32_t *ids = malloc((p.rows + 1) * sizeof *ids);
    p.offset = malloc(((size_t)p.G + 1) * sizeof *p.offset);
    test_route(s, ids, p.offset, 41);
    free(ids);
    p.x = new_bf16(p.rows * p.ldx, 1), p.y = new_bf16(p.rows * p.ldy, 2);
    p.w = calloc((size_t)p.G, sizeof *p.w), p.dw = calloc((size_t)p.G, sizeof *p.dw), p.w16 = calloc((size_t)p.G, sizeof *p.w16);
    for (int g = 0; g < p.G; g++) {
        float *plain = new_bf16((size_t)p.N * (size_t)p.K, 50 + (uint64_t)g);
        p.w[g] = test_new(n, true), p.dw[g] = test_new_filled(n, 90), p.w16[g] = malloc(n * 2);
        panel_pack(p.w[g], plain, p.N, p.K);
        for (size_t i = 0; i < n; i++)
            p.w16[g][i] = bf16_from_float(p.w[g][i]);
        test_free(plain);
    }
    return p;
}

static void free_product(product *p)
{
    for (int g = 0; g < p->G; g++)
        test_free(p->w[g]), test_free(p->dw[g]), free(p->w16[g]);
    free(p->w), free(p->dw), free(p->w16), free(p->offset);
    test_free(p->x), test_free(p->y);
    device_end();
}

/* [G] addresses of device copies. */
static void *device_list(void *const *from, int G, size_t bytes)
{
    void **list = malloc((size_t)G * sizeof *list);
    for (int g = 0; g < G; g++)
        list[g] = device_array(from[g], bytes);
    void *out = device_array(list, (size_t)G * sizeof *list);
    free(list);
    return out;
}

static void close_to(const char *what, const float *device, const float *want, const float *size, size_t rows, size_t cols, size_t ld, int terms)
{
    float *got = malloc(rows * ld * sizeof *got + 1);
    device_read(got, device, rows * ld * sizeof *got);
    for (size_t r = 0; r < rows; r++)
        for (size_t c = 0; c < cols; c++) {
            const double bound = 2.0 * (terms + 1) * 0x1p-23 * (double)size[r * ld + c] + (terms + 1) * 0x1p-120;
            const double off = fabs((double)got[r * ld + c] - (double)want[r * ld + c]);
            cr_assert(off <= bound, "%s: [%zu, %zu]: got %.9g, expected %.9g, bound %g", what, r, c, (double)got[r * ld + c],
                      (double)want[r * ld + c], bound);
        }
    free(got);
}

static void magnitudes(float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] = fabsf(x[i]);
}

typedef moe_err (*cuda_product)(const matmul_args *a, moe_stream *s);

/* Forward (out y) or dx (out x), with bf16 weights or fp32 ones. */
static void rows_case(const test_shape *s, bool dx, bool halves, bool accumulate)
{
    product p = make_product(s);
    const size_t n = panel_floats(p.N, p.K), out = dx ? p.rows * p.ldx : p.rows * p.ldy;
    const matmul_fn reference = dx ? test_reference()->matmul_dx : test_reference()->matmul_forward;
    float *want = dx ? p.x : p.y, *size = test_new(out, false);
    matmul_args d = {.x = device_floats(p.x, p.rows * p.ldx), .y = device_floats(p.y, p.rows * p.ldy), .ldx = p.ldx, .ldy = p.ldy,
                     .offset = device_array(p.offset, ((size_t)p.G + 1) * 4), .G = p.G, .N = p.N, .K = p.K, .accumulate = accumulate};
    d.w = halves ? NULL : device_list((void **)p.w, p.G, n * 4), d.w16 = halves ? device_list((void **)p.w16, p.G, n * 2) : NULL;
    matmul_args a = d;
    a.x = p.x, a.y = p.y, a.offset = p.offset, a.w = (const float *const *)p.w, a.w16 = NULL;
    cr_assert_eq((dx ? matmul_dx_cuda : matmul_forward_cuda)(&d, device_stream()), MOE_OK, "%s", moe_error_text());
    memcpy(size, want, out * sizeof *size);
    cr_assert_eq(reference(&a, test_stream()), MOE_OK);
    float *result = test_new(out, false);
    memcpy(result, want, out * sizeof *want);
    memcpy(want, size, out * sizeof *want); /* the same once more, of magnitudes */
    magnitudes(p.x, p.rows * p.ldx), magnitudes(p.y, p.rows * p.ldy);
    for (int g = 0; g < p.G; g++)
        magnitudes(p.w[g], n);
    cr_assert_eq(reference(&a, test_stream()), MOE_OK);
    close_to(dx ? "dx" : "y", dx ? d.x : d.y, result, want, p.rows, (size_t)(dx ? p.K : p.N), dx ? p.ldx : p.ldy, dx ? p.N : p.K);
    float *rest = malloc(out * sizeof *rest + 1); /* floats between the rows are not touched */
    device_read(rest, dx ? d.x : d.y, out * sizeof *rest);
    for (size_t r = 0; r < p.rows; r++)
        cr_assert_eq(memcmp(&rest[(r + 1) * (out / p.rows) - 1], &size[(r + 1) * (out / p.rows) - 1], 4), 0, "row %zu", r);
    free(rest), test_free(size), test_free(result);
    free_product(&p);
}

static void dw_case(const test_shape *s, bool accumulate)
{
    product p = make_product(s);
    const size_t n = panel_floats(p.N, p.K);
    matmul_args d = {.x = device_floats(p.x, p.rows * p.ldx), .y = device_floats(p.y, p.rows * p.ldy), .ldx = p.ldx, .ldy = p.ldy,
                     .offset = device_array(p.offset, ((size_t)p.G + 1) * 4), .G = p.G, .N = p.N, .K = p.K, .accumulate = accumulate};
    float *copies[64], *sizes[64];
    for (int g = 0; g < p.G; g++) {
        for (size_t i = 0; i < n; i++) /* pads of N hold zeros */
            p.dw[g][i] = (int64_t)(i / PANEL / (size_t)p.K * PANEL + i % PANEL) < p.N ? p.dw[g][i] : 0.0f;
        copies[g] = device_floats(p.dw[g], n), sizes[g] = test_new(n, true);
        memcpy(sizes[g], p.dw[g], n * sizeof(float));
        magnitudes(sizes[g], n);
    }
    d.dw = device_array(copies, (size_t)p.G * sizeof *copies);
    matmul_args a = d;
    a.x = p.x, a.y = p.y, a.offset = p.offset, a.dw = p.dw;
    cr_assert_eq(matmul_dw_cuda(&d, device_stream()), MOE_OK, "%s", moe_error_text());
    cr_assert_eq(test_reference()->matmul_dw(&a, test_stream()), MOE_OK);
    magnitudes(p.x, p.rows * p.ldx), magnitudes(p.y, p.rows * p.ldy);
    a.dw = sizes;
    cr_assert_eq(test_reference()->matmul_dw(&a, test_stream()), MOE_OK);
    for (int g = 0; g < p.G; g++) {
        close_to("dw", copies[g], p.dw[g], sizes[g], 1, n, n, p.offset[g + 1] - p.offset[g]);
        test_free(sizes[g]);
    }
    free_product(&p);
}

Test(cuda, products_are_within_the_order_of_their_sums)
{
    for (const test_shape *s = test_shapes; s->name != NULL; s++) {
        rows_case(s, false, true, false);
        rows_case(s, false, false, true);
        rows_case(s, true, true, true);
        rows_case(s, true, false, false);
        dw_case(s, false), dw_case(s, true);
    }
}

static void quantised_case(const test_shape *s, numfmt f, int K, bool accumulate)
{
    const int N = s->F, G = s->E;
    const size_t rows = (size_t)(test_tokens(s) * s->K), ldx = (size_t)K + 2, ldy = (size_t)N + 1, bytes = qpanel_bytes(f, N, K), row = numfmt_row_bytes(f, K);
    int32_t *ids = malloc((rows + 1) * sizeof *ids), *offset = malloc(((size_t)G + 1) * sizeof *offset);
    float *x = test_new_filled(rows * ldx, 1), *y = test_new_filled(rows * ldy, 2), *plain = test_new_filled((size_t)N * (size_t)K, 3);
    uint8_t *stored = malloc(row * (size_t)N), *panels = aligned_alloc(64, bytes);
    void *copies[64];
    const void *list[64];
    test_route(s, ids, offset, 41);
    if (rows > 1)
        x[5] = NAN;
    if (rows > 2)
        memset(x + 2 * ldx, 0, (size_t)K * sizeof *x);
    for (int n = 0; n < N; n++)
        numfmt_from_f32(stored + (size_t)n * row, plain + (size_t)n * (size_t)K, f, K);
    qpanel_pack(panels, stored, row, f, N, K, 0, N);
    for (int g = 0; g < G; g++)
        copies[g] = g == 0 ? device_array(panels, bytes) : copies[0], list[g] = panels;
    qmatmul_args d = {.mat[0] = {device_floats(y, rows * ldy), ldy, device_array(copies, (size_t)G * sizeof *copies), f, N}, .M = 1,
                      .x = device_floats(x, rows * ldx), .ldx = ldx, .offset = device_array(offset, ((size_t)G + 1) * 4), .G = G, .K = K,
                      .accumulate = accumulate}, a = d;
    a.mat[0].y = y, a.mat[0].w = list, a.x = x, a.offset = offset;
    cr_assert_eq(qmatmul_cuda(&d, device_stream()), MOE_OK, "%s", moe_error_text());
    cr_assert_eq(test_reference()->qmatmul(&a, test_stream()), MOE_OK);
    device_same(numfmt_about(f)->name, d.mat[0].y, y, rows, ldy);
    free(ids), free(offset), test_free(x), test_free(y), test_free(plain), free(stored), free(panels);
    device_end();
}

Test(cuda, quantised_products_have_the_bits_of_the_reference)
{
    for (const test_shape *shape = test_shapes; shape->name != NULL; shape++)
        for (int part = 0; part < 4; part++) {
            test_shape s = *shape; /* few rows: what this kernel is for, and switches of fibers cost time */
            s.B = s.B < 1 ? 0 : 1, s.S = s.S < 5 ? s.S : 5;
            quantised_case(&s, part & 1 ? NUM_Q8_0 : NUM_Q4_0, part & 2 ? 96 : 544, part == 3);
        }
}

Test(cuda, another_format_is_refused)
{
    qmatmul_args a = {.mat[0].format = NUM_Q6_K, .M = 1, .K = 256};
    cr_assert_eq(qmatmul_cuda(&a, device_stream()), MOE_E_CONFIG);
    cr_assert_not_null(strstr(moe_error_text(), "q6_k"), "%s", moe_error_text());
}
