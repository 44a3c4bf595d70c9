/* Clamping and addition on a GPU (kernels/clip.h, kernels/reduce.h): a thread an element. Bits of the CPU. */
#include "kernels/cuda/device.cuh"

#define EACH(i, n) (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < (n); i += gridDim.x * (size_t)blockDim.x)

static __global__ void clip_forward_kernel(clip_args a)
{
    for EACH (i, a.n) {
        const float x = a.x[i] < a.limit ? a.x[i] : a.limit;
        a.x[i] = x > -a.limit ? x : -a.limit;
    }
}

static __global__ void clip_backward_kernel(clip_args a)
{
    for EACH (i, a.n)
        a.x[i] = a.kept[i] > -a.limit && a.kept[i] < a.limit ? a.x[i] : 0.0f;
}

static __global__ void add_kernel(add_args a)
{
    for EACH (i, a.n)
        a.y[i] += a.x[i];
}

extern "C" moe_err clip_forward_cuda(const clip_args *a, moe_stream *s)
{
    if (a->n > 0)
        CUDA_LAUNCH(clip_forward_kernel, grid_for(a->n, BLOCK_THREADS), BLOCK_THREADS, s->cuda->stream, *a);
    return launched("clip");
}

extern "C" moe_err clip_backward_cuda(const clip_args *a, moe_stream *s)
{
    if (a->n > 0)
        CUDA_LAUNCH(clip_backward_kernel, grid_for(a->n, BLOCK_THREADS), BLOCK_THREADS, s->cuda->stream, *a);
    return launched("clip, backward");
}

extern "C" moe_err add_cuda(const add_args *a, moe_stream *s)
{
    if (a->n > 0)
        CUDA_LAUNCH(add_kernel, grid_for(a->n, BLOCK_THREADS), BLOCK_THREADS, s->cuda->stream, *a);
    return launched("add");
}
