/* Rows of weights into panels, and single rows and blocks out of them (kernels/qpanel.h). Owns the layouts.
 * Packing runs whenever an expert lands: 128-bit shuffles that every x86-64 has, and cpu/qpanel.c where there is more. Any thread, no
 * state.
 * Rule: the panels of a matrix hold every number it was given, bit by bit (tests/kernels/test_qmatmul.c reads them back). */
#include "kernels/qpanel.h"

#include <string.h>

#include "kernels/half.h"
#include "kernels/numfmt_parts.h"

typedef uint32_t u32x4 __attribute__((vector_size(16)));
typedef uint16_t u16x8 __attribute__((vector_size(16)));

static const qpanel_layout layouts[NUM_FORMATS] = {
    [NUM_Q4_0] = {4 * QLINE, 2 * PANEL},
    [NUM_Q4_1] = {4 * QLINE, 4 * PANEL},
    [NUM_Q8_0] = {8 * QLINE, 2 * PANEL},
    [NUM_Q5_0] = {5 * QLINE, 2 * PANEL},
    [NUM_Q5_1] = {5 * QLINE, 4 * PANEL},
    [NUM_Q4_K] = {4 * QLINE, (4 * PANEL + QSUPER * 2 * PANEL) / QSUPER},
    [NUM_Q5_K] = {5 * QLINE, (4 * PANEL + QSUPER * 2 * PANEL) / QSUPER},
    [NUM_Q6_K] = {6 * QLINE, (2 * PANEL + QSUPER * 2 * PANEL) / QSUPER},
    [NUM_IQ4_NL] = {4 * QLINE, 2 * PANEL},
    [NUM_MXFP4] = {4 * QLINE, PANEL},
    [NUM_F8_E4M3] = {QBLOCK * PANEL, 4 * PANEL / (QEIGHT / QBLOCK)},
};

qpanel_layout qpanel_about(numfmt f) { return layouts[f]; }

size_t qpanel_bytes(numfmt f, int64_t N, int64_t K)
{
    const qpanel_layout l = layouts[f];
    const size_t bytes = l.data == 0 ? (size_t)panel_pad(N) * (size_t)K * (size_t)numfmt_about(f)->bytes
                                     : (size_t)qpanel_pieces(N, K) * (size_t)(l.data + l.side);
    return (bytes + 63) / 64 * 64;
}

/* The 4 x 4 words at in, in + stride, .. turned, written QLINE apart. */
static inline void turn_words(uint8_t *out, const uint8_t *in, size_t stride)
{
    u32x4 r[4];
    for (size_t i = 0; i < 4; i++)
        memcpy(&r[i], in + i * stride, sizeof r[i]);
    const u32x4 a = __builtin_shufflevector(r[0], r[1], 0, 4, 1, 5), A = __builtin_shufflevector(r[0], r[1], 2, 6, 3, 7);
    const u32x4 b = __builtin_shufflevector(r[2], r[3], 0, 4, 1, 5), B = __builtin_shufflevector(r[2], r[3], 2, 6, 3, 7);
    r[0] = __builtin_shufflevector(a, b, 0, 1, 4, 5), r[1] = __builtin_shufflevector(a, b, 2, 3, 6, 7);
    r[2] = __builtin_shufflevector(A, B, 0, 1, 4, 5), r[3] = __builtin_shufflevector(A, B, 2, 3, 6, 7);
    for (size_t i = 0; i < 4; i++)
        memcpy(out + i * QLINE, &r[i], sizeof r[i]);
}

/* 8 x 8 halves, written 2 * PANEL bytes apart. */
static inline void turn_halves(uint8_t *out, const uint8_t *in, size_t stride)
{
    u16x8 r[8], t[8];
    for (size_t i = 0; i < 8; i++)
        memcpy(&r[i], in + i * stride, sizeof r[i]);
    for (int round = 0; round < 3; round++) { /* i and i + 4 are interleaved: after three rounds columns are rows */
        for (int i = 0; i < 4; i++) {
            t[2 * i] = __builtin_shufflevector(r[i], r[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
            t[2 * i + 1] = __builtin_shufflevector(r[i], r[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
        }
        memcpy(r, t, sizeof r);
    }
    for (size_t i = 0; i < 8; i++)
        memcpy(out + i * 2 * PANEL, &r[i], sizeof r[i]);
}

void qpanel_pack_blocks(uint8_t *data, uint8_t *side, const uint8_t *rows, size_t stride, int64_t K, int head, int steps)
{
    for (int64_t b = 0; b < K / QBLOCK; b++, rows += head + 4 * steps) {
        for (int s = 0; s < steps; s += 4)
            for (int r = 0; r < PANEL; r += 4)
                turn_words(data + s * QLINE + r * 4, rows + (size_t)r * stride + head + 4 * s, stride);
        for (int h = 0; h < head; h += 2)
            for (int r = 0; r < PANEL; r++)
                memcpy(side + h * PANEL + 2 * r, rows + (size_t)r * stride + h, 2);
        data += steps * QLINE, side += head * PANEL;
    }
}

/* One row's block in the shape that the lines have: nibbles as in Q4_0, then words of high bits. */
typedef struct shaped {
    uint8_t nibbles[QSUPER][16];
    uint32_t high[QSUPER][2];
    uint16_t d[2];
    uint8_t scale[QSUPER][2];
} shaped;

/* Bit 4 s + j becomes bit s of byte j. */
static inline uint32_t spread_bits(uint32_t x)
{
    uint32_t out = 0;
    for (int j = 0; j < 4; j++) {
        uint32_t v = x >> j & 0x11111111u;
        v = (v | v >> 3) & 0x03030303u, v = (v | v >> 6) & 0x000f000fu, v = (v | v >> 12) & 0xffu;
        out |= v << 8 * j;
    }
    return out;
}

/* Nibbles i and i + 16 of 32 whose nibbles are the low or the high ones of `in`. */
static inline void shape_nibbles(uint8_t *out, const uint8_t *in, bool high)
{
    for (int i = 0; i < 16; i++)
        out[i] = (uint8_t)(high ? in[i] >> 4 | (in[16 + i] & 0xf0) : (in[i] & 15) | in[16 + i] << 4);
}

static uint32_t word_at(const uint8_t *in, int i)
{
    uint32_t x;
    memcpy(&x, in + 4 * i, sizeof x);
    return x;
}

static void shape_q5(shaped *out, const uint8_t *in, int head)
{
    memcpy(out->d, in, (size_t)head);
    out->high[0][0] = spread_bits(word_at(in + head, 0));
    memcpy(out->nibbles[0], in + head + 4, 16);
}

static void shape_k(shaped *out, const uint8_t *in, const uint8_t *high, const uint8_t *low)
{
    memcpy(out->d, in, sizeof out->d);
    for (int b = 0; b < QSUPER; b++) {
        numfmt_k_scale(in + 4, b, &out->scale[b][0], &out->scale[b][1]);
        shape_nibbles(out->nibbles[b], low + b / 2 * 32, b % 2);
        out->high[b][0] = 0;
        for (int s = 0; s < QSTEPS && high != NULL; s++)
            out->high[b][0] |= (word_at(high, s) >> b & 0x01010101u) << s;
    }
}

static void shape_q6_k(shaped *out, const uint8_t *in)
{
    memcpy(out->d, in + 208, sizeof out->d[0]);
    memcpy(out->scale, in + 192, sizeof out->scale);
    for (int b = 0; b < QSUPER; b++) {
        const uint8_t *high = in + 128 + b / 4 * 32;
        shape_nibbles(out->nibbles[b], in + b / 4 * 64 + b % 2 * 32, b % 4 / 2);
        for (int h = 0; h < 2; h++) {
            out->high[b][h] = 0;
            for (int s = 0; s < 4; s++)
                out->high[b][h] |= (word_at(high, 4 * h + s) >> 2 * (b % 4) & 0x03030303u) << 2 * s;
        }
    }
}

static void shape(shaped *out, const uint8_t *in, numfmt f)
{
    switch (f) {
    case NUM_Q5_0:
    case NUM_Q5_1:
        shape_q5(out, in, f == NUM_Q5_0 ? 2 : 4);
        break;
    case NUM_Q4_K:
        shape_k(out, in, NULL, in + 16);
        break;
    case NUM_Q5_K:
        shape_k(out, in, in + 16, in + 48);
        break;
    case NUM_Q6_K:
        shape_q6_k(out, in);
        break;
    default: /* MXFP4 */
        memcpy(out->nibbles[0], in + 1, 16);
    }
}

/* The scales of one row, lane r of 16. */
static void put_side(uint8_t *side, const shaped *from, const uint8_t *in, numfmt f, int r)
{
    const int heads = f == NUM_MXFP4 ? 0 : qpanel_least(f) ? 2 : 1;
    for (int h = 0; h < heads; h++)
        memcpy(side + (h * PANEL + r) * 2, &from->d[h], 2);
    if (f == NUM_MXFP4)
        side[r] = in[0];
    for (int b = 0; b < QSUPER && numfmt_about(f)->block > QBLOCK; b++)
        for (int h = 0; h < 2; h++)
            side[heads * 2 * PANEL + (b * 2 + h) * PANEL + r] = from->scale[b][h];
}

/* One panel of a format whose bits must be put in order first. */
static void pack_shaped(uint8_t *data, uint8_t *side, const uint8_t *rows, size_t stride, numfmt f, int64_t K)
{
    const qpanel_layout l = layouts[f];
    const int pieces = numfmt_about(f)->block / QBLOCK;
    shaped stage[PANEL];
    for (int64_t k = 0; k < K; k += (int64_t)pieces * QBLOCK, rows += numfmt_about(f)->bytes, side += pieces * l.side) {
        for (int r = 0; r < PANEL; r++) {
            const uint8_t *in = rows + (size_t)r * stride;
            __builtin_prefetch(in + PANEL * stride);
            shape(&stage[r], in, f);
            put_side(side, &stage[r], in, f, r);
        }
        for (int b = 0; b < pieces; b++, data += l.data) {
            for (int r = 0; r < PANEL; r += 4)
                turn_words(data + r * 4, stage[r].nibbles[b], sizeof *stage);
            for (int h = 0; h < l.data / QLINE - 4; h++)
                for (int r = 0; r < PANEL; r++)
                    memcpy(data + (4 + h) * QLINE + 4 * r, &stage[r].high[b][h], 4);
        }
    }
}

/* One panel of a plain format. */
static void pack_plain(uint8_t *out, const uint8_t *rows, size_t stride, int bytes, int64_t K)
{
    const int at_once = 16 / bytes;
    int64_t k = 0;
    const uint8_t *next = rows + PANEL * stride; /* the next panel's rows: one stretch of memory, 16 streams to the processor */
    for (; k + at_once <= K; k += at_once)
        for (int r = 0; r < PANEL; r += at_once) {
            const uint8_t *in = rows + (size_t)r * stride + (size_t)(k * bytes);
            for (int i = 0; i < at_once; i += 4, next += 64)
                __builtin_prefetch(next);
            uint8_t *to = out + (size_t)((k * PANEL + r) * bytes);
            if (bytes == 4)
                turn_words(to, in, stride);
            else
                turn_halves(to, in, stride);
        }
    for (; k < K; k++)
        for (int r = 0; r < PANEL; r++)
            memcpy(out + (size_t)((k * PANEL + r) * bytes), rows + (size_t)r * stride + (size_t)(k * bytes), (size_t)bytes);
}

/* One panel of F8_E4M3: pairs of codes are turned like halves. */
static void pack_f8(uint8_t *data, uint8_t *side, const uint8_t *rows, size_t stride, int64_t K)
{
    enum { HALVES = QEIGHT / 2 };
    for (int64_t b = 0; b < K / QEIGHT; b++, rows += 4 + QEIGHT, data += QEIGHT * PANEL, side += 4 * PANEL) {
        for (size_t r = 0; r < PANEL; r++) {
            const uint8_t *in = rows + r * stride;
            memcpy(side + 4 * r, in, 4);
            for (size_t i = 0; i < QEIGHT; i += 64)
                __builtin_prefetch(in + PANEL * stride + i);
        }
        for (size_t h = 0; h < HALVES; h += 8)
            for (size_t r = 0; r < PANEL; r += 8)
                turn_halves(data + 2 * (h * PANEL + r), rows + r * stride + 4 + 2 * h, stride);
    }
}

static void pack_panel(uint8_t *data, uint8_t *side, const uint8_t *rows, size_t stride, numfmt f, int64_t K)
{
    const qpanel_layout l = layouts[f];
    if (l.data == 0)
        pack_plain(data, rows, stride, numfmt_about(f)->bytes, K);
    else if (f == NUM_F8_E4M3)
        pack_f8(data, side, rows, stride, K);
    else if (f != NUM_Q4_0 && f != NUM_Q4_1 && f != NUM_Q8_0 && f != NUM_IQ4_NL)
        pack_shaped(data, side, rows, stride, f, K);
    else if (__builtin_cpu_supports("avx2"))
        qpanel_pack_blocks_avx2(data, side, rows, stride, K, l.side / PANEL, l.data / QLINE);
    else
        qpanel_pack_blocks(data, side, rows, stride, K, l.side / PANEL, l.data / QLINE);
}

/* A panel whose last rows are missing: a stretch of k at a time goes through a block that has zeros for them. */
static void pack_edge(uint8_t *data, uint8_t *side, const uint8_t *rows, size_t stride, numfmt f, int64_t K, int64_t n)
{
    enum { STRETCH = 256 /* numbers, a multiple of every block */ };
    uint8_t stage[PANEL][STRETCH * sizeof(float)];
    const qpanel_layout l = layouts[f];
    for (int64_t k = 0; k < K; k += STRETCH) {
        const int64_t part = K - k < STRETCH ? K - k : STRETCH;
        memset(stage, 0, sizeof stage);
        for (int64_t r = 0; r < n; r++)
            memcpy(stage[r], rows + (size_t)r * stride + numfmt_row_bytes(f, k), numfmt_row_bytes(f, part));
        pack_panel(data, side, stage[0], sizeof stage[0], f, part);
        data += l.data != 0 ? (size_t)(part / QBLOCK) * (size_t)l.data : (size_t)part * PANEL * (size_t)numfmt_about(f)->bytes;
        side += (size_t)(part / QBLOCK) * (size_t)l.side;
    }
}

void qpanel_pack(void *panels, const void *rows, size_t row_stride, numfmt f, int64_t N, int64_t K, int64_t first, int64_t n)
{
    const qpanel_layout l = layouts[f];
    const uint8_t *in = rows;
    for (int64_t row = 0; row < n; row += PANEL, in += PANEL * row_stride) {
        const int64_t p = (first + row) / PANEL;
        uint8_t *data =
            (uint8_t *)(l.data != 0 ? qpanel_data(panels, l, p, K)
                                    : (const uint8_t *)panels + panel_index(p * PANEL, 0, K) * (size_t)numfmt_about(f)->bytes);
        uint8_t *side = (uint8_t *)qpanel_side(panels, l, p, N, K);
        if (n - row >= PANEL)
            pack_panel(data, side, in, row_stride, f, K);
        else
            pack_edge(data, side, in, row_stride, f, K, n - row);
    }
}

/* (code / 256) * (scale * 256): nothing rounds but the product. The codes of NaN count as 480, by their bits. */
static float f8_element(const void *panels, int64_t n, int64_t k, int64_t N, int64_t K)
{
    const qpanel_layout l = layouts[NUM_F8_E4M3];
    const uint8_t code = qpanel_data(panels, l, n / PANEL, K)[(k / 2 * PANEL + n % PANEL) * 2 + k % 2];
    float scale;
    memcpy(&scale, qpanel_side(panels, l, n / PANEL, N, K) + (k / QEIGHT * PANEL + n % PANEL) * 4, sizeof scale);
    return half_to_float((uint16_t)((code & 0x80u) << 8 | (code & 0x7fu) << 7)) * (scale * 256.0f);
}

float qpanel_element(const void *panels, numfmt f, int64_t n, int64_t k, int64_t N, int64_t K)
{
    float x;
    if (f == NUM_F8_E4M3)
        return f8_element(panels, n, k, N, K);
    numfmt_to_f32(&x, (const uint8_t *)panels + panel_index(n, k, K) * (size_t)numfmt_about(f)->bytes, f, 1);
    return x;
}

static float side_half(const uint8_t *side, int row, int64_t lane)
{
    uint16_t h;
    memcpy(&h, side + (row * PANEL + lane) * 2, sizeof h);
    return half_to_float(h);
}

/* The number that the bits of a piece are, before any centre. */
static int piece_bits(const uint8_t *data, numfmt f, int i)
{
    if (f == NUM_Q8_0)
        return (int8_t)data[i / 4 * QLINE + i % 4];
    const int byte = data[i % 16 / 4 * QLINE + i % 4], low = i < 16 ? byte & 15 : byte >> 4;
    const int lines = layouts[f].data / QLINE;
    if (lines == 5)
        return low | (data[4 * QLINE + i % 4] >> i / 4 & 1) << 4;
    return lines == 6 ? low | (data[(4 + i / 16) * QLINE + i % 4] >> i % 16 / 4 * 2 & 3) << 4 : low;
}

static int piece_number(int bits, numfmt f)
{
    switch (f) {
    case NUM_Q4_0:
        return bits - 8;
    case NUM_Q5_0:
        return bits - 16;
    case NUM_Q6_K:
        return bits - 32;
    case NUM_IQ4_NL:
        return numfmt_iq4_nl[bits];
    case NUM_MXFP4:
        return numfmt_mxfp4[bits];
    default:
        return bits;
    }
}

static void read_scales(qpanel_piece *out, const uint8_t *side, numfmt f, int64_t b, int64_t lane)
{
    const int super = numfmt_about(f)->block / QBLOCK;
    side += b / super * super * layouts[f].side;
    out->least = qpanel_least(f) ? side_half(side, 1, lane) : 0.0f;
    if (f == NUM_MXFP4) { /* half of it, because its numbers are doubled; denormals are zeros here */
        out->scale[0] = out->scale[1] = side[lane] < 2 ? 0.0f : bits_float((uint32_t)(side[lane] - 1) << 23);
        return;
    }
    out->scale[0] = out->scale[1] = side_half(side, 0, lane);
    if (super == 1)
        return;
    const uint8_t *first = side + (qpanel_least(f) ? 4 : 2) * PANEL + b % super * 2 * PANEL + lane, *second = first + PANEL;
    if (qpanel_halves(f)) {
        out->scale[1] *= (float)(int8_t)*second, out->scale[0] *= (float)(int8_t)*first;
        return;
    }
    out->scale[0] = out->scale[1] = out->scale[0] * (float)*first;
    out->least *= -(float)*second;
}

void qpanel_read(qpanel_piece *out, const void *panels, numfmt f, int64_t n, int64_t b, int64_t N, int64_t K)
{
    const qpanel_layout l = layouts[f];
    const uint8_t *data = qpanel_data(panels, l, n / PANEL, K) + b * l.data + n % PANEL * 4;
    for (int i = 0; i < QBLOCK; i++)
        out->q[i] = (int8_t)piece_number(piece_bits(data, f, i), f);
    read_scales(out, qpanel_side(panels, l, n / PANEL, N, K), f, b, n % PANEL);
}

void qpanel_row(float *out, const void *panels, numfmt f, int64_t n, int64_t N, int64_t K)
{
    if (qpanel_chained(f)) {
        for (int64_t k = 0; k < K; k++)
            out[k] = qpanel_element(panels, f, n, k, N, K);
        return;
    }
    for (int64_t b = 0; b < K / QBLOCK; b++) {
        qpanel_piece piece;
        qpanel_read(&piece, panels, f, n, b, N, K);
        for (int i = 0; i < QBLOCK; i++)
            out[b * QBLOCK + i] = (float)piece.q[i] * piece.scale[i / 16] + (qpanel_least(f) ? piece.least : -0.0f); /* x + -0 is x */
    }
}

moe_err qmatmul_check(const qmatmul_args *a)
{
    if (a->M < 1 || a->M > QMATMUL_MOST)
        return moe_fail(MOE_E_CONFIG, "qmatmul: expected 1 to %d matrices, found %d", QMATMUL_MOST, a->M);
    for (int m = 0; m < a->M; m++) {
        const numfmt f = a->mat[m].format;
        if ((unsigned)f >= NUM_FORMATS)
            return moe_fail(MOE_E_CONFIG, "qmatmul: matrix %d of %d has number format %d, which does not exist", m, a->M, (int)f);
        if (a->K % numfmt_about(f)->block != 0)
            return moe_fail(MOE_E_CONFIG, "qmatmul: %d inputs in %s: expected a multiple of %d", a->K, numfmt_about(f)->name,
                            numfmt_about(f)->block);
    }
    return MOE_OK;
}
