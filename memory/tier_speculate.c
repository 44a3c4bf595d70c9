/* Speculative updates: between begin and resolve the state before each update stays on disk, in a place of its own.
 *
 * Backward of the running step changes w, r, m and v in RAM with clip = 1. Before the lease that allows it is granted, the state
 * they hold must be whole on disk (it may be dirty from an earlier forward: then it is written first). The first release that
 * books the running step remembers that place in `before`; writes of the new state choose another one. If the guess holds,
 * `before` is forgotten and the gradient counts as applied. If not, the new state is dropped wherever it is, and the section
 * stands at `before` with its pending gradient. The compute thread only, under the tier's lock. */
#include "memory/tier_private.h"

static bool state_is_on_disk(tier *t, section_id s)
{
    const tier_section *x = &t->section[s];
    for (int p = 0; p < STORE_G; p++) {
        const tier_slot *h = part_slot(t, s, (store_part)p);
        if (h != NULL && h->dirty)
            return false;
    }
    return x->next.slot < 0;
}

bool speculation_blocks(tier *t, section_id s, unsigned parts)
{
    const bool backward = t->pos >= t->c.layers && !t->forward_only;
    if (!t->speculating || !backward || (parts & (TIER_M | TIER_V)) == 0 || t->section[s].speculative || state_is_on_disk(t, s))
        return false;
    for (int p = 0; p < STORE_G; p++) {
        tier_slot *h = part_slot(t, s, (store_part)p);
        if (h != NULL && h->dirty && !h->write_failed)
            (void)write_start(t, h); /* false: in flight already */
    }
    return true;
}

void speculation_release(tier *t, section_id s, uint64_t step)
{
    tier_section *x = &t->section[s];
    if (!t->speculating || x->speculative || step != t->speculative_step)
        return;
    if (!state_is_on_disk(t, s)) {
        t->speculation_broken = true;
        return;
    }
    x->before = x->disk;
    x->speculative = true;
}

void tier_speculate_begin(tier *t, uint64_t step)
{
    pthread_mutex_lock(&t->lock);
    t->speculating = true;
    t->speculation_broken = false;
    t->speculative_step = step;
    if (!t->update_in_backward) { /* m and v have another next use now */
        t->update_in_backward = true;
        slot_place_all(t);
        t->walk = t->clock;
        t->walk_expert = 0;
    }
    pthread_mutex_unlock(&t->lock);
}

static void keep_section(tier *t, section_id s)
{
    tier_section *x = &t->section[s];
    x->speculative = false;
    x->before = (tier_version){.slot = -1};
    if (x->grad_step != 0 && x->grad_step <= x->step)
        gradient_forget(t, s);
    schedule_place_section(t, s);
}

static void return_section(tier *t, section_id s)
{
    tier_section *x = &t->section[s];
    for (int p = 0; p < STORE_G; p++) {
        tier_slot *h = part_slot(t, s, (store_part)p);
        if (h != NULL)
            slot_free(t, h);
    }
    x->disk = x->before;
    x->step = x->before.step;
    x->next = x->before = (tier_version){.slot = -1};
    x->speculative = false;
    schedule_place_section(t, s);
}

/* Can every speculative section go back? And is nothing in flight that could land on a dropped state? */
static moe_err prepare_return(tier *t)
{
    if (t->c.store == NULL || t->speculation_broken)
        return moe_fail(MOE_E_CONFIG, "tier: step %llu cannot be taken back: %s", (unsigned long long)t->speculative_step,
                        t->c.store == NULL ? "there is no store to hold the state before it"
                                           : "a state was changed before it was on disk");
    for (section_id s = 0; s < t->sections; s++)
        for (int p = 0; p < STORE_PARTS && t->section[s].speculative; p++) {
            const tier_slot *h = part_slot(t, s, (store_part)p);
            if (h != NULL && h->leases > 0)
                return moe_fail(MOE_E_CONFIG, "tier: section %d is leased while its step is resolved", s);
        }
    while (t->writes + t->reads_ahead + t->reads_demand > 0)
        TRY(wait_landed(t, "tier: taking back a step"));
    return MOE_OK;
}

moe_err tier_speculate_resolve(tier *t, bool keep)
{
    moe_err rc = MOE_OK;
    pthread_mutex_lock(&t->lock);
    if (t->speculating && !keep) {
        t->quiet = true;
        rc = prepare_return(t);
        t->quiet = false;
    }
    if (t->speculating && rc == MOE_OK) {
        for (section_id s = 0; s < t->sections; s++)
            if (t->section[s].speculative)
                (keep ? keep_section : return_section)(t, s);
        t->speculating = false;
        t->walk = t->clock;
        t->walk_expert = 0;
    }
    tier_pump(t);
    pthread_mutex_unlock(&t->lock);
    return rc;
}
