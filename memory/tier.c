/* The host tier's life and its phases: open, close, enter, expect, flush, the record of a section. What the pieces do is said in
 * tier_private.h. The compute thread only. */
#include "memory/tier.h"

#include <stdlib.h>
#include <string.h>

#include "memory/budget.h"
#include "memory/tier_private.h"

enum { TOUCH_WINDOW = 8 }; /* steps: weight 1/8 of the newest in the moving average of touches */

static size_t padded_bytes(size_t n) { return (n + IO_ALIGN - 1) / IO_ALIGN * IO_ALIGN; }

/* TIER_* of the parts that a record has. */
static unsigned parts_of(const tier_config *c)
{
    unsigned parts = 0;
    for (int p = 0; p < STORE_PARTS; p++)
        parts |= c->part_bytes[p] > 0 ? 1u << p : 0u;
    return parts;
}

/* Slots that a record takes: r lies under w. */
static size_t part_count(const tier_config *c) { return (size_t)__builtin_popcount(parts_of(c) & ~(unsigned)TIER_R); }

size_t tier_slot_bytes(const size_t part_bytes[STORE_PARTS])
{
    const size_t halves = padded_bytes(part_bytes[STORE_W]) + padded_bytes(part_bytes[STORE_R]),
                 whole = padded_bytes(part_bytes[STORE_M]);
    return halves > whole ? halves : whole;
}

size_t tier_least_bytes(const tier_config *c) { return 2 * part_count(c) * tier_slot_bytes(c->part_bytes); }

static moe_err check_config(const tier_config *c)
{
    const size_t rest = c->part_bytes[STORE_R];
    for (int p = 0; p < STORE_PARTS; p++) {
        const size_t want = p == STORE_R || (p == STORE_W && rest != 0) ? rest : c->part_bytes[STORE_G];
        if (c->part_bytes[p] != want && (p != STORE_V || c->part_bytes[p] != 0))
            return moe_fail(MOE_E_CONFIG,
                            "tier: part %c has %zu bytes, expected %zu; the slots are uniform, so all parts must be equal",
                            STORE_LETTERS[p], c->part_bytes[p], want);
    }
    if (rest > c->part_bytes[STORE_G])
        return moe_fail(MOE_E_CONFIG, "tier: part r has %zu bytes, more than part g with %zu", rest, c->part_bytes[STORE_G]);
    if (c->part_bytes[STORE_W] == 0 || c->part_bytes[STORE_W] > ((size_t)1 << 40))
        return moe_fail(MOE_E_CONFIG, "tier: a part of %zu bytes", c->part_bytes[STORE_W]);
    if (c->layers <= 0 || c->experts <= 0 || c->layers > INT32_MAX / 16 / c->experts)
        return moe_fail(MOE_E_CONFIG, "tier: %d layers of %d experts", c->layers, c->experts);
    if (c->fill == NULL)
        return moe_fail(MOE_E_CONFIG, "tier: nothing makes the initial values (fill)");
    if (c->host_bytes < tier_least_bytes(c))
        return moe_fail(MOE_E_CONFIG, "memory.host leaves %zu bytes for experts; two whole records need %zu", c->host_bytes,
                        tier_least_bytes(c));
    const size_t every = (size_t)c->layers * (size_t)c->experts * part_count(c);
    if (c->store == NULL && c->host_bytes / tier_slot_bytes(c->part_bytes) < every)
        return moe_fail(MOE_E_CONFIG,
                        "memory.host leaves %zu bytes for experts; without memory.ssd all %zu parts of %zu bytes must fit",
                        c->host_bytes, every, tier_slot_bytes(c->part_bytes));
    return MOE_OK;
}

static moe_err start_section(tier_section *x, section_id s, const record *r)
{
    *x = (tier_section){.slot = {-1, -1, -1, -1, -1},
                        .disk = {.slot = -1},
                        .next = {.slot = -1},
                        .before = {.slot = -1},
                        .grad_slot = -1,
                        .grad_target = -1,
                        .chance = 0.75f};
    if (r == NULL)
        return MOE_OK;
    const bool state_bad = r->slot < -1 || (r->slot < 0 && r->step != 0);
    const bool grad_bad = r->grad_step != 0 && (r->grad_slot < 0 || r->grad_step <= r->step);
    if (state_bad || grad_bad)
        return moe_fail(MOE_E_DATA, "record of section %d: step %llu in slot %d with gradient %llu in slot %d cannot be", s,
                        (unsigned long long)r->step, r->slot, (unsigned long long)r->grad_step, r->grad_slot);
    x->disk = (tier_version){.slot = r->slot, .have = TIER_STATE, .step = r->step};
    memcpy(x->disk.sum, r->sum, sizeof x->disk.sum);
    x->step = r->step;
    if (r->grad_step != 0) {
        x->grad_step = x->disk_grad_step = r->grad_step;
        x->grad_slot = r->grad_slot;
        x->grad_sum = r->sum[STORE_G];
    }
    return MOE_OK;
}

static moe_err start_slots(tier *t)
{
    const size_t every = (size_t)t->sections * part_count(&t->c), room = t->c.host_bytes / t->padded;
    t->slots = (int)(room < every ? room : every);
    if (t->slots < 2 * t->record_parts) /* one section alone */
        t->slots = 2 * t->record_parts;
    t->fits = room >= every;
    t->halves = t->c.part_bytes[STORE_R] > 0;
    t->slot = calloc((size_t)t->slots * (t->halves ? 2 : 1), sizeof *t->slot);
    for (int k = 0; k < HEAPS; k++)
        t->heap[k].item = malloc((size_t)t->slots * sizeof *t->heap[k].item);
    if (t->slot == NULL || t->heap[HEAP_CLEAN].item == NULL || t->heap[HEAP_DIRTY].item == NULL)
        return moe_fail(MOE_E_OS, "out of memory for the book of %d expert slots", t->slots);
    void *block;
    TRY(budget_alloc(&block, (size_t)t->slots * t->padded, "expert slots (memory/tier)"));
    t->memory = block;
    if (t->c.store != NULL && !t->fits) /* pinning is worth it where slots are read and written all the time */
        store_register(t->c.store, block, (size_t)t->slots * t->padded);
    t->free_head = -1;
    for (int i = t->slots - 1; i >= 0; i--) {
        t->slot[i] = (tier_slot){.owner = t,
                                 .buf = (float *)((char *)block + (size_t)i * t->padded),
                                 .section = -1,
                                 .heap = -1,
                                 .next_free = t->free_head};
        t->free_head = i;
        if (t->halves)
            t->slot[i + t->slots] = (tier_slot){.owner = t,
                                                .buf = t->slot[i].buf + part_padded(t, STORE_W) / sizeof(float),
                                                .section = -1,
                                                .heap = -1,
                                                .next_free = -1};
    }
    t->free_count = t->slots;
    return MOE_OK;
}

static moe_err start_lock(tier *t)
{
    pthread_condattr_t attr;
    if (pthread_condattr_init(&attr) != 0)
        return moe_fail(MOE_E_OS, "tier: no condition variable");
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    const bool ok = pthread_mutex_init(&t->lock, NULL) == 0 && pthread_cond_init(&t->landed, &attr) == 0;
    pthread_condattr_destroy(&attr);
    t->inited = ok;
    return ok ? MOE_OK : moe_fail(MOE_E_OS, "tier: no lock");
}

static moe_err start(tier *t)
{
    TRY(policy_find(&t->policy, t->c.policy));
    TRY(start_lock(t));
    t->padded = tier_slot_bytes(t->c.part_bytes);
    t->parts = parts_of(&t->c);
    t->record_parts = (int)part_count(&t->c);
    t->sections = t->c.layers * t->c.experts;
    t->section = malloc((size_t)t->sections * sizeof *t->section);
    t->catalog = calloc((size_t)t->sections, sizeof *t->catalog);
    t->want = calloc((size_t)t->sections, sizeof *t->want);
    if (t->section == NULL || t->catalog == NULL || t->want == NULL)
        return moe_fail(MOE_E_OS, "out of memory for the book of %d sections", t->sections);
    for (section_id s = 0; s < t->sections; s++)
        TRY(start_section(&t->section[s], s, t->c.records == NULL ? NULL : &t->c.records[s]));
    t->c.records = NULL;
    TRY(start_slots(t));
    /* Two records beyond what is being read: an acquire and the release before it never wait for a write in the steady state. */
    t->writeback_mark =
        t->c.prefetch_depth + 2 * t->record_parts < t->slots / 2 ? t->c.prefetch_depth + 2 * t->record_parts : t->slots / 2;
    t->writeback_depth = t->c.prefetch_depth < t->record_parts ? t->record_parts : t->c.prefetch_depth;
    if (t->writeback_depth > TIER_FLIGHT_MAX)
        t->writeback_depth = TIER_FLIGHT_MAX;
    t->pos = -1;
    t->forward_only = t->c.read_only;
    return MOE_OK;
}

moe_err tier_open(tier **out, const tier_config *c)
{
    *out = NULL;
    TRY(check_config(c));
    tier *t = calloc(1, sizeof *t);
    if (t == NULL)
        return moe_fail(MOE_E_OS, "out of memory for the tier");
    t->c = *c;
    const moe_err rc = start(t);
    if (rc != MOE_OK) {
        tier_close(t);
        return rc;
    }
    *out = t;
    return MOE_OK;
}

void tier_close(tier *t)
{
    if (t == NULL)
        return;
    if (t->inited) {
        pthread_mutex_lock(&t->lock);
        t->quiet = true;
        while (t->writes + t->reads_ahead + t->reads_demand > 0) /* the store owns those buffers until it says done */
            pthread_cond_wait(&t->landed, &t->lock);
        pthread_mutex_unlock(&t->lock);
        pthread_mutex_destroy(&t->lock);
        pthread_cond_destroy(&t->landed);
    }
    budget_free(t->memory);
    for (int k = 0; k < HEAPS; k++)
        free(t->heap[k].item);
    free(t->slot);
    free(t->section);
    free(t->catalog);
    free(t->want);
    free(t);
}

static int position(const tier *t, tier_phase p) { return p.backward ? 2 * t->c.layers - 1 - p.layer : p.layer; }

static void place_layer(tier *t, int layer)
{
    for (int e = 0; e < t->c.experts; e++)
        schedule_place_section(t, layer * t->c.experts + e);
}

/* Hit counts fade once per cycle, also those of parts that are away. */
static void fade_hits(tier *t)
{
    for (section_id s = 0; s < t->sections; s++)
        for (int p = 0; p < STORE_PARTS; p++)
            t->section[s].hits[p] *= (float)t->c.lfu_decay;
}

void tier_enter(tier *t, tier_phase p)
{
    pthread_mutex_lock(&t->lock);
    const int old = t->pos;
    const bool was_forward_only = t->forward_only, updated_in_backward = t->update_in_backward;
    if (p.backward)
        t->forward_only = false;
    else if (p.layer == 0 && old == t->c.layers - 1)
        t->forward_only = true; /* a forward pass has ended without a backward one: evaluation */
    if (p.backward)
        t->update_in_backward = t->speculating;
    t->clock++;
    t->pos = position(t, p);
    if (!p.backward)
        for (int e = 0; e < t->c.experts; e++)
            t->section[p.layer * t->c.experts + e].touch = TOUCH_UNKNOWN;
    const bool fades = t->policy->decays && t->pos == 0;
    if (fades)
        fade_hits(t);
    const bool in_order = old >= 0 && t->pos == (old + 1) % cycle_length(t);
    if (!in_order || fades || was_forward_only != t->forward_only || updated_in_backward != t->update_in_backward) {
        slot_place_all(t);
        t->walk = t->clock;
        t->walk_expert = 0;
    } else {
        place_layer(t, old < t->c.layers ? old : 2 * t->c.layers - 1 - old);
        place_layer(t, p.layer);
    }
    tier_pump(t);
    pthread_mutex_unlock(&t->lock);
}

void tier_expect(tier *t, int layer, const uint8_t *touched)
{
    pthread_mutex_lock(&t->lock);
    for (int e = 0; e < t->c.experts; e++) {
        tier_section *x = &t->section[layer * t->c.experts + e];
        x->touch = touched[e] != 0 ? TOUCH_YES : TOUCH_NO;
        x->chance += ((touched[e] != 0 ? 1.0f : 0.0f) - x->chance) / TOUCH_WINDOW;
    }
    place_layer(t, layer);
    t->walk = t->clock;
    t->walk_expert = 0;
    tier_pump(t);
    pthread_mutex_unlock(&t->lock);
}

void tier_set_step(tier *t, uint64_t finished)
{
    pthread_mutex_lock(&t->lock);
    t->finished = finished;
    slot_place_all(t);
    t->walk = t->clock;
    t->walk_expert = 0;
    tier_pump(t);
    pthread_mutex_unlock(&t->lock);
}

static record disk_record(const tier *t, section_id s)
{
    const tier_section *x = &t->section[s];
    record r = {.step = x->disk.step, .slot = x->disk.slot, .grad_slot = -1};
    memcpy(r.sum, x->disk.sum, sizeof x->disk.sum);
    if (part_on_disk(t, s, STORE_G)) {
        r.grad_step = x->disk_grad_step;
        r.grad_slot = x->grad_slot;
        r.sum[STORE_G] = x->grad_sum;
    }
    return r;
}

record tier_record(tier *t, section_id s)
{
    pthread_mutex_lock(&t->lock);
    const tier_section *x = &t->section[s];
    record r = disk_record(t, s);
    r.step = x->step;
    r.grad_step = x->grad_step > x->step ? x->grad_step : 0;
    pthread_mutex_unlock(&t->lock);
    return r;
}

const record *tier_catalog(tier *t)
{
    pthread_mutex_lock(&t->lock);
    for (section_id s = 0; s < t->sections; s++)
        t->catalog[s] = disk_record(t, s);
    pthread_mutex_unlock(&t->lock);
    return t->catalog;
}

void tier_abandon(tier *t)
{
    pthread_mutex_lock(&t->lock);
    for (section_id s = 0; s < t->sections; s++)
        if (t->section[s].grad_step > t->finished)
            gradient_forget(t, s);
    tier_pump(t);
    pthread_mutex_unlock(&t->lock);
}

/* Starts writes in the order of the disk, as many as may be in flight. Returns the number of dirty parts that are left to start.
 */
static int flush_some(tier *t)
{
    int left = 0;
    for (section_id s = 0; s < t->sections; s++)
        for (int p = 0; p < STORE_PARTS; p++) {
            tier_slot *h = part_slot(t, s, (store_part)p);
            if (h == NULL || !h->dirty || h->writing || h->write_failed)
                continue;
            if (t->writes >= TIER_FLIGHT_MAX || !write_start(t, h))
                left++;
        }
    return left;
}

static moe_err flush_all(tier *t)
{
    for (section_id s = 0; s < t->sections; s++)
        if (t->section[s].changing != 0)
            return moe_fail(MOE_E_CONFIG, "tier: section %d is leased for a change and cannot be flushed", s);
    writes_forgive(t);
    for (;;) {
        const int left = t->write_rc == MOE_OK ? flush_some(t) : 0;
        if (t->writes == 0 && left == 0)
            break;
        TRY(wait_landed(t, "tier: a flush"));
    }
    if (t->write_rc != MOE_OK) {
        const moe_err rc = t->write_rc;
        writes_forgive(t);
        return moe_fail(rc, "%s", t->write_text);
    }
    for (section_id s = 0; s < t->sections; s++)
        if (t->section[s].next.slot >= 0)
            return moe_fail(MOE_E_CONFIG, "tier: w, r, m and v of section %d were not changed together to step %llu", s,
                            (unsigned long long)t->section[s].next.step);
    return MOE_OK;
}

moe_err tier_flush(tier *t)
{
    if (t->c.store == NULL || t->c.read_only)
        return MOE_OK;
    if (t->speculating)
        return moe_fail(MOE_E_CONFIG, "tier: step %llu is still speculative and cannot be flushed",
                        (unsigned long long)t->speculative_step);
    pthread_mutex_lock(&t->lock);
    t->quiet = true;
    const moe_err rc = flush_all(t);
    t->quiet = false;
    slot_place_all(t);
    tier_pump(t);
    pthread_mutex_unlock(&t->lock);
    return rc;
}
