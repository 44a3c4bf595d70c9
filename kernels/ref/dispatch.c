/* Dispatch, gather and combine: the definition (kernels/dispatch.h). Owns nothing, runs on the calling thread.
 * Rule: ids are checked before anything is written; a wrong one is the router's or the file's fault and is never repaired. */
#include "kernels/dispatch.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "kernels/tables.h"

static moe_err check_ids(const dispatch_args *a)
{
    if (a->K > 0 && a->T > INT32_MAX / a->K)
        return moe_fail(MOE_E_CONFIG,
                        "dispatch: %lld tokens x %d choices are too many rows, at most %d; use smaller micro-batches",
                        (long long)a->T, a->K, INT32_MAX);
    for (int64_t i = 0; i < a->T * a->K; i++)
        if (a->ids[i] < 0 || a->ids[i] >= a->E)
            return moe_fail(MOE_E_DATA, "dispatch: token %lld, choice %d: expert %d does not exist, expected 0 to %d",
                            (long long)(i / a->K), (int)(i % a->K), (int)a->ids[i], a->E - 1);
    return MOE_OK;
}

/* May choice i of expert e have a row? `taken` counts the expert's rows of the set that token t belongs to. */
static bool has_room(const dispatch_args *a, int64_t i, int32_t *taken, int64_t *set)
{
    if (a->capacity <= 0)
        return true;
    const int64_t now = i / a->K / a->set_tokens;
    if (now != *set)
        *taken = 0;
    *set = now;
    return (*taken)++ < a->capacity;
}

moe_err dispatch_ref(const dispatch_args *a, moe_stream *s)
{
    (void)s;
    TRY(check_ids(a));
    int32_t row = 0;
    for (int e = 0; e < a->E; e++) {
        int32_t taken = 0;
        int64_t set = 0;
        a->offset[e] = row;
        for (int64_t i = 0; i < a->T * a->K; i++) {
            if (a->ids[i] != e)
                continue;
            if (!has_room(a, i, &taken, &set)) {
                a->row_of[i] = -1;
                continue;
            }
            a->row_token[row] = (int32_t)(i / a->K);
            a->row_slot[row] = (int32_t)i;
            a->row_of[i] = row++;
        }
    }
    a->offset[a->E] = row;
    return MOE_OK;
}

moe_err gather_ref(const gather_args *a, moe_stream *s)
{
    (void)s;
    for (int64_t i = 0; i < a->n; i++)
        memcpy(a->dst + (size_t)i * (size_t)a->D, a->src + (size_t)a->row_token[i] * a->ld, (size_t)a->D * sizeof *a->dst);
    return MOE_OK;
}

moe_err combine_ref(const combine_args *a, moe_stream *s)
{
    const size_t D = (size_t)a->D;
    (void)s;
    for (size_t t = 0; t < (size_t)a->T; t++)
        for (size_t d = 0; d < D; d++) {
            float sum = 0.0f;
            for (size_t slot = t * (size_t)a->K; slot < (t + 1) * (size_t)a->K; slot++)
                if (a->row_of[slot] >= 0)
                    sum = fmaf(a->weight != NULL ? a->weight[slot] : 1.0f, a->rows[(size_t)a->row_of[slot] * D + d], sum);
            a->out[t * D + d] = a->base != NULL ? sum + a->base[t * D + d] : sum;
        }
    return MOE_OK;
}
