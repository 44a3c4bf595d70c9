/* Random numbers (kernels/random.h): Philox against its published vectors, normals of every backend against the definition bit by bit,
 * their moments, and that the layout does not change them. Owns nothing beyond a test. One thread. Rule: comparisons are memcmp unless a
 * bound is derived. */
#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "kernels/matmul.h"
#include "tests/kernels/harness.h"

/* The known answers of Random123 (kat_vectors, philox4x32 10). */
Test(random, philox_known_answers)
{
    static const struct {
        uint64_t seed, element;
        uint32_t tensor, step, want[4];
    } known[] = {
        {0, 0, 0, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {~0ull, ~0ull, ~0u, ~0u, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {0x299f31d0a4093822, 0x85a308d3243f6a88, 0x13198a2e, 0x03707344, {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        uint32_t got[4];
        random_words(got, (random_key){known[i].seed, known[i].tensor, known[i].step}, known[i].element);
        for (int j = 0; j < 4; j++)
            cr_assert_eq(got[j], known[i].want[j], "vector %zu, word %d: got %08x, expected %08x", i, j, got[j],
                         known[i].want[j]);
    }
}

Test(random, uniform_in_range)
{
    double sum = 0.0;
    for (uint64_t i = 0; i < 10000; i++) {
        const double u = random_uniform((random_key){1, 2, 3}, i);
        cr_assert(u >= 0.0 && u < 1.0);
        sum += u;
    }
    cr_assert_float_eq(sum / 10000, 0.5, 5 * 0.2887 / 100); /* five standard deviations of the mean */
}

static void same_bits(const moe_backend *b, moe_stream *s, const char *where, void *ctx)
{
    static const int64_t shapes[][2] = {{1, 1}, {16, 4}, {17, 5}, {40, 67}, {3, 200}, {100, 33}, {0, 8}, {5, 131}};
    (void)ctx;
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
        for (int panels = 0; panels < 2; panels++) {
            const int64_t N = shapes[i][0], K = shapes[i][1];
            const size_t cells = panels ? panel_floats(N, K) : (size_t)(N * K);
            float *got = test_new(cells, false), *want = test_new(cells, false);
            random_normal_args a = {.w = want, .key = {0x123456789abcdef0, 5, 6}, .N = N, .K = K, .std = 0.02f, .panels = panels};
            cr_assert_eq(test_reference()->random_normal(&a, test_stream()), MOE_OK);
            a.w = got;
            cr_assert_eq(b->random_normal(&a, s), MOE_OK);
            test_same(where, got, want, 1, cells, 0);
            test_free(got), test_free(want);
        }
}

Test(random, same_bits) { test_each_backend(same_bits, NULL); }

static void layouts(const moe_backend *b, moe_stream *s, const char *where, void *ctx)
{
    enum { N = 37, K = 29 };
    float *rows = test_new(N * K, false), *panels = test_new(panel_floats(N, K), true), *back = test_new(N * K, false);
    random_normal_args a = {.w = rows, .key = {7, 8, 9}, .N = N, .K = K, .std = 1.0f};
    (void)ctx;
    cr_assert_eq(b->random_normal(&a, s), MOE_OK);
    a.w = panels, a.panels = true;
    cr_assert_eq(b->random_normal(&a, s), MOE_OK);
    panel_unpack(back, panels, 0, N, K);
    test_same(where, back, rows, N, K, K);
    for (int64_t n = N; n < panel_pad(N); n++)
        for (int64_t k = 0; k < K; k++)
            cr_assert_eq(memcmp(&panels[panel_index(n, k, K)], &(float){0}, 4), 0, "%s: the pad is not zero", where);
    test_free(rows), test_free(panels), test_free(back);
}

Test(random, layout_does_not_change_numbers) { test_each_backend(layouts, NULL); }

/* Mean, variance, fourth moment and the correlation of neighbours, five standard deviations each; the largest is below 5.77 std. */
Test(random, moments)
{
    enum { N = 256, K = 1024 };
    const double n = (double)N * K;
    float *w = test_new((size_t)N * K, false), *other = test_new((size_t)N * K, false);
    double m1 = 0, m2 = 0, m4 = 0, next = 0, cross = 0, most = 0;
    random_normal_args a = {.w = w, .key = {42, 1, 0}, .N = N, .K = K, .std = 0.5f};
    const moe_backend *best;
    cr_assert_eq(moe_backend_find(&best, NULL), MOE_OK);
    cr_assert_eq(best->random_normal(&a, test_stream()), MOE_OK);
    a.w = other, a.key.tensor = 2;
    cr_assert_eq(best->random_normal(&a, test_stream()), MOE_OK);
    for (size_t i = 0; i < (size_t)N * K; i++) {
        const double z = (double)w[i] / 0.5;
        m1 += z, m2 += z * z, m4 += z * z * z * z, cross += z * (double)other[i] / 0.5;
        next += i > 0 ? z * (double)w[i - 1] / 0.5 : 0.0;
        most = fmax(most, fabs(z));
    }
    cr_assert(fabs(m1 / n) < 5 / sqrt(n), "mean %g", m1 / n);
    cr_assert(fabs(m2 / n - 1) < 5 * sqrt(2 / n), "variance %g", m2 / n);
    cr_assert(fabs(m4 / n - 3) < 5 * sqrt(96 / n), "fourth moment %g", m4 / n);
    cr_assert(fabs(next / n) < 5 / sqrt(n), "correlation of neighbours %g", next / n);
    cr_assert(fabs(cross / n) < 5 / sqrt(n), "correlation of tensors %g", cross / n);
    cr_assert(most > 4.0 && most < 5.78, "largest %g", most);
    test_free(w), test_free(other);
}

Test(random, box_muller_in_double)
{
    enum { N = 3, K = 50 };
    const random_key key = {11, 12, 13};
    float *w = test_new(N * K, false);
    const random_normal_args a = {.w = w, .key = key, .N = N, .K = K, .std = 2.0f};
    cr_assert_eq(test_reference()->random_normal(&a, test_stream()), MOE_OK);
    for (int n = 0; n < N; n++)
        for (int k = 0; k < K; k++) {
            uint32_t words[4];
            random_words(words, key, (uint64_t)(n * ((K + 3) / 4) + k / 4));
            const uint32_t *pair = words + k % 4 / 2 * 2;
            const double u = ((pair[0] >> 8) + 1) * 0x1p-24, angle = (pair[1] >> 8) * 0x1p-23 * M_PI, r = sqrt(-2 * log(u));
            const double want = 2.0 * r * (k % 2 ? sin(angle) : cos(angle));
            /* log, root, sine within 1 ulp (2 roundings) each, two products */
            cr_assert(fabs((double)w[n * K + k] - want) <= 8 * 0x1p-24 * fabs(want), "[%d, %d]: got %.9g, expected %.9g", n, k,
                      (double)w[n * K + k], want);
        }
    test_free(w);
}
