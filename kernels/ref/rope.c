/* Rotary position embedding: the definition (kernels/rope.h), and the table that both versions read. Owns nothing.
 * Split over tokens; every element is its own formula, so nothing here has an order.
 * Rule: the rounding of the four lines in rotate_head is the contract. */
#include "kernels/rope.h"

#include <math.h>

#include "kernels/math.h"
#include "kernels/tables.h"

static void rotate_head(float *x, const float *cosine, const float *sine, int half, bool inverse, bool interleaved)
{
    for (int i = 0; i < half; i++) {
        const int first = interleaved ? 2 * i : i, second = interleaved ? 2 * i + 1 : i + half;
        const float a = x[first], b = x[second], s = inverse ? -sine[i] : sine[i];
        x[first] = fmaf(a, cosine[i], -(b * s));
        x[second] = fmaf(b, cosine[i], a * s);
    }
}

static void rotate_tokens(void *ctx, int64_t begin, int64_t end, int worker)
{
    const rope_args *a = ctx;
    const size_t half = (size_t)rope_width(a) / 2;
    (void)worker;
    for (int64_t t = begin; t < end; t++) {
        const float *cosine = a->table + (size_t)(t % a->S) * half, *sine = cosine + (size_t)a->S * half;
        for (size_t h = 0; h < (size_t)a->heads; h++)
            rotate_head(a->x + (size_t)t * a->ld + h * (size_t)a->hd, cosine, sine, (int)half, a->inverse, a->interleaved);
    }
}

moe_err rope_ref(const rope_args *a, moe_stream *s)
{
    moe_pool_for(s->pool, a->T, 16, rotate_tokens, (void *)a);
    return MOE_OK;
}

void rope_row(float *cosine, float *sine, int64_t position, int rotary, const float *inv_freq, float scale)
{
    for (int i = 0; i < rotary / 2; i++) {
        const float angle = (float)position * inv_freq[i]; /* read before sine[i], which may be inv_freq[i], is written */
        cosine[i] = (float)moe_cos((double)angle) * scale;
        sine[i] = (float)moe_sin((double)angle) * scale;
    }
}

void rope_table(float *table, int S, int rotary, const float *inv_freq, float scale)
{
    const size_t half = (size_t)rotary / 2;
    float *cosine = table, *sine = table + (size_t)S * half;
    for (size_t t = 0; t < (size_t)S; t++)
        rope_row(cosine + t * half, sine + t * half, (int64_t)t, rotary, inv_freq, scale);
}
