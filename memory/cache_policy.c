/* The set of those that may go, and who of them goes; the policies lru and lfu. Owns the tables of cache_policy; the chances of
 * `learned` are made in cache_policy_learned.c. One thread. Rule: best[layer] is right or marked stale. Cost: keys are compared
 * within a layer when something in it changed (O(experts)), and between layers for each victim (O(layers)). */
#include "memory/cache_policy.h"

#include <stdlib.h>
#include <string.h>

#include "engine/base/carve.h"
#include "memory/cache_policy_private.h"

/* lfu: what a pass leaves of a hit (half after 16), and the hits from which an expert counts as hot. */
#define LFU_FADE 0.957603281f
#define LFU_HOT  2.0f
/* Choices of more than this part of a layer are a scan, not a preference. */
#define SCAN 0.75f

static void lru_touch(cache_policy *p, expert_id id) { p->key[id] = -(double)p->uses; }

/* Hot ones are a band of their own that goes last, fewest hits first; the cold go in the order of their last use. */
static void lfu_key(cache_policy *p, size_t id)
{
    const double last = -0x1p-52 * (double)p->used[id];
    p->key[id] = p->hits[id] < LFU_HOT ? last : -1.0 - (double)p->hits[id] + last;
}

static void lfu_choose(cache_policy *p, int layer, const int32_t *expert, int n)
{
    (void)expert;
    (void)n;
    const size_t first = (size_t)layer * (size_t)p->experts;
    for (size_t id = first; id < first + (size_t)p->experts; id++) {
        p->hits[id] *= LFU_FADE;
        lfu_key(p, id);
    }
    p->best[layer] = BEST_STALE;
}

static void lfu_touch(cache_policy *p, expert_id id)
{
    p->hits[id] += 1.0f;
    p->used[id] = p->uses;
    lfu_key(p, id);
}

static const policy_kind kinds[] = {
    {.name = "learned", .by_layer = true, .choose = chances_choose, .tokens = chances_tokens},
    {.name = "lru", .touch = lru_touch},
    {.name = "lfu", .choose = lfu_choose, .touch = lfu_touch},
};
enum { KINDS = sizeof kinds / sizeof kinds[0] };

const char *cache_policy_name(int i) { return i < 0 || i >= KINDS ? NULL : kinds[i].name; }

/* --- open and close ----------------------------------------------------------------------------------------------------------
 */

static size_t layout(cache_policy *p, char *base, int layers, int experts)
{
    carve v = {base, 0};
    const size_t n = (size_t)layers * (size_t)experts;
    p->key = carve_bytes(&v, n * sizeof *p->key);
    p->flags = carve_bytes(&v, n * sizeof *p->flags);
    p->best = carve_bytes(&v, (size_t)layers * sizeof *p->best);
    p->chosen = carve_bytes(&v, (size_t)experts * sizeof *p->chosen);
    p->hits = carve_bytes(&v, n * sizeof *p->hits);
    p->used = carve_bytes(&v, n * sizeof *p->used);
    return v.used + chances_layout(&p->learned, base == NULL ? NULL : base + v.used, layers, experts);
}

size_t cache_policy_bytes(int layers, int experts)
{
    cache_policy measure = {0};
    return sizeof measure + layout(&measure, NULL, layers, experts) + CARVE_ALIGN;
}

static const policy_kind *find_kind(const char *name)
{
    if (name == NULL || name[0] == '\0')
        return &kinds[0];
    for (int i = 0; i < KINDS; i++)
        if (strcmp(kinds[i].name, name) == 0)
            return &kinds[i];
    return NULL;
}

moe_err cache_policy_open(cache_policy **out, const char *name, int layers, int experts)
{
    *out = NULL;
    const policy_kind *kind = find_kind(name);
    if (kind == NULL)
        return moe_fail(MOE_E_CONFIG, "there is no cache policy \"%s\"; known: learned, lru, lfu", name);
    if (layers < 1 || experts < 1 || layers > CACHE_EXPERTS_MAX / experts)
        return moe_fail(MOE_E_CONFIG,
                        "cache policy: %d layers of %d experts; expected at least one of each and at most %d in all", layers,
                        experts, CACHE_EXPERTS_MAX);
    cache_policy measure = {0};
    const size_t head = (sizeof measure + CARVE_ALIGN - 1) / CARVE_ALIGN * CARVE_ALIGN;
    const size_t bytes = head + layout(&measure, NULL, layers, experts);
    cache_policy *p = aligned_alloc(CARVE_ALIGN, bytes);
    if (p == NULL)
        return moe_fail(MOE_E_OS, "cache policy: out of memory (%zu bytes)", bytes);
    memset(p, 0, bytes);
    layout(p, (char *)p + head, layers, experts);
    p->kind = kind;
    p->layers = layers;
    p->experts = experts;
    for (int l = 0; l < layers; l++)
        p->best[l] = BEST_NONE;
    chances_begin(p);
    *out = p;
    return MOE_OK;
}

void cache_policy_close(cache_policy *p) { free(p); }

/* --- what happens ------------------------------------------------------------------------------------------------------------
 */

void cache_policy_choose(cache_policy *p, int layer, const int32_t *expert, int n)
{
    const expert_id first = (expert_id)layer * (expert_id)p->experts;
    p->at = layer;
    for (int e = 0; e < p->experts; e++)
        if (p->flags[first + (expert_id)e] & DUE)
            cache_policy_set_due(p, first + (expert_id)e, false);
    if (p->kind->choose != NULL)
        p->kind->choose(p, layer, expert, n);
    for (int i = 0; p->kind->by_layer && i < n; i++)
        cache_policy_set_due(p, first + (expert_id)expert[i], true);
}

bool cache_policy_is_scan(const cache_policy *p, int n) { return (float)n > SCAN * (float)p->experts; }

void cache_policy_tokens(cache_policy *p, int layer, const int32_t *ids, int64_t T, int K)
{
    if (p->kind->tokens != NULL)
        p->kind->tokens(p, layer, ids, T, K);
}

static void key_changed(cache_policy *p, expert_id id) { p->best[id / (expert_id)p->experts] = BEST_STALE; }

void cache_policy_touch(cache_policy *p, expert_id id)
{
    p->uses++;
    p->flags[id] &= (uint8_t)~DUE;
    if (p->kind->touch != NULL)
        p->kind->touch(p, id);
    key_changed(p, id);
}

static void set_flag(cache_policy *p, expert_id id, uint8_t flag, bool on)
{
    const uint8_t was = p->flags[id], is = on ? was | flag : was & (uint8_t)~flag;
    if (was == is)
        return;
    p->flags[id] = is;
    key_changed(p, id);
}

void cache_policy_set_due(cache_policy *p, expert_id id, bool due) { set_flag(p, id, DUE, due); }
void cache_policy_enter(cache_policy *p, expert_id id) { set_flag(p, id, MAY_GO, true); }
void cache_policy_leave(cache_policy *p, expert_id id) { set_flag(p, id, MAY_GO, false); }

/* --- the victim --------------------------------------------------------------------------------------------------------------
 */

/* Of equals the first, so that nothing but the calls decides. */
static int32_t best_of_layer(const cache_policy *p, int layer, uint8_t wanted)
{
    const size_t first = (size_t)layer * (size_t)p->experts;
    int32_t best = BEST_NONE;
    for (int32_t e = 0; e < p->experts; e++)
        if (p->flags[first + (size_t)e] == wanted && (best < 0 || p->key[first + (size_t)e] > p->key[first + (size_t)best]))
            best = e;
    return best;
}

/* From where the computation is to the layer's next turn, in passes: in (0, 1]. */
static double way(const cache_policy *p, int layer)
{
    const int steps = layer > p->at ? layer - p->at : layer - p->at + p->layers;
    return (double)steps / (double)p->layers;
}

double cache_policy_key(const cache_policy *p, expert_id id)
{
    return p->key[id] + (p->kind->by_layer ? way(p, (int)(id / (expert_id)p->experts)) : 0.0);
}

static bool find_victim(cache_policy *p, bool due, expert_id *id)
{
    bool found = false;
    double worst = 0;
    for (int l = 0; l < p->layers; l++) {
        if (!due && p->best[l] == BEST_STALE)
            p->best[l] = best_of_layer(p, l, MAY_GO);
        const int32_t e = due ? best_of_layer(p, l, MAY_GO | DUE) : p->best[l];
        if (e < 0)
            continue;
        const expert_id candidate = (expert_id)l * (expert_id)p->experts + (expert_id)e;
        const double key = cache_policy_key(p, candidate);
        if (found && key <= worst)
            continue;
        found = true;
        worst = key;
        *id = candidate;
    }
    return found;
}

bool cache_policy_victim(cache_policy *p, bool due_too, expert_id *id)
{
    *id = 0;
    return find_victim(p, false, id) || (due_too && find_victim(p, true, id));
}

/* --- check -------------------------------------------------------------------------------------------------------------------
 */

moe_err cache_policy_check(const cache_policy *p)
{
    if (p->at < 0 || p->at >= p->layers)
        return moe_fail(MOE_E_DATA, "cache policy: at layer %d of %d", p->at, p->layers);
    for (int l = 0; l < p->layers; l++) {
        const int32_t best = p->best[l];
        if (best != BEST_STALE && best != best_of_layer(p, l, MAY_GO))
            return moe_fail(MOE_E_DATA, "cache policy: layer %d would give up expert %d, expected %d", l, best,
                            best_of_layer(p, l, MAY_GO));
    }
    for (int e = 0; e < p->experts; e++)
        if (p->chosen[e] != 0)
            return moe_fail(MOE_E_DATA, "cache policy: expert %d is left in the scratch of a choice", e);
    const size_t n = (size_t)p->layers * (size_t)p->experts;
    for (size_t id = 0; id < n; id++) {
        if (p->key[id] != p->key[id] || (p->flags[id] & ~(MAY_GO | DUE)) != 0)
            return moe_fail(MOE_E_DATA, "cache policy: expert %zu has key %g and flags %d", id, p->key[id], p->flags[id]);
        if (p->learned.last[id] > p->learned.passes[id / (size_t)p->experts])
            return moe_fail(MOE_E_DATA, "cache policy: expert %zu was last chosen in a pass that is still to come", id);
    }
    return MOE_OK;
}
