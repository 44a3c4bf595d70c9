/* The stream that CUDA kernels run on: open, close, wait; and the check of ids before a kernel follows them. Owns the device memory of a
 * moe_cuda. One thread a stream.
 * Rule: a wrong id is found before anything is written, and stops every later call that follows ids (device.cuh: faulty). */
#include "kernels/cuda/device.cuh"

static moe_err os_error(const char *what, cudaError_t rc)
{
    return moe_fail(MOE_E_OS, "CUDA: %s: %s", what, cudaGetErrorString(rc));
}

moe_err moe_cuda_open(moe_cuda **out)
{
    const cuda_fault none = {NO_FAULT, 0};
    moe_cuda *c = (moe_cuda *)calloc(1, sizeof *c);
    cudaError_t rc = cudaSuccess;
    *out = NULL;
    if (c == NULL)
        return moe_fail(MOE_E_OS, "CUDA: out of memory");
    int device = 0;
    rc = cudaGetDevice(&device);
    if (rc == cudaSuccess)
        rc = cudaDeviceGetAttribute(&c->processors, cudaDevAttrMultiProcessorCount, device);
    if (rc == cudaSuccess)
        rc = cudaMalloc((void **)&c->scratch, CUDA_SCRATCH_BYTES);
    if (rc == cudaSuccess)
        rc = cudaMalloc((void **)&c->fault, sizeof none);
    if (rc == cudaSuccess)
        rc = cudaMemcpyAsync(c->fault, &none, sizeof none, cudaMemcpyHostToDevice, (cudaStream_t)c->stream);
    if (rc == cudaSuccess)
        rc = cudaStreamSynchronize((cudaStream_t)c->stream);
    if (rc != cudaSuccess) {
        moe_cuda_close(c);
        return os_error("no device, or no memory on it for a stream", rc);
    }
    *out = c;
    return MOE_OK;
}

void moe_cuda_close(moe_cuda *c)
{
    if (c == NULL)
        return;
    cudaFree(c->scratch);
    cudaFree(c->fault);
    free(c);
}

static moe_err wrong_id(const moe_cuda *c, const cuda_fault *f)
{
    const long long index = (long long)(f->first >> 2 & 0x7fffffff);
    const int kind = (int)(f->first & 3), id = (int)f->id;
    if (kind == FAULT_EMBEDDING)
        return moe_fail(MOE_E_DATA, "embedding: token %lld has id %d, expected 0 to %d (the vocabulary)", index, id, c->vocabulary - 1);
    return moe_fail(MOE_E_DATA, "%s: token %lld, choice %d: expert %d does not exist, expected 0 to %d",
                    kind == FAULT_DISPATCH ? "dispatch" : "router", index / c->choices, (int)(index % c->choices), id, c->experts - 1);
}

moe_err moe_cuda_wait(moe_cuda *c)
{
    cuda_fault f = {NO_FAULT, 0};
    cudaError_t rc = cudaMemcpyAsync(&f, c->fault, sizeof f, cudaMemcpyDeviceToHost, (cudaStream_t)c->stream);
    if (rc == cudaSuccess)
        rc = cudaStreamSynchronize((cudaStream_t)c->stream);
    if (rc != cudaSuccess)
        return os_error("a kernel failed", rc);
    return f.first == NO_FAULT ? MOE_OK : wrong_id(c, &f);
}

/* call: which check of the stream this is; the lowest (call, index) stays. */
static __global__ void check_kernel(const int32_t *ids, int64_t n, int limit, unsigned long long call, unsigned kind, cuda_fault *fault)
{
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n; i += gridDim.x * (int64_t)blockDim.x)
        if (ids[i] < 0 || ids[i] >= limit)
            atomicMin(&fault->first, call << 33 | (unsigned long long)i << 2 | kind);
}

/* One thread: the id that the first fault is about, if it is of this call. */
static __global__ void name_kernel(const int32_t *ids, unsigned long long call, cuda_fault *fault)
{
    if (faulty(fault) && fault->first >> 33 == call)
        fault->id = ids[fault->first >> 2 & 0x7fffffff];
}

moe_err check_ids(moe_cuda *c, const int32_t *ids, int64_t n, int limit, fault_kind kind)
{
    if (n > INT32_MAX)
        return moe_fail(MOE_E_CONFIG, "CUDA: %lld ids in one call, at most %d; use smaller micro-batches", (long long)n, INT32_MAX);
    c->checks++;
    CUDA_LAUNCH(check_kernel, grid_for((size_t)n, BLOCK_THREADS), BLOCK_THREADS, c->stream, ids, n, limit, c->checks & 0x7fffffffu, kind, c->fault);
    CUDA_LAUNCH(name_kernel, 1, 1, c->stream, ids, c->checks & 0x7fffffffu, c->fault);
    return launched("check of ids");
}
