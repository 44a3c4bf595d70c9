/* The tier and the stash over real files: steps, commits, a restart from the checkpoint, and a record damaged on disk. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "memory/stash.h"
#include "memory/tier.h"
#include "tests/memory/scratch.h"

#define OK(call)                                                                                                                 \
    do {                                                                                                                         \
        const moe_err ok_rc = (call);                                                                                            \
        cr_assert(ok_rc == MOE_OK, "%s: %s", #call, moe_error_text());                                                           \
    } while (0)

enum { LAYERS = 3, EXPERTS = 4, SECTIONS = LAYERS * EXPERTS, FLOATS = 25000, STEPS = 5, SPILL = 8 << 20 };

typedef struct rig {
    scratch dir;
    char store_dir[SCRATCH_PATH], checkpoint_dir[SCRATCH_PATH], note[512];
    io *io;
    store *st;
    checkpoint *cp;
    tier *t;
    uint64_t finished;
    bool direct, no_v;
} rig;

static float value(section_id s, int part, uint64_t step) { return (float)(s * 1000 + part * 100) + (float)step; }

static moe_err fill(void *user, section_id s, store_part part, float *buf)
{
    (void)user;
    for (int i = 0; i < FLOATS; i++)
        buf[i] = part == STORE_W ? value(s, STORE_W, 0) : 0.0f;
    return MOE_OK;
}

static void rig_open(rig *r, bool create, int slots)
{
    const char *dirs[1] = {r->store_dir};
    const manifest *latest;
    OK(io_open(&r->io, "auto", r->note));
    store_config sc = {.io = r->io,
                       .dirs = dirs,
                       .ndirs = 1,
                       .uuid = {7},
                       .sections = SECTIONS,
                       .slots = 3,
                       .spill_bytes = SPILL,
                       .create = create,
                       .buffered = !r->direct};
    tier_config tc = {.layers = LAYERS, .experts = EXPERTS, .prefetch_depth = 4, .fill = fill};
    for (int p = 0; p < STORE_PARTS; p++)
        sc.part_bytes[p] = tc.part_bytes[p] = p == STORE_R || (p == STORE_V && r->no_v) ? 0 : FLOATS * 4;
    OK(store_open(&r->st, &sc));
    OK(checkpoint_open(&r->cp, r->io, r->checkpoint_dir, 1, r->direct, &latest, r->note));
    cr_assert_eq(latest == NULL, create);
    tc.store = r->st;
    tc.checkpoint = r->cp;
    tc.host_bytes = (size_t)slots * ((FLOATS * 4 + IO_ALIGN - 1) / IO_ALIGN * IO_ALIGN);
    tc.records = latest == NULL ? NULL : latest->records;
    r->finished = latest == NULL ? 0 : latest->step;
    OK(tier_open(&r->t, &tc));
    tier_set_step(r->t, r->finished);
}

static void rig_close(rig *r)
{
    tier_close(r->t);
    checkpoint_close(r->cp);
    store_close(r->st);
    io_close(r->io);
}

static unsigned forward_parts(void *user, section_id s)
{
    rig *r = user;
    const record c = tier_record(r->t, s);
    return TIER_W | (c.step < r->finished ? TIER_M | TIER_V : 0u) | (c.grad_step != 0 ? TIER_G : 0u);
}

static void check_part(const float *buf, section_id s, int part, uint64_t step)
{
    const float want = part != STORE_W && step == 0 ? 0.0f : value(s, part, step);
    for (int i = 0; i < FLOATS; i++)
        cr_assert(buf[i] == want, "section %d part %d [%d]: %g, expected %g", s, part, i, (double)buf[i], (double)want);
}

static void set_part(float *buf, section_id s, int part, uint64_t step)
{
    for (int i = 0; i < FLOATS; i++)
        buf[i] = value(s, part, step);
}

static moe_err forward_layer(rig *r, int layer)
{
    section_id wanted[EXPERTS];
    const uint8_t touch[EXPERTS] = {1, 1, 1, 1};
    tier_enter(r->t, (tier_phase){layer, false});
    tier_expect(r->t, layer, touch);
    for (int e = 0; e < EXPERTS; e++)
        wanted[e] = layer * EXPERTS + e;
    for (int n = EXPERTS; n > 0; n--) {
        tier_lease l;
        int which;
        TRY(tier_acquire_any(r->t, wanted, n, forward_parts, r, 0, &which, &l));
        const section_id s = wanted[which];
        const record c = tier_record(r->t, s);
        for (int p = 0; p < STORE_G; p++)
            if (l.part[p] != NULL)
                check_part(l.part[p], s, p, c.step);
        if (l.part[STORE_G] != NULL)
            check_part(l.part[STORE_G], s, STORE_G, c.grad_step);
        const bool update = l.part[STORE_M] != NULL;
        for (int p = 0; p < STORE_G && update; p++)
            if (l.part[p] != NULL)
                set_part(l.part[p], s, p, r->finished);
        if (update)
            tier_release(r->t, &l, TIER_M | TIER_V | TIER_G,
                         (tier_change){.dirty = TIER_M | TIER_V, .drop = TIER_G, .step = r->finished});
        tier_release(r->t, &l, TIER_ALL, (tier_change){.dirty = update ? TIER_W : 0, .step = r->finished});
        wanted[which] = wanted[n - 1];
        OK(tier_check(r->t));
    }
    return MOE_OK;
}

static moe_err step(rig *r)
{
    for (int l = 0; l < LAYERS; l++)
        TRY(forward_layer(r, l));
    for (int l = LAYERS - 1; l >= 0; l--) {
        tier_enter(r->t, (tier_phase){l, true});
        for (int e = 0; e < EXPERTS; e++) {
            const section_id s = l * EXPERTS + e;
            tier_lease lease;
            TRY(tier_acquire(r->t, s, TIER_W | TIER_G, TIER_G, &lease));
            check_part(lease.part[STORE_W], s, STORE_W, tier_record(r->t, s).step);
            set_part(lease.part[STORE_G], s, STORE_G, r->finished + 1);
            tier_release(r->t, &lease, TIER_ALL, (tier_change){.dirty = TIER_G, .grad_step = r->finished + 1});
            OK(tier_check(r->t));
        }
    }
    tier_set_step(r->t, ++r->finished);
    return MOE_OK;
}

static void commit(rig *r)
{
    static char dense[IO_ALIGN] __attribute__((aligned(4096)));
    adamw_step log = {.step = r->finished};
    char state = 's';
    OK(tier_flush(r->t));
    record records[SECTIONS];
    memcpy(records, tier_catalog(r->t), sizeof records);
    const manifest m = {.uuid = {7},
                        .step = r->finished,
                        .sections = SECTIONS,
                        .records = records,
                        .log_steps = 1,
                        .log = &log,
                        .dense_bytes = sizeof dense,
                        .state = &state,
                        .state_bytes = 1};
    OK(checkpoint_commit(r->cp, r->st, &m, dense));
    OK(tier_check(r->t));
}

static void rig_make(rig *r)
{
    memset(r, 0, sizeof *r);
    scratch_make(&r->dir);
    scratch_path(&r->dir, r->store_dir, "store");
    scratch_path(&r->dir, r->checkpoint_dir, "checkpoint");
    r->direct = scratch_has_direct(&r->dir);
}

Test(tier_store, steps_commits_and_restarts_over_files)
{
    const int slots[] = {8, 14, 30, 48};
    for (int k = 0; k < 4; k++) {
        rig r;
        rig_make(&r);
        rig_open(&r, true, slots[k]);
        for (int i = 0; i < STEPS; i++) {
            OK(step(&r));
            if (i % 2 == 0)
                commit(&r);
        }
        rig_close(&r); /* after a commit and nothing else, or not: both must reopen at the commit */
        rig_open(&r, false, slots[3 - k]);
        cr_assert_eq(r.finished, STEPS);
        OK(step(&r));
        OK(step(&r));
        rig_close(&r);
        rig_open(&r, false, 8);
        cr_assert_eq(r.finished, STEPS);
        OK(step(&r));
        rig_close(&r);
        scratch_remove(&r.dir);
    }
}

/* Records without v: the files are a quarter smaller, six slots do, and whoever opens them with a v is told. */
Test(tier_store, records_without_v)
{
    rig r;
    char name[SCRATCH_PATH + 32];
    struct stat st;
    rig_make(&r);
    r.no_v = true;
    rig_open(&r, true, 6);
    for (int i = 0; i < STEPS; i++)
        OK(step(&r));
    commit(&r);
    for (section_id s = 0; s < SECTIONS; s++)
        cr_assert_eq(tier_catalog(r.t)[s].sum[STORE_V], 0);
    rig_close(&r);
    snprintf(name, sizeof name, "%s/slot-0.bin", r.store_dir);
    cr_assert_eq(stat(name, &st), 0);
    cr_assert_eq(st.st_size, (off_t)SECTIONS * 3 * ((FLOATS * 4 + IO_ALIGN - 1) / IO_ALIGN * IO_ALIGN));
    rig_open(&r, false, 9);
    cr_assert_eq(r.finished, STEPS);
    OK(step(&r));
    rig_close(&r);
    const char *dirs[1] = {r.store_dir};
    OK(io_open(&r.io, "auto", r.note));
    const store_config wrong = {.io = r.io,
                                .dirs = dirs,
                                .ndirs = 1,
                                .uuid = {7},
                                .sections = SECTIONS,
                                .slots = 3,
                                .buffered = !r.direct,
                                .part_bytes = {FLOATS * 4, 0, FLOATS * 4, FLOATS * 4, FLOATS * 4}};
    cr_assert_eq(store_open(&r.st, &wrong), MOE_E_DATA);
    cr_assert(strstr(moe_error_text(), "part v has 0 bytes") != NULL, "%s", moe_error_text());
    io_close(r.io);
    scratch_remove(&r.dir);
}

Test(tier_store, a_flipped_bit_on_disk_is_a_checksum_error)
{
    rig r;
    rig_make(&r);
    rig_open(&r, true, 8);
    OK(step(&r));
    OK(step(&r));
    commit(&r);
    record c = tier_catalog(r.t)[0];
    rig_close(&r);
    char name[SCRATCH_PATH + 32];
    for (int slot = 0; slot < 3; slot++) {
        snprintf(name, sizeof name, "%s/slot-%d.bin", r.store_dir, slot);
        if (slot == c.slot)
            for (long at = 100; at < (long)FLOATS * 4; at += 5000) /* all over w of section 0 */
                scratch_flip(name, at);
    }
    rig_open(&r, false, 8);
    const moe_err rc = step(&r);
    cr_assert(rc == MOE_E_DATA && strstr(moe_error_text(), "section 0") != NULL, "%d: %s", rc, moe_error_text());
    OK(tier_check(r.t));
    rig_close(&r);
    scratch_remove(&r.dir);
}

Test(tier_store, the_stash_spills_to_a_file)
{
    rig r;
    rig_make(&r);
    rig_open(&r, true, 8);
    stash *s;
    OK(stash_open(&s, r.st, 1 << 20, SPILL));
    for (int pass = 0; pass < 2; pass++) {
        for (int i = 0; i < 40; i++) {
            stash_id id;
            void *buf;
            OK(stash_new(s, 100000 + (size_t)i * 1000, &id, &buf));
            memset(buf, i + pass, 100000 + (size_t)i * 1000);
            stash_seal(s, id);
        }
        for (int i = 39; i >= 0; i--) {
            void *buf;
            OK(stash_take(s, i, &buf));
            for (size_t j = 0; j < 100000 + (size_t)i * 1000; j += 997)
                cr_assert(((char *)buf)[j] == i + pass, "block %d byte %zu", i, j);
            stash_free(s, i);
            OK(stash_check(s));
        }
    }
    stash_stats stats;
    stash_get_stats(s, &stats);
    cr_assert(stats.spilled_bytes > 2 << 20);
    stash_close(s);
    rig_close(&r);
    scratch_remove(&r.dir);
}
