/* The simulated device's table: allocations, events, queueing, waiting. Owns the memory and the queues; how streams move on is in
 * device_sim_run.c. Threads: the caller's, and one a stream when it was opened with threads. */
#include "memory/device_sim.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "memory/device_sim_private.h"

enum {
    STEPS_A_CALL = 4, /* steps: what is queued moves the streams on by fewer than so many steps */
    CALLS_A_STEP = 8, /* steps: so many queries move them on by one, about                      */
};

static sim *sim_of(device *d) { return (sim *)d; }

/* --- memory ----------------------------------------------------------------------------------------------------------------- */

static moe_err sim_alloc(device *base, void **out, size_t bytes, const char *what)
{
    sim *d = sim_of(base);
    *out = NULL;
    const size_t padded = bytes > SIZE_MAX - DEVICE_ALIGN ? SIZE_MAX : (bytes + DEVICE_ALIGN - 1) / DEVICE_ALIGN * DEVICE_ALIGN;
    if (bytes == 0 || padded > d->stats.free_bytes)
        return moe_fail(MOE_E_CONFIG, "device sim: %s needs %zu bytes of device memory; %llu are free", what, bytes,
                        (unsigned long long)d->stats.free_bytes);
    sim_block *b = calloc(1, sizeof *b);
    void *memory = aligned_alloc(DEVICE_ALIGN, padded);
    sim_cell *cell = calloc(padded / DEVICE_ALIGN, sizeof *cell);
    if (b == NULL || memory == NULL || cell == NULL) {
        free(b);
        free(memory);
        free(cell);
        return moe_fail(MOE_E_OS, "device sim: out of memory for %s", what);
    }
    memset(memory, DEVICE_SIM_POISON, padded);
    pthread_mutex_lock(&d->lock);
    *b = (sim_block){.base = memory, .bytes = padded, .cell = cell, .next = d->block};
    d->block = b;
    d->stats.free_bytes -= padded;
    d->stats.allocations++;
    pthread_mutex_unlock(&d->lock);
    *out = memory;
    return MOE_OK;
}

static void free_block(sim_block *b)
{
    free(b->cell);
    free(b->base);
    free(b);
}

static void sim_free(device *base, void *p)
{
    sim *d = sim_of(base);
    pthread_mutex_lock(&d->lock);
    for (sim_block **at = &d->block; p != NULL && *at != NULL; at = &(*at)->next)
        if ((*at)->base == p) {
            sim_block *b = *at;
            *at = b->next;
            d->stats.free_bytes += b->bytes;
            d->stats.allocations--;
            free_block(b);
            break;
        }
    pthread_mutex_unlock(&d->lock);
}

/* --- events ----------------------------------------------------------------------------------------------------------------- */

static moe_err sim_event_open(device *base, device_event **out)
{
    sim *d = sim_of(base);
    *out = calloc(1, sizeof **out);
    if (*out == NULL)
        return moe_fail(MOE_E_OS, "device sim: out of memory for an event");
    d->stats.events++;
    return MOE_OK;
}

static void drop_ops_of(sim *d, const device_event *e)
{
    for (int s = 0; s < DEVICE_STREAMS; s++)
        for (sim_op *op = d->stream[s].head; op != NULL; op = op->next)
            if (op->event == e)
                op->event = NULL;
}

/* Records and waits that are still queued (of a broken device) point nowhere then, and no stream moves any more. */
static void sim_event_close(device *base, device_event *e)
{
    sim *d = sim_of(base);
    if (e == NULL)
        return;
    pthread_mutex_lock(&d->lock);
    if (e->done < e->recorded)
        sim_break(d, SIM_HOST, MOE_E_NUMERIC, "an event was closed before it was done");
    drop_ops_of(d, e);
    d->stats.events--;
    pthread_mutex_unlock(&d->lock);
    free(e);
}

/* --- queueing --------------------------------------------------------------------------------------------------------------- */

static bool counts(sim_kind k) { return k == SIM_COPY || k == SIM_LAUNCH; }

/* Takes op over, also when it fails. */
static moe_err queue(sim *d, device_stream s, sim_op *op)
{
    if (op == NULL)
        return moe_fail(MOE_E_OS, "device sim: out of memory for the queue of the %s stream", device_stream_name(s));
    sim_stream *t = &d->stream[s];
    pthread_mutex_lock(&d->lock);
    op->host = d->host;
    if (op->kind == SIM_WAIT) { /* looked at while no record can slip in before it is queued */
        op->number = op->event->recorded;
        op->ready = op->event->done == op->event->recorded;
        op->clock = op->event->clock;
    }
    if (counts(op->kind)) {
        const uint64_t number = t->queued++;
        if (d->strikes && d->strike_on == s && d->strike_at == number) {
            op->struck = 1 + (uint64_t)d->strike;
            d->strikes = false;
        }
    }
    *t->tail = op;
    t->tail = &op->next;
    for (uint32_t i = d->threads ? 0 : sim_draw(&d->random, STEPS_A_CALL); i > 0 && sim_step_any(d); i--)
        continue;
    pthread_cond_broadcast(&d->moved);
    const moe_err rc = d->broken == MOE_OK ? MOE_OK : sim_failure(d);
    pthread_mutex_unlock(&d->lock);
    return rc;
}

static sim_op *new_op(sim_kind kind)
{
    sim_op *op = calloc(1, sizeof *op);
    if (op != NULL)
        op->kind = kind;
    return op;
}

static moe_err sim_copy(device *base, device_stream s, void *dst, const void *src, size_t bytes)
{
    sim_op *op = new_op(SIM_COPY);
    if (op != NULL) {
        op->dst = dst;
        op->src = src;
        op->bytes = bytes;
    }
    return queue(sim_of(base), s, op);
}

static moe_err sim_launch(device *base, const device_work *w)
{
    if (w->args_bytes > DEVICE_ARGS || w->ntouch > DEVICE_TOUCH)
        return moe_fail(MOE_E_CONFIG, "device sim: a launch with %zu bytes of arguments and %d ranges; expected at most %d and %d",
                        w->args_bytes, w->ntouch, DEVICE_ARGS, DEVICE_TOUCH);
    sim_op *op = new_op(SIM_LAUNCH);
    if (op != NULL) {
        op->fn = w->fn;
        op->ntouch = w->ntouch;
        if (w->args_bytes > 0)
            memcpy(op->args, w->args, w->args_bytes);
        if (w->ntouch > 0)
            memcpy(op->touch, w->touch, (size_t)w->ntouch * sizeof *w->touch);
    }
    return queue(sim_of(base), DEVICE_COMPUTE, op);
}

static moe_err sim_forget(device *base, device_stream s, void *p, size_t bytes)
{
    sim_op *op = new_op(SIM_FORGET);
    if (op != NULL) {
        op->dst = p;
        op->bytes = bytes;
    }
    return queue(sim_of(base), s, op);
}

static moe_err sim_record(device *base, device_stream s, device_event *e)
{
    sim_op *op = new_op(SIM_RECORD);
    if (op != NULL) {
        op->event = e;
        pthread_mutex_lock(&sim_of(base)->lock);
        op->number = ++e->recorded;
        pthread_mutex_unlock(&sim_of(base)->lock);
    }
    return queue(sim_of(base), s, op);
}

static moe_err sim_wait(device *base, device_stream s, device_event *e)
{
    sim_op *op = new_op(SIM_WAIT);
    if (op != NULL)
        op->event = e;
    return queue(sim_of(base), s, op);
}

/* --- the caller looks and waits --------------------------------------------------------------------------------------------- */

static moe_err look(sim *d, const device_event *e, bool *done)
{
    *done = e->done == e->recorded;
    if (*done)
        sim_clock_join(&d->host, &e->clock);
    return *done || d->broken == MOE_OK ? MOE_OK : sim_failure(d);
}

static moe_err sim_query(device *base, device_event *e, bool *done)
{
    sim *d = sim_of(base);
    pthread_mutex_lock(&d->lock);
    if (!d->threads && sim_draw(&d->random, CALLS_A_STEP) == 0) /* one who asks often shall not find everything done */
        (void)sim_step_any(d);
    const moe_err rc = look(d, e, done);
    pthread_mutex_unlock(&d->lock);
    return rc;
}

/* Until something moves; false when the deadline is over. */
static bool wait_for_a_move(sim *d, const struct timespec *until)
{
    return d->threads ? pthread_cond_timedwait(&d->moved, &d->lock, until) != ETIMEDOUT : sim_step_any(d);
}

static moe_err sim_sync(device *base, device_event *e, double seconds, bool *done)
{
    sim *d = sim_of(base);
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    const double whole = (double)until.tv_sec + 1e-9 * (double)until.tv_nsec + seconds;
    until = (struct timespec){.tv_sec = (time_t)whole, .tv_nsec = (long)(1e9 * (whole - (double)(time_t)whole))};
    pthread_mutex_lock(&d->lock);
    moe_err rc = look(d, e, done);
    while (rc == MOE_OK && !*done && wait_for_a_move(d, &until))
        rc = look(d, e, done);
    if (rc == MOE_OK && !*done)
        rc = look(d, e, done);
    pthread_mutex_unlock(&d->lock);
    return rc;
}

static bool sim_failed(device *base, device_stream *s)
{
    sim *d = sim_of(base);
    pthread_mutex_lock(&d->lock);
    const bool known = d->broken != MOE_OK && d->failed != SIM_HOST;
    if (known)
        *s = (device_stream)d->failed;
    pthread_mutex_unlock(&d->lock);
    return known;
}

/* --- open and close --------------------------------------------------------------------------------------------------------- */

static void sim_close(device *base)
{
    sim *d = sim_of(base);
    pthread_mutex_lock(&d->lock);
    d->closing = true;
    pthread_cond_broadcast(&d->moved);
    pthread_mutex_unlock(&d->lock);
    for (int s = 0; s < DEVICE_STREAMS; s++) {
        sim_stream *t = &d->stream[s];
        if (t->started)
            pthread_join(t->thread, NULL);
        for (sim_op *op = t->head, *next; op != NULL; op = next) {
            next = op->next;
            free(op);
        }
    }
    for (sim_block *b = d->block, *next; b != NULL; b = next) {
        next = b->next;
        free_block(b);
    }
    pthread_cond_destroy(&d->moved);
    pthread_mutex_destroy(&d->lock);
    free(d);
}

static const device_ops sim_ops = {
    .alloc = sim_alloc, .free = sim_free, .event_open = sim_event_open, .event_close = sim_event_close, .copy = sim_copy,
    .launch = sim_launch, .record = sim_record, .wait = sim_wait, .query = sim_query, .sync = sim_sync, .failed = sim_failed,
    .forget = sim_forget, .close = sim_close,
};

static moe_err open_lock(sim *d)
{
    pthread_condattr_t attr;
    if (pthread_condattr_init(&attr) != 0)
        return moe_fail(MOE_E_OS, "device sim: no condition variable");
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    const bool ok = pthread_mutex_init(&d->lock, NULL) == 0 && pthread_cond_init(&d->moved, &attr) == 0;
    pthread_condattr_destroy(&attr);
    return ok ? MOE_OK : moe_fail(MOE_E_OS, "device sim: no lock");
}

static moe_err start_threads(sim *d)
{
    for (int s = 0; d->threads && s < DEVICE_STREAMS; s++) {
        if (pthread_create(&d->stream[s].thread, NULL, sim_thread, &d->stream[s]) != 0)
            return moe_fail(MOE_E_OS, "device sim: no thread for the %s stream", device_stream_name((device_stream)s));
        d->stream[s].started = true;
    }
    return MOE_OK;
}

moe_err device_sim_open(device **out, const device_sim_config *c)
{
    *out = NULL;
    sim *d = calloc(1, sizeof *d);
    if (d == NULL)
        return moe_fail(MOE_E_OS, "device sim: out of memory");
    d->base = (device){.ops = &sim_ops, .name = "sim"};
    d->threads = c->threads;
    d->random = c->seed * 0x9e3779b97f4a7c15u + 1;
    d->stats.free_bytes = c->memory_bytes;
    for (int s = 0; s < DEVICE_STREAMS; s++) {
        sim_stream *t = &d->stream[s];
        t->sim = d;
        t->tail = &t->head;
        t->speed = 1u << 2 * sim_draw(&d->random, 3); /* one may be sixteen times as slow as another */
        t->random = d->random + (uint64_t)s;
    }
    const moe_err locked = open_lock(d);
    if (locked != MOE_OK) {
        free(d);
        return locked;
    }
    const moe_err rc = start_threads(d);
    if (rc != MOE_OK)
        sim_close(&d->base);
    else
        *out = &d->base;
    return rc;
}

void device_sim_strike(device *base, device_stream s, uint64_t nth, device_sim_fault what)
{
    sim *d = sim_of(base);
    pthread_mutex_lock(&d->lock);
    d->strikes = true;
    d->strike_on = s;
    d->strike_at = d->stream[s].queued + nth;
    d->strike = what;
    pthread_mutex_unlock(&d->lock);
}

void device_sim_get_stats(device *base, device_sim_stats *out)
{
    sim *d = sim_of(base);
    pthread_mutex_lock(&d->lock);
    *out = d->stats;
    pthread_mutex_unlock(&d->lock);
}
