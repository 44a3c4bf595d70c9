/* The inside of a page of kernels/paged_attention.h; private to kernels/. A page is one block for each kv head:
 *   keys    [hd, KV_PAGE]      transposed, so that q.k runs along vectors of 16 keys
 *           [blocks, KV_PAGE]  bf16 scales, NUM_Q8_0 only
 *   values  [KV_PAGE, width]   width = hd padded to 16 (pads are never read as values: o keeps only hd columns)
 *           [KV_PAGE, blocks]  bf16 scales, NUM_Q8_0 only
 * Where a value is a part of its key (hdv > 0) there are keys only, and never fewer rows of them than `width` = hdv padded to 16.
 * Every part begins on a multiple of 64 bytes. Also the rounding of one number and one block, shared by ref/ and cpu/. */
#ifndef MOE_KERNELS_KV_PAGE_H
#define MOE_KERNELS_KV_PAGE_H

#include "kernels/math.h"
#include "kernels/paged_attention.h"

enum { KV_BLOCK = 32 }; /* numbers along head_dim that share a scale; the last block of a head may be shorter */

typedef struct kv_layout {
    int blocks;                                   /* of one key or value                */
    size_t width;                                 /* numbers from value to value        */
    size_t size;                                  /* bytes of one number                */
    size_t key_scale, value, value_scale, head;   /* bytes; head: of one kv head        */
} kv_layout;

static inline kv_layout kv_layout_of(numfmt f, int hd, int hdv)
{
    kv_layout l = {.blocks = f == NUM_Q8_0 ? (hd + KV_BLOCK - 1) / KV_BLOCK : 0, .width = ((size_t)(hdv > 0 ? hdv : hd) + 15) / 16 * 16,
                   .size = f == NUM_F32 ? 4 : f == NUM_BF16 ? 2 : 1};
    const size_t scales = (size_t)l.blocks * KV_PAGE * sizeof(uint16_t), rows = hdv > 0 && l.width > (size_t)hd ? l.width : (size_t)hd;
    l.key_scale = rows * KV_PAGE * l.size;
    l.value = l.value_scale = l.head = l.key_scale + scales;
    if (hdv > 0)
        return l;
    l.value_scale = l.value + KV_PAGE * l.width * l.size;
    l.head = l.value_scale + scales;
    return l;
}

static inline float kv_from_bf16(uint16_t x) { return float_from_bits((uint32_t)x << 16); }

/* Nearest even; a NaN stays one. */
static inline uint16_t kv_to_bf16(float x)
{
    const uint32_t u = float_bits(x);
    return (uint16_t)(x != x ? u >> 16 | 0x40u : (u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

/* Scale of a block whose largest magnitude is `top`, and what its numbers are multiplied with. Rounded to bf16 it may be 2^-9 too small: the
 * largest number then becomes 127.25, which rounds to 127. */
static inline uint16_t kv_scale(float top, float *inverse)
{
    const uint16_t d = kv_to_bf16(top / 127.0f);
    const float f = kv_from_bf16(d);
    *inverse = f > 0.0f ? 1.0f / f : 0.0f;
    return d;
}

/* Nearest even of x * inverse, one rounding. */
static inline int8_t kv_quantum(float x, float inverse) { return (int8_t)(uint8_t)(float_bits(fmaf(x, inverse, MATH_ROUND)) & 255u); }

/* MOE_E_CONFIG, for every version of the two operations. */
moe_err kv_check(const char *what, numfmt f, int H, int Hkv, int hd, int hdv) MOE_MUST_CHECK;

#endif
