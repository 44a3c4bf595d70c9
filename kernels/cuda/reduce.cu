/* Sum of squares on a GPU (kernels/reduce.h): a block a chunk, sixteen of its threads carry the lanes while all of them fetch; one thread adds the
 * chunks in order. Bits of the CPU. */
#include "kernels/cuda/device.cuh"

enum { FETCH = 2048 }; /* floats in shared memory at a time */
static_assert(SUM_SQUARES_CHUNK % FETCH == 0 && FETCH % ROW_LANES == 0, "a lane goes on where it stopped");

static __global__ void chunk_squares_kernel(double *sums, const float *x, size_t n, size_t chunks)
{
    __shared__ float held[FETCH];
    __shared__ double lanes[ROW_LANES];
    for (size_t c = blockIdx.x; c < chunks; c += gridDim.x) {
        const size_t first = c * SUM_SQUARES_CHUNK, left = n - first;
        const int count = (int)(left < SUM_SQUARES_CHUNK ? left : (size_t)SUM_SQUARES_CHUNK);
        double sum = 0.0;
        for (int at = 0; at < count; at += FETCH) {
            const int here = count - at < FETCH ? count - at : (int)FETCH;
            for (int i = threadIdx.x; i < here; i += blockDim.x)
                held[i] = x[first + at + i];
            __syncthreads();
            for (int i = threadIdx.x; i < here && threadIdx.x < ROW_LANES; i += ROW_LANES)
                sum = fma((double)held[i], (double)held[i], sum);
            __syncthreads();
        }
        if (threadIdx.x < ROW_LANES)
            lanes[threadIdx.x] = sum;
        __syncthreads();
        if (threadIdx.x == 0) {
            for (int half = ROW_LANES / 2; half >= 1; half /= 2)
                for (int i = 0; i < half; i++)
                    lanes[i] += lanes[i + half];
            sums[c] = lanes[0];
        }
        __syncthreads();
    }
}

static __global__ void add_chunks_kernel(double *out, const double *sums, size_t chunks)
{
    double sum = 0.0;
    for (size_t c = 0; c < chunks; c++)
        sum += sums[c];
    *out = sum;
}

extern "C" moe_err sum_squares_cuda(const sum_squares_args *a, moe_stream *s)
{
    const size_t chunks = (a->n + SUM_SQUARES_CHUNK - 1) / SUM_SQUARES_CHUNK;
    double *sums = (double *)s->cuda->scratch;
    if (chunks > CUDA_SCRATCH_BYTES / sizeof *sums)
        return moe_fail(MOE_E_CONFIG, "sum of squares: %zu numbers in one call, at most %zu", a->n,
                        CUDA_SCRATCH_BYTES / sizeof *sums * (size_t)SUM_SQUARES_CHUNK);
    if (chunks > 0)
        CUDA_LAUNCH(chunk_squares_kernel, grid_for(chunks, 1), BLOCK_THREADS, s->cuda->stream, sums, a->x, a->n, chunks);
    CUDA_LAUNCH(add_chunks_kernel, 1, 1, s->cuda->stream, a->out, sums, chunks);
    return launched("sum of squares");
}
