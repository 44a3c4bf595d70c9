/* The part of CUDA's runtime API that kernels/cuda and tests/cuda use, for a machine without a GPU: "device" memory is host memory that
 * only a kernel may touch. Owns the declarations; emulation.cpp and memory.cpp own the rest. One thread.
 * Rule: on the include path only where kernels are emulated; the names and values are those of the toolkit's header. */
#ifndef MOE_TESTS_EMULATION_CUDA_RUNTIME_API_H
#define MOE_TESTS_EMULATION_CUDA_RUNTIME_API_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum cudaError {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorLaunchFailure = 719, /* sticky, as on a GPU; its text is what the emulation found */
} cudaError_t;

typedef struct CUstream_st *cudaStream_t;

enum cudaMemcpyKind {
    cudaMemcpyHostToHost = 0,
    cudaMemcpyHostToDevice = 1,
    cudaMemcpyDeviceToHost = 2,
    cudaMemcpyDeviceToDevice = 3,
};

/* What was allocated and not yet written counts as unset: a kernel that reads it fails. */
cudaError_t cudaMalloc(void **out, size_t bytes);
cudaError_t cudaFree(void *p);
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaGetDeviceCount(int *count);
cudaError_t cudaGetDevice(int *device);
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16 };
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device);
cudaError_t cudaGetLastError(void);
const char *cudaGetErrorString(cudaError_t error);

/* Not in the toolkit: forgets what a kernel did wrong, for the tests of the emulation. */
void emulation_reset(void);

#ifdef __cplusplus
}
#endif

#endif
