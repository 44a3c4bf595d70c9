/* AdamW (kernels/adamw.h): every backend against the definition bit by bit; many steps in one call against many calls; the definition
 * against PyTorch's bits and against double precision. Owns nothing beyond a test. One thread.
 * Rule: the optimizer is replayed from a log, so a single differing bit is a failure. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/halves.h"
#include "tests/kernels/adamw_pytorch.h"
#include "tests/kernels/harness.h"

typedef struct state {
    float *w, *m, *v, *grad;
    size_t n;
    uint16_t *near, *rest; /* halves at work in place of w, or NULL */
} state;

static state state_new(size_t n)
{
    state x = {test_new_filled(n, 1), test_new_filled(n, 2), test_new_filled(n, 3), test_new_filled(n, 4), n, NULL, NULL};
    for (size_t i = 0; i < n; i++)
        x.v[i] = fabsf(x.v[i]);
    return x;
}

static void state_free(state *x) { test_free(x->w), test_free(x->m), test_free(x->v), test_free(x->grad); }

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
    test_same(where, got->m, want->m, 1, got->n, 0);
    test_same(where, got->v, want->v, 1, got->n, 0);
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
                  bool decay)
{
    const adamw_args a = {.w = x->near == NULL ? (adamw_weights){.w = x->w} : (adamw_weights){.near = x->near, .rest = x->rest},
                          .m = x->m,
                          .v = x->v,
                          .grad = grad,
                          .steps = steps,
                          .nsteps = nsteps,
                          .n = x->n,
                          .decay = decay};
    cr_assert_eq(b->adamw(&a, s), MOE_OK);
}

enum { MANY = 130 }; /* more than two passes of the fast version */

static void same_bits(const moe_backend *b, moe_stream *s, const char *where, void *ctx)
{
    static const struct {
        size_t n;
        int steps;
        bool grad, decay;
        double beta1;
    } cases[] = {
        {0, 1, true, true, 0.9},     {1, 1, true, true, 0.9},     {15, 2, true, false, 0.9},   {16, 1, false, true, 0.9},
        {17, MANY, true, true, 0.9}, {16384, 1, true, true, 0.4}, {33000, 3, true, true, 0.9}, {1000, 64, false, true, 0.4},
        {1000, 65, true, true, 0.9}, {40, 0, true, true, 0.9},
    };
    (void)ctx;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        adamw_step steps[MANY];
        state got = state_new(cases[i].n), want = state_new(cases[i].n);
        steps_fill(steps, MANY, cases[i].beta1);
        apply(test_reference(), test_stream(), &want, cases[i].grad ? want.grad : NULL, steps, cases[i].steps, cases[i].decay);
        apply(b, s, &got, cases[i].grad ? got.grad : NULL, steps, cases[i].steps, cases[i].decay);
        state_same(where, &got, &want);
        state_free(&got), got = state_new(cases[i].n);
        float *halves = state_split(&got);
        apply(b, s, &got, cases[i].grad ? got.grad : NULL, steps, cases[i].steps, cases[i].decay);
        state_join(&got, halves);
        state_same(where, &got, &want);
        state_free(&got), state_free(&want);
    }
}

Test(adamw, same_bits) { test_each_backend(same_bits, NULL); }

/* An expert without tokens: its steps may be applied one at a time or all on the next touch. */
static void steps_together(const moe_backend *b, moe_stream *s, const char *where, void *ctx)
{
    adamw_step steps[MANY];
    state got = state_new(333), want = state_new(333);
    (void)ctx;
    steps_fill(steps, MANY, 0.9);
    apply(b, s, &got, got.grad, steps, MANY, true);
    for (int j = 0; j < MANY; j++)
        apply(b, s, &want, j == 0 ? want.grad : NULL, steps + j, 1, true);
    state_same(where, &got, &want);
    state_free(&got), state_free(&want);
}

Test(adamw, many_steps_in_one_call_are_many_calls) { test_each_backend(steps_together, NULL); }

/* The same numbers as make_adamw.py. */
static void pytorch_run(const moe_backend *b, moe_stream *s, const char *where, void *ctx)
{
    (void)ctx;
    for (size_t c = 0; c < sizeof pytorch_cases / sizeof pytorch_cases[0]; c++) {
        const struct pytorch_case *p = &pytorch_cases[c];
        state x = state_new(PYTORCH_N);
        memset(x.m, 0, sizeof *x.m * PYTORCH_N);
        memset(x.v, 0, sizeof *x.v * PYTORCH_N);
        for (int i = 0; i < PYTORCH_N; i++)
            x.w[i] = (float)(i * 29 % 31 - 15) / 16;
        for (int j = 0; j < PYTORCH_STEPS; j++) {
            const adamw_step step = {.step = (uint64_t)j + 1,
                                     .lr = p->lr,
                                     .beta1 = p->beta1,
                                     .beta2 = p->beta2,
                                     .eps = p->eps,
                                     .weight_decay = p->decay,
                                     .clip = 1.0};
            for (int i = 0; i < PYTORCH_N; i++)
                x.grad[i] = (float)((i * 37 + j * 11) % 23 - 11) / 8 * ldexpf(1.0f, -(i % 5));
            apply(b, s, &x, j % 4 != 3 ? x.grad : NULL, &step, 1, true);
        }
        test_same(where, x.m, (const float *)(const void *)p->m, 1, PYTORCH_N, 0);
        test_same(where, x.v, (const float *)(const void *)p->v, 1, PYTORCH_N, 0);
        test_same(where, x.w, (const float *)(const void *)p->w, 1, PYTORCH_N, 0);
        state_free(&x);
    }
}

Test(adamw, pytorch_bits) { test_each_backend(pytorch_run, NULL); }

/* Against the formula in double, 10 steps from zero moments. A step moves w by about lr; its relative error is a few roundings. */
Test(adamw, formula_in_double)
{
    enum { N = 200, STEPS = 10 };
    const double lr = 1e-2, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, decay = 0.1, clip = 0.5;
    state x = state_new(N);
    double w[N], m[N] = {0}, v[N] = {0};
    moe_stream *s = test_stream();
    for (int i = 0; i < N; i++) {
        w[i] = x.w[i] = (float)i / N - 0.5f;
        x.m[i] = x.v[i] = 0.0f;
    }
    for (int j = 1; j <= STEPS; j++) {
        const adamw_step step = {(uint64_t)j, lr, beta1, beta2, eps, decay, clip};
        for (int i = 0; i < N; i++) {
            x.grad[i] = (float)(test_bits((uint64_t)j, (uint64_t)i) % 2000 + 1) / 1000.0f; /* one sign: m does not cancel */
            const double g = clip * (double)x.grad[i];
            w[i] *= 1 - lr * decay;
            m[i] = beta1 * m[i] + (1 - beta1) * g;
            v[i] = beta2 * v[i] + (1 - beta2) * g * g;
            w[i] -= lr / (1 - pow(beta1, j)) * m[i] / (sqrt(v[i]) / sqrt(1 - pow(beta2, j)) + eps);
        }
        apply(test_reference(), s, &x, x.grad, &step, 1, true);
        for (int i = 0; i < N; i++) {
            /* each step rounds w twice (|w| < 1) and a term of at most about 2 lr in 10 places, its inputs being off by 4 j roundings */
            const double bound = j * 0x1p-24 * (2.0 + 2 * lr * (10 + 4 * j));
            cr_assert(fabs((double)x.w[i] - w[i]) <= bound, "step %d, element %d: got %.9g, expected %.9g", j, i, (double)x.w[i],
                      w[i]);
        }
    }
    state_free(&x);
}

Test(adamw, denormal_moments_are_flushed)
{
    state x = state_new(16);
    const adamw_step step = {1000, 1e-3, 0.9, 0.95, 1e-8, 0.0, 1.0};
    moe_stream *s = test_stream();
    for (int i = 0; i < 16; i++)
        x.m[i] = x.v[i] = 0x1.01p-126f; /* one decay makes them denormal */
    apply(test_reference(), s, &x, NULL, &step, 1, true);
    for (int i = 0; i < 16; i++)
        cr_assert(memcmp(&x.m[i], &(float){0}, 4) == 0 && memcmp(&x.v[i], &(float){0}, 4) == 0, "element %d: m %a, v %a", i,
                  (double)x.m[i], (double)x.v[i]);
    state_free(&x);
}
