/* The stash as its callers see it; see stash_private.h for the structure. The compute thread only. */
#include "memory/stash.h"

#include <stdlib.h>
#include <string.h>

#include "memory/budget.h"
#include "memory/stash_private.h"

enum { FIRST_BLOCKS = 256 }; /* the tables double from here; after the first pass they no longer grow */

static moe_err grow(stash *s)
{
    const int room = s->room == 0 ? FIRST_BLOCKS : 2 * s->room;
    stash_block *block = realloc(s->block, (size_t)room * sizeof *block);
    if (block != NULL)
        s->block = block;
    int32_t *ring = realloc(s->ring, (size_t)room * sizeof *ring);
    if (ring != NULL)
        s->ring = ring;
    int32_t *spill = realloc(s->spill, (size_t)room * sizeof *spill);
    if (spill != NULL)
        s->spill = spill;
    if (block == NULL || ring == NULL || spill == NULL)
        return moe_fail(MOE_E_OS, "out of memory for the book of %d activation blocks", room);
    s->room = room;
    return MOE_OK;
}

static moe_err open_inside(stash *s, size_t host_bytes)
{
    pthread_condattr_t attr;
    if (pthread_condattr_init(&attr) != 0)
        return moe_fail(MOE_E_OS, "stash: no condition variable");
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    s->inited = pthread_mutex_init(&s->lock, NULL) == 0 && pthread_cond_init(&s->landed, &attr) == 0;
    pthread_condattr_destroy(&attr);
    if (!s->inited)
        return moe_fail(MOE_E_OS, "stash: no lock");
    for (int i = 0; i < STASH_OPS; i++)
        s->op[i].id = -1;
    TRY(grow(s));
    s->capacity = (int64_t)(host_bytes / IO_ALIGN * IO_ALIGN);
    void *memory;
    TRY(budget_alloc(&memory, (size_t)s->capacity, "activations (memory/stash)"));
    s->memory = memory;
    return MOE_OK;
}

moe_err stash_open(stash **out, store *st, size_t host_bytes, uint64_t spill_bytes)
{
    *out = NULL;
    if (host_bytes < IO_ALIGN || host_bytes > ((size_t)1 << 46))
        return moe_fail(MOE_E_CONFIG, "stash: %zu bytes of memory for activations", host_bytes);
    stash *s = calloc(1, sizeof *s);
    if (s == NULL)
        return moe_fail(MOE_E_OS, "out of memory for the stash");
    s->st = st;
    s->spill_bytes = st == NULL ? 0 : spill_bytes;
    const moe_err rc = open_inside(s, host_bytes);
    if (rc != MOE_OK) {
        stash_close(s);
        return rc;
    }
    *out = s;
    return MOE_OK;
}

/* The store owns the buffers of what is in flight until it says done. */
static void wait_idle(stash *s)
{
    while (s->in_flight > 0)
        pthread_cond_wait(&s->landed, &s->lock);
}

static void forget_all(stash *s)
{
    s->blocks = s->in_ring = s->in_spill = s->live = 0;
    s->spill_end = 0;
    s->stats.resident_bytes = 0;
    s->backward = false;
    s->newest = -1;
    s->rc = MOE_OK;
}

void stash_reset(stash *s)
{
    pthread_mutex_lock(&s->lock);
    s->backward = true; /* nothing more is written, */
    s->newest = -1;     /* nor read */
    wait_idle(s);
    forget_all(s);
    pthread_mutex_unlock(&s->lock);
}

void stash_close(stash *s)
{
    if (s == NULL)
        return;
    if (s->inited) {
        stash_reset(s);
        pthread_mutex_destroy(&s->lock);
        pthread_cond_destroy(&s->landed);
    }
    budget_free(s->memory);
    free(s->block);
    free(s->ring);
    free(s->spill);
    free(s);
}

/* The failed transfers have been said: they may be tried again. */
static moe_err say_failure(stash *s)
{
    const moe_err rc = s->rc;
    s->rc = MOE_OK;
    for (int i = 0; i < s->blocks; i++)
        s->block[i].failed = false;
    return moe_fail(rc, "%s", s->text);
}

/* One step towards room: lets a clean block go, else writes the bottom, else waits for what is in flight. */
static moe_err make_room(stash *s, size_t bytes)
{
    if (ring_evict(s))
        return MOE_OK;
    if (s->rc != MOE_OK)
        return say_failure(s);
    if (ring_end(s) >= 0)
        TRY(block_write(s, ring_end(s)));
    if (s->in_flight > 0)
        return stash_wait(s, "stash");
    return moe_fail(MOE_E_CONFIG,
                    "activations: no room for a block of %.1f MiB, %.1f of %.1f MiB are in use%s; raise memory.host or make the "
                    "micro-batch smaller",
                    (double)bytes / 1048576.0, (double)s->stats.resident_bytes / 1048576.0, (double)s->capacity / 1048576.0,
                    s->st == NULL ? " and there is no spill file" : "");
}

static moe_err new_block(stash *s, size_t bytes, stash_id *id, void **buf)
{
    if (s->live == 0 && s->blocks > 0) {
        s->backward = true;
        s->newest = -1;
        wait_idle(s);
        forget_all(s);
    }
    s->backward = false;
    if (s->blocks == s->room)
        TRY(grow(s));
    int64_t pos;
    while (!ring_place_top(s, bytes, &pos))
        TRY(make_room(s, bytes));
    *id = s->blocks++;
    s->block[*id] = (stash_block){.bytes = bytes, .op = -1};
    s->live++;
    ring_push(s, *id, true, pos);
    int64_t at = pos % s->capacity;
    *buf = s->memory + (at < 0 ? at + s->capacity : at);
    stash_pump(s);
    return MOE_OK;
}

moe_err stash_new(stash *s, size_t bytes, stash_id *id, void **buf)
{
    *id = -1;
    *buf = NULL;
    if (bytes > (size_t)s->capacity)
        return moe_fail(MOE_E_CONFIG, "activations: a block of %zu bytes, all the memory for activations is %lld", bytes,
                        (long long)s->capacity);
    pthread_mutex_lock(&s->lock);
    const moe_err rc = new_block(s, bytes == 0 ? IO_ALIGN : (bytes + IO_ALIGN - 1) / IO_ALIGN * IO_ALIGN, id, buf);
    pthread_mutex_unlock(&s->lock);
    return rc;
}

void stash_seal(stash *s, stash_id id)
{
    pthread_mutex_lock(&s->lock);
    if (id >= 0 && id < s->blocks) {
        s->block[id].sealed = true;
        stash_pump(s);
    }
    pthread_mutex_unlock(&s->lock);
}

static moe_err take_block(stash *s, stash_id id, void **buf)
{
    if (id < 0 || id >= s->blocks || s->block[id].freed || s->block[id].pinned)
        return moe_fail(MOE_E_CONFIG, "stash: block %d cannot be taken: %s", id,
                        id < 0 || id >= s->blocks ? "there is none"
                        : s->block[id].freed      ? "it is gone"
                                                  : "it is taken already");
    s->backward = true;
    s->newest = s->blocks - 1;
    s->block[id].sealed = true;
    while (!s->block[id].here || s->block[id].reading) {
        stash_block *b = &s->block[id];
        if (b->failed)
            return say_failure(s);
        if (b->reading) {
            store_promote(s->st, &s->op[b->op].op);
            TRY(stash_wait(s, "stash"));
        } else if (!block_read(s, id, true)) {
            TRY(make_room(s, b->bytes));
        }
    }
    s->block[id].pinned = true;
    const int64_t at = s->block[id].pos % s->capacity;
    *buf = s->memory + (at < 0 ? at + s->capacity : at);
    stash_pump(s);
    return MOE_OK;
}

moe_err stash_take(stash *s, stash_id id, void **buf)
{
    *buf = NULL;
    pthread_mutex_lock(&s->lock);
    const moe_err rc = take_block(s, id, buf);
    pthread_mutex_unlock(&s->lock);
    return rc;
}

void stash_free(stash *s, stash_id id)
{
    pthread_mutex_lock(&s->lock);
    if (id >= 0 && id < s->blocks && !s->block[id].freed) {
        s->block[id].freed = true;
        s->block[id].pinned = false;
        s->live--;
        block_settle(s, id);
        if (s->live == 0 && s->in_flight == 0)
            forget_all(s);
        stash_pump(s);
    }
    pthread_mutex_unlock(&s->lock);
}

void stash_get_stats(stash *s, stash_stats *out)
{
    pthread_mutex_lock(&s->lock);
    *out = s->stats;
    pthread_mutex_unlock(&s->lock);
}

static moe_err broken(const char *what, stash_id id)
{
    return moe_fail(MOE_E_DATA, "stash: broken invariant at block %d: %s", id, what);
}

static moe_err check_all(const stash *s)
{
    uint64_t resident = 0;
    for (int i = 0; i < s->in_ring; i++) {
        const stash_block *b = &s->block[s->ring[i]];
        const int64_t at = (b->pos % s->capacity + s->capacity) % s->capacity;
        resident += b->bytes;
        if (!b->here || at + (int64_t)b->bytes > s->capacity)
            return broken("in the ring, but not in the arena", s->ring[i]);
        if (i > 0 && s->block[s->ring[i - 1]].pos + (int64_t)s->block[s->ring[i - 1]].bytes > b->pos)
            return broken("overlaps the block below", s->ring[i]);
        if (b->pos + (int64_t)b->bytes - s->block[s->ring[0]].pos > s->capacity)
            return broken("overlaps the bottom", s->ring[i]);
    }
    if (resident != s->stats.resident_bytes)
        return broken("bytes in RAM were lost", -1);
    uint64_t end = 0;
    for (int i = 0; i < s->in_spill; i++) {
        if (s->block[s->spill[i]].spill_at < end)
            return broken("overlaps another in the spill file", s->spill[i]);
        end = s->block[s->spill[i]].spill_at + s->block[s->spill[i]].bytes;
    }
    if (end > s->spill_bytes || end != s->spill_end)
        return broken("the end of the spill file is wrong", -1);
    int live = 0, flight = 0;
    for (stash_id id = 0; id < s->blocks; id++) {
        const stash_block *b = &s->block[id];
        live += !b->freed;
        flight += b->op >= 0;
        if (!b->freed && !b->here && !b->spilled)
            return broken("neither in RAM nor spilled", id);
        if ((b->pinned || (b->reading)) && !b->here)
            return broken("in use, but not in RAM", id);
    }
    return live == s->live && flight == s->in_flight ? MOE_OK : broken("a counter is wrong", -1);
}

moe_err stash_check(stash *s)
{
    pthread_mutex_lock(&s->lock);
    const moe_err rc = check_all(s);
    pthread_mutex_unlock(&s->lock);
    return rc;
}
