/* The schedule: when a part is needed next, and reading ahead along it.
 *
 * The phases of a step form a cycle of 2L: forward of layer l stands at position l, backward at 2L-1-l (evaluation: L forward
 * phases). w is used in both phases of its layer; r, m and v in forward, where a pending gradient is applied or a decay replayed,
 * or in backward, while updates are speculative; g is made in backward and used by the next forward. Between the two phases of a
 * layer the router has spoken, and the touches of backward are certain. Before that a section is touched with the chance of its
 * moving average p, so the expected number of cycles that pass it by is 1/p - 1, and its expected next use lies so many cycles
 * later. Belady's rule (evict what is used farthest in the future) is then a comparison of expected times; times are absolute
 * (phases since the start), so that keys stay valid while the clock advances, until the part's own layer is entered or left.
 *
 * The prefetcher walks the phases from the current one on and stops at the first part it finds no slot or no place in the queue
 * for, so what is read is always what is needed first. It evicts only what is needed later than what it brings in. All under the
 * tier's lock. */
#include <math.h>

#include "memory/tier_private.h"

/* How the layer of a section stands to the current phase. */
typedef struct view {
    uint64_t forward, backward; /* phases from now to the next of each; 0: it is the current one */
    bool inside;                /* from forward to backward of this layer: `touch` counts */
    bool here;                  /* this is the current layer and the section was not leased in this phase */
    touch touched;
    double chance;
} view;

static view look(const tier *t, section_id s)
{
    const int cycle = cycle_length(t), f = s / t->c.experts;
    const int b = t->forward_only ? f : cycle - 1 - f, pos = t->pos < 0 ? 0 : t->pos;
    const tier_section *x = &t->section[s];
    view v = {.forward = (uint64_t)((f - pos + cycle) % cycle),
              .backward = (uint64_t)((b - pos + cycle) % cycle),
              .inside = t->pos >= 0 && pos >= f && pos <= b,
              .here = (pos == f || pos == b) && x->used != t->clock,
              .chance = x->chance > 0.02f ? (double)x->chance : 0.02};
    v.touched = v.inside ? (touch)x->touch : TOUCH_UNKNOWN;
    return v;
}

static tier_use use_at(const tier *t, uint64_t distance, double chance)
{
    const double raw = (double)(t->clock + distance);
    return (tier_use){raw, raw + (double)cycle_length(t) * (1.0 / chance - 1.0)};
}

/* Next forward use; `needed_now`: a use in the current phase counts. */
static tier_use forward_use(const tier *t, const view *v, bool needed_now)
{
    if (v->forward > 0)
        return use_at(t, v->forward, v->chance);
    if (needed_now && v->here && v->touched != TOUCH_NO)
        return use_at(t, 0, v->touched == TOUCH_YES ? 1.0 : v->chance);
    return use_at(t, (uint64_t)cycle_length(t), v->chance);
}

static tier_use backward_use(const tier *t, const view *v)
{
    if (t->forward_only)
        return (tier_use){TIER_NEVER, TIER_NEVER};
    const uint64_t cycle = (uint64_t)cycle_length(t);
    if (v->touched == TOUCH_NO)
        return use_at(t, v->backward + cycle, v->chance);
    if (v->backward == 0 && !v->here)
        return use_at(t, cycle, v->chance);
    return use_at(t, v->backward, v->touched == TOUCH_YES ? 1.0 : v->chance);
}

static tier_use earlier(tier_use a, tier_use b) { return a.expected <= b.expected ? a : b; }

/* r, m, v: wherever the update happens. A record that already stands at the last finished step needs none in this step's forward.
 */
static tier_use moment_use(const tier *t, const view *v, const tier_section *x)
{
    const bool behind = x->step < t->finished;
    if (t->forward_only)
        return behind ? forward_use(t, v, true) : (tier_use){TIER_NEVER, TIER_NEVER};
    if (t->update_in_backward)
        return behind ? earlier(forward_use(t, v, true), backward_use(t, v)) : backward_use(t, v);
    tier_use u = forward_use(t, v, behind);
    if (!behind && v->forward > 0 && t->pos + (int)v->forward < t->c.layers) { /* this step's forward passes without an update */
        u.raw += cycle_length(t);
        u.expected += cycle_length(t);
    }
    return u;
}

static tier_use gradient_use(const tier *t, const view *v, const tier_section *x)
{
    if (x->grad_step == 0 || x->step >= x->grad_step)
        return (tier_use){TIER_NEVER, TIER_NEVER};
    return forward_use(t, v, x->grad_step <= t->finished);
}

tier_use schedule_next_use(const tier *t, section_id s, store_part p)
{
    const view v = look(t, s);
    switch (p) {
    case STORE_W:
        return earlier(forward_use(t, &v, true), backward_use(t, &v));
    case STORE_G:
        return gradient_use(t, &v, &t->section[s]);
    default:
        return moment_use(t, &v, &t->section[s]);
    }
}

void schedule_place_section(tier *t, section_id s)
{
    for (int p = 0; p < STORE_PARTS; p++) {
        tier_slot *h = part_slot(t, s, (store_part)p);
        if (h != NULL && h->heap >= 0)
            slot_place(t, h);
    }
}

/* Is the section likely (certainly, where the router has spoken) used by the phase at `distance`? */
static bool will_touch(const view *v, uint64_t distance)
{
    const bool known = v->inside && v->touched != TOUCH_UNKNOWN && (distance == 0 || distance == v->backward);
    if (distance == 0 && !v->here)
        return false;
    return known ? v->touched == TOUCH_YES : v->chance > 0.5;
}

/* The parts that the phase at `distance` needs of a section. */
static unsigned parts_at(const tier *t, section_id s, uint64_t distance, bool backward)
{
    const tier_section *x = &t->section[s];
    const view v = look(t, s);
    if (!will_touch(&v, distance))
        return 0;
    const bool pending = x->grad_step > x->step;
    if (backward)
        return TIER_W | (t->update_in_backward ? TIER_R | TIER_M | TIER_V : 0u) |
               (pending && x->grad_step > t->finished ? TIER_G : 0u);
    const bool next_step = !t->forward_only && (uint64_t)t->pos + distance >= (uint64_t)cycle_length(t);
    const uint64_t finished = t->finished + (next_step && !t->update_in_backward ? 1 : 0);
    unsigned parts = TIER_W;
    if (x->step < finished)
        parts |= TIER_R | TIER_M | TIER_V;
    if (pending && x->grad_step <= finished)
        parts |= TIER_G;
    return parts;
}

/* A slot for a part read ahead. Keeps a record's worth of slots for those that wait: a fresh gradient, a wrong guess. */
static bool make_room_ahead(tier *t, section_id s, store_part p)
{
    const double next = schedule_next_use(t, s, p).expected;
    const int reserve = t->slots / 4 < TIER_RECORD_SLOTS ? t->slots / 4 : TIER_RECORD_SLOTS;
    const int spare = t->free_count > reserve || !t->policy->by_time
                          ? t->heap[HEAP_CLEAN].n
                          : heap_count_from(t, HEAP_CLEAN, nextafter(next, INFINITY), reserve + 1);
    if (t->free_count + spare <= reserve)
        return false;
    return slot_make_room(t, next, false);
}

/* false: the walk cannot go on now. */
static bool prefetch_section(tier *t, section_id s, unsigned parts)
{
    for (int p = 0; p < STORE_PARTS; p++) {
        if ((parts & t->parts & (1u << p)) == 0 || t->section[s].slot[p] >= 0 || !part_on_disk(t, s, (store_part)p))
            continue;
        if (t->reads_ahead >= t->c.prefetch_depth ||
            !(p == STORE_R ? slot_tail_free(t, s) : make_room_ahead(t, s, (store_part)p)))
            return false;
        read_start(t, s, (store_part)p, false);
    }
    return true;
}

void schedule_prefetch(tier *t)
{
    if (t->c.prefetch_depth <= 0 || t->c.store == NULL || t->pos < 0)
        return;
    const int cycle = cycle_length(t), layers = t->c.layers;
    if (t->walk < t->clock) {
        t->walk = t->clock;
        t->walk_expert = 0;
    }
    for (; t->walk < t->clock + (uint64_t)cycle; t->walk++, t->walk_expert = 0) {
        const uint64_t distance = t->walk - t->clock;
        const int q = (int)(((uint64_t)t->pos + distance) % (uint64_t)cycle);
        const bool backward = q >= layers;
        const int layer = backward ? cycle - 1 - q : q;
        for (; t->walk_expert < t->c.experts; t->walk_expert++) {
            const section_id s = layer * t->c.experts + t->walk_expert;
            const unsigned parts = parts_at(t, s, distance, backward);
            if (parts != 0 && !prefetch_section(t, s, parts))
                return;
        }
    }
}
