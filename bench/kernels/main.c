/* bench_kernels: how close the products come to what the machine can do. Options below; a table on stdout, JSON lines with
 * --json. Owns the cold memory and the pool. One thread calls, the pool works. Rule: nothing is printed that was not measured in
 * this run. */
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench/kernels/bench.h"

static const char usage[] =
    "usage: bench_kernels [--threads N] [--backend avx2|avx512] [--reps N] [--only TEXT] [--cold MiB] [--best] [--json FILE] "
    "[--ladder]\n"
    "  --threads N   compute threads (all processors)\n"
    "  --backend B   instruction set (the fastest here)\n"
    "  --reps N      repetitions, the median is reported (5)\n"
    "  --only TEXT   cases whose name contains TEXT, e.g. small, down, lm_head\n"
    "  --cold MiB    weights walked in a circle, and as much for gradients (1024)\n"
    "  --best        report the best repetition of rates and limits instead of the median: for a machine with other work\n"
    "  --json FILE   one object a measurement, with all samples\n"
    "  --ladder      the rungs of README.md instead of the products\n";

static int whole(const char *text, int least, int most)
{
    char *end;
    const long v = strtol(text, &end, 10);
    if (end == text || *end != '\0' || v < least || v > most) {
        fprintf(stderr, "bench_kernels: expected a number from %d to %d, got \"%s\"\n", least, most, text);
        exit(MOE_E_USAGE);
    }
    return (int)v;
}

static int run(bench *b, const char *backend, bool ladder)
{
    if (moe_backend_find(&b->backend, backend) != MOE_OK ||
        moe_pool_open(&b->stream.pool, b->threads, KERNEL_SCRATCH_BYTES) != MOE_OK) {
        fprintf(stderr, "bench_kernels: %s\n", moe_error_text());
        return MOE_E_CONFIG;
    }
    if (strcmp(b->backend->name, "ref") == 0) {
        fprintf(stderr, "bench_kernels: the reference is not measured; expected a processor with AVX2\n");
        return MOE_E_CONFIG;
    }
    b->weights = bench_map(b->cold_floats), b->gradients = bench_map(b->cold_floats);
    if (b->weights == NULL || b->gradients == NULL) {
        fprintf(stderr, "bench_kernels: no room for 2 x %zu bytes; use --cold\n", b->cold_floats * sizeof(float));
        return MOE_E_OS;
    }
    for (size_t i = 0; i < b->cold_floats; i++)
        b->weights[i] = 0.001f * (float)(i % 61) - 0.03f;
    memset(b->gradients, 0, b->cold_floats * sizeof(float));
    if (ladder)
        bench_ladder(b);
    else
        bench_products(b);
    moe_pool_close(b->stream.pool);
    return 0;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"threads", 1, 0, 't'}, {"backend", 1, 0, 'b'}, {"reps", 1, 0, 'r'}, {"only", 1, 0, 'o'}, {"cold", 1, 0, 'c'},
        {"json", 1, 0, 'j'},    {"ladder", 0, 0, 'l'},  {"best", 0, 0, 'B'}, {"help", 0, 0, 'h'}, {0, 0, 0, 0}};
    bench b = {.threads = (int)sysconf(_SC_NPROCESSORS_ONLN), .reps = 5, .cold_floats = (size_t)256 << 20};
    const char *backend = NULL;
    bool ladder = false;
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        switch (c) {
        case 't':
            b.threads = whole(optarg, 1, 64);
            break;
        case 'b':
            backend = optarg;
            break;
        case 'r':
            b.reps = whole(optarg, 1, REPS_MOST);
            break;
        case 'o':
            b.only = optarg;
            break;
        case 'c':
            b.cold_floats = (size_t)whole(optarg, 128, 1 << 20) << 18;
            break;
        case 'l':
            ladder = true;
            break;
        case 'B':
            b.best = true;
            break;
        case 'j':
            b.json = fopen(optarg, "w");
            if (b.json == NULL) {
                perror(optarg);
                return MOE_E_CREATE;
            }
            break;
        case 'h':
            fputs(usage, stdout);
            return 0;
        default:
            fputs(usage, stderr);
            return MOE_E_USAGE;
        }
    }
    const int rc = run(&b, backend, ladder);
    if (b.json != NULL && fclose(b.json) != 0)
        return MOE_E_IO;
    return rc;
}
