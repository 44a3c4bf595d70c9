/* Rotary position embedding: the definition (kernels/rope.h), and the table that both versions read. Owns nothing.
 * Split over tokens; every element is its own formula, so nothing here has an order.
 * Rule: the rounding of the four lines in rotate_head is the contract. */
#include "kernels/rope.h"

#include <math.h>

#include "kernels/math.h"
#include "kernels/tables.h"

static void rotate_head(float *x, const float *cosine, const float *sine, int half, bool inverse)
{
    for (int i = 0; i < half; i++) {
        const float a = x[i], b = x[i + half], s = inverse ? -sine[i] : sine[i];
        x[i] = fmaf(a, cosine[i], -(b * s));
        x[i + half] = fmaf(b, cosine[i], a * s);
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
            rotate_head(a->x + (size_t)t * a->ld + h * (size_t)a->hd, cosine, sine, (int)half, a->inverse);
    }
}

moe_err rope_ref(const rope_args *a, moe_stream *s)
{
    moe_pool_for(s->pool, a->T, 16, rotate_tokens, (void *)a);
    return MOE_OK;
}

void rope_table(float *table, int S, int rotary, const float *inv_freq)
{
    const int half = rotary / 2;
    float *cosine = table, *sine = table + (size_t)S * (size_t)half;
    for (int i = 0; i < half; i++) {
        const float frequency = inv_freq[i];
        for (int t = 0; t < S; t++) {
            const float angle = (float)t * frequency;
            cosine[(size_t)t * (size_t)half + (size_t)i] = (float)moe_cos((double)angle);
            sine[(size_t)t * (size_t)half + (size_t)i] = (float)moe_sin((double)angle);
        }
    }
}
