/* Kernels with one mistake each, for the test of the emulation (test_emulation.c). Never run on a GPU. */
#include "kernels/cuda/device.cuh"
#include "tests/cuda/wrong_kernels.h"

enum { N = 64 };

static __global__ void right_kernel(int *out, const int *in)
{
    __shared__ int held[N];
    const int i = threadIdx.x;
    held[i] = in[i];
    __syncthreads();
    out[i] = held[N - 1 - i];
}

static __global__ void missing_barrier_kernel(int *out, const int *in)
{
    __shared__ int held[N];
    const int i = threadIdx.x;
    held[i] = in[i];
    out[i] = held[i ^ 32];
}

static __global__ void late_overwrite_kernel(int *out, const int *in)
{
    __shared__ int held[N];
    const int i = threadIdx.x;
    held[i] = in[i];
    __syncthreads();
    out[i] = held[i ^ 1];
    held[i] = 0;
}

static __global__ void divergent_barrier_kernel(int *out, const int *in)
{
    const int i = threadIdx.x;
    if (i % 2 == 0)
        __syncthreads();
    else
        __syncthreads();
    out[i] = in[i];
}

static __global__ void left_before_barrier_kernel(int *out, const int *in)
{
    const int i = threadIdx.x;
    if (i == 5)
        return;
    __syncthreads();
    out[i] = in[i];
}

static __global__ void divergent_shuffle_kernel(int *out, const int *in)
{
    const int i = threadIdx.x;
    out[i] = i < 16 ? __shfl_xor_sync(ALL_LANES, in[i], 1) : in[i];
}

static __global__ void write_past_end_kernel(int *out, const int *in) { out[threadIdx.x + 1] = in[threadIdx.x]; }

static __global__ void read_before_begin_kernel(int *out, const int *in) { out[threadIdx.x] = in[(int)threadIdx.x - 1]; }

static __global__ void unset_kernel(int *out, const int *in)
{
    __shared__ int held[N];
    if (threadIdx.x != 3)
        held[threadIdx.x] = in[threadIdx.x];
    out[threadIdx.x] = held[threadIdx.x];
}

static __global__ void between_blocks_kernel(int *out, const int *in) { out[threadIdx.x] = in[threadIdx.x] + (int)blockIdx.x; }

extern "C" moe_err run_wrong_kernel(int which, int *out, const int *in)
{
    static const int host_number = 1;
    int sum = 0;
    switch (which) {
    case RIGHT:
        CUDA_LAUNCH(right_kernel, 1, N, NULL, out, in);
        break;
    case MISSING_BARRIER:
        CUDA_LAUNCH(missing_barrier_kernel, 1, N, NULL, out, in);
        break;
    case LATE_OVERWRITE:
        CUDA_LAUNCH(late_overwrite_kernel, 1, N, NULL, out, in);
        break;
    case DIVERGENT_BARRIER:
        CUDA_LAUNCH(divergent_barrier_kernel, 1, N, NULL, out, in);
        break;
    case LEFT_BEFORE_BARRIER:
        CUDA_LAUNCH(left_before_barrier_kernel, 1, N, NULL, out, in);
        break;
    case DIVERGENT_SHUFFLE:
        CUDA_LAUNCH(divergent_shuffle_kernel, 1, N, NULL, out, in);
        break;
    case WRITE_PAST_END:
        CUDA_LAUNCH(write_past_end_kernel, 1, N, NULL, out, in);
        break;
    case READ_BEFORE_BEGIN:
        CUDA_LAUNCH(read_before_begin_kernel, 1, N, NULL, out, in);
        break;
    case UNSET:
        CUDA_LAUNCH(unset_kernel, 1, N, NULL, out, in);
        break;
    case BETWEEN_BLOCKS:
        CUDA_LAUNCH(between_blocks_kernel, 2, N, NULL, out, in);
        break;
    case HOST_MEMORY:
        CUDA_LAUNCH(right_kernel, 1, N, NULL, out, &host_number);
        break;
    case HOST_FOLLOWS:
        for (int i = 0; i < 2; i++)
            sum += in[i];
        out[0] = sum;
        break;
    }
    return launched("wrong kernel");
}
