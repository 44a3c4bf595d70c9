/* The limits of the machine at this moment, over all threads of the pool (bench.h). Owns nothing but the sums it throws away.
 * Short on purpose (a few tens of milliseconds): it runs before every repetition of every case.
 * Rule: the same pool, memory and instruction set as the kernels that are compared with it. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "bench/kernels/bench.h"

static const double FMA_SECONDS = 0.008;
enum { SLICE = 1 << 18 /* floats: 1 MiB */, SLICES = 64 };

static double read_clock(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

double bench_now(void) { return read_clock(CLOCK_MONOTONIC); }
double bench_clock(const bench *b) { return read_clock(b->threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC); }

static int compare_doubles(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_median(const double *x, int n)
{
    double sorted[REPS_MOST];
    memcpy(sorted, x, sizeof *x * (size_t)n);
    qsort(sorted, (size_t)n, sizeof *sorted, compare_doubles);
    return n % 2 ? sorted[n / 2] : (sorted[n / 2 - 1] + sorted[n / 2]) / 2;
}

double bench_typical(const bench *b, const double *x)
{
    double most = x[0];
    for (int i = 1; i < b->reps; i++)
        most = x[i] > most ? x[i] : most;
    return b->best ? most : bench_median(x, b->reps);
}

float *bench_map(size_t floats)
{
    void *p = mmap(NULL, floats * sizeof(float), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    madvise(p, floats * sizeof(float), MADV_HUGEPAGE);
    return p;
}

size_t bench_next(bench *b, size_t floats)
{
    if (b->at + floats > b->cold_floats)
        b->at = 0;
    const size_t at = b->at;
    b->at += floats;
    return at;
}

typedef struct probe {
    bench *b;
    size_t at;
    bool wide;
    double fma[64];
} probe;

static void fma_piece(void *ctx, int64_t begin, int64_t end, int worker)
{
    probe *p = ctx;
    (void)worker;
    for (int64_t i = begin; i < end; i++)
        p->fma[i] = p->wide ? peak_fma_avx512(FMA_SECONDS) : peak_fma_avx2(FMA_SECONDS);
}

static void read_slices(void *ctx, int64_t begin, int64_t end, int worker)
{
    probe *p = ctx;
    volatile float sink;
    (void)worker;
    for (int64_t i = begin; i < end; i++) {
        const float *x = p->b->weights + p->at + (size_t)i * SLICE;
        sink = p->wide ? peak_read_avx512(x, SLICE) : peak_read_avx2(x, SLICE);
    }
    (void)sink;
}

static void write_slices(void *ctx, int64_t begin, int64_t end, int worker)
{
    probe *p = ctx;
    (void)worker;
    for (int64_t i = begin; i < end; i++) {
        float *x = p->b->gradients + p->at + (size_t)i * SLICE;
        p->wide ? peak_write_avx512(x, SLICE) : peak_write_avx2(x, SLICE);
    }
}

limits bench_limits(bench *b)
{
    limits l = {0};
    probe p = {.b = b, .wide = strcmp(b->backend->name, "avx512") == 0};
    const double gigabytes = (double)SLICE * SLICES * sizeof(float) * 1e-9;
    moe_pool_for(b->stream.pool, b->threads, 1, fma_piece, &p);
    for (int i = 0; i < b->threads; i++)
        l.fma += p.fma[i];
    p.at = bench_next(b, (size_t)SLICE * SLICES);
    double begin = bench_clock(b);
    moe_pool_for(b->stream.pool, SLICES, 1, read_slices, &p);
    l.read = gigabytes / (bench_clock(b) - begin);
    begin = bench_clock(b);
    moe_pool_for(b->stream.pool, SLICES, 1, write_slices, &p);
    l.write = gigabytes / (bench_clock(b) - begin);
    return l;
}
