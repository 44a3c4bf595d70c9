/* Transfers of the host tier: reads, writes, write-back in the background, and what happens when one ends. Owns the store's ops
 * in the slots. All under the tier's lock; transfer_done is entered from the store's thread and takes it. Rule: a part has at
 * most one write in flight (tier_section.flight), also when its slot is already doomed, so two writes never race for one place on
 * disk. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "memory/tier_private.h"

bool part_on_disk(const tier *t, section_id s, store_part p)
{
    const tier_section *x = &t->section[s];
    if (p == STORE_G)
        return x->grad_step != 0 && x->disk_grad_step == x->grad_step && x->grad_slot >= 0;
    if (x->next.slot >= 0)
        return (x->next.have & (1u << p)) != 0;
    return x->disk.slot >= 0;
}

/* The part is in `next` with all it needs: is the new version whole? */
static void version_arrive(tier_section *x, const store_op *op, uint64_t step)
{
    if (x->next.slot != op->slot || x->next.step != step)
        return;
    x->next.have |= (uint8_t)(1u << op->part);
    x->next.sum[op->part] = op->sum;
    if (x->next.have != TIER_STATE)
        return;
    x->disk = x->next;
    x->next = (tier_version){.slot = -1};
}

static void read_done(tier *t, tier_slot *h)
{
    if (h->demanded)
        t->reads_demand--;
    else
        t->reads_ahead--;
    h->demanded = false;
    h->state = h->op.rc == MOE_OK ? SLOT_READY : SLOT_FAILED;
    if (h->state == SLOT_FAILED)
        h->ahead = false;
    if (h->part == STORE_G && t->section[h->section].grad_step == 0) /* forgotten while it was read */
        slot_free(t, h);
    else
        slot_place(t, h);
}

static void write_done(tier *t, tier_slot *h)
{
    tier_section *x = &t->section[h->section];
    const store_part p = h->part;
    t->writes--;
    h->writing = false;
    x->flight &= (uint8_t) ~(1u << p);
    if (h->state == SLOT_DOOMED) {
        slot_free(t, h);
        if (x->slot[p] >= 0)
            slot_place(t, &t->slot[x->slot[p]]);
        return;
    }
    if (h->op.rc != MOE_OK) {
        t->write_rc = h->op.rc;
        snprintf(t->write_text, sizeof t->write_text, "%s", h->op.text);
        h->write_failed = true;
    } else if (h->version == h->op_version) {
        h->dirty = false;
        t->dirty_count--;
        if (p == STORE_G) {
            x->grad_slot = (int16_t)h->op.slot;
            x->disk_grad_step = h->op_step;
            x->grad_sum = h->op.sum;
        } else {
            version_arrive(x, &h->op, h->op_step);
        }
    }
    slot_place(t, h);
}

static void transfer_done(store_op *op)
{
    tier_slot *h = op->user;
    tier *t = h->owner;
    pthread_mutex_lock(&t->lock);
    t->events++;
    if (op->write)
        write_done(t, h);
    else
        read_done(t, h);
    tier_pump(t);
    pthread_cond_broadcast(&t->landed);
    pthread_mutex_unlock(&t->lock);
}

/* The op is filled field by field: its private half belongs to the store. */
static void fill_op(tier *t, tier_slot *h, bool write, store_priority priority)
{
    store_op *op = &h->op;
    memset(op, 0, sizeof *op);
    op->write = write;
    op->priority = priority;
    op->section = h->section;
    op->part = h->part;
    op->buf = h->buf;
    op->bytes = t->c.part_bytes[h->part];
    op->done = transfer_done;
    op->user = h;
}

void read_start(tier *t, section_id s, store_part p, bool demand)
{
    const tier_section *x = &t->section[s];
    tier_slot *h = slot_take(t, s, p, SLOT_READING);
    if (h == NULL)
        return;
    fill_op(t, h, false, demand ? STORE_DEMAND : STORE_PREFETCH);
    if (p == STORE_G) {
        h->op.slot = x->grad_slot;
        h->op.sum = x->grad_sum;
    } else {
        const tier_version *from = x->next.slot >= 0 ? &x->next : &x->disk;
        h->op.slot = from->slot;
        h->op.sum = from->sum[p];
    }
    h->demanded = h->missed = demand;
    h->ahead = !demand;
    if (demand)
        t->reads_demand++;
    else
        t->reads_ahead++;
    store_submit(t->c.store, &h->op);
}

static bool write_one(tier *t, tier_slot *h)
{
    tier_section *x = &t->section[h->section];
    const unsigned bit = 1u << h->part;
    if (!h->dirty || h->state != SLOT_READY || h->write_failed || (x->flight & bit) != 0 || (x->changing & bit) != 0)
        return false;
    fill_op(t, h, true, STORE_WRITE);
    if (h->part == STORE_G) {
        h->op.slot = x->grad_target;
        h->op_step = x->grad_step;
        if (x->grad_target == x->grad_slot) { /* overwritten in place */
            x->grad_slot = -1;
            x->disk_grad_step = 0;
        }
    } else {
        h->op.slot = x->next.slot;
        h->op_step = x->next.step;
    }
    h->op_version = h->version;
    h->writing = true;
    x->flight |= (uint8_t)bit;
    t->writes++;
    slot_place(t, h);
    store_submit(t->c.store, &h->op);
    return true;
}

bool write_start(tier *t, tier_slot *h)
{
    tier_slot *tail = slot_tail(t, h);
    const bool head = h->dirty && write_one(t, h), rest = tail != NULL && tail->dirty && write_one(t, tail);
    return head || rest;
}

void writes_forgive(tier *t)
{
    t->write_rc = MOE_OK;
    for (int i = 0; i < t->slots * (t->halves ? 2 : 1); i++)
        if (t->slot[i].write_failed) {
            t->slot[i].write_failed = false;
            slot_place(t, &t->slot[i]);
        }
}

/* Keeps the parts that would go next clean: as long as fewer than writeback_mark slots are free, on their way to be clean, or
 * clean and before the first dirty part in the order of eviction, that dirty part is written. The count stays small on purpose:
 * whatever is written earlier than it must be may change again before it goes. */
void writeback(tier *t)
{
    if (t->c.store == NULL || t->fits || t->c.read_only || t->quiet)
        return;
    while (t->heap[HEAP_DIRTY].n > 0 && t->writes < t->writeback_depth) {
        tier_slot *first = &t->slot[t->heap[HEAP_DIRTY].item[0]];
        const int ready = t->free_count + t->writes;
        if (ready >= t->writeback_mark)
            return;
        if (ready + heap_count_from(t, HEAP_CLEAN, first->key, t->writeback_mark - ready) >= t->writeback_mark)
            return;
        if (!write_start(t, first))
            return;
    }
}

void tier_pump(tier *t)
{
    if (t->quiet)
        return;
    writeback(t);
    if (!t->starving)
        schedule_prefetch(t);
}

moe_err wait_landed(tier *t, const char *who)
{
    const uint64_t seen = t->events;
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += TIER_DEADLINE;
    while (t->events == seen) {
        if (pthread_cond_timedwait(&t->landed, &t->lock, &until) == ETIMEDOUT && t->events == seen)
            return moe_fail(MOE_E_IO, "%s waited %d s for the store: %d reads and %d writes in flight, none came back", who,
                            TIER_DEADLINE, t->reads_ahead + t->reads_demand, t->writes);
    }
    return MOE_OK;
}

/* The lowest place of w, r, m, v that may be written: no kept checkpoint names it and it is not the state to return to. */
static int16_t state_target(const tier *t, section_id s)
{
    const tier_section *x = &t->section[s];
    int k = 0;
    while ((t->c.checkpoint != NULL && checkpoint_names_slot(t->c.checkpoint, s, k, false)) ||
           (x->speculative && k == x->before.slot))
        k++;
    return (int16_t)k;
}

int gradient_target(tier *t, section_id s)
{
    int k = 0;
    while (t->c.checkpoint != NULL && checkpoint_names_slot(t->c.checkpoint, s, k, true))
        k++;
    return k;
}

/* A change of `part` to `step` is booked: what was written of an older version no longer counts. A change at the step that is
 * already whole on disk makes a new version too; parts that did not change are then rewritten from RAM, or stay where they are
 * when the place is the same. */
void version_begin(tier *t, tier_section *x, unsigned part, uint64_t step)
{
    const section_id s = (section_id)(x - t->section);
    if (x->next.slot >= 0 && x->next.step == step) {
        x->next.have &= (uint8_t)~part;
        return;
    }
    const bool again = x->next.slot < 0 && x->disk.slot >= 0 && x->disk.step == step;
    x->next = (tier_version){.slot = state_target(t, s), .have = (uint8_t)(TIER_STATE & ~t->parts), .step = step};
    if (again && x->next.slot == x->disk.slot) {
        x->next = x->disk;
        x->next.have = (uint8_t)(TIER_STATE & ~part);
        return;
    }
    for (int p = 0; again && p < STORE_G; p++) {
        tier_slot *h = part_slot(t, s, (store_part)p);
        if (h == NULL || h->dirty || h->state != SLOT_READY || (part & (1u << p)) != 0)
            continue;
        h->dirty = true;
        h->version++;
        t->dirty_count++;
        slot_place(t, h);
    }
}

void gradient_forget(tier *t, section_id s)
{
    tier_section *x = &t->section[s];
    tier_slot *h = part_slot(t, s, STORE_G);
    x->grad_step = 0;
    if (!t->c.read_only) {
        x->disk_grad_step = 0;
        x->grad_slot = -1;
    }
    if (h != NULL && h->leases == 0 && h->state != SLOT_READING) /* else release, or the end of the read, lets go of it */
        slot_free(t, h);
}
