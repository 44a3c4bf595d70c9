/* The expert cache over the simulated disk: random schedules with delays and faults, every lease held against the bytes of the
 * files, the invariants after every call; hits against a plain list; least memory; the hot set. */
#include "tests/memory/expert_cache_fixture.h"

static void sim_setup(fixture *f, sim_disk **disk, bool records, uint64_t seed)
{
    *disk = sim_disk_new(seed);
    fixture_plan(f, records, 900);
    OK(io_make_dir(sim_disk_io(*disk), "m"));
    fixture_files(f, sim_disk_io(*disk), "m");
}

static void sim_end(fixture *f, sim_disk *disk)
{
    expert_cache_close(f->cache);
    sim_disk_free(disk);
}

/* Leases one of the wanted and checks it; the number of those that are left. */
static int take_one(fixture *f, expert_id *wanted, int n, expert_lease *l)
{
    int which;
    OK(expert_cache_acquire_any(f->cache, wanted, n, true, &which, l));
    cr_assert(which >= 0 && which < n && l->id == wanted[which]);
    expect_content(f, l);
    OK(expert_cache_check(f->cache));
    memmove(wanted + which, wanted + which + 1, (size_t)(n - which - 1) * sizeof *wanted);
    return n - 1;
}

static int wanted_of(int layer, const int32_t *e, int n, expert_id *wanted)
{
    for (int i = 0; i < n; i++)
        wanted[i] = (expert_id)(layer * EXPERTS + e[i]);
    return n;
}

/* One layer as the engine does it: choose, take each as it comes, give it back. */
static void run_layer(fixture *f, int layer, const int32_t *e, int n)
{
    expert_id wanted[EXPERTS];
    int left = wanted_of(layer, e, n, wanted);
    OK(expert_cache_choose(f->cache, layer, e, n));
    OK(expert_cache_check(f->cache));
    while (left > 0) {
        expert_lease l;
        left = take_one(f, wanted, left, &l);
        expert_cache_release(f->cache, &l);
        OK(expert_cache_check(f->cache));
    }
}

/* --- plain model of lru ------------------------------------------------------------------------------------------------------
 */

typedef struct plain {
    bool there[IDS];
    uint64_t last[IDS], clock;
    int used;
    uint64_t hits, reads;
} plain;

static void plain_layer(plain *m, int slots, int layer, const int32_t *e, int n)
{
    bool chosen[IDS] = {false};
    for (int i = 0; i < n; i++) {
        const int id = layer * EXPERTS + e[i];
        m->hits += m->there[id];
        m->last[id] = ++m->clock;
        chosen[id] = true;
    }
    for (int i = 0; i < n; i++) {
        const int id = layer * EXPERTS + e[i];
        if (m->there[id])
            continue;
        int victim = -1;
        for (int v = 0; m->used == slots && v < IDS; v++)
            if (m->there[v] && !chosen[v] && (victim < 0 || m->last[v] < m->last[victim]))
                victim = v;
        if (victim >= 0) {
            m->there[victim] = false;
            m->used--;
        }
        m->there[id] = true;
        m->used++;
        m->reads++;
    }
}

Test(expert_cache, hits_what_a_plain_list_hits)
{
    for (int records = 0; records < 2; records++)
        for (int slots = EXPERTS; slots <= IDS; slots += 5) {
            fixture f;
            sim_disk *disk;
            sim_setup(&f, &disk, records, 5);
            fixture_open(&f, slots);
            expert_cache_stats s;
            expert_cache_get_stats(f.cache, &s);
            plain m = {.used = 0};
            uint32_t x = 99;
            uint64_t accesses = 0;
            if (s.slots >= EXPERTS)
                for (int i = 0; i < 300; i++) {
                    int32_t e[EXPERTS];
                    const int n = draw_choice(&x, e);
                    run_layer(&f, i % LAYERS, e, n);
                    plain_layer(&m, s.slots, i % LAYERS, e, n);
                    accesses += (uint64_t)n;
                }
            expert_cache_get_stats(f.cache, &s);
            cr_expect(s.accesses == accesses && s.hits == m.hits && s.reads == m.reads && s.ahead_reads == 0 &&
                          s.wasted_bytes == 0,
                      "%d slots: %lu hits, %lu reads; the list: %lu, %lu", slots, s.hits, s.reads, m.hits, m.reads);
            sim_end(&f, disk);
        }
}

Test(expert_cache, two_slots_are_enough)
{
    for (int records = 0; records < 2; records++) {
        fixture f;
        sim_disk *disk;
        sim_setup(&f, &disk, records, 6);
        f.c.host_bytes = expert_cache_least_bytes(&f.c) - 1;
        FAILS(expert_cache_open(&f.cache, &f.c), MOE_E_CONFIG, "are given");
        cr_assert(f.cache == NULL);
        fixture_open(&f, 2);
        uint32_t x = 1;
        for (int i = 0; i < 60; i++) {
            int32_t e[EXPERTS];
            const int n = draw_choice(&x, e);
            run_layer(&f, i % LAYERS, e, n);
        }
        sim_end(&f, disk);
    }
}

Test(expert_cache, all_slots_leased_is_said_and_passes)
{
    fixture f;
    sim_disk *disk;
    sim_setup(&f, &disk, false, 7);
    fixture_open(&f, 2);
    expert_lease l[2], other;
    int which;
    for (int i = 0; i < 2; i++)
        take_one(&f, &(expert_id){(expert_id)i}, 1, &l[i]);
    for (int wait = 0; wait < 2; wait++) {
        FAILS(expert_cache_acquire_any(f.cache, &(expert_id){5}, 1, wait, &which, &other), MOE_E_FULL, "all 2 slots are leased");
        cr_assert(other.slot == NULL);
    }
    OK(expert_cache_acquire_any(f.cache, &(expert_id){1}, 1, false, &which, &other)); /* a second lease of what is there */
    expert_cache_release(f.cache, &other);
    expert_cache_release(f.cache, &other); /* zeroed: nothing */
    OK(expert_cache_check(f.cache));
    expect_content(&f, &l[1]);
    expert_cache_release(f.cache, &l[0]);
    take_one(&f, &(expert_id){5}, 1, &other);
    expect_content(&f, &l[1]);
    expert_cache_release(f.cache, &other);
    expert_cache_release(f.cache, &l[1]);
    sim_end(&f, disk);
}

/* --- any schedule ------------------------------------------------------------------------------------------------------------
 */

typedef struct schedule {
    fixture *f;
    expert_lease held[4 * IDS];
    int nheld;
    uint32_t x;
    uint64_t accesses;
    int failures, full;
} schedule;

static void some_acquire(schedule *s)
{
    expert_id wanted[EXPERTS];
    int32_t e[EXPERTS];
    const int n = wanted_of((int)draw(&s->x, LAYERS), e, draw_choice(&s->x, e), wanted);
    if (n == 0 || s->nheld == 4 * IDS)
        return;
    int which;
    expert_lease *l = &s->held[s->nheld];
    const bool wait = draw(&s->x, 2);
    const moe_err rc = expert_cache_acquire_any(s->f->cache, wanted, n, wait, &which, l);
    if (rc == MOE_OK && which >= 0) {
        cr_assert_eq(l->id, wanted[which]);
        s->nheld++;
        return;
    }
    cr_assert(l->slot == NULL);
    cr_assert(rc != MOE_OK || !wait, "nothing came and nothing is wrong");
    s->full += rc == MOE_E_FULL;
    if (rc == MOE_E_IO || rc == MOE_E_DATA) {
        s->failures++;
        char name[64];
        snprintf(name, sizeof name, "expert %d of layer %d", (int)(wanted[which] % EXPERTS), (int)(wanted[which] / EXPERTS));
        cr_assert(strstr(moe_error_text(), name) != NULL && strstr(moe_error_text(), "m/file") != NULL, "%s: %s", name,
                  moe_error_text());
    } else {
        cr_assert(rc == MOE_OK || rc == MOE_E_FULL, "%s", moe_error_text());
    }
}

static void some_release(schedule *s)
{
    if (s->nheld == 0)
        return;
    const int i = (int)draw(&s->x, (uint32_t)s->nheld);
    expect_content(s->f, &s->held[i]);
    expert_cache_release(s->f->cache, &s->held[i]);
    s->held[i] = s->held[--s->nheld];
}

static void some_choose(schedule *s)
{
    int32_t e[EXPERTS];
    const int n = draw_choice(&s->x, e);
    OK(expert_cache_choose(s->f->cache, (int)draw(&s->x, LAYERS), e, n));
    s->accesses += (uint64_t)n;
}

static void some_ahead(schedule *s)
{
    int32_t e[EXPERTS];
    const int n = draw_choice(&s->x, e);
    expert_cache_ahead(s->f->cache, (int)draw(&s->x, LAYERS), e, n);
}

static void some_hot(schedule *s)
{
    OK(expert_cache_save_hot(s->f->cache, "m/hot", 7));
    cr_assert(expert_cache_load_hot(s->f->cache, "m/hot", 7));
}

static void any_schedule(const char *policy, bool records, int slots, uint32_t seed, bool faults)
{
    fixture f;
    sim_disk *disk;
    sim_setup(&f, &disk, records, seed);
    f.c.policy = policy;
    f.c.depth = 1 + (int)(seed % 5);
    fixture_open(&f, slots);
    schedule s = {.f = &f, .x = seed};
    for (int step = 0; step < 600; step++) {
        const uint32_t kind = draw(&s.x, 20);
        if (faults && draw(&s.x, 10) == 0)
            sim_disk_fail(disk, SIM_READ, draw(&s.x, 2) ? "file0" : "file1", (int)draw(&s.x, 4), MOE_E_IO, "a bad block");
        if (faults && draw(&s.x, 10) == 0)
            f.damaged = (int)draw(&s.x, 2 * IDS) - IDS;
        if (kind < 8)
            some_acquire(&s);
        else if (kind < 14)
            some_release(&s);
        else if (kind < 17)
            some_choose(&s);
        else if (kind < 18)
            some_ahead(&s);
        else if (kind < 19)
            expert_cache_poll(f.cache);
        else if (step % 5 == 0)
            some_hot(&s);
        OK(expert_cache_check(f.cache));
    }
    expert_cache_stats t;
    expert_cache_get_stats(f.cache, &t);
    cr_assert(t.accesses == s.accesses && t.hits <= t.accesses && t.ahead_reads <= t.reads);
    cr_assert(faults || s.failures == 0);
    cr_assert(!faults || s.failures > 0 || t.reads < 20, "no fault was ever seen");
    for (int i = 0; i < s.nheld; i++)
        expect_content(&f, &s.held[i]);
    sim_end(&f, disk);
}

Test(expert_cache, any_schedule_leases_the_right_bytes)
{
    for (uint32_t seed = 1; seed <= 24; seed++)
        any_schedule(cache_policy_name((int)(seed % 3)), seed % 2, 2 + (int)(seed * 5 % IDS), seed, false);
}

Test(expert_cache, any_schedule_with_a_disk_that_fails)
{
    for (uint32_t seed = 1; seed <= 24; seed++)
        any_schedule(cache_policy_name((int)(seed % 3)), seed % 2, 2 + (int)(seed * 7 % IDS), seed, true);
}

/* --- ahead, hot --------------------------------------------------------------------------------------------------------------
 */

Test(expert_cache, what_was_read_ahead_is_a_hit_or_wasted)
{
    fixture f;
    sim_disk *disk;
    sim_setup(&f, &disk, false, 8);
    fixture_open(&f, 8);
    expert_cache_stats s;
    expert_cache_ahead(f.cache, 1, (int32_t[]){0, 2, 4}, 3);
    for (int i = 0; i < 100; i++)
        expert_cache_poll(f.cache);
    expert_cache_get_stats(f.cache, &s);
    cr_assert(s.reads == 3 && s.ahead_reads == 3 && s.accesses == 0);
    OK(expert_cache_choose(f.cache, 1, (int32_t[]){0, 2}, 2));
    expert_cache_get_stats(f.cache, &s);
    cr_assert(s.reads == 3 && s.hits == 2 && s.wasted_bytes == 0);
    uint32_t x = 3;
    for (int i = 0; i < 30; i++) { /* 4 of layer 1 is never chosen and goes */
        int32_t e[EXPERTS];
        run_layer(&f, 2 * (i % 2), e, draw_choice(&x, e));
    }
    expert_cache_get_stats(f.cache, &s);
    const expert_range *r = f.range[EXPERTS + 4];
    cr_assert_eq(s.wasted_bytes, r[0].bytes + r[1].bytes + r[2].bytes);
    sim_end(&f, disk);
}

Test(expert_cache, the_hot_set_comes_back)
{
    fixture f;
    sim_disk *disk;
    sim_setup(&f, &disk, false, 9);
    fixture_open(&f, 5);
    for (int i = 0; i < LAYERS; i++)
        run_layer(&f, i, (int32_t[]){i, i + 2}, 2);
    OK(expert_cache_save_hot(f.cache, "m/hot", 42));
    expert_cache_close(f.cache);
    fixture_open(&f, 5);
    cr_assert(!expert_cache_load_hot(f.cache, "m/hot", 43), "another model's");
    cr_assert(!expert_cache_load_hot(f.cache, "m/none", 42), "a missing one");
    cr_assert(expert_cache_load_hot(f.cache, "m/hot", 42));
    for (int i = 0; i < 100; i++)
        expert_cache_poll(f.cache);
    OK(expert_cache_choose(f.cache, 2, (int32_t[]){2, 4}, 2));
    expert_cache_stats s;
    expert_cache_get_stats(f.cache, &s);
    cr_expect(s.hits == 2 && s.reads == s.ahead_reads && s.reads >= 4, "%lu hits, %lu reads, %lu of them ahead", s.hits, s.reads,
              s.ahead_reads);
    OK(expert_cache_check(f.cache));
    sim_end(&f, disk);
}

Test(expert_cache, a_damaged_hot_set_is_as_good_as_none)
{
    fixture f;
    sim_disk *disk;
    sim_setup(&f, &disk, false, 10);
    fixture_open(&f, 6);
    run_layer(&f, 0, (int32_t[]){0, 1, 2, 3}, 4);
    OK(expert_cache_save_hot(f.cache, "m/hot", 42));
    void *good;
    size_t bytes;
    OK(io_read_file(f.c.io, "m/hot", 1 << 20, &good, &bytes));
    for (size_t i = 0; i < bytes; i++) {
        cr_assert(sim_disk_flip(disk, "m/hot", i));
        cr_expect(!expert_cache_load_hot(f.cache, "m/hot", 42), "byte %zu is wrong", i);
        OK(io_write_file(f.c.io, "m/hot", good, bytes));
    }
    for (size_t n = 0; n < bytes; n++) {
        OK(io_write_file(f.c.io, "m/hot", good, n));
        cr_expect(!expert_cache_load_hot(f.cache, "m/hot", 42), "%zu of %zu bytes", n, bytes);
    }
    free(good);
    OK(expert_cache_check(f.cache));
    sim_end(&f, disk);
}
