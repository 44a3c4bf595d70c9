/* bench_peak: the limits of this machine at this moment as one JSON line: FMA rate, bytes read and streamed to memory, all threads.
 * The scripts of bench/train run it in turn with what they compare. Owns the cold memory and the pool.
 * Rule: the same probes as bench/kernels, so that a percentage means the same everywhere. */
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench/kernels/bench.h"

enum { SAMPLES = 25, COLD_FLOATS = 1 << 26 /* 256 MiB */ };

static int whole(const char *text)
{
    char *end;
    const long v = strtol(text, &end, 10);
    if (end == text || *end != '\0' || v < 1 || v > 64) {
        fprintf(stderr, "bench_peak: expected 1 to 64 threads, got \"%s\"\n", text);
        exit(MOE_E_USAGE);
    }
    return (int)v;
}

static void print_limits(bench *b)
{
    double fma[SAMPLES], read[SAMPLES], write[SAMPLES];
    for (int i = 0; i < SAMPLES; i++) {
        const limits l = bench_limits(b);
        fma[i] = l.fma, read[i] = l.read, write[i] = l.write;
    }
    printf("{\"threads\": %d, \"backend\": \"%s\", \"fma_gflops\": %.1f, \"read_gbps\": %.2f, \"write_gbps\": %.2f, \"fma_samples\": [", b->threads,
           b->backend->name, bench_median(fma, SAMPLES), bench_median(read, SAMPLES), bench_median(write, SAMPLES));
    for (int i = 0; i < SAMPLES; i++)
        printf("%s%.1f", i ? ", " : "", fma[i]);
    printf("]}\n");
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"threads", 1, 0, 't'}, {"help", 0, 0, 'h'}, {0, 0, 0, 0}};
    bench b = {.threads = (int)sysconf(_SC_NPROCESSORS_ONLN), .reps = SAMPLES, .cold_floats = COLD_FLOATS};
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (c != 't') {
            fputs("usage: bench_peak [--threads N]\n", c == 'h' ? stdout : stderr);
            return c == 'h' ? 0 : MOE_E_USAGE;
        }
        b.threads = whole(optarg);
    }
    if (moe_backend_find(&b.backend, NULL) != MOE_OK || moe_pool_open(&b.stream.pool, b.threads, KERNEL_SCRATCH_BYTES) != MOE_OK) {
        fprintf(stderr, "bench_peak: %s\n", moe_error_text());
        return MOE_E_CONFIG;
    }
    b.weights = bench_map(b.cold_floats), b.gradients = bench_map(b.cold_floats);
    if (b.weights == NULL || b.gradients == NULL) {
        fprintf(stderr, "bench_peak: no room for 2 x %zu bytes\n", b.cold_floats * sizeof(float));
        return MOE_E_OS;
    }
    memset(b.weights, 0, b.cold_floats * sizeof(float));
    memset(b.gradients, 0, b.cold_floats * sizeof(float));
    print_limits(&b);
    moe_pool_close(b.stream.pool);
    return 0;
}
