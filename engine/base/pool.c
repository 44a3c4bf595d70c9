#include "engine/base/pool.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

/* A loop is published under the lock with a new round number; workers take pieces from the atomic counter.
 * Workers spin briefly before they sleep: a layer is hundreds of loops of some 100 us, and a futex wake costs 50 us on a VM. */
struct moe_pool {
    pthread_mutex_t lock;
    pthread_cond_t work, idle;
    int threads, started;
    bool quit;
    atomic_uint round; /* of the loop published last */
    moe_pool_fn fn;
    void *ctx;
    int64_t n, grain;
    _Atomic int64_t next;
    atomic_int running; /* workers still inside the loop */
    size_t scratch_bytes;
    char *scratch;
    pthread_t *thread;
};

typedef struct worker_arg {
    moe_pool *p;
    int worker;
} worker_arg;

enum { HUGE_PAGE = 2 << 20 };    /* bytes: packed operands walk the scratch with few TLB misses */
enum { SPIN_ROUNDS = 4000 }; /* about 40-100 us of pause instructions */

void moe_float_setup(void)
{
#if defined(__x86_64__)
    _mm_setcsr(_mm_getcsr() | 0x8040); /* FTZ (bit 15), DAZ (bit 6) */
#endif
}

static void cpu_pause(void)
{
#if defined(__x86_64__)
    _mm_pause();
#endif
}

static void take_pieces(moe_pool *p, int worker)
{
    for (;;) {
        const int64_t begin = atomic_fetch_add_explicit(&p->next, p->grain, memory_order_relaxed);
        if (begin >= p->n)
            return;
        const int64_t end = begin + p->grain < p->n ? begin + p->grain : p->n;
        p->fn(p->ctx, begin, end, worker);
    }
}

/* Returns the new round once it differs from `seen`; sleeps after a while. */
static unsigned wait_round(moe_pool *p, unsigned seen)
{
    for (int i = 0; i < SPIN_ROUNDS; i++) {
        const unsigned now = atomic_load_explicit(&p->round, memory_order_acquire);
        if (now != seen)
            return now;
        cpu_pause();
    }
    pthread_mutex_lock(&p->lock);
    while (atomic_load_explicit(&p->round, memory_order_acquire) == seen)
        pthread_cond_wait(&p->work, &p->lock);
    pthread_mutex_unlock(&p->lock);
    return atomic_load_explicit(&p->round, memory_order_acquire);
}

static void *worker_main(void *arg_void)
{
    worker_arg *arg = arg_void;
    moe_pool *p = arg->p;
    const int worker = arg->worker;
    free(arg);
    moe_float_setup();
    for (unsigned seen = 0;;) {
        seen = wait_round(p, seen);
        if (p->quit)
            return NULL;
        take_pieces(p, worker);
        if (atomic_fetch_sub_explicit(&p->running, 1, memory_order_acq_rel) == 1) {
            pthread_mutex_lock(&p->lock);
            pthread_cond_signal(&p->idle);
            pthread_mutex_unlock(&p->lock);
        }
    }
}

static void publish_round(moe_pool *p)
{
    pthread_mutex_lock(&p->lock);
    atomic_fetch_add_explicit(&p->round, 1, memory_order_release);
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->lock);
}

static char *scratch_new(size_t bytes)
{
    char *block = aligned_alloc(HUGE_PAGE, (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE);
    if (block != NULL)
        madvise(block, bytes, MADV_HUGEPAGE); /* only speed */
    return block;
}

moe_err moe_pool_open(moe_pool **out, int threads, size_t scratch_bytes)
{
    *out = NULL;
    if (threads < 1 || threads > 4096)
        return moe_fail(MOE_E_CONFIG, "threads: expected 1 to 4096, got %d", threads);
    if (scratch_bytes > SIZE_MAX / 8192 / (size_t)threads) /* room for the rounding up below */
        return moe_fail(MOE_E_OS, "thread pool: out of memory (%zu bytes of scratch for each of %d threads)", scratch_bytes, threads);
    moe_pool *p = calloc(1, sizeof *p);
    if (p == NULL)
        return moe_fail(MOE_E_OS, "thread pool: out of memory");
    p->threads = threads;
    p->scratch_bytes = (scratch_bytes + 4095) & ~(size_t)4095;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->work, NULL);
    pthread_cond_init(&p->idle, NULL);
    p->thread = calloc((size_t)threads, sizeof *p->thread);
    p->scratch = p->scratch_bytes ? scratch_new(p->scratch_bytes * (size_t)threads) : NULL;
    if (p->thread == NULL || (p->scratch_bytes && p->scratch == NULL)) {
        moe_pool_close(p);
        return moe_fail(MOE_E_OS, "thread pool: out of memory (%zu bytes of scratch for each of %d threads)", scratch_bytes, threads);
    }
    for (int w = 1; w < threads; w++) {
        worker_arg *arg = malloc(sizeof *arg);
        if (arg == NULL || (*arg = (worker_arg){p, w}, pthread_create(&p->thread[w], NULL, worker_main, arg)) != 0) {
            free(arg);
            moe_pool_close(p);
            return moe_fail(MOE_E_OS, "thread pool: cannot start thread %d of %d", w, threads);
        }
        p->started = w;
    }
    moe_float_setup();
    *out = p;
    return MOE_OK;
}

void moe_pool_close(moe_pool *p)
{
    if (p == NULL)
        return;
    p->quit = true;
    publish_round(p);
    for (int w = 1; w <= p->started; w++)
        pthread_join(p->thread[w], NULL);
    pthread_cond_destroy(&p->work);
    pthread_cond_destroy(&p->idle);
    pthread_mutex_destroy(&p->lock);
    free(p->scratch);
    free(p->thread);
    free(p);
}

int moe_pool_threads(const moe_pool *p) { return p->threads; }

void *moe_pool_scratch(moe_pool *p, int worker) { return p->scratch + p->scratch_bytes * (size_t)worker; }

size_t moe_pool_scratch_bytes(const moe_pool *p) { return p->scratch_bytes; }

void moe_pool_for(moe_pool *p, int64_t n, int64_t grain, moe_pool_fn fn, void *ctx)
{
    if (n <= 0)
        return;
    if (p->threads == 1 || n <= grain) {
        for (int64_t begin = 0; begin < n; begin += grain)
            fn(ctx, begin, begin + grain < n ? begin + grain : n, 0);
        return;
    }
    p->fn = fn;
    p->ctx = ctx;
    p->n = n;
    p->grain = grain;
    atomic_store_explicit(&p->next, 0, memory_order_relaxed);
    atomic_store_explicit(&p->running, p->threads - 1, memory_order_relaxed);
    publish_round(p);
    take_pieces(p, 0);
    for (int i = 0; i < SPIN_ROUNDS; i++) {
        if (atomic_load_explicit(&p->running, memory_order_acquire) == 0)
            return;
        cpu_pause();
    }
    pthread_mutex_lock(&p->lock);
    while (atomic_load_explicit(&p->running, memory_order_acquire) != 0)
        pthread_cond_wait(&p->idle, &p->lock);
    pthread_mutex_unlock(&p->lock);
}
