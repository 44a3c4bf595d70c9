/* The host tier when things go wrong, and the cases that need a hand on the disk: failing transfers, misuse, changes during a
 * write, read-only runs, what must not cause traffic. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/memory/tier_sim.h"

#define OK(call)                                                                                                                 \
    do {                                                                                                                         \
        const moe_err ok_rc = (call);                                                                                            \
        cr_assert(ok_rc == MOE_OK, "%s: %s", #call, moe_error_text());                                                           \
    } while (0)

static int rounds(int n) { return getenv("MOE_TEST_LONG") != NULL ? 30 * n : n; }

/* An error ends the step with the store's sentence; the tier stays whole, can be closed, and the last commit opens. */
Test(tier_faults, failing_transfers_surface_and_nothing_hangs)
{
    int failed = 0;
    for (int round = 0; round < rounds(48); round++) {
        const int slots[] = {8, 13, 24};
        const sim_config c = {.layers = 3,
                              .experts = 4,
                              .host_parts = slots[round % 3],
                              .keep = 1,
                              .policy = "schedule",
                              .prefetch = round % 4 * 2,
                              .speculate = round % 3 == 0 ? 50 : 0,
                              .rollback = 50,
                              .touched = 70,
                              .halves = round / 12 % 2 != 0,
                              .seed = 300 + (uint64_t)round};
        sim m;
        sim_open(&m, &c);
        OK(sim_step(&m));
        OK(sim_commit(&m));
        OK(sim_step(&m));
        fake_store_fail(m.st, round % 2 == 0 ? 30 : 0, round % 2 == 0 ? 0 : 30);
        moe_err rc = MOE_OK;
        for (int i = 0; i < 4 && rc == MOE_OK; i++)
            rc = i % 2 == 0 ? sim_step(&m) : sim_commit(&m);
        OK(tier_check(m.t));
        if (rc != MOE_OK) {
            failed++;
            cr_assert(rc == MOE_E_IO && strstr(moe_error_text(), "injected failure") != NULL, "%d: %s", rc, moe_error_text());
        }
        if (round % 2 == 0)
            fake_store_fail(m.st, 0, 0);
        sim_restart(&m);
        fake_store_fail(m.st, 0, 0);
        for (int i = 0; i < 3; i++)
            OK(sim_step(&m));
        OK(sim_commit(&m));
        sim_close(&m);
    }
    cr_assert(failed > 0);
}

static void failed_flush(bool halves)
{
    const sim_config c = {
        .layers = 2, .experts = 3, .host_parts = 24, .keep = 1, .policy = "schedule", .touched = 1000, .halves = halves, .seed = 4};
    sim m;
    sim_open(&m, &c);
    OK(sim_step(&m));
    OK(sim_step(&m));
    fake_store_fail(m.st, 0, 1000);
    cr_assert_eq(sim_commit(&m), MOE_E_IO);
    cr_assert(strstr(moe_error_text(), "injected failure of a write") != NULL, "%s", moe_error_text());
    cr_assert_eq(sim_commit(&m), MOE_E_IO);
    fake_store_fail(m.st, 0, 0);
    OK(sim_commit(&m));
    OK(sim_step(&m));
    sim_close(&m);
}

Test(tier_faults, a_flush_that_failed_can_be_repeated)
{
    failed_flush(false);
    failed_flush(true);
}

Test(tier_faults, when_everything_fits_there_is_no_traffic)
{
    for (int prefetch = 0; prefetch <= 8; prefetch += 8) {
        const sim_config c = {.layers = 3,
                              .experts = 4,
                              .host_parts = 48,
                              .keep = 1,
                              .policy = "schedule",
                              .prefetch = prefetch,
                              .touched = 60,
                              .halves = prefetch > 0,
                              .seed = 8};
        sim m;
        sim_open(&m, &c);
        for (int i = 0; i < 6; i++)
            OK(sim_step(&m));
        cr_assert_eq(fake_store_reads(m.st), 0);
        cr_assert_eq(fake_store_writes(m.st), 0);
        OK(sim_commit(&m));
        const uint64_t written = fake_store_writes(m.st);
        cr_assert(written > 0);
        OK(sim_commit(&m));
        cr_assert_eq(fake_store_writes(m.st), written, "a second flush writes nothing");
        OK(sim_step(&m));
        cr_assert_eq(fake_store_reads(m.st), 0, "a flush does not push anything out");
        sim_close(&m);
    }
}

/* ---- by hand ---- */

static moe_err zero_fill(void *user, section_id s, store_part part, float *buf)
{
    (void)s, (void)part;
    if (user != NULL && *(int *)user != 0)
        return moe_fail(MOE_E_DATA, "no initial value");
    buf[0] = 1.0f;
    return MOE_OK;
}

static tier_config small(store *st, checkpoint *cp, int slots)
{
    return (tier_config){.store = st,
                         .checkpoint = cp,
                         .layers = 1,
                         .experts = 4,
                         .part_bytes = {64, 0, 64, 64, 64},
                         .host_bytes = (size_t)slots * IO_ALIGN,
                         .fill = zero_fill};
}

static store *small_store(void)
{
    return fake_store_open(&(fake_config){.sections = 4, .slots = 2, .part_bytes = 64, .seed = 3});
}

/* Behind the closed gate writes have taken the old content and are not ended: a change now must make the part dirty again. */
Test(tier_faults, a_part_changed_while_it_is_written_stays_dirty)
{
    store *st = fake_store_open(&(fake_config){.sections = 4, .slots = 2, .part_bytes = 64, .lax = true, .seed = 3});
    checkpoint *cp = fake_checkpoint_open(st, 4, 1);
    tier_config c = small(st, cp, 8);
    c.policy = "lru"; /* section 0 is written first */
    tier *t;
    OK(tier_open(&t, &c));
    tier_enter(t, (tier_phase){0, false});
    tier_lease l, other;
    fake_store_gate(st, true);
    for (section_id s = 0; s < 2; s++) {
        OK(tier_acquire(t, s, TIER_STATE, 0, &l));
        l.part[STORE_W][0] = 10.0f + (float)s;
        tier_release(t, &l, TIER_ALL, (tier_change){.dirty = TIER_STATE, .step = 1});
        OK(tier_check(t));
    }
    OK(tier_acquire(t, 2, TIER_W | TIER_M, 0, &other)); /* the last two slots: now four parts are on their way */
    while (fake_store_writes(st) < 4)
        usleep(100);
    OK(tier_acquire(t, 0, TIER_W, 0, &l)); /* a write in flight does not stop a reader */
    cr_assert_eq(l.part[STORE_W][0], 10.0f);
    cr_assert(((const float *)fake_store_place(st, 0, STORE_W, 0))[0] == 10.0f, "the old content has been taken");
    l.part[STORE_W][0] = 20.0f; /* nor a change that was not announced */
    tier_release(t, &l, TIER_ALL, (tier_change){.dirty = TIER_W, .step = 1});
    tier_release(t, &other, TIER_ALL, (tier_change){0});
    OK(tier_check(t));
    fake_store_gate(st, false);
    OK(tier_flush(t));
    const record *r = tier_catalog(t);
    cr_assert(r[0].slot >= 0 && r[0].step == 1);
    cr_assert_eq(((const float *)fake_store_place(st, 0, STORE_W, r[0].slot))[0], 20.0f);
    cr_assert_eq(((const float *)fake_store_place(st, 1, STORE_W, r[1].slot))[0], 11.0f);
    tier_close(t);
    cr_assert_str_eq(fake_store_problem(st), "");
    fake_checkpoint_close(cp);
    fake_store_close(st);
}

Test(tier_faults, w_alone_at_a_new_step_is_no_record)
{
    store *st = small_store();
    const tier_config c = small(st, NULL, 8);
    tier *t;
    OK(tier_open(&t, &c));
    tier_enter(t, (tier_phase){0, false});
    tier_lease l;
    OK(tier_acquire(t, 2, TIER_W, 0, &l));
    tier_release(t, &l, TIER_ALL, (tier_change){.dirty = TIER_W, .step = 3});
    cr_assert_eq(tier_check(t), MOE_E_DATA);
    cr_assert_eq(tier_flush(t), MOE_E_CONFIG);
    cr_assert(strstr(moe_error_text(), "section 2") != NULL, "%s", moe_error_text());
    tier_close(t);
    fake_store_close(st);
}

Test(tier_faults, misuse_is_an_error)
{
    store *st = small_store();
    tier_config c = small(st, NULL, 8);
    int failing = 0;
    c.user = &failing;
    tier *t;
    OK(tier_open(&t, &c));
    tier_enter(t, (tier_phase){0, false});
    tier_lease a, b, l;
    OK(tier_acquire(t, 0, TIER_STATE | TIER_G, TIER_G, &a));
    cr_assert_eq(tier_acquire(t, 0, TIER_W, 0, &l), MOE_E_CONFIG); /* leased for a change */
    cr_assert_eq(l.parts, 0);
    cr_assert_eq(tier_flush(t), MOE_E_CONFIG);
    OK(tier_acquire(t, 1, TIER_STATE | TIER_G, TIER_G, &b));
    cr_assert_eq(tier_acquire(t, 2, TIER_W, 0, &l), MOE_E_FULL); /* all eight slots are leased */
    OK(tier_check(t));
    tier_release(t, &b, TIER_ALL, (tier_change){0});
    cr_assert_eq(b.parts, 0);
    cr_assert_eq(tier_acquire(t, 1, TIER_G, 0, &l), MOE_E_CONFIG); /* a fresh gradient that was never made is none */
    cr_assert_eq(tier_acquire(t, 4, TIER_W, 0, &l), MOE_E_CONFIG);
    cr_assert_eq(tier_acquire(t, 1, 0, 0, &l), MOE_E_CONFIG);
    failing = 1;
    cr_assert_eq(tier_acquire(t, 3, TIER_STATE, 0, &l), MOE_E_DATA);
    OK(tier_check(t));
    failing = 0;
    OK(tier_acquire(t, 3, TIER_STATE, 0, &l));
    tier_release(t, &l, TIER_ALL, (tier_change){0});
    tier_release(t, &a, TIER_W | TIER_G, (tier_change){.dirty = TIER_G, .grad_step = 1});
    tier_release(t, &a, TIER_ALL, (tier_change){0});
    tier_set_step(t, 1);
    cr_assert_eq(tier_acquire(t, 0, TIER_W | TIER_G, TIER_G, &l), MOE_E_CONFIG); /* step 1's gradient was not applied */
    OK(tier_check(t));
    tier_close(t);
    tier_close(NULL);
    fake_store_close(st);
}

Test(tier_faults, a_configuration_that_cannot_work_is_refused)
{
    tier *t;
    tier_config c = small(NULL, NULL, 7);
    cr_assert_eq(tier_least_bytes(&c), 8 * IO_ALIGN);
    cr_assert_eq(tier_open(&t, &c), MOE_E_CONFIG);
    cr_assert(t == NULL && strstr(moe_error_text(), "two whole records") != NULL, "%s", moe_error_text());
    c = small(NULL, NULL, 15);
    cr_assert_eq(tier_open(&t, &c), MOE_E_CONFIG); /* no store, and not everything fits */
    c = small(NULL, NULL, 16);
    c.part_bytes[STORE_M] = 32;
    cr_assert_eq(tier_open(&t, &c), MOE_E_CONFIG);
    cr_assert(strstr(moe_error_text(), "uniform") != NULL, "%s", moe_error_text());
    c = small(NULL, NULL, 16);
    c.policy = "fifo";
    cr_assert_eq(tier_open(&t, &c), MOE_E_CONFIG);
    const record bad[4] = {{.slot = -1, .grad_slot = -1, .step = 5}};
    c = small(NULL, NULL, 16);
    c.records = bad;
    cr_assert_eq(tier_open(&t, &c), MOE_E_DATA);
}

/* Evaluation of a finished run: pending gradients are applied in memory, nothing reaches the disk, evicted sections start again.
 */
Test(tier_faults, a_read_only_run_writes_nothing)
{
    const sim_config sc = {
        .layers = 1, .experts = 4, .host_parts = 16, .keep = 1, .policy = "schedule", .touched = 1000, .seed = 2};
    sim m;
    sim_open(&m, &sc);
    OK(sim_step(&m));
    OK(sim_commit(&m));
    tier_close(m.t);
    const uint64_t written = fake_store_writes(m.st);
    tier_config c = {.store = m.st,
                     .checkpoint = m.cp,
                     .layers = 1,
                     .experts = 4,
                     .part_bytes = {1000, 0, 1000, 1000, 1000},
                     .host_bytes = 8 * IO_ALIGN,
                     .prefetch_depth = 4,
                     .read_only = true,
                     .records = m.records,
                     .fill = zero_fill};
    tier *t;
    OK(tier_open(&t, &c));
    tier_set_step(t, 1);
    for (int pass = 0; pass < 4; pass++) {
        tier_enter(t, (tier_phase){0, false});
        const uint8_t touch[4] = {1, 1, 1, 1};
        tier_expect(t, 0, touch);
        for (section_id s = 0; s < 4; s++) {
            const record r = tier_record(t, s);
            const bool behind = r.step < 1;
            tier_lease l;
            OK(tier_acquire(t, s, behind ? TIER_ALL : TIER_W, 0, &l));
            OK(tier_check(t));
            if (behind) {
                cr_assert_eq(r.grad_step, 1);
                l.part[STORE_W][0] = 100.0f + (float)s;
                tier_release(t, &l, TIER_M | TIER_V | TIER_G, (tier_change){.dirty = TIER_M | TIER_V, .drop = TIER_G, .step = 1});
                tier_release(t, &l, TIER_W, (tier_change){.dirty = TIER_W, .step = 1});
            } else {
                cr_assert_eq(l.part[STORE_W][0], 100.0f + (float)s);
                tier_release(t, &l, TIER_ALL, (tier_change){0});
            }
            OK(tier_check(t));
        }
    }
    OK(tier_flush(t));
    tier_close(t);
    cr_assert_eq(fake_store_writes(m.st), written);
    sim_check_saved(&m);
    m.t = NULL;
    sim_close(&m);
}

/* What is read ahead and pushed out unused is counted; what is certain is not read in vain. */
Test(tier_faults, wrong_guesses_are_counted)
{
    const sim_config c = {
        .layers = 4, .experts = 6, .host_parts = 30, .keep = 1, .policy = "schedule", .prefetch = 6, .touched = 40, .seed = 12};
    sim m;
    sim_open(&m, &c);
    for (int i = 0; i < 20; i++)
        OK(sim_step(&m));
    tier_stats s;
    tier_get_stats(m.t, &s);
    const uint64_t read = fake_store_reads(m.st) * IO_ALIGN;
    cr_assert(s.wasted_read_bytes > 0 && s.wasted_read_bytes < read / 2, "%llu of %llu bytes",
              (unsigned long long)s.wasted_read_bytes, (unsigned long long)read);
    cr_assert(s.capacity_bytes == 30 * IO_ALIGN && s.resident_bytes <= s.capacity_bytes && s.hits > 0 && s.misses > 0);
    sim_close(&m);
}
