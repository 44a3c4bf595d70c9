/* Tensor cores as sm_80 and later have them: m16n8k16, bf16 in, fp32 accumulated, and the loads that bring its fragments from shared memory.
 * Owns a warp's 32 x 32 piece of a product. A warp calls with all its lanes.
 * Rule: rows in shared memory begin at multiples of 16 bytes and are not a multiple of 128 apart (bank conflicts). */
#ifndef MOE_KERNELS_CUDA_MMA_CUH
#define MOE_KERNELS_CUDA_MMA_CUH

#include "kernels/cuda/device.cuh"

enum { MMA_M = 16, MMA_N = 8, MMA_K = 16, WARP_TILE = 32 };

#ifdef __CUDACC__
static __device__ inline void mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* Four 8 x 8 matrices; lane 8 i + r gives the address of row r of matrix i. */
static __device__ inline void load_matrices(uint32_t out[4], const uint16_t *row, bool transposed)
{
    const uint32_t at = (uint32_t)__cvta_generic_to_shared(row);
    if (transposed)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3]) : "r"(at) : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3]) : "r"(at) : "memory");
}
#else
static inline void mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2]) { emulated_mma_bf16(d, a, b); }
static inline void load_matrices(uint32_t out[4], const uint16_t *row, bool transposed) { emulated_ldmatrix(out, row, transposed); }
#endif

/* An operand in shared memory: element (i, k) at i * stride + k, or at k * stride + i when `across`. i: a row of a, a column of b. */
typedef struct operand {
    const uint16_t *at;
    int stride;
    bool across;
} operand;

/* The 16 (i) x 16 (k) elements from (i, k) on. In a the lower half of i is matrix 0, then the upper one; in b the lower half of k. */
static __device__ inline void load_fragment(uint32_t out[4], operand o, int i, int k, bool is_b, int lane)
{
    const int matrix = lane / 8, row = lane % 8;
    const int di = 8 * (is_b ? matrix / 2 : matrix % 2), dk = 8 * (is_b ? matrix % 2 : matrix / 2);
    const uint16_t *p = o.across ? o.at + (k + dk + row) * o.stride + i + di : o.at + (i + di + row) * o.stride + k + dk;
    load_matrices(out, p, o.across);
}

/* acc[i][j] += rows i, columns j (from row, column on) over `depth` terms, a multiple of MMA_K. */
static __device__ inline void warp_product(float acc[2][4][4], operand a, operand b, int row, int column, int depth, int lane)
{
    for (int k = 0; k < depth; k += MMA_K) {
        uint32_t fa[2][4], fb[2][4];
        for (int i = 0; i < 2; i++) {
            load_fragment(fa[i], a, row + i * MMA_M, k, false, lane);
            load_fragment(fb[i], b, column + i * 2 * MMA_N, k, true, lane);
        }
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                mma_bf16(acc[i][j], fa[i], fb[j / 2] + j % 2 * 2);
    }
}

/* Where acc[i][j][v] of this lane lies in the warp's piece. */
static __device__ inline int product_row(int i, int v, int lane) { return i * MMA_M + lane / 4 + 8 * (v / 2); }
static __device__ inline int product_column(int j, int v, int lane) { return j * MMA_N + lane % 4 * 2 + v % 2; }

#endif
