/* The CUDA twins of the operations of kernels/: the same argument structures, whose pointers (those inside arrays of pointers too) are
 * addresses of device memory; what is read by the host is said below. A call queues its kernels on the stream and returns.
 * Owns the stream, its scratch and the place where kernels report a wrong id. One thread a stream. C.
 * Rule: every sum is the CPU's, so the bits are the CPU's, but for NaN payloads and the products on tensor cores (matmul_*: bf16 inputs, a
 * tolerance). Numbers are flushed as on the CPU (-ftz=true). No float atomics, no split sums: a call gives the same bits every time. */
#ifndef MOE_KERNELS_CUDA_H
#define MOE_KERNELS_CUDA_H

#include "kernels/backend.h"

enum { CUDA_SCRATCH_BYTES = 8 << 20 };

typedef struct moe_cuda {
    void *stream;               /* cudaStream_t, NULL: the default stream        */
    void *scratch;              /* device, CUDA_SCRATCH_BYTES, of one call at a time */
    struct cuda_fault *fault;   /* device                                        */
    int processors;             /* of the device                                 */
    uint32_t checks;            /* calls that checked ids                        */
    int vocabulary, experts, choices; /* of the last of them: for the sentence   */
} moe_cuda;

/* The default stream of the current device. MOE_E_OS when there is no device or no memory. */
moe_err moe_cuda_open(moe_cuda **out) MOE_MUST_CHECK;
void moe_cuda_close(moe_cuda *c); /* NULL: no-op */
/* Waits for all that was queued. MOE_E_DATA with the CPU's sentence when a call met a wrong id: from there on, calls that follow ids
 * did nothing. MOE_E_OS when a kernel failed. */
moe_err moe_cuda_wait(moe_cuda *c) MOE_MUST_CHECK;

#define CUDA_KERNELS(X)                       \
    X(rope, rope_args)                        \
    X(clip_forward, clip_args)                \
    X(clip_backward, clip_args)               \
    X(gather, gather_args)                    \
    X(combine, combine_args)                  \
    X(swiglu_forward, swiglu_args)            \
    X(swiglu_backward, swiglu_args)           \
    X(gate_forward, gate_args)                \
    X(gate_backward, gate_args)               \
    X(embedding_forward, embedding_args)      \
    X(adamw, adamw_args)           /* host: steps */ \
    X(adamw_bf16, adamw_bf16_args) /* host: steps */ \
    X(add, add_args)                          \
    X(sum_squares, sum_squares_args)          \
    X(rmsnorm_forward, rmsnorm_args)          \
    X(rmsnorm_backward, rmsnorm_args)         \
    X(router_forward, router_args)            \
    X(router_backward, router_args)           \
    X(router_stats, router_stats_args)        \
    X(dispatch, dispatch_args)                \
    X(matmul_forward, matmul_args)            \
    X(matmul_dx, matmul_args)                 \
    X(matmul_dw, matmul_args)                 \
    X(qmatmul, qmatmul_args)       /* Q4_0, Q8_0 */

#define CUDA_DECLARE(op, args) moe_err op##_cuda(const args *a, moe_stream *s) MOE_MUST_CHECK;
CUDA_KERNELS(CUDA_DECLARE)
#undef CUDA_DECLARE

#endif
