/* The compute threads. Owns the threads and one scratch block for each; knows nothing of tensors.
 * One caller at a time: the thread that calls moe_pool_for takes part as worker 0 and returns when all pieces are done.
 * Every worker (and every thread that called moe_float_setup) runs with flush-to-zero and denormals-are-zero.
 * Rule: a piece may not depend on which worker runs it, nor on how [0, n) was cut. */
#ifndef MOE_ENGINE_BASE_POOL_H
#define MOE_ENGINE_BASE_POOL_H

#include <stddef.h>
#include <stdint.h>

#include "engine/base/error.h"

typedef struct moe_pool moe_pool;

/* Pieces [begin, end) of the loop; `worker` in [0, threads) selects the scratch block. */
typedef void (*moe_pool_fn)(void *ctx, int64_t begin, int64_t end, int worker);

/* threads >= 1, the caller included; scratch_bytes for each worker, 64-byte aligned. MOE_E_OS when out of memory or threads. */
moe_err moe_pool_open(moe_pool **out, int threads, size_t scratch_bytes) MOE_MUST_CHECK;
void moe_pool_close(moe_pool *p); /* NULL: no-op */

int moe_pool_threads(const moe_pool *p);
void *moe_pool_scratch(moe_pool *p, int worker);
size_t moe_pool_scratch_bytes(const moe_pool *p);

/* Runs fn over [0, n) in pieces of `grain` (the last may be shorter), handed out in order to whoever is free. */
void moe_pool_for(moe_pool *p, int64_t n, int64_t grain, moe_pool_fn fn, void *ctx);

/* Flush-to-zero and denormals-are-zero for the calling thread. Every thread that computes numbers calls it once. */
void moe_float_setup(void);

#endif
