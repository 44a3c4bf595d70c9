/* What every test of a CUDA kernel shares: arrays of the host copied to the device and back, the stream, the comparison. The same source runs
 * emulated (tests/emulation) and on a GPU. Owns the copies until device_end. One thread.
 * Rule: a NaN equals a NaN here: which one it is, a GPU decides differently. All else is compared bit by bit. */
#ifndef MOE_TESTS_CUDA_DEVICE_H
#define MOE_TESTS_CUDA_DEVICE_H

#include "kernels/cuda/cuda.h"
#include "tests/kernels/harness.h"

/* Opens on the first call. */
moe_stream *device_stream(void);
/* A device array of `bytes` (0 allowed) with what `from` holds; NULL: unset. Fails the test when there is no memory. */
void *device_array(const void *from, size_t bytes);
static inline float *device_floats(const float *from, size_t n) { return device_array(from, n * sizeof *from); }
/* Waits, then copies back. Fails the test with the sentence when a kernel failed. */
void device_read(void *to, const void *from, size_t bytes);
/* Reads n floats back and compares them with `want`. */
void device_same(const char *what, const float *device, const float *want, size_t rows, size_t cols);
/* Frees all arrays. */
void device_end(void);

#endif
