/* Sum of squares and addition: the definition (kernels/reduce.h). Owns nothing, runs on the calling thread.
 * Rule: the chunk, the lanes and the tree are the contract; the gradient norm of a run is made of these bits. */
#include "kernels/reduce.h"

#include <math.h>

#include "kernels/ref/lanes.h"
#include "kernels/tables.h"

static double chunk_squares(const float *x, size_t n)
{
    double lane[LANES] = {0};
    for (size_t i = 0; i < n; i++)
        lane[i % LANES] = fma((double)x[i], (double)x[i], lane[i % LANES]);
    for (int half = LANES / 2; half >= 1; half /= 2)
        for (int i = 0; i < half; i++)
            lane[i] += lane[i + half];
    return lane[0];
}

moe_err sum_squares_ref(const sum_squares_args *a, moe_stream *s)
{
    double sum = 0.0;
    (void)s;
    for (size_t i = 0; i < a->n; i += SUM_SQUARES_CHUNK)
        sum += chunk_squares(a->x + i, a->n - i < SUM_SQUARES_CHUNK ? a->n - i : SUM_SQUARES_CHUNK);
    *a->out = sum;
    return MOE_OK;
}

moe_err add_ref(const add_args *a, moe_stream *s)
{
    (void)s;
    for (size_t i = 0; i < a->n; i++)
        a->y[i] += a->x[i];
    return MOE_OK;
}
