/* Sixteen floats that move together: one __m512 under AVX-512, two __m256 under AVX2. Owns the vector types and nothing else.
 * A fast kernel is written once over this header and compiled once per instruction set (kernels/CMakeLists.txt); ISA(name) gives its
 * symbols their suffix. No state, any thread. Rule: every helper gives the same bits on both sets, so lane order, rounding
 * (nearest even) and the reduction tree are those of kernels/reduce.h; nothing here may be reassociated or contracted. */
#ifndef MOE_KERNELS_CPU_SIMD_H
#define MOE_KERNELS_CPU_SIMD_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#define ISA_PASTE2(name, isa) name##_##isa
#define ISA_PASTE(name, isa) ISA_PASTE2(name, isa)
#define ISA(name) ISA_PASTE(name, MOE_ISA) /* matmul_forward -> matmul_forward_avx2 */

#define SIMD static inline __attribute__((always_inline, unused))
enum { V16 = 16 };

#if defined(__AVX512F__)
#define MOE_SIMD_512 1
typedef __m512 v16;    /* 16 fp32             */
typedef __m512i i16;   /* 16 int32            */
typedef __mmask16 m16; /* 16 yes/no           */
typedef struct { __m512d q[2]; } d16; /* 16 fp64 */
#elif defined(__AVX2__) && defined(__FMA__)
#define MOE_SIMD_512 0
typedef struct { __m256 lo, hi; } v16;
typedef struct { __m256i lo, hi; } i16;
typedef struct { __m256 lo, hi; } m16; /* all ones or all zeros a lane */
typedef struct { __m256d q[4]; } d16;
#else
#error "kernels/cpu is compiled with AVX2 + FMA or AVX-512 (kernels/CMakeLists.txt)"
#endif

/* What the table below defines, for all n in [0, 16]:
 *   load/store  any alignment; _n: lanes 0 .. n-1 only, the rest reads as zero and is not touched in memory
 *   fma(a,b,c) = a*b + c, fnma(a,b,c) = c - a*b, one rounding; max(a,b) = a > b ? a : b, min(a,b) = a < b ? a : b (b when equal or NaN)
 *   select(m,a,b) = m ? a : b; compares are false on NaN; v16_to_i16 rounds to nearest even, i16_to_v16 converts back
 *   load_u16 widens with zeros, store_u16 wants values below 2^16
 *   v16_bits / i16_float reinterpret; shl, shr shift by a constant, shr fills with zeros, sar with the sign */

#if MOE_SIMD_512
SIMD v16 v16_load(const float *p) { return _mm512_loadu_ps(p); }
SIMD void v16_store(float *p, v16 a) { _mm512_storeu_ps(p, a); }
SIMD void v16_stream(float *p, v16 a) { _mm512_stream_ps(p, a); } /* 64-byte aligned, around the cache */
SIMD m16 m16_first(int n) { return (__mmask16)((1u << n) - 1u); }
SIMD v16 v16_load_n(const float *p, int n) { return _mm512_maskz_loadu_ps(m16_first(n), p); }
SIMD void v16_store_n(float *p, v16 a, int n) { _mm512_mask_storeu_ps(p, m16_first(n), a); }
SIMD v16 v16_set1(float x) { return _mm512_set1_ps(x); }
SIMD v16 v16_zero(void) { return _mm512_setzero_ps(); }
SIMD v16 v16_fma(v16 a, v16 b, v16 c) { return _mm512_fmadd_ps(a, b, c); }
SIMD v16 v16_fnma(v16 a, v16 b, v16 c) { return _mm512_fnmadd_ps(a, b, c); }
SIMD v16 v16_add(v16 a, v16 b) { return _mm512_add_ps(a, b); }
SIMD v16 v16_sub(v16 a, v16 b) { return _mm512_sub_ps(a, b); }
SIMD v16 v16_mul(v16 a, v16 b) { return _mm512_mul_ps(a, b); }
SIMD v16 v16_div(v16 a, v16 b) { return _mm512_div_ps(a, b); }
SIMD v16 v16_sqrt(v16 a) { return _mm512_sqrt_ps(a); }
SIMD v16 v16_max(v16 a, v16 b) { return _mm512_max_ps(a, b); }
SIMD v16 v16_min(v16 a, v16 b) { return _mm512_min_ps(a, b); }
SIMD v16 v16_abs(v16 a) { return _mm512_and_ps(a, _mm512_castsi512_ps(_mm512_set1_epi32(0x7fffffff))); }
SIMD v16 v16_neg(v16 a) { return _mm512_xor_ps(a, _mm512_set1_ps(-0.0f)); }
SIMD m16 v16_lt(v16 a, v16 b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
SIMD m16 v16_le(v16 a, v16 b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ); }
SIMD m16 v16_eq(v16 a, v16 b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
SIMD m16 v16_isnan(v16 a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q); }
SIMD v16 v16_select(m16 m, v16 a, v16 b) { return _mm512_mask_blend_ps(m, b, a); }
SIMD m16 m16_and(m16 a, m16 b) { return (__mmask16)(a & b); }
SIMD m16 m16_or(m16 a, m16 b) { return (__mmask16)(a | b); }
SIMD unsigned m16_mask(m16 m) { return m; } /* bit i: lane i */
SIMD i16 v16_to_i16(v16 a) { return _mm512_cvtps_epi32(a); }
SIMD v16 i16_to_v16(i16 a) { return _mm512_cvtepi32_ps(a); }
SIMD i16 v16_bits(v16 a) { return _mm512_castps_si512(a); }
SIMD v16 i16_float(i16 a) { return _mm512_castsi512_ps(a); }
SIMD i16 i16_load(const int32_t *p) { return _mm512_loadu_si512(p); }
SIMD void i16_store(int32_t *p, i16 a) { _mm512_storeu_si512(p, a); }
SIMD i16 i16_load_u16(const uint16_t *p) { return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)p)); }
SIMD void i16_store_u16(uint16_t *p, i16 a) { _mm256_storeu_si256((__m256i *)(void *)p, _mm512_cvtepi32_epi16(a)); }
SIMD i16 i16_set1(int32_t x) { return _mm512_set1_epi32(x); }
SIMD i16 i16_add(i16 a, i16 b) { return _mm512_add_epi32(a, b); }
SIMD i16 i16_sub(i16 a, i16 b) { return _mm512_sub_epi32(a, b); }
SIMD i16 i16_and(i16 a, i16 b) { return _mm512_and_si512(a, b); }
SIMD i16 i16_or(i16 a, i16 b) { return _mm512_or_si512(a, b); }
SIMD i16 i16_xor(i16 a, i16 b) { return _mm512_xor_si512(a, b); }
SIMD m16 i16_eq(i16 a, i16 b) { return _mm512_cmpeq_epi32_mask(a, b); }
SIMD m16 i16_gt(i16 a, i16 b) { return _mm512_cmpgt_epi32_mask(a, b); }
#define i16_shl(a, k) _mm512_slli_epi32(a, k)
#define i16_shr(a, k) _mm512_srli_epi32(a, k)
#define i16_sar(a, k) _mm512_srai_epi32(a, k)
SIMD i16 i16_iota(void) { return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }
SIMD v16 v16_gather(const float *p, i16 at) { return _mm512_i32gather_ps(at, p, 4); }
SIMD __m256 v16_low(v16 a) { return _mm512_castps512_ps256(a); }
SIMD __m256 v16_high(v16 a) { return _mm512_extractf32x8_ps(a, 1); }
#else
SIMD v16 v16_load(const float *p) { return (v16){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
SIMD void v16_store(float *p, v16 a) { _mm256_storeu_ps(p, a.lo), _mm256_storeu_ps(p + 8, a.hi); }
SIMD void v16_stream(float *p, v16 a) { _mm256_stream_ps(p, a.lo), _mm256_stream_ps(p + 8, a.hi); }
SIMD m16 m16_first(int n)
{
    const __m256i at = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), count = _mm256_set1_epi32(n);
    return (m16){_mm256_castsi256_ps(_mm256_cmpgt_epi32(count, at)),
                 _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_sub_epi32(count, _mm256_set1_epi32(8)), at))};
}
SIMD v16 v16_load_n(const float *p, int n)
{
    const m16 m = m16_first(n);
    return (v16){_mm256_maskload_ps(p, _mm256_castps_si256(m.lo)), _mm256_maskload_ps(p + 8, _mm256_castps_si256(m.hi))};
}
SIMD void v16_store_n(float *p, v16 a, int n)
{
    const m16 m = m16_first(n);
    _mm256_maskstore_ps(p, _mm256_castps_si256(m.lo), a.lo), _mm256_maskstore_ps(p + 8, _mm256_castps_si256(m.hi), a.hi);
}
SIMD v16 v16_set1(float x) { return (v16){_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
SIMD v16 v16_zero(void) { return (v16){_mm256_setzero_ps(), _mm256_setzero_ps()}; }
SIMD v16 v16_fma(v16 a, v16 b, v16 c) { return (v16){_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)}; }
SIMD v16 v16_fnma(v16 a, v16 b, v16 c) { return (v16){_mm256_fnmadd_ps(a.lo, b.lo, c.lo), _mm256_fnmadd_ps(a.hi, b.hi, c.hi)}; }
SIMD v16 v16_add(v16 a, v16 b) { return (v16){_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
SIMD v16 v16_sub(v16 a, v16 b) { return (v16){_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
SIMD v16 v16_mul(v16 a, v16 b) { return (v16){_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
SIMD v16 v16_div(v16 a, v16 b) { return (v16){_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
SIMD v16 v16_sqrt(v16 a) { return (v16){_mm256_sqrt_ps(a.lo), _mm256_sqrt_ps(a.hi)}; }
SIMD v16 v16_max(v16 a, v16 b) { return (v16){_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
SIMD v16 v16_min(v16 a, v16 b) { return (v16){_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
SIMD v16 v16_abs(v16 a)
{
    const __m256 m = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    return (v16){_mm256_and_ps(a.lo, m), _mm256_and_ps(a.hi, m)};
}
SIMD v16 v16_neg(v16 a)
{
    const __m256 m = _mm256_set1_ps(-0.0f);
    return (v16){_mm256_xor_ps(a.lo, m), _mm256_xor_ps(a.hi, m)};
}
SIMD m16 v16_lt(v16 a, v16 b) { return (m16){_mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ)}; }
SIMD m16 v16_le(v16 a, v16 b) { return (m16){_mm256_cmp_ps(a.lo, b.lo, _CMP_LE_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_LE_OQ)}; }
SIMD m16 v16_eq(v16 a, v16 b) { return (m16){_mm256_cmp_ps(a.lo, b.lo, _CMP_EQ_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_EQ_OQ)}; }
SIMD m16 v16_isnan(v16 a) { return (m16){_mm256_cmp_ps(a.lo, a.lo, _CMP_UNORD_Q), _mm256_cmp_ps(a.hi, a.hi, _CMP_UNORD_Q)}; }
SIMD v16 v16_select(m16 m, v16 a, v16 b)
{
    return (v16){_mm256_blendv_ps(b.lo, a.lo, m.lo), _mm256_blendv_ps(b.hi, a.hi, m.hi)};
}
SIMD m16 m16_and(m16 a, m16 b) { return (m16){_mm256_and_ps(a.lo, b.lo), _mm256_and_ps(a.hi, b.hi)}; }
SIMD m16 m16_or(m16 a, m16 b) { return (m16){_mm256_or_ps(a.lo, b.lo), _mm256_or_ps(a.hi, b.hi)}; }
SIMD unsigned m16_mask(m16 m) { return (unsigned)_mm256_movemask_ps(m.lo) | (unsigned)_mm256_movemask_ps(m.hi) << 8; }
SIMD i16 v16_to_i16(v16 a) { return (i16){_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)}; }
SIMD v16 i16_to_v16(i16 a) { return (v16){_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
SIMD i16 v16_bits(v16 a) { return (i16){_mm256_castps_si256(a.lo), _mm256_castps_si256(a.hi)}; }
SIMD v16 i16_float(i16 a) { return (v16){_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)}; }
SIMD i16 i16_load(const int32_t *p)
{
    return (i16){_mm256_loadu_si256((const __m256i *)(const void *)p), _mm256_loadu_si256((const __m256i *)(const void *)(p + 8))};
}
SIMD void i16_store(int32_t *p, i16 a)
{
    _mm256_storeu_si256((__m256i *)(void *)p, a.lo), _mm256_storeu_si256((__m256i *)(void *)(p + 8), a.hi);
}
SIMD i16 i16_load_u16(const uint16_t *p)
{
    const __m128i *q = (const __m128i *)(const void *)p;
    return (i16){_mm256_cvtepu16_epi32(_mm_loadu_si128(q)), _mm256_cvtepu16_epi32(_mm_loadu_si128(q + 1))};
}
SIMD void i16_store_u16(uint16_t *p, i16 a)
{
    const __m256i packed = _mm256_packus_epi32(a.lo, a.hi); /* by halves: lo0 hi0 lo1 hi1 */
    _mm256_storeu_si256((__m256i *)(void *)p, _mm256_permute4x64_epi64(packed, 0xd8));
}
SIMD i16 i16_set1(int32_t x) { return (i16){_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
SIMD i16 i16_add(i16 a, i16 b) { return (i16){_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
SIMD i16 i16_sub(i16 a, i16 b) { return (i16){_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)}; }
SIMD i16 i16_and(i16 a, i16 b) { return (i16){_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)}; }
SIMD i16 i16_or(i16 a, i16 b) { return (i16){_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)}; }
SIMD i16 i16_xor(i16 a, i16 b) { return (i16){_mm256_xor_si256(a.lo, b.lo), _mm256_xor_si256(a.hi, b.hi)}; }
SIMD m16 i16_eq(i16 a, i16 b)
{
    return (m16){_mm256_castsi256_ps(_mm256_cmpeq_epi32(a.lo, b.lo)), _mm256_castsi256_ps(_mm256_cmpeq_epi32(a.hi, b.hi))};
}
SIMD m16 i16_gt(i16 a, i16 b)
{
    return (m16){_mm256_castsi256_ps(_mm256_cmpgt_epi32(a.lo, b.lo)), _mm256_castsi256_ps(_mm256_cmpgt_epi32(a.hi, b.hi))};
}
#define i16_shl(a, k) ((i16){_mm256_slli_epi32((a).lo, k), _mm256_slli_epi32((a).hi, k)})
#define i16_shr(a, k) ((i16){_mm256_srli_epi32((a).lo, k), _mm256_srli_epi32((a).hi, k)})
#define i16_sar(a, k) ((i16){_mm256_srai_epi32((a).lo, k), _mm256_srai_epi32((a).hi, k)})
SIMD i16 i16_iota(void)
{
    return (i16){_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15)};
}
SIMD v16 v16_gather(const float *p, i16 at) { return (v16){_mm256_i32gather_ps(p, at.lo, 4), _mm256_i32gather_ps(p, at.hi, 4)}; }
SIMD __m256 v16_low(v16 a) { return a.lo; }
SIMD __m256 v16_high(v16 a) { return a.hi; }
#endif

SIMD v16 v16_widen(const uint16_t *p) { return i16_float(i16_shl(i16_load_u16(p), 16)); } /* bf16 */
SIMD m16 v16_gt(v16 a, v16 b) { return v16_lt(b, a); }
SIMD m16 v16_ge(v16 a, v16 b) { return v16_le(b, a); }

/* The tree of kernels/reduce.h: lane i + lane i+8, then i + i+4, i + i+2, i + i+1. */
SIMD float v16_sum(v16 a)
{
    const __m256 s8 = _mm256_add_ps(v16_low(a), v16_high(a));
    const __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
    const __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
    return _mm_cvtss_f32(_mm_add_ss(s2, _mm_movehdup_ps(s2)));
}

/* The same tree with max. */
SIMD float v16_max_lane(v16 a)
{
    const __m256 s8 = _mm256_max_ps(v16_low(a), v16_high(a));
    const __m128 s4 = _mm_max_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
    const __m128 s2 = _mm_max_ps(s4, _mm_movehl_ps(s4, s4));
    return _mm_cvtss_f32(_mm_max_ss(s2, _mm_movehdup_ps(s2)));
}

/* Sixteen doubles: for sums of squares and the sums in double over tokens. */
#if MOE_SIMD_512
SIMD d16 d16_zero(void) { return (d16){{_mm512_setzero_pd(), _mm512_setzero_pd()}}; }
SIMD d16 d16_from_v16(v16 a) { return (d16){{_mm512_cvtps_pd(v16_low(a)), _mm512_cvtps_pd(v16_high(a))}}; }
SIMD d16 d16_load(const double *p) { return (d16){{_mm512_loadu_pd(p), _mm512_loadu_pd(p + 8)}}; }
SIMD void d16_store(double *p, d16 a) { _mm512_storeu_pd(p, a.q[0]), _mm512_storeu_pd(p + 8, a.q[1]); }
SIMD d16 d16_add(d16 a, d16 b) { return (d16){{_mm512_add_pd(a.q[0], b.q[0]), _mm512_add_pd(a.q[1], b.q[1])}}; }
SIMD d16 d16_fma(d16 a, d16 b, d16 c)
{
    return (d16){{_mm512_fmadd_pd(a.q[0], b.q[0], c.q[0]), _mm512_fmadd_pd(a.q[1], b.q[1], c.q[1])}};
}
SIMD double d16_sum(d16 a)
{
    const __m512d s8 = _mm512_add_pd(a.q[0], a.q[1]);
    const __m256d s4 = _mm256_add_pd(_mm512_castpd512_pd256(s8), _mm512_extractf64x4_pd(s8, 1));
#else
SIMD __m256d d4_of(__m256 a, int half)
{
    return _mm256_cvtps_pd(half ? _mm256_extractf128_ps(a, 1) : _mm256_castps256_ps128(a));
}
SIMD d16 d16_zero(void)
{
    return (d16){{_mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd()}};
}
SIMD d16 d16_from_v16(v16 a) { return (d16){{d4_of(a.lo, 0), d4_of(a.lo, 1), d4_of(a.hi, 0), d4_of(a.hi, 1)}}; }
SIMD d16 d16_load(const double *p)
{
    return (d16){{_mm256_loadu_pd(p), _mm256_loadu_pd(p + 4), _mm256_loadu_pd(p + 8), _mm256_loadu_pd(p + 12)}};
}
SIMD void d16_store(double *p, d16 a)
{
    _mm256_storeu_pd(p, a.q[0]), _mm256_storeu_pd(p + 4, a.q[1]);
    _mm256_storeu_pd(p + 8, a.q[2]), _mm256_storeu_pd(p + 12, a.q[3]);
}
SIMD d16 d16_add(d16 a, d16 b)
{
    return (d16){{_mm256_add_pd(a.q[0], b.q[0]), _mm256_add_pd(a.q[1], b.q[1]), _mm256_add_pd(a.q[2], b.q[2]),
                  _mm256_add_pd(a.q[3], b.q[3])}};
}
SIMD d16 d16_fma(d16 a, d16 b, d16 c)
{
    return (d16){{_mm256_fmadd_pd(a.q[0], b.q[0], c.q[0]), _mm256_fmadd_pd(a.q[1], b.q[1], c.q[1]),
                  _mm256_fmadd_pd(a.q[2], b.q[2], c.q[2]), _mm256_fmadd_pd(a.q[3], b.q[3], c.q[3])}};
}
SIMD double d16_sum(d16 a)
{
    const __m256d s4 = _mm256_add_pd(_mm256_add_pd(a.q[0], a.q[2]), _mm256_add_pd(a.q[1], a.q[3]));
#endif
    const __m128d s2 = _mm_add_pd(_mm256_castpd256_pd128(s4), _mm256_extractf128_pd(s4, 1));
    return _mm_cvtsd_f64(_mm_add_sd(s2, _mm_unpackhi_pd(s2, s2)));
}

/* out[c * ldo + r] = in[r * ldi + c] for a 16 x 16 block; rows r >= rows read as zero and are not touched in memory.
 * Four rows apart are put into one register by 128-bit loads, so that only the last two of four shuffle stages are left. */
SIMD void v16_transpose(float *out, size_t ldo, const float *in, size_t ldi, int rows)
{
    float edge[V16 * V16];
    if (rows < V16) {
        for (int r = 0; r < V16; r++)
            v16_store(edge + r * V16, r < rows ? v16_load(in + (size_t)r * ldi) : v16_zero());
        in = edge, ldi = V16;
    }
    for (int c = 0; c < V16; c += 4) {
#if MOE_SIMD_512
        __m512 z[4];
#pragma GCC unroll 4
        for (size_t h = 0; h < 4; h++) {
            const float *p = in + h * ldi + c;
            z[h] = _mm512_castps128_ps512(_mm_loadu_ps(p));
            z[h] = _mm512_insertf32x4(z[h], _mm_loadu_ps(p + 4 * ldi), 1);
            z[h] = _mm512_insertf32x4(z[h], _mm_loadu_ps(p + 8 * ldi), 2);
            z[h] = _mm512_insertf32x4(z[h], _mm_loadu_ps(p + 12 * ldi), 3);
        }
        const __m512d ab = _mm512_castps_pd(_mm512_unpacklo_ps(z[0], z[1])), AB = _mm512_castps_pd(_mm512_unpackhi_ps(z[0], z[1]));
        const __m512d cd = _mm512_castps_pd(_mm512_unpacklo_ps(z[2], z[3])), CD = _mm512_castps_pd(_mm512_unpackhi_ps(z[2], z[3]));
        float *o = out + (size_t)c * ldo;
        _mm512_storeu_ps(o, _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)));
        _mm512_storeu_ps(o + ldo, _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
        _mm512_storeu_ps(o + 2 * ldo, _mm512_castpd_ps(_mm512_unpacklo_pd(AB, CD)));
        _mm512_storeu_ps(o + 3 * ldo, _mm512_castpd_ps(_mm512_unpackhi_pd(AB, CD)));
#else
        for (size_t half = 0; half < V16; half += 8) {
            __m256 z[4];
#pragma GCC unroll 4
            for (size_t h = 0; h < 4; h++) {
                const float *p = in + (half + h) * ldi + c;
                z[h] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(p + 4 * ldi), 1);
            }
            const __m256d ab = _mm256_castps_pd(_mm256_unpacklo_ps(z[0], z[1])), AB = _mm256_castps_pd(_mm256_unpackhi_ps(z[0], z[1]));
            const __m256d cd = _mm256_castps_pd(_mm256_unpacklo_ps(z[2], z[3])), CD = _mm256_castps_pd(_mm256_unpackhi_ps(z[2], z[3]));
            float *o = out + (size_t)c * ldo + half;
            _mm256_storeu_ps(o, _mm256_castpd_ps(_mm256_unpacklo_pd(ab, cd)));
            _mm256_storeu_ps(o + ldo, _mm256_castpd_ps(_mm256_unpackhi_pd(ab, cd)));
            _mm256_storeu_ps(o + 2 * ldo, _mm256_castpd_ps(_mm256_unpacklo_pd(AB, CD)));
            _mm256_storeu_ps(o + 3 * ldo, _mm256_castpd_ps(_mm256_unpackhi_pd(AB, CD)));
        }
#endif
    }
}

#endif
