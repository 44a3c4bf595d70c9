/* The sampler against tokens that numpy draws from the same definitions (make_sampler.py), its distribution, its ties, what it
 * refuses, and that a token depends on nothing but its own sequence. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/serve/sampler.h"
#include "engine/serve/sampler_private.h"
#include "tests/engine/sampler_numpy.h"

enum { V = NUMPY_V, N = NUMPY_N };

static const int32_t breaker[] = {44};

static void make_logits(float *l)
{
    for (int v = 0; v < V; v++)
        l[v] = (float)((v * 37 + 11) % 61 * 5 % 97) / 16 - (float)(v % 7) / 64 - 3;
}

static sampler_options plain(void)
{
    sampler_options o = sampler_defaults();
    o.temperature = 1, o.top_k = 0, o.top_p = 1, o.min_p = 0;
    return o;
}

static sampler *begin(const sampler_options *o, int vocabulary, uint32_t sequence, const int32_t *h, int n)
{
    sampler *s;
    cr_assert_eq(sampler_open(&s, o, vocabulary, sequence, n + 8), MOE_OK, "%s", moe_error_text());
    cr_assert_eq(sampler_accept(s, h, n), MOE_OK, "%s", moe_error_text());
    return s;
}

static sampler_room *open_room(int vocabulary)
{
    sampler_room *r;
    cr_assert_eq(sampler_room_open(&r, vocabulary), MOE_OK, "%s", moe_error_text());
    return r;
}

static int32_t sample(const sampler *s, sampler_room *r, const float *l)
{
    sampler_result out;
    cr_assert_eq(sampler_sample(s, r, l, &out), MOE_OK, "%s", moe_error_text());
    return out.token;
}

/* One draw of a sequence that begins with h. */
static int32_t draw(const sampler_options *o, sampler_room *r, const float *l, int vocabulary, uint32_t sequence, const int32_t *h, int n)
{
    sampler *s = begin(o, vocabulary, sequence, h, n);
    const int32_t token = sample(s, r, l);
    sampler_close(s);
    return token;
}

static sampler_options numpy_options(const struct numpy_case *c)
{
    sampler_options o = c->o;
    o.seed = numpy_seed;
    o.breaker = breaker;
    o.nbreaker = 1;
    return o;
}

Test(sampler, draws_what_numpy_draws)
{
    float l[V];
    make_logits(l);
    sampler_room *r = open_room(V);
    for (size_t i = 0; i < sizeof numpy_cases / sizeof *numpy_cases; i++) {
        const struct numpy_case *c = &numpy_cases[i];
        const sampler_options o = numpy_options(c);
        for (int k = 0; k < NUMPY_DRAWS; k++) {
            const int32_t token = draw(&o, r, l, V, (uint32_t)k, numpy_history, N);
            cr_assert_eq(token, c->token[k], "%s, sequence %d: token %d, numpy draws %d", c->name, k, token, c->token[k]);
        }
    }
    sampler_room_close(r);
}

Test(sampler, keeps_as_many_candidates_as_numpy)
{
    float l[V];
    make_logits(l);
    sampler_room *r = open_room(V);
    for (size_t i = 0; i < sizeof numpy_cases / sizeof *numpy_cases; i++) {
        const struct numpy_case *c = &numpy_cases[i];
        bool seen[V] = {0};
        int kept = 0;
        sampler_options o = numpy_options(c);
        o.temperature = 100; /* nearly uniform: every candidate comes up */
        if (o.xtc_probability < 1)
            o.xtc_probability = 0;
        for (int k = 0; k < 1500; k++) {
            const int32_t token = draw(&o, r, l, V, (uint32_t)k, numpy_history, N);
            kept += !seen[token];
            seen[token] = true;
        }
        cr_assert_eq(kept, c->kept, "%s: %d candidates, numpy keeps %d", c->name, kept, c->kept);
    }
    sampler_room_close(r);
}

Test(sampler, logprobs_are_those_of_the_model)
{
    float l[V];
    make_logits(l);
    sampler_options o = plain();
    o.logprobs = 5, o.top_k = 1, o.repeat = 3;
    sampler_room *r = open_room(V);
    sampler *s = begin(&o, V, 0, numpy_history, N);
    sampler_result out;
    cr_assert_eq(sampler_sample(s, r, l, &out), MOE_OK);
    cr_assert_eq(out.ntop, 5);
    for (int i = 0; i < 5; i++) {
        cr_assert_eq(out.top[i].token, numpy_top[i].token);
        /* 1e-6: the exponentials are floats of 0.9 ulp, 6e-8 each */
        cr_assert_float_eq(out.top[i].logprob, numpy_top[i].logprob, 1e-6);
        if (out.token == out.top[i].token)
            cr_assert_eq(out.logprob, out.top[i].logprob);
    }
    cr_assert_eq(out.token, 26, "the penalty moves what is drawn, not what is reported");
    sampler_close(s);
    sampler_room_close(r);
}

/* Four tokens with p = 1/2, 1/4, 1/8, 1/8 and 4096 sequences: each count within four standard deviations. */
Test(sampler, counts_follow_the_probabilities)
{
    static const float l[] = {-1.0f, -1.0f - 0x1.62e43p-1f, -1.0f - 0x1.62e43p+0f, -1.0f - 0x1.62e43p+0f};
    static const double p[] = {0.5, 0.25, 0.125, 0.125};
    enum { SEQUENCES = 4096 };
    int count[4] = {0};
    sampler_options o = plain();
    o.seed = 7;
    sampler_room *r = open_room(4);
    for (uint32_t k = 0; k < SEQUENCES; k++)
        count[draw(&o, r, l, 4, k, NULL, 0)]++;
    for (int v = 0; v < 4; v++)
        cr_assert_lt(fabs(count[v] - SEQUENCES * p[v]), 4 * sqrt(SEQUENCES * p[v] * (1 - p[v])), "token %d: %d of %d", v, count[v], SEQUENCES);
    sampler_room_close(r);
}

Test(sampler, a_sequence_draws_alone_what_it_draws_among_others)
{
    enum { STEPS = 32, SEQUENCES = 3 };
    float l[SEQUENCES][V];
    int32_t alone[SEQUENCES][STEPS], token;
    sampler_options o = sampler_defaults();
    o.dry_multiplier = 0.8, o.repeat = 1.1, o.xtc_probability = 0.3, o.seed = 99;
    for (int q = 0; q < SEQUENCES; q++) {
        make_logits(l[q]);
        l[q][q * 11] += 2;
    }
    sampler_room *r = open_room(V);
    sampler *s[SEQUENCES];
    for (int q = 0; q < SEQUENCES; q++) {
        cr_assert_eq(sampler_open(&s[q], &o, V, (uint32_t)q, STEPS), MOE_OK);
        for (int i = 0; i < STEPS; i++) {
            alone[q][i] = sample(s[q], r, l[q]);
            cr_assert_eq(sampler_accept(s[q], &alone[q][i], 1), MOE_OK);
        }
        sampler_close(s[q]);
        cr_assert_eq(sampler_open(&s[q], &o, V, (uint32_t)q, STEPS), MOE_OK);
    }
    cr_assert_neq(memcmp(alone[0], alone[1], sizeof alone[0]), 0, "sequences draw their own numbers");
    for (int i = 0; i < STEPS; i++)
        for (int q = SEQUENCES; q-- > 0;) {
            token = sample(s[q], r, l[q]);
            cr_assert_eq(token, alone[q][i], "sequence %d, token %d", q, i);
            cr_assert_eq(sample(s[q], r, l[q]), token, "sampling changes nothing");
            cr_assert_eq(sampler_accept(s[q], &token, 1), MOE_OK);
        }
    for (int q = 0; q < SEQUENCES; q++)
        sampler_close(s[q]);
    sampler_room_close(r);
}

Test(sampler, ties_go_to_the_lowest_id)
{
    float l[300];
    for (int v = 0; v < 300; v++)
        l[v] = v % 3 == 2 ? -0.0f : v % 3 == 1 ? 0.0f : -1.0f; /* 1, 2, 4, 5, ... are equal */
    sampler_options o = plain();
    sampler_room *r = open_room(300);
    o.temperature = 0;
    cr_assert_eq(draw(&o, r, l, 300, 0, NULL, 0), 1);
    o.temperature = 1, o.top_k = 4;
    bool seen[300] = {0};
    for (uint32_t k = 0; k < 64; k++)
        seen[draw(&o, r, l, 300, k, NULL, 0)] = true;
    for (int v = 0; v < 300; v++)
        cr_assert_eq(seen[v], v == 1 || v == 2 || v == 4 || v == 5, "token %d", v);
    sampler_room_close(r);
}

static int falling(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x < y) - (x > y);
}

Test(sampler, the_largest_are_selected_in_order)
{
    enum { MOST = 700 };
    uint64_t key[MOST], sorted[MOST], seen = 0, sum;
    for (int n = 1; n < MOST; n += 37)
        for (int k = 0; k <= n; k += 1 + k / 2) {
            sum = 0;
            for (int i = 0; i < n; i++)
                sum += sorted[i] = key[i] = (uint64_t)(i * 7919 % 1009) << 32 | (uint32_t)i;
            qsort(sorted, (size_t)n, sizeof *sorted, falling);
            candidates_select(key, n, k);
            cr_assert_eq(memcmp(key, sorted, (size_t)k * sizeof *key), 0, "%d of %d", k, n);
            for (int i = 0; i < n; i++)
                sum -= key[i];
            cr_assert_eq(sum, 0, "none is lost");
            seen++;
        }
    cr_assert_gt(seen, 100);
}

/* The nucleus of a flat distribution has more tokens than are selected at first. */
Test(sampler, a_wide_nucleus)
{
    enum { WIDE = 5000 };
    static float l[WIDE];
    for (int v = 0; v < WIDE; v++)
        l[v] = (float)(v * 2003 % WIDE) / (1 << 20);
    sampler_options o = plain();
    o.top_p = 0.9, o.temperature = 100;
    sampler_room *r = open_room(WIDE);
    for (uint32_t k = 0; k < 2000; k++) { /* 0.9 of nearly equal ones: the lower tenth of the logits never comes */
        const int32_t token = draw(&o, r, l, WIDE, k, NULL, 0);
        cr_assert_geq(token * 2003 % WIDE, WIDE / 10 - 10, "token %d", token);
    }
    sampler_room_close(r);
}

static moe_err only_multiples(void *state, uint32_t *allowed, int vocabulary)
{
    const int of = *(const int *)state;
    for (int v = 0; v < vocabulary; v++)
        if (of == 0 || v % of != 0)
            allowed[v / 32] &= ~(1u << v % 32);
    return of < 0 ? moe_fail(MOE_E_DATA, "the grammar is broken") : MOE_OK;
}

Test(sampler, a_mask_forbids_and_a_bias_cannot_allow)
{
    float l[V];
    make_logits(l);
    int of = 13;
    sampler_bias bias[] = {{20, 1000}, {26, -INFINITY}};
    sampler_options o = plain();
    o.bias = bias, o.nbias = 2, o.logprobs = 1;
    sampler_room *r = open_room(V);
    sampler *s = begin(&o, V, 0, NULL, 0);
    sampler_result out;
    cr_assert_eq(sample(s, r, l), 20, "a bias of 1000 decides");
    sampler_set_mask(s, (sampler_mask){only_multiples, &of});
    for (int i = 0; i < 8; i++) {
        const int32_t token = sample(s, r, l);
        cr_assert(token % 13 == 0 && token != 26, "token %d", token);
        cr_assert_eq(sampler_accept(s, &token, 1), MOE_OK);
    }
    cr_assert_eq(sampler_sample(s, r, l, &out), MOE_OK);
    cr_assert_eq(out.top[0].token, 26, "log probabilities are those before the mask");
    of = 0;
    cr_assert_eq(sampler_sample(s, r, l, &out), MOE_E_DATA, "nothing is left");
    cr_assert_eq(out.token, -1);
    of = -1;
    cr_assert_eq(sampler_sample(s, r, l, &out), MOE_E_DATA);
    cr_assert_not_null(strstr(moe_error_text(), "the grammar is broken"));
    sampler_close(s);
    sampler_room_close(r);
}

Test(sampler, numbers_that_are_none_are_errors)
{
    float l[V];
    sampler_options o = sampler_defaults();
    sampler_room *r = open_room(V);
    sampler *s = begin(&o, V, 0, NULL, 0);
    sampler_result out;
    const float bad[] = {NAN, INFINITY};
    for (int i = 0; i < 2; i++) {
        make_logits(l);
        l[17] = bad[i];
        cr_assert_eq(sampler_sample(s, r, l, &out), MOE_E_NUMERIC);
        cr_assert_not_null(strstr(moe_error_text(), "token 17"), "%s", moe_error_text());
    }
    for (int v = 0; v < V; v++)
        l[v] = -INFINITY;
    cr_assert_eq(sampler_sample(s, r, l, &out), MOE_E_NUMERIC);
    l[5] = -3e38f, l[6] = 3e38f; /* the distance overflows: a probability of 0 */
    cr_assert_eq(sample(s, r, l), 6);
    sampler_close(s);
    o = plain();
    o.typical_p = 0.9, o.temperature = 1e-40;
    s = begin(&o, V, 0, NULL, 0);
    cr_assert_eq(sample(s, r, l), 6);
    sampler_close(s);
    sampler_room_close(r);
}

Test(sampler, options_and_tokens_out_of_range_are_refused)
{
    const struct {
        const char *name;
        sampler_options o;
    } row[] = {
        {"temperature", {.temperature = -1}}, {"temperature", {.temperature = NAN}}, {"top-k", {.top_k = -1}},
        {"top-p", {.top_p = 1.5}},            {"min-p", {.min_p = -0.1}},            {"typical-p", {.typical_p = 2}},
        {"repeat-penalty", {.repeat = 0}},    {"logprobs", {.repeat = 1, .dry_base = 2, .dry_allowed = 1, .logprobs = 21}},
        {"dry-allowed", {.repeat = 1, .dry_base = 2}},
    };
    sampler *s;
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        cr_assert_eq(sampler_open(&s, &row[i].o, V, 0, 4), MOE_E_USAGE);
        cr_assert_null(s);
        cr_assert_not_null(strstr(moe_error_text(), row[i].name), "%s: %s", row[i].name, moe_error_text());
    }
    sampler_options o = sampler_defaults();
    const sampler_bias far = {V, 1}, nan = {1, NAN};
    o.nbias = 1;
    o.bias = &far;
    cr_assert_eq(sampler_open(&s, &o, V, 0, 4), MOE_E_USAGE);
    o.bias = &nan;
    cr_assert_eq(sampler_open(&s, &o, V, 0, 4), MOE_E_USAGE);
    o = sampler_defaults();
    cr_assert_eq(sampler_open(&s, &o, V, 0, 4), MOE_OK);
    const int32_t beyond[] = {0, V}, five[5] = {0};
    cr_assert_eq(sampler_accept(s, beyond, 2), MOE_E_DATA);
    cr_assert_eq(sampler_accept(s, five, 5), MOE_E_CONFIG);
    cr_assert_eq(sampler_accepted(s), 0);
    sampler_close(s);
}
