/* Cross-entropy of one chunk of tokens; the caller makes the logits chunk by chunk, so no [T, V] matrix exists.
 *   m = max(logits[t]),  e[v] = exp(logits[t, v] - m),  S = sum of e over v
 *   loss[t] = (m + log(S)) - logits[t, target[t]]                            nats
 *   dlogits[t, v] = (e[v] * (1 / S) - (v == target[t])) * scale              in place of the logits, when scale != 0
 * Order of sums: e in 16 lanes and the tree of reduce.h. With scale 0 the logits stay as they are; else columns V .. ld-1 are written
 * as zero (what they hold on input is not read). A NaN among the logits makes the loss NaN.
 * A target outside [0, V) is MOE_E_DATA and names the first such token; nothing is written then. */
#ifndef MOE_KERNELS_LOSS_H
#define MOE_KERNELS_LOSS_H

#include <stdint.h>

#include "kernels/stream.h"

typedef struct cross_entropy_args {
    float *logits;         /* [T, ld] in; out: dlogits when scale != 0 */
    float *loss;           /* [T] out                                  */
    const int32_t *target; /* [T]                                      */
    size_t ld;
    int64_t T;
    int V;
    float scale;           /* 1 / targets of the step                  */
} cross_entropy_args;

typedef moe_err (*cross_entropy_fn)(const cross_entropy_args *a, moe_stream *s);

#endif
