/* What every file of kernels/cuda begins with: the headers of C, the launch, the sums in the order of kernels/reduce.h, the fault.
 * Owns no kernel. Compiled by nvcc, and by the host's compiler with tests/emulation on its include path.
 * Rule: whole warps take part in shuffles, so a loop around one has the same bounds for all lanes of a warp. */
#ifndef MOE_KERNELS_CUDA_DEVICE_CUH
#define MOE_KERNELS_CUDA_DEVICE_CUH

#include <cuda_runtime.h>

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef _Static_assert
#define _Static_assert static_assert
#endif
extern "C" {
#include "kernels/cuda/cuda.h"
}

#ifndef CUDA_LAUNCH /* the emulation has its own */
#define CUDA_LAUNCH(kernel, grid, block, stream, ...) kernel<<<(grid), (block), 0, (cudaStream_t)(stream)>>>(__VA_ARGS__)
#endif

enum { WARP = 32, ROW_LANES = 16, BLOCK_THREADS = 256 };
static constexpr size_t GRID_MOST = 4096; /* blocks; each walks on */
static const unsigned ALL_LANES = 0xffffffffu;

/* Blocks for n pieces, at least one. */
static inline unsigned grid_for(size_t n, size_t pieces_of_block)
{
    const size_t blocks = (n + pieces_of_block - 1) / pieces_of_block;
    return (unsigned)(blocks < 1 ? 1 : blocks > GRID_MOST ? GRID_MOST : blocks);
}

/* After the launches of one operation. */
static inline moe_err launched(const char *operation)
{
    const cudaError_t rc = cudaGetLastError();
    if (rc != cudaSuccess)
        return moe_fail(MOE_E_OS, "CUDA: %s: %s", operation, cudaGetErrorString(rc));
    return MOE_OK;
}

/* The 16-lane sum of kernels/reduce.h, by the 16 threads of half a warp: each has summed the elements of its lane of n; all get the sum. */
static __device__ inline float lanes_sum(float x, int lane, int64_t n)
{
    if (lane >= n % ROW_LANES && n % ROW_LANES != 0)
        x += 0.0f;
    for (int half = ROW_LANES / 2; half >= 1; half /= 2)
        x += __shfl_xor_sync(ALL_LANES, x, half);
    return x;
}

/* The first wrong id that a kernel of this stream met: call << 33 | index << 2 | kind, so that the lowest is the first. */
typedef struct cuda_fault {
    unsigned long long first;
    int64_t id;
} cuda_fault;

enum fault_kind { FAULT_EMBEDDING, FAULT_DISPATCH, FAULT_ROUTER };
static const unsigned long long NO_FAULT = ~0ull;

static __device__ inline bool faulty(const cuda_fault *f) { return f->first != NO_FAULT; }

/* Queues the check of n ids against [0, limit) (stream.cu). */
moe_err check_ids(moe_cuda *c, const int32_t *ids, int64_t n, int limit, fault_kind kind);

#endif
