/* Sum of squares and addition (kernels/reduce.h): every backend against the definition bit by bit, the definition against long
 * double. Owns nothing beyond a test. One thread. Rule: comparisons are memcmp unless a bound is derived. */
#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "tests/kernels/harness.h"

static const size_t sizes[] = {
    0, 1, 15, 16, 17, 1000, SUM_SQUARES_CHUNK - 1, SUM_SQUARES_CHUNK, SUM_SQUARES_CHUNK + 1, 3 * SUM_SQUARES_CHUNK + 37};
enum { SIZES = sizeof sizes / sizeof sizes[0] };

static void same_sum(const moe_backend *b, moe_stream *s, const char *where, void *ctx)
{
    (void)ctx;
    for (int i = 0; i < SIZES; i++) {
        float *x = test_new_filled(sizes[i], 7);
        double got = -1.0, want = -2.0;
        cr_assert_eq(test_reference()->sum_squares(&(sum_squares_args){&want, x, sizes[i]}, test_stream()), MOE_OK);
        cr_assert_eq(b->sum_squares(&(sum_squares_args){&got, x, sizes[i]}, s), MOE_OK);
        cr_assert_eq(memcmp(&got, &want, sizeof got), 0, "%s, %zu elements: got %a, expected %a", where, sizes[i], got, want);
        test_free(x);
    }
}

Test(reduce, sum_squares_same_bits) { test_each_backend(same_sum, NULL); }

Test(reduce, sum_squares_is_the_sum)
{
    moe_stream *s = test_stream();
    for (int i = 0; i < SIZES; i++) {
        float *x = test_new_filled(sizes[i], 8);
        long double want = 0.0L;
        double got;
        for (size_t j = 0; j < sizes[i]; j++)
            want += (long double)x[j] * (long double)x[j];
        cr_assert_eq(test_reference()->sum_squares(&(sum_squares_args){&got, x, sizes[i]}, s), MOE_OK);
        /* exact squares; each term passes at most chunk/16 + 4 + chunks additions; denormals (below 2^-126 each) count as zero */
        const double depth = SUM_SQUARES_CHUNK / 16 + 4 + (double)sizes[i] / SUM_SQUARES_CHUNK + 1;
        cr_assert(fabsl((long double)got - want) <= depth * 0x1p-53L * want + (long double)sizes[i] * 0x1p-252L,
                  "%zu elements: got %a", sizes[i], got);
        test_free(x);
    }
}

/* More chunks than a small scratch holds sums for. */
Test(reduce, sum_squares_small_scratch)
{
    const size_t n = 520 * (size_t)SUM_SQUARES_CHUNK + 5;
    float *x = test_new(n, false);
    double got = 0.0, want = 1.0;
    moe_stream small;
    test_fill(x, n / 512, 9);
    for (size_t at = n / 512; at < n; at += n / 512)
        memcpy(x + at, x, (n - at < n / 512 ? n - at : n / 512) * sizeof *x);
    cr_assert_eq(moe_pool_open(&small.pool, 2, 4096), MOE_OK);
    cr_assert_eq(test_reference()->sum_squares(&(sum_squares_args){&want, x, n}, test_stream()), MOE_OK);
    for (int i = 0; moe_backend_at(i) != NULL; i++) {
        cr_assert_eq(moe_backend_at(i)->sum_squares(&(sum_squares_args){&got, x, n}, &small), MOE_OK);
        cr_assert_eq(memcmp(&got, &want, sizeof got), 0, "%s", moe_backend_at(i)->name);
    }
    moe_pool_close(small.pool);
    test_free(x);
}

static void same_add(const moe_backend *b, moe_stream *s, const char *where, void *ctx)
{
    (void)ctx;
    for (int i = 0; i < SIZES; i++) {
        float *x = test_new_filled(sizes[i], 1), *y = test_new_filled(sizes[i], 2), *want = test_new_filled(sizes[i], 2);
        for (size_t j = 0; j < sizes[i]; j++)
            want[j] += x[j];
        cr_assert_eq(b->add(&(add_args){y, x, sizes[i]}, s), MOE_OK);
        test_same(where, y, want, 1, sizes[i], 0);
        test_free(x), test_free(y), test_free(want);
    }
}

Test(reduce, add_same_bits) { test_each_backend(same_add, NULL); }
