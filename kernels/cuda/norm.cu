/* RMSNorm on a GPU (kernels/norm.h): half a warp a row, because a row's sum has sixteen lanes; dgain is one chain over the rows, so a thread
 * a column. Bits of the CPU.
 * Rule: dgain is finished before dx is written, because dx may be dy. */
#include "kernels/cuda/device.cuh"

enum { ROWS_OF_BLOCK = BLOCK_THREADS / ROW_LANES };

static __device__ inline size_t row_at(const rmsnorm_args *a, int64_t r, size_t ld)
{
    return (size_t)(r / a->heads) * ld + (size_t)(r % a->heads) * a->D;
}

static __global__ void rmsnorm_forward_kernel(rmsnorm_args a)
{
    const int lane = threadIdx.x % ROW_LANES;
    const int64_t rows = a.T * a.heads;
    for (int64_t first = blockIdx.x * (int64_t)ROWS_OF_BLOCK; first < rows; first += gridDim.x * (int64_t)ROWS_OF_BLOCK) {
        const int64_t r = first + threadIdx.x / ROW_LANES;
        const int D = r < rows ? a.D : 0;
        const float *x = a.x + row_at(&a, r, a.ldx);
        float *y = a.y + row_at(&a, r, a.ldy), squares = 0.0f;
        for (int d = lane; d < D; d += ROW_LANES)
            squares = fmaf(x[d], x[d], squares);
        const float inv = 1.0f / sqrtf(lanes_sum(squares, lane, a.D) / (float)a.D + a.eps);
        for (int d = lane; d < D; d += ROW_LANES)
            y[d] = x[d] * inv * a.gain[d];
        if (a.inv != NULL && lane == 0 && r < rows)
            a.inv[r] = inv;
    }
}

static __global__ void rmsnorm_dgain_kernel(rmsnorm_args a)
{
    const int d = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (d >= a.D)
        return;
    float sum = a.dgain[d];
    for (int64_t r = 0; r < a.T * a.heads; r++)
        sum = fmaf(a.dy[row_at(&a, r, a.ldy) + d], a.x[row_at(&a, r, a.ldx) + d] * a.inv[r], sum);
    a.dgain[d] = sum;
}

static __global__ void rmsnorm_dx_kernel(rmsnorm_args a)
{
    const int lane = threadIdx.x % ROW_LANES;
    const int64_t rows = a.T * a.heads;
    for (int64_t first = blockIdx.x * (int64_t)ROWS_OF_BLOCK; first < rows; first += gridDim.x * (int64_t)ROWS_OF_BLOCK) {
        const int64_t r = first + threadIdx.x / ROW_LANES;
        const int D = r < rows ? a.D : 0;
        const float *x = a.x + row_at(&a, r, a.ldx), *dy = a.dy + row_at(&a, r, a.ldy), inv = r < rows ? a.inv[r] : 0.0f;
        float *dx = a.dx + row_at(&a, r, a.ldx), sum = 0.0f;
        for (int d = lane; d < D; d += ROW_LANES)
            sum = fmaf(dy[d] * a.gain[d], x[d] * inv, sum);
        const float c = lanes_sum(sum, lane, a.D) / (float)a.D;
        for (int d = lane; d < D; d += ROW_LANES) {
            const float e = fmaf(-c, x[d] * inv, dy[d] * a.gain[d]);
            dx[d] = a.accumulate ? fmaf(inv, e, dx[d]) : inv * e;
        }
    }
}

extern "C" moe_err rmsnorm_forward_cuda(const rmsnorm_args *a, moe_stream *s)
{
    if (a->T > 0 && a->heads > 0)
        CUDA_LAUNCH(rmsnorm_forward_kernel, grid_for((size_t)a->T * (size_t)a->heads, ROWS_OF_BLOCK), BLOCK_THREADS, s->cuda->stream, *a);
    return launched("rmsnorm");
}

extern "C" moe_err rmsnorm_backward_cuda(const rmsnorm_args *a, moe_stream *s)
{
    if (a->T <= 0 || a->heads <= 0)
        return MOE_OK;
    CUDA_LAUNCH(rmsnorm_dgain_kernel, ((unsigned)a->D + BLOCK_THREADS - 1) / BLOCK_THREADS, BLOCK_THREADS, s->cuda->stream, *a);
    CUDA_LAUNCH(rmsnorm_dx_kernel, grid_for((size_t)a->T * (size_t)a->heads, ROWS_OF_BLOCK), BLOCK_THREADS, s->cuda->stream, *a);
    return launched("rmsnorm, backward");
}
