/* Rows of block formats into panels, fast: what qpanel_pack (kernels/qpanel.c) calls where there is AVX2. Owns nothing. Any thread.
 * The words of 16 rows are turned: rows i and i + 4 of eight are put into one register by 128-bit loads, so that two of three shuffle
 * stages are left; AVX-512 gains nothing, memory is the limit (7 of the 8 GB/s of memcpy). The next panel's rows are fetched on the
 * way: 16 rows are one stretch of memory, but 16 streams to the processor.
 * Rule: the bytes are those of the plain version (tests/kernels/test_qmatmul.c). */
#include "kernels/qpanel.h"
#include "kernels/cpu/simd.h"

SIMD __m128i load128(const uint8_t *p) { return _mm_loadu_si128((const __m128i *)(const void *)p); }

/* 4 words of each of 16 rows -> 4 lines. */
SIMD void turn(uint8_t *out, const uint8_t *in, size_t stride)
{
    for (size_t half = 0; half < 2; half++, in += 8 * stride) {
        __m256i z[4], *to = (__m256i *)(void *)(out + half * 32);
#pragma GCC unroll 4
        for (size_t i = 0; i < 4; i++)
            z[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(load128(in + i * stride)), load128(in + (i + 4) * stride), 1);
        const __m256i ab = _mm256_unpacklo_epi32(z[0], z[1]), AB = _mm256_unpackhi_epi32(z[0], z[1]);
        const __m256i cd = _mm256_unpacklo_epi32(z[2], z[3]), CD = _mm256_unpackhi_epi32(z[2], z[3]);
        _mm256_store_si256(to, _mm256_unpacklo_epi64(ab, cd));
        _mm256_store_si256(to + 2, _mm256_unpackhi_epi64(ab, cd));
        _mm256_store_si256(to + 4, _mm256_unpacklo_epi64(AB, CD));
        _mm256_store_si256(to + 6, _mm256_unpackhi_epi64(AB, CD));
    }
}

SIMD void pack(uint8_t *data, uint8_t *side, const uint8_t *rows, size_t stride, int64_t K, const int head, const int steps)
{
    const uint8_t *next = rows + PANEL * stride;
    for (int64_t b = 0; b < K / QBLOCK; b++, rows += head + 4 * steps) {
        for (int i = 0; i < PANEL * (head + 4 * steps); i += 64)
            _mm_prefetch((const char *)next + i, _MM_HINT_T0);
        next += PANEL * (head + 4 * steps);
        for (int h = 0; h < head; h += 2)
#pragma GCC unroll 16
            for (int r = 0; r < PANEL; r++)
                __builtin_memcpy(side + h * PANEL + 2 * r, rows + (size_t)r * stride + h, 2);
        for (int s = 0; s < steps; s += 4)
            turn(data + s * QLINE, rows + head + 4 * s, stride);
        data += steps * QLINE, side += head * PANEL;
    }
}

/* head: bytes of fp16 before the data of a block; steps: words of data. */
void qpanel_pack_blocks_avx2(uint8_t *data, uint8_t *side, const uint8_t *rows, size_t stride, int64_t K, int head, int steps)
{
    if (steps == 8)
        pack(data, side, rows, stride, K, 2, 8);
    else if (head == 4)
        pack(data, side, rows, stride, K, 4, 4);
    else
        pack(data, side, rows, stride, K, 2, 4);
}
