/* The I/O thread of the store: hands chunks over, waits, settles what landed, watches deadlines. What a chunk is: store_chunk.c.
 * A disk that does not answer ends the store: every op fails with one sentence, later ones at once, and close still returns.
 * Threads: this is the one; doors in store.c. Rule: the lock is never held while the disk, a checksum or a done() works. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <xxh_x86dispatch.h>

#include "memory/store_private.h"

enum { LATE_WAITS = 3 /* of about a second */ };

double store_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* --- failures of the whole store ---------------------------------------------------------------------------------------------
 */

static void store_break(store *s, moe_err rc, const char *text)
{
    pthread_mutex_lock(&s->lock);
    if (s->broken == MOE_OK) {
        s->broken = rc;
        snprintf(s->broken_text, sizeof s->broken_text, "%s", text);
    }
    pthread_mutex_unlock(&s->lock);
    /* Ops in flight end now; their chunks are given up and never come back to a caller. */
    for (int i = 0; i < s->nchunks; i++) {
        store_op *op = s->chunks[i].op;
        if (op == NULL)
            continue;
        op_state *st = op_state_of(op);
        st->settled += s->chunks[i].t.bytes;
        s->chunks[i].op = NULL;
        op_fail(op, rc, text);
        pthread_mutex_lock(&s->lock);
        op_list_remove(s, op);
        pthread_mutex_unlock(&s->lock);
        if (op_is_over(s, op))
            op_end(s, op);
    }
}

static void watch_deadlines(store *s)
{
    const double now = store_now();
    if (now - s->looked < 0.05)
        return;
    s->looked = now;
    for (int i = 0; i < s->nchunks; i++) {
        const chunk *c = &s->chunks[i];
        if (c->op == NULL || !c->in_flight || now - c->started < s->deadline)
            continue;
        char text[256];
        snprintf(
            text, sizeof text,
            "%.120s: waited %.0f s for the disk to %s %zu bytes at offset %llu (section %d part %c slot %d): it does not answer",
            s->drive[c->drive].dir, now - c->started, c->t.write ? "write" : "read", c->t.bytes, (unsigned long long)c->t.offset,
            c->op->spill ? -1 : c->op->section, c->op->spill ? '-' : STORE_LETTERS[c->op->part], c->op->spill ? -1 : c->op->slot);
        store_break(s, MOE_E_IO, text);
        return;
    }
}

/* --- the thread --------------------------------------------------------------------------------------------------------------
 */

/* With the lock held; gives it up around done(). Ops that need no disk end here. */
static void end_refused(store *s)
{
    for (uint32_t l = 0; l < STORE_LISTS; l++) {
        store_op *op;
        while ((op = s->list[l].head) != NULL && (l == STORE_REFUSED || s->broken != MOE_OK)) {
            op_list_remove(s, op);
            op_fail(op, s->broken, s->broken_text);
            const bool over = op_state_of(op)->issued == op_state_of(op)->settled;
            pthread_mutex_unlock(&s->lock);
            if (over)
                op_end(s, op);
            pthread_mutex_lock(&s->lock);
        }
    }
}

static void register_asked(store *s)
{
    if (s->register_base == NULL)
        return;
    (void)s->io->ops->queue_register(s->queue, s->register_base, s->register_bytes);
    s->register_base = NULL;
    pthread_cond_broadcast(&s->changed);
}

/* Hands chunks over: reads together; each write by itself once its sum is made, so that the disk works meanwhile. */
static void submit_chunks(store *s, io_transfer *list)
{
    io_transfer *reads = NULL, **reads_end = &reads, *writes = NULL, **writes_end = &writes;
    for (io_transfer *t = list, *next; t != NULL; t = next) {
        next = t->next;
        t->next = NULL;
        io_transfer ***end = t->write ? &writes_end : &reads_end;
        **end = t;
        *end = &t->next;
    }
    if (reads != NULL && s->io->ops->queue_submit(s->queue, reads) != MOE_OK)
        store_break(s, MOE_E_IO, moe_error_text());
    for (io_transfer *t = writes, *next; t != NULL; t = next) {
        next = t->next;
        t->next = NULL;
        chunk *c = t->user;
        if (s->broken != MOE_OK) { /* it was given up with the others and never reached the queue */
            chunk_land(s, c);
            continue;
        }
        if (!c->op->spill)
            sum_next_chunk(s, c->op);
        if (s->io->ops->queue_submit(s->queue, t) != MOE_OK)
            store_break(s, MOE_E_IO, moe_error_text());
    }
}

static void wait_chunks(store *s)
{
    io_transfer *done = NULL;
    if (s->io->ops->queue_wait(s->queue, &done) != MOE_OK) {
        store_break(s, MOE_E_IO, moe_error_text());
        return;
    }
    for (io_transfer *next; done != NULL; done = next) {
        next = done->next;
        chunk_land(s, done->user);
    }
    watch_deadlines(s);
}

/* With the lock held; gives it up. What landed is looked at while the disk works: each time one is done, the next chunks go out
 * first. */
static void settle_landed(store *s)
{
    while (s->landed != NULL) {
        pthread_mutex_unlock(&s->lock);
        chunk_settle(s);
        pthread_mutex_lock(&s->lock);
        io_transfer *list = take_chunks(s);
        if (list == NULL)
            continue;
        pthread_mutex_unlock(&s->lock);
        submit_chunks(s, list);
        pthread_mutex_lock(&s->lock);
    }
}

/* With the lock held. */
static bool something_to_do(store *s)
{
    if (s->landed != NULL || s->list[STORE_REFUSED].head != NULL || s->broken != MOE_OK)
        return true;
    return first_ready(s, STORE_DEMAND) != NULL || first_ready(s, STORE_WRITE) != NULL || first_ready(s, STORE_PREFETCH) != NULL;
}

/* A disk that did not answer in time may answer late: then its chunks need not be left behind. */
static void wait_late_chunks(store *s)
{
    for (int i = 0; i < LATE_WAITS && s->in_flight > 0; i++) {
        io_transfer *done = NULL;
        if (s->io->ops->queue_wait(s->queue, &done) != MOE_OK)
            return;
        for (io_transfer *next; done != NULL; done = next) {
            next = done->next;
            chunk_land(s, done->user);
        }
        while (s->landed != NULL)
            chunk_settle(s);
    }
}

static void *store_main(void *arg)
{
    store *s = arg;
    const moe_err rc = s->io->ops->queue_open(s->io, &s->queue, s->ndirs * s->depth);
    pthread_mutex_lock(&s->lock);
    s->running = rc == MOE_OK;
    if (rc != MOE_OK) {
        s->broken = rc;
        moe_error_take(s->broken_text, sizeof s->broken_text);
    }
    s->thread_started = true;
    pthread_cond_broadcast(&s->changed);
    while (s->running) {
        register_asked(s);
        io_transfer *list = take_chunks(s);
        end_refused(s);
        merge_stats(s);
        if (s->quit && s->ops_pending == 0)
            break;
        if (s->broken != MOE_OK) { /* the queue is not asked again; new ops end in end_refused */
            if (s->ops_pending == 0)
                pthread_cond_wait(&s->changed, &s->lock);
            else
                settle_landed(s);
            continue;
        }
        pthread_mutex_unlock(&s->lock);
        submit_chunks(s, list);
        pthread_mutex_lock(&s->lock);
        settle_landed(s);
        if (something_to_do(s))
            continue;
        s->sleeping = s->in_flight < s->ndirs * s->depth;
        pthread_mutex_unlock(&s->lock);
        wait_chunks(s);
        pthread_mutex_lock(&s->lock);
        s->sleeping = false;
    }
    s->running = false;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
    if (rc == MOE_OK) {
        wait_late_chunks(s);
        s->io->ops->queue_close(s->io, s->queue);
    }
    return NULL;
}

moe_err store_thread_start(store *s)
{
    const int n = s->nchunks = 2 * s->ndirs * s->depth; /* in flight, and landed but not settled */
    s->landed_end = &s->landed;
    s->chunks = calloc((size_t)n, sizeof *s->chunks);
    if (s->chunks == NULL)
        return moe_fail(MOE_E_OS, "store: out of memory");
    for (int i = n - 1; i >= 0; i--) {
        s->chunks[i].next = s->free_chunk;
        s->free_chunk = &s->chunks[i];
    }
    if (pthread_create(&s->thread, NULL, store_main, s) != 0)
        return moe_fail(MOE_E_OS, "store: cannot start the I/O thread");
    pthread_mutex_lock(&s->lock);
    while (!s->thread_started)
        pthread_cond_wait(&s->changed, &s->lock);
    const bool running = s->running;
    pthread_mutex_unlock(&s->lock);
    return running ? MOE_OK : moe_error_set(s->broken, s->broken_text);
}

void store_thread_stop(store *s)
{
    if (s->thread_started) {
        pthread_mutex_lock(&s->lock);
        s->quit = true;
        if (s->running)
            s->io->ops->queue_wake(s->queue);
        pthread_cond_broadcast(&s->changed);
        pthread_mutex_unlock(&s->lock);
        pthread_join(s->thread, NULL);
    }
    for (hash_cell *h = s->free_hash, *next; h != NULL; h = next) {
        next = h->next;
        XXH3_freeState(h->state);
        free(h);
    }
    if (s->in_flight == 0) /* else a disk that never answered may still write into them */
        free(s->chunks);
}
