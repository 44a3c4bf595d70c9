/* Token embedding. forward x[t, :] = table[id[t], :]. backward dtable[id[t], :] += dx[t, :], one chain of additions per element
 * over the tokens in order. The table is row-major [V, D], or in panels (matmul.h) when it is tied to the output head.
 * An id outside [0, V) is MOE_E_DATA and names the first such token; nothing is written then. */
#ifndef MOE_KERNELS_EMBEDDING_H
#define MOE_KERNELS_EMBEDDING_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/stream.h"

typedef struct embedding_args {
    float *x;           /* [T, D] forward out; backward in (dx)       */
    const float *table; /* forward                                    */
    float *dtable;      /* backward, continued                        */
    const int32_t *id;  /* [T]                                        */
    int64_t T;
    int V, D;
    bool panels;
} embedding_args;

typedef moe_err (*embedding_fn)(const embedding_args *a, moe_stream *s);

#endif
