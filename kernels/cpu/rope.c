/* Rotary position embedding, fast (kernels/rope.h): sixteen pairs at a time, bound by memory. Owns nothing.
 * Threads: pieces of tokens. Rule: same bits as ref/rope.c; the sign of sin is flipped in the bits, as the definition's negation does. */
#include "kernels/cpu/simd.h"
#include "kernels/tables.h"

enum { ROPE_GRAIN_FLOATS = 16384 }; /* floats rotated in one piece: 64 KiB, some 10 us */

SIMD void rotate_pairs(float *x, const float *cosine, const float *sine, int half, int n, i16 flip)
{
    const v16 a = v16_load_n(x, n), b = v16_load_n(x + half, n), c = v16_load_n(cosine, n);
    const v16 s = i16_float(i16_xor(v16_bits(v16_load_n(sine, n)), flip));
    v16_store_n(x, v16_fma(a, c, v16_neg(v16_mul(b, s))), n);
    v16_store_n(x + half, v16_fma(b, c, v16_mul(a, s)), n);
}

/* Pairs (2i, 2i+1): sorted into two halves, turned, and put back. */
static void rotate_interleaved(float *x, const float *cosine, const float *sine, int half, i16 flip)
{
    for (int i = 0; i < half; i += V16) {
        const int n = half - i < V16 ? half - i : V16;
        float pairs[2 * V16];
        for (int j = 0; j < n; j++)
            pairs[j] = x[2 * (i + j)], pairs[V16 + j] = x[2 * (i + j) + 1];
        rotate_pairs(pairs, cosine + i, sine + i, V16, n, flip);
        for (int j = 0; j < n; j++)
            x[2 * (i + j)] = pairs[j], x[2 * (i + j) + 1] = pairs[V16 + j];
    }
}

static void rotate_tokens(void *ctx, int64_t begin, int64_t end, int worker)
{
    const rope_args *a = ctx;
    const int half = rope_width(a) / 2;
    const i16 flip = i16_set1(a->inverse ? INT32_MIN : 0);
    (void)worker;
    for (int64_t t = begin; t < end; t++) {
        const float *cosine = a->table + (size_t)(t % a->S) * (size_t)half, *sine = cosine + (size_t)a->S * (size_t)half;
        for (size_t h = 0; h < (size_t)a->heads; h++) {
            float *x = a->x + (size_t)t * a->ld + h * (size_t)a->hd;
            if (a->interleaved)
                rotate_interleaved(x, cosine, sine, half, flip);
            for (int i = 0; i < half && !a->interleaved; i += V16)
                rotate_pairs(x + i, cosine + i, sine + i, half, half - i < V16 ? half - i : V16, flip);
        }
    }
}

moe_err ISA(rope)(const rope_args *a, moe_stream *s)
{
    const int64_t width = (int64_t)a->heads * a->hd;
    const int64_t grain = width > 0 && width < ROPE_GRAIN_FLOATS ? ROPE_GRAIN_FLOATS / width : 1;
    moe_pool_for(s->pool, a->T, grain, rotate_tokens, (void *)a);
    return MOE_OK;
}
