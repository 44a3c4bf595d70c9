/* What must always be true of the host tier, and its figures. tests/memory calls tier_check after every operation. */
#include "memory/tier_private.h"

static moe_err broken(const char *what, section_id s, int p)
{
    return moe_fail(MOE_E_DATA, "tier: broken invariant at section %d part %c: %s", s, p < 0 ? '-' : STORE_LETTERS[p], what);
}

/* Sums over all slots, to compare with the counters. */
typedef struct sums {
    int free, owned, heads, doomed, dirty, leased, writes, reads, idle; /* free, heads, doomed: without tails */
} sums;

static bool is_idle_clean(const tier_slot *h)
{
    return (h->state == SLOT_READY || h->state == SLOT_FAILED) && h->leases == 0 && h->pins == 0 && !h->writing && !h->dirty;
}

static moe_err check_slot(const tier *t, int i, sums *sum)
{
    const tier_slot *h = &t->slot[i];
    const tier_slot *tail = slot_tail(t, h);
    const bool is_tail = slot_is_tail(t, h);
    sum->free += h->state == SLOT_FREE && !is_tail;
    sum->doomed += h->state == SLOT_DOOMED && !is_tail;
    sum->dirty += h->dirty;
    sum->leased += h->leases;
    sum->writes += h->writing;
    sum->reads += h->state == SLOT_READING;
    sum->idle += h->heap >= 0;
    if (h->state == SLOT_FREE)
        return h->section == -1 && !h->dirty && h->leases == 0 && h->heap < 0 && (tail == NULL || tail->state == SLOT_FREE)
                   ? MOE_OK
                   : broken("a free slot holds something", h->section, -1);
    const tier_section *x = &t->section[h->section];
    if (h->state == SLOT_DOOMED)
        return (h->writing || (tail != NULL && tail->state == SLOT_DOOMED)) && !h->dirty && h->heap < 0
                   ? MOE_OK
                   : broken("a doomed slot without a write", h->section, (int)h->part);
    sum->owned++;
    sum->heads += !is_tail;
    if (is_tail && (h->part != STORE_R || h->heap >= 0 || x->slot[STORE_W] != i - t->slots))
        return broken("a tail without its head", h->section, (int)h->part);
    if (x->slot[h->part] != i)
        return broken("slot and section disagree", h->section, (int)h->part);
    if (h->writing && (x->flight & (1u << h->part)) == 0)
        return broken("a write that the section does not know", h->section, (int)h->part);
    if (h->dirty && h->state != SLOT_READY)
        return broken("dirty without content", h->section, (int)h->part);
    if (h->heap >= 0 && (h->leases > 0 || h->pins > 0 || h->writing))
        return broken("in use, yet a candidate for eviction", h->section, (int)h->part);
    const bool idle = is_idle_clean(h) && (tail == NULL || tail->state == SLOT_FREE || is_idle_clean(tail));
    if (idle && !is_tail && h->heap != HEAP_CLEAN)
        return broken("clean and idle, yet no candidate for eviction", h->section, (int)h->part);
    if (h->heap == HEAP_DIRTY && !h->dirty && (tail == NULL || !tail->dirty))
        return broken("clean among the dirty", h->section, (int)h->part);
    return MOE_OK;
}

static moe_err check_heaps(const tier *t)
{
    for (int k = 0; k < HEAPS; k++)
        for (int i = 0; i < t->heap[k].n; i++) {
            const tier_slot *h = &t->slot[t->heap[k].item[i]];
            if (h->heap != k || h->pos != i)
                return broken("heap and slot disagree", h->section, (int)h->part);
            if (i > 0 && t->slot[t->heap[k].item[(i - 1) / 2]].key < h->key)
                return broken("heap out of order", h->section, (int)h->part);
        }
    return MOE_OK;
}

/* Every part of a new version is dirty in RAM, leased for changing, or has arrived; and it goes to a place that may be written.
 */
static moe_err check_state(tier *t, section_id s)
{
    const tier_section *x = &t->section[s];
    if (t->c.read_only)
        return MOE_OK;
    for (int p = 0; p < STORE_G; p++) {
        const tier_slot *h = part_slot(t, s, (store_part)p);
        const bool dirty = h != NULL && (h->dirty || (x->changing & (1u << p)) != 0);
        if (x->next.slot >= 0 && !dirty && (x->next.have & (1u << p)) == 0)
            return broken("part of a new version is lost", s, p);
        if (x->next.slot < 0 && h != NULL && h->dirty)
            return broken("dirty without a new version", s, p);
    }
    if (x->next.slot >= 0 ? x->next.step != x->step : x->disk.step != x->step)
        return broken("the record's step is neither on disk nor on its way", s, -1);
    if (x->next.slot >= 0 && x->speculative && x->next.slot == x->before.slot)
        return broken("a speculative state goes over the one to return to", s, -1);
    if (x->next.slot >= 0 && t->c.checkpoint != NULL && checkpoint_names_slot(t->c.checkpoint, s, x->next.slot, false))
        return broken("a new version goes to a place that a checkpoint names", s, -1);
    return MOE_OK;
}

static moe_err check_gradient(tier *t, section_id s)
{
    const tier_section *x = &t->section[s];
    const tier_slot *h = part_slot(t, s, STORE_G);
    if (x->grad_step != 0 && x->grad_step <= x->step && !x->speculative)
        return broken("the pending gradient is older than the state", s, STORE_G);
    if (x->grad_step != 0 && h == NULL && !part_on_disk(t, s, STORE_G))
        return broken("the pending gradient is lost", s, STORE_G);
    if (x->grad_step == 0 && h != NULL && h->leases == 0 && h->state != SLOT_READING && !t->c.read_only)
        return broken("a gradient that nobody needs", s, STORE_G);
    if (h != NULL && h->dirty && t->c.checkpoint != NULL && checkpoint_names_slot(t->c.checkpoint, s, x->grad_target, true))
        return broken("a gradient goes to a place that a checkpoint names", s, STORE_G);
    return MOE_OK;
}

static moe_err check_all(tier *t)
{
    sums sum = {0};
    for (int i = 0; i < t->slots * (t->halves ? 2 : 1); i++)
        TRY(check_slot(t, i, &sum));
    TRY(check_heaps(t));
    int resident = 0;
    for (section_id s = 0; s < t->sections; s++) {
        for (int p = 0; p < STORE_PARTS; p++)
            resident += t->section[s].slot[p] >= 0;
        TRY(check_state(t, s));
        TRY(check_gradient(t, s));
    }
    if (resident != sum.owned || sum.free + sum.doomed + sum.heads != t->slots || sum.free != t->free_count)
        return broken("slots were lost", -1, -1);
    if (sum.dirty != t->dirty_count || sum.leased != t->leased_count || sum.writes != t->writes ||
        sum.reads != t->reads_ahead + t->reads_demand || sum.idle != t->heap[HEAP_CLEAN].n + t->heap[HEAP_DIRTY].n)
        return broken("a counter is wrong", -1, -1);
    return MOE_OK;
}

moe_err tier_check(tier *t)
{
    pthread_mutex_lock(&t->lock);
    const moe_err rc = check_all(t);
    pthread_mutex_unlock(&t->lock);
    return rc;
}

void tier_get_stats(tier *t, tier_stats *out)
{
    pthread_mutex_lock(&t->lock);
    *out = t->stats;
    out->dirty_bytes = 0;
    for (int i = 0; t->dirty_count > 0 && i < t->slots * (t->halves ? 2 : 1); i++)
        out->dirty_bytes += t->slot[i].dirty ? part_padded(t, t->slot[i].part) : 0;
    out->resident_bytes = (uint64_t)(t->slots - t->free_count) * t->padded;
    out->capacity_bytes = (uint64_t)t->slots * t->padded;
    pthread_mutex_unlock(&t->lock);
}
