/* Arrays on the device for tests (device.h). Owns the list of them and the one stream. One thread. */
#include "tests/cuda/device.h"

#include <criterion/criterion.h>
#include <cuda_runtime_api.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ARRAYS = 128 };
static void *arrays[ARRAYS];
static int used;

moe_stream *device_stream(void)
{
    static moe_stream stream;
    int devices = 0;
    if (stream.cuda == NULL) {
        if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
            printf("not run here: no CUDA device\n"); /* ctest looks for it: Criterion keeps the reason to itself */
            fflush(stdout);
            cr_skip_test("not run here: no CUDA device");
        }
        stream.pool = test_stream()->pool;
        cr_assert_eq(moe_cuda_open(&stream.cuda), MOE_OK, "%s", moe_error_text());
    }
    return &stream;
}

void *device_array(const void *from, size_t bytes)
{
    void *p = NULL;
    device_stream();
    cr_assert_lt(used, ARRAYS);
    cr_assert_eq(cudaMalloc(&p, bytes > 0 ? bytes : 1), cudaSuccess, "no device memory");
    arrays[used++] = p;
    if (from != NULL && bytes > 0)
        cr_assert_eq(cudaMemcpyAsync(p, from, bytes, cudaMemcpyHostToDevice, NULL), cudaSuccess);
    return p;
}

void device_read(void *to, const void *from, size_t bytes)
{
    cr_assert_eq(moe_cuda_wait(device_stream()->cuda), MOE_OK, "%s", moe_error_text());
    if (bytes > 0)
        cr_assert_eq(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, NULL), cudaSuccess);
    cr_assert_eq(cudaStreamSynchronize(NULL), cudaSuccess);
}

void device_same(const char *what, const float *device, const float *want, size_t rows, size_t cols)
{
    float *got = malloc(rows * cols * sizeof *got + 1);
    cr_assert_not_null(got);
    device_read(got, device, rows * cols * sizeof *got);
    for (size_t i = 0; i < rows * cols; i++)
        if (isnan(got[i]) && isnan(want[i]))
            got[i] = want[i];
    test_same(what, got, want, rows, cols, cols);
    free(got);
}

void device_end(void)
{
    for (; used > 0; used--)
        cr_assert_eq(cudaFree(arrays[used - 1]), cudaSuccess);
}
