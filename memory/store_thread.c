/* The I/O thread of the store. It cuts ops into chunks of IO_CHUNK, keeps up to `depth` chunks in flight per drive, computes and verifies
 * checksums chunk by chunk while the disk works on others, and watches deadlines.
 *
 * Who goes first: demand, then writes, then prefetch, but nobody starves. While all wait, three chunks of demand let one write pass,
 * two writes let one prefetch pass, and eight of demand let one prefetch pass. One queue serves all drives, so that the thread
 * waits in one place; `in_flight` per drive keeps a slow one from taking all the room.
 *
 * A checksum costs as much as copying the bytes. It is computed here: on the way out before a chunk is handed over, on the way in as soon
 * as the chunks before it are done, so that the thread never works on one for longer than the disk needs for the chunks in flight.
 * Rule: an op is not touched after its done(). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <xxh_x86dispatch.h>

#include "memory/store_private.h"

enum { WRITE_PATIENCE = 3, PREFETCH_PATIENCE = 8, WRITE_WEIGHT = 4, LATE_WAITS = 3 /* of about a second */ };

double store_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static uint64_t op_bytes(const store *s, const store_op *op)
{
    return op->spill ? (op->bytes + IO_ALIGN - 1) & ~(uint64_t)(IO_ALIGN - 1) : s->padded[op->part];
}

/* --- where a chunk lies ------------------------------------------------------------------------------------------------------ */

typedef struct place {
    int drive;
    io_file *file;
    uint64_t offset;
    size_t bytes;
} place;

static place next_place(store *s, const store_op *op)
{
    const uint64_t issued = op_state_of((store_op *)(uintptr_t)op)->issued;
    const uint64_t left = op_bytes(s, op) - issued;
    place p;
    if (op->spill) {
        const uint64_t at = op->offset + issued, stripe = at / STORE_STRIPE, within = at % STORE_STRIPE;
        p.drive = (int)(stripe % (uint64_t)s->ndirs);
        p.file = s->drive[p.drive].spill;
        p.offset = stripe / (uint64_t)s->ndirs * STORE_STRIPE + within;
        p.bytes = (size_t)(left < STORE_STRIPE - within ? left : STORE_STRIPE - within);
        return p;
    }
    p.drive = (int)(op->section % s->ndirs);
    p.file = s->drive[p.drive].slot[op->slot];
    p.offset = (uint64_t)(op->section / s->ndirs) * s->record_bytes + s->part_offset[op->part] + issued;
    p.bytes = (size_t)(left < IO_CHUNK ? left : IO_CHUNK);
    return p;
}

/* --- checksums --------------------------------------------------------------------------------------------------------------- */

static hash_cell *hash_take(store *s)
{
    hash_cell *h = s->free_hash;
    if (h != NULL) {
        s->free_hash = h->next;
    } else {
        h = malloc(sizeof *h);
        if (h != NULL && (h->state = XXH3_createState()) == NULL) {
            free(h);
            h = NULL;
        }
    }
    if (h != NULL)
        XXH3_64bits_reset(h->state);
    return h;
}

static void hash_give(store *s, hash_cell *h)
{
    if (h == NULL)
        return;
    h->next = s->free_hash;
    s->free_hash = h;
}

/* Length of chunk i that counts for the sum: the padding does not. */
static size_t summed_bytes(const store *s, const store_op *op, uint64_t i)
{
    const uint64_t from = i * IO_CHUNK, all = s->part_bytes[op->part];
    return (size_t)(from >= all ? 0 : all - from < IO_CHUNK ? all - from : IO_CHUNK);
}

static void sum_next_chunk(store *s, store_op *op)
{
    op_state *st = op_state_of(op);
    const double begin = store_now();
    const char *p = (const char *)op->buf + st->summed * IO_CHUNK;
    const size_t n = summed_bytes(s, op, st->summed);
    if (st->hash != NULL)
        XXH3_64bits_update(st->hash->state, p, n);
    else
        st->landed = XXH3_64bits(p, n); /* the only chunk: `landed` keeps its sum */
    st->summed++;
    s->delta.sum_seconds += store_now() - begin;
}

static uint64_t sum_result(const op_state *st) { return st->hash != NULL ? XXH3_64bits_digest(st->hash->state) : st->landed; }

/* --- ends of ops ------------------------------------------------------------------------------------------------------------- */

static void op_fail(store_op *op, moe_err rc, const char *text)
{
    if (op->rc != MOE_OK)
        return;
    op->rc = rc;
    snprintf(op->text, sizeof op->text, "%s", text);
}

static void op_verify(store *s, store_op *op)
{
    const uint64_t found = sum_result(op_state_of(op));
    if (op->write)
        op->sum = found;
    else if (found != op->sum) {
        const store_drive *d = &s->drive[op->section % s->ndirs];
        char text[256];
        snprintf(text, sizeof text, "section %d part %c slot %d: checksum mismatch in %.120s/slot-%d.bin at offset %llu: expected %016llx, found %016llx",
                 op->section, "wmvg"[op->part], op->slot, d->dir, op->slot,
                 (unsigned long long)((uint64_t)(op->section / s->ndirs) * s->record_bytes + s->part_offset[op->part]),
                 (unsigned long long)op->sum, (unsigned long long)found);
        op_fail(op, MOE_E_DATA, text);
    }
}

/* With the lock held. */
static void merge_stats(store *s)
{
    s->stats.read_bytes += s->delta.read_bytes;
    s->stats.write_bytes += s->delta.write_bytes;
    s->stats.spill_read_bytes += s->delta.spill_read_bytes;
    s->stats.spill_write_bytes += s->delta.spill_write_bytes;
    s->stats.sum_seconds += s->delta.sum_seconds;
    s->delta = (store_stats){0};
    if (s->in_flight > 0 && s->busy_since == 0)
        s->busy_since = store_now();
    if (s->in_flight == 0 && s->busy_since != 0) {
        s->stats.busy_seconds += store_now() - s->busy_since;
        s->busy_since = 0;
    }
}

/* Calls done; afterwards the op is the caller's. */
static void op_end(store *s, store_op *op)
{
    op_state *st = op_state_of(op);
    if (op->rc == MOE_OK && !op->spill)
        op_verify(s, op);
    hash_give(s, st->hash);
    st->hash = NULL;
    const bool write = op->write;
    const uint32_t parity = st->epoch & 1;
    pthread_mutex_lock(&s->lock);
    merge_stats(s); /* before done, so that whoever it wakes sees its bytes */
    pthread_mutex_unlock(&s->lock);
    op->done(op);
    pthread_mutex_lock(&s->lock);
    if (write)
        s->writes_pending[parity]--;
    s->ops_pending--;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

static bool op_is_over(const store *s, store_op *op)
{
    const op_state *st = op_state_of(op);
    return st->issued == st->settled && (op->rc != MOE_OK || st->issued == op_bytes(s, op));
}

/* A chunk came back. */
static void chunk_land(store *s, chunk *c)
{
    store_op *op = c->op;
    s->in_flight--;
    s->drive[c->drive].in_flight--;
    if (op != NULL) {
        op_state *st = op_state_of(op);
        st->settled += c->t.bytes;
        if (op->write && !op->spill) /* here, not when it was handed over: a sync in between would not cover it */
            atomic_store(&s->drive[c->drive].dirty[op->slot], true);
        *(op->write ? &s->delta.write_bytes : &s->delta.read_bytes) += c->t.bytes;
        if (op->spill)
            *(op->write ? &s->delta.spill_write_bytes : &s->delta.spill_read_bytes) += c->t.bytes;
        if (c->t.rc != MOE_OK)
            op_fail(op, c->t.rc, c->t.text);
        if (!op->write && !op->spill && op->rc == MOE_OK) {
            if (st->hash == NULL) {
                sum_next_chunk(s, op);
            } else {
                st->landed |= 1ULL << ((uint64_t)((char *)c->t.buf - (char *)op->buf) / IO_CHUNK - st->summed);
                for (; st->landed & 1; st->landed >>= 1)
                    sum_next_chunk(s, op);
            }
        }
        if (op->rc != MOE_OK) {
            pthread_mutex_lock(&s->lock);
            op_list_remove(s, op);
            pthread_mutex_unlock(&s->lock);
        }
        if (op_is_over(s, op))
            op_end(s, op);
    }
    c->op = NULL;
    c->next_free = s->free_chunk;
    s->free_chunk = c;
}

/* --- what goes next ---------------------------------------------------------------------------------------------------------- */

/* The first op of the list whose next chunk's drive has room. */
static store_op *first_ready(store *s, store_priority list)
{
    for (store_op *op = s->list[list].head; op != NULL; op = op_state_of(op)->next) {
        const op_state *st = op_state_of(op);
        if (s->drive[next_place(s, op).drive].in_flight >= s->depth) {
            if (s->ndirs == 1)
                return NULL;
            continue;
        }
        if (op->write || op->spill || st->issued / IO_CHUNK - st->summed < STORE_WINDOW)
            return op;
    }
    return NULL;
}

/* With the lock held. */
static store_op *pick(store *s)
{
    store_op *demand = first_ready(s, STORE_DEMAND), *write = first_ready(s, STORE_WRITE), *prefetch = first_ready(s, STORE_PREFETCH);
    if (prefetch != NULL && ((demand == NULL && write == NULL) || s->prefetch_passed >= PREFETCH_PATIENCE)) {
        s->prefetch_passed = 0;
        return prefetch;
    }
    if (write != NULL && (demand == NULL || s->write_passed >= WRITE_PATIENCE)) {
        s->write_passed = 0;
        s->prefetch_passed += prefetch != NULL ? WRITE_WEIGHT : 0;
        return write;
    }
    if (demand != NULL) {
        s->write_passed += write != NULL;
        s->prefetch_passed += prefetch != NULL;
    }
    return demand;
}

/* With the lock held: takes the next chunk of op; the op leaves its list with its last chunk. */
static chunk *take_chunk(store *s, store_op *op)
{
    op_state *st = op_state_of(op);
    const place p = next_place(s, op);
    chunk *c = s->free_chunk;
    s->free_chunk = c->next_free;
    c->op = op;
    c->drive = p.drive;
    c->t = (io_transfer){.file = p.file, .write = op->write, .buf = (char *)op->buf + st->issued, .bytes = p.bytes, .offset = p.offset,
                         .user = c};
    st->issued += p.bytes;
    if (st->issued == op_bytes(s, op))
        op_list_remove(s, op);
    s->drive[p.drive].in_flight++;
    s->in_flight++;
    return c;
}

/* A record of more than one chunk needs a running sum from its first chunk on. Without memory for it the op fails. */
static bool prepare_sum(store *s, store_op *op)
{
    op_state *st = op_state_of(op);
    if (op->spill || st->issued != 0 || op_bytes(s, op) <= IO_CHUNK)
        return true;
    st->hash = hash_take(s);
    if (st->hash != NULL)
        return true;
    op_fail(op, MOE_E_OS, "store: out of memory for a checksum");
    op_list_remove(s, op);
    op_list_add(s, op, STORE_REFUSED);
    return false;
}

/* With the lock held. Returns the list of chunks to hand over. */
static io_transfer *take_chunks(store *s)
{
    io_transfer *first = NULL, **end = &first;
    while (s->free_chunk != NULL && s->broken == MOE_OK) {
        store_op *op = pick(s);
        if (op == NULL)
            break;
        if (!prepare_sum(s, op))
            continue;
        chunk *c = take_chunk(s, op);
        *end = &c->t;
        end = &c->t.next;
    }
    return first;
}

/* --- failures of the whole store --------------------------------------------------------------------------------------------- */

static void store_break(store *s, moe_err rc, const char *text)
{
    pthread_mutex_lock(&s->lock);
    if (s->broken == MOE_OK) {
        s->broken = rc;
        snprintf(s->broken_text, sizeof s->broken_text, "%s", text);
    }
    pthread_mutex_unlock(&s->lock);
    /* Ops in flight end now; their chunks are given up and never come back to a caller. */
    for (int i = 0; i < s->ndirs * s->depth; i++) {
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
    for (int i = 0; i < s->ndirs * s->depth; i++) {
        const chunk *c = &s->chunks[i];
        if (c->op == NULL || now - c->started < s->deadline)
            continue;
        char text[256];
        snprintf(text, sizeof text, "%.120s: waited %.0f s for the disk to %s %zu bytes at offset %llu (section %d part %c slot %d): it does not answer",
                 s->drive[c->drive].dir, now - c->started, c->t.write ? "write" : "read", c->t.bytes, (unsigned long long)c->t.offset,
                 c->op->spill ? -1 : c->op->section, c->op->spill ? '-' : "wmvg"[c->op->part], c->op->spill ? -1 : c->op->slot);
        store_break(s, MOE_E_IO, text);
        return;
    }
}

/* --- the thread -------------------------------------------------------------------------------------------------------------- */

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
        ((chunk *)t->user)->started = store_now();
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
        if (list == NULL && s->quit && s->ops_pending == 0)
            break;
        if (s->broken != MOE_OK) { /* the queue is not asked again; new ops end in end_refused */
            if (s->ops_pending == 0)
                pthread_cond_wait(&s->changed, &s->lock);
            continue;
        }
        s->sleeping = s->free_chunk != NULL;
        pthread_mutex_unlock(&s->lock);
        submit_chunks(s, list);
        if (s->broken == MOE_OK)
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
    const int n = s->ndirs * s->depth;
    s->chunks = calloc((size_t)n, sizeof *s->chunks);
    if (s->chunks == NULL)
        return moe_fail(MOE_E_OS, "store: out of memory");
    for (int i = n - 1; i >= 0; i--) {
        s->chunks[i].next_free = s->free_chunk;
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
