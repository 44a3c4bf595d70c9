/* The mistakes that the emulation must find (wrong_kernels.cu). Private to the test. */
#ifndef MOE_TESTS_CUDA_WRONG_KERNELS_H
#define MOE_TESTS_CUDA_WRONG_KERNELS_H

#include "engine/base/error.h"

enum {
    RIGHT,
    MISSING_BARRIER,
    LATE_OVERWRITE,
    DIVERGENT_BARRIER,
    LEFT_BEFORE_BARRIER,
    DIVERGENT_SHUFFLE,
    WRITE_PAST_END,
    READ_BEFORE_BEGIN,
    UNSET,
    BETWEEN_BLOCKS,
    HOST_MEMORY,
    HOST_FOLLOWS,
};

#ifdef __cplusplus
extern "C"
#endif
moe_err run_wrong_kernel(int which, int *out, const int *in);

#endif
