/* Placement and transfers of the stash. See stash_private.h for the structure. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "memory/stash_private.h"

static int64_t floor_to(int64_t pos, int64_t capacity)
{
    const int64_t r = pos % capacity;
    return pos - (r < 0 ? r + capacity : r);
}

static int64_t bottom_of(const stash *s) { return s->in_ring == 0 ? 0 : s->block[s->ring[0]].pos; }

static int64_t top_of(const stash *s)
{
    if (s->in_ring == 0)
        return 0;
    const stash_block *b = &s->block[s->ring[s->in_ring - 1]];
    return b->pos + (int64_t)b->bytes;
}

bool ring_place_top(const stash *s, size_t bytes, int64_t *pos)
{
    int64_t start = top_of(s);
    const int64_t end_of_turn = floor_to(start, s->capacity) + s->capacity;
    if (start + (int64_t)bytes > end_of_turn)
        start = end_of_turn;
    *pos = start;
    return start + (int64_t)bytes - bottom_of(s) <= s->capacity || (s->in_ring == 0 && (int64_t)bytes <= s->capacity);
}

bool ring_place_bottom(const stash *s, size_t bytes, int64_t *pos)
{
    if (s->in_ring == 0)
        return ring_place_top(s, bytes, pos);
    int64_t end = bottom_of(s);
    const int64_t turn = floor_to(end - 1, s->capacity);
    if (end - (int64_t)bytes < turn)
        end = turn;
    *pos = end - (int64_t)bytes;
    return top_of(s) - *pos <= s->capacity;
}

void ring_push(stash *s, stash_id id, bool top, int64_t pos)
{
    stash_block *b = &s->block[id];
    if (!top)
        memmove(&s->ring[1], &s->ring[0], (size_t)s->in_ring * sizeof s->ring[0]);
    s->ring[top ? s->in_ring : 0] = id;
    s->in_ring++;
    b->pos = pos;
    b->here = true;
    s->stats.resident_bytes += b->bytes;
    if (s->stats.resident_bytes > s->stats.peak_bytes)
        s->stats.peak_bytes = s->stats.resident_bytes;
}

void ring_drop(stash *s, stash_id id)
{
    int i = 0;
    while (s->ring[i] != id)
        i++;
    memmove(&s->ring[i], &s->ring[i + 1], (size_t)(s->in_ring - i - 1) * sizeof s->ring[0]);
    s->in_ring--;
    s->block[id].here = false;
    s->stats.resident_bytes -= s->block[id].bytes;
}

/* In use: no waiting makes it movable. */
static bool is_held(const stash *s, stash_id id) { return !s->block[id].sealed || s->block[id].pinned; }

/* The block that makes room when it goes: the bottom, or the top while the bottom is held. -1: both are. A bottom that is only
 * being written is waited for: letting the top go instead would turn the order round, and backward would find its first blocks
 * last. */
stash_id ring_end(const stash *s)
{
    if (s->in_ring == 0)
        return -1;
    const stash_id bottom = s->ring[0], top = s->ring[s->in_ring - 1];
    return !is_held(s, bottom) ? bottom : !is_held(s, top) ? top : -1;
}

bool ring_evict(stash *s)
{
    const stash_id id = ring_end(s);
    if (id < 0 || !s->block[id].spilled || s->block[id].op >= 0)
        return false;
    ring_drop(s, id);
    return true;
}

void block_settle(stash *s, stash_id id)
{
    stash_block *b = &s->block[id];
    if (!b->freed || b->op >= 0)
        return;
    if (b->here)
        ring_drop(s, id);
    while (s->in_spill > 0) {
        const stash_block *last = &s->block[s->spill[s->in_spill - 1]];
        if (!last->freed || last->op >= 0)
            break;
        s->spill_end = last->spill_at;
        s->in_spill--;
    }
}

static void transfer_done(store_op *op)
{
    stash_op *o = op->user;
    stash *s = o->owner;
    pthread_mutex_lock(&s->lock);
    const stash_id id = o->id;
    stash_block *b = &s->block[id];
    b->op = -1;
    o->id = -1;
    s->in_flight--;
    s->events++;
    b->failed = op->rc != MOE_OK;
    if (b->failed) {
        s->rc = op->rc;
        snprintf(s->text, sizeof s->text, "%s", op->text);
    }
    if (op->write && !b->failed)
        b->spilled = true;
    if (b->reading && b->failed)
        ring_drop(s, id);
    b->reading = false;
    block_settle(s, id);
    stash_pump(s);
    pthread_cond_broadcast(&s->landed);
    pthread_mutex_unlock(&s->lock);
}

static stash_op *free_op(stash *s)
{
    for (int i = 0; i < STASH_OPS; i++)
        if (s->op[i].id < 0)
            return &s->op[i];
    return NULL;
}

static void start(stash *s, stash_op *o, stash_id id, bool write, store_priority priority)
{
    stash_block *b = &s->block[id];
    memset(&o->op, 0, sizeof o->op);
    o->owner = s;
    o->id = id;
    o->op.write = write;
    o->op.spill = true;
    o->op.priority = priority;
    o->op.offset = b->spill_at;
    o->op.bytes = b->bytes;
    o->op.buf = s->memory + (b->pos - floor_to(b->pos, s->capacity));
    o->op.done = transfer_done;
    o->op.user = o;
    b->op = (int8_t)(o - s->op);
    b->reading = !write;
    s->in_flight++;
    store_submit(s->st, &o->op);
}

moe_err block_write(stash *s, stash_id id)
{
    stash_block *b = &s->block[id];
    stash_op *o = free_op(s);
    if (o == NULL || b->spilled || !b->sealed || b->pinned || b->op >= 0 || s->st == NULL)
        return MOE_OK;
    if (!b->has_place) {
        if (b->bytes > s->spill_bytes - s->spill_end)
            return moe_fail(
                MOE_E_IO,
                "the spill file of %.1f MiB is full: %.1f MiB of activations need more; a larger memory.host or smaller "
                "micro-batch groups would do",
                (double)s->spill_bytes / 1048576.0, (double)(s->spill_end + b->bytes) / 1048576.0);
        b->spill_at = s->spill_end;
        b->has_place = true;
        s->spill_end += b->bytes;
        s->spill[s->in_spill++] = id;
    }
    s->stats.spilled_bytes += b->bytes;
    start(s, o, id, true, STORE_WRITE);
    return MOE_OK;
}

bool block_read(stash *s, stash_id id, bool demand)
{
    stash_op *o = free_op(s);
    int64_t pos;
    if (o == NULL || !ring_place_bottom(s, s->block[id].bytes, &pos))
        return false;
    ring_push(s, id, false, pos);
    start(s, o, id, false, demand ? STORE_DEMAND : STORE_PREFETCH);
    return true;
}

/* Forward: makes the bottom clean until a margin of the arena is free or clean. A full spill file is no error yet: only the call
 * that needs the room says so. */
static void write_behind(stash *s)
{
    int64_t ready = s->capacity - (top_of(s) - bottom_of(s));
    for (int i = 0; i < s->in_ring && ready < s->capacity / SPILL_MARGIN; i++) {
        const stash_block *b = &s->block[s->ring[i]];
        if (!b->sealed || b->pinned)
            return;
        if (!b->spilled && !b->failed && block_write(s, s->ring[i]) != MOE_OK)
            return;
        ready += (int64_t)b->bytes;
    }
}

/* Backward: reads what is needed next, the newest first, as far as there is room. */
static void read_ahead(stash *s)
{
    while (s->newest >= 0 && s->block[s->newest].freed)
        s->newest--;
    for (stash_id id = s->newest; id >= 0; id--) {
        const stash_block *b = &s->block[id];
        if (b->freed || b->here)
            continue;
        if (b->failed || !block_read(s, id, false))
            return;
    }
}

void stash_pump(stash *s)
{
    if (s->st == NULL)
        return;
    if (s->backward)
        read_ahead(s);
    else
        write_behind(s);
}

moe_err stash_wait(stash *s, const char *who)
{
    const uint64_t seen = s->events;
    struct timespec begin, until, end;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    until = begin;
    until.tv_sec += STASH_DEADLINE;
    moe_err rc = MOE_OK;
    while (s->events == seen && rc == MOE_OK)
        if (pthread_cond_timedwait(&s->landed, &s->lock, &until) == ETIMEDOUT && s->events == seen)
            rc = moe_fail(MOE_E_IO, "%s waited %d s for the store: %d transfers of activations in flight, none came back", who,
                          STASH_DEADLINE, s->in_flight);
    clock_gettime(CLOCK_MONOTONIC, &end);
    s->stats.stall_seconds += (double)(end.tv_sec - begin.tv_sec) + 1e-9 * (double)(end.tv_nsec - begin.tv_nsec);
    return rc;
}
