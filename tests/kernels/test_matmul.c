/* The three products with a weight matrix (kernels/matmul.h): fast versions against the definition, bit by bit; the definition
 * against double precision. Owns nothing beyond a test. One thread. Rule: comparisons are memcmp unless a bound is derived. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/kernels/harness.h"

Test(matmul, panels_round_trip)
{
    for (const test_shape *s = test_shapes; s->name != NULL; s++) {
        const size_t N = (size_t)s->F, K = (size_t)s->D;
        float *row = test_new_filled(N * K, 1), *panels = test_new(panel_floats(s->F, s->D), true), *back = test_new(N * K, false);
        panel_pack(panels, row, s->F, s->D);
        panel_unpack(back, panels, 0, s->F, s->D);
        test_same("pack, unpack", back, row, N, K, K);
        for (size_t n = 0; n < (size_t)panel_pad(s->F); n++)
            for (size_t k = 0; k < K; k++) {
                const float want = n < N ? row[n * K + k] : 0.0f;
                cr_assert_eq(memcmp(&panels[panel_index((int64_t)n, (int64_t)k, s->D)], &want, 4), 0, "%s: panel [%zu, %zu]", s->name, n, k);
            }
        panel_unpack(back, panels, s->F - 1, 1, s->D);
        test_same("unpack of the last row", back, row + (N - 1) * K, 1, K, K);
        test_free(row), test_free(panels), test_free(back);
    }
}
