/* Rotary position embedding: every backend against the reference bit by bit, the table and the rotation against double, the inverse. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "kernels/rope.h"
#include "tests/kernels/harness.h"

/* The table with the default frequencies: 1 / theta^(2i/hd), in fp32. */
static void make_table(float *table, int S, int hd, double theta)
{
    float inv_freq[128];
    cr_assert_leq(hd / 2, 128);
    for (int i = 0; i < hd / 2; i++)
        inv_freq[i] = 1.0f / (float)pow(theta, (double)((float)(2 * i) / (float)hd));
    rope_table(table, S, hd, inv_freq, 1.0f);
}

typedef struct rope_case {
    const test_shape *shape;
    rope_args args; /* x unset */
    const float *x, *want;
    size_t floats;
} rope_case;

static void compare(const moe_backend *b, moe_stream *s, const char *where, void *ctx)
{
    const rope_case *c = ctx;
    char what[160];
    float *x = test_new(c->floats, false);
    memcpy(x, c->x, c->floats * sizeof *x);
    rope_args args = c->args;
    args.x = x;
    cr_assert_eq(b->rope(&args, s), MOE_OK);
    snprintf(what, sizeof what, "rope, %s, %s, inverse %d, rotary %d, interleaved %d", where, c->shape->name, c->args.inverse, c->args.rotary,
             c->args.interleaved);
    test_same(what, x, c->want, (size_t)args.T, args.ld, args.ld);
    test_free(x);
}

Test(rope, fast_has_the_bits_of_the_reference)
{
    for (const test_shape *s = test_shapes; s->name != NULL; s++)
        for (int part = 0; part < 8; part++) {
            const bool inverse = part % 2;
            const int rotary = part % 4 < 2 ? 0 : s->hd / 4 * 2;
            if (part % 4 >= 2 && rotary == 0)
                continue;
            const size_t ld = (size_t)(s->H * s->hd) + 5, n = (size_t)test_tokens(s) * ld; /* 5 floats of a neighbour: not to be touched */
            float *table = test_new((size_t)s->S * (size_t)s->hd, false);
            make_table(table, s->S, rotary > 0 ? rotary : s->hd, 10000.0);
            float *x = test_new_filled(n, 1), *want = test_new_filled(n, 1);
            rope_case c = {s, {want, table, ld, test_tokens(s), s->S, s->H, s->hd, inverse, rotary, part >= 4}, x, want, n};
            cr_assert_eq(test_reference()->rope(&c.args, test_stream()), MOE_OK);
            test_each_backend(compare, &c);
            test_free(x), test_free(want), test_free(table);
        }
}

/* cos and sin of the fp32 angle are rounded from a value good to 2 ulp of double: half an ulp of fp32, and a hair. The angle's own
 * rounding is transformers' and is reproduced here. */
Test(rope, table_is_cos_and_sin_of_the_fp32_angle)
{
    enum { S = 700, HD = 24 };
    const double theta = 1e6;
    float *table = test_new((size_t)S * HD, true);
    make_table(table, S, HD, theta);
    for (int i = 0; i < HD / 2; i++) {
        const float inv_freq = 1.0f / (float)pow(theta, (double)((float)(2 * i) / (float)HD));
        for (int t = 0; t < S; t++) {
            const double angle = (double)((float)t * inv_freq);
            const double c = (double)table[t * HD / 2 + i], s = (double)table[(S + t) * HD / 2 + i];
            cr_assert_leq(fabs(c - cos(angle)), 0x1.001p-25, "cos at [%d, %d]", t, i);
            cr_assert_leq(fabs(s - sin(angle)), 0x1.001p-25, "sin at [%d, %d]", t, i);
        }
    }
    test_free(table);
}

/* One product rounded, one fma: each output is within (|b s| + |result|) * 2^-24 of the exact rotation by the table's entries. */
Test(rope, rotation_is_the_formula)
{
    enum { S = 40, HD = 24, HALF = HD / 2 };
    float *table = test_new((size_t)S * HD, true), *x = test_new((size_t)S * HD, true), *y = test_new((size_t)S * HD, true);
    make_table(table, S, HD, 10000.0);
    test_fill(x, (size_t)S * HD, 3);
    memcpy(y, x, (size_t)S * HD * sizeof *x);
    cr_assert_eq(test_reference()->rope(&(rope_args){y, table, HD, S, S, 1, HD, false, 0, false}, test_stream()), MOE_OK);
    for (int t = 0; t < S; t++)
        for (int i = 0; i < HALF; i++) {
            const double a = (double)x[t * HD + i], b = (double)x[t * HD + i + HALF];
            const double c = (double)table[t * HALF + i], s = (double)table[(S + t) * HALF + i];
            const double tolerance = (fabs(a) + fabs(b)) * 0x1p-22 + 0x1p-126;
            cr_assert_leq(fabs((double)y[t * HD + i] - (a * c - b * s)), tolerance, "first half at [%d, %d]", t, i);
            cr_assert_leq(fabs((double)y[t * HD + i + HALF] - (b * c + a * s)), tolerance, "second half at [%d, %d]", t, i);
        }
    cr_assert_eq(test_reference()->rope(&(rope_args){y, table, HD, S, S, 1, HD, true, 0, false}, test_stream()), MOE_OK);
    for (int t = 0; t < S; t++)
        for (int i = 0; i < HALF; i++) {
            const double a = (double)x[t * HD + i], b = (double)x[t * HD + i + HALF], tolerance = (fabs(a) + fabs(b)) * 0x1p-21 + 0x1p-125;
            cr_assert_leq(fabs((double)y[t * HD + i] - a), tolerance, "back at [%d, %d]", t, i);
            cr_assert_leq(fabs((double)y[t * HD + i + HALF] - b), tolerance, "back at [%d, %d]", t, i + HALF);
        }
    test_free(table), test_free(x), test_free(y);
}

/* Of a head of 24 only the first 10 turn: as a head of 10 by itself, the rest untouched. */
Test(rope, only_the_first_floats_turn)
{
    enum { S = 9, HD = 24, ROT = 10 };
    float table[S * ROT], x[S * HD], part[S * ROT], before[S * HD];
    make_table(table, S, ROT, 10000.0);
    test_fill(x, S * HD, 5);
    memcpy(before, x, sizeof x);
    for (int t = 0; t < S; t++)
        memcpy(part + t * ROT, x + t * HD, ROT * sizeof *x);
    cr_assert_eq(test_reference()->rope(&(rope_args){part, table, ROT, S, S, 1, ROT, false, 0, false}, test_stream()), MOE_OK);
    cr_assert_eq(test_reference()->rope(&(rope_args){x, table, HD, S, S, 1, HD, false, ROT, false}, test_stream()), MOE_OK);
    for (int t = 0; t < S; t++) {
        cr_assert_eq(memcmp(x + t * HD, part + t * ROT, ROT * sizeof *x), 0, "token %d: the part that turns", t);
        cr_assert_eq(memcmp(x + t * HD + ROT, before + t * HD + ROT, (HD - ROT) * sizeof *x), 0, "token %d: the rest", t);
    }
}

/* Pairs (2i, 2i+1) turn as pairs (i, i + half) of the sorted numbers do. */
Test(rope, interleaved_pairs_are_the_same_rotation)
{
    enum { S = 7, HD = 30, HALF = HD / 2 };
    float table[S * HD], x[S * HD], sorted[S * HD];
    make_table(table, S, HD, 10000.0);
    test_fill(x, S * HD, 6);
    for (int t = 0; t < S; t++)
        for (int i = 0; i < HALF; i++)
            sorted[t * HD + i] = x[t * HD + 2 * i], sorted[t * HD + HALF + i] = x[t * HD + 2 * i + 1];
    cr_assert_eq(test_reference()->rope(&(rope_args){sorted, table, HD, S, S, 1, HD, false, 0, false}, test_stream()), MOE_OK);
    cr_assert_eq(test_reference()->rope(&(rope_args){x, table, HD, S, S, 1, HD, false, 0, true}, test_stream()), MOE_OK);
    for (int t = 0; t < S; t++)
        for (int i = 0; i < HALF; i++) {
            cr_assert_eq(memcmp(&x[t * HD + 2 * i], &sorted[t * HD + i], sizeof *x), 0, "token %d, pair %d", t, i);
            cr_assert_eq(memcmp(&x[t * HD + 2 * i + 1], &sorted[t * HD + HALF + i], sizeof *x), 0, "token %d, pair %d", t, i);
        }
}
