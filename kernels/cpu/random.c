/* Normals for the initial weights, fast (kernels/random.h): sixteen counters at a time, 64 numbers. Owns nothing. In panels the
 * lanes are sixteen rows of one column block, so four vectors are stored as they are; row-major takes sixteen counters of one row and
 * transposes. Parallel over panels or rows.
 * Rule: same bits as ref/random.c. */
#include "kernels/random.h"

#include "kernels/cpu/philox.h"
#include "kernels/cpu/row.h"
#include "kernels/cpu/vmath.h"
#include "kernels/matmul.h"
#include "kernels/tables.h"

/* Box-Muller of sixteen pairs. */
SIMD void pair_normals(v16 out[2], i16 a, i16 b, v16 std)
{
    const v16 u = v16_mul(i16_to_v16(i16_add(i16_shr(a, 8), i16_set1(1))), v16_set1(0x1p-24f));
    const v16 x = v16_mul(i16_to_v16(i16_shr(b, 8)), v16_set1(0x1p-23f));
    const v16 r = v16_sqrt(v16_mul(v16_set1(-2.0f), v16_log(u)));
    v16 sine, cosine;
    v16_sincospi(x, &sine, &cosine);
    out[0] = v16_mul(std, v16_mul(r, cosine));
    out[1] = v16_mul(std, v16_mul(r, sine));
}

/* out[j]: number j of the sixteen counters. */
SIMD void quad_normals(v16 out[4], counters at, const random_normal_args *a)
{
    i16 word[4];
    philox(word, at, a->key);
    pair_normals(out, word[0], word[1], v16_set1(a->std));
    pair_normals(out + 2, word[2], word[3], v16_set1(a->std));
}

static void fill_panels(void *ctx, int64_t begin, int64_t end, int worker)
{
    const random_normal_args *a = ctx;
    const int64_t quads = (a->K + 3) / 4;
    (void)worker;
    for (int64_t p = begin; p < end; p++) {
        int32_t low[PANEL], high[PANEL];
        for (int64_t i = 0; i < PANEL; i++) {
            const uint64_t first = (uint64_t)(p * PANEL + i) * (uint64_t)quads;
            low[i] = (int32_t)(uint32_t)first;
            high[i] = (int32_t)(uint32_t)(first >> 32);
        }
        const counters row = {i16_load(low), i16_load(high)};
        const int64_t left = a->N - p * PANEL;
        float *w = a->w + (size_t)p * PANEL * (size_t)a->K;
        for (int64_t quad = 0; quad < quads; quad++) {
            v16 out[4];
            quad_normals(out, counters_add(row, i16_set1((int32_t)(uint32_t)quad)), a);
            for (int64_t k = quad * 4; k < quad * 4 + 4 && k < a->K; k++)
                v16_store(w + k * PANEL, row_pad(out[k % 4], left, 0.0f));
        }
    }
}

static void fill_rows(void *ctx, int64_t begin, int64_t end, int worker)
{
    const random_normal_args *a = ctx;
    const int64_t quads = (a->K + 3) / 4;
    (void)worker;
    for (int64_t n = begin; n < end; n++)
        for (int64_t quad = 0; quad < quads; quad += V16) {
            const uint64_t first = (uint64_t)n * (uint64_t)quads + (uint64_t)quad;
            const counters at = {i16_set1((int32_t)(uint32_t)first), i16_set1((int32_t)(uint32_t)(first >> 32))};
            const int64_t left = a->K - quad * 4 < 4 * V16 ? a->K - quad * 4 : 4 * V16;
            float *w = a->w + (size_t)n * (size_t)a->K + (size_t)quad * 4, flat[4][V16];
            v16 out[4];
            quad_normals(out, counters_add(at, i16_iota()), a);
            for (int j = 0; j < 4; j++)
                v16_store(flat[j], out[j]);
            for (int64_t k = 0; k < left; k++)
                w[k] = flat[k % 4][k / 4];
        }
}

moe_err ISA(random_normal)(const random_normal_args *a, moe_stream *s)
{
    if (a->panels)
        moe_pool_for(s->pool, panel_pad(a->N) / PANEL, 1, fill_panels, (void *)a);
    else
        moe_pool_for(s->pool, a->N, row_grain(a->K), fill_rows, (void *)a);
    return MOE_OK;
}
