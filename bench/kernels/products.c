/* The grouped expert products over the shapes of the training configs, weights cold: forward, dx, dw and dw continued.
 * Owns the activations of one case. Each repetition measures the machine's limits, then every product once.
 * Rule: the limit is min(FMA peak, flops / (least bytes / bandwidth)), least bytes being the weights alone: read once by forward
 * and dx, written once by dw, read and written by dw continued. Activations are not counted, which favours the limit. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "bench/kernels/bench.h"

typedef struct product_case {
    const char *name;
    int G, rows, N, K; /* rows of each group */
} product_case;

/* name, experts, D, F: bench/README.md says where the configs come from. */
static const struct {
    const char *name;
    int E, D, F;
} configs[] = {
    {"tiny", 16, 256, 512},
    {"small", 32, 512, 1024},
    {"fine", 128, 512, 256},
    {"big", 32, 768, 1536},
};
static const int row_counts[] = {1, 8, 64, 512};
static const product_case dense[] = {
    {"dense qkv", 1, 8192, 1536, 512},
    {"dense out", 1, 8192, 512, 512},
    {"lm_head", 1, 256, 16384, 512},
    {"lm_head", 1, 1024, 16384, 512},
};
enum { PRODUCTS = 4, GROUPS_MOST = 128 };
static const char *const product_names[PRODUCTS] = {"forward", "dx", "dw", "dw+="};
static const double CASE_FLOPS = 5e9; /* groups are dropped until one call is at most this */

typedef struct samples {
    double rate[REPS_MOST], limit[REPS_MOST], percent[REPS_MOST];
} samples;

static double limit_of(const limits *l, const product_case *c, int product)
{
    const double flops = 2.0 * c->rows * c->N * c->K, bytes = 4.0 * (double)panel_floats(c->N, c->K);
    const double seconds[PRODUCTS] = {bytes / l->read, bytes / l->read, bytes / l->write, bytes / l->read + bytes / l->write};
    const double memory = flops / seconds[product];
    return memory < l->fma ? memory : l->fma;
}

static double run_product(bench *b, const product_case *c, int product, float *x, float *y, const int32_t *offset)
{
    const float *w[GROUPS_MOST];
    float *dw[GROUPS_MOST];
    const size_t floats = panel_floats(c->N, c->K);
    for (int g = 0; g < c->G; g++) {
        const size_t at = bench_next(b, floats);
        w[g] = b->weights + at, dw[g] = b->gradients + at;
    }
    const matmul_args a = {.dw = dw,
                           .w = w,
                           .y = y,
                           .x = x,
                           .ldy = (size_t)c->N,
                           .ldx = (size_t)c->K,
                           .offset = offset,
                           .G = c->G,
                           .N = c->N,
                           .K = c->K,
                           .accumulate = product == 3};
    const matmul_fn fn = product == 0 ? b->backend->matmul_forward : product == 1 ? b->backend->matmul_dx : b->backend->matmul_dw;
    const double begin = bench_clock(b);
    if (fn(&a, &b->stream) != MOE_OK)
        return 0;
    return 2.0 * c->G * c->rows * (double)c->N * c->K / (bench_clock(b) - begin) * 1e-9;
}

static void report(bench *b, const product_case *c, int product, const samples *s)
{
    const double rate = bench_typical(b, s->rate), limit = bench_typical(b, s->limit);
    const double percent = b->best ? 100 * rate / limit : bench_median(s->percent, b->reps);
    printf("  %-8s %8.1f %8.1f %5.0f%%", product_names[product], rate, limit, percent);
    if (b->json == NULL)
        return;
    fprintf(b->json,
            "{\"case\": \"%s\", \"product\": \"%s\", \"groups\": %d, \"rows\": %d, \"N\": %d, \"K\": %d, \"backend\": \"%s\", "
            "\"threads\": %d, \"gflops\": %.2f, \"limit\": %.2f, \"percent\": %.1f, \"samples\": [",
            c->name, product_names[product], c->G, c->rows, c->N, c->K, b->backend->name, b->threads, rate, limit, percent);
    for (int i = 0; i < b->reps; i++)
        fprintf(b->json, "%s[%.2f, %.2f]", i ? ", " : "", s->rate[i], s->limit[i]);
    fprintf(b->json, "]}\n");
}

static void run_case(bench *b, product_case c)
{
    if (b->only != NULL && strstr(c.name, b->only) == NULL)
        return;
    while (c.G > 1 && 2.0 * c.G * c.rows * (double)c.N * c.K > CASE_FLOPS)
        c.G /= 2;
    const size_t rows = (size_t)c.G * (size_t)c.rows;
    float *x = bench_map(rows * (size_t)c.K), *y = bench_map(rows * (size_t)c.N);
    samples s[PRODUCTS];
    int32_t offset[GROUPS_MOST + 1];
    if (x == NULL || y == NULL)
        abort();
    for (int g = 0; g <= c.G; g++)
        offset[g] = g * c.rows;
    for (int rep = -1; rep < b->reps; rep++) { /* the first is a rehearsal: it touches the activations */
        const limits l = bench_limits(b);
        for (int product = 0; product < PRODUCTS; product++) {
            for (size_t i = 0; product == 0 && i < rows * (size_t)c.K; i++) /* dx and forward write each other's input */
                x[i] = 0.01f * (float)(i % 101) - 0.5f;
            const double rate = run_product(b, &c, product, x, y, offset), limit = limit_of(&l, &c, product);
            if (rep >= 0)
                s[product].rate[rep] = rate, s[product].limit[rep] = limit, s[product].percent[rep] = 100 * rate / limit;
        }
    }
    printf("%-14s %3d x %4d rows, %5d x %4d:", c.name, c.G, c.rows, c.N, c.K);
    for (int product = 0; product < PRODUCTS; product++)
        report(b, &c, product, &s[product]);
    printf("\n");
    fflush(stdout);
    munmap(x, rows * (size_t)c.K * sizeof(float)), munmap(y, rows * (size_t)c.N * sizeof(float));
}

void bench_products(bench *b)
{
    printf("%s, %d threads; GFLOP/s, limit = min(FMA peak, flops / (weight bytes / bandwidth)), %%; %s of %d\n", b->backend->name,
           b->threads, b->best ? "best" : "medians", b->reps);
    for (size_t r = 0; r < sizeof row_counts / sizeof *row_counts; r++)
        for (size_t i = 0; i < sizeof configs / sizeof *configs; i++) {
            char name[32];
            snprintf(name, sizeof name, "%s up", configs[i].name);
            run_case(b, (product_case){name, configs[i].E, row_counts[r], 2 * configs[i].F, configs[i].D});
            snprintf(name, sizeof name, "%s down", configs[i].name);
            run_case(b, (product_case){name, configs[i].E, row_counts[r], configs[i].D, configs[i].F});
        }
    for (size_t i = 0; i < sizeof dense / sizeof *dense; i++)
        run_case(b, dense[i]);
}
