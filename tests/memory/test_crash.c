/* The power fails at the n-th operation, for every n of three checkpoints, with any subset of unsynced changes lost, torn (512 B)
 * or reordered; reopening gives exactly a committed checkpoint: the last whose commit returned MOE_OK, or the one in progress,
 * and every record and dense part it names reads back. The same for operations that fail once: the object stays usable and the
 * commit can be repeated. The quick form tries a dozen subsets per n; with MOE_TEST_LONG set in the environment all subsets of up
 * to 12 unsynced changes and 400 random ones (some minutes). */
#include <criterion/criterion.h>
#include <stdio.h>

#include "memory/checkpoint.h"
#include "tests/memory/disk_fill.h"
#include "tests/memory/sim_disk.h"

enum { SECTIONS = 3, STEPS = 3, DENSE_BYTES = 9000 };

static const size_t part_bytes[STORE_PARTS] = {2500, 2500, 5000, 5000, 3000};

typedef struct shape {
    int keep, ndirs;
} shape;

/* The run under test: catalog, store and checkpoint, as the tier uses them. */
typedef struct run {
    shape shape;
    io *io;
    store *store;
    checkpoint *checkpoint;
    record rec[SECTIONS];
    uint64_t step;      /* finished and trained      */
    uint64_t committed; /* commit returned MOE_OK    */
    uint64_t attempted; /* commit was begun          */
    uint64_t seed;
} run;

static uint64_t key_of(int section, int part, uint64_t step)
{
    return (uint64_t)section * 1000 + (uint64_t)part * 100 + step + 1;
}

static store_config config_of(const run *r, bool create)
{
    static const char *const dirs[] = {"run/store", "run/store2"};
    store_config c = {.io = r->io,
                      .dirs = dirs,
                      .ndirs = r->shape.ndirs,
                      .uuid = {7},
                      .sections = SECTIONS,
                      .slots = r->shape.keep + 1,
                      .create = create,
                      .depth = 4};
    memcpy(c.part_bytes, part_bytes, sizeof part_bytes);
    return c;
}

static moe_err run_open(run *r)
{
    char note[512];
    const manifest *latest = NULL;
    TRY(io_make_dir(r->io, "run"));
    TRY(checkpoint_open(&r->checkpoint, r->io, "run/checkpoint", r->shape.keep, true, &latest, note));
    for (int s = 0; s < SECTIONS; s++)
        r->rec[s] = latest ? latest->records[s] : (record){.slot = -1, .grad_slot = -1};
    r->step = latest ? latest->step : 0;
    r->committed = r->step;
    r->attempted = r->step;
    const store_config c = config_of(r, latest == NULL);
    return store_open(&r->store, &c);
}

static void run_close(run *r)
{
    store_close(r->store);
    checkpoint_close(r->checkpoint);
    r->store = NULL;
    r->checkpoint = NULL;
}

static int free_slot(const run *r, int s, bool grad)
{
    for (int k = 0; k < store_slots(r->store); k++)
        if (!checkpoint_names_slot(r->checkpoint, s, k, grad))
            return k;
    cr_assert_fail("section %d: every slot is named", s);
    return -1;
}

static moe_err write_parts(run *r, int s, int from, int to, uint64_t step, int slot)
{
    latch l = LATCH_INIT;
    store_op op[STORE_PARTS];
    moe_err rc = MOE_OK;
    for (int p = from; p < to; p++) {
        op[p] = (store_op){.write = true,
                           .priority = STORE_WRITE,
                           .section = s,
                           .part = (store_part)p,
                           .slot = slot,
                           .buf = fill_alloc(part_bytes[p])};
        fill_bytes(op[p].buf, part_bytes[p], key_of(s, p, step));
        latch_submit(r->store, &op[p], &l);
    }
    latch_wait(&l);
    for (int p = from; p < to; p++) {
        if (op[p].rc != MOE_OK)
            rc = moe_error_set(op[p].rc, op[p].text);
        r->rec[s].sum[p] = op[p].sum;
        free(op[p].buf);
    }
    return rc;
}

/* Section 0 is updated every step, 1 every second; 2 only collects a gradient in step 2. Section 0 is written twice: evicted and
 * changed again. */
static moe_err train_step(run *r)
{
    const uint64_t step = r->step + 1;
    for (int s = 0; s < 2; s++) {
        if (s == 1 && step % 2 == 0)
            continue;
        const int slot = free_slot(r, s, false), grad = free_slot(r, s, true);
        for (int again = 0; again < (s == 0 ? 2 : 1); again++)
            TRY(write_parts(r, s, STORE_W, STORE_G, step - 1, slot));
        TRY(write_parts(r, s, STORE_G, STORE_PARTS, step, grad));
        r->rec[s].step = step - 1;
        r->rec[s].slot = (int16_t)slot;
        r->rec[s].grad_step = step;
        r->rec[s].grad_slot = (int16_t)grad;
    }
    if (step == 2) {
        const int grad = free_slot(r, 2, true);
        TRY(write_parts(r, 2, STORE_G, STORE_PARTS, step, grad));
        r->rec[2].grad_step = step;
        r->rec[2].grad_slot = (int16_t)grad;
    }
    r->step = step;
    return MOE_OK;
}

static moe_err commit(run *r)
{
    adamw_step log[STEPS + 1];
    for (uint64_t i = 0; i < r->step; i++)
        log[i] = (adamw_step){.step = i + 1, .lr = 0.1, .beta1 = 0.9, .beta2 = 0.9, .eps = 1e-8, .clip = 1};
    char state[32];
    snprintf(state, sizeof state, "state %llu", (unsigned long long)r->step);
    void *dense = fill_alloc(DENSE_BYTES);
    fill_bytes(dense, DENSE_BYTES, key_of(9, 9, r->step));
    const manifest m = {.uuid = {7},
                        .step = r->step,
                        .sections = SECTIONS,
                        .records = r->rec,
                        .log_steps = r->step,
                        .log = log,
                        .dense_bytes = DENSE_BYTES,
                        .state = state,
                        .state_bytes = strlen(state)};
    r->attempted = r->step;
    const moe_err rc = checkpoint_commit(r->checkpoint, r->store, &m, dense);
    free(dense);
    if (rc == MOE_OK)
        r->committed = r->step;
    return rc;
}

static moe_err run_all(run *r)
{
    TRY(run_open(r));
    while (r->step < STEPS) {
        TRY(train_step(r));
        TRY(commit(r));
        TRY(store_check(r->store));
    }
    return MOE_OK;
}

/* What is on the disk equals checkpoint `committed` or `attempted`. */
static void verify(const run *before, sim_disk *disk, const char *what)
{
    run r = {.shape = before->shape, .io = sim_disk_io(disk)};
    char note[512];
    const manifest *m = NULL;
    cr_assert_eq(checkpoint_open(&r.checkpoint, r.io, "run/checkpoint", r.shape.keep, true, &m, note), MOE_OK, "%s: %s", what,
                 moe_error_text());
    const uint64_t step = m ? m->step : 0;
    cr_assert(step == before->committed || step == before->attempted, "%s: found step %llu, committed %llu, in progress %llu",
              what, (unsigned long long)step, (unsigned long long)before->committed, (unsigned long long)before->attempted);
    if (m != NULL) {
        char state[32];
        snprintf(state, sizeof state, "state %llu", (unsigned long long)step);
        cr_assert(m->state_bytes == strlen(state) && memcmp(m->state, state, m->state_bytes) == 0, "%s: state", what);
        void *buf = fill_alloc(DENSE_BYTES);
        cr_assert_eq(checkpoint_read_dense(r.checkpoint, buf, DENSE_BYTES), MOE_OK, "%s: %s", what, moe_error_text());
        cr_assert_eq(fill_differs(buf, DENSE_BYTES, key_of(9, 9, step)), DENSE_BYTES, "%s: dense part", what);
        free(buf);
        const store_config c = config_of(&r, false);
        cr_assert_eq(store_open(&r.store, &c), MOE_OK, "%s: %s", what, moe_error_text());
        for (int s = 0; s < SECTIONS; s++)
            for (int p = 0; p < STORE_PARTS; p++) {
                const record *rec = &m->records[s];
                const int slot = p == STORE_G ? rec->grad_slot : rec->slot;
                if (slot < 0)
                    continue;
                latch l = LATCH_INIT;
                store_op op = {
                    .section = s, .part = (store_part)p, .slot = slot, .sum = rec->sum[p], .buf = fill_alloc(part_bytes[p])};
                latch_submit(r.store, &op, &l);
                latch_wait(&l);
                cr_assert_eq(op.rc, MOE_OK, "%s: step %llu: %s", what, (unsigned long long)step, op.text);
                cr_assert_eq(fill_differs(op.buf, part_bytes[p], key_of(s, p, p == STORE_G ? rec->grad_step : rec->step)),
                             part_bytes[p], "%s: section %d part %d", what, s, p);
                free(op.buf);
            }
    }
    run_close(&r);
}

/* The next process goes on from what it found and finishes. */
static void go_on(const run *before, sim_disk *disk, const char *what)
{
    run r = {.shape = before->shape, .io = sim_disk_io(disk)};
    cr_assert_eq(run_all(&r), MOE_OK, "%s: going on: %s", what, moe_error_text());
    run_close(&r);
    sim_disk *after = sim_disk_reboot(disk, 0, 0);
    verify(&r, after, what);
    sim_disk_free(after);
}

static bool long_form(void) { return getenv("MOE_TEST_LONG") != NULL; }

static void crash_at(shape sh, uint64_t n, uint64_t *ended)
{
    sim_disk *d = sim_disk_new(n);
    run r = {.shape = sh, .io = sim_disk_io(d)};
    sim_disk_stop_at(d, n);
    *ended = run_all(&r) == MOE_OK;
    run_close(&r);
    const int unsynced = sim_disk_unsynced(d), exhaustive = long_form() ? 12 : 3, random = long_form() ? 400 : 10;
    const uint64_t all = unsynced <= exhaustive ? 1ULL << unsynced : 0;
    uint64_t x = n * 977 + 1;
    for (uint64_t i = 0; i < all + (uint64_t)random + 2; i++) {
        x = x * 6364136223846793005ULL + 1442695040888963407ULL;
        const uint64_t kept = i < all ? i : i == all ? 0 : i == all + 1 ? UINT64_MAX : x ^ (x >> 31);
        const uint64_t seed = i < all + 2 ? 0 : x | 1;
        char what[128];
        snprintf(what, sizeof what, "keep %d, %d folders, stop at %llu, survivors %llx of %d, seed %llu", sh.keep, sh.ndirs,
                 (unsigned long long)n, (unsigned long long)kept, unsynced, (unsigned long long)seed);
        sim_disk *booted = sim_disk_reboot(d, kept, seed);
        verify(&r, booted, what);
        if (i % 4 == 1)
            go_on(&r, booted, what);
        sim_disk_free(booted);
    }
    sim_disk_free(d);
}

static void every_crash(shape sh)
{
    uint64_t n = 0, ended = 0;
    for (; !ended; n++)
        crash_at(sh, n, &ended);
    cr_assert_gt(n, 60, "only %llu operations", (unsigned long long)n);
}

Test(crash, every_operation_keep_1) { every_crash((shape){1, 1}); }

Test(crash, every_operation_keep_2_striped) { every_crash((shape){2, 2}); }

/* One operation fails, the process lives: it tries again, or starts again where the store says so, and nothing is lost. */
static bool fail_once(shape sh, uint64_t n, moe_err rc, const char *reason)
{
    char what[96];
    snprintf(what, sizeof what, "keep %d, operation %llu fails (%s)", sh.keep, (unsigned long long)n, reason);
    sim_disk *d = sim_disk_new(n);
    run r = {.shape = sh, .io = sim_disk_io(d)};
    sim_disk_fail_at(d, n, rc, reason);
    int failures = 0;
    moe_err err = run_open(&r);
    while (err != MOE_OK || r.step < STEPS || r.committed < STEPS) {
        if (err != MOE_OK) {
            cr_assert_lt(++failures, 4, "%s: %s", what, moe_error_text());
            cr_assert(strlen(moe_error_text()) > 0, "%s: no sentence", what);
            sim_disk *booted = sim_disk_reboot(d, UINT64_MAX, 0); /* the last checkpoint opens now */
            verify(&r, booted, what);
            sim_disk_free(booted);
            if (r.store == NULL || failures == 2) { /* opening failed, or trying again did not help: a new process */
                run_close(&r);
                err = run_open(&r);
                continue;
            }
        }
        if (r.step > r.committed && r.attempted >= r.step) {
            err = commit(&r);
            continue;
        }
        err = train_step(&r);
        if (err == MOE_OK)
            err = commit(&r);
    }
    run_close(&r);
    verify(&r, d, what);
    const bool reached = sim_disk_operations(d) > n;
    sim_disk_free(d);
    return reached;
}

Test(crash, every_operation_fails_once)
{
    static const shape shapes[] = {{1, 1}, {2, 2}};
    for (int i = 0; i < 2; i++) {
        for (uint64_t n = 0; fail_once(shapes[i], n, MOE_E_IO, "disk full"); n++)
            ;
        for (uint64_t n = 0; fail_once(shapes[i], n, MOE_E_IO, "Input/output error"); n++)
            ;
    }
}
