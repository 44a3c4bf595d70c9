/* Counter-based random numbers: the definition (kernels/random.h). Owns nothing, runs on the calling thread.
 * Rule: a number is a function of its counter alone; runs already started depend on every bit of it. */
#include "kernels/random.h"

#include <math.h>

#include "kernels/math.h"
#include "kernels/matmul.h"
#include "kernels/ref/philox.h"
#include "kernels/tables.h"

void random_words(uint32_t out[4], random_key key, uint64_t element)
{
    uint32_t c0 = (uint32_t)element, c1 = (uint32_t)(element >> 32), c2 = key.tensor, c3 = key.step;
    uint32_t k0 = (uint32_t)key.seed, k1 = (uint32_t)(key.seed >> 32);
    for (int round = 0; round < PHILOX_ROUNDS; round++) {
        const uint64_t a = (uint64_t)PHILOX_M0 * c0, b = (uint64_t)PHILOX_M1 * c2;
        c0 = (uint32_t)(b >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)b;
        c2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)a;
        k0 += PHILOX_W0;
        k1 += PHILOX_W1;
    }
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

double random_uniform(random_key key, uint64_t element)
{
    uint32_t w[4];
    random_words(w, key, element);
    return (double)(((uint64_t)w[0] << 32 | w[1]) >> 11) * 0x1p-53;
}

static float normal(const uint32_t pair[2], bool second, float std)
{
    const float u = (float)((pair[0] >> 8) + 1) * 0x1p-24f, x = (float)(pair[1] >> 8) * 0x1p-23f;
    const float r = sqrtf(-2.0f * moe_logf(u));
    return std * (r * (second ? moe_sinpif(x) : moe_cospif(x)));
}

moe_err random_normal_ref(const random_normal_args *a, moe_stream *s)
{
    const int64_t quads = (a->K + 3) / 4, rows = a->panels ? panel_pad(a->N) : a->N;
    (void)s;
    for (int64_t n = 0; n < rows; n++)
        for (int64_t k = 0; k < a->K; k++) {
            uint32_t words[4];
            random_words(words, a->key, (uint64_t)n * (uint64_t)quads + (uint64_t)(k / 4));
            const float value = n < a->N ? normal(words + (k & 2), k & 1, a->std) : 0.0f;
            a->w[a->panels ? panel_index(n, k, a->K) : (size_t)n * (size_t)a->K + (size_t)k] = value;
        }
    return MOE_OK;
}
