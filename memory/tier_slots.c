/* Slots of the host tier: the free list, the two heaps of idle slots, eviction. Knows when a part may go, not when it is needed
 * (tier_schedule.c) nor how it travels (tier_transfer.c). Every function runs under the tier's lock.
 * Rule: after any change of a slot's state, leases, pins, dirty bit or schedule, slot_place puts it where it belongs. */
#include "memory/tier_private.h"

static void heap_set(tier *t, tier_heap *heap, int pos, int32_t h)
{
    heap->item[pos] = h;
    t->slot[h].pos = pos;
}

static void heap_up(tier *t, tier_heap *heap, int pos)
{
    const int32_t h = heap->item[pos];
    while (pos > 0) {
        const int parent = (pos - 1) / 2;
        if (t->slot[heap->item[parent]].key >= t->slot[h].key)
            break;
        heap_set(t, heap, pos, heap->item[parent]);
        pos = parent;
    }
    heap_set(t, heap, pos, h);
}

static void heap_down(tier *t, tier_heap *heap, int pos)
{
    const int32_t h = heap->item[pos];
    for (;;) {
        int child = 2 * pos + 1;
        if (child >= heap->n)
            break;
        if (child + 1 < heap->n && t->slot[heap->item[child + 1]].key > t->slot[heap->item[child]].key)
            child++;
        if (t->slot[heap->item[child]].key <= t->slot[h].key)
            break;
        heap_set(t, heap, pos, heap->item[child]);
        pos = child;
    }
    heap_set(t, heap, pos, h);
}

static void heap_remove(tier *t, tier_slot *h)
{
    tier_heap *heap = &t->heap[h->heap];
    const int pos = h->pos;
    const int32_t last = heap->item[--heap->n];
    h->heap = -1;
    if (pos == heap->n)
        return;
    heap_set(t, heap, pos, last);
    heap_up(t, heap, pos);
    heap_down(t, heap, t->slot[last].pos);
}

static void heap_insert(tier *t, int which, tier_slot *h)
{
    tier_heap *heap = &t->heap[which];
    h->heap = which;
    heap->item[heap->n++] = slot_index(t, h);
    heap_up(t, heap, heap->n - 1);
}

static int count_below(const tier *t, const tier_heap *heap, int pos, double key, int limit)
{
    if (pos >= heap->n || limit <= 0 || t->slot[heap->item[pos]].key < key)
        return 0;
    int n = 1;
    n += count_below(t, heap, 2 * pos + 1, key, limit - n);
    n += count_below(t, heap, 2 * pos + 2, key, limit - n);
    return n;
}

int heap_count_from(const tier *t, int heap, double key, int limit) { return count_below(t, &t->heap[heap], 0, key, limit); }

static bool at_rest(const tier_slot *h)
{
    return (h->state == SLOT_READY || h->state == SLOT_FAILED) && h->leases == 0 && h->pins == 0 && !h->writing;
}

static bool may_write(const tier *t, const tier_slot *h)
{
    return h->dirty && !h->write_failed && (t->section[h->section].flight & (1u << h->part)) == 0;
}

/* Where a slot belongs: a heap, or none. A head stands for its tail. */
static int heap_of(const tier *t, const tier_slot *h)
{
    const tier_slot *tail = slot_tail(t, h);
    if (tail != NULL && tail->state == SLOT_FREE)
        tail = NULL;
    if (!at_rest(h) || (tail != NULL && !at_rest(tail)))
        return -1;
    if ((!h->dirty && (tail == NULL || !tail->dirty)) || t->c.read_only)
        return HEAP_CLEAN;
    return may_write(t, h) || (tail != NULL && may_write(t, tail)) ? HEAP_DIRTY : -1;
}

static void set_key(tier *t, tier_slot *h)
{
    if (h->state == SLOT_FAILED) { /* holds nothing: goes first */
        h->next = TIER_NEVER;
        h->key = 2 * TIER_NEVER;
        return;
    }
    h->next = schedule_next_use(t, h->section, h->part).expected;
    const policy_use u = {
        .next = h->next, .last = h->last, .hits = t->section[h->section].hits[h->part], .threshold = t->c.lfu_threshold};
    h->key = t->policy->key(&u);
}

void slot_place(tier *t, tier_slot *h)
{
    if (slot_is_tail(t, h))
        h = slot_head(t, h);
    if (h->heap >= 0)
        heap_remove(t, h);
    const int heap = heap_of(t, h);
    if (heap < 0)
        return;
    set_key(t, h);
    heap_insert(t, heap, h);
}

void slot_place_all(tier *t)
{
    for (int i = 0; i < t->slots; i++)
        slot_place(t, &t->slot[i]);
}

bool slot_tail_free(const tier *t, section_id s)
{
    const int32_t head = t->section[s].slot[STORE_W];
    return head >= 0 && t->slot[head + t->slots].state == SLOT_FREE;
}

tier_slot *slot_take(tier *t, section_id s, store_part p, slot_state state)
{
    tier_slot *h;
    if (p == STORE_R) {
        if (!slot_tail_free(t, s))
            return NULL;
        h = slot_tail(t, part_slot(t, s, STORE_W));
    } else {
        if (t->free_head < 0)
            return NULL;
        h = &t->slot[t->free_head];
        t->free_head = h->next_free;
        t->free_count--;
    }
    h->section = s;
    h->part = p;
    h->state = state;
    h->last = t->lease_count;
    t->section[s].slot[p] = slot_index(t, h);
    if (p == STORE_R)
        slot_place(t, h);
    return h;
}

static void push_free(tier *t, tier_slot *h)
{
    h->state = SLOT_FREE;
    h->section = -1;
    if (slot_is_tail(t, h)) {
        tier_slot *head = slot_head(t, h);
        if (head->state == SLOT_DOOMED && !head->writing) /* was waiting for its tail */
            push_free(t, head);
        else
            slot_place(t, head);
        return;
    }
    h->next_free = t->free_head;
    t->free_head = slot_index(t, h);
    t->free_count++;
}

void slot_free(tier *t, tier_slot *h)
{
    tier_slot *tail = slot_tail(t, h);
    if (h->state == SLOT_DOOMED) { /* its write has ended */
        if (tail == NULL || tail->state != SLOT_DOOMED)
            push_free(t, h);
        return;
    }
    if (tail != NULL && tail->state != SLOT_FREE && tail->state != SLOT_DOOMED)
        slot_free(t, tail);
    t->section[h->section].slot[h->part] = -1;
    if (h->dirty)
        t->dirty_count--;
    if (h->ahead)
        t->stats.wasted_read_bytes += part_padded(t, h->part);
    h->pins = 0;
    h->dirty = h->ahead = h->missed = h->demanded = h->write_failed = false;
    h->version++;
    if (h->heap >= 0)
        heap_remove(t, h);
    if (h->writing || (tail != NULL && tail->state == SLOT_DOOMED))
        h->state = SLOT_DOOMED; /* keeps section and part: the completion clears the section's flight bit */
    else
        push_free(t, h);
}

void slot_evict(tier *t, tier_slot *h)
{
    const section_id s = h->section;
    if (h->state == SLOT_READY) {
        const double raw = schedule_next_use(t, s, h->part).raw;
        if (raw <= (double)t->walk) { /* the prefetcher has passed it: look again from there */
            t->walk = raw <= (double)t->clock ? t->clock : (uint64_t)raw;
            t->walk_expert = 0;
        }
    }
    const bool state_part = h->part != STORE_G;
    slot_free(t, h);
    if (t->c.read_only && state_part)
        readonly_revert(t, s);
}

/* One slot on the free list. Evicts the first clean part if its next use lies after `next`; with `force` whatever is first. */
bool slot_make_room(tier *t, double next, bool force)
{
    if (t->free_count > 0)
        return true;
    if (t->heap[HEAP_CLEAN].n == 0)
        return false;
    tier_slot *h = &t->slot[t->heap[HEAP_CLEAN].item[0]];
    if (!force && h->next <= next)
        return false;
    slot_evict(t, h);
    return t->free_count > 0;
}
