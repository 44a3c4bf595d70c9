/* The table of number formats and the conversion of rows to and from fp32 (kernels/numfmt.h). Owns the table.
 * Plain loops over blocks, one function a format and direction. Any thread, no state.
 * Rule: block layouts are ggml's, and so is every rounding on the way there: tests/kernels/test_numfmt.c holds its output. */
#include "kernels/numfmt.h"

#include <math.h>
#include <string.h>

#include "kernels/half.h"

enum { Q = 32 /* numbers of a block */, HALF = Q / 2 };
/* A block whose largest magnitude is smaller is a block of zeros: its scale is nothing in fp16, and what 1 / scale is then would
 * depend on the denormal mode. */
static const float LEAST = 0x1p-100f;

static uint16_t load16(const uint8_t *p)
{
    uint16_t x;
    memcpy(&x, p, sizeof x);
    return x;
}

static void store16(uint8_t *p, uint16_t x) { memcpy(p, &x, sizeof x); }

/* Towards zero into [0, most]; a NaN is 0. */
static uint8_t level(float x, int most) { return x >= (float)most ? (uint8_t)most : x > 0 ? (uint8_t)(int)x : 0; }

static float inverse(float d) { return d != 0 ? 1.0f / d : 0.0f; }

static void f32_to(float *out, const uint8_t *in, int64_t n) { memcpy(out, in, (size_t)n * sizeof *out); }
static void f32_from(uint8_t *out, const float *in, int64_t n) { memcpy(out, in, (size_t)n * sizeof *in); }

static void f16_to(float *out, const uint8_t *in, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = half_to_float(load16(in + 2 * i));
}

static void f16_from(uint8_t *out, const float *in, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        store16(out + 2 * i, half_from_float(in[i]));
}

static void bf16_to(float *out, const uint8_t *in, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        const uint32_t bits = (uint32_t)load16(in + 2 * i) << 16;
        memcpy(out + i, &bits, sizeof bits);
    }
}

static void bf16_from(uint8_t *out, const float *in, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        store16(out + 2 * i, bf16_from_float(in[i]));
}

/* The number of largest magnitude, the first of equals, with its sign. */
static float extreme(const float *x)
{
    float most = 0, at = 0;
    for (int i = 0; i < Q; i++)
        if (fabsf(x[i]) > most)
            most = fabsf(x[i]), at = x[i];
    return most < LEAST ? 0 : at;
}

static void q4_0_to(float *out, const uint8_t *in, int64_t n)
{
    for (; n > 0; n -= Q, in += 2 + HALF, out += Q) {
        const float d = half_to_float(load16(in));
        for (int i = 0; i < HALF; i++) {
            out[i] = (float)((in[2 + i] & 15) - 8) * d;
            out[HALF + i] = (float)((in[2 + i] >> 4) - 8) * d;
        }
    }
}

static void q4_0_from(uint8_t *out, const float *in, int64_t n)
{
    for (; n > 0; n -= Q, out += 2 + HALF, in += Q) {
        const float d = extreme(in) / -8, id = inverse(d);
        store16(out, half_from_float(d));
        for (int i = 0; i < HALF; i++)
            out[2 + i] = (uint8_t)(level(in[i] * id + 8.5f, 15) | level(in[HALF + i] * id + 8.5f, 15) << 4);
    }
}

static void q4_1_to(float *out, const uint8_t *in, int64_t n)
{
    for (; n > 0; n -= Q, in += 4 + HALF, out += Q) {
        const float d = half_to_float(load16(in)), m = half_to_float(load16(in + 2));
        for (int i = 0; i < HALF; i++) {
            out[i] = (float)(in[4 + i] & 15) * d + m;
            out[HALF + i] = (float)(in[4 + i] >> 4) * d + m;
        }
    }
}

/* Least and range of a block; a range below LEAST is none. */
static float range(const float *x, float *least)
{
    float low = x[0], high = x[0];
    for (int i = 1; i < Q; i++) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
    }
    *least = low;
    return high - low < LEAST ? 0 : high - low;
}

static void q4_1_from(uint8_t *out, const float *in, int64_t n)
{
    for (; n > 0; n -= Q, out += 4 + HALF, in += Q) {
        float m;
        const float d = range(in, &m) / 15, id = inverse(d);
        store16(out, half_from_float(d)), store16(out + 2, half_from_float(m));
        for (int i = 0; i < HALF; i++)
            out[4 + i] = (uint8_t)(level((in[i] - m) * id + 0.5f, 15) | level((in[HALF + i] - m) * id + 0.5f, 15) << 4);
    }
}

static void q8_0_to(float *out, const uint8_t *in, int64_t n)
{
    for (; n > 0; n -= Q, in += 2 + Q, out += Q) {
        const float d = half_to_float(load16(in));
        for (int i = 0; i < Q; i++)
            out[i] = (float)(int8_t)in[2 + i] * d;
    }
}

static void q8_0_from(uint8_t *out, const float *in, int64_t n)
{
    for (; n > 0; n -= Q, out += 2 + Q, in += Q) {
        const float d = fabsf(extreme(in)) / 127, id = inverse(d);
        store16(out, half_from_float(d));
        for (int i = 0; i < Q; i++) {
            const float x = in[i] * id, a = fabsf(x); /* halves go away from zero */
            const int whole = level(a, 127), q = whole + (a - (float)whole >= 0.5f && whole < 127);
            out[2 + i] = (uint8_t)(int8_t)(x < 0 ? -q : q);
        }
    }
}

typedef struct format {
    numfmt_info info;
    void (*to)(float *out, const uint8_t *in, int64_t n);
    void (*from)(uint8_t *out, const float *in, int64_t n);
} format;

static const format formats[NUM_FORMATS] = {
    [NUM_F32] = {{"f32", 1, 4}, f32_to, f32_from},
    [NUM_F16] = {{"f16", 1, 2}, f16_to, f16_from},
    [NUM_BF16] = {{"bf16", 1, 2}, bf16_to, bf16_from},
    [NUM_Q4_0] = {{"q4_0", Q, 2 + HALF}, q4_0_to, q4_0_from},
    [NUM_Q4_1] = {{"q4_1", Q, 4 + HALF}, q4_1_to, q4_1_from},
    [NUM_Q8_0] = {{"q8_0", Q, 2 + Q}, q8_0_to, q8_0_from},
};

const numfmt_info *numfmt_about(numfmt f) { return &formats[f].info; }

int numfmt_find(const char *name)
{
    for (int f = 0; f < NUM_FORMATS; f++)
        if (strcmp(formats[f].info.name, name) == 0)
            return f;
    return -1;
}

void numfmt_to_f32(float *out, const void *row, numfmt f, int64_t K) { formats[f].to(out, row, K); }
void numfmt_from_f32(void *row, const float *in, numfmt f, int64_t K) { formats[f].from(row, in, K); }
