/* Rows whose length is no multiple of sixteen. Owns one rule: `left` elements remain in the row, a vector takes at most 16 of them, the
 * other lanes read as zero and are not written. No state, any thread.
 * Rule: a loop over a row steps by V16 and passes what is left; no byte past the row is touched. */
#ifndef MOE_KERNELS_CPU_ROW_H
#define MOE_KERNELS_CPU_ROW_H

#include "kernels/cpu/simd.h"

SIMD v16 row_load(const float *p, int64_t left) { return left >= V16 ? v16_load(p) : v16_load_n(p, (int)left); }
SIMD void row_store(float *p, v16 a, int64_t left)
{
    if (left >= V16)
        v16_store(p, a);
    else
        v16_store_n(p, a, (int)left);
}

/* Lanes past the row become `other`. */
SIMD v16 row_pad(v16 a, int64_t left, float other)
{
    return left >= V16 ? a : v16_select(m16_first((int)left), a, v16_set1(other));
}

/* Rows of `width` floats that make a piece worth handing out: about 64 KiB, at least one. */
SIMD int64_t row_grain(int64_t width) { return width >= 16384 ? 1 : 16384 / (width > 0 ? width : 1); }

#endif
