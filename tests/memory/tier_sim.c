#include "tests/memory/tier_sim.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

enum { FLOATS = 250, HALF_FLOATS = 130, PART_BYTES = FLOATS * 4, HALF_BYTES = HALF_FLOATS * 4 };

uint64_t sim_random(sim *m, uint64_t n)
{
    m->random ^= m->random << 13;
    m->random ^= m->random >> 7;
    m->random ^= m->random << 17;
    return (m->random >> 11) % n;
}

static uint32_t pattern(section_id s, int part, uint64_t step, int variant, int i)
{
    uint64_t h = (uint64_t)s * 0x9e3779b97f4a7c15u + (uint64_t)part * 0xbf58476d1ce4e5b9u + step * 0x94d049bb133111ebu +
                 (uint64_t)variant * 0xd6e8feb86659fd93u + (uint64_t)i * 0xff51afd7ed558ccdu;
    h ^= h >> 31;
    h *= 0x7fb5d329728ea185u;
    return (uint32_t)(h >> 32);
}

static int part_floats(const sim *m, int part) { return m->c.halves && part <= STORE_R ? HALF_FLOATS : FLOATS; }

static void write_pattern(const sim *m, float *buf, section_id s, int part, uint64_t step, int variant)
{
    for (int i = 0; i < part_floats(m, part); i++) {
        const uint32_t v = step == 0 && part > STORE_R ? 0 : pattern(s, part, step, variant, i);
        memcpy(&buf[i], &v, sizeof v);
    }
}

static void check_pattern(const sim *m, const float *buf, section_id s, int part, uint64_t step, int variant, const char *when)
{
    for (int i = 0; i < part_floats(m, part); i++) {
        const uint32_t want = step == 0 && part > STORE_R ? 0 : pattern(s, part, step, variant, i);
        uint32_t got;
        memcpy(&got, &buf[i], sizeof got);
        cr_assert(got == want, "%s: section %d part %d [%d]: %08x, expected %08x (step %llu variant %d)", when, s, part, i, got,
                  want, (unsigned long long)step, variant);
    }
}

static bool has_part(const sim *m, int p) { return p == STORE_V ? !m->c.no_v : p != STORE_R || m->c.halves; }

static moe_err fill(void *user, section_id s, store_part part, float *buf)
{
    const sim *m = user;
    cr_assert(has_part(m, (int)part), "a part that does not exist is filled");
    write_pattern(m, buf, s, (int)part, 0, 0);
    return MOE_OK;
}

static void check(sim *m)
{
    const moe_err rc = tier_check(m->t);
    cr_assert(rc == MOE_OK, "%s", moe_error_text());
    if (m->st != NULL)
        cr_assert_str_eq(fake_store_problem(m->st), "");
}

static void check_record(sim *m, section_id s)
{
    const record r = tier_record(m->t, s);
    const sim_section *x = &m->now[s];
    const uint64_t grad = x->grad_step > x->step ? x->grad_step : 0;
    cr_assert(r.step == x->step && r.grad_step == grad, "section %d: record %llu+%llu, expected %llu+%llu", s,
              (unsigned long long)r.step, (unsigned long long)r.grad_step, (unsigned long long)x->step, (unsigned long long)grad);
}

static void open_tier(sim *m, const record *records)
{
    const sim_config *c = &m->c;
    const tier_config config = {.store = m->st,
                                .checkpoint = m->cp,
                                .layers = c->layers,
                                .experts = c->experts,
                                .part_bytes = {c->halves ? HALF_BYTES : PART_BYTES, c->halves ? HALF_BYTES : 0, PART_BYTES,
                                               c->no_v ? 0 : PART_BYTES, PART_BYTES},
                                .host_bytes = (size_t)c->host_parts * IO_ALIGN * (c->halves ? 2 : 1), /* w and r: a page each */
                                .policy = c->policy,
                                .lfu_threshold = 2,
                                .lfu_decay = 0.5,
                                .prefetch_depth = c->prefetch,
                                .records = records,
                                .fill = fill,
                                .user = m};
    cr_assert(tier_open(&m->t, &config) == MOE_OK, "%s", moe_error_text());
    tier_set_step(m->t, m->finished);
    check(m);
}

void sim_open(sim *m, const sim_config *c)
{
    *m = (sim){.c = *c, .sections = c->layers * c->experts, .random = c->seed * 0x9e3779b97f4a7c15u + 12345};
    m->now = calloc((size_t)m->sections, sizeof *m->now);
    m->saved = calloc((size_t)m->sections, sizeof *m->saved);
    m->records = calloc((size_t)m->sections, sizeof *m->records);
    for (int s = 0; s < m->sections; s++)
        m->records[s].slot = m->records[s].grad_slot = -1;
    if (!c->no_store) {
        const fake_config f = {.sections = m->sections,
                               .slots = c->keep + 1 + (c->speculate > 0),
                               .part_bytes = PART_BYTES,
                               .half_bytes = c->halves ? HALF_BYTES : 0,
                               .delay_us = c->delay_us,
                               .seed = c->seed + 1};
        m->st = fake_store_open(&f);
        m->cp = fake_checkpoint_open(m->st, m->sections, c->keep);
    }
    open_tier(m, NULL);
}

void sim_close(sim *m)
{
    tier_close(m->t);
    if (m->st != NULL) {
        cr_assert_str_eq(fake_store_problem(m->st), "");
        fake_checkpoint_close(m->cp);
        fake_store_close(m->st);
    }
    free(m->now);
    free(m->saved);
    free(m->records);
}

/* ---- one lease ---- */

static unsigned forward_parts(void *user, section_id s)
{
    sim *m = user;
    const record r = tier_record(m->t, s);
    unsigned parts = TIER_W;
    if (r.step < m->finished)
        parts |= TIER_R | TIER_M | TIER_V;
    if (r.grad_step != 0 && r.grad_step <= m->finished)
        parts |= TIER_G;
    return parts;
}

static void check_lease(sim *m, const tier_lease *l)
{
    const sim_section *x = &m->now[l->section];
    for (int p = 0; p < STORE_PARTS; p++)
        cr_assert(has_part(m, p) || (l->part[p] == NULL && (l->parts & (1u << p)) == 0),
                  "part %d, which does not exist, is leased", p);
    for (int p = 0; p < STORE_G; p++)
        if (l->part[p] != NULL)
            check_pattern(m, l->part[p], l->section, p, x->step, x->variant, "lease");
    if (l->part[STORE_G] != NULL && x->grad_step != 0)
        check_pattern(m, l->part[STORE_G], l->section, STORE_G, x->grad_step, x->grad_count, "gradient");
}

/* The update to `step`, in one of the orders the engine may release in. */
static void update(sim *m, tier_lease *l, uint64_t step, int variant)
{
    sim_section *x = &m->now[l->section];
    const section_id s = l->section;
    const bool drop = (l->parts & TIER_G) != 0;
    for (int p = 0; p < STORE_G; p++)
        if (has_part(m, p))
            write_pattern(m, l->part[p], s, p, step, variant);
    x->step = step;
    x->variant = variant;
    if (drop)
        x->grad_step = 0;
    const unsigned rest = TIER_R | TIER_M | TIER_V;
    const tier_change change = {.dirty = rest, .drop = TIER_G, .step = step};
    if (drop && sim_random(m, 2) == 0) {
        tier_release(m->t, l, rest, change);
        tier_release(m->t, l, TIER_G, (tier_change){.drop = TIER_G});
    } else {
        tier_release(m->t, l, rest | TIER_G, change);
    }
    check(m);
    check_pattern(m, l->part[STORE_W], s, STORE_W, step, variant, "after the update");
    tier_release(m->t, l, TIER_ALL, (tier_change){.dirty = TIER_W, .step = step});
    check(m);
    check_record(m, s);
}

static void forward_section(sim *m, tier_lease *l)
{
    const section_id s = l->section;
    check_lease(m, l);
    if ((l->parts & TIER_M) != 0)
        update(m, l, m->finished, 1);
    else
        tier_release(m->t, l, TIER_ALL, (tier_change){0});
    check(m);
    check_record(m, s);
}

/* The gradient of step finished + 1 and, on speculation, the update at once. */
static void backward_section(sim *m, tier_lease *l, bool update_too)
{
    sim_section *x = &m->now[l->section];
    const section_id s = l->section;
    check_lease(m, l);
    if (x->grad_step == 0)
        x->grad_count = 0;
    x->grad_step = m->finished + 1;
    write_pattern(m, l->part[STORE_G], s, STORE_G, x->grad_step, ++x->grad_count);
    const tier_change gradient = {.dirty = TIER_G, .grad_step = x->grad_step};
    if (!update_too) {
        if (sim_random(m, 2) == 0)
            tier_release(m->t, l, TIER_W, (tier_change){0});
        tier_release(m->t, l, TIER_ALL, gradient);
    } else {
        const bool at_once = sim_random(m, 2) == 0;
        if (!at_once)
            tier_release(m->t, l, TIER_G, gradient);
        x->before_step = x->step;
        x->before_variant = x->variant;
        x->speculative = true;
        x->step = m->finished + 1;
        x->variant = 0;
        for (int p = 0; p < STORE_G; p++)
            if (has_part(m, p))
                write_pattern(m, l->part[p], s, p, x->step, 0);
        tier_release(m->t, l, TIER_ALL,
                     (tier_change){.dirty = at_once ? TIER_ALL : TIER_STATE, .step = x->step, .grad_step = x->grad_step});
    }
    check(m);
    check_record(m, s);
}

/* ---- phases ---- */

static moe_err run_layer(sim *m, int layer, bool backward, const uint8_t *touch, bool update_too)
{
    section_id wanted[64];
    int n = 0;
    for (int e = 0; e < m->c.experts; e++)
        if (touch[e] != 0)
            wanted[n++] = layer * m->c.experts + e;
    unsigned parts = TIER_W | TIER_G | (update_too ? TIER_R | TIER_M | TIER_V : 0u);
    tier_lease held = {0};
    moe_err rc = MOE_OK;
    while (n > 0 && rc == MOE_OK) {
        tier_lease l;
        int which = 0;
        if (!backward)
            rc = tier_acquire_any(m->t, wanted, n, forward_parts, m, 0, &which, &l);
        else
            rc = tier_acquire(m->t, wanted[0], parts, TIER_G, &l);
        check(m);
        if (rc != MOE_OK)
            break;
        cr_assert_eq(l.section, wanted[which]);
        if (held.parts != 0 && backward)
            backward_section(m, &held, update_too);
        else if (held.parts != 0)
            forward_section(m, &held);
        memmove(&wanted[which], &wanted[which + 1], (size_t)(n - which - 1) * sizeof wanted[0]);
        n--;
        held = l;
        if (m->c.hold && n > 0)
            continue;
        (backward ? backward_section(m, &held, update_too) : forward_section(m, &held));
    }
    tier_release(m->t, &held, TIER_ALL, (tier_change){0});
    check(m);
    return rc;
}

static void choose_touches(sim *m, uint8_t *touch)
{
    for (int s = 0; s < m->sections; s++) {
        const int e = s % m->c.experts; /* skewed: the first experts are hot */
        const uint64_t chance = (uint64_t)m->c.touched * 2 * (uint64_t)(m->c.experts - e) / (uint64_t)(m->c.experts + 1);
        touch[s] = sim_random(m, 100) < chance;
    }
}

static moe_err forward(sim *m, const uint8_t *touch)
{
    for (int l = 0; l < m->c.layers; l++) {
        tier_enter(m->t, (tier_phase){l, false});
        check(m);
        tier_expect(m->t, l, &touch[l * m->c.experts]);
        check(m);
        TRY(run_layer(m, l, false, &touch[l * m->c.experts], false));
    }
    return MOE_OK;
}

static moe_err backward(sim *m, const uint8_t *touch, bool update_too)
{
    for (int l = m->c.layers - 1; l >= 0; l--) {
        tier_enter(m->t, (tier_phase){l, true});
        check(m);
        TRY(run_layer(m, l, true, &touch[l * m->c.experts], update_too));
    }
    return MOE_OK;
}

static void model_resolve(sim *m, bool keep)
{
    for (int s = 0; s < m->sections; s++) {
        sim_section *x = &m->now[s];
        if (!x->speculative)
            continue;
        x->speculative = false;
        if (keep) {
            x->grad_step = 0;
        } else {
            x->step = x->before_step;
            x->variant = x->before_variant;
        }
    }
    m->speculating = false;
}

moe_err sim_step(sim *m)
{
    uint8_t touch[1024];
    const bool speculate = (int)sim_random(m, 100) < m->c.speculate;
    const int groups = 1 + (int)sim_random(m, (uint64_t)(m->c.groups > 0 ? m->c.groups : 1));
    if (speculate) {
        tier_speculate_begin(m->t, m->finished + 1);
        m->speculating = true;
    }
    for (int g = 0; g < groups; g++) {
        choose_touches(m, touch);
        TRY(forward(m, touch));
        TRY(backward(m, touch, speculate && g == groups - 1));
    }
    if (speculate) {
        const bool keep = (int)sim_random(m, 100) >= m->c.rollback;
        TRY(tier_speculate_resolve(m->t, keep));
        model_resolve(m, keep);
    }
    m->finished++;
    tier_set_step(m->t, m->finished);
    check(m);
    for (int s = 0; s < m->sections; s++)
        check_record(m, s);
    return MOE_OK;
}

moe_err sim_evaluate(sim *m)
{
    uint8_t touch[1024];
    choose_touches(m, touch);
    return forward(m, touch);
}

moe_err sim_abandon(sim *m)
{
    uint8_t touch[1024];
    choose_touches(m, touch);
    TRY(forward(m, touch));
    for (int l = m->c.layers - 1; l > 0; l--) {
        tier_enter(m->t, (tier_phase){l, true});
        TRY(run_layer(m, l, true, &touch[l * m->c.experts], false));
    }
    tier_abandon(m->t);
    for (int s = 0; s < m->sections; s++)
        if (m->now[s].grad_step > m->finished)
            m->now[s].grad_step = 0;
    check(m);
    for (int s = 0; s < m->sections; s++)
        check_record(m, s);
    return MOE_OK;
}

/* ---- checkpoints ---- */

static void check_places(sim *m, const record *records, const sim_section *truth)
{
    for (int s = 0; s < m->sections; s++) {
        const record *r = &records[s];
        cr_assert(r->step == truth[s].step && r->grad_step == truth[s].grad_step,
                  "section %d: on disk %llu+%llu, expected %llu+%llu", s, (unsigned long long)r->step,
                  (unsigned long long)r->grad_step, (unsigned long long)truth[s].step, (unsigned long long)truth[s].grad_step);
        for (int p = 0; p < STORE_G && r->slot >= 0; p++)
            if (has_part(m, p))
                check_pattern(m, fake_store_place(m->st, s, (store_part)p, r->slot), s, p, truth[s].step, truth[s].variant,
                              "checkpoint");
        for (int p = 0; p < STORE_PARTS; p++)
            cr_assert(has_part(m, p) || r->sum[p] == 0, "part %d, which does not exist, has a checksum", p);
        if (r->grad_step != 0)
            check_pattern(m, fake_store_place(m->st, s, STORE_G, r->grad_slot), s, STORE_G, r->grad_step, truth[s].grad_count,
                          "checkpoint");
    }
}

moe_err sim_commit(sim *m)
{
    const moe_err rc = tier_flush(m->t);
    check(m);
    TRY(rc);
    if (m->st == NULL)
        return MOE_OK;
    const record *catalog = tier_catalog(m->t);
    check_places(m, catalog, m->now);
    fake_checkpoint_commit(m->cp, catalog);
    memcpy(m->records, catalog, (size_t)m->sections * sizeof *catalog);
    memcpy(m->saved, m->now, (size_t)m->sections * sizeof *m->now);
    m->saved_step = m->finished;
    m->committed = true;
    return MOE_OK;
}

void sim_check_saved(sim *m)
{
    if (m->committed)
        check_places(m, m->records, m->saved);
}

void sim_restart(sim *m)
{
    tier_close(m->t);
    sim_check_saved(m);
    memcpy(m->now, m->saved, (size_t)m->sections * sizeof *m->now);
    m->finished = m->saved_step;
    m->speculating = false;
    open_tier(m, m->records);
}
