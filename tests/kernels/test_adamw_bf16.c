/* AdamW with bf16 moments (kernels/adamw.h): every backend against the definition bit by bit; many steps in one call against many
 * calls; the rounding against its rules and its mean; the whole against fp32 moments. Owns nothing beyond a test. One thread.
 * Rule: the optimizer is replayed from a log, so a single differing bit is a failure. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/halves.h"
#include "tests/kernels/harness.h"

typedef struct state {
    float *w, *grad;
    uint16_t *m, *v; /* inside guarded floats */
    float *m_memory, *v_memory;
    uint16_t *near, *rest; /* halves at work in place of w, or NULL */
    size_t n;
} state;

static state state_new(size_t n)
{
    state x = {.w = test_new_filled(n, 1), .grad = test_new_filled(n, 2), .n = n};
    x.m_memory = test_new((n + 1) / 2, false);
    x.v_memory = test_new((n + 1) / 2, false);
    x.m = (uint16_t *)(void *)x.m_memory;
    x.v = (uint16_t *)(void *)x.v_memory;
    for (size_t i = 0; i < n; i++) { /* any exponent up to 2^15, any sign of m */
        const uint64_t bits = test_bits(3, i);
        x.m[i] = (uint16_t)((bits & 0x807f) | (bits >> 16) % 143 << 7);
        x.v[i] = (uint16_t)((bits >> 32 & 0x7f) | (bits >> 48) % 143 << 7);
    }
    return x;
}

static void state_free(state *x) { test_free(x->w), test_free(x->grad), test_free(x->m_memory), test_free(x->v_memory); }

/* The weights as halves, in guarded memory; back again. */
static float *state_split(state *x)
{
    float *memory = test_new(x->n / 2 * 2 + 2, false);
    x->near = (uint16_t *)(void *)memory;
    x->rest = x->near + (x->n / 2 * 2 + 2);
    halves_split(x->near, x->rest, x->w, x->n);
    return memory;
}

static void state_join(state *x, float *memory)
{
    halves_join(x->w, x->near, x->rest, x->n);
    x->near = x->rest = NULL;
    test_free(memory);
}

static void state_same(const char *where, const state *got, const state *want)
{
    test_same(where, got->w, want->w, 1, got->n, 0);
    test_same_bytes(where, got->m, want->m, got->n * sizeof *got->m);
    test_same_bytes(where, got->v, want->v, got->n * sizeof *got->v);
}

static void steps_fill(adamw_step *steps, int n, double beta1)
{
    for (int j = 0; j < n; j++)
        steps[j] = (adamw_step){.step = (uint64_t)j + 1,
                                .lr = 1e-2 / (j + 1),
                                .beta1 = beta1,
                                .beta2 = 0.95,
                                .eps = 1e-8,
                                .weight_decay = 0.1,
                                .clip = j == 0 ? 0.37 : 1.0};
}

static void apply(const moe_backend *b, moe_stream *s, state *x, const float *grad, const adamw_step *steps, int nsteps,
                  uint32_t section)
{
    const adamw_bf16_args a = {.w = x->near == NULL ? (adamw_weights){.w = x->w} : (adamw_weights){.near = x->near, .rest = x->rest},
                               .m = x->m,
                               .v = x->v,
                               .grad = grad,
                               .steps = steps,
                               .nsteps = nsteps,
                               .n = x->n,
                               .decay = true,
                               .seed = 0x123456789abcdef0u,
                               .section = section};
    cr_assert_eq(b->adamw_bf16(&a, s), MOE_OK);
}

enum { MANY = 130 }; /* more than two passes of the fast version */

static void same_bits(const moe_backend *b, moe_stream *s, const char *where, void *ctx)
{
    static const struct {
        size_t n;
        int steps;
        bool grad;
        double beta1;
    } cases[] = {
        {0, 1, true, 0.9},     {1, 1, true, 0.9},      {15, 2, true, 0.9},    {16, 1, false, 0.9},
        {63, 3, true, 0.9},    {64, 2, true, 0.4},     {65, MANY, true, 0.9}, {16384, 1, true, 0.4},
        {33000, 3, true, 0.9}, {1000, 64, false, 0.4}, {1000, 65, true, 0.9}, {40, 0, true, 0.9},
    };
    (void)ctx;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        adamw_step steps[MANY];
        state got = state_new(cases[i].n), want = state_new(cases[i].n);
        steps_fill(steps, MANY, cases[i].beta1);
        apply(test_reference(), test_stream(), &want, cases[i].grad ? want.grad : NULL, steps, cases[i].steps, (uint32_t)i);
        apply(b, s, &got, cases[i].grad ? got.grad : NULL, steps, cases[i].steps, (uint32_t)i);
        state_same(where, &got, &want);
        state_free(&got), got = state_new(cases[i].n);
        float *halves = state_split(&got);
        apply(b, s, &got, cases[i].grad ? got.grad : NULL, steps, cases[i].steps, (uint32_t)i);
        state_join(&got, halves);
        state_same(where, &got, &want);
        state_free(&got), state_free(&want);
    }
}

Test(adamw_bf16, same_bits) { test_each_backend(same_bits, NULL); }

/* Infinities, NaN of every kind, zeros and the largest numbers, in gradients and in moments. */
static void same_bits_at_the_edges(const moe_backend *b, moe_stream *s, const char *where, void *ctx)
{
    static const float edge[] = {INFINITY,        -INFINITY,        NAN,       -NAN,     0.0f, -0.0f,
                                 0x1.fffffep127f, -0x1.fffffep127f, 0x1p-126f, 0x1.8p63f};
    static const uint16_t kept[] = {0x7f80, 0xff80, 0x7fc0, 0xffff, 0x7f81, 0,     0x8000,
                                    0x7f7f, 0xff7f, 0x0080, 0x0001, 0x3f80, 0x5fc0};
    enum { EDGES = sizeof edge / sizeof edge[0], KEPT = sizeof kept / sizeof kept[0], N = EDGES * KEPT };
    state got = state_new(N), want = state_new(N);
    adamw_step steps[3];
    (void)ctx;
    steps_fill(steps, 3, 0.9);
    for (int i = 0; i < N; i++) {
        got.w[i] = want.w[i] = 1.0f; /* a NaN in w may keep its sign or not: the step that makes one is refused by the norm */
        got.grad[i] = want.grad[i] = edge[i % EDGES];
        got.m[i] = want.m[i] = kept[i / EDGES];
        got.v[i] = want.v[i] = kept[i / EDGES] & 0x7fff;
    }
    apply(test_reference(), test_stream(), &want, want.grad, steps, 3, 5);
    apply(b, s, &got, got.grad, steps, 3, 5);
    test_same_bytes(where, got.m, want.m, N * sizeof *got.m);
    test_same_bytes(where, got.v, want.v, N * sizeof *got.v);
    state_free(&got), state_free(&want);
}

Test(adamw_bf16, same_bits_at_the_edges) { test_each_backend(same_bits_at_the_edges, NULL); }

/* An expert without tokens: its steps may be applied one at a time or all on the next touch. */
static void steps_together(const moe_backend *b, moe_stream *s, const char *where, void *ctx)
{
    adamw_step steps[MANY];
    state got = state_new(333), want = state_new(333);
    (void)ctx;
    steps_fill(steps, MANY, 0.9);
    apply(b, s, &got, got.grad, steps, MANY, 7);
    for (int j = 0; j < MANY; j++)
        apply(b, s, &want, j == 0 ? want.grad : NULL, steps + j, 1, 7);
    state_same(where, &got, &want);
    state_free(&got), state_free(&want);
}

Test(adamw_bf16, many_steps_in_one_call_are_many_calls) { test_each_backend(steps_together, NULL); }

/* --- rounding --- */

static float widen(uint16_t x)
{
    const uint32_t u = (uint32_t)x << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static float float_of(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

Test(adamw_bf16, rounding_goes_up_as_often_as_the_lower_half_says)
{
    static const uint32_t upper[] = {0x3f80, 0xbf80, 0x0080, 0x8080, 0x3fff, 0xc2ff, 0x7f7e};
    static const uint32_t lower[] = {0, 1, 0x7fff, 0x8000, 0xffff, 0x1234};
    for (size_t i = 0; i < sizeof upper / sizeof upper[0]; i++)
        for (size_t j = 0; j < sizeof lower / sizeof lower[0]; j++) {
            const float x = float_of(upper[i] << 16 | lower[j]);
            uint32_t up = 0;
            for (uint32_t bits = 0; bits < 0x10000; bits++) {
                const uint16_t got = adamw_round_bf16(x, bits);
                cr_assert(got == upper[i] || got == upper[i] + 1, "%a with %04x: %04x", (double)x, bits, got);
                up += got != upper[i];
            }
            cr_assert_eq(up, lower[j], "%a: away from zero %u times of 65536, expected %u", (double)x, up, lower[j]);
        }
}

Test(adamw_bf16, rounding_of_what_is_not_a_number_in_range)
{
    static const struct {
        uint32_t x;
        uint16_t want;
    } cases[] = {{0x7f800000, 0x7f80}, {0xff800000, 0xff80}, {0x7fc00000, 0x7fc0}, {0xffc00000, 0x7fc0}, {0x7f800001, 0x7fc0},
                 {0xffffffff, 0x7fc0}, {0x00000000, 0x0000}, {0x80000000, 0x8000}, {0x7f7f0000, 0x7f7f}, {0xff7f0000, 0xff7f}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        for (uint32_t bits = 0; bits < 0x10000; bits += 0x1111)
            cr_assert_eq(adamw_round_bf16(float_of(cases[i].x), bits), cases[i].want, "%08x", cases[i].x);
    for (uint32_t bits = 0; bits < 0x10000; bits += 0x1111) {
        cr_assert_eq(adamw_round_bf16(0x1.fffffep127f, bits), 0x7f7f);
        cr_assert_eq(adamw_round_bf16(-0x1.fffffep127f, bits), 0xff7f);
    }
}

/* The mean over many keys is the fp32 moment, and m and v, which share a word, do not move together. A rounding is a spacing
 * times a coin of probability f: the mean of KEYS has the deviation spacing * sqrt(f (1 - f) / KEYS) <= spacing / (2 sqrt KEYS),
 * and the mean product of two independent centred coins at most 1 / (4 sqrt KEYS). Five deviations are allowed: with 3 * N draws
 * of fixed keys the chance of a false alarm was 2e-4 when the seed was chosen. */
Test(adamw_bf16, moments_are_unbiased)
{
    enum { N = 100, KEYS = 4096 };
    const moe_backend *b = NULL;
    const adamw_step step = {3, 1e-2, 0.9, 0.95, 1e-8, 0.1, 0.7};
    double sum_m[N] = {0}, sum_v[N] = {0}, both[N] = {0};
    float w[N] = {0}, m[N] = {0}, v[N] = {0};
    state x = state_new(N);
    cr_assert_eq(moe_backend_find(&b, NULL), MOE_OK);
    for (int i = 0; i < N; i++)
        x.grad[i] = (float)(test_bits(9, (uint64_t)i) % 20001) / 1e4f - 1.0f;
    const adamw_args exact = {.w = {.w = w}, .m = m, .v = v, .grad = x.grad, .steps = &step, .nsteps = 1, .n = N};
    cr_assert_eq(b->adamw(&exact, test_stream()), MOE_OK);
    for (uint32_t key = 0; key < KEYS; key++) {
        memset(x.m, 0, N * sizeof *x.m);
        memset(x.v, 0, N * sizeof *x.v);
        apply(b, test_stream(), &x, x.grad, &step, 1, key);
        for (int i = 0; i < N; i++) {
            const double dm = (double)widen(x.m[i]) - (double)m[i], dv = (double)widen(x.v[i]) - (double)v[i];
            sum_m[i] += dm, sum_v[i] += dv, both[i] += dm * dv;
        }
    }
    for (int i = 0; i < N; i++) {
        const double space_m = ldexp(1, ilogbf(m[i]) - 7), space_v = ldexp(1, ilogbf(v[i]) - 7), root = sqrt(KEYS);
        if (m[i] == 0.0f)
            continue;
        cr_assert(fabs(sum_m[i] / KEYS) <= 5 * space_m / (2 * root), "m[%d] = %a: bias %g spacings", i, (double)m[i],
                  sum_m[i] / KEYS / space_m);
        cr_assert(fabs(sum_v[i] / KEYS) <= 5 * space_v / (2 * root), "v[%d] = %a: bias %g spacings", i, (double)v[i],
                  sum_v[i] / KEYS / space_v);
        cr_assert(fabs(both[i] / KEYS) <= 5 * space_m * space_v / (4 * root), "m[%d] and v[%d] move together: %g", i, i,
                  both[i] / KEYS / space_m / space_v);
    }
    state_free(&x);
}

/* Beside fp32 moments over STEPS steps. A rounding moves a moment by less than 2^-7 of it, so |m - m32| <= em with em' = beta1 em
 * + 2^-7
 * (|m32'| + beta1 em), ev likewise; w moves by the moments before they are rounded, so one step differs by at most lr / bias1
 * times what (m32 +- beta1 em) / (sqrt(v32 -+ beta2 ev) / root2 + eps) leaves, and fp32 itself adds a few roundings. */
Test(adamw_bf16, stays_near_fp32_moments)
{
    enum { N = 512, STEPS = 20 };
    const double beta1 = 0.9, beta2 = 0.95, lr = 1e-2, eps = 1e-8, spacing = 0x1p-7;
    double em[N] = {0}, ev[N] = {0}, ew[N] = {0}, signed_sum = 0, bound_sum = 0;
    float w[N], m[N] = {0}, v[N] = {0};
    state x = state_new(N);
    memcpy(w, x.w, sizeof w);
    memset(x.m, 0, N * sizeof *x.m);
    memset(x.v, 0, N * sizeof *x.v);
    for (int j = 1; j <= STEPS; j++) {
        const adamw_step step = {(uint64_t)j, lr, beta1, beta2, eps, 0.1, 1.0};
        const double bias1 = 1 - pow(beta1, j), root2 = sqrt(1 - pow(beta2, j));
        for (int i = 0; i < N; i++)
            x.grad[i] = 0.5f + (float)(test_bits((uint64_t)j, (uint64_t)i) % 1000) / 1000.0f;
        const adamw_args exact = {.w = {.w = w}, .m = m, .v = v, .grad = x.grad, .steps = &step, .nsteps = 1, .n = N, .decay = true};
        cr_assert_eq(test_reference()->adamw(&exact, test_stream()), MOE_OK);
        apply(test_reference(), test_stream(), &x, x.grad, &step, 1, 1);
        for (int i = 0; i < N; i++) {
            em[i] *= beta1, ev[i] *= beta2;
            const double high = ((double)m[i] + em[i]) / (sqrt(fmax(0, (double)v[i] - ev[i])) / root2 + eps);
            const double low = ((double)m[i] - em[i]) / (sqrt((double)v[i] + ev[i]) / root2 + eps),
                         at = (double)m[i] / (sqrt((double)v[i]) / root2 + eps);
            ew[i] += lr / bias1 * fmax(high - at, at - low) + 8 * 0x1p-24 * fmax(1, fabs((double)w[i]));
            em[i] += spacing * ((double)m[i] + em[i]), ev[i] += spacing * ((double)v[i] + ev[i]);
            cr_assert(fabs((double)x.w[i] - (double)w[i]) <= ew[i], "step %d, w[%d]: %.9g, with fp32 moments %.9g, bound %g", j,
                      i, (double)x.w[i], (double)w[i], ew[i]);
            cr_assert(fabs((double)widen(x.m[i]) - (double)m[i]) <= em[i] && fabs((double)widen(x.v[i]) - (double)v[i]) <= ev[i],
                      "step %d, moments of %d", j, i);
        }
    }
    for (int i = 0; i < N; i++)
        signed_sum += (double)x.w[i] - (double)w[i], bound_sum += ew[i];
    cr_assert(fabs(signed_sum) <= bound_sum / 20, "the differences do not cancel: %g of %g", signed_sum, bound_sum);
    state_free(&x);
}
