/* Rows that are put together (models/rows.h): against the numbers they were stored from, one by one. Owns nothing beyond a test. One thread. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/half.h"
#include "models/rows.h"

static const float FP4[16] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6};

static uint8_t any(uint32_t *seed)
{
    *seed = *seed * 1664525u + 1013904223u;
    return (uint8_t)(*seed >> 16);
}

/* Gate and up in turn, R rows each, K columns, as transformers' MXFP4 has them. */
typedef struct mxfp4 {
    int R, K;
    uint8_t *codes, *scales; /* [2R, K / 2], [2R, K / 32] */
    model_extent gate, up;
} mxfp4;

static mxfp4 mxfp4_new(int R, int K)
{
    uint32_t seed = 7;
    mxfp4 x = {.R = R, .K = K, .codes = malloc((size_t)(R * K)), .scales = malloc((size_t)(R * K / 16))};
    for (int i = 0; i < R * K; i++)
        x.codes[i] = any(&seed);
    for (int i = 0; i < R * K / 16; i++)
        x.scales[i] = (uint8_t)(100 + any(&seed) % 50);
    x.gate = (model_extent){.bytes = (uint64_t)(R * K), .row_bytes = (size_t)K / 2, .format = NUM_MXFP4, .stored = STORED_MXFP4, .row_step = 2,
                            .scale_bytes = (uint64_t)(R * K / 16), .scale_row_bytes = (size_t)K / 32};
    x.up = x.gate;
    x.up.row_first = 1;
    return x;
}

static void mxfp4_free(mxfp4 *x) { free(x->codes), free(x->scales); }

/* Number k of stored row r, by the definition of the format. */
static float mxfp4_number(const mxfp4 *x, int r, int k)
{
    const uint8_t byte = x->codes[r * (x->K / 2) + k / 2];
    float scale = 1;
    for (int e = x->scales[r * (x->K / 32) + k / 32]; e != 127; e += e < 127 ? 1 : -1)
        scale = e < 127 ? scale / 2 : scale * 2;
    return FP4[k % 2 ? byte >> 4 : byte & 15] * scale;
}

Test(rows, mxfp4_gate_and_up_in_turn)
{
    enum { R = 21, K = 96 };
    mxfp4 x = mxfp4_new(R, K);
    for (int up = 0; up < 2; up++)
        for (int first = 0; first < R; first += 5) {
            const model_extent *e = up ? &x.up : &x.gate;
            const int n = R - first < 9 ? R - first : 9;
            const model_span span = model_rows_span(e, first, n), scales = model_scales_span(e, first, n);
            uint8_t rows[9 * K / 32 * 17], *stored = malloc(span.bytes), *scale = malloc(scales.bytes); /* no byte more than was asked for */
            memcpy(stored, x.codes + span.at, span.bytes), memcpy(scale, x.scales + scales.at, scales.bytes);
            const model_source s = {.at = e, .path = "file", .name = "tensor", .cols = K, .first = first, .stored = stored, .scales = scale};
            const int skip = n > 2 ? 2 : 0;
            cr_assert_eq(model_rows(&s, first + skip, n - skip, rows), MOE_OK);
            for (int r = skip; r < n; r++) {
                float got[K];
                numfmt_to_f32(got, rows + (size_t)(r - skip) * numfmt_row_bytes(NUM_MXFP4, K), NUM_MXFP4, K);
                for (int k = 0; k < K; k++)
                    cr_assert_eq(got[k], mxfp4_number(&x, 2 * (first + r) + up, k), "%s [%d, %d]: got %g", up ? "up" : "gate", first + r, k, (double)got[k]);
            }
            free(stored), free(scale);
        }
    mxfp4_free(&x);
}

Test(rows, gate_and_up_in_turn_need_the_same_bytes)
{
    const mxfp4 x = {.gate = {.row_bytes = 48, .row_step = 2, .stored = STORED_MXFP4, .scale_row_bytes = 3, .scale_bytes = 1}};
    model_extent up = x.gate;
    up.row_first = 1;
    const model_span a = model_rows_span(&x.gate, 16, 32), b = model_rows_span(&up, 16, 32), c = model_scales_span(&up, 16, 32);
    cr_assert(a.at == 16 * 96 && a.bytes == 32 * 96 && b.at == a.at && b.bytes == a.bytes);
    cr_assert(c.at == 16 * 6 && c.bytes == 32 * 6);
}

Test(rows, a_scale_that_is_no_number_is_refused)
{
    mxfp4 x = mxfp4_new(2, 64);
    uint8_t rows[2 * 34];
    const model_source s = {.at = &x.up, .path = "file", .name = "tensor", .cols = 64, .stored = x.codes, .scales = x.scales};
    x.scales[3 * 2 + 1] = 255; /* stored row 3 is up's row 1 */
    cr_assert_eq(model_rows(&s, 0, 1, rows), MOE_OK);
    cr_assert_eq(model_rows(&s, 0, 2, rows), MOE_E_DATA);
    cr_assert_str_eq(moe_error_text(), "file: tensor: the scale of row 1, columns 32 to 63 is 255, which stands for no number");
    mxfp4_free(&x);
}

/* [K, 2R] with gate in the even columns, up in the odd ones; and [K, R]. */
static void check_columns(numfmt f, int step)
{
    enum { R = 19, K = 37 };
    const size_t bytes = (size_t)numfmt_about(f)->bytes;
    uint32_t seed = 3;
    uint8_t stored[K * 2 * R * 4], rows[R * K * 4];
    for (size_t i = 0; i < sizeof stored; i++)
        stored[i] = any(&seed);
    for (int which = 0; which < step; which++) {
        const model_extent e = {.bytes = (uint64_t)(K * step * R) * bytes, .row_bytes = (size_t)(step * R) * bytes, .format = f,
                                .stored = STORED_COLUMNS, .row_step = step, .row_first = which};
        const model_source s = {.at = &e, .path = "file", .name = "tensor", .cols = K, .stored = stored};
        cr_assert_eq(model_rows_span(&e, 3, 5).bytes, e.bytes);
        cr_assert_eq(model_rows(&s, 3, R - 3, rows), MOE_OK);
        for (int r = 3; r < R; r++)
            for (int k = 0; k < K; k++)
                cr_assert(memcmp(rows + (size_t)((r - 3) * K + k) * bytes, stored + (size_t)(k * step * R + step * r + which) * bytes, bytes) == 0,
                          "%s, step %d: [%d, %d]", numfmt_about(f)->name, step, r, k);
    }
}

Test(rows, transposed_matrices)
{
    check_columns(NUM_F32, 1), check_columns(NUM_F32, 2);
    check_columns(NUM_F16, 1), check_columns(NUM_BF16, 2);
}

Test(rows, rows_as_they_are)
{
    const model_extent e = {.row_bytes = 6, .format = NUM_F16, .row_step = 1};
    const uint8_t stored[] = "abcdefghijklmnopqr";
    const model_source s = {.at = &e, .path = "file", .name = "tensor", .cols = 3, .first = 4, .stored = stored};
    uint8_t rows[12];
    cr_assert(model_rows_plain(&e));
    cr_assert_eq(model_rows(&s, 5, 2, rows), MOE_OK);
    cr_assert_eq(memcmp(rows, "ghijklmnopqr", 12), 0);
}

/* FP8: R rows of K codes, a scale for each 128 x 128. */
typedef struct fp8 {
    int R, K;
    uint8_t *codes;
    float *scales; /* [ceil(R / 128), K / 128] */
    model_extent at;
} fp8;

static fp8 fp8_new(int R, int K)
{
    uint32_t seed = 11;
    const int scales = (R + 127) / 128 * (K / 128);
    fp8 x = {.R = R, .K = K, .codes = malloc((size_t)(R * K)), .scales = malloc((size_t)scales * sizeof(float))};
    for (int i = 0; i < R * K; i++) {
        const uint8_t code = any(&seed);
        x.codes[i] = (code & 0x7f) == 0x7f ? 0x7e : code;
    }
    for (int i = 0; i < scales; i++)
        x.scales[i] = i % 5 == 3 ? 0.0f : 1e-4f * (float)(1 + any(&seed));
    x.at = (model_extent){.bytes = (uint64_t)(R * K), .row_bytes = (size_t)K, .format = NUM_F8_E4M3, .stored = STORED_FP8, .row_step = 1,
                          .scale_bytes = (uint64_t)scales * sizeof(float), .scale_row_bytes = (size_t)K / 128 * sizeof(float)};
    return x;
}

static void fp8_free(fp8 *x) { free(x->codes), free(x->scales); }

static void check_fp8(const fp8 *x, int first, int n, int skip)
{
    const model_span span = model_rows_span(&x->at, first, n), scales = model_scales_span(&x->at, first, n);
    const size_t length = numfmt_row_bytes(NUM_F8_E4M3, x->K);
    uint8_t *stored = malloc(span.bytes), *scale = malloc(scales.bytes), *rows = malloc((size_t)n * length); /* no byte more than was asked for */
    float *got = malloc((size_t)x->K * sizeof *got);
    memcpy(stored, x->codes + span.at, span.bytes), memcpy(scale, (const uint8_t *)x->scales + scales.at, scales.bytes);
    const model_source s = {.at = &x->at, .path = "file", .name = "tensor", .cols = x->K, .first = first, .stored = stored, .scales = scale};
    cr_assert_eq(model_rows(&s, first + skip, n - skip, rows), MOE_OK, "%s", moe_error_text());
    for (int r = first + skip; r < first + n; r++) {
        numfmt_to_f32(got, rows + (size_t)(r - first - skip) * length, NUM_F8_E4M3, x->K);
        for (int k = 0; k < x->K; k++)
            cr_assert_eq(got[k], e4m3_to_float(x->codes[r * x->K + k]) * x->scales[r / 128 * (x->K / 128) + k / 128], "[%d, %d]: got %g", r, k, (double)got[k]);
    }
    free(stored), free(scale), free(rows), free(got);
}

Test(rows, fp8_with_a_scale_for_each_block)
{
    fp8 x = fp8_new(300, 384);
    check_fp8(&x, 0, 300, 0), check_fp8(&x, 112, 32, 0), check_fp8(&x, 112, 32, 16), check_fp8(&x, 256, 44, 3), check_fp8(&x, 128, 128, 127);
    cr_assert_eq(model_scales_span(&x.at, 127, 1).bytes, 12);
    cr_assert_eq(model_scales_span(&x.at, 127, 2).bytes, 24);
    cr_assert_eq(model_scales_span(&x.at, 299, 1).at, 24);
    fp8_free(&x);
}

Test(rows, fp8_that_is_no_number_is_refused)
{
    static const float wrong[] = {NAN, -NAN, INFINITY, -INFINITY, -1.0f, 0x1p-121f, 0x1.8p100f, 1e-45f}, right[] = {0.0f, -0.0f, 0x1p-120f, 0x1p100f};
    fp8 x = fp8_new(200, 256);
    uint8_t rows[4 * 264];
    const model_source s = {.at = &x.at, .path = "file", .name = "tensor", .cols = 256, .stored = x.codes, .scales = (const uint8_t *)x.scales};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        x.scales[3] = wrong[i];
        cr_assert_eq(model_rows(&s, 124, 4, rows), MOE_OK);
        cr_assert_eq(model_rows(&s, 125, 4, rows), MOE_E_DATA, "%g", (double)wrong[i]);
        cr_assert_not_null(strstr(moe_error_text(), "file: tensor: the scale of rows 128 to 255, columns 128 to 255 is "), "%s", moe_error_text());
    }
    for (size_t i = 0; i < sizeof right / sizeof *right; i++) {
        x.scales[3] = right[i];
        cr_assert_eq(model_rows(&s, 125, 4, rows), MOE_OK, "%g: %s", (double)right[i], moe_error_text());
    }
    x.codes[130 * 256 + 201] = 0xff;
    cr_assert_eq(model_rows(&s, 127, 4, rows), MOE_E_DATA);
    cr_assert_str_eq(moe_error_text(), "file: tensor[130, 201] is not a number (code 0xff of E4M3)");
    fp8_free(&x);
}

/* Keys and values of latent attention: told by the name of the tensor that the file has. */
Test(rows, fp8_in_kv_b_is_told_by_its_name)
{
    const model_spec m = {.H = 2, .hd = 66, .rotary = 2, .kv_lora_rank = 128, .v_head_dim = 64};
    fp8 x = fp8_new(256, 128);
    uint8_t rows[132];
    cr_assert_eq(model_rows_in_kv_b(&x.at, "file", false, &m), MOE_OK, "%s", moe_error_text());
    x.codes[64 * 128 + 7] = 0x7f; /* the first row of values of the first head */
    const model_source s = {.at = &x.at, .path = "file", .name = "model.layers.0.self_attn.v_b_proj.weight", .cols = 128, .stored = x.codes,
                            .scales = (const uint8_t *)x.scales};
    cr_assert_eq(model_rows(&s, 0, 1, rows), MOE_E_DATA);
    cr_assert_str_eq(moe_error_text(), "file: model.layers.0.self_attn.kv_b_proj.weight[64, 7] is not a number (code 0x7f of E4M3)");
    fp8_free(&x);
}

/* kv_b_proj of H heads in `format`, its rows of numbers 1, 2, 3, ... as far as the format knows them: every range of rows of keys and values against
 * the numbers, read from whole heads. */
static void heads_are_taken_apart(numfmt format, int rank)
{
    enum { H = 3, NOPE = 5, VALUE = 7, HEAD = NOPE + VALUE };
    const model_spec m = {.H = H, .hd = NOPE + 2, .rotary = 2, .kv_lora_rank = rank, .v_head_dim = VALUE};
    const size_t row_bytes = numfmt_row_bytes(format, rank);
    float *exact = malloc(sizeof *exact * (size_t)(H * HEAD * rank)), *got = malloc(sizeof *got * (size_t)(H * HEAD * rank));
    uint8_t *stored = malloc((size_t)(H * HEAD) * row_bytes), *rows = malloc(sizeof *got * (size_t)(H * HEAD * rank) + 1024);
    for (int i = 0; i < H * HEAD; i++) {
        for (int k = 0; k < rank; k++)
            exact[i * rank + k] = (float)((i * 37 + k * 11) % 113 - 56) * 0.25f;
        numfmt_from_f32(stored + (size_t)i * row_bytes, exact + i * rank, format, rank);
        numfmt_to_f32(exact + i * rank, stored + (size_t)i * row_bytes, format, rank);
    }
    for (int keys = 0; keys < 2; keys++) {
        model_extent e = {.format = format};
        cr_assert_eq(model_rows_in_kv_b(&e, "a file", keys, &m), MOE_OK, "%s", moe_error_text());
        cr_assert_eq(e.format, keys && numfmt_about(format)->block > 1 ? NUM_F32 : format);
        const int per = keys ? rank : VALUE, cols = keys ? NOPE : rank;
        for (int first = 0; first < H * per; first += 3)
            for (int n = 1; first + n <= H * per; n += 1 + n * 2) {
                const model_span span = model_rows_span(&e, first, n);
                cr_assert(span.at % (HEAD * row_bytes) == 0 && span.at + span.bytes <= (uint64_t)(H * HEAD) * row_bytes);
                const model_source from = {.at = &e, .path = "a file", .name = "kv_b", .cols = cols, .first = first, .stored = stored + span.at};
                cr_assert_eq(model_rows(&from, first, n, rows), MOE_OK, "%s", moe_error_text());
                for (int r = 0; r < n; r++) {
                    const int h = (first + r) / per, i = (first + r) % per;
                    numfmt_to_f32(got, rows + (size_t)r * numfmt_row_bytes(e.format, cols), e.format, cols);
                    for (int k = 0; k < cols; k++) {
                        const float want = keys ? exact[(h * HEAD + k) * rank + i] : exact[(h * HEAD + NOPE + i) * rank + k];
                        cr_assert_eq(got[k], want, "format %d, %s, row %d: number %d is %g, expected %g", (int)format, keys ? "keys" : "values", first + r, k,
                                     (double)got[k], (double)want);
                    }
                }
            }
    }
    free(exact), free(got), free(stored), free(rows);
}

Test(rows, keys_and_values_of_kv_b)
{
    heads_are_taken_apart(NUM_F32, 20);
    heads_are_taken_apart(NUM_BF16, 33);
    heads_are_taken_apart(NUM_F16, 7);
    heads_are_taken_apart(NUM_Q8_0, 320); /* more than one piece of 256 */
    heads_are_taken_apart(NUM_Q4_0, 64);
}

Test(rows, kv_b_of_no_whole_blocks_is_refused)
{
    const model_spec m = {.H = 2, .hd = 6, .rotary = 2, .kv_lora_rank = 33, .v_head_dim = 4};
    model_extent e = {.format = NUM_Q8_0};
    cr_assert_eq(model_rows_in_kv_b(&e, "a file", true, &m), MOE_E_DATA);
    cr_assert(strstr(moe_error_text(), "rows of 33: expected a multiple of 32") != NULL, "%s", moe_error_text());
}
