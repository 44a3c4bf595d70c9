/* The 16-lane sum of kernels/reduce.h, in plain C: what every row sum of ref/ is made of. Owns sixteen partial sums and the tree.
 * Knows nothing of vectors or threads. Any thread.
 * Rule: elements arrive in order of their index from 0; a partial last group is completed with +0 (lanes_pad) before the tree. */
#ifndef MOE_KERNELS_REF_LANES_H
#define MOE_KERNELS_REF_LANES_H

#include <math.h>
#include <stdint.h>

enum { LANES = 16 };

typedef struct lanes {
    float at[LANES];
} lanes;

static inline void lanes_add(lanes *l, int64_t i, float x) { l->at[i % LANES] += x; }
static inline void lanes_fma(lanes *l, int64_t i, float x, float y) { l->at[i % LANES] = fmaf(x, y, l->at[i % LANES]); }

/* The tree: 8 + 8, 4 + 4, 2 + 2, 1 + 1. `n` elements were added: lanes past the last one get +0 (it turns a flushed -0 into +0). */
static inline float lanes_sum(lanes *l, int64_t n)
{
    for (int64_t i = n; i % LANES != 0; i++)
        l->at[i % LANES] += 0.0f;
    for (int half = LANES / 2; half >= 1; half /= 2)
        for (int i = 0; i < half; i++)
            l->at[i] += l->at[i + half];
    return l->at[0];
}

#endif
