/* Embedding, gather and combine on CUDA against the reference, bit by bit; a wrong id is the CPU's error. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/matmul.h"
#include "tests/cuda/device.h"

static void embedding_case(const test_shape *s, bool panels)
{
    const size_t T = (size_t)test_tokens(s), D = (size_t)s->D, n = panels ? panel_floats(s->V, s->D) : (size_t)s->V * D;
    float *table = test_new_filled(n, 1), *x = test_new(T * D, false);
    int32_t *id = malloc((T + 1) * sizeof *id);
    for (size_t t = 0; t < T; t++)
        id[t] = (int32_t)(test_bits(5, t) % (uint64_t)s->V);
    embedding_args a = {.x = x, .table = table, .id = id, .T = (int64_t)T, .V = s->V, .D = s->D, .panels = panels}, d = a;
    cr_assert_eq(test_reference()->embedding_forward(&a, test_stream()), MOE_OK);
    d.x = device_floats(NULL, T * D), d.table = device_floats(table, n), d.id = device_array(id, T * sizeof *id);
    cr_assert_eq(embedding_forward_cuda(&d, device_stream()), MOE_OK, "%s", moe_error_text());
    device_same(s->name, d.x, x, T, D);
    test_free(table), test_free(x), free(id);
    device_end();
}

Test(cuda, embedding_has_the_bits_of_the_reference)
{
    for (const test_shape *s = test_shapes; s->name != NULL; s++)
        embedding_case(s, false), embedding_case(s, true);
}

Test(cuda, a_wrong_token_is_the_error_of_the_cpu)
{
    const int32_t id[] = {3, 15, 16, -1, 2};
    float table[16 * 2] = {0}, x[5 * 2];
    char want[256];
    embedding_args a = {.x = x, .table = table, .id = id, .T = 5, .V = 16, .D = 2}, d = a;
    cr_assert_eq(test_reference()->embedding_forward(&a, test_stream()), MOE_E_DATA);
    snprintf(want, sizeof want, "%s", moe_error_text());
    d.x = device_floats(NULL, 10), d.table = device_floats(table, 32), d.id = device_array(id, sizeof id);
    cr_assert_eq(embedding_forward_cuda(&d, device_stream()), MOE_OK, "the call only queues");
    const int32_t row_token[] = {1 << 30}; /* what nobody wrote, because the ids were wrong: not followed */
    gather_args g = {.dst = device_floats(NULL, 2), .src = d.table, .row_token = device_array(row_token, sizeof row_token), .ld = 2, .n = 1, .D = 2};
    cr_assert_eq(gather_cuda(&g, device_stream()), MOE_OK, "%s", moe_error_text());
    cr_assert_eq(moe_cuda_wait(device_stream()->cuda), MOE_E_DATA);
    cr_assert_str_eq(moe_error_text(), want);
}

static void combine_case(const test_shape *s, bool weighted, bool based, bool dropped)
{
    const size_t T = (size_t)test_tokens(s), D = (size_t)s->D, N = T * (size_t)s->K;
    float *rows = test_new_filled(N * D, 1), *weight = test_new_filled(N, 2), *base = test_new_filled(T * D, 3), *out = test_new(T * D, false);
    float *src = test_new_filled(T * (D + 3), 4), *gathered = test_new(N * D, false);
    int32_t *row_of = malloc((N + 1) * sizeof *row_of), *row_token = malloc((N + 1) * sizeof *row_token);
    for (size_t i = 0; i < N; i++) {
        row_of[i] = dropped && i % 3 == 1 ? -1 : (int32_t)((i * 7 + 3) % N);
        row_token[i] = (int32_t)(test_bits(6, i) % T);
    }
    combine_args a = {out, based ? base : NULL, rows, row_of, weighted ? weight : NULL, (int64_t)T, s->K, s->D}, d = a;
    gather_args g = {gathered, src, row_token, D + 3, (int64_t)N, s->D}, dg = g;
    cr_assert_eq(test_reference()->combine(&a, test_stream()), MOE_OK);
    cr_assert_eq(test_reference()->gather(&g, test_stream()), MOE_OK);
    d.rows = device_floats(rows, N * D), d.row_of = device_array(row_of, N * sizeof *row_of), d.out = device_floats(base, T * D);
    d.weight = weighted ? device_floats(weight, N) : NULL, d.base = based ? d.out : NULL; /* base may be out */
    dg.dst = device_floats(NULL, N * D), dg.src = device_floats(src, T * (D + 3)), dg.row_token = device_array(row_token, N * sizeof *row_token);
    cr_assert_eq(combine_cuda(&d, device_stream()), MOE_OK, "%s", moe_error_text());
    cr_assert_eq(gather_cuda(&dg, device_stream()), MOE_OK, "%s", moe_error_text());
    device_same("combine", d.out, out, T, D);
    device_same("gather", dg.dst, gathered, N, D);
    test_free(rows), test_free(weight), test_free(base), test_free(out), test_free(src), test_free(gathered), free(row_of), free(row_token);
    device_end();
}

Test(cuda, gather_and_combine_have_the_bits_of_the_reference)
{
    for (const test_shape *s = test_shapes; s->name != NULL; s++)
        for (int part = 0; part < 8; part++)
            combine_case(s, part & 1, part & 2, part & 4);
}
