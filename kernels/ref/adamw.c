/* AdamW: the definition (kernels/adamw.h), element by element, step by step. Owns the scalars of a step, which the fast versions
 * share. Runs on the calling thread.
 * Rule: an operation here is one rounding of the contract; tests/kernels/test_adamw.c compares every version bit by bit. */
#include "kernels/adamw.h"

#include <math.h>
#include <string.h>

#include "kernels/halves.h"
#include "kernels/random.h"
#include "kernels/tables.h"

static double power(double base, uint64_t exponent)
{
    double result = 1.0;
    for (; exponent != 0; exponent >>= 1, base *= base)
        if (exponent & 1)
            result *= base;
    return result;
}

adamw_scalars adamw_scalars_of(const adamw_step *step, bool decay)
{
    const double bias1 = 1.0 - power(step->beta1, step->step), bias2 = 1.0 - power(step->beta2, step->step);
    adamw_scalars k = {
        .clip = (float)step->clip,
        .decay = decay ? (float)(1.0 - step->lr * step->weight_decay) : 1.0f,
        .c1 = (float)(1.0 - step->beta1),
        .c2 = (float)(1.0 - step->beta2),
        .beta2 = (float)step->beta2,
        .minus_size = (float)-(step->lr / bias1),
        .root2 = (float)sqrt(bias2),
        .eps = (float)step->eps,
    };
    k.from_g = k.c1 >= 0.5f;
    if (k.from_g)
        k.c1 -= 1.0f;
    return k;
}

static float weight(adamw_weights w, size_t i) { return w.w != NULL ? w.w[i] : halves_number(w.near[i], w.rest[i]); }

static void set_weight(adamw_weights w, size_t i, float x)
{
    if (w.w != NULL) {
        w.w[i] = x;
        return;
    }
    w.near[i] = halves_near(x);
    w.rest[i] = halves_rest(x);
}

static void element_step(float *w, float *m, float *v, float grad, const adamw_scalars *k)
{
    const float g = k->clip * grad;
    *w = *w * k->decay;
    *m = fmaf(k->c1, g - *m, k->from_g ? g : *m);
    *v = fmaf(k->c2 * g, g, *v * k->beta2);
    *w = *w + k->minus_size * *m / (sqrtf(*v) / k->root2 + k->eps);
}

moe_err adamw_ref(const adamw_args *a, moe_stream *s)
{
    (void)s;
    for (int j = 0; j < a->nsteps; j++) {
        const adamw_scalars k = adamw_scalars_of(&a->steps[j], a->decay);
        for (size_t i = 0; i < a->n; i++) {
            float w = weight(a->w, i);
            element_step(&w, &a->m[i], &a->v[i], j == 0 && a->grad != NULL ? a->grad[i] : 0.0f, &k);
            set_weight(a->w, i, w);
        }
    }
    return MOE_OK;
}

uint16_t adamw_round_bf16(float x, uint32_t bits)
{
    const uint32_t infinite = 0x7f800000u, largest = 0x7f7f0000u;
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    const uint32_t sign = u & 0x80000000u, size = u ^ sign;
    if (size > infinite)
        return 0x7fc0;
    uint32_t rounded = size + bits;
    if (size < infinite && rounded >= infinite)
        rounded = largest;
    return (uint16_t)((sign | rounded) >> 16);
}

static float widen(uint16_t x)
{
    const uint32_t u = (uint32_t)x << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

moe_err adamw_bf16_ref(const adamw_bf16_args *a, moe_stream *s)
{
    (void)s;
    for (int j = 0; j < a->nsteps; j++) {
        const adamw_scalars k = adamw_scalars_of(&a->steps[j], a->decay);
        const random_key key = {a->seed, a->section, (uint32_t)a->steps[j].step};
        for (size_t i = 0; i < a->n; i++) {
            uint32_t words[4];
            float w = weight(a->w, i), m = widen(a->m[i]), v = widen(a->v[i]);
            element_step(&w, &m, &v, j == 0 && a->grad != NULL ? a->grad[i] : 0.0f, &k);
            set_weight(a->w, i, w);
            random_words(words, key, i / 64 * 16 + i % 16);
            a->m[i] = adamw_round_bf16(m, words[i % 64 / 16] & 0xffff);
            a->v[i] = adamw_round_bf16(v, words[i % 64 / 16] >> 16);
        }
    }
    return MOE_OK;
}
