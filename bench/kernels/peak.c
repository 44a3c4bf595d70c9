/* The limits of one core: FMA throughput, reading, streaming writes. Compiled once per instruction set; owns nothing.
 * Any thread. Rule: enough independent chains that latency is hidden (12 of 4 cycles on 2 pipes), enough bytes that no cache
 * helps. */
#include <time.h>

#include "bench/kernels/bench.h"
#include "kernels/cpu/simd.h"

enum { CHAINS = 12, ROUNDS = 4096 };

static double thread_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

double ISA(peak_fma)(double seconds)
{
    const v16 a = v16_set1(0.999999f), b = v16_set1(1e-9f);
#if MOE_SIMD_512
    enum { N = CHAINS };
#else
    enum { N = CHAINS / 2 }; /* a v16 is two registers */
#endif
    v16 x[N];
#pragma GCC unroll 16
    for (int i = 0; i < N; i++)
        x[i] = v16_set1((float)i);
    const double begin = thread_now();
    double flops = 0, now;
    do {
        for (int r = 0; r < ROUNDS; r++) {
#pragma GCC unroll 16
            for (int i = 0; i < N; i++)
                x[i] = v16_fma(x[i], a, b);
        }
        flops += 2.0 * V16 * N * ROUNDS;
        now = thread_now();
    } while (now - begin < seconds);
    v16 sum = v16_zero();
    for (int i = 0; i < N; i++)
        sum = v16_add(sum, x[i]);
    volatile float sink = v16_sum(sum);
    (void)sink;
    return flops / (now - begin) * 1e-9;
}

float ISA(peak_read)(const float *x, size_t floats)
{
    v16 sum[4] = {v16_zero(), v16_zero(), v16_zero(), v16_zero()};
    for (size_t i = 0; i + 64 <= floats; i += 64) {
#pragma GCC unroll 4
        for (size_t j = 0; j < 4; j++)
            sum[j] = v16_add(sum[j], v16_load(x + i + j * V16));
    }
    return v16_sum(v16_add(v16_add(sum[0], sum[1]), v16_add(sum[2], sum[3])));
}

void ISA(peak_write)(float *x, size_t floats)
{
    for (size_t i = 0; i + V16 <= floats; i += V16)
        v16_stream(x + i, v16_set1(0.5f));
    _mm_sfence();
}
