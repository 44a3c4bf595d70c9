/* The ring: which section comes into which slot, and when (ring.h). The way through a slot is device_slots.c's. One thread.
 *
 * want holds the plan, group the sizes of its groups. Only the first group that has sections left is being filled: they are taken out of it as they get a slot, and wait in `ready` until they are leased.
 * Slots that nobody uses wait in `idle`, the one that was freed first at its head; they keep what they hold until something else comes. */
#include "memory/ring.h"

#include <stdlib.h>
#include <string.h>

#include "memory/device_slots.h"

typedef struct ring_failure {
    bool told_later; /* a read failed while others could still be had */
    expert_id id;
    moe_err rc;
    char text[SLOTS_TEXT];
} ring_failure;

struct ring {
    ring_config c;
    device_slots slots;
    expert_id *want;       /* [planned] the first `wanted`: what has no slot yet; then [planned] of scratch */
    size_t wanted, planned;
    size_t *group;         /* [planned] sizes of the groups that have sections left */
    size_t groups;
    int32_t *ready, *idle; /* [slots] queues: filled and not yet leased; used by nobody */
    int nready, nidle;
    ring_failure failure;
    uint64_t leases, hits;
};

/* --- queues of slots -------------------------------------------------------------------------------------------------------- */

static void remove_at(int32_t *queue, int *n, int i)
{
    memmove(queue + i, queue + i + 1, (size_t)(--*n - i) * sizeof *queue);
}

static int find_slot(const int32_t *queue, int n, int slot)
{
    int i = 0;
    while (i < n && queue[i] != slot)
        i++;
    return i;
}

/* --- the plan --------------------------------------------------------------------------------------------------------------- */

static void unwant(ring *r, size_t i)
{
    memmove(r->want + i, r->want + i + 1, (r->wanted - i - 1) * sizeof *r->want);
    r->wanted--;
    size_t g = 0;
    for (size_t end = r->group[0]; i >= end; end += r->group[g])
        g++;
    if (--r->group[g] == 0) {
        memmove(r->group + g, r->group + g + 1, (r->groups - g - 1) * sizeof *r->group);
        r->groups--;
    }
}

static size_t first_group(const ring *r) { return r->groups == 0 ? 0 : r->group[0]; }

static bool in_first_group(const ring *r, expert_id id)
{
    for (size_t i = 0; i < first_group(r); i++)
        if (r->want[i] == id)
            return true;
    return false;
}

moe_err ring_plan(ring *r, const expert_id *id, int n)
{
    TRY(slots_broken(&r->slots));
    if (n < 0 || (size_t)n > r->planned - r->wanted)
        return moe_fail(MOE_E_FULL, "ring: %d more sections; there is room for %zu in the plan", n, r->planned - r->wanted);
    for (int i = 0; i < n; i++) {
        bool twice = id[i] >= r->slots.ids;
        for (int k = 0; k < i && !twice; k++)
            twice = id[k] == id[i];
        if (twice)
            return moe_fail(MOE_E_DATA, "ring: section %u is planned; expected 0 .. %zu, each once in a group", id[i], r->slots.ids - 1);
    }
    if (n > 0) {
        memcpy(r->want + r->wanted, id, (size_t)n * sizeof *id);
        r->wanted += (size_t)n;
        r->group[r->groups++] = (size_t)n;
    }
    return ring_poll(r);
}

size_t ring_left(const ring *r) { return r->wanted + (size_t)r->nready; }

void ring_skip(ring *r, expert_id id)
{
    for (size_t i = 0; i < first_group(r); i++)
        if (r->want[i] == id) {
            unwant(r, i);
            break;
        }
    if (r->failure.told_later && r->failure.id == id)
        r->failure.told_later = false;
}

/* --- filling ---------------------------------------------------------------------------------------------------------------- */

/* What a slot still holds needs no copy. Another group's lease of the same section keeps it away from here. */
static void take_what_is_there(ring *r)
{
    for (size_t i = 0; i < first_group(r);) {
        const int32_t slot = r->slots.slot_of[r->want[i]];
        const int at = slot == NO_DEVICE_SLOT ? r->nidle : find_slot(r->idle, r->nidle, slot);
        const bool last = first_group(r) == 1;
        if (at == r->nidle || (r->c.result_bytes > 0 && !slot_ready(&r->slots.slot[slot]))) {
            i++;
            continue;
        }
        remove_at(r->idle, &r->nidle, at);
        r->ready[r->nready++] = slot;
        r->hits++;
        unwant(r, i);
        if (last)
            return; /* the next group's turn comes with the next call */
    }
}

/* The slot to fill: the one freed first, of what the group does not want rather than of what it does. Its place in idle; -1: none. */
static int slot_to_fill(const ring *r)
{
    int second = -1;
    for (int i = 0; i < r->nidle; i++) {
        const device_slot *s = &r->slots.slot[r->idle[i]];
        if (!slot_ready(s))
            continue;
        if (!s->full || !in_first_group(r, s->id))
            return i;
        second = second < 0 ? i : second;
    }
    return second;
}

/* A section that is wanted again while it is leased, or lies where its result is still being copied out, waits for that. */
static int missing_of(const ring *r, expert_id *out)
{
    int n = 0;
    for (size_t i = 0; i < first_group(r); i++)
        if (r->slots.slot_of[r->want[i]] == NO_DEVICE_SLOT)
            out[n++] = r->want[i];
    return n;
}

static moe_err remember(ring *r, moe_err rc, expert_id id)
{
    r->failure = (ring_failure){.told_later = true, .id = id, .rc = rc};
    moe_error_take(r->failure.text, sizeof r->failure.text);
    return MOE_OK;
}

/* One section from the tier below into a slot. *got false: none is there now (or, with wait, a host lease must come back first). */
static moe_err fill_one(ring *r, bool wait, bool *got)
{
    expert_id *missing = r->want + r->planned; /* scratch behind the plan */
    expert_lease from = {0};
    int which = -1;
    *got = false;
    const int at = slot_to_fill(r), n = missing_of(r, missing);
    if (at < 0 || n == 0)
        return MOE_OK;
    const moe_err rc = r->c.source.take_any(r->c.source.user, missing, n, wait, &which, &from);
    if (rc == MOE_E_FULL) {
        for (int i = 0; i < r->slots.n; i++)
            if (slot_copying(&r->slots.slot[i])) /* its copy will give one back */
                return MOE_OK;
        return rc;
    }
    if ((rc == MOE_E_IO || rc == MOE_E_DATA) && which >= 0)
        return remember(r, rc, missing[which]);
    TRY(rc);
    if (which < 0)
        return MOE_OK;
    const int slot = r->idle[at];
    remove_at(r->idle, &r->nidle, at);
    r->ready[r->nready++] = slot;
    for (size_t i = 0; i < first_group(r); i++)
        if (r->want[i] == from.id) {
            unwant(r, i);
            break;
        }
    *got = true;
    return slots_fill(&r->slots, slot, &from);
}

static moe_err pump(ring *r)
{
    TRY(slots_reap(&r->slots));
    for (bool got = true; got && r->wanted > 0 && !r->failure.told_later;) {
        const size_t before = r->wanted;
        take_what_is_there(r);
        TRY(fill_one(r, false, &got));
        got = got || r->wanted < before;
    }
    return MOE_OK;
}

moe_err ring_poll(ring *r)
{
    const moe_err rc = pump(r);
    return rc == MOE_E_FULL ? MOE_OK : rc; /* who waits is told */
}

/* --- leases ----------------------------------------------------------------------------------------------------------------- */

/* Nothing is ready, and the plan is not over: waits for whatever can change that. */
static moe_err wait_for_one(ring *r)
{
    bool any = false;
    if (r->nready == 0 && r->nidle == 0)
        return moe_fail(MOE_E_FULL, "ring: all %d slots are leased", r->slots.n);
    TRY(fill_one(r, true, &any));
    if (any || r->failure.told_later)
        return MOE_OK;
    for (int kind = 0; kind < MARKS && !any; kind++)
        if (kind != MARK_PASSED)
            TRY(slots_await(&r->slots, kind, &any));
    return any ? MOE_OK : moe_fail(MOE_E_FULL, "ring: what is planned next is leased still");
}

static moe_err tell(ring *r, device_lease *out)
{
    r->failure.told_later = false;
    out->id = r->failure.id;
    return moe_error_set(r->failure.rc, r->failure.text);
}

moe_err ring_next(ring *r, bool wait, device_lease *out)
{
    *out = (device_lease){0};
    TRY(ring_poll(r));
    while (wait && r->nready == 0 && r->wanted > 0 && !r->failure.told_later) {
        TRY(wait_for_one(r));
        TRY(ring_poll(r));
    }
    if (r->nready == 0)
        return r->failure.told_later ? tell(r, out) : MOE_OK;
    const int slot = r->ready[0];
    remove_at(r->ready, &r->nready, 0);
    const moe_err rc = slots_use(&r->slots, slot, out);
    if (rc != MOE_OK)
        r->idle[r->nidle++] = slot;
    r->leases += rc == MOE_OK;
    return rc;
}

moe_err ring_release(ring *r, device_lease *l, const device_result *result)
{
    if (l->slot == NULL)
        return MOE_OK;
    r->idle[r->nidle++] = l->index;
    TRY(slots_passed(&r->slots, l, result));
    return ring_poll(r);
}

moe_err ring_drain(ring *r) { return slots_drain(&r->slots); }

moe_err ring_expire(ring *r)
{
    if (ring_left(r) > 0 || r->nidle < r->slots.n)
        return moe_fail(MOE_E_CONFIG, "ring: %zu sections are planned and %d leased while what they hold changes", ring_left(r),
                        r->slots.n - r->nidle - r->nready);
    for (int i = 0; i < r->slots.n; i++)
        slots_vacate(&r->slots, i);
    return MOE_OK;
}

/* --- open and close --------------------------------------------------------------------------------------------------------- */

static device_slots_config slots_config(const ring_config *c)
{
    return (device_slots_config){.owner = "ring", .device = c->device, .source = c->source, .layers = c->layers, .experts = c->experts,
                                 .slot_bytes = c->slot_bytes, .result_bytes = c->result_bytes, .device_bytes = c->device_bytes,
                                 .least = c->held + 1, .deadline_seconds = c->deadline_seconds};
}

size_t ring_least_bytes(const ring_config *c)
{
    const device_slots_config s = slots_config(c);
    return slots_least_bytes(&s);
}

static moe_err build(ring *r)
{
    const device_slots_config s = slots_config(&r->c);
    if (r->c.held < 1 || r->c.held >= SLOTS_MAX || r->c.planned > CACHE_EXPERTS_MAX)
        return moe_fail(MOE_E_CONFIG, "ring: %d leases at once, %zu sections planned; expected 1 .. %d and at most %d", r->c.held,
                        r->c.planned, SLOTS_MAX - 1, CACHE_EXPERTS_MAX);
    TRY(slots_open(&r->slots, &s));
    r->planned = r->c.planned > 0 ? r->c.planned : 2 * (size_t)r->c.experts;
    r->want = malloc(2 * r->planned * sizeof *r->want);
    r->group = malloc(r->planned * sizeof *r->group);
    r->ready = malloc((size_t)r->slots.n * sizeof *r->ready);
    r->idle = malloc((size_t)r->slots.n * sizeof *r->idle);
    if (r->want == NULL || r->group == NULL || r->ready == NULL || r->idle == NULL)
        return moe_fail(MOE_E_OS, "ring: out of memory for a plan of %zu sections", r->planned);
    for (int i = 0; i < r->slots.n; i++)
        r->idle[r->nidle++] = i;
    return MOE_OK;
}

moe_err ring_open(ring **out, const ring_config *c)
{
    *out = NULL;
    ring *r = calloc(1, sizeof *r);
    if (r == NULL)
        return moe_fail(MOE_E_OS, "ring: out of memory");
    r->c = *c;
    const moe_err rc = build(r);
    if (rc != MOE_OK)
        ring_close(r);
    else
        *out = r;
    return rc;
}

void ring_close(ring *r)
{
    if (r == NULL)
        return;
    slots_close(&r->slots);
    free(r->want);
    free(r->group);
    free(r->ready);
    free(r->idle);
    free(r);
}

void ring_get_stats(const ring *r, ring_stats *out)
{
    *out = (ring_stats){.slots = r->slots.n, .leases = r->leases, .hits = r->hits, .copied_bytes = r->slots.copied_bytes,
                        .result_bytes = r->slots.out_bytes, .stall_seconds = r->slots.stall_seconds};
}

moe_err ring_check(const ring *r)
{
    TRY(slots_check(&r->slots));
    size_t sum = 0;
    int leased = 0;
    for (size_t g = 0; g < r->groups; g++)
        sum += r->group[g];
    if (sum != r->wanted || r->wanted > r->planned)
        return moe_fail(MOE_E_DATA, "ring: %zu sections in groups, %zu in the plan of %zu", sum, r->wanted, r->planned);
    for (int i = 0; i < r->slots.n; i++) {
        const bool ready = find_slot(r->ready, r->nready, i) < r->nready, idle = find_slot(r->idle, r->nidle, i) < r->nidle;
        leased += r->slots.slot[i].leases;
        if (ready + idle + (r->slots.slot[i].leases > 0) != 1 || (ready && !r->slots.slot[i].full))
            return moe_fail(MOE_E_DATA, "ring: slot %d is ready %d, idle %d, leased %d", i, ready, idle, r->slots.slot[i].leases);
    }
    return leased + r->nready + r->nidle == r->slots.n ? MOE_OK : moe_fail(MOE_E_DATA, "ring: %d slots of %d are somewhere", leased + r->nready + r->nidle, r->slots.n);
}
