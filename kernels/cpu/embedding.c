/* Token embedding, fast (kernels/embedding.h). Owns nothing. Forward is parallel over tokens; backward is a chain over tokens, so it
 * is parallel over columns and every piece walks all tokens.
 * Rule: ids are checked before anything is written; the reference names the wrong one. */
#include "kernels/embedding.h"

#include <string.h>

#include "kernels/cpu/row.h"
#include "kernels/matmul.h"
#include "kernels/tables.h"

static bool ids_exist(const embedding_args *a)
{
    uint32_t most = 0; /* a negative id is a huge one */
    for (int64_t t = 0; t < a->T; t++)
        most = (uint32_t)a->id[t] > most ? (uint32_t)a->id[t] : most;
    return a->T <= 0 || most < (uint32_t)a->V;
}

static void forward_tokens(void *ctx, int64_t begin, int64_t end, int worker)
{
    const embedding_args *a = ctx;
    const size_t D = (size_t)a->D;
    (void)worker;
    for (int64_t t = begin; t < end; t++) {
        float *x = a->x + (size_t)t * D;
        if (a->panels) {
            const float *column = a->table + panel_index(a->id[t], 0, a->D);
            for (size_t d = 0; d < D; d++)
                x[d] = column[d * PANEL];
        } else {
            memcpy(x, a->table + (size_t)a->id[t] * D, D * sizeof *x);
        }
    }
}

moe_err ISA(embedding_forward)(const embedding_args *a, moe_stream *s)
{
    if (!ids_exist(a))
        return embedding_forward_ref(a, s);
    moe_pool_for(s->pool, a->T, row_grain(a->D), forward_tokens, (void *)a);
    return MOE_OK;
}

/* Pieces of columns [begin, end). */
static void backward_columns(void *ctx, int64_t begin, int64_t end, int worker)
{
    const embedding_args *a = ctx;
    const size_t D = (size_t)a->D;
    (void)worker;
    for (int64_t t = 0; t < a->T; t++) {
        const float *x = a->x + (size_t)t * D;
        if (a->panels) {
            float *column = a->dtable + panel_index(a->id[t], 0, a->D);
            for (int64_t d = begin; d < end; d++)
                column[d * PANEL] += x[d];
        } else {
            float *row = a->dtable + (size_t)a->id[t] * D;
            for (int64_t d = begin; d < end; d += V16)
                row_store(row + d, v16_add(row_load(row + d, end - d), row_load(x + d, end - d)), end - d);
        }
    }
}

moe_err ISA(embedding_backward)(const embedding_args *a, moe_stream *s)
{
    if (!ids_exist(a))
        return embedding_backward_ref(a, s);
    const int pieces = moe_pool_threads(s->pool) > 1 ? 2 * moe_pool_threads(s->pool) : 1; /* two a thread: one may be late */
    moe_pool_for(s->pool, a->D, panel_pad((a->D + pieces - 1) / pieces), backward_columns, (void *)a);
    return MOE_OK;
}
