/* What this machine does: the rate of the fp32 product (all threads, operands in cache) and of the disk under a folder. Seconds of
 * work; shared machines vary, so a number is good for the moment it was taken. */
#ifndef MOE_ENGINE_PLAN_MACHINE_H
#define MOE_ENGINE_PLAN_MACHINE_H

#include "kernels/backend.h"
#include "memory/io.h"

/* Best of a few products of a size that stays in cache, in flop/s. */
moe_err machine_product_rate(const moe_backend *be, moe_stream *s, double *flops_per_second) MOE_MUST_CHECK;

/* Bytes/s of writing and then reading a scratch file of `bytes` (a multiple of 16 MiB) in `dir` (made, then removed), past the page cache
 * unless buffered; 16 MiB at a time, several requests in flight. */
moe_err machine_disk_rate(io *io, const char *dir, size_t bytes, bool buffered, double *read, double *write) MOE_MUST_CHECK;

#endif
