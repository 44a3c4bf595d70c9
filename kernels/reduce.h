/* Sums along rows, and sums of squares.
 *
 * The 16-lane sum: lane i, from +0, takes the elements with index % 16 == i in order (by addition, or by fma where the term is a
 * product); lanes that a partial last group leaves out get +0; then the tree
 *   8 + 8, 4 + 4, 2 + 2, 1 + 1  (lane i + lane i+8, then i + i+4, i + i+2, i + i+1).
 * Every row sum of every kernel uses it (ref/lanes.h). The sum of squares is the same in double, chunk by chunk: each square is exact
 * in double; it is the section's part of the gradient norm. Denormal inputs count as zero. */
#ifndef MOE_KERNELS_REDUCE_H
#define MOE_KERNELS_REDUCE_H

#include "kernels/stream.h"

/* *out = sum of x[i]^2 over n elements. Chunks of SUM_SQUARES_CHUNK elements are summed apart (so threads can share the work) and
 * added in order: the chunk is part of the definition. */
enum { SUM_SQUARES_CHUNK = 65536 };

typedef struct sum_squares_args {
    double *out;
    const float *x;
    size_t n;
} sum_squares_args;

typedef moe_err (*sum_squares_fn)(const sum_squares_args *a, moe_stream *s);

/* y[i] += x[i] over n elements. */
typedef struct add_args {
    float *y;
    const float *x;
    size_t n;
} add_args;

typedef moe_err (*add_fn)(const add_args *a, moe_stream *s);

#endif
