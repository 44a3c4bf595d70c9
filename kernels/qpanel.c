/* Rows of weights into panels, and single rows and blocks out of them (kernels/qpanel.h). Owns the layouts.
 * Packing runs whenever an expert lands: 128-bit shuffles that every x86-64 has, and cpu/qpanel.c where there is more. Any thread, no
 * state.
 * Rule: the panels of a matrix hold every number it was given, bit by bit (tests/kernels/test_qmatmul.c reads them back). */
#include "kernels/qpanel.h"

#include <string.h>

#include "kernels/half.h"

typedef uint32_t u32x4 __attribute__((vector_size(16)));
typedef uint16_t u16x8 __attribute__((vector_size(16)));

static const qpanel_layout layouts[NUM_FORMATS] = {
    [NUM_Q4_0] = {4 * QLINE, 2 * PANEL},
    [NUM_Q4_1] = {4 * QLINE, 4 * PANEL},
    [NUM_Q8_0] = {8 * QLINE, 2 * PANEL},
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
    const u32x4 a = __builtin_shuffle(r[0], r[1], (u32x4){0, 4, 1, 5}), A = __builtin_shuffle(r[0], r[1], (u32x4){2, 6, 3, 7});
    const u32x4 b = __builtin_shuffle(r[2], r[3], (u32x4){0, 4, 1, 5}), B = __builtin_shuffle(r[2], r[3], (u32x4){2, 6, 3, 7});
    r[0] = __builtin_shuffle(a, b, (u32x4){0, 1, 4, 5}), r[1] = __builtin_shuffle(a, b, (u32x4){2, 3, 6, 7});
    r[2] = __builtin_shuffle(A, B, (u32x4){0, 1, 4, 5}), r[3] = __builtin_shuffle(A, B, (u32x4){2, 3, 6, 7});
    for (size_t i = 0; i < 4; i++)
        memcpy(out + i * QLINE, &r[i], sizeof r[i]);
}

/* 8 x 8 halves, written 2 * PANEL bytes apart. */
static inline void turn_halves(uint8_t *out, const uint8_t *in, size_t stride)
{
    const u16x8 low = {0, 8, 1, 9, 2, 10, 3, 11}, high = {4, 12, 5, 13, 6, 14, 7, 15};
    u16x8 r[8], t[8];
    for (size_t i = 0; i < 8; i++)
        memcpy(&r[i], in + i * stride, sizeof r[i]);
    for (int round = 0; round < 3; round++) { /* i and i + 4 are interleaved: after three rounds columns are rows */
        for (int i = 0; i < 4; i++) {
            t[2 * i] = __builtin_shuffle(r[i], r[i + 4], low);
            t[2 * i + 1] = __builtin_shuffle(r[i], r[i + 4], high);
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

static void pack_panel(uint8_t *data, uint8_t *side, const uint8_t *rows, size_t stride, numfmt f, int64_t K)
{
    const qpanel_layout l = layouts[f];
    if (l.data == 0)
        pack_plain(data, rows, stride, numfmt_about(f)->bytes, K);
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

float qpanel_element(const void *panels, numfmt f, int64_t n, int64_t k, int64_t K)
{
    float x;
    numfmt_to_f32(&x, (const uint8_t *)panels + panel_index(n, k, K) * (size_t)numfmt_about(f)->bytes, f, 1);
    return x;
}

static float side_half(const uint8_t *side, int row, int64_t lane)
{
    uint16_t h;
    memcpy(&h, side + (row * PANEL + lane) * 2, sizeof h);
    return half_to_float(h);
}

void qpanel_read(qpanel_piece *out, const void *panels, numfmt f, int64_t n, int64_t b, int64_t N, int64_t K)
{
    const qpanel_layout l = layouts[f];
    const int64_t lane = n % PANEL;
    const uint8_t *data = qpanel_data(panels, l, n / PANEL, K) + b * l.data + lane * 4;
    const uint8_t *side = qpanel_side(panels, l, n / PANEL, N, K) + b * l.side;
    for (int i = 0; i < QBLOCK; i++) {
        const uint8_t byte = data[(f == NUM_Q8_0 ? i : i % 16) / 4 * QLINE + i % 4];
        out->q[i] = (int8_t)(f == NUM_Q8_0 ? byte : (i < 16 ? byte & 15 : byte >> 4) - (f == NUM_Q4_0 ? 8 : 0));
    }
    out->scale = side_half(side, 0, lane);
    out->least = f == NUM_Q4_1 ? side_half(side, 1, lane) : 0.0f;
}

void qpanel_row(float *out, const void *panels, numfmt f, int64_t n, int64_t N, int64_t K)
{
    if (layouts[f].data == 0) {
        for (int64_t k = 0; k < K; k++)
            out[k] = qpanel_element(panels, f, n, k, K);
        return;
    }
    for (int64_t b = 0; b < K / QBLOCK; b++) {
        qpanel_piece piece;
        qpanel_read(&piece, panels, f, n, b, N, K);
        for (int i = 0; i < QBLOCK; i++)
            out[b * QBLOCK + i] = (float)piece.q[i] * piece.scale + (f == NUM_Q4_1 ? piece.least : -0.0f); /* x + -0 is x */
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
