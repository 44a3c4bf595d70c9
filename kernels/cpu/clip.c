/* Clamping: the definition's loop over pieces, vectorised by the compiler (kernels/clip.h). */
#include "kernels/cpu/simd.h"
#include "kernels/tables.h"

enum { CLIP_PIECE = 65536 }; /* elements a worker takes at a time */

static void forward_piece(void *ctx, int64_t begin, int64_t end, int worker)
{
    const clip_args *a = ctx;
    (void)worker;
    for (int64_t i = begin; i < end; i++) {
        const float x = a->x[i] < a->limit ? a->x[i] : a->limit;
        a->x[i] = x > -a->limit ? x : -a->limit;
    }
}

static void backward_piece(void *ctx, int64_t begin, int64_t end, int worker)
{
    const clip_args *a = ctx;
    (void)worker;
    for (int64_t i = begin; i < end; i++)
        a->x[i] = a->kept[i] > -a->limit && a->kept[i] < a->limit ? a->x[i] : 0.0f;
}

moe_err ISA(clip_forward)(const clip_args *a, moe_stream *s)
{
    moe_pool_for(s->pool, (int64_t)a->n, CLIP_PIECE, forward_piece, (void *)a);
    return MOE_OK;
}

moe_err ISA(clip_backward)(const clip_args *a, moe_stream *s)
{
    moe_pool_for(s->pool, (int64_t)a->n, CLIP_PIECE, backward_piece, (void *)a);
    return MOE_OK;
}
