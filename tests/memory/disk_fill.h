/* What the store tests share: contents that name their section, part and step; ops that are waited for. */
#ifndef MOE_TESTS_MEMORY_DISK_FILL_H
#define MOE_TESTS_MEMORY_DISK_FILL_H

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "memory/store.h"

static inline size_t fill_pad(size_t n) { return (n + IO_ALIGN - 1) & ~(size_t)(IO_ALIGN - 1); }

static inline void *fill_alloc(size_t n)
{
    void *p = aligned_alloc(IO_ALIGN, fill_pad(n ? n : 1));
    memset(p, 0, fill_pad(n ? n : 1));
    return p;
}

/* Bytes that belong to this key and no other. */
static inline void fill_bytes(void *buf, size_t n, uint64_t key)
{
    uint64_t x = key * 0x9e3779b97f4a7c15ULL + 1;
    for (size_t i = 0; i < n; i++) {
        if (i % 8 == 0)
            x = (x ^ (x >> 29)) * 0xbf58476d1ce4e5b9ULL + i;
        ((uint8_t *)buf)[i] = (uint8_t)(x >> (8 * (i % 8)));
    }
}

static inline size_t fill_differs(const void *buf, size_t n, uint64_t key)
{
    uint8_t *want = malloc(n ? n : 1);
    fill_bytes(want, n, key);
    size_t i = 0;
    while (i < n && ((const uint8_t *)buf)[i] == want[i])
        i++;
    free(want);
    return i; /* n: equal */
}

/* Counts ops down. */
typedef struct latch {
    pthread_mutex_t lock;
    pthread_cond_t zero;
    int left;
} latch;

#define LATCH_INIT {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0}

static inline void latch_done(store_op *op)
{
    latch *l = op->user;
    pthread_mutex_lock(&l->lock);
    if (--l->left == 0)
        pthread_cond_signal(&l->zero);
    pthread_mutex_unlock(&l->lock);
}

static inline void latch_submit(store *s, store_op *op, latch *l)
{
    pthread_mutex_lock(&l->lock);
    l->left++;
    pthread_mutex_unlock(&l->lock);
    op->user = l;
    op->done = latch_done;
    store_submit(s, op);
}

static inline void latch_wait(latch *l)
{
    pthread_mutex_lock(&l->lock);
    while (l->left > 0)
        pthread_cond_wait(&l->zero, &l->lock);
    pthread_mutex_unlock(&l->lock);
}

#endif
