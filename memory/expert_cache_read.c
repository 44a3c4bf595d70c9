/* Reads of experts: a flight begins when there is room, its pieces go to the queue, what came back is laid out in the slot. Owns
 * the flights and the queue of reads ahead. One thread: the queue works while the computation does; it is looked at whenever the
 * cache is called. Rule: a flight whose transfers have not all come back keeps its slot and its landing buffer. */
#include <stdio.h>
#include <string.h>

#include "engine/base/clock.h"
#include "memory/expert_cache_private.h"

/* --- failures ----------------------------------------------------------------------------------------------------------------
 */

moe_err cache_tell_failure(expert_cache *c, expert_id id)
{
    moe_err rc = MOE_OK;
    for (int i = 0; i < FAILURES; i++)
        if (c->failure[i].rc != MOE_OK && c->failure[i].id == id)
            rc = moe_error_set(c->failure[i].rc, c->failure[i].text);
    if (rc == MOE_OK) {
        expert_range r[EXPERT_RANGES];
        c->c.ranges(c->c.user, id, r);
        rc = moe_fail(MOE_E_IO, "%s: expert %d of layer %d: the read failed, as did %d others after it", c->c.files[r[0].file],
                      id_expert(c, id), id_layer(c, id), FAILURES);
    }
    cache_forget_failure(c, id);
    return rc;
}

void cache_forget_failure(expert_cache *c, expert_id id)
{
    for (int i = 0; (c->flags[id] & ID_FAILED) && i < FAILURES; i++)
        if (c->failure[i].id == id)
            c->failure[i].rc = MOE_OK;
    c->flags[id] &= (uint8_t)~ID_FAILED;
}

/* Of more failures than there is room for, the oldest loses its sentence and stays a failure: were it forgotten, a disk that is
 * gone would be read for ever. */
static void remember_failure(expert_cache *c, expert_id id, moe_err rc, const char *text)
{
    cache_forget_failure(c, id);
    failure *f = &c->failure[c->next_failure];
    c->next_failure = (c->next_failure + 1) % FAILURES;
    f->id = id;
    f->rc = rc;
    expert_range r[EXPERT_RANGES];
    c->c.ranges(c->c.user, id, r);
    const char *path = c->c.files[r[0].file];
    const bool named = strstr(text, path) != NULL; /* io's sentences begin with the path */
    snprintf(f->text, sizeof f->text, "%s%sexpert %d of layer %d: %s", named ? "" : path, named ? "" : ": ", id_expert(c, id),
             id_layer(c, id), text);
    c->flags[id] |= ID_FAILED;
}

static void queue_broke(expert_cache *c, moe_err rc)
{
    c->broken = rc;
    moe_error_take(c->broken_text, sizeof c->broken_text);
}

/* --- slots -------------------------------------------------------------------------------------------------------------------
 */

static void evict(expert_cache *c, expert_id id)
{
    const int s = c->slot_of[id];
    if (c->flags[id] & ID_UNUSED) {
        expert_range r[EXPERT_RANGES];
        const int n = c->c.ranges(c->c.user, id, r);
        for (int i = 0; i < n; i++)
            c->stats.wasted_bytes += r[i].bytes;
    }
    c->flags[id] &= (uint8_t)~ID_UNUSED;
    cache_policy_leave(c->policy, id);
    cache_policy_set_due(c->policy, id, false);
    c->slot_of[id] = NO_SLOT;
    c->slot[s].state = SLOT_FREE;
    c->free_slot[c->nfree++] = s;
}

/* A free slot, made by eviction where that is allowed; NO_SLOT: none now. */
static int take_slot(expert_cache *c, read_kind kind)
{
    expert_id victim;
    if (c->nfree == 0 && kind != READ_HOT && cache_policy_victim(c->policy, kind == READ_FORCE, &victim))
        evict(c, victim);
    return c->nfree == 0 ? NO_SLOT : c->free_slot[--c->nfree];
}

/* --- a flight begins ---------------------------------------------------------------------------------------------------------
 */

static flight *free_flight(expert_cache *c, bool ahead)
{
    const int most_ahead = c->flights > 1 ? c->flights / 2 : 1; /* what is demanded never waits behind a full queue of guesses */
    if (c->broken != MOE_OK || c->busy == c->flights || (ahead && c->ahead_busy >= most_ahead))
        return NULL;
    for (int i = 0; i < c->flights; i++)
        if (!c->flight[i].busy)
            return &c->flight[i];
    return NULL;
}

/* Cuts the part of a span that O_DIRECT can read into pieces, copies the tail of the file that it cannot. Returns the pieces so
 * far. */
static int plan_span(expert_cache *c, flight *f, const expert_range *r, char *to, int n)
{
    const cache_file *file = &c->file[r->file];
    const uint64_t begin = span_begin(r), end = span_end(r) < file->tail_at ? span_end(r) : file->tail_at;
    for (uint64_t at = begin; at < end;) {
        const size_t bytes = end - at < IO_CHUNK ? (size_t)(end - at) : IO_CHUNK;
        f->piece[n] = (io_transfer){.file = file->f, .buf = to + (at - begin), .bytes = bytes, .offset = at, .user = f};
        f->bytes += bytes;
        n++;
        at += bytes;
    }
    if (span_end(r) > file->tail_at)
        memcpy(to + (file->tail_at - begin), file->tail, (size_t)(file->size - file->tail_at));
    return n;
}

static void plan_flight(expert_cache *c, flight *f)
{
    expert_range r[EXPERT_RANGES];
    const int n = c->c.ranges(c->c.user, f->id, r);
    char *to = f->landing != NULL ? f->landing : slot_at(c, f->slot);
    f->bytes = 0;
    f->pieces_left = 0;
    for (int i = 0; i < n; i++) {
        f->pieces_left = plan_span(c, f, &r[i], to, f->pieces_left);
        f->raw[i] = to + (r[i].offset - span_begin(&r[i]));
        to += span_end(&r[i]) - span_begin(&r[i]);
    }
    for (int i = 0; i + 1 < f->pieces_left; i++)
        f->piece[i].next = &f->piece[i + 1];
}

static void has_landed(expert_cache *c, flight *f) { c->landed[c->nlanded++] = (int32_t)(f - c->flight); }

bool cache_start(expert_cache *c, expert_id id, read_kind kind)
{
    const bool ahead = kind == READ_AHEAD || kind == READ_HOT;
    flight *f = free_flight(c, ahead);
    const int s = f == NULL ? NO_SLOT : take_slot(c, kind);
    if (s == NO_SLOT)
        return false;
    f->busy = true;
    f->ahead = ahead;
    f->lost = false;
    f->id = id;
    f->slot = s;
    f->rc = MOE_OK;
    f->started = moe_seconds();
    c->busy++;
    c->ahead_busy += ahead;
    c->slot[s] = (cache_slot){.state = SLOT_READING, .id = id, .flight = (int)(f - c->flight)};
    c->slot_of[id] = s;
    plan_flight(c, f);
    c->stats.reads++;
    c->stats.ahead_reads += ahead;
    c->stats.read_bytes += f->bytes;
    if (f->pieces_left == 0) {
        has_landed(c, f);
        return true;
    }
    c->pieces_out += f->pieces_left;
    const moe_err rc = c->c.io->ops->queue_submit(c->queue, f->piece);
    if (rc != MOE_OK)
        queue_broke(c, rc);
    return true;
}

/* --- reads ahead -------------------------------------------------------------------------------------------------------------
 */

void cache_queue_ahead(expert_cache *c, expert_id id, bool hot)
{
    if (c->slot_of[id] != NO_SLOT || (c->flags[id] & ID_QUEUED))
        return;
    c->flags[id] |= ID_QUEUED;
    c->queued[(c->queue_head + c->queue_n++) % c->ids] = hot ? id | QUEUED_HOT : id;
}

void cache_start_ahead(expert_cache *c)
{
    while (c->queue_n > 0) {
        const uint32_t entry = c->queued[c->queue_head];
        const expert_id id = entry & ~QUEUED_HOT;
        if (c->slot_of[id] == NO_SLOT && !cache_start(c, id, entry & QUEUED_HOT ? READ_HOT : READ_AHEAD)) {
            if (!(entry & QUEUED_HOT) || c->nfree > 0)
                return;
        }
        c->flags[id] &= (uint8_t)~ID_QUEUED;
        c->queue_head = (c->queue_head + 1) % c->ids;
        c->queue_n--;
    }
}

/* --- a flight ends -----------------------------------------------------------------------------------------------------------
 */

static void end_flight(expert_cache *c, flight *f)
{
    c->busy--;
    c->ahead_busy -= f->ahead;
    f->busy = false;
}

static void free_slot_of(expert_cache *c, flight *f)
{
    c->slot[f->slot].state = SLOT_FREE;
    c->free_slot[c->nfree++] = f->slot;
}

static moe_err lay_out(const expert_cache *c, const flight *f)
{
    void *slot = slot_at(c, f->slot);
    if (c->c.land != NULL)
        return c->c.land(c->c.user, f->id, f->raw, slot);
    return c->c.check != NULL ? c->c.check(c->c.user, f->id, slot) : MOE_OK;
}

/* All pieces are back: the slot is filled, or the failure is kept for who wants the expert. A read ahead that failed is
 * forgotten. */
static void settle(expert_cache *c, flight *f)
{
    const expert_id id = f->id;
    if (f->lost) {
        free_slot_of(c, f);
        end_flight(c, f);
        return;
    }
    moe_err rc = f->rc;
    if (rc == MOE_OK) {
        rc = lay_out(c, f);
        if (rc != MOE_OK)
            moe_error_take(f->text, sizeof f->text);
    }
    if (rc != MOE_OK) {
        if (!f->ahead)
            remember_failure(c, id, rc, f->text);
        c->slot_of[id] = NO_SLOT;
        cache_policy_set_due(c->policy, id, false);
        free_slot_of(c, f);
    } else {
        c->slot[f->slot].state = SLOT_RESIDENT;
        c->flags[id] |= f->ahead ? ID_UNUSED : 0;
        cache_policy_enter(c->policy, id);
    }
    end_flight(c, f);
}

static void take_back(expert_cache *c, io_transfer *done)
{
    for (io_transfer *next; done != NULL; done = next) {
        next = done->next;
        flight *f = done->user;
        if (done->rc != MOE_OK && f->rc == MOE_OK) {
            f->rc = done->rc;
            snprintf(f->text, sizeof f->text, "%s", done->text);
        }
        c->pieces_out--;
        if (--f->pieces_left == 0)
            has_landed(c, f);
    }
}

/* The section is free to be read again by another flight; this one is left behind with its slot. */
static void lose(expert_cache *c, flight *f, moe_err rc, const char *text)
{
    if (!f->ahead)
        remember_failure(c, f->id, rc, text);
    f->lost = true;
    c->slot_of[f->id] = NO_SLOT;
    cache_policy_set_due(c->policy, f->id, false);
    c->slot[f->slot].state = SLOT_LOST;
}

static void watch_deadlines(expert_cache *c)
{
    const double now = moe_seconds();
    for (int i = 0; i < c->flights; i++) {
        flight *f = &c->flight[i];
        if (!f->busy || f->lost || f->pieces_left == 0)
            continue;
        if (c->broken != MOE_OK) {
            lose(c, f, c->broken, c->broken_text);
        } else if (now - f->started > c->c.deadline_seconds) {
            char text[256];
            snprintf(text, sizeof text, "waited %.0f s for the disk to read %zu bytes: it does not answer", now - f->started,
                     f->bytes);
            lose(c, f, MOE_E_IO, text);
        }
    }
}

int cache_lost(const expert_cache *c)
{
    int n = 0;
    for (int i = 0; i < c->flights; i++)
        n += c->flight[i].busy && c->flight[i].lost;
    return n;
}

void cache_poll(expert_cache *c, bool block)
{
    if (c->pieces_out > 0 && c->broken == MOE_OK) {
        io_transfer *done = NULL;
        if (!block || c->nlanded > 0)
            c->c.io->ops->queue_wake(c->queue); /* the wait comes back at once, with what is there */
        const double from = moe_seconds();
        const moe_err rc = c->c.io->ops->queue_wait(c->queue, &done);
        if (block)
            c->stats.stall_seconds += moe_seconds() - from;
        if (rc != MOE_OK)
            queue_broke(c, rc);
        take_back(c, done);
    }
    while (c->nlanded > 0)
        settle(c, &c->flight[c->landed[--c->nlanded]]);
    if (c->busy > 0)
        watch_deadlines(c);
}
