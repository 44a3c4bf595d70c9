/* Rope, clamping and addition on CUDA against the reference, bit by bit. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tests/cuda/device.h"

static void rope_case(const test_shape *s, bool inverse, int rotary, bool interleaved)
{
    const size_t ld = (size_t)(s->H * s->hd) + 5, n = (size_t)test_tokens(s) * ld; /* 5 floats of a neighbour: not to be touched */
    const int width = rotary > 0 ? rotary : s->hd;
    char what[128];
    float *table = test_new_filled((size_t)s->S * (size_t)width, 7), *x = test_new_filled(n, 1);
    rope_args a = {device_floats(x, n), device_floats(table, (size_t)s->S * (size_t)width), ld, test_tokens(s), s->S, s->H, s->hd,
                   inverse, rotary, interleaved};
    cr_assert_eq(rope_cuda(&a, device_stream()), MOE_OK, "%s", moe_error_text());
    rope_args b = a;
    b.x = x, b.table = table;
    cr_assert_eq(test_reference()->rope(&b, test_stream()), MOE_OK);
    snprintf(what, sizeof what, "rope, %s, inverse %d, rotary %d, interleaved %d", s->name, inverse, rotary, interleaved);
    device_same(what, a.x, x, (size_t)test_tokens(s), ld);
    test_free(x), test_free(table);
    device_end();
}

Test(cuda, rope_has_the_bits_of_the_reference)
{
    for (const test_shape *s = test_shapes; s->name != NULL; s++)
        for (int part = 0; part < 8; part++) {
            const int rotary = part % 4 < 2 ? 0 : s->hd / 4 * 2;
            if (part % 4 < 2 || rotary > 0)
                rope_case(s, part % 2 == 1, rotary, part >= 4);
        }
}

Test(cuda, clip_and_add_have_the_bits_of_the_reference)
{
    static const size_t sizes[] = {0, 1, 31, 257, 5000};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        const size_t n = sizes[i];
        float *x = test_new_filled(n, 1), *y = test_new_filled(n, 2);
        if (n > 30)
            x[3] = NAN, y[4] = NAN, x[5] = INFINITY, x[6] = -INFINITY;
        float *dx = device_floats(x, n), *dy = device_floats(y, n);
        cr_assert_eq(clip_forward_cuda(&(clip_args){dx, NULL, n, 0.25f}, device_stream()), MOE_OK);
        cr_assert_eq(test_reference()->clip_forward(&(clip_args){x, NULL, n, 0.25f}, test_stream()), MOE_OK);
        device_same("clip", dx, x, 1, n);
        cr_assert_eq(clip_backward_cuda(&(clip_args){dy, dx, n, 0.25f}, device_stream()), MOE_OK);
        cr_assert_eq(test_reference()->clip_backward(&(clip_args){y, x, n, 0.25f}, test_stream()), MOE_OK);
        device_same("clip, backward", dy, y, 1, n);
        cr_assert_eq(add_cuda(&(add_args){dy, dx, n}, device_stream()), MOE_OK);
        cr_assert_eq(test_reference()->add(&(add_args){y, x, n}, test_stream()), MOE_OK);
        device_same("add", dy, y, 1, n);
        test_free(x), test_free(y);
        device_end();
    }
}
