/* Token embedding: the definition (kernels/embedding.h). Owns nothing, runs on the calling thread.
 * Rule: ids are checked before anything is written. */
#include "kernels/embedding.h"

#include "kernels/matmul.h"
#include "kernels/tables.h"

static moe_err check_ids(const embedding_args *a)
{
    for (int64_t t = 0; t < a->T; t++)
        if (a->id[t] < 0 || a->id[t] >= a->V)
            return moe_fail(MOE_E_DATA, "embedding: token %lld has id %d, expected 0 to %d (the vocabulary)", (long long)t,
                            (int)a->id[t], a->V - 1);
    return MOE_OK;
}

static size_t table_at(const embedding_args *a, int64_t id, int d)
{
    return a->panels ? panel_index(id, d, a->D) : (size_t)id * (size_t)a->D + (size_t)d;
}

moe_err embedding_forward_ref(const embedding_args *a, moe_stream *s)
{
    (void)s;
    TRY(check_ids(a));
    for (int64_t t = 0; t < a->T; t++)
        for (int d = 0; d < a->D; d++)
            a->x[(size_t)t * (size_t)a->D + (size_t)d] = a->table[table_at(a, a->id[t], d)];
    return MOE_OK;
}

moe_err embedding_backward_ref(const embedding_args *a, moe_stream *s)
{
    (void)s;
    TRY(check_ids(a));
    for (int64_t t = 0; t < a->T; t++)
        for (int d = 0; d < a->D; d++)
            a->dtable[table_at(a, a->id[t], d)] += a->x[(size_t)t * (size_t)a->D + (size_t)d];
    return MOE_OK;
}
