/* Cross-entropy, fast (kernels/loss.h): three passes over a row that stays in the cache: maximum; exp, kept in place of the logits when
 * the gradient is wanted, and its sum; scaling. Owns nothing. Parallel over tokens.
 * Rule: same bits as ref/loss.c; the target's logit is read before the row is overwritten. */
#include "kernels/loss.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "kernels/cpu/row.h"
#include "kernels/cpu/vmath.h"
#include "kernels/tables.h"

static bool targets_exist(const cross_entropy_args *a)
{
    uint32_t most = 0; /* a negative target is a huge one */
    for (int64_t t = 0; t < a->T; t++)
        most = (uint32_t)a->target[t] > most ? (uint32_t)a->target[t] : most;
    return a->T <= 0 || most < (uint32_t)a->V;
}

/* Four chains: the order does not matter to a maximum. A NaN is skipped here and caught by exp. */
static float row_max(const float *row, int V)
{
    v16 m[4] = {v16_set1(-INFINITY), v16_set1(-INFINITY), v16_set1(-INFINITY), v16_set1(-INFINITY)};
    int v = 0;
    for (; v + 4 * V16 <= V; v += 4 * V16)
        for (int j = 0; j < 4; j++)
            m[j] = v16_max(v16_load(row + v + j * V16), m[j]);
    for (; v < V; v += V16)
        m[0] = v16_max(row_pad(row_load(row + v, V - v), V - v, -INFINITY), m[0]);
    return v16_max_lane(v16_max(v16_max(m[0], m[1]), v16_max(m[2], m[3])));
}

/* The sum of exp(row - m); `keep` stores the exponentials. */
SIMD float row_exp(float *row, int V, float m, bool keep)
{
    v16 sum = v16_zero();
    for (int v = 0; v < V; v += V16) {
        const v16 e = row_pad(v16_exp(v16_sub(row_load(row + v, V - v), v16_set1(m))), V - v, 0.0f);
        sum = v16_add(sum, e);
        if (keep)
            row_store(row + v, e, V - v);
    }
    return v16_sum(sum);
}

static void loss_tokens(void *ctx, int64_t begin, int64_t end, int worker)
{
    const cross_entropy_args *a = ctx;
    (void)worker;
    for (int64_t t = begin; t < end; t++) {
        float *row = a->logits + (size_t)t * a->ld;
        const float m = row_max(row, a->V), target = row[a->target[t]];
        const float S = a->scale == 0.0f ? row_exp(row, a->V, m, false) : row_exp(row, a->V, m, true), inv = 1.0f / S;
        a->loss[t] = m + moe_logf(S) - target;
        if (a->scale == 0.0f)
            continue;
        const float hit = (row[a->target[t]] * inv - 1.0f) * a->scale;
        for (int v = 0; v < a->V; v += V16)
            row_store(row + v, v16_mul(v16_mul(row_load(row + v, a->V - v), v16_set1(inv)), v16_set1(a->scale)), a->V - v);
        row[a->target[t]] = hit;
        memset(row + a->V, 0, (a->ld - (size_t)a->V) * sizeof *row);
    }
}

moe_err ISA(cross_entropy)(const cross_entropy_args *a, moe_stream *s)
{
    if (!targets_exist(a))
        return cross_entropy_ref(a, s);
    moe_pool_for(s->pool, a->T, row_grain(a->V), loss_tokens, (void *)a);
    return MOE_OK;
}
