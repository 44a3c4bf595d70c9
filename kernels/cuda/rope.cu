/* Rotary position embedding on a GPU (kernels/rope.h): a block a token, a thread a pair. Bits of the CPU. */
#include "kernels/cuda/device.cuh"

static __global__ void rope_kernel(rope_args a)
{
    const int half = rope_width(&a) / 2;
    for (int64_t t = blockIdx.x; t < a.T; t += gridDim.x) {
        const float *cosine = a.table + (size_t)(t % a.S) * half, *sine = cosine + (size_t)a.S * half;
        for (int j = threadIdx.x; j < a.heads * half; j += blockDim.x) {
            const int h = j / half, i = j % half;
            const int first = a.interleaved ? 2 * i : i, second = a.interleaved ? 2 * i + 1 : i + half;
            float *x = a.x + (size_t)t * a.ld + (size_t)h * a.hd;
            const float u = x[first], v = x[second], s = a.inverse ? -sine[i] : sine[i];
            x[first] = fmaf(u, cosine[i], -(v * s));
            x[second] = fmaf(v, cosine[i], u * s);
        }
    }
}

extern "C" moe_err rope_cuda(const rope_args *a, moe_stream *s)
{
    if (a->T > 0 && a->heads > 0)
        CUDA_LAUNCH(rope_kernel, grid_for((size_t)a->T, 1), BLOCK_THREADS, s->cuda->stream, *a);
    return launched("rope");
}
