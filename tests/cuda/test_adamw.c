/* AdamW with fp32 and with bf16 moments on CUDA against the reference, bit by bit: weights as fp32 and as halves, many steps, no gradient. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/half.h"
#include "kernels/halves.h"
#include "tests/cuda/device.h"

enum { MOST = 1000, STEPS = 70 }; /* more steps than a pass */

static void make_steps(adamw_step *steps, uint64_t first)
{
    for (int j = 0; j < STEPS; j++)
        steps[j] = (adamw_step){first + (uint64_t)j, 1e-2 / (j + 1), j % 2 ? 0.9 : 0.3, 0.999, 1e-8, 0.1, j == 0 ? 0.7 : 1.0};
}

static void adamw_case(size_t n, int nsteps, bool grad, bool halves)
{
    adamw_step steps[STEPS];
    float *w = test_new_filled(n, 1), *m = test_new_filled(n, 2), *v = test_new_filled(n, 3), *g = test_new_filled(n, 4), got[MOST];
    uint16_t near[MOST], rest[MOST], got_near[MOST], got_rest[MOST];
    make_steps(steps, 12);
    for (size_t i = 0; i < n; i++)
        v[i] = fabsf(v[i]);
    if (n > 9)
        g[7] = NAN, g[8] = INFINITY;
    halves_split(near, rest, w, n);
    adamw_args d = {.m = device_floats(m, n), .v = device_floats(v, n), .grad = grad ? device_floats(g, n) : NULL, .steps = steps,
                    .nsteps = nsteps, .n = n, .decay = true};
    if (halves)
        d.w.near = device_array(near, n * 2), d.w.rest = device_array(rest, n * 2);
    else
        d.w.w = device_floats(w, n);
    adamw_args a = d;
    a.w = (adamw_weights){.w = w}, a.m = m, a.v = v, a.grad = grad ? g : NULL;
    cr_assert_eq(test_reference()->adamw(&a, test_stream()), MOE_OK);
    cr_assert_eq(adamw_cuda(&d, device_stream()), MOE_OK, "%s", moe_error_text());
    device_same("m", d.m, m, 1, n);
    device_same("v", d.v, v, 1, n);
    if (halves) {
        device_read(got_near, d.w.near, n * 2), device_read(got_rest, d.w.rest, n * 2);
        halves_join(got, got_near, got_rest, n);
        d.w.w = device_floats(got, n);
    }
    device_same("w", d.w.w, w, 1, n);
    test_free(w), test_free(m), test_free(v), test_free(g);
    device_end();
}

static void bf16_case(size_t n, int nsteps, bool grad)
{
    adamw_step steps[STEPS];
    float *w = test_new_filled(n, 1), *g = test_new_filled(n, 4);
    uint16_t m[MOST], v[MOST], got[MOST];
    make_steps(steps, 1);
    for (size_t i = 0; i < n; i++) {
        m[i] = bf16_from_float(w[n - 1 - i]);
        v[i] = bf16_from_float(w[i] * w[i]);
    }
    if (n > 9)
        g[7] = NAN, g[8] = INFINITY, m[3] = 0x7f7f, v[4] = 0x7f80;
    adamw_bf16_args d = {.w.w = device_floats(w, n), .m = device_array(m, n * 2), .v = device_array(v, n * 2),
                         .grad = grad ? device_floats(g, n) : NULL, .steps = steps, .nsteps = nsteps, .n = n, .seed = 0x123456789abcull, .section = 9};
    adamw_bf16_args a = d;
    a.w.w = w, a.m = m, a.v = v, a.grad = grad ? g : NULL;
    cr_assert_eq(test_reference()->adamw_bf16(&a, test_stream()), MOE_OK);
    cr_assert_eq(adamw_bf16_cuda(&d, device_stream()), MOE_OK, "%s", moe_error_text());
    device_read(got, d.m, n * 2);
    test_same_bytes("m", got, m, n * 2);
    device_read(got, d.v, n * 2);
    test_same_bytes("v", got, v, n * 2);
    device_same("w", d.w.w, w, 1, n);
    test_free(w), test_free(g);
    device_end();
}

Test(cuda, adamw_has_the_bits_of_the_reference)
{
    static const size_t sizes[] = {0, 1, 65, MOST};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int part = 0; part < 4; part++) {
            adamw_case(sizes[i], part & 1 ? 1 : STEPS, part & 1, part & 2);
            bf16_case(sizes[i], part & 1 ? STEPS : 2, part & 2);
        }
    adamw_case(5, 0, true, false);
}
