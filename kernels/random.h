/* Counter-based random numbers: the value depends only on (seed, tensor, element, step), never on order or threads.
 * Philox4x32-10 (Salmon et al., SC'11) with key = seed and counter = (element, tensor, step); normals by Box-Muller with the
 * project's own log, sqrt, sin and cos. */
#ifndef MOE_KERNELS_RANDOM_H
#define MOE_KERNELS_RANDOM_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/stream.h"

typedef struct random_key {
    uint64_t seed;
    uint32_t tensor; /* index of the tensor in the model's table */
    uint32_t step;
} random_key;

/* Four words for counter `element`. */
void random_words(uint32_t out[4], random_key key, uint64_t element);
/* Uniform in [0, 1), 53 bits. */
double random_uniform(random_key key, uint64_t element);

/* Normal(0, std) into panels (N, K) of matmul.h, or row-major with panels == false. The element number is the row-major index
 * n * K + k, so that the layout does not change the numbers; pads are zero. */
typedef struct random_normal_args {
    float *w;
    random_key key;
    int64_t N, K;
    float std;
    bool panels;
} random_normal_args;

typedef moe_err (*random_normal_fn)(const random_normal_args *a, moe_stream *s);

#endif
