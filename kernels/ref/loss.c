/* Cross-entropy: the definition (kernels/loss.h). Owns nothing, runs on the calling thread.
 * Rule: targets are checked before anything is written. */
#include "kernels/loss.h"

#include <math.h>

#include "kernels/math.h"
#include "kernels/ref/lanes.h"
#include "kernels/tables.h"

static moe_err check_targets(const cross_entropy_args *a)
{
    for (int64_t t = 0; t < a->T; t++)
        if (a->target[t] < 0 || a->target[t] >= a->V)
            return moe_fail(MOE_E_DATA, "loss: token %lld has target %d, expected 0 to %d (the vocabulary)", (long long)t,
                            (int)a->target[t], a->V - 1);
    return MOE_OK;
}

static void row_loss(const cross_entropy_args *a, int64_t t)
{
    float *row = a->logits + (size_t)t * a->ld, m = -INFINITY;
    const int target = a->target[t];
    lanes sum = {0};
    for (int v = 0; v < a->V; v++)
        m = row[v] > m ? row[v] : m;
    for (int v = 0; v < a->V; v++)
        lanes_add(&sum, v, moe_expf(row[v] - m));
    const float S = lanes_sum(&sum, a->V), inv = 1.0f / S;
    a->loss[t] = m + moe_logf(S) - row[target];
    if (a->scale == 0.0f)
        return;
    for (int v = 0; v < a->V; v++)
        row[v] = (moe_expf(row[v] - m) * inv - (v == target ? 1.0f : 0.0f)) * a->scale;
    for (size_t v = (size_t)a->V; v < a->ld; v++)
        row[v] = 0.0f;
}

moe_err cross_entropy_ref(const cross_entropy_args *a, moe_stream *s)
{
    (void)s;
    TRY(check_targets(a));
    for (int64_t t = 0; t < a->T; t++)
        row_loss(a, t);
    return MOE_OK;
}
