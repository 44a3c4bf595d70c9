/* RMSNorm and the sum of squares on CUDA against the reference, bit by bit: heads, padded rows, in place, continued gradients. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/cuda/device.h"

/* heads 0: plain rows of D, 3 floats apart from the next; else rows of heads x hd. */
static void norm_case(const test_shape *s, bool heads, bool in_place, bool accumulate)
{
    const size_t T = (size_t)test_tokens(s), D = (size_t)(heads ? s->hd : s->D), H = heads ? (size_t)s->H : 1, ld = H * D + (in_place ? 0 : 3);
    float *x = test_new_filled(T * ld, 1), *gain = test_new_filled(D, 2), *dy = test_new_filled(T * ld, 3), *dx = test_new_filled(T * ld, 4);
    float *y = test_new_filled(T * ld, 5), *inv = test_new(T * H, false), *dgain = test_new_filled(D, 6);
    if (T * ld > 40)
        x[D / 2] = NAN;
    rmsnorm_args a = {.y = y, .inv = inv, .x = x, .gain = gain, .dy = dy, .dx = dx, .dgain = dgain, .ldx = ld, .ldy = ld, .T = (int64_t)T,
                      .heads = (int)H, .D = (int)D, .eps = 1e-6f, .accumulate = accumulate}, d = a;
    d.y = device_floats(y, T * ld), d.inv = device_floats(NULL, T * H), d.x = device_floats(x, T * ld), d.gain = device_floats(gain, D);
    float *ddy = device_floats(dy, T * ld);
    d.dy = ddy, d.dx = in_place ? ddy : device_floats(dx, T * ld), d.dgain = device_floats(dgain, D);
    if (in_place)
        a.dx = dy;
    cr_assert_eq(test_reference()->rmsnorm_forward(&a, test_stream()), MOE_OK);
    cr_assert_eq(rmsnorm_forward_cuda(&d, device_stream()), MOE_OK, "%s", moe_error_text());
    device_same("y", d.y, y, T, ld);
    device_same("inv", d.inv, inv, T, H);
    cr_assert_eq(test_reference()->rmsnorm_backward(&a, test_stream()), MOE_OK);
    cr_assert_eq(rmsnorm_backward_cuda(&d, device_stream()), MOE_OK, "%s", moe_error_text());
    device_same("dx", d.dx, a.dx, T, ld);
    device_same("dgain", d.dgain, dgain, 1, D);
    test_free(x), test_free(gain), test_free(dy), test_free(dx), test_free(y), test_free(inv), test_free(dgain);
    device_end();
}

Test(cuda, rmsnorm_has_the_bits_of_the_reference)
{
    for (const test_shape *s = test_shapes; s->name != NULL; s++) {
        norm_case(s, false, false, false);
        norm_case(s, false, false, true);
        norm_case(s, false, true, false);
        norm_case(s, true, false, true);
    }
}

Test(cuda, sum_of_squares_has_the_bits_of_the_reference)
{
    static const size_t sizes[] = {0, 1, 17, 2049, SUM_SQUARES_CHUNK, 3 * SUM_SQUARES_CHUNK / 2 + 5};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        float *x = test_new_filled(sizes[i], 1);
        double want = -1, got = -2;
        sum_squares_args a = {&want, x, sizes[i]}, d = {device_array(NULL, sizeof got), device_floats(x, sizes[i]), sizes[i]};
        cr_assert_eq(test_reference()->sum_squares(&a, test_stream()), MOE_OK);
        cr_assert_eq(sum_squares_cuda(&d, device_stream()), MOE_OK, "%s", moe_error_text());
        device_read(&got, d.out, sizeof got);
        cr_assert_eq(got, want, "%zu numbers: got %a, expected %a", sizes[i], got, want);
        test_free(x);
        device_end();
    }
}
