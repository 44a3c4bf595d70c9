#include "engine/plan/traffic.h"

#include <stdlib.h>
#include <string.h>

/* One part (w, m, v or g) of one layer, all experts together. */
typedef struct item {
    double resident, dirty; /* bytes; dirty <= resident */
} item;

typedef struct cycle {
    int layers;
    double layer_bytes, capacity, used;
    bool speculative, has_v;
    item *item; /* [layers, STORE_PARTS] */
} cycle;

/* Phase p of the cycle: forward 0 .. L-1, backward L-1 .. 0. */
static int phase_layer(const cycle *c, int p) { return p < c->layers ? p : 2 * c->layers - 1 - p; }

static bool reads_part(const cycle *c, int p, store_part part)
{
    const bool forward = p < c->layers;
    if (part == STORE_V && !c->has_v)
        return false;
    if (part == STORE_W)
        return true;
    return c->speculative ? !forward && part != STORE_G : forward;
}

static bool changes_part(const cycle *c, int p, store_part part)
{
    const bool forward = p < c->layers;
    if (part == STORE_V && !c->has_v)
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

/* Makes room by dropping what is needed farthest in the future; `keep` is the layer at work. Returns bytes written. */
static double make_room(cycle *c, int p, double bytes, int keep)
{
    double written = 0;
    while (c->used + bytes > c->capacity) {
        int far = -1, best = -1;
        for (int i = 0; i < c->layers * STORE_PARTS; i++) {
            const int d = next_use(c, p, i / STORE_PARTS, (store_part)(i % STORE_PARTS));
            if (c->item[i].resident > 0 && i / STORE_PARTS != keep && d > far) {
                far = d;
                best = i;
            }
        }
        if (best < 0)
            return written; /* only the layer at work is left: its experts stream through */
        item *x = &c->item[best];
        const double over = c->used + bytes - c->capacity, gone = over < x->resident ? over : x->resident;
        const double dirty = x->dirty * gone / x->resident;
        written += dirty;
        x->resident -= gone;
        x->dirty -= dirty;
        c->used -= gone;
    }
    return written;
}

static void run_phase(cycle *c, int p, phase_traffic *out)
{
    const int layer = phase_layer(c, p);
    for (int part = 0; part < STORE_PARTS; part++) {
        const bool reads = reads_part(c, p, (store_part)part), changes = changes_part(c, p, (store_part)part);
        item *x = &c->item[layer * STORE_PARTS + part];
        if (!reads && !changes)
            continue;
        const double missing = c->layer_bytes - x->resident;
        if (reads)
            out->read += missing;
        out->write += make_room(c, p, missing, layer);
        const double room = c->capacity - c->used, kept = missing < room ? missing : room > 0 ? room : 0;
        x->resident += kept;
        c->used += kept;
        if (changes) {
            out->write += missing - kept; /* streamed through */
            x->dirty = x->resident;
        }
        if (part == STORE_G && !c->speculative && p < c->layers) { /* applied: gone */
            c->used -= x->resident;
            *x = (item){0, 0};
        }
    }
    if (c->speculative && p >= c->layers) { /* a gradient is written beside its state, and never read again unless the step is clipped */
        item *g = &c->item[layer * STORE_PARTS + STORE_G];
        out->write += g->dirty;
        c->used -= g->resident;
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
        .layers = p->layers, .layer_bytes = (double)p->part_bytes * (double)(p->sections / p->layers), .capacity = (double)p->tier,
        .speculative = speculative, .has_v = plan_part_bytes(p, STORE_V) > 0,
        .item = calloc((size_t)p->layers * STORE_PARTS, sizeof *c.item),
    };
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
