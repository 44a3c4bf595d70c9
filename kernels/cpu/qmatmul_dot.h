/* Exact dot products of 4-bit and 8-bit weights with int8 activations, 16 outputs at a time: the instructions, in three versions.
 * Owns no data. Any thread.
 *   VNNI     vpdpbusd adds 4 products of unsigned weights to each of 16 lanes of int32
 *   others   vpmaddubsw makes 2 of them an int16. Nibbles: 8 of those sums stay below 8 * 2 * 15 * 127 = 30480 and are widened once.
 *            Five bits: 4 sums, 31496; six bits: 2 sums, 32004.
 *            Signed bytes: |w| times a with w's sign: 2 * 128 * 127 = 32512 fits once, and is widened each time; -128 is a number as any.
 * Rule: activations are in [-127, 127]; what is unsigned here is brought back by adding a multiple of their sum. */
#ifndef MOE_KERNELS_CPU_QMATMUL_DOT_H
#define MOE_KERNELS_CPU_QMATMUL_DOT_H

#include "kernels/cpu/simd.h"
#include "kernels/qpanel.h"

#if MOE_SIMD_512
SIMD i16 q_load(const uint8_t *p) { return _mm512_loadu_si512(p); }
SIMD void q_store(uint8_t *p, i16 a) { _mm512_store_si512(p, a); }
SIMD i16 q_low(i16 a) { return _mm512_and_si512(a, _mm512_set1_epi8(15)); }
SIMD i16 q_high(i16 a) { return _mm512_and_si512(_mm512_srli_epi16(a, 4), _mm512_set1_epi8(15)); }
SIMD i16 q_and(i16 a, char m) { return _mm512_and_si512(a, _mm512_set1_epi8(m)); }
#define q_shl(a, k) _mm512_slli_epi16(a, k) /* of 16 bits: what crosses a byte is masked by the caller */
#define q_shr(a, k) _mm512_srli_epi16(a, k)
SIMD i16 q_table(const int8_t *table, i16 at)
{
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)table)), at);
}
SIMD i16 q_bytes(const uint8_t *p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)); }
SIMD i16 q_signed_bytes(const uint8_t *p) { return _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)); }
SIMD i16 q_flip(i16 a) { return _mm512_xor_si512(a, _mm512_set1_epi8(-128)); }
SIMD i16 q_pairs(i16 w, i16 a) { return _mm512_maddubs_epi16(w, a); }
SIMD i16 q_add16(i16 a, i16 b) { return _mm512_add_epi16(a, b); }
SIMD i16 q_widen(i16 a) { return _mm512_madd_epi16(a, _mm512_set1_epi16(1)); }
SIMD i16 q_abs(i16 a) { return _mm512_abs_epi8(a); }
SIMD i16 q_signed(i16 a, i16 w) { return _mm512_mask_sub_epi8(a, _mm512_movepi8_mask(w), _mm512_setzero_si512(), a); }
SIMD v16 q_halves(const uint8_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p)); }
SIMD int32_t q_most(i16 a) { return _mm512_reduce_max_epi32(a); }
SIMD int32_t q_sum(i16 a) { return _mm512_reduce_add_epi32(a); }
SIMD void q_store_bytes(int8_t *p, i16 a, i16 b)
{
    _mm_storeu_si128((__m128i *)(void *)p, _mm512_cvtepi32_epi8(a));
    _mm_storeu_si128((__m128i *)(void *)(p + 16), _mm512_cvtepi32_epi8(b));
}
SIMD i16 q_max(i16 a, i16 b) { return _mm512_max_epi32(a, b); }
#else
SIMD i16 q_load(const uint8_t *p)
{
    return (i16){_mm256_loadu_si256((const __m256i *)(const void *)p),
                 _mm256_loadu_si256((const __m256i *)(const void *)(p + 32))};
}
SIMD void q_store(uint8_t *p, i16 a)
{
    _mm256_store_si256((__m256i *)(void *)p, a.lo), _mm256_store_si256((__m256i *)(void *)(p + 32), a.hi);
}
SIMD i16 q_and(i16 a, char m)
{
    return (i16){_mm256_and_si256(a.lo, _mm256_set1_epi8(m)), _mm256_and_si256(a.hi, _mm256_set1_epi8(m))};
}
#define q_shl(a, k) ((i16){_mm256_slli_epi16((a).lo, k), _mm256_slli_epi16((a).hi, k)})
#define q_shr(a, k) ((i16){_mm256_srli_epi16((a).lo, k), _mm256_srli_epi16((a).hi, k)})
SIMD i16 q_low(i16 a) { return q_and(a, 15); }
SIMD i16 q_high(i16 a) { return q_and(q_shr(a, 4), 15); }
SIMD i16 q_table(const int8_t *table, i16 at)
{
    const __m256i t = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)table));
    return (i16){_mm256_shuffle_epi8(t, at.lo), _mm256_shuffle_epi8(t, at.hi)};
}
SIMD i16 q_bytes(const uint8_t *p)
{
    return (i16){_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p)),
                 _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(p + 8)))};
}
SIMD i16 q_signed_bytes(const uint8_t *p)
{
    return (i16){_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p)),
                 _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(p + 8)))};
}
SIMD i16 q_pairs(i16 w, i16 a) { return (i16){_mm256_maddubs_epi16(w.lo, a.lo), _mm256_maddubs_epi16(w.hi, a.hi)}; }
SIMD i16 q_add16(i16 a, i16 b) { return (i16){_mm256_add_epi16(a.lo, b.lo), _mm256_add_epi16(a.hi, b.hi)}; }
SIMD i16 q_widen(i16 a)
{
    const __m256i one = _mm256_set1_epi16(1);
    return (i16){_mm256_madd_epi16(a.lo, one), _mm256_madd_epi16(a.hi, one)};
}
SIMD i16 q_abs(i16 a) { return (i16){_mm256_abs_epi8(a.lo), _mm256_abs_epi8(a.hi)}; }
SIMD i16 q_signed(i16 a, i16 w) { return (i16){_mm256_sign_epi8(a.lo, w.lo), _mm256_sign_epi8(a.hi, w.hi)}; }
SIMD v16 q_halves(const uint8_t *p)
{
    const __m128i *q = (const __m128i *)(const void *)p;
    return (v16){_mm256_cvtph_ps(_mm_loadu_si128(q)), _mm256_cvtph_ps(_mm_loadu_si128(q + 1))};
}
SIMD i16 q_max(i16 a, i16 b) { return (i16){_mm256_max_epi32(a.lo, b.lo), _mm256_max_epi32(a.hi, b.hi)}; }
SIMD int32_t q_most(i16 a)
{
    const __m256i m8 = _mm256_max_epi32(a.lo, a.hi);
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128(m8), _mm256_extracti128_si256(m8, 1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1)));
}
SIMD int32_t q_sum(i16 a)
{
    const __m256i s8 = _mm256_add_epi32(a.lo, a.hi);
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(s8), _mm256_extracti128_si256(s8, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}
SIMD void q_store_bytes(int8_t *p, i16 a, i16 b)
{
    const __m256i words = _mm256_packs_epi16(_mm256_packs_epi32(a.lo, a.hi), _mm256_packs_epi32(b.lo, b.hi));
    _mm256_storeu_si256((__m256i *)(void *)p, _mm256_permutevar8x32_epi32(words, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
}
#endif

/* 4 activations in every lane. */
SIMD i16 q_four(const int8_t *a)
{
    int32_t four;
    __builtin_memcpy(&four, a, sizeof four);
    return i16_set1(four);
}

#endif
