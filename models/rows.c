/* Owns the ways from stored bytes to rows (models/rows.h): one function a form. Reads no files.
 * Threads: any, no state.
 * Rule: a scale or a code that is no number is refused here, once for every reader: the products do not look (kernels/qmatmul.h). */
#include "models/rows.h"

#include <string.h>

#include "kernels/half.h"

enum { FP8 = 128 /* rows and columns that share a scale */ };
static const float FP8_LEAST = 0x1p-120f, FP8_MOST = 0x1p100f; /* of a scale: its products with 2^-9 .. 448 are normal numbers of fp32 */
enum { MX = 32 /* numbers of an MXFP4 block */, MX_BYTES = MX / 2, MX_NAN = 255 };

bool model_rows_plain(const model_extent *e) { return e->stored == STORED_ROWS && e->row_step == 1; }

model_span model_rows_span(const model_extent *e, int64_t first, int64_t n)
{
    if (e->stored == STORED_COLUMNS)
        return (model_span){0, (size_t)e->bytes};
    const uint64_t group = (uint64_t)e->row_step * e->row_bytes;
    return (model_span){(uint64_t)first * group, (size_t)((uint64_t)n * group)};
}

model_span model_scales_span(const model_extent *e, int64_t first, int64_t n)
{
    if (e->scale_bytes == 0)
        return (model_span){0, 0};
    if (e->stored == STORED_FP8) {
        const int64_t from = first / FP8, end = (first + n + FP8 - 1) / FP8;
        return (model_span){(uint64_t)from * e->scale_row_bytes, (size_t)(end - from) * e->scale_row_bytes};
    }
    const uint64_t group = (uint64_t)e->row_step * e->scale_row_bytes;
    return (model_span){(uint64_t)first * group, (size_t)((uint64_t)n * group)};
}

/* The stored row's place in what was read. */
static const uint8_t *stored_row(const model_source *s, int64_t row)
{
    return s->stored + (size_t)(s->at->row_step * (row - s->first) + s->at->row_first) * s->at->row_bytes;
}

static moe_err refuse_code(const model_source *s, int64_t row, const uint8_t *code)
{
    int64_t k = 0;
    while ((code[k] & 0x7f) != 0x7f)
        k++;
    return moe_fail(MOE_E_DATA, "%s: %s[%lld, %lld] is not a number (code 0x%02x of E4M3)", s->path, s->name, (long long)row, (long long)k, code[k]);
}

static moe_err fp8_row(const model_source *s, int64_t row, uint8_t *out)
{
    const uint8_t *in = stored_row(s, row), *scales = s->scales + (size_t)(row / FP8 - s->first / FP8) * s->at->scale_row_bytes;
    for (int64_t b = 0; b < s->cols / FP8; b++, out += sizeof(float) + FP8) {
        uint32_t bits; /* a denormal is no zero, whatever the mode of the thread */
        uint8_t none = 0;
        memcpy(&bits, scales + (size_t)b * sizeof bits, sizeof bits);
        const float scale = bits_float(bits);
        if ((bits & 0x7fffffffu) != 0 && !(scale >= FP8_LEAST && scale <= FP8_MOST))
            return moe_fail(MOE_E_DATA, "%s: %s: the scale of rows %lld to %lld, columns %lld to %lld is %g: expected 0, or 2^-120 to 2^100", s->path,
                            s->name, (long long)(row / FP8 * FP8), (long long)(row / FP8 * FP8 + FP8 - 1), (long long)(b * FP8),
                            (long long)(b * FP8 + FP8 - 1), (double)scale);
        memcpy(out, &scale, sizeof scale);
        memcpy(out + sizeof scale, in + b * FP8, FP8);
        for (int i = 0; i < FP8; i++)
            none |= (uint8_t)((in[b * FP8 + i] & 0x7f) == 0x7f);
        if (none)
            return refuse_code(s, row, in);
    }
    return MOE_OK;
}

typedef uint8_t u8x8 __attribute__((vector_size(8)));
typedef uint8_t u8x16 __attribute__((vector_size(16)));

/* ggml's block: the scale, then number j in the low half of byte j and number 16 + j in the high one. */
static void mxfp4_block(uint8_t *out, const uint8_t *in, uint8_t scale)
{
    u8x8 a, b;
    memcpy(&a, in, sizeof a), memcpy(&b, in + sizeof a, sizeof b);
    const u8x8 even = (a & 15) | (b << 4), odd = (a >> 4) | (b & 0xf0);
    const u8x16 turned = __builtin_shufflevector(even, odd, 0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15);
    out[0] = scale;
    memcpy(out + 1, &turned, sizeof turned);
}

static moe_err mxfp4_row(const model_source *s, int64_t row, uint8_t *out)
{
    const uint8_t *in = stored_row(s, row);
    const uint8_t *scale = s->scales + (size_t)(s->at->row_step * (row - s->first) + s->at->row_first) * s->at->scale_row_bytes;
    for (int64_t b = 0; b < s->cols / MX; b++, in += MX_BYTES, out += 1 + MX_BYTES) {
        if (scale[b] == MX_NAN)
            return moe_fail(MOE_E_DATA, "%s: %s: the scale of row %lld, columns %lld to %lld is %d, which stands for no number", s->path, s->name,
                            (long long)row, (long long)b * MX, (long long)b * MX + MX - 1, MX_NAN);
        mxfp4_block(out, in, scale[b]);
    }
    return MOE_OK;
}

/* Rows side by side in a stored line share its cache lines: a line at a time. */
static void from_columns(const model_source *s, int64_t row, int64_t n, uint8_t *out)
{
    const size_t bytes = (size_t)numfmt_about(s->at->format)->bytes, length = (size_t)s->cols * bytes, step = (size_t)s->at->row_step * bytes;
    const uint8_t *in = s->stored + ((size_t)(s->at->row_step * row + s->at->row_first)) * bytes;
    for (int64_t k = 0; k < s->cols; k++, in += s->at->row_bytes, out += bytes)
        for (size_t r = 0; r < (size_t)n; r++)
            if (bytes == 2)
                memcpy(out + r * length, in + r * step, 2);
            else
                memcpy(out + r * length, in + r * step, bytes);
}

moe_err model_rows(const model_source *s, int64_t row, int64_t n, void *out)
{
    const size_t length = numfmt_row_bytes(s->at->format, s->cols);
    uint8_t *to = out;
    if (s->at->stored == STORED_COLUMNS) {
        from_columns(s, row, n, to);
        return MOE_OK;
    }
    if (model_rows_plain(s->at)) {
        memcpy(to, stored_row(s, row), (size_t)n * length);
        return MOE_OK;
    }
    for (int64_t r = row; r < row + n; r++, to += length) {
        if (s->at->stored == STORED_FP8)
            TRY(fp8_row(s, r, to));
        else if (s->at->stored == STORED_MXFP4)
            TRY(mxfp4_row(s, r, to));
        else
            memcpy(to, stored_row(s, r), length);
    }
    return MOE_OK;
}
