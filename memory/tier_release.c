/* Leases of the host tier: release, and what a change means for the record. The compute thread only. */
#include "memory/tier_private.h"

/* Read-only: the disk holds the older state, so once w is gone the section stands there again. */
void readonly_revert(tier *t, section_id s)
{
    tier_section *x = &t->section[s];
    if (x->slot[STORE_W] >= 0)
        return;
    x->step = x->disk.step;
    x->grad_step = x->disk_grad_step > x->step ? x->disk_grad_step : 0;
}

static void mark_dirty(tier *t, tier_slot *h)
{
    h->version++;
    if (!h->dirty)
        t->dirty_count++;
    h->dirty = true;
}

/* Books the change of the parts in `dirty` before their leases end. */
static void book_change(tier *t, section_id s, unsigned dirty, const tier_change *c)
{
    tier_section *x = &t->section[s];
    if ((dirty & TIER_STATE) != 0) {
        speculation_release(t, s, c->step);
        if (!t->c.read_only)
            version_begin(t, x, dirty & TIER_STATE, c->step);
        x->step = c->step;
        if (x->grad_step != 0 && x->grad_step <= x->step && !x->speculative)
            gradient_forget(t, s);
    }
    if ((dirty & TIER_G) != 0) {
        x->grad_step = c->grad_step;
        x->grad_target = (int16_t)gradient_target(t, s);
    }
    for (int p = 0; p < STORE_PARTS; p++)
        if ((dirty & (1u << p)) != 0)
            mark_dirty(t, part_slot(t, s, (store_part)p));
}

/* The last lease of a part has ended: does its slot still hold anything? */
static void settle(tier *t, tier_slot *h, bool drop)
{
    tier_section *x = &t->section[h->section];
    const bool gone_gradient = h->part == STORE_G && x->grad_step == 0;
    const bool memory_only = t->c.read_only && h->dirty && h->part > STORE_R;
    const tier_slot *tail = slot_tail(t, h);
    const bool needed =
        tail != NULL && tail->state != SLOT_FREE && (tail->leases > 0 || tail->dirty || tail->state == SLOT_READING);
    if (gone_gradient || memory_only || (drop && !h->dirty && !needed))
        slot_free(t, h);
    else
        slot_place(t, h);
}

void tier_release(tier *t, tier_lease *l, unsigned parts, tier_change c)
{
    parts &= l->parts;
    if (parts == 0)
        return;
    const section_id s = l->section;
    tier_section *x = &t->section[s];
    if (t->c.read_only)
        c.dirty &= ~(unsigned)TIER_G;
    pthread_mutex_lock(&t->lock);
    book_change(t, s, c.dirty & parts & ~c.drop, &c);
    if ((c.drop & parts & TIER_G) != 0)
        gradient_forget(t, s);
    for (int p = STORE_PARTS - 1; p >= 0; p--) { /* a tail before its head */
        const unsigned bit = 1u << p;
        if ((parts & bit) == 0)
            continue;
        tier_slot *h = part_slot(t, s, (store_part)p);
        h->leases--;
        t->leased_count--;
        if (h->leases == 0) {
            x->changing &= (uint8_t)~bit;
            settle(t, h, (c.drop & bit) != 0);
        }
        l->part[p] = NULL;
    }
    schedule_place_section(t, s);
    tier_pump(t);
    pthread_mutex_unlock(&t->lock);
    l->parts &= ~parts;
    if (l->parts == 0)
        *l = (tier_lease){0};
}
