/* The store's doors: open, close, submit, promote, sync, counters. The I/O thread is store_thread.c, files are store_files.c.
 * Owns the store struct. Threads: any; `done` of an op runs on the I/O thread.
 * Rule: an op belongs to the store from store_submit until its `done` is called. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "memory/store_private.h"

static void store_free(store *s)
{
    if (s == NULL)
        return;
    store_thread_stop(s);
    store_files_close(s);
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->lock);
    pthread_mutex_destroy(&s->sync_lock);
    free(s);
}

moe_err store_open(store **out, const store_config *c)
{
    *out = NULL;
    if (c->depth < 0 || c->depth > STORE_MAX_DEPTH)
        return moe_fail(MOE_E_CONFIG, "memory.io_depth: expected 1 to %d, got %d", STORE_MAX_DEPTH, c->depth);
    store *s = calloc(1, sizeof *s);
    if (s == NULL)
        return moe_fail(MOE_E_OS, "store: out of memory");
    pthread_mutex_init(&s->lock, NULL);
    pthread_mutex_init(&s->sync_lock, NULL);
    pthread_cond_init(&s->changed, NULL);
    s->io = c->io;
    s->depth = c->depth > 0 ? c->depth : STORE_DEFAULT_DEPTH;
    s->deadline = c->deadline_seconds > 0 ? c->deadline_seconds : IO_DEADLINE_SECONDS;
    moe_err rc;
    TRY_GOTO(store_layout(s, c), rc, fail);
    TRY_GOTO(store_files_open(s, c), rc, fail);
    TRY_GOTO(store_thread_start(s), rc, fail);
    *out = s;
    return MOE_OK;
fail:
    store_free(s);
    return rc;
}

void store_close(store *s) { store_free(s); }

int store_slots(const store *s) { return s->slots; }

void store_register(store *s, void *base, size_t bytes)
{
    if (s->io->ops->queue_register == NULL || bytes == 0)
        return;
    pthread_mutex_lock(&s->lock);
    s->register_base = base;
    s->register_bytes = bytes;
    s->io->ops->queue_wake(s->queue);
    while (s->register_base != NULL && s->running)
        pthread_cond_wait(&s->changed, &s->lock);
    s->register_base = NULL;
    pthread_mutex_unlock(&s->lock);
}

/* --- ops ---------------------------------------------------------------------------------------------------------------------
 */

static moe_err op_check(const store *s, const store_op *op)
{
    if ((uintptr_t)op->buf % IO_ALIGN != 0 || op->buf == NULL)
        return moe_fail(MOE_E_OS, "store: the buffer %p is not aligned to %d bytes", op->buf, IO_ALIGN);
    if (op->priority < STORE_DEMAND || op->priority > STORE_PREFETCH)
        return moe_fail(MOE_E_OS, "store: priority %d", (int)op->priority);
    if (op->spill) {
        if (op->offset % IO_ALIGN != 0 || op->bytes == 0 || op->offset > s->spill_bytes ||
            op->bytes > s->spill_bytes - op->offset)
            return moe_fail(MOE_E_IO, "spill area: %zu bytes at offset %llu do not fit into %llu", op->bytes,
                            (unsigned long long)op->offset, (unsigned long long)s->spill_bytes);
        return MOE_OK;
    }
    if (op->section < 0 || op->section >= s->sections || op->part < STORE_W || op->part > STORE_G || op->slot < 0 ||
        op->slot >= s->slots)
        return moe_fail(MOE_E_DATA, "store: section %d part %d slot %d; the store has %d sections, %d parts, %d slots",
                        op->section, (int)op->part, op->slot, s->sections, STORE_PARTS, s->slots);
    if (s->part_bytes[op->part] == 0)
        return moe_fail(MOE_E_DATA, "store: part %c has no bytes in this store", STORE_LETTERS[op->part]);
    return MOE_OK;
}

void op_list_add(store *s, store_op *op, uint32_t list)
{
    op_state *st = op_state_of(op);
    op_list *l = &s->list[list];
    st->list = list + 1;
    st->next = NULL;
    st->prev = l->tail;
    if (l->tail != NULL)
        op_state_of(l->tail)->next = op;
    else
        l->head = op;
    l->tail = op;
}

void op_list_remove(store *s, store_op *op)
{
    op_state *st = op_state_of(op);
    if (st->list == 0)
        return;
    op_list *l = &s->list[st->list - 1];
    if (st->prev != NULL)
        op_state_of(st->prev)->next = st->next;
    else
        l->head = st->next;
    if (st->next != NULL)
        op_state_of(st->next)->prev = st->prev;
    else
        l->tail = st->prev;
    st->list = 0;
}

/* With the lock held: the I/O thread sleeps although it has room, so somebody must tell it. */
static void wake_thread(store *s)
{
    if (s->broken != MOE_OK)
        pthread_cond_broadcast(&s->changed);
    if (!s->sleeping)
        return;
    s->sleeping = false;
    s->io->ops->queue_wake(s->queue);
}

void store_submit(store *s, store_op *op)
{
    op_state *st = op_state_of(op);
    *st = (op_state){0};
    op->text[0] = '\0';
    op->rc = op_check(s, op);
    if (op->rc != MOE_OK)
        moe_error_take(op->text, sizeof op->text);
    pthread_mutex_lock(&s->lock);
    st->epoch = s->epoch;
    if (op->write)
        s->writes_pending[st->epoch & 1]++;
    s->ops_pending++;
    op_list_add(s, op, op->rc == MOE_OK ? (uint32_t)op->priority : STORE_REFUSED);
    wake_thread(s);
    pthread_mutex_unlock(&s->lock);
}

void store_promote(store *s, store_op *op)
{
    pthread_mutex_lock(&s->lock);
    if (op_state_of(op)->list == STORE_PREFETCH + 1) {
        op_list_remove(s, op);
        op->priority = STORE_DEMAND;
        op_list_add(s, op, STORE_DEMAND);
        wake_thread(s);
    }
    pthread_mutex_unlock(&s->lock);
}

/* --- sync --------------------------------------------------------------------------------------------------------------------
 */

static moe_err sync_files(store *s)
{
    for (int d = 0; d < s->ndirs; d++)
        for (int k = 0; k < s->slots; k++) {
            if (!atomic_exchange(&s->drive[d].dirty[k], false))
                continue;
            const moe_err rc = s->io->ops->sync(s->io, s->drive[d].slot[k]);
            if (rc != MOE_OK) {
                atomic_store(&s->drive[d].dirty[k], true);
                return rc;
            }
        }
    return MOE_OK;
}

moe_err store_sync(store *s)
{
    pthread_mutex_lock(&s->sync_lock);
    pthread_mutex_lock(&s->lock);
    const uint32_t epoch = s->epoch++;
    while (s->writes_pending[epoch & 1] > 0) /* each write ends: in time, or by its deadline */
        pthread_cond_wait(&s->changed, &s->lock);
    moe_err rc = MOE_OK;
    if (s->sync_broken != MOE_OK)
        rc = moe_error_set(s->sync_broken, s->sync_text);
    else if (s->broken != MOE_OK)
        rc = moe_error_set(s->broken, s->broken_text);
    pthread_mutex_unlock(&s->lock);
    if (rc == MOE_OK) {
        rc = sync_files(s);
        if (rc != MOE_OK) {
            /* The kernel reports a lost write once; a second sync would succeed without it. */
            pthread_mutex_lock(&s->lock);
            s->sync_broken = rc;
            moe_error_take(s->sync_text, sizeof s->sync_text);
            pthread_mutex_unlock(&s->lock);
        }
    }
    pthread_mutex_unlock(&s->sync_lock);
    return rc;
}

/* --- counters ----------------------------------------------------------------------------------------------------------------
 */

void store_get_stats(store *s, store_stats *out)
{
    pthread_mutex_lock(&s->lock);
    *out = s->stats;
    if (s->busy_since != 0)
        out->busy_seconds += store_now() - s->busy_since;
    pthread_mutex_unlock(&s->lock);
}

moe_err store_check(store *s)
{
    pthread_mutex_lock(&s->lock);
    moe_err rc = MOE_OK;
    int64_t listed = 0;
    for (uint32_t l = 0; l < STORE_LISTS && rc == MOE_OK; l++) {
        const store_op *prev = NULL;
        for (store_op *op = s->list[l].head; op != NULL; prev = op, op = op_state_of(op)->next, listed++) {
            const op_state *st = op_state_of(op);
            if (st->list != l + 1 || st->prev != prev)
                rc = moe_fail(MOE_E_DATA, "store: list %u is broken at section %d", l, op->section);
        }
        if (rc == MOE_OK && s->list[l].tail != prev)
            rc = moe_fail(MOE_E_DATA, "store: list %u ends elsewhere", l);
    }
    if (rc == MOE_OK && listed > s->ops_pending)
        rc = moe_fail(MOE_E_DATA, "store: %lld ops wait, %lld are pending", (long long)listed, (long long)s->ops_pending);
    if (rc == MOE_OK &&
        (s->writes_pending[0] < 0 || s->writes_pending[1] < 0 || s->writes_pending[0] + s->writes_pending[1] > s->ops_pending))
        rc = moe_fail(MOE_E_DATA, "store: %lld + %lld writes of %lld ops", (long long)s->writes_pending[0],
                      (long long)s->writes_pending[1], (long long)s->ops_pending);
    pthread_mutex_unlock(&s->lock);
    return rc;
}
