#include "engine/plan/traffic.h"

#include <stdlib.h>
#include <string.h>

/* One part of one layer, all experts together. */
typedef struct item {
    double resident, dirty; /* of 1; dirty <= resident, and r's resident <= w's */
} item;

typedef struct cycle {
    int layers;
    double bytes[STORE_PARTS]; /* of a layer; 0: records do not have the part */
    double slot_bytes;         /* of a layer's slots for any part but r, which lies under w */
    double capacity, used;
    bool speculative;
    item *item; /* [layers, STORE_PARTS] */
} cycle;

/* Phase p of the cycle: forward 0 .. L-1, backward L-1 .. 0. */
static int phase_layer(const cycle *c, int p) { return p < c->layers ? p : 2 * c->layers - 1 - p; }

static bool reads_part(const cycle *c, int p, store_part part)
{
    const bool forward = p < c->layers;
    if (c->bytes[part] == 0)
        return false;
    if (part == STORE_W)
        return true;
    return c->speculative ? !forward && part != STORE_G : forward;
}

static bool changes_part(const cycle *c, int p, store_part part)
{
    const bool forward = p < c->layers;
    if (c->bytes[part] == 0)
        return false;
    return c->speculative ? !forward : forward ? part != STORE_G : part == STORE_G;
}

/* Phases until this part is used again after phase p. */
static int next_use(const cycle *c, int p, int layer, store_part part)
{
    const int n = 2 * c->layers;
    for (int d = 1; d <= n; d++) {
        const int q = (p + d) % n;
        if (phase_layer(c, q) == layer && (reads_part(c, q, part) || changes_part(c, q, part)))
            return d;
    }
    return n;
}

/* Lets go of `gone` of an item; of r with w. Returns bytes written. */
static double drop_some(cycle *c, int i, double gone)
{
    item *x = &c->item[i];
    const store_part part = (store_part)(i % STORE_PARTS);
    const double share = gone / x->resident;
    double written = x->dirty * share * c->bytes[part];
    x->resident -= gone;
    x->dirty -= x->dirty * share;
    if (part == STORE_W && c->bytes[STORE_R] > 0) {
        item *rest = &c->item[i + STORE_R - STORE_W];
        written += rest->dirty * share * c->bytes[STORE_R];
        rest->resident -= rest->resident * share;
        rest->dirty -= rest->dirty * share;
    }
    c->used -= gone * c->slot_bytes;
    return written;
}

/* Makes room by dropping what is needed farthest in the future; `keep` is the layer at work. Returns bytes written. */
static double make_room(cycle *c, int p, double bytes, int keep)
{
    double written = 0;
    while (c->used + bytes > c->capacity) {
        int far = -1, best = -1;
        for (int i = 0; i < c->layers * STORE_PARTS; i++) {
            const int d = next_use(c, p, i / STORE_PARTS, (store_part)(i % STORE_PARTS));
            if (i % STORE_PARTS != STORE_R && c->item[i].resident > 0 && i / STORE_PARTS != keep && d > far) {
                far = d;
                best = i;
            }
        }
        if (best < 0)
            return written; /* only the layer at work is left: its experts stream through */
        const double over = (c->used + bytes - c->capacity) / c->slot_bytes, all = c->item[best].resident;
        if (over < all) {
            written += drop_some(c, best, over);
            break; /* what is left of `over` is rounding */
        }
        written += drop_some(c, best, all);
        c->item[best].resident = 0;
    }
    return written;
}

/* What stays of a part that was missing: r where there is w, another where there is room. */
static double keep_some(cycle *c, int layer, store_part part, double missing)
{
    const double room = (c->capacity - c->used) / c->slot_bytes;
    if (part == STORE_R)
        return c->item[layer * STORE_PARTS + STORE_W].resident - c->item[layer * STORE_PARTS + STORE_R].resident;
    const double kept = missing < room ? missing : room > 0 ? room : 0;
    c->used += kept * c->slot_bytes;
    return kept;
}

static void run_phase(cycle *c, int p, phase_traffic *out)
{
    const int layer = phase_layer(c, p);
    for (int part = 0; part < STORE_PARTS; part++) {
        const bool reads = reads_part(c, p, (store_part)part), changes = changes_part(c, p, (store_part)part);
        item *x = &c->item[layer * STORE_PARTS + part];
        if (!reads && !changes)
            continue;
        const double missing = 1 - x->resident;
        if (reads)
            out->read += missing * c->bytes[part];
        if (part != STORE_R)
            out->write += make_room(c, p, missing * c->slot_bytes, layer);
        const double kept = keep_some(c, layer, (store_part)part, missing);
        x->resident += kept;
        if (changes) {
            out->write += (missing - kept) * c->bytes[part]; /* streamed through */
            x->dirty = x->resident;
        }
        if (part == STORE_G && !c->speculative && p < c->layers) { /* applied: gone */
            c->used -= x->resident * c->slot_bytes;
            *x = (item){0, 0};
        }
    }
    if (c->speculative && p >= c->layers) { /* a gradient is written beside its state, and never read again unless the step is clipped */
        item *g = &c->item[layer * STORE_PARTS + STORE_G];
        out->write += g->dirty * c->bytes[STORE_G];
        c->used -= g->resident * c->slot_bytes;
        *g = (item){0, 0};
    }
}

moe_err traffic_of(step_traffic *out, const train_plan *p, bool speculative)
{
    *out = (step_traffic){0};
    out->forward.flops = p->flops_forward;
    out->backward.flops = p->flops_backward;
    if (p->spills) {
        const double spilled = (double)(p->stash_full - p->stash) * p->groups;
        out->forward.spill = spilled;
        out->backward.spill = spilled;
    }
    if (p->resident || p->layers == 0)
        return MOE_OK;
    cycle c = {
        .layers = p->layers, .slot_bytes = (double)p->slot_bytes * (double)(p->sections / p->layers), .capacity = (double)p->tier,
        .speculative = speculative, .item = calloc((size_t)p->layers * STORE_PARTS, sizeof *c.item),
    };
    for (int part = 0; part < STORE_PARTS; part++)
        c.bytes[part] = (double)plan_part_bytes(p, (store_part)part) * (double)(p->sections / p->layers);
    if (c.item == NULL)
        return moe_fail(MOE_E_OS, "out of memory");
    for (int round = 0; round < 4; round++) { /* the last one counts: the cycle has settled */
        phase_traffic forward = {0}, backward = {0};
        for (int q = 0; q < 2 * p->layers; q++)
            run_phase(&c, q, q < p->layers ? &forward : &backward);
        out->forward.read = forward.read;
        out->forward.write = forward.write;
        out->backward.read = backward.read;
        out->backward.write = backward.write;
    }
    free(c.item);
    return MOE_OK;
}
