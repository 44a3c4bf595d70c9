/* Ops cut into chunks: where each lies, its checksum, who goes next, and the end of an op.
 *
 * Who goes first: demand, then writes, then prefetch, but nobody starves. While all wait, three chunks of demand let one write
 * pass, two writes let one prefetch pass, and eight of demand let one prefetch pass. One queue serves all drives, so that the
 * thread waits in one place; `in_flight` per drive keeps a slow one from taking all the room.
 *
 * A checksum costs more than everything else done here. It is made chunk by chunk: on the way out just before a chunk is handed
 * over, on the way in after the place it leaves in the queue has been filled again, so that the disk never waits for one.
 * Threads: the I/O thread. Rule: an op is not touched after its done(). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <xxh_x86dispatch.h>

#include "memory/store_private.h"

enum { WRITE_PATIENCE = 3, PREFETCH_PATIENCE = 8, WRITE_WEIGHT = 4 };

static uint64_t op_bytes(const store *s, const store_op *op)
{
    return op->spill ? (op->bytes + IO_ALIGN - 1) & ~(uint64_t)(IO_ALIGN - 1) : s->padded[op->part];
}

/* --- where a chunk lies ------------------------------------------------------------------------------------------------------
 */

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

/* --- checksums ---------------------------------------------------------------------------------------------------------------
 */

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

static double cpu_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void sum_next_chunk(store *s, store_op *op)
{
    op_state *st = op_state_of(op);
    const double begin = cpu_now();
    const char *p = (const char *)op->buf + st->summed * IO_CHUNK;
    const size_t n = summed_bytes(s, op, st->summed);
    if (st->hash != NULL)
        XXH3_64bits_update(st->hash->state, p, n);
    else
        st->landed = XXH3_64bits(p, n); /* the only chunk: `landed` keeps its sum */
    st->summed++;
    s->delta.sum_seconds += cpu_now() - begin;
}

static uint64_t sum_result(const op_state *st) { return st->hash != NULL ? XXH3_64bits_digest(st->hash->state) : st->landed; }

/* --- ends of ops -------------------------------------------------------------------------------------------------------------
 */

void op_fail(store_op *op, moe_err rc, const char *text)
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
        snprintf(
            text, sizeof text,
            "section %d part %c slot %d: checksum mismatch in %.120s/slot-%d.bin at offset %llu: expected %016llx, found %016llx",
            op->section, STORE_LETTERS[op->part], op->slot, d->dir, op->slot,
            (unsigned long long)((uint64_t)(op->section / s->ndirs) * s->record_bytes + s->part_offset[op->part]),
            (unsigned long long)op->sum, (unsigned long long)found);
        op_fail(op, MOE_E_DATA, text);
    }
}

/* With the lock held. */
void merge_stats(store *s)
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
void op_end(store *s, store_op *op)
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

bool op_is_over(const store *s, store_op *op)
{
    const op_state *st = op_state_of(op);
    return st->issued == st->settled && (op->rc != MOE_OK || st->issued == op_bytes(s, op));
}

/* A chunk came back from the disk: its place is free at once, its bytes are looked at by chunk_settle. */
void chunk_land(store *s, chunk *c)
{
    s->in_flight--;
    s->drive[c->drive].in_flight--;
    c->in_flight = false;
    c->next = NULL;
    *s->landed_end = c;
    s->landed_end = &c->next;
}

static void sum_landed(store *s, store_op *op, const chunk *c)
{
    op_state *st = op_state_of(op);
    if (st->hash == NULL) {
        sum_next_chunk(s, op);
        return;
    }
    st->landed |= 1ULL << ((uint64_t)((char *)c->t.buf - (char *)op->buf) / IO_CHUNK - st->summed);
    for (; st->landed & 1; st->landed >>= 1)
        sum_next_chunk(s, op);
}

/* Takes the oldest landed chunk: checksum of a read, end of its op. */
void chunk_settle(store *s)
{
    chunk *c = s->landed;
    s->landed = c->next;
    if (s->landed == NULL)
        s->landed_end = &s->landed;
    store_op *op = c->op;
    if (op != NULL) {
        op_state_of(op)->settled += c->t.bytes;
        if (op->write && !op->spill) /* here, not when it was handed over: a sync in between would not cover it */
            atomic_store(&s->drive[c->drive].dirty[op->slot], true);
        *(op->write ? &s->delta.write_bytes : &s->delta.read_bytes) += c->t.bytes;
        if (op->spill)
            *(op->write ? &s->delta.spill_write_bytes : &s->delta.spill_read_bytes) += c->t.bytes;
        if (c->t.rc != MOE_OK)
            op_fail(op, c->t.rc, c->t.text);
        if (!op->write && !op->spill && op->rc == MOE_OK)
            sum_landed(s, op, c);
        if (op->rc != MOE_OK) {
            pthread_mutex_lock(&s->lock);
            op_list_remove(s, op);
            pthread_mutex_unlock(&s->lock);
        }
        if (op_is_over(s, op))
            op_end(s, op);
    }
    c->op = NULL;
    c->next = s->free_chunk;
    s->free_chunk = c;
}

/* --- what goes next ----------------------------------------------------------------------------------------------------------
 */

/* The first op of the list whose next chunk's drive has room. */
store_op *first_ready(store *s, store_priority list)
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
    store_op *demand = first_ready(s, STORE_DEMAND), *write = first_ready(s, STORE_WRITE),
             *prefetch = first_ready(s, STORE_PREFETCH);
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
    s->free_chunk = c->next;
    c->op = op;
    c->drive = p.drive;
    c->in_flight = true;
    c->started = store_now();
    c->t = (io_transfer){
        .file = p.file, .write = op->write, .buf = (char *)op->buf + st->issued, .bytes = p.bytes, .offset = p.offset, .user = c};
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
io_transfer *take_chunks(store *s)
{
    io_transfer *first = NULL, **end = &first;
    while (s->broken == MOE_OK) {
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
