/* New keys and values into their pages, fast (kernels/paged_attention.h): values and roundings along vectors, keys scattered into
 * their columns. Owns nothing. Split over tokens.
 * Rule: the roundings are those of kernels/kv_page.h. */
#include <string.h>

#include "kernels/cpu/row.h"
#include "kernels/kv_page.h"
#include "kernels/tables.h"

SIMD i16 round_bf16(v16 x)
{
    const i16 u = v16_bits(x), half = i16_add(i16_set1(0x7fff), i16_and(i16_shr(u, 16), i16_set1(1)));
    const v16 rounded = i16_float(i16_shr(i16_add(u, half), 16));
    return v16_bits(v16_select(v16_isnan(x), i16_float(i16_or(i16_shr(u, 16), i16_set1(0x40))), rounded));
}

/* n <= KV_BLOCK numbers; their scale. */
static uint16_t quantise(int8_t *q, const float *x, int n)
{
    v16 top = v16_zero();
    for (int d = 0; d < n; d += V16)
        top = v16_max(v16_abs(row_load(x + d, n - d)), top);
    float inverse;
    const uint16_t scale = kv_scale(v16_max_lane(top), &inverse);
    int32_t wide[KV_BLOCK];
    for (int d = 0; d < n; d += V16)
        i16_store(wide + d, v16_bits(v16_fma(row_load(x + d, n - d), v16_set1(inverse), v16_set1(MATH_ROUND))));
    for (int d = 0; d < n; d++)
        q[d] = (int8_t)(uint8_t)((uint32_t)wide[d] & 255u);
    return scale;
}

static void store_f32(char *head, const kv_layout *l, int place, const float *k, const float *v, int hd)
{
    float *kt = (float *)(void *)head + place;
    for (int d = 0; d < hd; d++)
        kt[(size_t)d * KV_PAGE] = k[d];
    if (v != NULL)
        memcpy(head + l->value + (size_t)place * l->width * sizeof *v, v, (size_t)hd * sizeof *v);
}

static void store_bf16(char *head, const kv_layout *l, int place, const float *k, const float *v, int hd)
{
    uint16_t *kt = (uint16_t *)(void *)head + place, *to = (uint16_t *)(void *)(head + l->value) + (size_t)place * l->width;
    for (int d = 0; d < hd; d += V16) {
        uint16_t key[V16];
        i16_store_u16(key, round_bf16(row_load(k + d, hd - d)));
        if (v != NULL)
            i16_store_u16(to + d, round_bf16(row_load(v + d, hd - d))); /* the row is padded */
        for (int i = 0; i < V16 && d + i < hd; i++)
            kt[(size_t)(d + i) * KV_PAGE] = key[i];
    }
}

static void store_q8(char *head, const kv_layout *l, int place, const float *k, const float *v, int hd)
{
    int8_t *kt = (int8_t *)head + place, *to = (int8_t *)(head + l->value) + (size_t)place * l->width;
    uint16_t *key_scale = (uint16_t *)(void *)(head + l->key_scale) + place;
    uint16_t *value_scale = (uint16_t *)(void *)(head + l->value_scale) + (size_t)place * (size_t)l->blocks;
    for (int d = 0, b = 0; d < hd; d += KV_BLOCK, b++) {
        const int n = hd - d < KV_BLOCK ? hd - d : KV_BLOCK;
        int8_t key[KV_BLOCK];
        key_scale[(size_t)b * KV_PAGE] = quantise(key, k + d, n);
        if (v != NULL)
            value_scale[b] = quantise(to + d, v + d, n);
        for (int i = 0; i < n; i++)
            kt[(size_t)(d + i) * KV_PAGE] = key[i];
    }
}

static void store_tokens(void *ctx, int64_t begin, int64_t end, int worker)
{
    const kv_store_args *a = ctx;
    const kv_layout l = kv_layout_of(a->format, a->hd, a->hdv);
    (void)worker;
    for (int64_t t = begin; t < end; t++)
        for (int h = 0; h < a->Hkv; h++) {
            char *head = (char *)a->page[t] + (size_t)h * l.head;
            const size_t at = (size_t)t * a->ldk + (size_t)h * (size_t)a->hd;
            const int place = a->pos[t] % KV_PAGE;
            const float *k = a->k + at, *v = a->hdv > 0 ? NULL : a->v + at; /* NULL: a part of the key */
            if (a->format == NUM_F32)
                store_f32(head, &l, place, k, v, a->hd);
            else if (a->format == NUM_BF16)
                store_bf16(head, &l, place, k, v, a->hd);
            else
                store_q8(head, &l, place, k, v, a->hd);
        }
}

moe_err ISA(kv_store)(const kv_store_args *a, moe_stream *s)
{
    TRY(kv_check("kv store", a->format, a->Hkv, a->Hkv, a->hd, a->hdv));
    moe_pool_for(s->pool, a->T, 16, store_tokens, (void *)a);
    return MOE_OK;
}
