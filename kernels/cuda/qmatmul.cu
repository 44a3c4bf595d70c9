/* Products with Q4_0 and Q8_0 weights as they are stored (kernels/qmatmul.h) on a GPU, made for few rows: a block takes 64 outputs of one row,
 * quantises sixteen blocks of activations at a time, four threads an output multiply them, one adds the parts in block order. Bits of the CPU:
 * the integer sums are exact and the chain is the CPU's. Any number of rows works; many rows read the weights once each.
 * Rule: the other formats are refused with a sentence, never approximated. */
#include "kernels/cuda/device.cuh"
extern "C" {
#include "kernels/qpanel.h"
}

enum {
    OUTPUTS = 64,       /* of a block: four panels                 */
    PIECES = 16,        /* blocks of activations at a time         */
    SLICES = BLOCK_THREADS / OUTPUTS,
    WORDS = QBLOCK / 4, /* of four activations                     */
    ROW_SLOTS = 32,     /* blocks side by side along the rows      */
};
static_assert(BLOCK_THREADS == PIECES * ROW_LANES && QBLOCK == 2 * ROW_LANES, "half a warp quantises a block, two numbers a thread");

typedef struct activations {
    int words[PIECES][WORDS]; /* four signed bytes each */
    int sum[PIECES];
    float d[PIECES];
} activations;

/* Block `piece` of the row by half a warp; K: what is left of the row. */
static __device__ inline void quantise(activations *out, const float *x, int K)
{
    const int piece = threadIdx.x / ROW_LANES, lane = threadIdx.x % ROW_LANES, first = piece * QBLOCK + 2 * lane;
    const float x0 = first < K ? x[first] : 0.0f, x1 = first < K ? x[first + 1] : 0.0f;
    const uint32_t bits0 = float_bits(x0) & 0x7fffffffu, bits1 = float_bits(x1) & 0x7fffffffu;
    uint32_t most = bits0 > bits1 ? bits0 : bits1;
    for (int with = ROW_LANES / 2; with >= 1; with /= 2) {
        const uint32_t other = __shfl_xor_sync(ALL_LANES, most, with);
        most = other > most ? other : most;
    }
    const float amax = bits_float(most);
    const float d = most >= 0x7f800000u ? bits_float(0x7fc00000u) : amax < QACT_LEAST ? 0.0f : amax / 127.0f;
    const int a0 = d > 0 ? (int)rintf(x0 * (127.0f / amax)) : 0, a1 = d > 0 ? (int)rintf(x1 * (127.0f / amax)) : 0;
    const int pair = (a0 & 255) | (a1 & 255) << 8, next = __shfl_xor_sync(ALL_LANES, pair, 1);
    int sum = a0 + a1;
    for (int with = ROW_LANES / 2; with >= 1; with /= 2)
        sum += __shfl_xor_sync(ALL_LANES, sum, with);
    if (lane % 2 == 0)
        out->words[piece][lane / 2] = pair | next << 16;
    if (lane == 0) {
        out->sum[piece] = sum;
        out->d[piece] = qact_scale(d);
    }
}

/* Sum of q * a over a block; line: its words of this output, PANEL words from step to step. */
static __device__ inline int block_sum(const uint32_t *line, const int *a, int all, bool nibbles)
{
    int sum = 0;
    for (int s = 0; s < WORDS; s++) {
        const uint32_t word = line[(nibbles ? s % 4 : s) * PANEL];
        sum = __dp4a((int)(nibbles ? word >> (s < 4 ? 0 : 4) & 0x0f0f0f0fu : word), a[s], sum);
    }
    return nibbles ? sum - 8 * all : sum;
}

typedef struct parts {
    float sum[PIECES][OUTPUTS], scale[PIECES][OUTPUTS];
} parts;

/* The parts of the blocks from `b` on, for the outputs of this thread block. */
static __device__ inline void multiply(parts *out, const activations *x, const uint8_t *panels, qpanel_layout l, int N, int K, int b, bool nibbles)
{
    const int o = threadIdx.x % OUTPUTS, n = blockIdx.x * OUTPUTS + o, blocks = K / QBLOCK;
    for (int j = threadIdx.x / OUTPUTS; j < PIECES && b + j < blocks && n < N; j += SLICES) {
        const int64_t piece = (int64_t)(n / PANEL) * blocks + b + j;
        const uint32_t *line = (const uint32_t *)(panels + (size_t)piece * l.data) + n % PANEL;
        const uint16_t *side = (const uint16_t *)(panels + (size_t)qpanel_pieces(N, K) * l.data + (size_t)piece * l.side);
        out->sum[j][o] = (float)block_sum(line, x->words[j], x->sum[j], nibbles);
        out->scale[j][o] = half_to_float(side[n % PANEL]) * x->d[j];
    }
}

static __global__ void qmatmul_kernel(qmatmul_args a, int which, qpanel_layout l)
{
    __shared__ activations x;
    __shared__ parts part;
    const qmatrix *m = &a.mat[which];
    const bool nibbles = m->format == NUM_Q4_0;
    const int o = threadIdx.x, n = blockIdx.x * OUTPUTS + o, blocks = a.K / QBLOCK;
    for (int g = 0; g < a.G; g++)
        for (int64_t r = a.offset[g] + (int64_t)blockIdx.y; r < a.offset[g + 1]; r += gridDim.y) {
            const bool mine = o < OUTPUTS && n < m->N;
            float *y = m->y + (size_t)r * m->ldy + n, acc = mine && a.accumulate ? *y : 0.0f;
            for (int b = 0; b < blocks; b += PIECES) {
                quantise(&x, a.x + (size_t)r * a.ldx + (size_t)b * QBLOCK, a.K - b * QBLOCK);
                __syncthreads();
                multiply(&part, &x, (const uint8_t *)m->w[g], l, m->N, a.K, b, nibbles);
                __syncthreads();
                for (int j = 0; j < PIECES && b + j < blocks && mine; j++)
                    acc = fmaf(part.sum[j][o], part.scale[j][o], acc);
            }
            if (mine)
                *y = acc;
            __syncthreads();
        }
}

extern "C" moe_err qmatmul_cuda(const qmatmul_args *a, moe_stream *s)
{
    TRY(qmatmul_check(a));
    for (int i = 0; i < a->M; i++)
        if (a->mat[i].format != NUM_Q4_0 && a->mat[i].format != NUM_Q8_0)
            return moe_fail(MOE_E_CONFIG, "product: weights in %s on a GPU; expected q4_0 or q8_0", numfmt_about(a->mat[i].format)->name);
    for (int i = 0; i < a->M && a->G > 0; i++)
        if (a->mat[i].N > 0)
            CUDA_LAUNCH(qmatmul_kernel, dim3(((unsigned)a->mat[i].N + OUTPUTS - 1) / OUTPUTS, ROW_SLOTS), BLOCK_THREADS, s->cuda->stream, *a, i,
                        qpanel_about(a->mat[i].format));
    return launched("product");
}
