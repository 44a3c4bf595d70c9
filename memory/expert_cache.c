/* The doors of the expert cache: what was chosen, what is leased, what is known. Reads: expert_cache_read.c. One thread.
 * Rule: between acquire and release a section is not in the policy's set; everything else that is resident is. */
#include "memory/expert_cache.h"

#include <string.h>

#include "memory/expert_cache_private.h"

static bool is_absent(const expert_cache *c, expert_id id) { return c->slot_of[id] == NO_SLOT; }

/* --- what is wanted ----------------------------------------------------------------------------------------------------------
 */

static moe_err check_choice(const expert_cache *c, int layer, const int32_t *experts, int n)
{
    if (layer < 0 || layer >= c->c.layers)
        return moe_fail(MOE_E_DATA, "expert cache: layer %d; expected 0 .. %d", layer, c->c.layers - 1);
    for (int i = 0; i < n; i++)
        if (experts[i] < 0 || experts[i] >= c->c.experts || (i > 0 && experts[i] <= experts[i - 1]))
            return moe_fail(MOE_E_DATA, "expert cache: expert %d of layer %d; expected 0 .. %d, ascending", experts[i], layer,
                            c->c.experts - 1);
    return MOE_OK;
}

/* A read ahead of it becomes one that is waited for: its failure will be told. */
static void now_demanded(expert_cache *c, expert_id id)
{
    if (!id_reading(c, id))
        return;
    flight *f = &c->flight[c->slot[c->slot_of[id]].flight];
    c->ahead_busy -= f->ahead;
    f->ahead = false;
}

/* Reads ahead of this layer that have not begun come too late; the hot set is wanted still. */
static void forget_ahead(expert_cache *c, int layer)
{
    size_t kept = 0;
    for (size_t i = 0; i < c->queue_n; i++) {
        const uint32_t entry = c->queued[(c->queue_head + i) % c->ids];
        if (!(entry & QUEUED_HOT) && id_layer(c, entry) == layer)
            c->flags[entry] &= (uint8_t)~ID_QUEUED;
        else
            c->queued[(c->queue_head + kept++) % c->ids] = entry;
    }
    c->queue_n = kept;
}

moe_err expert_cache_choose(expert_cache *c, int layer, const int32_t *experts, int n)
{
    TRY(check_choice(c, layer, experts, n));
    cache_poll(c, false);
    forget_ahead(c, layer);
    cache_policy_choose(c->policy, layer, experts, n);
    const expert_id first = (expert_id)layer * (expert_id)c->c.experts;
    for (int i = 0; i < n; i++) {
        const expert_id id = first + (expert_id)experts[i];
        c->stats.accesses++;
        c->stats.hits += id_resident(c, id);
        c->flags[id] &= (uint8_t)~ID_UNUSED;
        cache_forget_failure(c, id);
        now_demanded(c, id);
        cache_policy_touch(c->policy, id);
        cache_policy_set_due(c->policy, id, true);
    }
    for (int i = 0; i < n; i++)
        if (is_absent(c, first + (expert_id)experts[i]) && !cache_start(c, first + (expert_id)experts[i], READ_DEMAND))
            break;
    cache_start_ahead(c);
    return MOE_OK;
}

moe_err expert_cache_tokens(expert_cache *c, int layer, const int32_t *ids, int64_t T, int K, int n)
{
    if (!cache_policy_is_scan(c->policy, n))
        return MOE_OK;
    if (layer < 0 || layer >= c->c.layers)
        return moe_fail(MOE_E_DATA, "expert cache: layer %d; expected 0 .. %d", layer, c->c.layers - 1);
    for (int64_t i = 0; i < T * K; i++)
        if (ids[i] < 0 || ids[i] >= c->c.experts)
            return moe_fail(MOE_E_DATA, "expert cache: expert %d of layer %d; expected 0 .. %d", ids[i], layer, c->c.experts - 1);
    cache_policy_tokens(c->policy, layer, ids, T, K);
    return MOE_OK;
}

void expert_cache_ahead(expert_cache *c, int layer, const int32_t *experts, int n)
{
    if (check_choice(c, layer, experts, n) != MOE_OK)
        return;
    for (int i = 0; i < n; i++) {
        const expert_id id = (expert_id)layer * (expert_id)c->c.experts + (expert_id)experts[i];
        cache_policy_set_due(c->policy, id, true);
        cache_queue_ahead(c, id, false);
    }
    expert_cache_poll(c);
}

void expert_cache_poll(expert_cache *c)
{
    cache_poll(c, false);
    cache_start_ahead(c);
}

/* --- leases ------------------------------------------------------------------------------------------------------------------
 */

static void lease(expert_cache *c, expert_id id, expert_lease *out)
{
    const int s = c->slot_of[id];
    c->slot[s].leases++;
    c->flags[id] &= (uint8_t)~ID_UNUSED;
    cache_policy_set_due(c->policy, id, false);
    cache_policy_leave(c->policy, id);
    *out = (expert_lease){.id = id, .slot = slot_at(c, s)};
}

static int find(const expert_cache *c, const expert_id *wanted, int n, bool (*is)(const expert_cache *c, expert_id id))
{
    for (int i = 0; i < n; i++)
        if (is(c, wanted[i]))
            return i;
    return -1;
}

static bool is_resident(const expert_cache *c, expert_id id) { return id_resident(c, id); }
static bool is_reading(const expert_cache *c, expert_id id) { return id_reading(c, id); }
static bool has_failed(const expert_cache *c, expert_id id) { return (c->flags[id] & ID_FAILED) != 0; }
static bool is_missing(const expert_cache *c, expert_id id) { return is_absent(c, id) && !has_failed(c, id); }

/* None of them may be evicted for another of them, or for a guess. */
static void demand(expert_cache *c, const expert_id *wanted, int n)
{
    for (int i = 0; i < n; i++) {
        now_demanded(c, wanted[i]);
        cache_policy_set_due(c->policy, wanted[i], true);
    }
}

static void start_missing(expert_cache *c, const expert_id *wanted, int n)
{
    for (int i = 0; i < n; i++)
        if (is_missing(c, wanted[i]) && !cache_start(c, wanted[i], READ_DEMAND))
            break;
    cache_start_ahead(c);
}

/* None of the wanted is resident or under way, and none could be started. *again: look once more. */
static moe_err stuck(expert_cache *c, const expert_id *wanted, int n, bool wait, int *which, bool *again)
{
    *again = true;
    const int failed = find(c, wanted, n, has_failed), missing = find(c, wanted, n, is_missing);
    if (failed >= 0) {
        *which = failed;
        return cache_tell_failure(c, wanted[failed]);
    }
    if (c->broken != MOE_OK) {
        *which = missing;
        return moe_error_set(c->broken, c->broken_text);
    }
    if (missing >= 0 && cache_start(c, wanted[missing], READ_FORCE))
        return MOE_OK;
    if (c->busy > 0 && c->busy == cache_lost(c))
        return moe_fail(MOE_E_IO, "expert cache: %d reads never came back and hold all the room: the disk does not answer",
                        c->busy);
    if (c->busy == 0)
        return moe_fail(MOE_E_FULL, "expert cache: all %d slots are leased", c->slots);
    if (c->pieces_out > 0 && !wait)
        *again = false;
    else
        cache_poll(c, true);
    return MOE_OK;
}

static moe_err check_wanted(const expert_cache *c, const expert_id *wanted, int n)
{
    for (int i = 0; i < n; i++)
        if (wanted[i] >= c->ids)
            return moe_fail(MOE_E_DATA, "expert cache: section %u; expected 0 .. %zu", wanted[i], c->ids - 1);
    return n > 0 ? MOE_OK : moe_fail(MOE_E_DATA, "expert cache: nothing is wanted");
}

moe_err expert_cache_acquire_any(expert_cache *c, const expert_id *wanted, int n, bool wait, int *which, expert_lease *out)
{
    *which = -1;
    *out = (expert_lease){0};
    TRY(check_wanted(c, wanted, n));
    cache_poll(c, false);
    demand(c, wanted, n);
    for (bool again = true; again;) {
        const int i = find(c, wanted, n, is_resident);
        if (i >= 0) {
            *which = i;
            lease(c, wanted[i], out);
        }
        start_missing(c, wanted, n);
        if (i >= 0)
            return MOE_OK;
        if (find(c, wanted, n, is_reading) < 0)
            TRY(stuck(c, wanted, n, wait, which, &again));
        else if (wait)
            cache_poll(c, true);
        else
            again = false;
    }
    return MOE_OK;
}

void expert_cache_release(expert_cache *c, expert_lease *l)
{
    if (l->slot == NULL)
        return;
    if (--c->slot[c->slot_of[l->id]].leases == 0)
        cache_policy_enter(c->policy, l->id);
    *l = (expert_lease){0};
}

void expert_cache_get_stats(const expert_cache *c, expert_cache_stats *out) { *out = c->stats; }
