/* bench_attention: attention forward and backward against the FMA peak measured beside every repetition. A table on stdout.
 * Owns its arrays and the pool; limits.c and peak.c give clock, median and peak. One thread calls, the pool works.
 * Rule: flops are those of the causal sum, 2 products of S(S+1)/2 pairs forward and 5 backward; what is recomputed or masked earns nothing. */
#include <getopt.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench/kernels/bench.h"

typedef struct shape {
    const char *name;
    int B, S, H, Hkv, hd;
} shape;

static const shape shapes[] = {
    {"small", 8, 512, 8, 2, 64},      {"every head its own", 8, 512, 8, 8, 64}, {"one window", 1, 512, 8, 2, 64},
    {"one head of keys", 8, 512, 8, 1, 64}, {"long", 1, 4096, 8, 2, 64},        {"wide", 4, 512, 8, 2, 128},
    {"narrow", 8, 512, 16, 4, 32},    {"short", 64, 64, 8, 2, 64},
};

typedef struct run {
    const moe_backend *backend;
    moe_stream stream;
    int threads, reps;
} run;

static void peak_piece(void *ctx, int64_t begin, int64_t end, int worker)
{
    double *fma = ctx;
    (void)worker;
    for (int64_t i = begin; i < end; i++)
        fma[i] = fma[64] > 0 ? peak_fma_avx512(0.01) : peak_fma_avx2(0.01);
}

static double peak(const run *r)
{
    double fma[65] = {0}, sum = 0;
    fma[64] = strcmp(r->backend->name, "avx512") == 0;
    moe_pool_for(r->stream.pool, r->threads, 1, peak_piece, fma);
    for (int i = 0; i < r->threads; i++)
        sum += fma[i];
    return sum;
}

static float *array(size_t n)
{
    float *x = malloc(n * sizeof *x);
    if (x == NULL) {
        fprintf(stderr, "bench_attention: out of memory\n");
        exit(MOE_E_OS);
    }
    for (size_t i = 0; i < n; i++)
        x[i] = 0.02f * (float)((i * 2654435761u >> 7) % 101) - 1.0f;
    return x;
}

static attention_args args_new(const shape *s)
{
    const size_t T = (size_t)s->B * (size_t)s->S, width = (size_t)s->H * (size_t)s->hd, kv = (size_t)s->Hkv * (size_t)s->hd;
    attention_args a = {.ldq = width, .ldk = kv, .ldo = width, .B = s->B, .S = s->S, .H = s->H, .Hkv = s->Hkv, .hd = s->hd,
                        .scale = 1.0f / sqrtf((float)s->hd)};
    a.q = array(T * width), a.o = array(T * width), a.d_o = array(T * width), a.dq = array(T * width);
    a.k = array(T * kv), a.v = array(T * kv), a.dk = array(T * kv), a.dv = array(T * kv);
    a.lse = array(T * (size_t)s->H);
    return a;
}

static void args_free(attention_args *a)
{
    free((void *)a->q), free(a->o), free((void *)a->d_o), free(a->dq);
    free((void *)a->k), free((void *)a->v), free(a->dk), free(a->dv), free(a->lse);
}

/* Seconds of one call, at least `least` of them measured together. */
static double seconds(const run *r, attention_fn fn, const attention_args *a)
{
    const double begin = bench_now();
    for (int calls = 1;; calls++) {
        if (fn(a, (moe_stream *)&r->stream) != MOE_OK) {
            fprintf(stderr, "bench_attention: %s\n", moe_error_text());
            exit(MOE_E_CONFIG);
        }
        const double spent = bench_now() - begin;
        if (spent > 0.02)
            return spent / calls;
    }
}

static void measure(const run *r, const shape *s)
{
    attention_args a = args_new(s);
    double rate[2][REPS_MOST], share[2][REPS_MOST];
    const double pairs = (double)s->B * s->H * s->S * (s->S + 1) / 2, flops[2] = {4 * pairs * s->hd, 10 * pairs * s->hd};
    const attention_fn fn[2] = {r->backend->attention_forward, r->backend->attention_backward};
    for (int rep = -1; rep < r->reps; rep++)
        for (int f = 0; f < 2; f++) {
            const double top = peak(r), gflops = flops[f] / seconds(r, fn[f], &a) * 1e-9;
            if (rep >= 0)
                rate[f][rep] = gflops, share[f][rep] = 100 * gflops / top;
        }
    printf("%-20s %3d %5d %3d %3d %4d  %9.1f %5.1f%%  %9.1f %5.1f%%\n", s->name, s->B, s->S, s->H, s->Hkv, s->hd,
           bench_median(rate[0], r->reps), bench_median(share[0], r->reps), bench_median(rate[1], r->reps),
           bench_median(share[1], r->reps));
    fflush(stdout);
    args_free(&a);
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"threads", 1, 0, 't'}, {"backend", 1, 0, 'b'}, {"reps", 1, 0, 'r'}, {"help", 0, 0, 'h'}, {0, 0, 0, 0}};
    run r = {.threads = (int)sysconf(_SC_NPROCESSORS_ONLN), .reps = 5};
    const char *backend = NULL;
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        switch (c) {
        case 't': r.threads = atoi(optarg); break;
        case 'r': r.reps = atoi(optarg); break;
        case 'b': backend = optarg; break;
        default:
            fprintf(c == 'h' ? stdout : stderr, "usage: bench_attention [--threads N] [--backend avx2|avx512] [--reps N]\n");
            return c == 'h' ? 0 : MOE_E_USAGE;
        }
    }
    if (r.threads < 1 || r.threads > 64 || r.reps < 1 || r.reps > REPS_MOST) {
        fprintf(stderr, "bench_attention: expected --threads from 1 to 64 and --reps from 1 to %d\n", (int)REPS_MOST);
        return MOE_E_USAGE;
    }
    if (moe_backend_find(&r.backend, backend) != MOE_OK || moe_pool_open(&r.stream.pool, r.threads, KERNEL_SCRATCH_BYTES) != MOE_OK) {
        fprintf(stderr, "bench_attention: %s\n", moe_error_text());
        return MOE_E_CONFIG;
    }
    printf("%s, %d threads; GFLOP/s of the causal sum and percent of the FMA peak, medians of %d\n", r.backend->name, r.threads, r.reps);
    printf("%-20s %3s %5s %3s %3s %4s  %16s  %17s\n", "", "B", "S", "H", "Hkv", "hd", "forward", "backward");
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        measure(&r, &shapes[i]);
    moe_pool_close(r.stream.pool);
    return 0;
}
