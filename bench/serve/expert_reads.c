/* bench_expert_reads: what the expert cache reads per second while a computation is (not) busy beside it. Layers choose experts
 * at random, hardly any is resident, so that the disk is all there is. Text on stderr, one JSON object on stdout. usage:
 * bench_expert_reads FILE [--expert-bytes N] [--experts E] [--choose K] [--depth N] [--seconds S] [--compute-us U] [--io KIND]
 * [--in-place] FILE is read only; make it with fio (bench/serve/README.md), which measures the same disk. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "engine/base/clock.h"
#include "memory/expert_cache.h"

enum { LAYERS_MAX = 64, CHOOSE_MAX = 64, THIRDS = 3 };

typedef struct options {
    const char *file, *io;
    size_t expert_bytes;
    int experts, choose, depth, slots, layers;
    double seconds, compute;
    bool in_place;
} options;

/* Records lie one after the other; in place an expert is three ranges that begin anywhere. */
static int ranges(void *user, expert_id id, expert_range r[EXPERT_RANGES])
{
    const options *o = user;
    const size_t stride = (o->expert_bytes + IO_ALIGN - 1) / IO_ALIGN * IO_ALIGN, third = (o->expert_bytes - 1024) / 3;
    const uint64_t at = (uint64_t)id * stride;
    if (!o->in_place) {
        r[0] = (expert_range){0, at, o->expert_bytes};
        return 1;
    }
    for (int i = 0; i < THIRDS; i++)
        r[i] = (expert_range){0, at + 160 + (size_t)i * third, third};
    return THIRDS;
}

static moe_err land(void *user, expert_id id, void *const raw[EXPERT_RANGES], void *slot)
{
    (void)id;
    const size_t third = (((const options *)user)->expert_bytes - 1024) / 3;
    for (int i = 0; i < THIRDS; i++)
        memcpy((char *)slot + (size_t)i * third, raw[i], third);
    return MOE_OK;
}

static uint32_t draw(uint64_t *x, uint32_t n)
{
    *x = *x * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((*x >> 33) % n);
}

/* `choose` different ones, ascending. */
static void draw_choice(const options *o, uint64_t *x, int32_t *out)
{
    for (int i = 0; i < o->choose; i++) { /* Floyd's way */
        const int32_t limit = o->experts - o->choose + i, e = (int32_t)draw(x, (uint32_t)limit + 1);
        int at = 0;
        bool there = false;
        for (int k = 0; k < i; k++)
            there |= out[k] == e;
        const int32_t v = there ? limit : e;
        while (at < i && out[at] < v)
            at++;
        memmove(out + at + 1, out + at, (size_t)(i - at) * sizeof *out);
        out[at] = v;
    }
}

static void compute(double seconds)
{
    for (const double until = moe_seconds() + seconds; moe_seconds() < until;)
        ;
}

static moe_err run_layer(expert_cache *c, const options *o, int layer, uint64_t *x)
{
    int32_t e[CHOOSE_MAX];
    expert_id wanted[CHOOSE_MAX];
    draw_choice(o, x, e);
    TRY(expert_cache_choose(c, layer, e, o->choose));
    for (int i = 0; i < o->choose; i++)
        wanted[i] = (expert_id)(layer * o->experts + e[i]);
    for (int n = o->choose; n > 0; n--) {
        int which;
        expert_lease l;
        TRY(expert_cache_acquire_any(c, wanted, n, true, &which, &l));
        compute(o->compute);
        expert_cache_release(c, &l);
        memmove(wanted + which, wanted + which + 1, (size_t)(n - which - 1) * sizeof *wanted);
    }
    return MOE_OK;
}

static double cpu_seconds(void)
{
    struct rusage r;
    getrusage(RUSAGE_SELF, &r);
    return (double)(r.ru_utime.tv_sec + r.ru_stime.tv_sec) + 1e-6 * (double)(r.ru_utime.tv_usec + r.ru_stime.tv_usec);
}

static moe_err measure(expert_cache *c, const options *o)
{
    uint64_t x = 12345;
    const double from = moe_seconds(), cpu = cpu_seconds();
    int64_t layers = 0;
    while (moe_seconds() - from < o->seconds)
        TRY(run_layer(c, o, (int)(layers++ % o->layers), &x));
    const double seconds = moe_seconds() - from, used = cpu_seconds() - cpu;
    expert_cache_stats s;
    expert_cache_get_stats(c, &s);
    const double gb = (double)s.read_bytes / 1e9;
    fprintf(stderr, "%s %s: %.3f GB/s, %.1f %% hits, %d in flight, %.0f %% of the time waiting, CPU %.3f s/GB\n", o->io,
            o->in_place ? "in place" : "records", gb / seconds, 100.0 * (double)s.hits / (double)s.accesses, s.depth,
            100.0 * s.stall_seconds / seconds, (used - (double)s.accesses * o->compute) / gb);
    printf("{\"io\": \"%s\", \"in_place\": %s, \"expert_bytes\": %zu, \"choose\": %d, \"depth\": %d, \"slots\": %d, "
           "\"compute_us\": %.0f, "
           "\"gb_per_s\": %.4f, \"hits\": %llu, \"accesses\": %llu, \"stall_seconds\": %.3f, \"seconds\": %.3f, "
           "\"cpu_s_per_gb\": %.5f}\n",
           o->io, o->in_place ? "true" : "false", o->expert_bytes, o->choose, s.depth, s.slots, o->compute * 1e6, gb / seconds,
           (unsigned long long)s.hits, (unsigned long long)s.accesses, s.stall_seconds, seconds,
           (used - (double)s.accesses * o->compute) / gb);
    return MOE_OK;
}

static moe_err run(options *o)
{
    char note[256];
    io *disk = NULL;
    io_file *f = NULL;
    expert_cache *c = NULL;
    uint64_t bytes;
    moe_err rc;
    TRY_GOTO(io_open(&disk, o->io, note), rc, out);
    o->io = disk->ops->name;
    TRY_GOTO(disk->ops->open(disk, &f, o->file, IO_READ), rc, out);
    TRY_GOTO(disk->ops->size(disk, f, &bytes), rc, out);
    const size_t stride = (o->expert_bytes + IO_ALIGN - 1) / IO_ALIGN * IO_ALIGN;
    const uint64_t layers = bytes / stride / (uint64_t)o->experts;
    o->layers = layers > LAYERS_MAX ? LAYERS_MAX : (int)layers;
    if (o->layers < 1 || o->choose < 1 || o->choose > CHOOSE_MAX || o->choose > o->experts || o->expert_bytes < 4096) {
        rc = moe_fail(MOE_E_USAGE, "%s: %llu bytes; expected a layer of %d experts of %zu bytes at least, %d of them chosen",
                      o->file, (unsigned long long)bytes, o->experts, o->expert_bytes, o->choose);
        goto out;
    }
    expert_cache_config k = {.io = disk,
                             .files = &o->file,
                             .nfiles = 1,
                             .layers = o->layers,
                             .experts = o->experts,
                             .slot_bytes = stride,
                             .depth = o->depth,
                             .ranges = ranges,
                             .land = o->in_place ? land : NULL,
                             .user = o};
    const size_t in_flight = (size_t)(o->depth > 0 ? o->depth : EXPERT_CACHE_DEPTH);
    k.host_bytes = expert_cache_least_bytes(&k) + 5 * in_flight * stride;
    TRY_GOTO(expert_cache_open(&c, &k), rc, out);
    rc = measure(c, o);
out:
    expert_cache_close(c);
    if (f != NULL)
        disk->ops->close(disk, f);
    io_close(disk);
    return rc;
}

int main(int argc, char **argv)
{
    options o = {.io = "auto", .expert_bytes = 3538944, .experts = 64, .choose = 8, .seconds = 10};
    static const struct option names[] = {{"expert-bytes", 1, 0, 'b'}, {"experts", 1, 0, 'e'},  {"choose", 1, 0, 'k'},
                                          {"depth", 1, 0, 'd'},        {"seconds", 1, 0, 's'},  {"compute-us", 1, 0, 'c'},
                                          {"io", 1, 0, 'i'},           {"in-place", 0, 0, 'p'}, {0}};
    for (int opt; (opt = getopt_long(argc, argv, "", names, NULL)) != -1;) {
        switch (opt) {
        case 'b':
            o.expert_bytes = strtoull(optarg, NULL, 10);
            break;
        case 'e':
            o.experts = atoi(optarg);
            break;
        case 'k':
            o.choose = atoi(optarg);
            break;
        case 'd':
            o.depth = atoi(optarg);
            break;
        case 's':
            o.seconds = atof(optarg);
            break;
        case 'c':
            o.compute = 1e-6 * atof(optarg);
            break;
        case 'i':
            o.io = optarg;
            break;
        case 'p':
            o.in_place = true;
            break;
        default:
            return MOE_E_USAGE;
        }
    }
    if (optind + 1 != argc) {
        fprintf(stderr, "usage: bench_expert_reads FILE [options]\n");
        return MOE_E_USAGE;
    }
    o.file = argv[optind];
    const moe_err rc = run(&o);
    if (rc != MOE_OK)
        fprintf(stderr, "bench_expert_reads: %s\n", moe_error_text());
    return (int)rc;
}
