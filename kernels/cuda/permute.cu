/* Rows moved by index on a GPU: embedding, gather, combine (kernels/embedding.h, kernels/dispatch.h): a block a row. Bits of the CPU.
 * Rule: after a wrong id nothing here is followed (device.cuh: faulty). */
#include "kernels/cuda/device.cuh"

static __global__ void embedding_kernel(embedding_args a, const cuda_fault *fault)
{
    if (faulty(fault))
        return;
    for (int64_t t = blockIdx.x; t < a.T; t += gridDim.x) {
        const int64_t id = a.id[t];
        for (int d = threadIdx.x; d < a.D; d += blockDim.x)
            a.x[(size_t)t * a.D + d] = a.table[a.panels ? panel_index(id, d, a.D) : (size_t)id * a.D + d];
    }
}

static __global__ void gather_kernel(gather_args a, const cuda_fault *fault)
{
    if (faulty(fault))
        return;
    for (int64_t i = blockIdx.x; i < a.n; i += gridDim.x)
        for (int d = threadIdx.x; d < a.D; d += blockDim.x)
            a.dst[(size_t)i * a.D + d] = a.src[(size_t)a.row_token[i] * a.ld + d];
}

static __global__ void combine_kernel(combine_args a, const cuda_fault *fault)
{
    if (faulty(fault))
        return;
    for (int64_t t = blockIdx.x; t < a.T; t += gridDim.x)
        for (int d = threadIdx.x; d < a.D; d += blockDim.x) {
            float sum = 0.0f;
            for (size_t slot = (size_t)t * a.K; slot < (size_t)(t + 1) * a.K; slot++)
                if (a.row_of[slot] >= 0)
                    sum = fmaf(a.weight != NULL ? a.weight[slot] : 1.0f, a.rows[(size_t)a.row_of[slot] * a.D + d], sum);
            const size_t i = (size_t)t * a.D + d;
            a.out[i] = a.base != NULL ? sum + a.base[i] : sum;
        }
}

extern "C" moe_err embedding_forward_cuda(const embedding_args *a, moe_stream *s)
{
    if (a->T <= 0)
        return MOE_OK;
    s->cuda->vocabulary = a->V;
    TRY(check_ids(s->cuda, a->id, a->T, a->V, FAULT_EMBEDDING));
    CUDA_LAUNCH(embedding_kernel, grid_for((size_t)a->T, 1), BLOCK_THREADS, s->cuda->stream, *a, s->cuda->fault);
    return launched("embedding");
}

extern "C" moe_err gather_cuda(const gather_args *a, moe_stream *s)
{
    if (a->n > 0)
        CUDA_LAUNCH(gather_kernel, grid_for((size_t)a->n, 1), BLOCK_THREADS, s->cuda->stream, *a, s->cuda->fault);
    return launched("gather");
}

extern "C" moe_err combine_cuda(const combine_args *a, moe_stream *s)
{
    if (a->T > 0)
        CUDA_LAUNCH(combine_kernel, grid_for((size_t)a->T, 1), BLOCK_THREADS, s->cuda->stream, *a, s->cuda->fault);
    return launched("combine");
}
