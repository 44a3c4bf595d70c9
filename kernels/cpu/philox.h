/* Philox4x32-10 over sixteen counters at a time: sixteen times the four words of random_words (kernels/random.h). Owns nothing.
 * No state, any thread. Rule: word j of lane i is word j of counter i, bit for bit. */
#ifndef MOE_KERNELS_CPU_PHILOX_H
#define MOE_KERNELS_CPU_PHILOX_H

#include "kernels/cpu/simd.h"
#include "kernels/random.h"
#include "kernels/ref/philox.h"

/* Sixteen 64-bit counters. */
typedef struct counters {
    i16 low, high;
} counters;

/* Unsigned: x < y. */
SIMD m16 below(i16 x, i16 y)
{
    const i16 top = i16_set1(INT32_MIN);
    return i16_gt(i16_xor(y, top), i16_xor(x, top));
}

SIMD counters counters_add(counters c, i16 add)
{
    const i16 low = i16_add(c.low, add);
    const v16 carry = v16_select(below(low, c.low), i16_float(i16_set1(1)), v16_zero());
    return (counters){low, i16_add(c.high, v16_bits(carry))};
}

/* The high and low words of a * m. */
SIMD void multiply(i16 a, uint32_t m, i16 *high, i16 *low)
{
#if MOE_SIMD_512
    const __m512i by = _mm512_set1_epi32((int32_t)m);
    const __m512i even = _mm512_mul_epu32(a, by), odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32), by);
    *high = _mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd);
    *low = _mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32));
#else
    const __m256i by = _mm256_set1_epi32((int32_t)m);
    const __m256i even0 = _mm256_mul_epu32(a.lo, by), odd0 = _mm256_mul_epu32(_mm256_srli_epi64(a.lo, 32), by);
    const __m256i even1 = _mm256_mul_epu32(a.hi, by), odd1 = _mm256_mul_epu32(_mm256_srli_epi64(a.hi, 32), by);
    *high = (i16){_mm256_blend_epi32(_mm256_srli_epi64(even0, 32), odd0, 0xaa),
                  _mm256_blend_epi32(_mm256_srli_epi64(even1, 32), odd1, 0xaa)};
    *low = (i16){_mm256_blend_epi32(even0, _mm256_slli_epi64(odd0, 32), 0xaa),
                 _mm256_blend_epi32(even1, _mm256_slli_epi64(odd1, 32), 0xaa)};
#endif
}

SIMD void philox(i16 c[4], counters at, random_key key)
{
    uint32_t k0 = (uint32_t)key.seed, k1 = (uint32_t)(key.seed >> 32);
    c[0] = at.low, c[1] = at.high, c[2] = i16_set1((int32_t)key.tensor), c[3] = i16_set1((int32_t)key.step);
    for (int round = 0; round < PHILOX_ROUNDS; round++) {
        i16 high0, low0, high1, low1;
        multiply(c[0], PHILOX_M0, &high0, &low0);
        multiply(c[2], PHILOX_M1, &high1, &low1);
        c[0] = i16_xor(i16_xor(high1, c[1]), i16_set1((int32_t)k0));
        c[1] = low1;
        c[2] = i16_xor(i16_xor(high0, c[3]), i16_set1((int32_t)k1));
        c[3] = low0;
        k0 += PHILOX_W0;
        k1 += PHILOX_W1;
    }
}

#endif
