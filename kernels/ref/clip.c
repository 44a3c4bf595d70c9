/* Clamping: the definition (kernels/clip.h). Owns nothing, runs on the calling thread. */
#include "kernels/tables.h"

moe_err clip_forward_ref(const clip_args *a, moe_stream *s)
{
    (void)s;
    for (size_t i = 0; i < a->n; i++) {
        const float x = a->x[i] < a->limit ? a->x[i] : a->limit;
        a->x[i] = x > -a->limit ? x : -a->limit;
    }
    return MOE_OK;
}

moe_err clip_backward_ref(const clip_args *a, moe_stream *s)
{
    (void)s;
    for (size_t i = 0; i < a->n; i++)
        a->x[i] = a->kept[i] > -a->limit && a->kept[i] < a->limit ? a->x[i] : 0.0f;
    return MOE_OK;
}
