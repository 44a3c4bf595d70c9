/* Where an operation runs. On the CPU: a pool of threads, and the call returns when the work is done. On a GPU: a CUDA stream, and the
 * call returns when the work is queued. */
#ifndef MOE_KERNELS_STREAM_H
#define MOE_KERNELS_STREAM_H

#include "engine/base/pool.h"

typedef struct moe_stream {
    moe_pool *pool;
    struct moe_cuda *cuda; /* kernels/cuda/cuda.h; NULL on the CPU */
} moe_stream;

/* Scratch that every kernel may expect for each worker (packing, score tiles); the pool is opened with it. */
enum { KERNEL_SCRATCH_BYTES = 4 << 20 };

#endif
