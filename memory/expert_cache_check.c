/* The invariants of the expert cache, for tests. Leaves everything as it is. One thread. */
#include <stdlib.h>

#include "memory/expert_cache_private.h"

static moe_err check_slots(const expert_cache *c)
{
    int free_slots = 0;
    for (int s = 0; s < c->slots; s++) {
        const cache_slot *t = &c->slot[s];
        free_slots += t->state == SLOT_FREE;
        if ((t->state == SLOT_READING || t->state == SLOT_RESIDENT) && (t->id >= c->ids || c->slot_of[t->id] != s))
            return moe_fail(MOE_E_DATA, "slot %d holds section %u, which does not know it", s, t->id);
        if (t->leases < 0 || (t->leases > 0 && t->state != SLOT_RESIDENT))
            return moe_fail(MOE_E_DATA, "slot %d: %d leases in state %d", s, t->leases, t->state);
        if (t->state == SLOT_READING || t->state == SLOT_LOST) {
            const flight *f = &c->flight[t->flight];
            if (!f->busy || f->slot != s || f->lost != (t->state == SLOT_LOST) || (!f->lost && f->id != t->id))
                return moe_fail(MOE_E_DATA, "slot %d waits for flight %d, which is not its own", s, t->flight);
        }
    }
    if (free_slots != c->nfree)
        return moe_fail(MOE_E_DATA, "%d slots are free, %d are known to be", free_slots, c->nfree);
    for (int i = 0; i < c->nfree; i++)
        if (c->slot[c->free_slot[i]].state != SLOT_FREE)
            return moe_fail(MOE_E_DATA, "slot %d is among the free ones in state %d", c->free_slot[i],
                            c->slot[c->free_slot[i]].state);
    return MOE_OK;
}

static moe_err check_sections(const expert_cache *c)
{
    for (size_t id = 0; id < c->ids; id++) {
        const int s = c->slot_of[id];
        if (s != NO_SLOT &&
            (s < 0 || s >= c->slots || c->slot[s].id != id || c->slot[s].state == SLOT_FREE || c->slot[s].state == SLOT_LOST))
            return moe_fail(MOE_E_DATA, "section %zu believes to be in slot %d", id, s);
        if ((c->flags[id] & ID_UNUSED) && !id_resident(c, (expert_id)id))
            return moe_fail(MOE_E_DATA, "section %zu was read ahead and is not there", id);
    }
    return MOE_OK;
}

static moe_err check_flights(const expert_cache *c)
{
    int busy = 0, ahead = 0, pieces = 0;
    for (int i = 0; i < c->flights; i++) {
        const flight *f = &c->flight[i];
        if (!f->busy)
            continue;
        busy++;
        ahead += f->ahead;
        pieces += f->pieces_left;
        if (f->slot < 0 || f->slot >= c->slots || c->slot[f->slot].flight != i)
            return moe_fail(MOE_E_DATA, "flight %d fills slot %d, which waits for another", i, f->slot);
    }
    if (busy != c->busy || ahead != c->ahead_busy || pieces != c->pieces_out)
        return moe_fail(MOE_E_DATA, "%d flights (%d ahead) with %d pieces; counted %d (%d) with %d", busy, ahead, pieces, c->busy,
                        c->ahead_busy, c->pieces_out);
    return MOE_OK;
}

/* The set of the policy is what is resident without a lease: its members are taken out one after the other, then put back. */
static moe_err check_policy(const expert_cache *c)
{
    int idle = 0, found = 0;
    for (int s = 0; s < c->slots; s++)
        idle += c->slot[s].state == SLOT_RESIDENT && c->slot[s].leases == 0;
    moe_err rc = MOE_OK;
    expert_id id, *members = malloc(c->ids * sizeof *members);
    if (members == NULL)
        return moe_fail(MOE_E_OS, "expert cache: out of memory");
    while (rc == MOE_OK && cache_policy_victim(c->policy, true, &id)) {
        if (!id_resident(c, id) || c->slot[c->slot_of[id]].leases > 0)
            rc = moe_fail(MOE_E_DATA, "the policy would evict section %u, which is leased or absent", id);
        members[found++] = id;
        cache_policy_leave(c->policy, id);
    }
    for (int i = 0; i < found; i++)
        cache_policy_enter(c->policy, members[i]);
    free(members);
    if (rc == MOE_OK && found != idle)
        rc = moe_fail(MOE_E_DATA, "the policy may evict %d sections, %d are idle", found, idle);
    return rc;
}

moe_err expert_cache_check(const expert_cache *c)
{
    TRY(check_slots(c));
    TRY(check_sections(c));
    TRY(check_flights(c));
    TRY(check_policy(c));
    return cache_policy_check(c->policy);
}
