/* Counter-based random numbers: the value depends only on (seed, tensor, element, step), never on order or threads.
 * Philox4x32-10 (Salmon et al., SC'11) with key = (seed low, seed high) and counter = (element low, element high, tensor, step);
 * normals by Box-Muller with the project's own log, sqrt, sin and cos.
 *
 * A tensor of normals (N, K): element (n, k) is number k % 4 of the four that counter n * ceil(K / 4) + k / 4 gives, so the layout
 * does not change the numbers. The four of words w0 .. w3:
 *   pair (w0, w1) gives numbers 0, 1 and pair (w2, w3) numbers 2, 3:  u = ((a >> 8) + 1) / 2^24 in (0, 1],  x = (b >> 8) / 2^23 in [0, 2)
 *   r = sqrt(-2 log u) (at most 5.77);  std * (r * cos(pi x)),  std * (r * sin(pi x)) */
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
/* Uniform in [0, 1), 53 bits: words 0 (high) and 1 of the counter. */
double random_uniform(random_key key, uint64_t element);

/* Normal(0, std) into panels (N, K) of matmul.h, or row-major with panels == false; pads are zero. */
typedef struct random_normal_args {
    float *w;
    random_key key;
    int64_t N, K;
    float std;
    bool panels;
} random_normal_args;

typedef moe_err (*random_normal_fn)(const random_normal_args *a, moe_stream *s);

#endif
