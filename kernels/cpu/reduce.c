/* Sum of squares and addition, fast (kernels/reduce.h): both are bound by memory. Owns nothing.
 * Threads: chunks of the sum lie in worker 0's scratch and are added by the caller, in order.
 * Rule: same bits as ref/reduce.c for any number of threads. */
#include "kernels/reduce.h"

#include "kernels/cpu/simd.h"
#include "kernels/tables.h"

enum {
    ADD_GRAIN = 32768, /* elements: 256 KiB of both arrays, far above the cost of handing out a piece */
    PREFETCH = 1024,   /* elements ahead: 4 KiB */
};

typedef struct squares_work {
    const float *x;
    size_t n;
    double *sum; /* [chunks] */
} squares_work;

/* Two accumulators would change the lanes, so the latency of one fma per 16 elements bounds this: 4 cycles for 64 bytes, above any
 * memory. The prefetch keeps enough lines in flight beside the conversions (one thread: from 75 % of a plain read to level with it). */
static double chunk_squares(const float *x, size_t n)
{
    d16 lane = d16_zero();
    size_t i = 0;
    for (; i + V16 <= n; i += V16) {
        _mm_prefetch((const char *)(x + i + PREFETCH), _MM_HINT_T0);
        const d16 d = d16_from_v16(v16_load(x + i));
        lane = d16_fma(d, d, lane);
    }
    if (i < n) {
        const d16 d = d16_from_v16(v16_load_n(x + i, (int)(n - i)));
        lane = d16_fma(d, d, lane);
    }
    return d16_sum(lane);
}

static void squares_chunks(void *ctx, int64_t begin, int64_t end, int worker)
{
    const squares_work *k = ctx;
    (void)worker;
    for (int64_t c = begin; c < end; c++) {
        const size_t at = (size_t)c * SUM_SQUARES_CHUNK, left = k->n - at;
        k->sum[c] = chunk_squares(k->x + at, left < SUM_SQUARES_CHUNK ? left : SUM_SQUARES_CHUNK);
    }
}

moe_err ISA(sum_squares)(const sum_squares_args *a, moe_stream *s)
{
    const size_t round =
        moe_pool_scratch_bytes(s->pool) / sizeof(double) * SUM_SQUARES_CHUNK; /* elements whose sums fit the scratch */
    double sum = 0.0;
    for (size_t at = 0; at < a->n; at += round) {
        squares_work k = {a->x + at, a->n - at < round ? a->n - at : round, moe_pool_scratch(s->pool, 0)};
        const int64_t chunks = (int64_t)((k.n + SUM_SQUARES_CHUNK - 1) / SUM_SQUARES_CHUNK);
        moe_pool_for(s->pool, chunks, 1, squares_chunks, &k);
        for (int64_t c = 0; c < chunks; c++)
            sum += k.sum[c];
    }
    *a->out = sum;
    return MOE_OK;
}

static void add_elements(void *ctx, int64_t begin, int64_t end, int worker)
{
    const add_args *a = ctx;
    int64_t i = begin;
    (void)worker;
    for (; i + V16 <= end; i += V16)
        v16_store(a->y + i, v16_add(v16_load(a->y + i), v16_load(a->x + i)));
    if (i < end)
        v16_store_n(a->y + i, v16_add(v16_load_n(a->y + i, (int)(end - i)), v16_load_n(a->x + i, (int)(end - i))),
                    (int)(end - i));
}

moe_err ISA(add)(const add_args *a, moe_stream *s)
{
    moe_pool_for(s->pool, (int64_t)a->n, ADD_GRAIN, add_elements, (void *)a);
    return MOE_OK;
}
