/* Number formats (kernels/numfmt.h, half.h): against the gguf package (numfmt_gguf.h), and every 16-bit pattern. Owns nothing beyond a
 * test. One thread. Rule: all comparisons are of bits. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/pool.h"
#include "kernels/half.h"
#include "kernels/numfmt.h"
#include "tests/kernels/numfmt_e4m3.h"
#include "tests/kernels/numfmt_gguf.h"

enum { INPUTS = sizeof gguf_input / sizeof *gguf_input };

typedef struct format_case {
    numfmt f;
    const char *name;
    const uint8_t *stored;
    size_t bytes;
    const uint32_t *back;
} format_case;

static const format_case cases[] = {
    {NUM_F16, "f16", gguf_f16, sizeof gguf_f16, gguf_f16_back},
    {NUM_BF16, "bf16", gguf_bf16, sizeof gguf_bf16, gguf_bf16_back},
    {NUM_Q4_0, "q4_0", gguf_q4_0, sizeof gguf_q4_0, gguf_q4_0_back},
    {NUM_Q4_1, "q4_1", gguf_q4_1, sizeof gguf_q4_1, gguf_q4_1_back},
    {NUM_Q8_0, "q8_0", gguf_q8_0, sizeof gguf_q8_0, gguf_q8_0_back},
    {NUM_Q5_0, "q5_0", gguf_q5_0, sizeof gguf_q5_0, gguf_q5_0_back},
    {NUM_Q5_1, "q5_1", gguf_q5_1, sizeof gguf_q5_1, gguf_q5_1_back},
    {NUM_MXFP4, "mxfp4", gguf_mxfp4, sizeof gguf_mxfp4, gguf_mxfp4_back},
    {NUM_Q4_K, "q4_k", gguf_q4_k, sizeof gguf_q4_k, gguf_q4_k_back},
    {NUM_Q5_K, "q5_k", gguf_q5_k, sizeof gguf_q5_k, gguf_q5_k_back},
    {NUM_Q6_K, "q6_k", gguf_q6_k, sizeof gguf_q6_k, gguf_q6_k_back},
    {NUM_IQ4_NL, "iq4_nl", gguf_iq4_nl, sizeof gguf_iq4_nl, gguf_iq4_nl_back},
    {NUM_F32, "f32", (const uint8_t *)gguf_input, sizeof gguf_input, gguf_input},
};
enum { CASES = sizeof cases / sizeof *cases };

static void check_written(const format_case *c)
{
    uint8_t stored[sizeof gguf_input];
    float in[INPUTS];
    const numfmt_info *about = numfmt_about(c->f);
    memcpy(in, gguf_input, sizeof in);
    cr_assert_eq(numfmt_row_bytes(c->f, INPUTS), c->bytes, "%s: %zu bytes, expected %zu", c->name, numfmt_row_bytes(c->f, INPUTS),
                 c->bytes);
    numfmt_from_f32(stored, in, c->f, INPUTS);
    for (size_t i = 0; i < c->bytes; i++)
        cr_assert_eq(stored[i], c->stored[i], "%s: byte %zu of block %zu: got %d, expected %d", c->name, i % (size_t)about->bytes,
                     i / (size_t)about->bytes, stored[i], c->stored[i]);
}

static void check_case(const format_case *c)
{
    float out[2 * INPUTS];
    const numfmt_info *about = numfmt_about(c->f);
    const size_t n = c->bytes / (size_t)about->bytes * (size_t)about->block;
    cr_assert_str_eq(about->name, c->name);
    cr_assert_eq(numfmt_find(c->name), (int)c->f);
    cr_assert(n <= 2 * INPUTS && c->bytes % (size_t)about->bytes == 0);
    if (about->writable && c->f != NUM_Q4_K) /* ours may choose other scales */
        check_written(c);
    numfmt_to_f32(out, c->stored, c->f, (int64_t)n);
    for (size_t i = 0; i < n; i++)
        cr_assert_eq(float_bits(out[i]), c->back[i], "%s: number %zu: got %a, expected %a", c->name, i, (double)out[i],
                     (double)bits_float(c->back[i]));
}

Test(numfmt, rows_are_those_of_the_gguf_package)
{
    for (int i = 0; i < CASES; i++)
        check_case(&cases[i]);
}

/* Engine threads flush denormals, moe-model does not: a file comes out the same. */
Test(numfmt, the_denormal_mode_changes_nothing)
{
    moe_float_setup();
    for (int i = 0; i < CASES; i++)
        check_case(&cases[i]);
}

Test(numfmt, every_half_goes_to_fp32_and_back)
{
    moe_float_setup();
    for (uint32_t h = 0; h < 65536; h++) {
        const uint32_t exponent = h >> 10 & 31, fraction = h & 1023;
        const double size = exponent == 0 ? fraction * 0x1p-24 : (1024 + fraction) * 0x1p-25 * (double)(1ull << exponent);
        const float x = half_to_float((uint16_t)h);
        if (exponent < 31)
            cr_assert_eq((double)x, h >> 15 ? -size : size, "fp16 %04x: got %a", h, (double)x);
        const uint32_t quiet = exponent == 31 && fraction != 0 ? 0x200 : 0;
        cr_assert_eq(half_from_float(x), h | quiet, "fp16 %04x came back as %04x", h, half_from_float(x));
        cr_assert_eq(bf16_from_float(bf16_to_float((uint16_t)h)), (h & 0x7fff) > 0x7f80 ? h | 64 : h, "bf16 %04x", h);
    }
}

/* Between neighbours a and b, the middle goes to the even one and what is next to the middle to its side. */
Test(numfmt, halves_round_to_the_nearest_even)
{
    for (uint32_t h = 0; h < 0x7c00; h++) {
        const float a = half_to_float((uint16_t)h), b = h == 0x7bff ? 65536.0f : half_to_float((uint16_t)(h + 1)),
                    middle = (a + b) / 2;
        cr_assert_eq(half_from_float(middle), h % 2 ? h + 1 : h, "middle above %04x", h);
        cr_assert_eq(half_from_float(bits_float(float_bits(middle) - 1)), h, "below the middle above %04x", h);
        cr_assert_eq(half_from_float(bits_float(float_bits(middle) + 1)), h + 1, "above the middle above %04x", h);
    }
    cr_assert_eq(half_from_float(-1e30f), 0xfc00);
    cr_assert_eq(half_from_float(bits_float(1)), 0);
    cr_assert_eq(bf16_from_float(bits_float(0x3f808000)), 0x3f80);
    cr_assert_eq(bf16_from_float(bits_float(0x3f818000)), 0x3f82);
}

/* Squared error of n numbers after a format. */
static double error_of(numfmt f, const float *x, int64_t n)
{
    uint8_t stored[4096];
    float back[1024];
    double sum = 0;
    numfmt_from_f32(stored, x, f, n);
    numfmt_to_f32(back, stored, f, n);
    for (int64_t i = 0; i < n; i++)
        sum += ((double)back[i] - (double)x[i]) * ((double)back[i] - (double)x[i]);
    return sum;
}

/* Sums of uniform numbers, about normal: what weights look like. */
Test(numfmt, q4_k_is_closer_than_the_formats_of_its_size)
{
    float x[1024], shifted[1024], spread[256], back[256];
    uint32_t seed = 1;
    for (int i = 0; i < 1024; i++) {
        float sum = 0;
        for (int j = 0; j < 12; j++)
            seed = seed * 1664525u + 1013904223u, sum += (float)(seed >> 8) * 0x1p-24f - 0.5f;
        x[i] = sum * (i / 32 % 8 == 3 ? 0.1f : 0.02f), shifted[i] = x[i] + 0.5f;
    }
    cr_assert_lt(error_of(NUM_Q4_K, x, 1024), 0.9 * error_of(NUM_Q4_0, x, 1024));
    cr_assert_lt(error_of(NUM_Q4_K, x, 1024), error_of(NUM_Q4_1, x, 1024));
    cr_assert_lt(error_of(NUM_Q4_K, shifted, 1024), 0.25 * error_of(NUM_Q4_0, shifted, 1024));
    for (int i = 0; i < 256; i++) /* d = 1, dmin = 1: scales and leasts that six bits hold, every level used */
        spread[i] = (float)(63 - i / 32 * 5) * (float)(i % 16) - (float)(63 - i / 32);
    uint8_t stored[144];
    numfmt_from_f32(stored, spread, NUM_Q4_K, 256);
    numfmt_to_f32(back, stored, NUM_Q4_K, 256);
    for (int i = 0; i < 256; i++)
        cr_assert_eq(back[i], spread[i], "number %d: got %g, expected %g", i, (double)back[i], (double)spread[i]);
}

Test(numfmt, every_e4m3_is_torchs)
{
    moe_float_setup();
    for (int code = 0; code < 256; code++) {
        const float x = e4m3_to_float((uint8_t)code);
        if ((code & 127) == 127)
            cr_assert((float_bits(x) & 0x7fffffff) > 0x7f800000 && (float_bits(torch_e4m3[code]) & 0x7fffffff) > 0x7f800000);
        else
            cr_assert_eq(float_bits(x), float_bits(torch_e4m3[code]), "%02x: got %a, torch %a", code, (double)x, (double)torch_e4m3[code]);
    }
}

Test(numfmt, numbers_become_torchs_e4m3)
{
    moe_float_setup();
    for (size_t i = 0; i < sizeof torch_to_e4m3 / sizeof *torch_to_e4m3; i++) {
        const uint8_t code = e4m3_from_float(bits_float(torch_to_e4m3[i].bits));
        cr_assert_eq(code, torch_to_e4m3[i].code, "%a: got %02x, torch %02x", (double)bits_float(torch_to_e4m3[i].bits), code, torch_to_e4m3[i].code);
    }
}

/* The largest magnitude of a block is 448 scales; the others are the nearest there are. */
Test(numfmt, f8_rows_there_and_back)
{
    float x[384], back[384];
    uint8_t row[3 * 132];
    for (int i = 0; i < 384; i++)
        x[i] = i < 256 ? (float)((i * 37) % 113 - 56) * (i < 128 ? 0.031f : 1e-9f) : 0.0f;
    numfmt_from_f32(row, x, NUM_F8_E4M3, 384);
    numfmt_to_f32(back, row, NUM_F8_E4M3, 384);
    for (int b = 0; b < 3; b++) {
        float scale;
        memcpy(&scale, row + 132 * b, sizeof scale);
        for (int i = 128 * b; i < 128 * (b + 1); i++) {
            const float least = 0x1p-10f * scale, off = back[i] > x[i] ? back[i] - x[i] : x[i] - back[i], size = x[i] < 0 ? -x[i] : x[i];
            cr_assert(off <= size * 0x1.01p-4f || off <= least * 1.01f, "%d: %g became %g", i, (double)x[i], (double)back[i]);
        }
        cr_assert_eq(scale, b == 0 ? 56 * 0.031f / 448 : b == 1 ? 56 * 1e-9f / 448 : 0.0f, "scale %d: %g", b, (double)scale);
    }
}

Test(numfmt, an_unknown_name_is_not_found)
{
    cr_assert_eq(numfmt_find("q4_7"), -1);
    cr_assert_eq(numfmt_find(""), -1);
}

/* Infinities and NaN have no meaning in a block; they must not be undefined behaviour either. */
Test(numfmt, numbers_that_are_none_do_no_harm)
{
    static const uint32_t odd[] = {0x7fc00000u, 0xffc00000u, 0x7f800000u, 0xff800000u, 0x7f7fffffu, 0xff7fffffu, 1u};
    float in[256], out[256];
    uint8_t stored[1025];
    for (int first = 0; first < 7; first++)
        for (int f = 0; f < NUM_FORMATS; f++) {
            if (!numfmt_about((numfmt)f)->writable)
                continue;
            for (int i = 0; i < 256; i++)
                in[i] = i % 3 ? (float)i : bits_float(odd[(first + i) % 7]);
            memset(stored, 0xa5, sizeof stored);
            numfmt_from_f32(stored, in, (numfmt)f, 256);
            numfmt_to_f32(out, stored, (numfmt)f, 256);
            cr_assert_eq(stored[numfmt_row_bytes((numfmt)f, 256)], 0xa5);
        }
}
