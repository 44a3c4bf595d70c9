/* Opening and closing the expert cache: what fits into the bytes given, which files there are, whether every expert lies inside
 * them. One thread. Rule: sizes are checked before they are added or multiplied. */
#include <stdlib.h>
#include <string.h>

#include "engine/base/carve.h"
#include "engine/base/clock.h"
#include "memory/budget.h"
#include "memory/expert_cache_private.h"

enum {
    LEAST_SLOTS = 2,
    LANDING_SHARE = 4, /* landing buffers take at most this part of the bytes, but one is always there */
    QUEUE_MAX = 512,   /* requests with the kernel */
    CLOSE_SECONDS = 5, /* patience with a disk that hangs */
};

static size_t round_up(size_t n) { return (n + IO_ALIGN - 1) & ~(size_t)(IO_ALIGN - 1); }

/* --- sizes -------------------------------------------------------------------------------------------------------------------
 */

/* Bytes of the spans around an expert's ranges, and the transfers that read them; false when no memory could hold it. */
static bool span_of(const expert_cache_config *c, expert_id id, size_t *bytes, int *pieces)
{
    expert_range r[EXPERT_RANGES];
    const int n = c->ranges(c->user, id, r);
    *bytes = 0;
    *pieces = 0;
    for (int i = 0; i < n && i < EXPERT_RANGES; i++) {
        if (r[i].bytes > SIZE_MAX / 16 || r[i].offset > UINT64_MAX / 4)
            return false;
        const size_t span = (size_t)(span_end(&r[i]) - span_begin(&r[i]));
        *bytes += span;
        *pieces += (int)((span + IO_CHUNK - 1) / IO_CHUNK);
    }
    return true;
}

/* The same lines measure (base NULL) and point. */
static size_t layout(expert_cache *x, char *base, const expert_cache_config *c, int slots, int flights, int pieces)
{
    carve v = {base, 0};
    const size_t ids = (size_t)c->layers * (size_t)c->experts, S = (size_t)slots, N = (size_t)flights;
    x->slot = carve_bytes(&v, S * sizeof *x->slot);
    x->free_slot = carve_bytes(&v, S * sizeof *x->free_slot);
    x->slot_of = carve_bytes(&v, ids * sizeof *x->slot_of);
    x->flags = carve_bytes(&v, ids * sizeof *x->flags);
    x->queued = carve_bytes(&v, ids * sizeof *x->queued);
    x->flight = carve_bytes(&v, N * sizeof *x->flight);
    x->landed = carve_bytes(&v, N * sizeof *x->landed);
    x->file = carve_bytes(&v, (size_t)c->nfiles * sizeof *x->file);
    char *tails = carve_bytes(&v, (size_t)c->nfiles * IO_ALIGN);
    io_transfer *piece = carve_bytes(&v, N * (size_t)pieces * sizeof *piece);
    for (size_t i = 0; base != NULL && i < N; i++)
        x->flight[i].piece = piece + i * (size_t)pieces;
    for (int i = 0; base != NULL && i < c->nfiles; i++)
        x->file[i].tail = tails + (size_t)i * IO_ALIGN;
    return round_up(v.used);
}

static int depth_of(const expert_cache_config *c) { return c->depth > 0 ? c->depth : EXPERT_CACHE_DEPTH; }

/* False: no memory could hold it. */
static bool measure(const expert_cache_config *c, cache_sizes *s)
{
    *s = (cache_sizes){.stride = round_up(c->slot_bytes)};
    size_t longest = 0;
    const size_t ids = (size_t)c->layers * (size_t)c->experts;
    for (size_t id = 0; id < ids; id++) {
        size_t bytes;
        int pieces;
        if (!span_of(c, (expert_id)id, &bytes, &pieces))
            return false;
        longest = bytes > longest ? bytes : longest;
        s->pieces = pieces > s->pieces ? pieces : s->pieces;
    }
    s->landing = c->land != NULL ? longest : 0;
    if (c->land == NULL && longest > s->stride)
        s->stride = longest;
    expert_cache probe;
    s->tables = layout(&probe, NULL, c, (int)ids, depth_of(c), s->pieces) + cache_policy_bytes(c->layers, c->experts);
    return s->stride < SIZE_MAX / 16 && s->landing < SIZE_MAX / 16 && c->slot_bytes < SIZE_MAX / 16;
}

static size_t least_of(const cache_sizes *s) { return s->tables + s->landing + LEAST_SLOTS * s->stride; }

size_t expert_cache_least_bytes(const expert_cache_config *c)
{
    cache_sizes s;
    return measure(c, &s) ? least_of(&s) : SIZE_MAX;
}

/* Flights and slots from the bytes that are left for them. */
static void divide(expert_cache *x)
{
    const cache_sizes *s = &x->size;
    const size_t room = x->c.host_bytes - s->tables;
    x->flights = depth_of(&x->c);
    if (s->landing > 0) {
        const size_t share = room / LANDING_SHARE / s->landing;
        x->flights = share < 1 ? 1 : share < (size_t)x->flights ? (int)share : x->flights;
    }
    const size_t slots = (room - (size_t)x->flights * s->landing) / s->stride;
    x->slots = slots < x->ids ? (int)slots : (int)x->ids;
    x->flights = x->flights < x->slots ? x->flights : x->slots;
}

/* --- files -------------------------------------------------------------------------------------------------------------------
 */

static moe_err read_tail(expert_cache *x, cache_file *f, const char *path)
{
    if (f->tail_at == f->size)
        return MOE_OK;
    io_file *plain;
    TRY(x->c.io->ops->open(x->c.io, &plain, path, IO_READ));
    const io_range r = {.file = plain, .buf = f->tail, .bytes = (size_t)(f->size - f->tail_at), .offset = f->tail_at};
    const moe_err rc = io_transfer_range(x->c.io, &r);
    x->c.io->ops->close(x->c.io, plain);
    return rc;
}

static moe_err open_files(expert_cache *x)
{
    const io_ops *ops = x->c.io->ops;
    for (int i = 0; i < x->c.nfiles; i++) {
        cache_file *f = &x->file[i];
        moe_err rc = ops->open(x->c.io, &f->f, x->c.files[i], IO_READ | IO_DIRECT);
        if (rc == MOE_E_CONFIG) /* no O_DIRECT there */
            rc = ops->open(x->c.io, &f->f, x->c.files[i], IO_READ | IO_DROP);
        TRY(rc);
        TRY(ops->size(x->c.io, f->f, &f->size));
        f->tail_at = f->size & ~(uint64_t)(IO_ALIGN - 1);
        TRY(read_tail(x, f, x->c.files[i]));
    }
    return MOE_OK;
}

static moe_err check_expert(const expert_cache *x, expert_id id)
{
    expert_range r[EXPERT_RANGES];
    const int n = x->c.ranges(x->c.user, id, r), layer = id_layer(x, id), e = id_expert(x, id);
    if (n < 1 || n > EXPERT_RANGES || (x->c.land == NULL && n != 1))
        return moe_fail(MOE_E_DATA, "expert %d of layer %d lies in %d ranges; expected 1 .. %d", e, layer, n,
                        x->c.land == NULL ? 1 : EXPERT_RANGES);
    for (int i = 0; i < n; i++) {
        if (r[i].file < 0 || r[i].file >= x->c.nfiles)
            return moe_fail(MOE_E_DATA, "expert %d of layer %d lies in file %d of %d", e, layer, r[i].file, x->c.nfiles);
        const uint64_t size = x->file[r[i].file].size;
        if (r[i].bytes == 0 || r[i].offset > size || r[i].bytes > size - r[i].offset)
            return moe_fail(MOE_E_DATA, "%s: expert %d of layer %d: %zu bytes at offset %llu; the file has %llu",
                            x->c.files[r[i].file], e, layer, r[i].bytes, (unsigned long long)r[i].offset,
                            (unsigned long long)size);
        if (x->c.land == NULL && (r[i].offset % IO_ALIGN != 0 || r[i].bytes > x->c.slot_bytes))
            return moe_fail(
                MOE_E_DATA, "%s: expert %d of layer %d: %zu bytes at offset %llu; expected at most %zu at a multiple of %d",
                x->c.files[r[i].file], e, layer, r[i].bytes, (unsigned long long)r[i].offset, x->c.slot_bytes, IO_ALIGN);
    }
    return MOE_OK;
}

/* --- open and close ----------------------------------------------------------------------------------------------------------
 */

static moe_err alloc_blocks(expert_cache *x)
{
    expert_cache probe;
    const size_t tables = layout(&probe, NULL, &x->c, x->slots, x->flights, x->size.pieces);
    void *p;
    TRY(budget_alloc(&p, tables, "expert cache: tables"));
    x->tables = p;
    layout(x, x->tables, &x->c, x->slots, x->flights, x->size.pieces);
    if (x->size.landing > 0) {
        TRY(budget_alloc(&p, (size_t)x->flights * x->size.landing, "expert cache: landing buffers"));
        x->landings = p;
    }
    TRY(budget_alloc(&p, (size_t)x->slots * x->size.stride, "expert cache: slots"));
    x->slots_base = p;
    for (int i = 0; i < x->flights; i++)
        x->flight[i].landing = x->landings == NULL ? NULL : x->landings + (size_t)i * x->size.landing;
    for (size_t id = 0; id < x->ids; id++)
        x->slot_of[id] = NO_SLOT;
    for (int s = 0; s < x->slots; s++)
        x->free_slot[x->nfree++] = x->slots - 1 - s;
    return MOE_OK;
}

static moe_err open_queue(expert_cache *x)
{
    const io_ops *ops = x->c.io->ops;
    const int requests = x->size.pieces > QUEUE_MAX / x->flights ? QUEUE_MAX : x->size.pieces * x->flights;
    TRY(ops->queue_open(x->c.io, &x->queue, requests));
    if (x->landings != NULL && ops->queue_register != NULL)
        (void)ops->queue_register(x->queue, x->landings, (size_t)x->flights * x->size.landing);
    return MOE_OK;
}

static moe_err open_all(expert_cache *x)
{
    TRY(cache_policy_open(&x->policy, x->c.policy, x->c.layers, x->c.experts));
    x->ids = (size_t)x->c.layers * (size_t)x->c.experts;
    if (x->c.nfiles < 1 || x->c.slot_bytes == 0 || !measure(&x->c, &x->size))
        return moe_fail(
            MOE_E_CONFIG,
            "expert cache: %d files, slots of %zu bytes; expected at least one of each, and no more than memory can hold",
            x->c.nfiles, x->c.slot_bytes);
    if (x->c.host_bytes < least_of(&x->size))
        return moe_fail(MOE_E_CONFIG, "expert cache: two slots, a landing buffer and the tables need %zu bytes; %zu are given",
                        least_of(&x->size), x->c.host_bytes);
    divide(x);
    TRY(alloc_blocks(x));
    TRY(open_files(x));
    for (size_t id = 0; id < x->ids; id++)
        TRY(check_expert(x, (expert_id)id));
    return open_queue(x);
}

moe_err expert_cache_open(expert_cache **out, const expert_cache_config *c)
{
    *out = NULL;
    expert_cache *x = calloc(1, sizeof *x);
    if (x == NULL)
        return moe_fail(MOE_E_OS, "expert cache: out of memory");
    x->c = *c;
    if (x->c.deadline_seconds <= 0)
        x->c.deadline_seconds = IO_DEADLINE_SECONDS;
    const moe_err rc = open_all(x);
    if (rc != MOE_OK) {
        expert_cache_close(x);
        return rc;
    }
    x->stats.slots = x->slots;
    x->stats.depth = x->flights;
    *out = x;
    return MOE_OK;
}

/* What is in flight may still be written by the disk. */
static void wait_for_reads(expert_cache *c)
{
    const double until = moe_seconds() + CLOSE_SECONDS;
    while (c->pieces_out > 0 && c->broken == MOE_OK && moe_seconds() < until) {
        io_transfer *done = NULL;
        if (c->c.io->ops->queue_wait(c->queue, &done) != MOE_OK)
            return;
        for (; done != NULL; done = done->next)
            c->pieces_out--;
    }
}

void expert_cache_close(expert_cache *c)
{
    if (c == NULL)
        return;
    if (c->queue != NULL) {
        wait_for_reads(c);
        c->c.io->ops->queue_close(c->c.io, c->queue);
    }
    cache_policy_close(c->policy);
    if (c->pieces_out == 0) { /* else a disk that never answered may still write into them */
        for (int i = 0; c->file != NULL && i < c->c.nfiles; i++)
            if (c->file[i].f != NULL)
                c->c.io->ops->close(c->c.io, c->file[i].f);
        budget_free(c->slots_base);
        budget_free(c->landings);
        budget_free(c->tables);
    }
    free(c);
}
