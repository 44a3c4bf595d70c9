/* bench_store: what the store reaches with the traffic of training, and what it costs. Text on stderr, one JSON object per mix on
 * stdout. The files are written twice before anything is measured, so that no block is new. fio.sh runs it in turn with fio. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "bench/store/mix.h"

typedef struct options {
    const char *dir, *backend;
    size_t part_bytes;
    int sections, depth, under_way;
    double seconds;
    bool registered;
    int mixes; /* bit per mix_kind */
} options;

static const char *const mix_names[] = {"forward", "backward", "read"};

static double wall(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double cpu(void)
{
    struct rusage r;
    getrusage(RUSAGE_SELF, &r);
    return (double)(r.ru_utime.tv_sec + r.ru_stime.tv_sec) + 1e-6 * (double)(r.ru_utime.tv_usec + r.ru_stime.tv_usec);
}

static moe_err measure(store *st, mix *m, const options *o, const char *backend, mix_kind kind)
{
    store_stats a, b;
    TRY(mix_run(m, kind, 0.3, 0)); /* until the queue is full */
    store_get_stats(st, &a);
    const double wall0 = wall(), cpu0 = cpu();
    TRY(mix_run(m, kind, o->seconds, 0));
    const double seconds = wall() - wall0, used = cpu() - cpu0;
    store_get_stats(st, &b);
    const double read = (double)(b.read_bytes - a.read_bytes) / 1e9, written = (double)(b.write_bytes - a.write_bytes) / 1e9;
    const double gb = read + written, sums = b.sum_seconds - a.sum_seconds, rate = gb / seconds;
    fprintf(stderr,
            "%-8s %-8s part %5.2f MiB depth %3d: %.3f GB/s (%.0f %% written), CPU %.4f s/GB and %.4f s/GB for checksums, busy "
            "%.0f %%\n",
            mix_names[kind], backend, (double)o->part_bytes / (1 << 20), o->depth, rate, 100 * written / gb, (used - sums) / gb,
            sums / gb, 100 * (b.busy_seconds - a.busy_seconds) / seconds);
    printf("{\"mix\": \"%s\", \"io\": \"%s\", \"part_bytes\": %zu, \"depth\": %d, \"sections_under_way\": %d, \"registered\": "
           "%s, \"gb_per_s\": %.4f, "
           "\"read_gb\": %.3f, \"written_gb\": %.3f, \"seconds\": %.3f, \"cpu_s_per_gb\": %.5f, \"checksum_s_per_gb\": %.5f}\n",
           mix_names[kind], backend, o->part_bytes, o->depth, o->under_way, o->registered ? "true" : "false", rate, read, written,
           seconds, (used - sums) / gb, sums / gb);
    fflush(stdout);
    return MOE_OK;
}

static moe_err run(const options *o)
{
    char note[256];
    const char *dirs[] = {o->dir};
    io *disk = NULL;
    store *st = NULL;
    mix *m = NULL;
    moe_err rc;
    TRY_GOTO(io_open(&disk, o->backend, note), rc, out);
    if (note[0] != '\0')
        fprintf(stderr, "%s\n", note);
    const store_config c = {.io = disk,
                            .dirs = dirs,
                            .ndirs = 1,
                            .uuid = "bench_store",
                            .sections = o->sections,
                            .slots = 2,
                            .create = true,
                            .depth = o->depth,
                            .part_bytes = {o->part_bytes, 0, o->part_bytes, o->part_bytes, o->part_bytes}};
    TRY_GOTO(store_open(&st, &c), rc, out);
    TRY_GOTO(mix_open(&m, st, &c, o->under_way, o->registered), rc, out);
    for (int twice = 0; twice < 2; twice++)
        TRY_GOTO(mix_run(m, MIX_FILL, 0, o->sections), rc, out);
    TRY_GOTO(store_sync(st), rc, out);
    for (int k = 0; k < MIX_FILL; k++)
        if (o->mixes >> k & 1)
            TRY_GOTO(measure(st, m, o, disk->ops->name, (mix_kind)k), rc, out);
out:
    store_close(st);
    mix_close(m);
    io_close(disk);
    return rc;
}

static int usage(FILE *f, int rc)
{
    fprintf(f, "usage: bench_store --dir FOLDER [--part BYTES] [--sections N] [--depth N] [--under-way N] [--seconds S]\n"
               "                   [--io auto|io_uring|pread] [--mix forward|backward|read]... [--no-register]\n"
               "Makes a store of N sections in FOLDER (8 parts of BYTES each) and leaves it there.\n");
    return rc;
}

static bool add_mix(options *o, const char *name)
{
    for (int k = 0; k < MIX_FILL; k++)
        if (strcmp(name, mix_names[k]) == 0) {
            o->mixes |= 1 << k;
            return true;
        }
    return false;
}

int main(int argc, char **argv)
{
    options o = {
        .backend = "auto", .part_bytes = 6 << 20, .sections = 48, .depth = 16, .under_way = 6, .seconds = 4, .registered = true};
    static const struct option longs[] = {
        {"dir", 1, 0, 'd'}, {"part", 1, 0, 'p'}, {"sections", 1, 0, 's'},    {"depth", 1, 0, 'q'}, {"seconds", 1, 0, 't'},
        {"io", 1, 0, 'i'},  {"mix", 1, 0, 'm'},  {"no-register", 0, 0, 'n'}, {"help", 0, 0, 'h'},  {"under-way", 1, 0, 'u'},
        {0, 0, 0, 0}};
    for (int c; (c = getopt_long(argc, argv, "", longs, NULL)) != -1;) {
        switch (c) {
        case 'd':
            o.dir = optarg;
            break;
        case 'p':
            o.part_bytes = strtoull(optarg, NULL, 10);
            break;
        case 's':
            o.sections = atoi(optarg);
            break;
        case 'q':
            o.depth = atoi(optarg);
            break;
        case 'u':
            o.under_way = atoi(optarg);
            break;
        case 't':
            o.seconds = atof(optarg);
            break;
        case 'i':
            o.backend = optarg;
            break;
        case 'n':
            o.registered = false;
            break;
        case 'm':
            if (!add_mix(&o, optarg))
                return usage(stderr, 64);
            break;
        case 'h':
            return usage(stdout, 0);
        default:
            return usage(stderr, 64);
        }
    }
    if (o.dir == NULL || optind != argc || o.part_bytes == 0 || o.under_way < 1 || o.sections < 2 * o.under_way)
        return usage(stderr, 64);
    if (o.mixes == 0)
        o.mixes = (1 << MIX_FILL) - 1;
    const moe_err rc = run(&o);
    if (rc != MOE_OK)
        fprintf(stderr, "bench_store: %s\n%s", moe_error_text(), moe_error_traces());
    return (int)rc;
}
