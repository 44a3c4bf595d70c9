/* SwiGLU, plain and clamped, and the gate on CUDA against the reference, bit by bit: pads, weights or none, in place, NaN. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "kernels/matmul.h"
#include "tests/cuda/device.h"

static void forward_case(const test_shape *s, float alpha, float limit)
{
    const size_t rows = (size_t)(test_tokens(s) * s->K), Fp = (size_t)panel_pad(s->F);
    float *x = test_new_filled(rows * 2 * Fp, 1), *h = test_new(rows * Fp, false);
    if (rows > 2)
        x[1] = NAN, x[2 * Fp + Fp] = INFINITY, x[2 * Fp + 2] = -INFINITY;
    swiglu_args a = {.h = h, .a = x, .rows = (int64_t)rows, .F = s->F, .Fp = (int)Fp, .alpha = alpha, .limit = limit}, d = a;
    cr_assert_eq(test_reference()->swiglu_forward(&a, test_stream()), MOE_OK);
    d.h = device_floats(NULL, rows * Fp), d.a = device_floats(x, rows * 2 * Fp);
    cr_assert_eq(swiglu_forward_cuda(&d, device_stream()), MOE_OK, "%s", moe_error_text());
    device_same(s->name, d.h, h, rows, Fp);
    test_free(x), test_free(h);
    device_end();
}

static void backward_case(const test_shape *s, bool weighted, bool in_place)
{
    const size_t rows = (size_t)(test_tokens(s) * s->K), Fp = (size_t)panel_pad(s->F);
    float *x = test_new_filled(rows * 2 * Fp, 1), *dh = test_new_filled(rows * Fp, 2), *c = test_new_filled(rows, 3);
    float *da = test_new(rows * 2 * Fp, false), *hc = test_new(rows * Fp, false), *dweight = test_new(rows, false);
    swiglu_args a = {.a = x, .dh = dh, .c = weighted ? c : NULL, .da = da, .hc = hc, .dweight = weighted ? dweight : NULL,
                     .rows = (int64_t)rows, .F = s->F, .Fp = (int)Fp}, d = a;
    cr_assert_eq(test_reference()->swiglu_backward(&a, test_stream()), MOE_OK);
    float *dx = device_floats(x, rows * 2 * Fp), *ddh = device_floats(dh, rows * Fp);
    d.a = dx, d.dh = ddh, d.c = weighted ? device_floats(c, rows) : NULL;
    d.da = in_place ? dx : device_floats(NULL, rows * 2 * Fp), d.hc = in_place ? ddh : device_floats(NULL, rows * Fp);
    d.dweight = weighted ? device_floats(NULL, rows) : NULL;
    cr_assert_eq(swiglu_backward_cuda(&d, device_stream()), MOE_OK, "%s", moe_error_text());
    device_same("da", d.da, da, rows, 2 * Fp);
    device_same("hc", d.hc, hc, rows, Fp);
    if (weighted)
        device_same("dweight", d.dweight, dweight, 1, rows);
    test_free(x), test_free(dh), test_free(c), test_free(da), test_free(hc), test_free(dweight);
    device_end();
}

Test(cuda, swiglu_has_the_bits_of_the_reference)
{
    for (const test_shape *s = test_shapes; s->name != NULL; s++) {
        forward_case(s, 0.0f, 0.0f);
        forward_case(s, 1.702f, 0.75f);
        backward_case(s, true, false);
        backward_case(s, false, true);
    }
}

Test(cuda, gate_has_the_bits_of_the_reference)
{
    for (const test_shape *s = test_shapes; s->name != NULL; s++) {
        const size_t T = (size_t)test_tokens(s), n = T * (size_t)s->D;
        float *z = test_new_filled(T, 1), *y = test_new_filled(n, 2), *dy = test_new_filled(n, 3), *dz = test_new(T, false);
        gate_args a = {y, z, dy, dz, (int64_t)T, s->D};
        gate_args d = {device_floats(y, n), device_floats(z, T), device_floats(dy, n), device_floats(NULL, T), (int64_t)T, s->D};
        cr_assert_eq(test_reference()->gate_backward(&a, test_stream()), MOE_OK);
        cr_assert_eq(gate_backward_cuda(&d, device_stream()), MOE_OK, "%s", moe_error_text());
        device_same("dy", d.dy, dy, T, (size_t)s->D);
        device_same("dz", d.dz, dz, 1, T);
        cr_assert_eq(test_reference()->gate_forward(&a, test_stream()), MOE_OK);
        cr_assert_eq(gate_forward_cuda(&d, device_stream()), MOE_OK, "%s", moe_error_text());
        device_same("y", d.y, y, T, (size_t)s->D);
        test_free(z), test_free(y), test_free(dy), test_free(dz);
        device_end();
    }
}
