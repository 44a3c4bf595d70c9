/* The project's own elementary functions: every exp, log, sin, cos and pow whose result reaches a weight, loss or logit is one of these.
 * Owns the definitions: fma, + - * /, and integer operations on the bits, in one fixed order, so that the 16-lane versions of
 * kernels/cpu/vmath.h give the same bits. Does not own the vectors, nor libm's accuracy: the errors stated are measured over all floats
 * (tests/kernels/test_math.c). Threads: pure functions.
 * Rule: run under moe_float_setup (flush-to-zero, denormals-are-zero); moe_logf takes a denormal for zero in any case. */
#ifndef MOE_KERNELS_MATH_H
#define MOE_KERNELS_MATH_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "kernels/inline.h"

KERNEL_INLINE uint32_t float_bits(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

KERNEL_INLINE float float_from_bits(uint32_t u)
{
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

/* Adding this to |x| < 2^22 leaves round-to-nearest-even(x) in the low bits of the sum. */
#define MATH_ROUND 0x1.8p23f
/* ln 2 in two parts; the first has 15 bits, so that its product with any exponent is exact. */
#define MATH_LN2_HI 0x1.62e4p-1f
#define MATH_LN2_LO 0x1.7f7d1cp-20f

/* exp(x) = 2^n * exp(r), n = round(x / ln 2), |r| <= ln(2)/2; exp(r) = 1 + r + r^2 * P(r), P the minimax polynomial of degree 4. */
#define EXP_LOG2E 0x1.715476p+0f
#define EXP_MAX 0x1.62e42ep+6f  /* 88.7228317: above it inf; the next float is over ln(2^128)   */
#define EXP_MIN -0x1.5d589ep+6f /* -87.3365402: below it 0; the next float down is under 2^-126 */
#define EXP_C2 0x1.fffffcp-2f
#define EXP_C3 0x1.55549p-3f
#define EXP_C4 0x1.5558f4p-5f
#define EXP_C5 0x1.123a6cp-7f
#define EXP_C6 0x1.6a2352p-10f

/* At most 0.9 ulp. exp(NaN) is that NaN, exp(inf) = inf, exp(x) = 0 below EXP_MIN. */
KERNEL_INLINE float moe_expf(float x)
{
    const float t = fmaf(x, EXP_LOG2E, MATH_ROUND), n = t - MATH_ROUND;
    const float r = fmaf(n, -MATH_LN2_LO, fmaf(n, -MATH_LN2_HI, x));
    float p = EXP_C6;
    p = fmaf(p, r, EXP_C5);
    p = fmaf(p, r, EXP_C4);
    p = fmaf(p, r, EXP_C3);
    p = fmaf(p, r, EXP_C2);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    float y = float_from_bits(float_bits(p) + (float_bits(t) << 23));
    y = x > EXP_MAX ? INFINITY : y;
    y = x < EXP_MIN ? 0.0f : y;
    return x != x ? x : y;
}

/* 1 / (1 + exp(-x)); sigmoid(-inf) = 0, sigmoid(inf) = 1, NaN in NaN out. */
KERNEL_INLINE float moe_sigmoidf(float x) { return 1.0f / (1.0f + moe_expf(-x)); }

/* log(2^e * (1 + f)) = e ln 2 + f - f^2/2 + f^3 * P(f), 1 + f in [sqrt(1/2), sqrt(2)), P minimax of degree 7. */
#define LOG_SPLIT 0x3f3504f3u /* bits of sqrt(1/2) */
#define LOG_C3 0x1.555554p-2f
#define LOG_C4 -0x1.000226p-2f
#define LOG_C5 0x1.99a008p-3f
#define LOG_C6 -0x1.547244p-3f
#define LOG_C7 0x1.22da1ep-3f
#define LOG_C8 -0x1.0d8542p-3f
#define LOG_C9 0x1.055b68p-3f
#define LOG_C10 -0x1.38b578p-4f

/* At most 1 ulp. log(+-0 and denormals) = -inf, log of a negative number = the quiet NaN 0x7fc00000, log(inf) = inf, NaN in NaN out. */
KERNEL_INLINE float moe_logf(float x)
{
    const uint32_t bits = float_bits(x), d = bits - LOG_SPLIT;
    const int32_t exponent = (int32_t)d >> 23;
    const float e = (float)exponent;
    const float f = float_from_bits(bits - ((uint32_t)exponent << 23)) - 1.0f;
    float p = LOG_C10;
    p = fmaf(p, f, LOG_C9);
    p = fmaf(p, f, LOG_C8);
    p = fmaf(p, f, LOG_C7);
    p = fmaf(p, f, LOG_C6);
    p = fmaf(p, f, LOG_C5);
    p = fmaf(p, f, LOG_C4);
    p = fmaf(p, f, LOG_C3);
    const float f2 = f * f, s = fmaf(e, MATH_LN2_HI, f); /* s + lost = e ln2_hi + f exactly */
    const float lost = f - fmaf(-e, MATH_LN2_HI, s);
    float y = fmaf(f2 * f, p, fmaf(e, MATH_LN2_LO, lost));
    y = fmaf(f2, -0.5f, y);
    y = s + y;
    y = (int32_t)bits > 0x7f7fffff ? x : y;            /* inf, NaN              */
    y = (int32_t)bits < 0 ? float_from_bits(0x7fc00000u) : y; /* negative              */
    y = (bits & 0x7f800000u) == 0 ? -INFINITY : y;     /* zero, denormal        */
    return bits > 0xff800000u ? x : y;                 /* NaN with its sign set */
}

/* x = n/2 + r, |r| <= 1/4: sin(pi r) = r pi + r^3 P(r^2), cos(pi r) = 1 + r^2 Q(r^2); n mod 4 picks which and the sign. */
#define MATH_PI_HI 0x1.921fb6p+1f
#define MATH_PI_LO -0x1.777a5cp-24f
#define SINPI_C3 -0x1.4abbcep+2f
#define SINPI_C5 0x1.466bbcp+1f
#define SINPI_C7 -0x1.32cb0ep-1f
#define SINPI_C9 0x1.4be09ep-4f
#define COSPI_C2 -0x1.3bd3ccp+2f
#define COSPI_C4 0x1.03c1dep+2f
#define COSPI_C6 -0x1.55c5ep+0f
#define COSPI_C8 0x1.d9d57ep-3f

/* sin(pi x) and cos(pi x) for |x| <= 2^20, at most 1 ulp (of the result, also near its zeros); beyond that the result has no meaning. */
KERNEL_INLINE void moe_sincospif(float x, float *sin_out, float *cos_out)
{
    const float t = fmaf(x, 2.0f, MATH_ROUND), n = t - MATH_ROUND;
    const uint32_t q = float_bits(t);
    const float r = fmaf(n, -0.5f, x), r2 = r * r;
    float p = SINPI_C9;
    p = fmaf(p, r2, SINPI_C7);
    p = fmaf(p, r2, SINPI_C5);
    p = fmaf(p, r2, SINPI_C3);
    p = fmaf(p, r2, MATH_PI_LO);
    const float s = fmaf(r, MATH_PI_HI, r * p);
    float c = COSPI_C8;
    c = fmaf(c, r2, COSPI_C6);
    c = fmaf(c, r2, COSPI_C4);
    c = fmaf(c, r2, COSPI_C2);
    c = fmaf(c, r2, 1.0f);
    const float sine = q & 1 ? c : s, cosine = q & 1 ? s : c;
    *sin_out = float_from_bits(float_bits(sine) ^ (q & 2) << 30);
    *cos_out = float_from_bits(float_bits(cosine) ^ ((q + 1) & 2) << 30);
}

KERNEL_INLINE float moe_sinpif(float x)
{
    float s, c;
    moe_sincospif(x, &s, &c);
    return s;
}

KERNEL_INLINE float moe_cospif(float x)
{
    float s, c;
    moe_sincospif(x, &s, &c);
    return c;
}

/* In double, for tables, the lr schedule and bias corrections; scalar only (ref/math.c). At most 2 ulp, pow 2 + 0.03 |y log x|.
 * Denormal results flush to zero. sin and cos: |x| <= 2^30 (beyond: accuracy is lost; NaN for inf and NaN). pow of a negative x is NaN. */
double moe_exp(double x);
double moe_log(double x);
double moe_sin(double x);
double moe_cos(double x);
double moe_pow(double x, double y);

#endif
