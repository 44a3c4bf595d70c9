/* An fp32 number as two halves of 16 bits: the nearest bf16, and the lower half of its bits, which says what is missing.
 *
 *   near = (bits + 0x8000) >> 16          bits = (near << 16) + sign-extended rest      (modulo 2^32)
 *   rest = bits & 0xffff
 *
 * Together they are the number, bit by bit; near alone is what a product reads, in half the bytes. A number half-way between two
 * bf16 goes away from zero, not to the even one: with ties to even 65537 numbers would share an even near, one more than `rest`
 * can tell apart. Largest finite numbers may have an infinite near, and a NaN whose upper bits are all ones a near of zero (no
 * arithmetic makes one); rest undoes both. Denormals are not looked at: whoever computes with the number flushes them. */
#ifndef MOE_KERNELS_HALVES_H
#define MOE_KERNELS_HALVES_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "kernels/inline.h"

KERNEL_INLINE float halves_number(uint16_t near, uint16_t rest)
{
    const uint32_t bits = ((uint32_t)near << 16) + (uint32_t)(int32_t)(int16_t)rest;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

KERNEL_INLINE uint16_t halves_near(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)((bits + 0x8000u) >> 16);
}

KERNEL_INLINE uint16_t halves_rest(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)bits;
}

/* n numbers; near or rest may be NULL: that half is not written. */
void halves_split(uint16_t *near, uint16_t *rest, const float *x, size_t n);
/* n numbers; rest NULL: the bf16 alone, as fp32. */
void halves_join(float *x, const uint16_t *near, const uint16_t *rest, size_t n);

#endif
