/* The test of the emulation: a right kernel passes, each wrong one is ended with a sentence that names the kernel and what it did. */
#include <criterion/criterion.h>
#include <cuda_runtime_api.h>
#include <string.h>

#include "tests/cuda/device.h"
#include "tests/cuda/wrong_kernels.h"

enum { N = 64 };

static void found(int which, const char *kernel, const char *what)
{
    int in[N];
    for (int i = 0; i < N; i++)
        in[i] = i * i;
    for (int order = 0; order < 2; order++) { /* threads from the first and from the last */
        int *source = device_array(in, sizeof in), *out = device_array(NULL, sizeof in);
        cr_assert_eq(run_wrong_kernel(which, out, source), MOE_E_OS, "%s passed", kernel);
        cr_assert_not_null(strstr(moe_error_text(), kernel), "%s", moe_error_text());
        cr_assert_not_null(strstr(moe_error_text(), what), "expected \"%s\" in: %s", what, moe_error_text());
        cr_assert_eq(run_wrong_kernel(RIGHT, out, source), MOE_E_OS, "an error stays, as on a GPU");
        emulation_reset();
        device_end();
    }
}

Test(cuda_emulation, a_right_kernel_runs)
{
    int in[N], out[N];
    for (int i = 0; i < N; i++)
        in[i] = i * i;
    for (int order = 0; order < 2; order++) {
        int *source = device_array(in, sizeof in), *result = device_array(NULL, sizeof in);
        cr_assert_eq(run_wrong_kernel(RIGHT, result, source), MOE_OK, "%s", moe_error_text());
        cr_assert_eq(cudaMemcpyAsync(out, result, sizeof out, cudaMemcpyDeviceToHost, NULL), cudaSuccess);
        for (int i = 0; i < N; i++)
            cr_assert_eq(out[i], in[N - 1 - i]);
        device_end();
    }
}

Test(cuda_emulation, finds_a_missing_barrier)
{
    found(MISSING_BARRIER, "missing_barrier_kernel", "shared memory");
    found(LATE_OVERWRITE, "late_overwrite_kernel", "no barrier lies between");
}

Test(cuda_emulation, finds_a_divergent_barrier)
{
    found(DIVERGENT_BARRIER, "divergent_barrier_kernel", "wrong_kernels.cu:");
    found(LEFT_BEFORE_BARRIER, "left_before_barrier_kernel", "leave");
    found(LEFT_BEFORE_BARRIER, "left_before_barrier_kernel", "wrong_kernels.cu:");
    found(DIVERGENT_SHUFFLE, "divergent_shuffle_kernel", "waits for ever");
}

Test(cuda_emulation, finds_what_is_out_of_bounds_or_unset)
{
    found(WRITE_PAST_END, "write_past_end_kernel", "out of bounds: writes 4 bytes at byte 256 of a buffer of 256 bytes");
    found(READ_BEFORE_BEGIN, "read_before_begin_kernel", "out of bounds: reads 4 bytes");
    found(UNSET, "unset_kernel", "which nobody has written");
}

Test(cuda_emulation, finds_two_blocks_that_write_one_place)
{
    found(BETWEEN_BLOCKS, "between_blocks_kernel", "another block wrote; no barrier lies between");
}

Test(cuda_emulation, finds_memory_of_the_other_side)
{
    found(HOST_MEMORY, "right_kernel", "no device memory");
    found(HOST_FOLLOWS, "", "host code follows a device pointer");
}
