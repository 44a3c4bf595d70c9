/* fp16, bf16 and fp8 (E4M3) <-> fp32 in integer arithmetic: exact, nearest even, the same whatever the rounding and denormal mode of the thread.
 * Owns nothing. Any thread.
 * Rule: the vector conversions of kernels/cpu give these bits (a signalling NaN comes out quiet). */
#ifndef MOE_KERNELS_HALF_H
#define MOE_KERNELS_HALF_H

#include <stdint.h>
#include <string.h>

#include "kernels/inline.h"

KERNEL_INLINE uint32_t float_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

KERNEL_INLINE float bits_float(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

KERNEL_INLINE float half_to_float(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = h >> 10 & 31u, fraction = h & 0x3ffu;
    if (exponent == 0) /* a denormal of fp16 is a normal number of fp32 */
        return bits_float(sign | float_bits((float)fraction * 0x1p-24f));
    if (exponent == 31)
        return bits_float(sign | 0x7f800000u | fraction << 13 | (fraction != 0 ? 0x400000u : 0));
    return bits_float(sign | (exponent + 112) << 23 | fraction << 13);
}

KERNEL_INLINE uint16_t half_from_float(float x)
{
    const uint32_t bits = float_bits(x), a = bits & 0x7fffffffu;
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000u);
    if (a > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00u | (a >> 13 & 0x1ffu));
    if (a >= 0x47800000u) /* 65536 and more; from 65520 on the carry below gives infinity too */
        return sign | 0x7c00u;
    if (a >= 0x38800000u)
        return (uint16_t)(sign | (a - 0x38000000u + 0xfffu + (a >> 13 & 1u)) >> 13);
    const uint32_t shift = 126 - (a >> 23); /* of the fraction, to units of 2^-24 */
    if (shift > 24)
        return sign;
    const uint32_t fraction = (a & 0x7fffffu) | 0x800000u, whole = fraction >> shift, rest = fraction << (32 - shift);
    return (uint16_t)(sign | (whole + (rest > 0x80000000u || (rest == 0x80000000u && (whole & 1u)))));
}

KERNEL_INLINE float bf16_to_float(uint16_t h) { return bits_float((uint32_t)h << 16); }

KERNEL_INLINE uint16_t bf16_from_float(float x)
{
    const uint32_t bits = float_bits(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(bits >> 16 | 64u);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

/* E4M3 as in OCP 8-bit floating point (torch.float8_e4m3fn): bias 7, no infinities, 0x7f and 0xff are NaN, the largest number is 448. */
KERNEL_INLINE float e4m3_to_float(uint8_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x80u) << 24, size = h & 0x7fu;
    if (size == 0x7fu)
        return bits_float(sign | 0x7fc00000u);
    if (size < 8) /* a denormal of fp8 is a normal number of fp32 */
        return bits_float(sign | float_bits((float)size * 0x1p-9f));
    return bits_float(sign | ((size << 20) + (120u << 23)));
}

/* What is past the largest number becomes it, as in torch 2.15 (NaN before); NaN stays. */
KERNEL_INLINE uint8_t e4m3_from_float(float x)
{
    const uint32_t bits = float_bits(x), a = bits & 0x7fffffffu;
    const uint8_t sign = (uint8_t)(bits >> 24 & 0x80u);
    if (a >= 0x43e00000u) /* 448 */
        return sign | (a > 0x7f800000u ? 0x7fu : 0x7eu);
    if (a >= 0x3c800000u)
        return (uint8_t)(sign | (a - (120u << 23) + 0x7ffffu + (a >> 20 & 1u)) >> 20);
    const uint32_t shift = 141 - (a >> 23); /* of the fraction, to units of 2^-9 */
    if (shift > 24)
        return sign;
    const uint32_t fraction = (a & 0x7fffffu) | 0x800000u, whole = fraction >> shift, rest = fraction << (32 - shift);
    return (uint8_t)(sign | (whole + (rest > 0x80000000u || (rest == 0x80000000u && (whole & 1u)))));
}

#endif
