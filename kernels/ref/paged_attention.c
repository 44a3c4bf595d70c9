/* Attention over pages: the definition (kernels/paged_attention.h), and the sizes that all versions share. One query row at a time, the keys
 * of a page read back as they were stored. Owns nothing. Split over tokens (store) and over (token, head).
 * Rule: the chains are those of ref/attention.c, forward; the roundings are those of kv_page.h. */
#include "kernels/paged_attention.h"

#include <math.h>
#include <string.h>

#include "kernels/kv_page.h"
#include "kernels/ref/lanes.h"
#include "kernels/tables.h"

moe_err kv_check(const char *what, numfmt f, int H, int Hkv, int hd, int hdv)
{
    if (f != NUM_F32 && f != NUM_BF16 && f != NUM_Q8_0)
        return moe_fail(MOE_E_CONFIG, "%s: keys and values are stored as f32, bf16 or q8_0, not in format %d", what, (int)f);
    if (H < 1 || Hkv < 1 || H % Hkv != 0)
        return moe_fail(MOE_E_CONFIG, "%s: %d query heads cannot share %d key heads; expected a multiple", what, H, Hkv);
    if (hd < 1 || hd > ATTENTION_MAX_HD)
        return moe_fail(MOE_E_CONFIG, "%s: head width %d is not in 1 to %d", what, hd, (int)ATTENTION_MAX_HD);
    if (hdv < 0 || hdv >= hd)
        return moe_fail(MOE_E_CONFIG, "%s: %d numbers of a key of %d are its value; expected fewer than all, or 0", what, hdv, hd);
    return MOE_OK;
}

size_t kv_page_bytes(numfmt f, int Hkv, int hd, int hdv) { return kv_layout_of(f, hd, hdv).head * (size_t)Hkv; }

/* n numbers of a key or value, `step` numbers apart; scales `scale_step` apart. */
typedef struct kv_vector {
    char *at;
    uint16_t *scale;
    size_t step, scale_step;
} kv_vector;

static kv_vector key_of(const void *page, const kv_layout *l, int head, int place)
{
    char *base = (char *)page + (size_t)head * l->head;
    return (kv_vector){base + (size_t)place * l->size, (uint16_t *)(void *)(base + l->key_scale) + place, KV_PAGE, KV_PAGE};
}

static kv_vector value_of(const void *page, const kv_layout *l, int head, int place)
{
    char *base = (char *)page + (size_t)head * l->head;
    return (kv_vector){base + l->value + (size_t)place * l->width * l->size,
                       (uint16_t *)(void *)(base + l->value_scale) + (size_t)place * (size_t)l->blocks, 1, 1};
}

static void put_plain(kv_vector to, const float *x, int n, numfmt f)
{
    for (size_t d = 0; d < (size_t)n; d++) {
        if (f == NUM_F32)
            ((float *)(void *)to.at)[d * to.step] = x[d];
        else
            ((uint16_t *)(void *)to.at)[d * to.step] = kv_to_bf16(x[d]);
    }
}

static void put_blocks(kv_vector to, const float *x, int n)
{
    for (int first = 0; first < n; first += KV_BLOCK) {
        const int end = first + KV_BLOCK < n ? first + KV_BLOCK : n;
        float top = 0.0f, inverse;
        for (int d = first; d < end; d++)
            top = fabsf(x[d]) > top ? fabsf(x[d]) : top;
        to.scale[(size_t)(first / KV_BLOCK) * to.scale_step] = kv_scale(top, &inverse);
        for (int d = first; d < end; d++)
            ((int8_t *)to.at)[(size_t)d * to.step] = kv_quantum(x[d], inverse);
    }
}

static void put(kv_vector to, const float *x, int n, numfmt f)
{
    if (f == NUM_Q8_0)
        put_blocks(to, x, n);
    else
        put_plain(to, x, n, f);
}

static void get(float *x, kv_vector from, int n, numfmt f)
{
    for (size_t d = 0; d < (size_t)n; d++) {
        if (f == NUM_F32)
            x[d] = ((const float *)(const void *)from.at)[d * from.step];
        else if (f == NUM_BF16)
            x[d] = kv_from_bf16(((const uint16_t *)(const void *)from.at)[d * from.step]);
        else
            x[d] = (float)((const int8_t *)from.at)[d * from.step] * kv_from_bf16(from.scale[d / KV_BLOCK * from.scale_step]);
    }
}

static void store_tokens(void *ctx, int64_t begin, int64_t end, int worker)
{
    const kv_store_args *a = ctx;
    const kv_layout l = kv_layout_of(a->format, a->hd, a->hdv);
    (void)worker;
    for (int64_t t = begin; t < end; t++)
        for (int h = 0; h < a->Hkv; h++) {
            const size_t at = (size_t)t * a->ldk + (size_t)h * (size_t)a->hd;
            put(key_of(a->page[t], &l, h, a->pos[t] % KV_PAGE), a->k + at, a->hd, a->format);
            if (a->hdv == 0)
                put(value_of(a->page[t], &l, h, a->pos[t] % KV_PAGE), a->v + at, a->hd, a->format);
        }
}

moe_err kv_store_ref(const kv_store_args *a, moe_stream *s)
{
    TRY(kv_check("kv store", a->format, a->Hkv, a->Hkv, a->hd, a->hdv));
    moe_pool_for(s->pool, a->T, 8, store_tokens, (void *)a);
    return MOE_OK;
}

/* The running maximum and sum of one row. */
typedef struct running {
    float m, l;
} running;

/* Keys [low, n) of one page. */
static void attend_page(float *o, running *r, const float *q, const void *page, const kv_layout *lay, int head, int low, int n,
                        const paged_attention_args *a)
{
    const int width = a->hdv > 0 ? a->hdv : a->hd;
    float s[KV_PAGE], x[ATTENTION_MAX_HD], top = r->m;
    lanes sum = {{0}};
    for (int j = low; j < n; j++) {
        float dot = 0.0f;
        get(x, key_of(page, lay, head, j), a->hd, a->format);
        for (int d = 0; d < a->hd; d++)
            dot = fmaf(q[d], x[d], dot);
        s[j] = dot * a->scale;
        top = s[j] > top ? s[j] : top;
    }
    const float c = moe_expf(r->m - top);
    for (int d = 0; d < width; d++)
        o[d] *= c;
    for (int j = low; j < n; j++) {
        const float p = moe_expf(s[j] - top);
        lanes_add(&sum, j, p);
        get(x, a->hdv > 0 ? key_of(page, lay, head, j) : value_of(page, lay, head, j), width, a->format);
        for (int d = 0; d < width; d++)
            o[d] = fmaf(p, x[d], o[d]);
    }
    *r = (running){top, fmaf(r->l, c, lanes_sum(&sum, n))};
}

static void attend_heads(void *ctx, int64_t begin, int64_t end, int worker)
{
    const paged_attention_args *a = ctx;
    const kv_layout lay = kv_layout_of(a->format, a->hd, a->hdv);
    const int width = a->hdv > 0 ? a->hdv : a->hd;
    const size_t head_q = a->head_q > 0 ? a->head_q : (size_t)a->hd, head_o = a->head_o > 0 ? a->head_o : (size_t)width;
    (void)worker;
    for (int64_t n = begin; n < end; n++) {
        const size_t t = (size_t)(n / a->H), h = (size_t)(n % a->H);
        float *o = a->o + t * a->ldo + h * head_o;
        const int oldest = a->window > 0 && a->pos[t] >= a->window ? a->pos[t] - a->window + 1 : 0;
        running r = a->sinks != NULL ? (running){a->sinks[h], 1.0f} : (running){-INFINITY, 0.0f};
        memset(o, 0, sizeof *o * (size_t)width);
        for (int first = oldest / KV_PAGE * KV_PAGE; first <= a->pos[t]; first += KV_PAGE) {
            const int keys = a->pos[t] - first + 1 < KV_PAGE ? a->pos[t] - first + 1 : KV_PAGE, low = oldest > first ? oldest - first : 0;
            attend_page(o, &r, a->q + t * a->ldq + h * head_q, a->pages[t][first / KV_PAGE], &lay, (int)h / (a->H / a->Hkv), low, keys,
                        a);
        }
        const float inverse = 1.0f / r.l;
        for (int d = 0; d < width; d++)
            o[d] = fmaf(o[d], inverse, 0.0f);
    }
}

moe_err paged_attention_ref(const paged_attention_args *a, moe_stream *s)
{
    TRY(kv_check("paged attention", a->format, a->H, a->Hkv, a->hd, a->hdv));
    moe_pool_for(s->pool, a->T * a->H, 1, attend_heads, (void *)a);
    return MOE_OK;
}
