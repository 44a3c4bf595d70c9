/* The three grouped products of kernels/matmul.h on tensor cores: ragged rows, weights in panels. x, y and fp32 weights are rounded to bf16
 * (nearest even) on their way into shared memory; sums are fp32. A block makes a 64 x 64 tile from the first term to the last, so a result
 * depends on its own row, column and nothing else; which order an mma.sync adds in is the GPU's affair, so the CPU's bits are not promised:
 * tests/cuda/test_matmul.c derives the tolerance.
 * Rule: a grid of a fixed size walks the tiles of all groups: row counts stay on the device. Speed is not measured yet. */
#include "kernels/cuda/mma.cuh"
#include "kernels/half.h"

enum {
    TILE = 64,            /* rows and columns of a block's result: 2 x 2 warps */
    DEPTH = 32,           /* terms in shared memory at a time                  */
    DEPTH_STRIDE = DEPTH + 8, TILE_STRIDE = TILE + 8, /* 80 and 144 bytes      */
    GEMM_THREADS = 128,
    BLOCKS_OF_PROCESSOR = 8,
    HELD = TILE * DEPTH_STRIDE > DEPTH * TILE_STRIDE ? TILE * DEPTH_STRIDE : DEPTH * TILE_STRIDE,
};
static_assert(TILE == 2 * WARP_TILE && GEMM_THREADS == 4 * WARP, "four warps make a tile");
static_assert(DEPTH % MMA_K == 0 && DEPTH % PANEL == 0 && TILE % PANEL == 0, "whole panels");
static_assert(DEPTH_STRIDE * 2 % 16 == 0 && TILE_STRIDE * 2 % 16 == 0, "ldmatrix reads rows of 16 bytes");

/* The tile that a block makes: TILE rows from `row` of group g (they end at `end`), columns from `column`. */
typedef struct tile {
    int g, column;
    int64_t row, end;
} tile;

/* Walks over the tiles of groups with ragged rows; `before`: tiles of the groups before g. */
typedef struct walk {
    int g;
    int64_t before;
} walk;

static __device__ inline bool find_tile(tile *t, walk *w, const int32_t *offset, int G, int columns, int64_t which)
{
    for (; w->g < G; w->g++) {
        const int64_t first = offset[w->g], end = offset[w->g + 1], tiles = (end - first + TILE - 1) / TILE * columns;
        if (which - w->before < tiles) {
            const int64_t here = which - w->before;
            *t = {w->g, (int)(here % columns) * TILE, first + here / columns * TILE, end};
            return true;
        }
        w->before += tiles;
    }
    return false;
}

static __device__ inline uint16_t weight_bits(const matmul_args *a, int g, size_t i)
{
    return a->w16 != NULL ? a->w16[g][i] : bf16_from_float(a->w[g][i]);
}

/* held[i][k] = rows `row` + i, columns `column` + k of a matrix; zeros past `end` and `width`. */
static __device__ inline void hold_rows(uint16_t *held, const float *m, size_t ld, int64_t row, int64_t end, int column, int width)
{
    for (int at = threadIdx.x; at < TILE * DEPTH; at += GEMM_THREADS) {
        const int i = at / DEPTH, k = at % DEPTH;
        const bool there = row + i < end && column + k < width;
        held[i * DEPTH_STRIDE + k] = there ? bf16_from_float(m[(size_t)(row + i) * ld + (size_t)(column + k)]) : 0;
    }
}

/* held[r][i] = rows `row` + r, columns `column` + i. */
static __device__ inline void hold_across(uint16_t *held, const float *m, size_t ld, int64_t row, int64_t end, int column, int width)
{
    for (int at = threadIdx.x; at < TILE * DEPTH; at += GEMM_THREADS) {
        const int r = at / TILE, i = at % TILE;
        const bool there = row + r < end && column + i < width;
        held[r * TILE_STRIDE + i] = there ? bf16_from_float(m[(size_t)(row + r) * ld + (size_t)(column + i)]) : 0;
    }
}

/* Outputs n0 .. n0 + outputs - 1 and inputs k0 .. k0 + inputs - 1 of the weights to held[k * stride + n]: sixteen outputs lie side by side. */
static __device__ inline void hold_weights(uint16_t *held, int stride, const matmul_args *a, int g, int n0, int outputs, int k0, int inputs)
{
    for (int at = threadIdx.x; at < outputs * inputs; at += GEMM_THREADS) {
        const int panel = at / (inputs * PANEL), k = at / PANEL % inputs, n = panel * PANEL + at % PANEL;
        const bool there = n0 + n < a->N && k0 + k < a->K;
        held[k * stride + n] = there ? weight_bits(a, g, panel_index(n0 + n, k0 + k, a->K)) : (uint16_t)0;
    }
}

static __device__ inline void clear(float acc[2][4][4])
{
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 4; j++)
            for (int v = 0; v < 4; v++)
                acc[i][j][v] = 0.0f;
}

/* Rows of y or dx: continued when `accumulate`. */
static __device__ inline void store_rows(float *out, size_t ld, const float acc[2][4][4], const tile *t, int width, bool accumulate)
{
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 4; j++)
            for (int v = 0; v < 4; v++) {
                const int64_t r = t->row + warp / 2 * WARP_TILE + product_row(i, v, lane);
                const int c = t->column + warp % 2 * WARP_TILE + product_column(j, v, lane);
                float *p = out + (size_t)r * ld + (size_t)c;
                if (r < t->end && c < width)
                    *p = accumulate ? *p + acc[i][j][v] : acc[i][j][v];
            }
}

static __device__ inline void multiply(float acc[2][4][4], const uint16_t *a, bool a_across, const uint16_t *b, bool b_across)
{
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const operand left = {a, a_across ? TILE_STRIDE : DEPTH_STRIDE, a_across}, right = {b, b_across ? TILE_STRIDE : DEPTH_STRIDE, b_across};
    __syncthreads();
    warp_product(acc, left, right, warp / 2 * WARP_TILE, warp % 2 * WARP_TILE, DEPTH, lane);
    __syncthreads();
}

static __global__ void __launch_bounds__(GEMM_THREADS) matmul_forward_kernel(matmul_args a)
{
    __shared__ __align__(16) uint16_t rows[HELD], weights[HELD];
    const int columns = (a.N + TILE - 1) / TILE;
    walk w = {0, 0};
    tile t;
    for (int64_t which = blockIdx.x; find_tile(&t, &w, a.offset, a.G, columns, which); which += gridDim.x) {
        float acc[2][4][4];
        clear(acc);
        for (int k = 0; k < a.K; k += DEPTH) {
            hold_rows(rows, a.x, a.ldx, t.row, t.end, k, a.K);
            hold_weights(weights, TILE_STRIDE, &a, t.g, t.column, TILE, k, DEPTH);
            multiply(acc, rows, false, weights, true);
        }
        store_rows(a.y, a.ldy, acc, &t, a.N, a.accumulate);
    }
}

static __global__ void __launch_bounds__(GEMM_THREADS) matmul_dx_kernel(matmul_args a)
{
    __shared__ __align__(16) uint16_t rows[HELD], weights[HELD];
    const int columns = (a.K + TILE - 1) / TILE;
    walk w = {0, 0};
    tile t;
    for (int64_t which = blockIdx.x; find_tile(&t, &w, a.offset, a.G, columns, which); which += gridDim.x) {
        float acc[2][4][4];
        clear(acc);
        for (int n = 0; n < a.N; n += DEPTH) {
            hold_rows(rows, a.y, a.ldy, t.row, t.end, n, a.N);
            hold_weights(weights, DEPTH_STRIDE, &a, t.g, n, DEPTH, t.column, TILE);
            multiply(acc, rows, false, weights, false);
        }
        store_rows(a.x, a.ldx, acc, &t, a.K, a.accumulate);
    }
}

/* The tile (n, k) of dw[g]. Pads of N: as accumulate says, else zeros. */
static __device__ inline void store_panels(const matmul_args *a, int g, int n0, int k0, const float acc[2][4][4])
{
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 4; j++)
            for (int v = 0; v < 4; v++) {
                const int n = n0 + warp / 2 * WARP_TILE + product_row(i, v, lane), k = k0 + warp % 2 * WARP_TILE + product_column(j, v, lane);
                if (n >= panel_pad(a->N) || k >= a->K)
                    continue;
                float *p = a->dw[g] + panel_index(n, k, a->K);
                *p = a->accumulate ? *p + acc[i][j][v] : acc[i][j][v];
            }
}

static __global__ void __launch_bounds__(GEMM_THREADS) matmul_dw_kernel(matmul_args a)
{
    __shared__ __align__(16) uint16_t left[HELD], right[HELD];
    const int down = (a.N + TILE - 1) / TILE, across = (a.K + TILE - 1) / TILE;
    for (int64_t which = blockIdx.x; which < (int64_t)a.G * down * across; which += gridDim.x) {
        const int g = (int)(which / (down * across)), n = (int)(which / across % down) * TILE, k = (int)(which % across) * TILE;
        const int64_t end = a.offset[g + 1];
        float acc[2][4][4];
        clear(acc);
        for (int64_t r = a.offset[g]; r < end; r += DEPTH) {
            hold_across(left, a.y, a.ldy, r, end, n, a.N);
            hold_across(right, a.x, a.ldx, r, end, k, a.K);
            multiply(acc, left, true, right, true);
        }
        store_panels(&a, g, n, k, acc);
    }
}

static unsigned blocks_of(const moe_cuda *c) { return (unsigned)(c->processors * BLOCKS_OF_PROCESSOR); }

extern "C" moe_err matmul_forward_cuda(const matmul_args *a, moe_stream *s)
{
    if (a->G > 0 && a->N > 0)
        CUDA_LAUNCH(matmul_forward_kernel, blocks_of(s->cuda), GEMM_THREADS, s->cuda->stream, *a);
    return launched("product");
}

extern "C" moe_err matmul_dx_cuda(const matmul_args *a, moe_stream *s)
{
    if (a->G > 0 && a->K > 0)
        CUDA_LAUNCH(matmul_dx_kernel, blocks_of(s->cuda), GEMM_THREADS, s->cuda->stream, *a);
    return launched("product, input gradient");
}

extern "C" moe_err matmul_dw_cuda(const matmul_args *a, moe_stream *s)
{
    if (a->G > 0 && a->N > 0 && a->K > 0)
        CUDA_LAUNCH(matmul_dw_kernel, blocks_of(s->cuda), GEMM_THREADS, s->cuda->stream, *a);
    return launched("product, weight gradient");
}
