/* How the streams of the simulated device move on: one step of one stream, chosen at random (steps) or by its own thread. Owns nothing.
 * Rule: called with the lock held; it is given up only while bytes are copied or a kernel runs. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "memory/device_sim_private.h"

enum { PAUSE_NANOSECONDS = 20000 }; /* threads: at most, one step in four */

uint32_t sim_draw(uint64_t *random, uint32_t n)
{
    *random = *random * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*random >> 33) % n;
}

void sim_break(sim *d, int actor, moe_err rc, const char *text)
{
    if (d->broken == MOE_OK) {
        d->failed = actor;
        d->broken = rc;
        snprintf(d->text, sizeof d->text, "%s", text);
    }
    pthread_cond_broadcast(&d->moved);
}

moe_err sim_failure(sim *d)
{
    while (d->running > 0)
        pthread_cond_wait(&d->moved, &d->lock);
    return moe_error_set(d->broken, d->text);
}

static void work_begins(sim *d)
{
    d->running++;
    pthread_mutex_unlock(&d->lock);
}

static void work_ends(sim *d)
{
    pthread_mutex_lock(&d->lock);
    d->running--;
    pthread_cond_broadcast(&d->moved);
}

static void pop(sim_stream *t)
{
    sim_op *op = t->head;
    t->head = op->next;
    if (t->head == NULL)
        t->tail = &t->head;
    free(op);
    pthread_cond_broadcast(&t->sim->moved);
}

/* The op's time begins: it knows what the stream and the caller knew. False: a fault has struck it. */
static bool begin(sim *d, sim_stream *t, sim_op *op)
{
    op->begun = true;
    sim_clock_join(&t->clock, &op->host);
    t->clock.at[t - d->stream]++;
    if (op->struck == 1 + DEVICE_SIM_HANG)
        t->hung = true;
    else if (op->struck == 1 + DEVICE_SIM_FAIL)
        sim_break(d, (int)(t - d->stream), MOE_E_IO, op->kind == SIM_COPY ? "the copy failed" : "the kernel failed");
    else if (op->struck != 0)
        sim_break(d, (int)(t - d->stream), MOE_E_IO, "the device is gone");
    return op->struck == 0;
}

static void check(sim *d, sim_stream *t, const device_range *r)
{
    if (d->broken == MOE_OK && sim_access(d, (device_stream)(t - d->stream), r) != MOE_OK)
        sim_break(d, (int)(t - d->stream), MOE_E_NUMERIC, moe_error_text());
}

/* --- the kinds of work: first a step that begins, then those that do it ------------------------------------------------------ */

static void begin_copy(sim *d, sim_stream *t, sim_op *op)
{
    const bool from = sim_block_of(d, op->src) != NULL, to = sim_block_of(d, op->dst) != NULL;
    if (from)
        check(d, t, &(device_range){op->src, op->bytes, false});
    if (to || !from) /* neither: that is what the check says */
        check(d, t, &(device_range){op->dst, op->bytes, true});
}

static void step_copy(sim *d, sim_stream *t, sim_op *op)
{
    const size_t left = op->bytes - op->copied, draw = 1 + sim_draw(&t->random, 3) * (op->bytes / 3 + 1), n = draw < left ? draw : left;
    work_begins(d);
    if (n > 0)
        memcpy(op->dst + op->copied, op->src + op->copied, n);
    work_ends(d);
    op->copied += n;
    if (op->copied < op->bytes)
        return;
    d->stats.done[t - d->stream]++;
    d->stats.copied_bytes[t - d->stream] += op->bytes;
    pop(t);
}

static void step_launch(sim *d, sim_stream *t, sim_op *op)
{
    work_begins(d);
    const moe_err rc = op->fn(NULL, op->args);
    work_ends(d);
    if (rc != MOE_OK) {
        sim_break(d, (int)(t - d->stream), rc, moe_error_text());
        return;
    }
    d->stats.done[t - d->stream]++;
    pop(t);
}

static void forget(sim *d, sim_stream *t, const sim_op *op)
{
    check(d, t, &(device_range){op->dst, op->bytes, true});
    if (d->broken != MOE_OK)
        return;
    sim_mark_forgotten(d, op->dst, op->bytes);
    memset(op->dst, DEVICE_SIM_POISON, op->bytes);
    pop(t);
}

/* Waits that were queued for this record learn of it; later records of the event do not move them. */
static void record(sim *d, sim_stream *t, const sim_op *op)
{
    device_event *e = op->event;
    sim_clock_join(&t->clock, &op->host);
    e->done = op->number;
    e->clock = t->clock;
    for (int s = 0; s < DEVICE_STREAMS; s++)
        for (sim_op *w = d->stream[s].head; w != NULL; w = w->next)
            if (w->kind == SIM_WAIT && w->event == e && w->number == op->number) {
                w->ready = true;
                w->clock = t->clock;
            }
    pop(t);
}

static void step_begun(sim *d, sim_stream *t, sim_op *op)
{
    if (op->kind == SIM_COPY)
        step_copy(d, t, op);
    else
        step_launch(d, t, op);
}

static void step_begin(sim *d, sim_stream *t, sim_op *op)
{
    if (!begin(d, t, op))
        return;
    if (op->kind == SIM_COPY)
        begin_copy(d, t, op);
    for (int i = 0; op->kind == SIM_LAUNCH && i < op->ntouch; i++)
        check(d, t, &op->touch[i]);
    if (op->kind == SIM_FORGET)
        forget(d, t, op);
}

bool sim_step(sim *d, device_stream s)
{
    sim_stream *t = &d->stream[s];
    sim_op *op = t->head;
    if (op == NULL || t->hung || d->broken != MOE_OK || (op->kind == SIM_WAIT && !op->ready))
        return false;
    if (op->kind == SIM_WAIT) {
        sim_clock_join(&t->clock, &op->clock);
        pop(t);
    } else if (op->kind == SIM_RECORD) {
        record(d, t, op);
    } else if (op->begun) {
        step_begun(d, t, op);
    } else {
        step_begin(d, t, op);
    }
    return true;
}

bool sim_step_any(sim *d)
{
    uint32_t speeds = 0;
    for (int s = 0; s < DEVICE_STREAMS; s++)
        speeds += d->stream[s].speed;
    uint32_t at = sim_draw(&d->random, speeds);
    int first = 0;
    while (at >= d->stream[first].speed)
        at -= d->stream[first++].speed;
    for (int i = 0; i < DEVICE_STREAMS; i++)
        if (sim_step(d, (device_stream)((first + i) % DEVICE_STREAMS)))
            return true;
    return false;
}

/* --- threads ---------------------------------------------------------------------------------------------------------------- */

static void pause_at_random(sim *d, sim_stream *t)
{
    const struct timespec nap = {.tv_nsec = sim_draw(&t->random, PAUSE_NANOSECONDS)};
    if (sim_draw(&t->random, 4) != 0)
        return;
    pthread_mutex_unlock(&d->lock);
    nanosleep(&nap, NULL);
    pthread_mutex_lock(&d->lock);
}

void *sim_thread(void *stream)
{
    sim_stream *t = stream;
    sim *d = t->sim;
    pthread_mutex_lock(&d->lock);
    while (!d->closing) {
        if (sim_step(d, (device_stream)(t - d->stream)))
            pause_at_random(d, t);
        else
            pthread_cond_wait(&d->moved, &d->lock);
    }
    pthread_mutex_unlock(&d->lock);
    return NULL;
}
