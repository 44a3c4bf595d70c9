/* The permutation of routed tokens to their experts on a GPU (kernels/dispatch.h): a block an expert walks the ids in order, once to count
 * and once to place; between them one block adds up the counts. What the CPU gives, whatever the number of blocks.
 * Rule: after a wrong id nothing is written (device.cuh: faulty). */
#include "kernels/cuda/device.cuh"

enum { WARPS = BLOCK_THREADS / WARP };

/* Tokens of a set; all of them without a capacity. */
static __device__ inline int64_t set_tokens(const dispatch_args *a) { return a->capacity > 0 ? a->set_tokens : a->T; }

/* How many of the block's threads with a `hit` stand before this one; *all: how many there are. `counts` is scratch of WARPS. */
static __device__ inline int rank_of(bool hit, int *all, int *counts)
{
    const unsigned votes = __ballot_sync(ALL_LANES, hit);
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    int rank = __popc(votes & ((1u << lane) - 1u));
    if (lane == 0)
        counts[warp] = __popc(votes);
    __syncthreads();
    *all = 0;
    for (int w = 0; w < WARPS; w++) {
        rank += w < warp ? counts[w] : 0;
        *all += counts[w];
    }
    __syncthreads();
    return rank;
}

static __device__ inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* The rows of expert e among the choices of tokens [first, last), counted from `row`; placed when `place`. Returns how many are kept. */
static __device__ inline int walk_set(const dispatch_args *a, int e, int64_t first, int64_t last, int row, bool place, int *counts)
{
    int seen = 0;
    for (int64_t at = first * a->K; at < last * a->K; at += BLOCK_THREADS) {
        const int64_t i = at + threadIdx.x;
        const bool hit = i < last * a->K && a->ids[i] == e;
        int all;
        const int rank = seen + rank_of(hit, &all, counts);
        const bool kept = a->capacity <= 0 || rank < a->capacity;
        if (hit && place) {
            a->row_of[i] = kept ? row + rank : -1;
            if (kept) {
                a->row_token[row + rank] = (int32_t)(i / a->K);
                a->row_slot[row + rank] = (int32_t)i;
            }
        }
        seen += all;
    }
    return a->capacity > 0 && seen > a->capacity ? a->capacity : seen;
}

/* place false: offset[e + 1] = the rows of expert e; true: offset[e] is where they begin. */
static __global__ void dispatch_walk_kernel(dispatch_args a, bool place, const cuda_fault *fault)
{
    __shared__ int counts[WARPS];
    if (faulty(fault))
        return;
    for (int e = blockIdx.x; e < a.E; e += gridDim.x) {
        const int64_t tokens = set_tokens(&a);
        int row = place ? a.offset[e] : 0;
        for (int64_t first = 0; first < a.T; first += tokens)
            row += walk_set(&a, e, first, least(first + tokens, a.T), row, place, counts);
        if (!place && threadIdx.x == 0)
            a.offset[e + 1] = row;
    }
}

/* One block: counts become ends. */
static __global__ void dispatch_scan_kernel(dispatch_args a, const cuda_fault *fault)
{
    __shared__ int held[BLOCK_THREADS];
    if (faulty(fault))
        return;
    const int i = threadIdx.x;
    int row = 0;
    if (i == 0)
        a.offset[0] = 0;
    for (int first = 0; first < a.E; first += BLOCK_THREADS) {
        held[i] = first + i < a.E ? a.offset[first + i + 1] : 0;
        __syncthreads();
        for (int by = 1; by < BLOCK_THREADS; by *= 2) {
            const int more = i >= by ? held[i - by] : 0;
            __syncthreads();
            held[i] += more;
            __syncthreads();
        }
        if (first + i < a.E)
            a.offset[first + i + 1] = row + held[i];
        row += held[BLOCK_THREADS - 1];
        __syncthreads();
    }
}

extern "C" moe_err dispatch_cuda(const dispatch_args *a, moe_stream *s)
{
    moe_cuda *c = s->cuda;
    if (a->K > 0 && a->T > INT32_MAX / a->K)
        return moe_fail(MOE_E_CONFIG, "dispatch: %lld tokens x %d choices are too many rows, at most %d; use smaller micro-batches",
                        (long long)a->T, a->K, INT32_MAX);
    c->experts = a->E, c->choices = a->K;
    TRY(check_ids(c, a->ids, a->T * a->K, a->E, FAULT_DISPATCH));
    CUDA_LAUNCH(dispatch_walk_kernel, grid_for((size_t)a->E, 1), BLOCK_THREADS, c->stream, *a, false, c->fault);
    CUDA_LAUNCH(dispatch_scan_kernel, 1, BLOCK_THREADS, c->stream, *a, c->fault);
    CUDA_LAUNCH(dispatch_walk_kernel, grid_for((size_t)a->E, 1), BLOCK_THREADS, c->stream, *a, true, c->fault);
    return launched("dispatch");
}
