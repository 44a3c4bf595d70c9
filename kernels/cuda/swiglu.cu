/* SwiGLU and the gate of a shared expert on a GPU (kernels/swiglu.h). Forward: a block a row. Backward: half a warp a row, because the row's
 * sum has sixteen lanes. Bits of the CPU.
 * Rule: a thread reads all inputs of an element before it writes its outputs: da may be a, hc may be dh. */
#include "kernels/cuda/device.cuh"
#include "kernels/math.h"

enum { ROWS_OF_BLOCK = BLOCK_THREADS / ROW_LANES };

static __device__ inline float middle(const swiglu_args *a, float g, float u)
{
    if (!(a->limit > 0))
        return g * moe_sigmoidf(g) * u;
    g = g > a->limit ? a->limit : g;
    u = u > a->limit ? a->limit : u < -a->limit ? -a->limit : u;
    return g * moe_sigmoidf(a->alpha * g) * (u + 1.0f);
}

static __global__ void swiglu_forward_kernel(swiglu_args a)
{
    for (int64_t r = blockIdx.x; r < a.rows; r += gridDim.x) {
        const float *g = a.a + (size_t)r * 2 * a.Fp, *u = g + a.Fp;
        for (int f = threadIdx.x; f < a.Fp; f += blockDim.x)
            a.h[(size_t)r * a.Fp + f] = f < a.F ? middle(&a, g[f], u[f]) : 0.0f;
    }
}

/* One element; returns the lane's sum continued. */
static __device__ inline float element_backward(const swiglu_args *a, size_t r, int f, float c, float sum)
{
    const size_t Fp = (size_t)a->Fp;
    float *da = a->da + r * 2 * Fp, *hc = a->hc + r * Fp;
    if (f >= a->F) {
        da[f] = da[Fp + f] = hc[f] = 0.0f;
        return sum;
    }
    const float g = a->a[r * 2 * Fp + f], u = a->a[r * 2 * Fp + Fp + f], d = a->dh[r * Fp + f];
    const float sig = moe_sigmoidf(g), silu = g * sig, h = silu * u, cd = c * d;
    hc[f] = c * h;
    da[f] = cd * u * sig * fmaf(g, 1.0f - sig, 1.0f);
    da[Fp + f] = cd * silu;
    return fmaf(h, d, sum);
}

static __global__ void swiglu_backward_kernel(swiglu_args a)
{
    const int lane = threadIdx.x % ROW_LANES;
    for (int64_t first = blockIdx.x * (int64_t)ROWS_OF_BLOCK; first < a.rows; first += gridDim.x * (int64_t)ROWS_OF_BLOCK) {
        const int64_t r = first + threadIdx.x / ROW_LANES;
        float sum = 0.0f;
        if (r < a.rows) {
            const float c = a.c != NULL ? a.c[r] : 1.0f;
            for (int f = lane; f < a.Fp; f += ROW_LANES)
                sum = element_backward(&a, (size_t)r, f, c, sum);
        }
        sum = lanes_sum(sum, lane, a.F);
        if (lane == 0 && r < a.rows && a.c != NULL)
            a.dweight[r] = sum;
    }
}

static __global__ void gate_forward_kernel(gate_args a)
{
    for (int64_t t = blockIdx.x; t < a.T; t += gridDim.x) {
        const float sig = moe_sigmoidf(a.z[t]);
        for (int d = threadIdx.x; d < a.D; d += blockDim.x)
            a.y[(size_t)t * a.D + d] *= sig;
    }
}

static __global__ void gate_backward_kernel(gate_args a)
{
    const int lane = threadIdx.x % ROW_LANES;
    for (int64_t first = blockIdx.x * (int64_t)ROWS_OF_BLOCK; first < a.T; first += gridDim.x * (int64_t)ROWS_OF_BLOCK) {
        const int64_t t = first + threadIdx.x / ROW_LANES;
        const float sig = t < a.T ? moe_sigmoidf(a.z[t]) : 0.0f;
        float sum = 0.0f;
        for (int d = lane; d < a.D && t < a.T; d += ROW_LANES) {
            const size_t i = (size_t)t * a.D + d;
            const float dy = a.dy[i];
            sum = fmaf(dy, a.y[i], sum);
            a.dy[i] = dy * sig;
        }
        sum = lanes_sum(sum, lane, a.D);
        if (lane == 0 && t < a.T)
            a.dz[t] = sig * (1.0f - sig) * sum;
    }
}

extern "C" moe_err swiglu_forward_cuda(const swiglu_args *a, moe_stream *s)
{
    if (a->rows > 0)
        CUDA_LAUNCH(swiglu_forward_kernel, grid_for((size_t)a->rows, 1), BLOCK_THREADS, s->cuda->stream, *a);
    return launched("swiglu");
}

extern "C" moe_err swiglu_backward_cuda(const swiglu_args *a, moe_stream *s)
{
    if (a->rows > 0)
        CUDA_LAUNCH(swiglu_backward_kernel, grid_for((size_t)a->rows, ROWS_OF_BLOCK), BLOCK_THREADS, s->cuda->stream, *a);
    return launched("swiglu, backward");
}

extern "C" moe_err gate_forward_cuda(const gate_args *a, moe_stream *s)
{
    if (a->T > 0)
        CUDA_LAUNCH(gate_forward_kernel, grid_for((size_t)a->T, 1), BLOCK_THREADS, s->cuda->stream, *a);
    return launched("gate");
}

extern "C" moe_err gate_backward_cuda(const gate_args *a, moe_stream *s)
{
    if (a->T > 0)
        CUDA_LAUNCH(gate_backward_kernel, grid_for((size_t)a->T, ROWS_OF_BLOCK), BLOCK_THREADS, s->cuda->stream, *a);
    return launched("gate, backward");
}
