/* Owns the ways from stored bytes to rows (models/rows.h): one function a form. Reads no files.
 * Threads: any, no state.
 * Rule: a scale or a code that is no number is refused here, once for every reader: the products do not look (kernels/qmatmul.h). */
#include "models/rows.h"

#include <stdio.h>
#include <string.h>

#include "kernels/half.h"
#include "kernels/attention.h"

enum { FP8 = 128 /* rows and columns that share a scale */ };
static const float FP8_LEAST = 0x1p-120f, FP8_MOST = 0x1p100f; /* of a scale: its products with 2^-9 .. 448 are normal numbers of fp32 */
enum { MX = 32 /* numbers of an MXFP4 block */, MX_BYTES = MX / 2, MX_NAN = 255 };

moe_err model_rows_in_kv_b(model_extent *e, const char *path, bool keys, const model_spec *m)
{
    const numfmt_info *f = numfmt_about(e->format);
    const int nope = spec_nope(m), head = nope + m->v_head_dim;
    if (m->kv_lora_rank % f->block != 0)
        return moe_fail(MOE_E_DATA, "%s: kv_b has rows of %d: expected a multiple of %d, a block of %s", path, m->kv_lora_rank, f->block, f->name);
    e->stored_format = e->format;
    if (keys && f->block > 1)
        e->format = NUM_F32;
    e->stored = keys ? STORED_HEAD_COLUMNS : STORED_HEADS;
    e->row_step = 1;
    e->row_bytes = e->scale_bytes > 0 ? (size_t)m->kv_lora_rank : numfmt_row_bytes(e->stored_format, m->kv_lora_rank);
    e->bytes = (uint64_t)m->H * (uint64_t)head * e->row_bytes;
    e->head_rows = keys ? m->kv_lora_rank : m->v_head_dim;
    e->head_step = head;
    e->head_first = keys ? 0 : nope;
    return MOE_OK;
}

bool model_rows_plain(const model_extent *e) { return e->stored == STORED_ROWS && e->row_step == 1; }

model_span model_rows_span(const model_extent *e, int64_t first, int64_t n)
{
    if (e->stored == STORED_COLUMNS)
        return (model_span){0, (size_t)e->bytes};
    if (e->stored == STORED_HEADS || e->stored == STORED_HEAD_COLUMNS) {
        const int64_t head = first / e->head_rows, end = (first + n + e->head_rows - 1) / e->head_rows;
        const uint64_t of_head = (uint64_t)e->head_step * e->row_bytes;
        return (model_span){(uint64_t)head * of_head, (size_t)((uint64_t)(end - head) * of_head)};
    }
    const uint64_t group = (uint64_t)e->row_step * e->row_bytes;
    return (model_span){(uint64_t)first * group, (size_t)((uint64_t)n * group)};
}

model_span model_scales_span(const model_extent *e, int64_t first, int64_t n)
{
    if (e->scale_bytes == 0)
        return (model_span){0, 0};
    if (e->stored != STORED_MXFP4) { /* E4M3 */
        if (e->stored != STORED_FP8) { /* of whole heads */
            n = ((first + n + e->head_rows - 1) / e->head_rows - first / e->head_rows) * e->head_step;
            first = first / e->head_rows * e->head_step;
        }
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

/* The tensor of the file: keys and values of latent attention stand together in kv_b_proj. */
static const char *stored_name(const model_source *s, char out[128])
{
    const bool heads = s->at->stored == STORED_HEADS || s->at->stored == STORED_HEAD_COLUMNS;
    const char *part = heads ? strstr(s->name, "_b_proj") : NULL;
    if (part == NULL || part == s->name)
        return s->name;
    snprintf(out, 128, "%.*skv%s", (int)(part - 1 - s->name), s->name, part);
    return out;
}

static moe_err refuse_code(const model_source *s, int64_t row, const uint8_t *code)
{
    char name[128];
    int64_t k = 0;
    while ((code[k] & 0x7f) != 0x7f)
        k++;
    return moe_fail(MOE_E_DATA, "%s: %s[%lld, %lld] is not a number (code 0x%02x of E4M3)", s->path, stored_name(s, name), (long long)row, (long long)k, code[k]);
}

/* Codes and scales of one stored row. */
static moe_err fp8_line(const model_source *s, int64_t row, int64_t cols, const uint8_t *in, const uint8_t *scales, uint8_t *out)
{
    for (int64_t b = 0; b < cols / FP8; b++, out += sizeof(float) + FP8) {
        uint32_t bits; /* a denormal is no zero, whatever the mode of the thread */
        uint8_t none = 0;
        memcpy(&bits, scales + (size_t)b * sizeof bits, sizeof bits);
        const float scale = bits_float(bits);
        char name[128];
        if ((bits & 0x7fffffffu) != 0 && !(scale >= FP8_LEAST && scale <= FP8_MOST))
            return moe_fail(MOE_E_DATA, "%s: %s: the scale of rows %lld to %lld, columns %lld to %lld is %g: expected 0, or 2^-120 to 2^100", s->path,
                            stored_name(s, name), (long long)(row / FP8 * FP8), (long long)(row / FP8 * FP8 + FP8 - 1), (long long)(b * FP8),
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

static moe_err fp8_row(const model_source *s, int64_t row, uint8_t *out)
{
    return fp8_line(s, row, s->cols, stored_row(s, row), s->scales + (size_t)(row / FP8 - s->first / FP8) * s->at->scale_row_bytes, out);
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

enum { TILE_ROWS = 16, TILE = 64 /* lines of a tile */, TILE_ROOM = 72 /* its rows begin in different sets of the cache */ };

/* n rows side by side, step bytes apart, in lines that lie `far` apart: through a tile, so that neither the lines nor the rows, which often are powers of two
 * apart, push each other out of the cache. */
#define TURN static inline __attribute__((always_inline))
TURN void turn(uint8_t *out, size_t length, const uint8_t *in, size_t far, int lines, const size_t bytes, const size_t step, const int n)
{
    uint8_t tile[TILE_ROWS][TILE_ROOM * sizeof(uint32_t)];
    for (int k = 0; k < lines; k++, in += far) {
        __builtin_prefetch(in + TILE * far);
#pragma GCC unroll 16
        for (int r = 0; r < n; r++)
            memcpy(tile[r] + (size_t)k * bytes, in + (size_t)r * step, bytes);
    }
    for (int r = 0; r < n; r++)
        memcpy(out + (size_t)r * length, tile[r], (size_t)lines * bytes);
}

/* The same with constants for the compiler where there are many. */
static void turn_tile(uint8_t *out, size_t length, const uint8_t *in, size_t far, int lines, size_t bytes, size_t step, int n)
{
    if (bytes == 2 && step == 2 && n == TILE_ROWS)
        turn(out, length, in, far, lines, 2, 2, TILE_ROWS);
    else if (bytes == 2 && step == 4 && n == TILE_ROWS)
        turn(out, length, in, far, lines, 2, 4, TILE_ROWS);
    else if (bytes == 2)
        turn(out, length, in, far, lines, 2, step, n);
    else
        turn(out, length, in, far, lines, 4, step, n);
}

static void from_columns(const model_source *s, int64_t row, int64_t n, uint8_t *out)
{
    const size_t bytes = (size_t)numfmt_about(s->at->format)->bytes, length = (size_t)s->cols * bytes, step = (size_t)s->at->row_step * bytes;
    const uint8_t *in = s->stored + (size_t)(s->at->row_step * row + s->at->row_first) * bytes;
    for (int64_t k = 0; k < s->cols; k += TILE, in += TILE * s->at->row_bytes)
        for (int64_t r = 0; r < n; r += TILE_ROWS) {
            const int rows = n - r < TILE_ROWS ? (int)(n - r) : TILE_ROWS, lines = s->cols - k < TILE ? (int)(s->cols - k) : TILE;
            uint8_t *to = out + (size_t)r * length + (size_t)k * bytes;
            turn_tile(to, length, in + (size_t)r * step, s->at->row_bytes, lines, bytes, step, rows);
        }
}

enum { HEAD_LINE = ATTENTION_MAX_HD + ATTENTION_MAX_HD / FP8 * 4 /* bytes of a row of kv_b in E4M3 with its scales */ };

/* Stored row i of the head that holds `row`, in stored_format: where it lies, or put together in `line`. */
static moe_err head_line(const model_source *s, int64_t row, int64_t i, uint8_t line[HEAD_LINE], const uint8_t **out)
{
    const model_extent *e = s->at;
    const int64_t base = s->first / e->head_rows * e->head_step, at = row / e->head_rows * e->head_step + e->head_first + i;
    *out = s->stored + (size_t)(at - base) * e->row_bytes;
    if (e->scale_bytes == 0)
        return MOE_OK;
    TRY(fp8_line(s, at, (int64_t)e->row_bytes, *out, s->scales + (size_t)(at / FP8 - base / FP8) * e->scale_row_bytes, line));
    *out = line;
    return MOE_OK;
}

/* Numbers [c, c + n) of every stored row of a head become rows. */
static moe_err turn_head(const model_source *s, int64_t row, int64_t n, uint8_t *out)
{
    enum { WIDE = 256 /* numbers: whole blocks of every format */ };
    const model_extent *e = s->at;
    const numfmt_info *f = numfmt_about(e->stored_format);
    const int64_t c = row % e->head_rows;
    const size_t bytes = (size_t)numfmt_about(e->format)->bytes, length = (size_t)s->cols * bytes;
    uint8_t line[HEAD_LINE];
    float x[WIDE];
    for (int64_t k = 0; k < s->cols; k++, out += bytes) {
        const uint8_t *in;
        TRY(head_line(s, row, k, line, &in));
        for (int64_t at = c / WIDE * WIDE; at < c + n; at += WIDE) {
            const int64_t first = at > c ? at : c, end = at + WIDE < c + n ? at + WIDE : c + n;
            const uint8_t *from = in + (size_t)(at / f->block) * (size_t)f->bytes;
            if (e->stored_format != e->format) {
                numfmt_to_f32(x, from, e->stored_format, at + WIDE < e->head_rows ? WIDE : e->head_rows - at);
                from = (const uint8_t *)x;
            }
            for (int64_t r = first; r < end; r++)
                memcpy(out + (size_t)(r - c) * length, from + (size_t)(r - at) * bytes, bytes);
        }
    }
    return MOE_OK;
}

static moe_err from_heads(const model_source *s, int64_t row, int64_t n, uint8_t *out)
{
    const model_extent *e = s->at;
    const size_t length = numfmt_row_bytes(e->format, s->cols);
    uint8_t line[HEAD_LINE];
    for (int64_t end = row + n, most; row < end; row += most, out += (size_t)most * length) {
        const int64_t c = row % e->head_rows, left = e->head_rows - c;
        most = end - row < left ? end - row : left;
        if (e->stored == STORED_HEAD_COLUMNS)
            TRY(turn_head(s, row, most, out));
        for (int64_t i = 0; e->stored == STORED_HEADS && i < most; i++) {
            const uint8_t *in;
            TRY(head_line(s, row, c + i, line, &in));
            memcpy(out + (size_t)i * length, in, length);
        }
    }
    return MOE_OK;
}

moe_err model_rows(const model_source *s, int64_t row, int64_t n, void *out)
{
    const size_t length = numfmt_row_bytes(s->at->format, s->cols);
    uint8_t *to = out;
    if (s->at->stored == STORED_COLUMNS) {
        from_columns(s, row, n, to);
        return MOE_OK;
    }
    if (s->at->stored == STORED_HEADS || s->at->stored == STORED_HEAD_COLUMNS) {
        return from_heads(s, row, n, to);
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
