/* Token embedding (kernels/embedding.h): row-major and panels, forward and backward, against plain loops bit by bit; wrong ids.
 * Owns nothing beyond a test. One thread. Rule: comparisons are memcmp. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/kernels/harness.h"

static int32_t *token_ids(int64_t T, int V)
{
    int32_t *id = malloc(((size_t)T + 1) * sizeof *id);
    for (int64_t t = 0; t < T; t++)
        id[t] = (int32_t)(test_bits(9, (uint64_t)t) % (uint64_t)(V / 2 + 1)) +
                (t % 3 == 0 ? V - V / 2 - 1 : 0); /* many repeats, the last id too */
    return id;
}

static void embedding_case(const moe_backend *b, moe_stream *s, const char *where, int64_t T, int V, int D)
{
    const size_t width = (size_t)D, cells = (size_t)V * width;
    int32_t *id = token_ids(T, V);
    float *table = test_new_filled(cells, 1), *x = test_new(((size_t)T) * width, false),
          *dx = test_new_filled((size_t)T * width, 2);
    float *want = test_new_filled(cells, 3), *got = test_new_filled(cells, 3), *back = test_new(cells, false);
    float *panels = test_new(panel_floats(V, D), true), *want_x = test_new((size_t)T * width, false);
    for (size_t t = 0; t < (size_t)T; t++)
        for (size_t d = 0; d < width; d++) {
            want_x[t * width + d] = table[(size_t)id[t] * width + d];
            want[(size_t)id[t] * width + d] += dx[t * width + d];
        }
    embedding_args a = {.x = x, .table = table, .dtable = got, .id = id, .T = T, .V = V, .D = D};
    cr_assert_eq(b->embedding_forward(&a, s), MOE_OK);
    test_same(where, x, want_x, (size_t)T, width, width);
    a.x = dx;
    cr_assert_eq(b->embedding_backward(&a, s), MOE_OK);
    test_same(where, got, want, (size_t)V, width, width);

    panel_pack(panels, table, V, D);
    a = (embedding_args){.x = x, .table = panels, .dtable = panels, .id = id, .T = T, .V = V, .D = D, .panels = true};
    cr_assert_eq(b->embedding_forward(&a, s), MOE_OK);
    test_same(where, x, want_x, (size_t)T, width, width);
    test_fill(got, cells, 3);
    panel_pack(panels, got, V, D);
    a.x = dx;
    cr_assert_eq(b->embedding_backward(&a, s), MOE_OK);
    panel_unpack(back, panels, 0, V, D);
    test_same(where, back, want, (size_t)V, width, width);
    for (int64_t n = V; n < panel_pad(V); n++)
        for (int64_t d = 0; d < D; d++)
            cr_assert_eq(panels[panel_index(n, d, D)], 0.0f, "%s: the pad was written", where);
    free(id);
    test_free(table), test_free(x), test_free(dx), test_free(want), test_free(got), test_free(back), test_free(panels),
        test_free(want_x);
}

static void same_bits(const moe_backend *b, moe_stream *s, const char *where, void *ctx)
{
    (void)ctx;
    for (const test_shape *p = test_shapes; p->name != NULL; p++)
        embedding_case(b, s, where, test_tokens(p), p->V, p->D);
    embedding_case(b, s, where, 500, 3, 1);
    embedding_case(b, s, where, 90, 40, 200);
}

Test(embedding, same_bits) { test_each_backend(same_bits, NULL); }

static void wrong_id(const moe_backend *b, moe_stream *s, const char *where, void *ctx)
{
    static const int32_t bad[] = {-1, 10, INT32_MAX, INT32_MIN};
    (void)ctx;
    for (int i = 0; i < 4; i++) {
        int32_t id[20] = {0};
        float *x = test_new_filled(20 * 16, 1), *kept = test_new_filled(20 * 16, 1), *table = test_new_filled(10 * 16, 2);
        id[13] = bad[i];
        id[17] = -9;
        const embedding_args a = {.x = x, .table = table, .dtable = table, .id = id, .T = 20, .V = 10, .D = 16};
        char want[64];
        snprintf(want, sizeof want, "token 13 has id %d,", (int)bad[i]);
        cr_assert_eq(b->embedding_forward(&a, s), MOE_E_DATA, "%s", where);
        cr_assert_not_null(strstr(moe_error_text(), want), "%s: \"%s\" does not say \"%s\"", where, moe_error_text(), want);
        test_same(where, x, kept, 1, 20 * 16, 0);
        cr_assert_eq(b->embedding_backward(&a, s), MOE_E_DATA, "%s", where);
        test_fill(kept, 10 * 16, 2);
        test_same(where, table, kept, 1, 10 * 16, 0);
        test_free(x), test_free(kept), test_free(table);
    }
}

Test(embedding, wrong_id_is_named) { test_each_backend(wrong_id, NULL); }
