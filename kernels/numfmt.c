/* The table of number formats and the conversion of rows to and from fp32 (kernels/numfmt.h). Owns the table.
 * Plain loops over blocks, one function a format and direction. Any thread, no state.
 * Rule: block layouts are ggml's, and so is every rounding on the way there: tests/kernels/test_numfmt.c holds its output. */
#include "kernels/numfmt.h"

#include <math.h>
#include <string.h>

#include "kernels/half.h"
#include "kernels/numfmt_parts.h"

enum { Q = 32 /* numbers of a block */, HALF = Q / 2, SUPER = 256 /* numbers of a block of the K formats */, EIGHT = 128 /* of F8 */ };
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

static uint32_t load32(const uint8_t *p)
{
    uint32_t x;
    memcpy(&x, p, sizeof x);
    return x;
}

/* Q5: the nibbles of Q4 and a word of fifth bits. */
static void q5_to(float *out, const uint8_t *in, float d, float m, int centre)
{
    const uint32_t high = load32(in);
    for (int i = 0; i < HALF; i++) {
        out[i] = (float)((int)((in[4 + i] & 15) | (high >> i & 1) << 4) - centre) * d + m;
        out[HALF + i] = (float)((int)(in[4 + i] >> 4 | (high >> (HALF + i) & 1) << 4) - centre) * d + m;
    }
}

static void q5_0_to(float *out, const uint8_t *in, int64_t n)
{
    for (; n > 0; n -= Q, in += 6 + HALF, out += Q)
        q5_to(out, in + 2, half_to_float(load16(in)), -0.0f, 16);
}

static void q5_1_to(float *out, const uint8_t *in, int64_t n)
{
    for (; n > 0; n -= Q, in += 8 + HALF, out += Q)
        q5_to(out, in + 4, half_to_float(load16(in)), half_to_float(load16(in + 2)), 0);
}

static void q5_from(uint8_t *out, const uint8_t *q)
{
    uint32_t high = 0;
    for (int i = 0; i < HALF; i++) {
        out[4 + i] = (uint8_t)((q[i] & 15) | q[HALF + i] << 4);
        high |= (uint32_t)(q[i] >> 4) << i | (uint32_t)(q[HALF + i] >> 4) << (HALF + i);
    }
    memcpy(out, &high, sizeof high);
}

static void q5_0_from(uint8_t *out, const float *in, int64_t n)
{
    for (; n > 0; n -= Q, out += 6 + HALF, in += Q) {
        const float d = extreme(in) / -16, id = inverse(d);
        uint8_t q[Q];
        for (int i = 0; i < Q; i++)
            q[i] = level(in[i] * id + 16.5f, 31);
        store16(out, half_from_float(d)), q5_from(out + 2, q);
    }
}

static void q5_1_from(uint8_t *out, const float *in, int64_t n)
{
    for (; n > 0; n -= Q, out += 8 + HALF, in += Q) {
        float m;
        const float d = range(in, &m) / 31, id = inverse(d);
        uint8_t q[Q];
        for (int i = 0; i < Q; i++)
            q[i] = level((in[i] - m) * id + 0.5f, 31);
        store16(out, half_from_float(d)), store16(out + 2, half_from_float(m)), q5_from(out + 4, q);
    }
}

void numfmt_k_scale(const uint8_t *packed, int b, uint8_t *scale, uint8_t *least)
{
    if (b < 4) {
        *scale = packed[b] & 63, *least = packed[4 + b] & 63;
        return;
    }
    *scale = (uint8_t)((packed[4 + b] & 15) | packed[b - 4] >> 6 << 4);
    *least = (uint8_t)(packed[4 + b] >> 4 | packed[b] >> 6 << 4);
}

/* Q4_K and Q5_K: eight blocks of 32 with 6-bit scales and leasts. Two blocks share 32 bytes of nibbles; bit b of high[i] is the fifth bit of
 * number i of block b (NULL: none). */
static void k_to(float *out, const uint8_t *in, const uint8_t *high, const uint8_t *low)
{
    const float d = half_to_float(load16(in)), dm = half_to_float(load16(in + 2));
    for (int b = 0; b < SUPER / Q; b++, out += Q) {
        uint8_t scale, least;
        numfmt_k_scale(in + 4, b, &scale, &least);
        const float db = d * (float)scale, mb = dm * (float)least;
        for (int i = 0; i < Q; i++) {
            const int q = (low[b / 2 * Q + i] >> (b % 2 * 4) & 15) | (high != NULL ? (high[i] >> b & 1) << 4 : 0);
            out[i] = (float)q * db - mb;
        }
    }
}

static void q4_k_to(float *out, const uint8_t *in, int64_t n)
{
    for (; n > 0; n -= SUPER, in += 16 + SUPER / 2, out += SUPER)
        k_to(out, in, NULL, in + 16);
}

static void q5_k_to(float *out, const uint8_t *in, int64_t n)
{
    for (; n > 0; n -= SUPER, in += 48 + SUPER / 2, out += SUPER)
        k_to(out, in, in + 16, in + 48);
}

/* Q6_K: 128 bytes of nibbles, 64 of two high bits, 16 signed scales of 16 numbers, d. */
static void q6_k_to(float *out, const uint8_t *in, int64_t n)
{
    for (; n > 0; n -= SUPER, in += 210, out += SUPER) {
        const float d = half_to_float(load16(in + 208));
        for (int k = 0; k < SUPER; k++) {
            const int part = k / 128, b = k / Q % 4, i = k % Q;
            const int low = in[part * 64 + b % 2 * Q + i] >> (b / 2 * 4) & 15, high = in[128 + part * Q + i] >> (2 * b) & 3;
            out[k] = (float)((low | high << 4) - 32) * (d * (float)(int8_t)in[192 + k / 16]);
        }
    }
}

const int8_t numfmt_iq4_nl[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
const int8_t numfmt_mxfp4[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12}; /* e2m1, doubled */

static void table_to(float *out, const uint8_t *in, const int8_t *table, float d)
{
    for (int i = 0; i < HALF; i++) {
        out[i] = (float)table[in[i] & 15] * d;
        out[HALF + i] = (float)table[in[i] >> 4] * d;
    }
}

static void iq4_nl_to(float *out, const uint8_t *in, int64_t n)
{
    for (; n > 0; n -= Q, in += 2 + HALF, out += Q)
        table_to(out, in + 2, numfmt_iq4_nl, half_to_float(load16(in)));
}

/* 2^(e - 128): half of the scale, because the table is doubled. */
static float e8m0_half(uint8_t e) { return bits_float(e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23); }

static void mxfp4_to(float *out, const uint8_t *in, int64_t n)
{
    for (; n > 0; n -= Q, in += 1 + HALF, out += Q)
        table_to(out, in + 1, numfmt_mxfp4, e8m0_half(in[0]));
}

/* The first of the table's nearest. */
static uint8_t nearest(const int8_t *table, float d, float x)
{
    int best = 0;
    float least = fabsf(d * (float)table[0] - x);
    for (int i = 1; i < 16; i++) {
        const float off = fabsf(d * (float)table[i] - x);
        if (off < least)
            least = off, best = i;
    }
    return (uint8_t)best;
}

static void mxfp4_from(uint8_t *out, const float *in, int64_t n)
{
    for (; n > 0; n -= Q, out += 1 + HALF, in += Q) {
        const uint32_t exponent = float_bits(extreme(in)) >> 23 & 255; /* of the largest, its floor of log2 + 127 */
        out[0] = (uint8_t)(exponent > 2 ? exponent - 2 : 0);
        const float d = e8m0_half(out[0]);
        for (int i = 0; i < HALF; i++)
            out[1 + i] = (uint8_t)(nearest(numfmt_mxfp4, d, in[i]) | nearest(numfmt_mxfp4, d, in[HALF + i]) << 4);
    }
}

static void f8_to(float *out, const uint8_t *in, int64_t n)
{
    for (; n > 0; n -= EIGHT, in += 4 + EIGHT, out += EIGHT) {
        const float d = bits_float(load32(in));
        for (int i = 0; i < EIGHT; i++)
            out[i] = e4m3_to_float(in[4 + i]) * d;
    }
}

static void f8_from(uint8_t *out, const float *in, int64_t n)
{
    for (; n > 0; n -= EIGHT, out += 4 + EIGHT, in += EIGHT) {
        float most = 0;
        for (int i = 0; i < EIGHT; i++)
            most = fabsf(in[i]) > most ? fabsf(in[i]) : most;
        const float d = most < LEAST ? 0 : most / 448, id = most < LEAST ? 0 : 448 / most;
        memcpy(out, &d, sizeof d);
        for (int i = 0; i < EIGHT; i++)
            out[4 + i] = e4m3_from_float(in[i] * id);
    }
}

typedef struct format {
    numfmt_info info;
    void (*to)(float *out, const uint8_t *in, int64_t n);
    void (*from)(uint8_t *out, const float *in, int64_t n);
} format;

static const format formats[NUM_FORMATS] = {
    [NUM_F32] = {{"f32", 1, 4, true}, f32_to, f32_from},
    [NUM_F16] = {{"f16", 1, 2, true}, f16_to, f16_from},
    [NUM_BF16] = {{"bf16", 1, 2, true}, bf16_to, bf16_from},
    [NUM_Q4_0] = {{"q4_0", Q, 2 + HALF, true}, q4_0_to, q4_0_from},
    [NUM_Q4_1] = {{"q4_1", Q, 4 + HALF, true}, q4_1_to, q4_1_from},
    [NUM_Q8_0] = {{"q8_0", Q, 2 + Q, true}, q8_0_to, q8_0_from},
    [NUM_Q5_0] = {{"q5_0", Q, 6 + HALF, true}, q5_0_to, q5_0_from},
    [NUM_Q5_1] = {{"q5_1", Q, 8 + HALF, true}, q5_1_to, q5_1_from},
    [NUM_Q4_K] = {{"q4_k", SUPER, 16 + SUPER / 2, true}, q4_k_to, numfmt_q4_k_from},
    [NUM_Q5_K] = {{"q5_k", SUPER, 48 + SUPER / 2, false}, q5_k_to, NULL},
    [NUM_Q6_K] = {{"q6_k", SUPER, 210, false}, q6_k_to, NULL},
    [NUM_IQ4_NL] = {{"iq4_nl", Q, 2 + HALF, false}, iq4_nl_to, NULL},
    [NUM_MXFP4] = {{"mxfp4", Q, 1 + HALF, true}, mxfp4_to, mxfp4_from},
    [NUM_F8_E4M3] = {{"f8_e4m3", EIGHT, 4 + EIGHT, true}, f8_to, f8_from},
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
