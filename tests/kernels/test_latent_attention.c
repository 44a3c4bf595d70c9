/* Attention over pages whose values are the first numbers of their keys (hdv > 0): the bits of ordinary pages that hold every key once more as its
 * value, in every format, for every backend, however cut, with heads side by side and one after the other. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/paged_attention.h"
#include "tests/kernels/harness.h"

typedef struct shape {
    int S, H, Hkv, hd, hdv, window;
} shape;

static const shape shapes[] = {
    {1, 1, 1, 2, 1, 0}, {65, 16, 1, 48, 32, 0}, {130, 5, 1, 26, 20, 0}, {70, 4, 2, 33, 17, 0}, {66, 20, 1, 576, 512, 0}, {2, 128, 1, 576, 512, 0},
    {150, 6, 1, 40, 8, 90},
};
enum { SHAPES = sizeof shapes / sizeof *shapes };

/* Tokens [0, S) of one sequence in pieces of `cut`, output [S, H, width]; latent: head-major q and o, values in the keys. */
typedef struct latent_run {
    const shape *s;
    numfmt f;
    int cut;
    bool latent;
    const float *q, *k;
    float *o;
} latent_run;

static void run_piece(const moe_backend *b, moe_stream *st, const latent_run *r, void **pages, int first, int n)
{
    const shape *s = r->s;
    const size_t H = (size_t)s->H, hd = (size_t)s->hd, width = r->latent ? (size_t)s->hdv : hd, kv = (size_t)s->Hkv * hd, T = (size_t)n;
    void *page[256];
    const void *const *tables[256];
    int32_t pos[256];
    float *q = test_new(T * H * hd, false), *o = test_new(T * H * width, false);
    for (size_t t = 0; t < T; t++) {
        pos[t] = first + (int)t;
        page[t] = pages[pos[t] / KV_PAGE];
        tables[t] = (const void *const *)pages;
        for (size_t h = 0; h < H; h++)
            memcpy(q + (r->latent ? h * T + t : t * H + h) * hd, r->q + (((size_t)first + t) * H + h) * hd, hd * sizeof *q);
    }
    const float *k = r->k + (size_t)first * kv;
    const kv_store_args store = {.page = page, .pos = pos, .k = k, .v = r->latent ? NULL : k, .ldk = kv, .T = n, .Hkv = s->Hkv, .hd = s->hd,
                                 .hdv = r->latent ? s->hdv : 0, .format = r->f};
    const paged_attention_args a = {.o = o, .q = q, .ldq = r->latent ? hd : H * hd, .ldo = r->latent ? width : H * width,
                                    .head_q = r->latent ? T * hd : 0, .head_o = r->latent ? T * width : 0, .pos = pos, .pages = tables, .T = n,
                                    .H = s->H, .Hkv = s->Hkv, .hd = s->hd, .hdv = store.hdv, .scale = 0.3f, .format = r->f, .window = s->window};
    cr_assert_eq(b->kv_store(&store, st), MOE_OK, "%s", moe_error_text());
    cr_assert_eq(b->paged_attention(&a, st), MOE_OK, "%s", moe_error_text());
    for (size_t t = 0; t < T; t++)
        for (size_t h = 0; h < H; h++)
            memcpy(r->o + (((size_t)first + t) * H + h) * (size_t)s->hdv, o + (r->latent ? h * T + t : t * H + h) * width,
                   (size_t)s->hdv * sizeof *o);
    test_free(q), test_free(o);
}

static void run_all(const moe_backend *b, moe_stream *st, const latent_run *r)
{
    const shape *s = r->s;
    const size_t bytes = kv_page_bytes(r->f, s->Hkv, s->hd, r->latent ? s->hdv : 0), pages = (size_t)(s->S + KV_PAGE - 1) / KV_PAGE;
    char *memory = aligned_alloc(64, pages * bytes);
    void *table[8];
    cr_assert(memory != NULL && bytes % 64 == 0 && pages <= 8);
    memset(memory, 0xff, pages * bytes); /* NaN: what was not stored is not used */
    for (size_t p = 0; p < pages; p++)
        table[p] = memory + p * bytes;
    for (int first = 0; first < s->S; first += r->cut)
        run_piece(b, st, r, table, first, s->S - first < r->cut ? s->S - first : r->cut);
    free(memory);
}

static void compare(const moe_backend *b, moe_stream *st, const char *where, void *ctx)
{
    static const int cuts[] = {1, 7, 50, 150};
    const latent_run *want = ctx;
    const shape *s = want->s;
    for (size_t i = s->hd > 500 ? 2 : 0; i < sizeof cuts / sizeof *cuts; i++) {
        char what[160];
        latent_run got = *want;
        got.latent = true, got.cut = cuts[i];
        got.o = test_new((size_t)s->S * (size_t)s->H * (size_t)s->hdv, false);
        run_all(b, st, &got);
        snprintf(what, sizeof what, "%d of %d numbers, format %d, pieces of %d, %s", s->hdv, s->hd, (int)got.f, got.cut, where);
        test_same(what, got.o, want->o, (size_t)s->S * (size_t)s->H, (size_t)s->hdv, (size_t)s->hdv);
        test_free(got.o);
    }
}

static void compare_shapes(numfmt f)
{
    for (int i = 0; i < SHAPES; i++) {
        const shape *s = &shapes[i];
        latent_run want = {.s = s, .f = f, .cut = 150};
        float *q = test_new_filled((size_t)(s->S * s->H * s->hd), 11), *k = test_new_filled((size_t)(s->S * s->Hkv * s->hd), 12);
        for (int j = 0; j < s->S * s->H * s->hd; j++)
            q[j] = (float)((double)(test_bits(3, (uint64_t)j) >> 11) * 0x1p-52 - 1.0);
        for (int j = 0; j < s->S * s->Hkv * s->hd; j++)
            k[j] = (float)((double)(test_bits(4, (uint64_t)j) >> 11) * 0x1p-52 - 1.0);
        want.q = q, want.k = k;
        want.o = test_new((size_t)(s->S * s->H * s->hdv), false);
        run_all(test_reference(), test_stream(), &want);
        test_each_backend(compare, &want);
        test_free(q), test_free(k), test_free(want.o);
    }
}

Test(latent_attention, f32_pages_give_the_bits_of_keys_stored_twice) { compare_shapes(NUM_F32); }
Test(latent_attention, bf16_pages_give_the_bits_of_keys_stored_twice) { compare_shapes(NUM_BF16); }
Test(latent_attention, q8_pages_give_the_bits_of_keys_stored_twice) { compare_shapes(NUM_Q8_0); }

Test(latent_attention, pages_hold_each_number_once)
{
    cr_assert_eq(kv_page_bytes(NUM_F32, 1, 576, 512), (size_t)576 * KV_PAGE * 4);
    cr_assert_eq(kv_page_bytes(NUM_BF16, 1, 576, 512), (size_t)576 * KV_PAGE * 2);
    cr_assert_eq(kv_page_bytes(NUM_Q8_0, 1, 576, 512), (size_t)576 * KV_PAGE + 18 * KV_PAGE * 2);
    cr_assert_eq(kv_page_bytes(NUM_F32, 1, 24, 20), (size_t)32 * KV_PAGE * 4, "rows enough for whole vectors of values");
}

Test(latent_attention, refuses_a_value_as_wide_as_its_key)
{
    const paged_attention_args a = {.H = 1, .Hkv = 1, .hd = 32, .hdv = 32, .scale = 1};
    const kv_store_args store = {.Hkv = 1, .hd = 32, .hdv = -1};
    cr_assert_eq(test_reference()->paged_attention(&a, test_stream()), MOE_E_CONFIG);
    cr_assert_eq(test_reference()->kv_store(&store, test_stream()), MOE_E_CONFIG);
}
