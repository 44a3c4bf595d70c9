/* Runs the rungs of ladder.c against the definition and the shipped product: one thread, 512 rows x 2048 x 512. Owns its arrays.
 * One thread. Rule: a rung whose bits differ from the definition is reported as WRONG, not as fast. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "bench/kernels/bench.h"

enum { ROWS = 504, N = 2048, K = 512, REF_ROWS = 4, RUNGS = 4 };

typedef struct climb {
    bench *b;
    bench single; /* b with one thread */
    float *x, *y, *want;
    const float *w;
} climb;

static double run_rung(climb *c, int rung)
{
    const bool wide = strcmp(c->b->backend->name, "avx512") == 0;
    const int rows = rung == 0 ? REF_ROWS : ROWS;
    const int32_t offset[] = {0, rows};
    const matmul_args a = {.w = &c->w, .y = c->y, .x = c->x, .ldy = N, .ldx = K, .offset = offset, .G = 1, .N = N, .K = K};
    memset(c->y, 0, sizeof *c->y * ROWS * N);
    const double begin = bench_clock(&c->single);
    moe_err rc = MOE_OK;
    if (rung == 0)
        rc = moe_backend_at(0)->matmul_forward(&a, &c->single.stream);
    else if (rung == 1)
        (wide ? ladder_panels_avx512 : ladder_panels_avx2)(c->y, c->x, c->w, rows, N, K);
    else if (rung == 2)
        (wide ? ladder_tile_avx512 : ladder_tile_avx2)(c->y, c->x, c->w, rows, N, K);
    else
        rc = c->b->backend->matmul_forward(&a, &c->single.stream);
    const double seconds = bench_clock(&c->single) - begin;
    if (rung == 0)
        memcpy(c->want, c->y, sizeof *c->y * REF_ROWS * N);
    const bool same = rc == MOE_OK && memcmp(c->y, c->want, sizeof *c->y * REF_ROWS * N) == 0;
    return same ? 2.0 * rows * N * (double)K / seconds * 1e-9 : 0;
}

void bench_ladder(bench *b)
{
    static const char *const ideas[RUNGS] = {"naive: the definition", "panels: 16 outputs in a vector",
                                             "tile: 6 rows in registers",
                                             "final: blocked for the caches, packed, 2 vectors wide"};
    climb c = {.b = b,
               .single = *b,
               .x = bench_map(ROWS * K),
               .y = bench_map(ROWS * N),
               .want = bench_map(REF_ROWS * N),
               .w = b->weights};
    double rate[RUNGS][REPS_MOST], peak[REPS_MOST];
    c.single.threads = 1;
    if (c.x == NULL || c.y == NULL || c.want == NULL || moe_pool_open(&c.single.stream.pool, 1, KERNEL_SCRATCH_BYTES) != MOE_OK)
        abort();
    for (size_t i = 0; i < ROWS * K; i++)
        c.x[i] = 0.01f * (float)(i % 101) - 0.5f;
    for (int rep = 0; rep < b->reps; rep++) {
        peak[rep] = bench_limits(&c.single).fma;
        for (int rung = 0; rung < RUNGS; rung++)
            rate[rung][rep] = run_rung(&c, rung);
    }
    printf("ladder, forward, %s, 1 thread, %d x %d x %d, FMA peak %.1f GFLOP/s\n", b->backend->name, ROWS, N, K,
           bench_typical(b, peak));
    for (int rung = 0; rung < RUNGS; rung++) {
        const double median = bench_typical(b, rate[rung]);
        printf("  %-56s %8.2f%s\n", ideas[rung], median, median > 0 ? "" : " WRONG");
        if (b->json != NULL)
            fprintf(b->json, "{\"ladder\": \"%s\", \"backend\": \"%s\", \"gflops\": %.2f, \"fma_peak\": %.2f}\n", ideas[rung],
                    b->backend->name, median, bench_typical(b, peak));
    }
    munmap(c.x, sizeof(float) * ROWS * K), munmap(c.y, sizeof(float) * ROWS * N), munmap(c.want, sizeof(float) * REF_ROWS * N);
    moe_pool_close(c.single.stream.pool);
}
