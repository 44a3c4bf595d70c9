/* Sixteen lanes of kernels/math.h: the same operations in the same order, hence the same bits (tests/kernels/test_math.c compares them).
 * Owns nothing but these; a constant is changed in math.h and nowhere else. Pure, any thread.
 * Rule: an edit here is an edit of the scalar definition too. */
#ifndef MOE_KERNELS_CPU_VMATH_H
#define MOE_KERNELS_CPU_VMATH_H

#include "kernels/cpu/simd.h"
#include "kernels/math.h"

/* For x <= 0 (or NaN), where the result cannot be inf: the same bits as v16_exp. */
SIMD v16 v16_exp_down(v16 x)
{
    const v16 round = v16_set1(MATH_ROUND);
    const v16 t = v16_fma(x, v16_set1(EXP_LOG2E), round), n = v16_sub(t, round);
    const v16 r = v16_fma(n, v16_set1(-MATH_LN2_LO), v16_fma(n, v16_set1(-MATH_LN2_HI), x));
    v16 p = v16_set1(EXP_C6);
    p = v16_fma(p, r, v16_set1(EXP_C5));
    p = v16_fma(p, r, v16_set1(EXP_C4));
    p = v16_fma(p, r, v16_set1(EXP_C3));
    p = v16_fma(p, r, v16_set1(EXP_C2));
    p = v16_fma(p, r, v16_set1(1.0f));
    p = v16_fma(p, r, v16_set1(1.0f));
    const i16 power = v16_bits(t);
    v16 y = i16_float(i16_add(v16_bits(p), i16_shl(power, 23)));
    y = v16_select(v16_lt(x, v16_set1(EXP_MIN)), v16_zero(), y);
    return v16_select(v16_isnan(x), x, y);
}

SIMD v16 v16_exp(v16 x) { return v16_select(v16_gt(x, v16_set1(EXP_MAX)), v16_set1(INFINITY), v16_exp_down(x)); }

SIMD v16 v16_sigmoid(v16 x)
{
    const v16 one = v16_set1(1.0f);
    return v16_div(one, v16_add(one, v16_exp(v16_neg(x))));
}

SIMD v16 v16_log(v16 x)
{
    const i16 bits = v16_bits(x), d = i16_sub(bits, i16_set1((int32_t)LOG_SPLIT)), exponent = i16_sar(d, 23);
    const v16 e = i16_to_v16(exponent);
    const v16 f = v16_sub(i16_float(i16_sub(bits, i16_shl(exponent, 23))), v16_set1(1.0f));
    v16 p = v16_set1(LOG_C10);
    p = v16_fma(p, f, v16_set1(LOG_C9));
    p = v16_fma(p, f, v16_set1(LOG_C8));
    p = v16_fma(p, f, v16_set1(LOG_C7));
    p = v16_fma(p, f, v16_set1(LOG_C6));
    p = v16_fma(p, f, v16_set1(LOG_C5));
    p = v16_fma(p, f, v16_set1(LOG_C4));
    p = v16_fma(p, f, v16_set1(LOG_C3));
    const v16 f2 = v16_mul(f, f), s = v16_fma(e, v16_set1(MATH_LN2_HI), f);
    const v16 lost = v16_sub(f, v16_fnma(e, v16_set1(MATH_LN2_HI), s));
    v16 y = v16_fma(v16_mul(f2, f), p, v16_fma(e, v16_set1(MATH_LN2_LO), lost));
    y = v16_fma(f2, v16_set1(-0.5f), y);
    y = v16_add(s, y);
    y = v16_select(i16_gt(bits, i16_set1(0x7f7fffff)), x, y);
    y = v16_select(i16_gt(i16_set1(0), bits), i16_float(i16_set1(0x7fc00000)), y);
    y = v16_select(i16_eq(i16_and(bits, i16_set1(0x7f800000)), i16_set1(0)), v16_set1(-INFINITY), y);
    return v16_select(v16_isnan(x), x, y);
}

SIMD void v16_sincospi(v16 x, v16 *sin_out, v16 *cos_out)
{
    const v16 round = v16_set1(MATH_ROUND);
    const v16 t = v16_fma(x, v16_set1(2.0f), round), n = v16_sub(t, round);
    const i16 q = v16_bits(t);
    const v16 r = v16_fma(n, v16_set1(-0.5f), x), r2 = v16_mul(r, r);
    v16 p = v16_set1(SINPI_C9);
    p = v16_fma(p, r2, v16_set1(SINPI_C7));
    p = v16_fma(p, r2, v16_set1(SINPI_C5));
    p = v16_fma(p, r2, v16_set1(SINPI_C3));
    p = v16_fma(p, r2, v16_set1(MATH_PI_LO));
    const v16 s = v16_fma(r, v16_set1(MATH_PI_HI), v16_mul(r, p));
    v16 c = v16_set1(COSPI_C8);
    c = v16_fma(c, r2, v16_set1(COSPI_C6));
    c = v16_fma(c, r2, v16_set1(COSPI_C4));
    c = v16_fma(c, r2, v16_set1(COSPI_C2));
    c = v16_fma(c, r2, v16_set1(1.0f));
    const i16 two = i16_set1(2), q1 = i16_add(q, i16_set1(1)), sin_sign = i16_and(q, two), cos_sign = i16_and(q1, two);
    const m16 odd = i16_eq(i16_and(q, i16_set1(1)), i16_set1(1));
    const v16 sine = v16_select(odd, c, s), cosine = v16_select(odd, s, c);
    *sin_out = i16_float(i16_xor(v16_bits(sine), i16_shl(sin_sign, 30)));
    *cos_out = i16_float(i16_xor(v16_bits(cosine), i16_shl(cos_sign, 30)));
}

#endif
