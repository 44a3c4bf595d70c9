/* The limit of one core for products of bytes: independent chains of the instructions that qmatmul is made of. Compiled once per
 * instruction set; owns nothing. Any thread. Rule: vpdpbusd where there is VNNI; else vpmaddubsw and the addition of its int16 sums,
 * which is what nibbles need (signed bytes need two more instructions). */
#include <time.h>

#include "bench/kernels/bench.h"
#include "kernels/cpu/qmatmul_dot.h"

enum { CHAINS = 12, ROUNDS = 4096 };

static double thread_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

double ISA(peak_int8)(double seconds)
{
#if MOE_SIMD_512
    enum { N = CHAINS };
#else
    enum { N = CHAINS / 2 }; /* an i16 is two registers */
#endif
    const i16 w = i16_set1(0x01020304);
    i16 sum[N], a = i16_set1(0x04030201);
#pragma GCC unroll 16
    for (int i = 0; i < N; i++)
        sum[i] = i16_set1(i);
    const double begin = thread_now();
    double operations = 0, now;
    do {
        for (int r = 0; r < ROUNDS; r++) {
#pragma GCC unroll 16
            for (int i = 0; i < N; i++) {
#if MOE_SIMD_512
                __asm__ volatile("" : "+v"(a)); /* a product that does not change would be made once */
#else
                __asm__ volatile("" : "+x"(a.lo), "+x"(a.hi));
#endif
#if defined(__AVX512VNNI__)
                sum[i] = _mm512_dpbusd_epi32(sum[i], w, a);
#else
                sum[i] = q_add16(sum[i], q_pairs(w, a));
#endif
            }
        }
        operations += 2.0 * 64 * N * ROUNDS;
        now = thread_now();
    } while (now - begin < seconds);
    for (int i = 1; i < N; i++)
        sum[0] = i16_add(sum[0], sum[i]);
    volatile int32_t sink = q_sum(sum[0]);
    (void)sink;
    return operations / (now - begin) * 1e-9;
}
