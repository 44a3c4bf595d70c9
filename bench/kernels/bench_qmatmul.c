/* bench_qmatmul: products with quantised weights over the shapes of OLMoE's experts, weights cold, against what the machine can do:
 * int8 rate and bytes read, measured beside every repetition. A table on stdout.
 * Owns its arrays and the pool; limits.c and peak*.c give clock, bandwidth and peak. One thread calls, the pool works.
 * Rule: the limit is min(int8 peak, operations / (bytes of the panels / bandwidth)); activations are not counted. */
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bench/kernels/bench.h"
#include "kernels/tables.h"

enum { GROUPS = 8, D = 2048, F = 1024 };
static const int row_counts[] = {1, 2, 4, 8, 64, 512};
static const double CASE_OPERATIONS = 2e10; /* groups are dropped until one call is at most this */

static const char usage[] =
    "usage: bench_qmatmul [--threads N] [--backend avx2|avx512] [--format NAME] [--rows N] [--reps N] [--cold MiB] [--best]\n"
    "  --threads N    compute threads (all processors); with one its CPU time is taken\n"
    "  --format NAME  q4_0, q8_0, .. (all)\n"
    "  --rows N       only this many rows a group\n"
    "  --reps N       repetitions, the median is reported (5)\n"
    "  --cold MiB     weights walked in a circle (512)\n"
    "  --best         report the best repetition instead of the median\n";

typedef struct bytes_probe {
    double rate[64];
    int kind; /* 0: AVX2, 1: AVX-512, 2: VNNI */
} bytes_probe;

static void peak_piece(void *ctx, int64_t begin, int64_t end, int worker)
{
    bytes_probe *p = ctx;
    (void)worker;
    for (int64_t i = begin; i < end; i++)
        p->rate[i] = p->kind == 2 ? peak_int8_vnni(0.008) : p->kind == 1 ? peak_int8_avx512(0.008) : peak_int8_avx2(0.008);
}

static double int8_peak(const bench *b)
{
    bytes_probe p = {.kind = strcmp(b->backend->name, "avx512") != 0 ? 0 : kernels_have_vnni() ? 2 : 1};
    double sum = 0;
    moe_pool_for(b->stream.pool, b->threads, 1, peak_piece, &p);
    for (int i = 0; i < b->threads; i++)
        sum += p.rate[i];
    return sum;
}

static const void *next_panels(bench *b, numfmt f, int N, int K)
{
    return b->weights + bench_next(b, (qpanel_bytes(f, N, K) + 63) / 64 * 16);
}

/* Seconds of gate and up (M = 2) or down (M = 1) of `groups` experts. */
static double run_once(bench *b, numfmt f, int M, int groups, int rows, const float *x, float *y)
{
    const int N = M == 2 ? F : D, K = M == 2 ? D : F;
    const void *w[2][GROUPS];
    int32_t offset[GROUPS + 1];
    qmatmul_args a = {.M = M, .x = x, .ldx = (size_t)K, .offset = offset, .G = groups, .K = K};
    for (int g = 0; g <= groups; g++)
        offset[g] = g * rows;
    for (int m = 0; m < M; m++) {
        for (int g = 0; g < groups; g++)
            w[m][g] = next_panels(b, f, N, K);
        a.mat[m] = (qmatrix){.y = y + (size_t)m * (size_t)(groups * rows) * (size_t)N, .ldy = (size_t)N, .w = w[m], .format = f, .N = N};
    }
    const double begin = bench_clock(b);
    if (b->backend->qmatmul(&a, &b->stream) != MOE_OK) {
        fprintf(stderr, "bench_qmatmul: %s\n", moe_error_text());
        exit(MOE_E_CONFIG);
    }
    return bench_clock(b) - begin;
}

static void measure(bench *b, numfmt f, int M, int rows)
{
    const int N = M == 2 ? F : D, K = M == 2 ? D : F;
    int groups = GROUPS;
    while (groups > 1 && 2.0 * M * groups * rows * (double)N * K > CASE_OPERATIONS)
        groups /= 2;
    const size_t all = (size_t)groups * (size_t)rows;
    float *x = bench_map(all * (size_t)K), *y = bench_map(all * (size_t)(M * N));
    double rate[REPS_MOST], speed[REPS_MOST], share[REPS_MOST], top = 0, width = 0;
    if (x == NULL || y == NULL)
        exit(MOE_E_OS);
    for (size_t i = 0; i < all * (size_t)K; i++)
        x[i] = 0.01f * (float)(i * 2654435761u >> 9 & 127) - 0.6f;
    const double operations = 2.0 * M * (double)all * N * K, bytes = (double)(M * groups) * (double)qpanel_bytes(f, N, K);
    for (int rep = -1; rep < b->reps; rep++) { /* the first touches the activations */
        const limits l = bench_limits(b);
        const double peak = numfmt_about(f)->block > 1 && f != NUM_F8_E4M3 ? int8_peak(b) : l.fma, seconds = run_once(b, f, M, groups, rows, x, y);
        if (rep < 0)
            continue;
        const double memory = operations / (bytes / l.read);
        rate[rep] = operations / seconds * 1e-9, speed[rep] = bytes / seconds * 1e-9;
        share[rep] = 100 * rate[rep] / (memory < peak ? memory : peak);
        top = peak > top ? peak : top, width = l.read > width ? l.read : width;
    }
    printf("%-6s %-8s %2d x %4d rows  %8.1f GOP/s %6.2f GB/s %6.1f%%   (most %.0f GOP/s, %.1f GB/s)\n", numfmt_about(f)->name,
           M == 2 ? "gate, up" : "down", groups, rows, bench_typical(b, rate), bench_typical(b, speed), bench_typical(b, share), top, width);
    fflush(stdout);
    munmap(x, all * (size_t)K * sizeof *x), munmap(y, all * (size_t)(M * N) * sizeof *y);
}

/* An expert as it lands -> panels: bytes read and written, of this thread. */
static void measure_pack(bench *b, numfmt f)
{
    double speed[REPS_MOST];
    const size_t floats = (qpanel_bytes(f, F, D) + 63) / 64 * 16;
    for (int rep = -1; rep < b->reps; rep++) {
        size_t bytes = 0;
        const double begin = bench_clock(b);
        for (int i = 0; i < 16; i++) {
            const size_t at = bench_next(b, floats);
            qpanel_pack(b->gradients + at, b->weights + at, numfmt_row_bytes(f, D), f, F, D, 0, F);
            bytes += F * numfmt_row_bytes(f, D);
        }
        if (rep >= 0)
            speed[rep] = (double)bytes / (bench_clock(b) - begin) * 1e-9;
    }
    printf("%-6s pack, one thread: %6.2f GB/s in, as much out\n", numfmt_about(f)->name, bench_typical(b, speed));
}

static int run(bench *b, const char *backend, int only, int rows)
{
    if (moe_backend_find(&b->backend, backend) != MOE_OK || moe_pool_open(&b->stream.pool, b->threads, KERNEL_SCRATCH_BYTES) != MOE_OK) {
        fprintf(stderr, "bench_qmatmul: %s\n", moe_error_text());
        return MOE_E_CONFIG;
    }
    b->weights = bench_map(b->cold_floats), b->gradients = bench_map(b->cold_floats);
    if (b->weights == NULL || b->gradients == NULL) {
        fprintf(stderr, "bench_qmatmul: no room for 2 x %zu bytes; use --cold\n", b->cold_floats * sizeof(float));
        return MOE_E_OS;
    }
    memset(b->weights, 0x22, b->cold_floats * sizeof(float)); /* as fp16: 0.012 */
    memset(b->gradients, 0, b->cold_floats * sizeof(float));
    printf("%s, %d threads; %s of %d; limit: the least of int8 (or fma) peak and bytes of the weights\n", b->backend->name, b->threads,
           b->best ? "best" : "medians", b->reps);
    for (int f = NUM_FORMATS - 1; f >= 0; f--) {
        if (only >= 0 && f != only)
            continue;
        measure_pack(b, (numfmt)f);
        for (size_t i = 0; i < sizeof row_counts / sizeof *row_counts; i++)
            for (int M = 2; M >= 1; M--)
                if (rows == 0 || rows == row_counts[i])
                    measure(b, (numfmt)f, M, row_counts[i]);
    }
    moe_pool_close(b->stream.pool);
    return 0;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"threads", 1, 0, 't'}, {"backend", 1, 0, 'b'}, {"reps", 1, 0, 'r'}, {"cold", 1, 0, 'c'},
                                            {"format", 1, 0, 'f'},  {"rows", 1, 0, 'R'},    {"best", 0, 0, 'B'}, {"help", 0, 0, 'h'},
                                            {0, 0, 0, 0}};
    bench b = {.threads = (int)sysconf(_SC_NPROCESSORS_ONLN), .reps = 5, .cold_floats = (size_t)128 << 20};
    const char *backend = NULL;
    int only = -1, rows = 0;
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        switch (c) {
        case 't': b.threads = atoi(optarg); break;
        case 'r': b.reps = atoi(optarg); break;
        case 'b': backend = optarg; break;
        case 'B': b.best = true; break;
        case 'R': rows = atoi(optarg); break;
        case 'c': b.cold_floats = (size_t)atoi(optarg) << 18; break;
        case 'f': only = numfmt_find(optarg); break;
        default: fputs(usage, c == 'h' ? stdout : stderr); return c == 'h' ? 0 : MOE_E_USAGE;
        }
        if (c == 'f' && only < 0) {
            fprintf(stderr, "bench_qmatmul: \"%s\" is not a number format\n", optarg);
            return MOE_E_USAGE;
        }
    }
    if (b.threads < 1 || b.threads > 64 || b.reps < 1 || b.reps > REPS_MOST || b.cold_floats < (size_t)128 << 18) {
        fprintf(stderr, "bench_qmatmul: expected --threads from 1 to 64, --reps from 1 to %d, --cold from 128\n", (int)REPS_MOST);
        return MOE_E_USAGE;
    }
    return run(&b, backend, only, rows);
}
