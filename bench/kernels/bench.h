/* What the kernel benchmarks share: the machine's limits, cold memory, the clock and the report. Owns nothing itself.
 * Private to bench/kernels. One thread calls; the work runs over a pool.
 * Rule: a rate is reported beside the limits measured in the same repetition, because the machine is shared and its clock moves. */
#ifndef MOE_BENCH_KERNELS_H
#define MOE_BENCH_KERNELS_H

#include <stdio.h>

#include "kernels/backend.h"

enum { REPS_MOST = 64 };

typedef struct bench {
    const moe_backend *backend;
    moe_stream stream;
    int threads, reps;
    bool best; /* report the best repetition, not the median */
    const char *only; /* runs the cases whose name contains it; NULL: all */
    float *weights, *gradients; /* cold_floats each: walked in a circle, so that what is read is never in a cache */
    size_t cold_floats, at;
    FILE *json; /* one object a line, or NULL */
} bench;

/* Gigaflops of independent FMAs / gigabytes per second read from and streamed to cold memory, by all threads of the pool. */
typedef struct limits {
    double fma, read, write;
} limits;
limits bench_limits(bench *b);

double bench_now(void); /* seconds on the wall */
/* Seconds on the wall, or with one thread its CPU time, so that other programs on the machine do not count. */
double bench_clock(const bench *b);
double bench_median(const double *x, int n);
double bench_typical(const bench *b, const double *x); /* of b->reps samples: median, or the most with `best` */
float *bench_map(size_t floats); /* huge pages where the system has them; NULL when out of memory */
/* The next `floats` of the circle. */
size_t bench_next(bench *b, size_t floats);

void bench_products(bench *b); /* products.c: the grouped products over the shapes of the configs */
void bench_ladder(bench *b);   /* ladder.c: what each idea brought */

/* Inner loops, compiled once per instruction set (peak.c, ladder.c). */
#define BENCH_DECLARE(isa)                                                                     \
    double peak_fma_##isa(double seconds); /* 1e9 flops per second of this thread's CPU time */  \
    float peak_read_##isa(const float *x, size_t floats);                                      \
    void peak_write_##isa(float *x, size_t floats);                                            \
    void ladder_panels_##isa(float *y, const float *x, const float *w, int rows, int N, int K); \
    void ladder_tile_##isa(float *y, const float *x, const float *w, int rows, int N, int K);
BENCH_DECLARE(avx2)
BENCH_DECLARE(avx512)

/* 1e9 operations per second of products of bytes (peak_int8.c). */
double peak_int8_avx2(double seconds);
double peak_int8_avx512(double seconds);
double peak_int8_vnni(double seconds);

#endif
