/* A trainer on a disk that fails: errors in every kind of transfer, stops at any transfer, power failures at any operation. Afterwards
 * it stands at the last finished step, may go on, and whatever is reopened ends where the undisturbed run ends, bit for bit.
 * The disk is simulated (tests/memory/sim_disk.h). The quick form takes a seeded sample of the operations; MOE_TEST_LONG: all of them. */
#include <criterion/criterion.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/engine/run_fixture.h"
#include "tests/memory/sim_disk.h"

enum { STEPS = 5, MANY = 1 << 30 };

static char host[64];
static const char *deferred[] = {"model.num_hidden_layers=2", "model.num_experts=5", "run.threads=1", host, NULL};
static const char *speculative[] = {"model.num_hidden_layers=2", "model.num_experts=5", "run.threads=1", host,
                                    "optimizer.update=speculative", "optimizer.clip_norm=0.6", NULL};

static void make(test_run *r, const char *const *sets, sim_disk *disk)
{
    test_run_make(r, "faults", 4096, 61);
    test_run_small_yaml(r, "");
    snprintf(host, sizeof host, "memory.host=1GiB");
    test_run_least_memory(r, sets, host, sizeof host);
    r->options.io = disk != NULL ? sim_disk_io(disk) : NULL;
}

static moe_err steps_to(test_run *r, uint64_t step)
{
    step_metrics m;
    while (r->t.finished < step)
        TRY(trainer_step(&r->t, &m));
    return MOE_OK;
}

/* To the end on a disk that works again. Reads ahead that failed before are reported one by one when their section is needed. */
static moe_err recover(test_run *r)
{
    moe_err rc = MOE_E_IO;
    for (int again = 0; again < 20 && rc == MOE_E_IO; again++)
        rc = steps_to(r, STEPS);
    return rc;
}

/* Hash after STEPS steps with nothing in the way. */
static uint64_t undisturbed(const char *const *sets)
{
    sim_disk *d = sim_disk_new(1);
    test_run r;
    make(&r, sets, d);
    MUST(test_run_open(&r, sets));
    MUST(steps_to(&r, STEPS));
    const uint64_t h = test_run_weights_hash(&r);
    test_run_close(&r);
    sim_disk_free(d);
    return h;
}

/* --- one kind of call fails ----------------------------------------------------------------------------------------------------- */

typedef struct fault {
    const char *name;
    sim_what what;
    const char *part, *reason;
    bool in_checkpoint;
} fault;

static const fault faults[] = {
    {"disk full in a step", SIM_WRITE, "slot-", "No space left on device", false},
    {"short write in a step", SIM_WRITE, "slot-", "wrote 512 of 16384 bytes", false},
    {"read error in a step", SIM_READ, "slot-", "Input/output error", false},
    {"disk full for activations", SIM_WRITE, "spill", "No space left on device", false},
    {"activations cannot be read", SIM_READ, "spill", "Input/output error", false},
    {"disk full in the flush of a checkpoint", SIM_WRITE, "slot-", "No space left on device", true},
    {"the store cannot be synced", SIM_SYNC, "slot-", "Input/output error", true},
    {"no new dense file", SIM_CREATE, "dense-", "No space left on device", true},
    {"disk full in the dense part", SIM_WRITE, "dense-", "No space left on device", true},
    {"no new manifest", SIM_CREATE, "manifest-", "No space left on device", true},
    {"disk full in the manifest", SIM_WRITE, "manifest-", "No space left on device", true},
    {"the folder cannot be synced", SIM_SYNC_DIR, "checkpoint", "Input/output error", true},
};

/* Until the fault shows: it may hit a write in the background first, and shows when somebody needs that slot. */
static moe_err provoke(test_run *r, const fault *f)
{
    step_metrics m;
    if (f->in_checkpoint)
        return trainer_checkpoint(&r->t);
    for (int i = 0; i < 2; i++)
        TRY(trainer_step(&r->t, &m));
    return MOE_OK;
}

static void one_fault(const fault *f, const char *const *sets, bool reopen, uint64_t expected)
{
    sim_disk *d = sim_disk_new(7);
    test_run r;
    make(&r, sets, d);
    MUST(test_run_open(&r, sets));
    MUST(steps_to(&r, 1));
    MUST(trainer_checkpoint(&r.t));
    MUST(steps_to(&r, 2));
    sim_disk_fail(d, f->what, f->part, MANY, MOE_E_IO, f->reason);
    const moe_err rc = provoke(&r, f);
    cr_assert_eq(rc, MOE_E_IO, "%s: %d: %s", f->name, rc, moe_error_text());
    cr_assert(strstr(moe_error_text(), f->reason) != NULL && strstr(moe_error_text(), f->part) != NULL, "%s: %s", f->name, moe_error_text());
    const uint64_t finished = r.t.finished;
    cr_assert_geq(finished, 2u);
    if (reopen)
        test_run_shut(&r); /* with the fault still there: nothing hangs */
    sim_disk_fail(d, f->what, f->part, 0, MOE_OK, "");
    if (reopen) {
        MUST(test_run_open(&r, sets));
        cr_assert(r.t.finished == 1 || (f->what == SIM_SYNC_DIR && r.t.finished == 2), "%s: reopened at step %d", f->name, (int)r.t.finished);
    } else if (f->what == SIM_SYNC) { /* what the drive holds is unknown from here on: this process commits nothing any more */
        cr_assert_eq(trainer_checkpoint(&r.t), MOE_E_IO, "%s", f->name);
    } else {
        if (trainer_checkpoint(&r.t) != MOE_OK) /* of a write that was in flight when the disk recovered */
            MUST(trainer_checkpoint(&r.t));
        cr_assert_eq(r.t.finished, finished, "%s", f->name);
    }
    MUST(recover(&r));
    cr_assert(test_run_weights_hash(&r) == expected, "%s%s: weights differ at the end", f->name, reopen ? ", reopened" : "");
    test_run_close(&r);
    sim_disk_free(d);
}

static void every_fault(const char *const *sets)
{
    const uint64_t expected = undisturbed(sets);
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++)
        for (int reopen = 0; reopen < 2; reopen++)
            one_fault(&faults[i], sets, reopen, expected);
}

Test(faults, every_kind_deferred) { every_fault(deferred); }

Test(faults, every_kind_speculative) { every_fault(speculative); }

/* --- something happens at the n-th transfer of step 3 --------------------------------------------------------------------------- */

static atomic_int stop;
static atomic_int transfers, happens_at; /* counted on the store's thread; -1: never */
static sim_disk *hooked_disk;
static const fault *hooked_fault; /* NULL: a signal */

static moe_err (*real_submit)(io_queue *q, io_transfer *list);

static moe_err counting_submit(io_queue *q, io_transfer *list)
{
    const bool now = ++transfers == happens_at;
    if (now && hooked_fault == NULL)
        stop = 1;
    else if (now)
        sim_disk_fail(hooked_disk, hooked_fault->what, hooked_fault->part, MANY, MOE_E_IO, hooked_fault->reason);
    return real_submit(q, list);
}

/* A signal, or a fault that stays until the step has failed. false: the step has fewer transfers. */
static bool happen_at(int n, const fault *f, const char *const *sets, uint64_t expected)
{
    sim_disk *d = sim_disk_new((uint64_t)n);
    test_run r;
    make(&r, sets, d);
    io_ops hooked = *r.options.io->ops;
    real_submit = hooked.queue_submit;
    hooked.queue_submit = counting_submit;
    r.options.io->ops = &hooked;
    r.options.stop = &stop;
    hooked_disk = d;
    hooked_fault = f;
    stop = 0;
    happens_at = -1;
    MUST(test_run_open(&r, sets));
    MUST(steps_to(&r, 2));
    transfers = 0;
    happens_at = n;
    step_metrics m;
    const moe_err rc = trainer_step(&r.t, &m);
    const bool reached = transfers >= n;
    const char *const name = f != NULL ? f->name : "signal";
    cr_assert(rc == MOE_OK || (rc == (f != NULL ? MOE_E_IO : MOE_E_TEMP) && reached && r.t.finished == 2), "%s at %d: %d: %s", name, n, rc,
              moe_error_text());
    stop = 0;
    happens_at = -1;
    if (f != NULL)
        sim_disk_fail(d, f->what, f->part, 0, MOE_OK, "");
    if (trainer_checkpoint(&r.t) != MOE_OK)
        MUST(trainer_checkpoint(&r.t));
    if (n % 2 == 0) {
        test_run_shut(&r);
        MUST(test_run_open(&r, sets));
        cr_assert_eq(r.t.finished, rc == MOE_OK ? 3u : 2u);
    }
    MUST(recover(&r));
    cr_assert(test_run_weights_hash(&r) == expected, "%s at transfer %d: weights differ at the end", name, n);
    test_run_close(&r);
    sim_disk_free(d);
    return reached;
}

static bool long_form(void) { return getenv("MOE_TEST_LONG") != NULL; }

static void at_any_transfer(const fault *f)
{
    const char *const *const ways[] = {deferred, speculative};
    for (int w = 0; w < 2; w++) {
        const uint64_t expected = undisturbed(ways[w]);
        for (int n = 1 + w; happen_at(n, f, ways[w], expected); n += long_form() ? 1 : 7)
            ;
    }
}

Test(faults, signal_at_any_transfer) { at_any_transfer(NULL); }

Test(faults, store_fails_at_any_transfer) { at_any_transfer(&faults[0]); }

Test(faults, reads_fail_at_any_transfer) { at_any_transfer(&faults[2]); }

Test(faults, spill_fails_at_any_transfer) { at_any_transfer(&faults[3]); }

Test(faults, spill_reads_fail_at_any_transfer) { at_any_transfer(&faults[4]); }

/* --- the power fails ------------------------------------------------------------------------------------------------------------ */

typedef struct progress {
    uint64_t committed, attempted;
} progress;

/* To the end, with a checkpoint after steps 2 and 4 of STEPS. */
static moe_err train(test_run *r, const char *const *sets, progress *p)
{
    TRY(test_run_open(r, sets));
    p->committed = p->attempted = r->t.finished;
    while (r->t.finished < STEPS) {
        TRY(steps_to(r, r->t.finished + 1));
        if (r->t.finished % 2 != 0)
            continue;
        p->attempted = r->t.finished;
        TRY(trainer_checkpoint(&r->t));
        p->committed = r->t.finished;
    }
    return MOE_OK;
}

/* The power fails at operation n; `variants` disks that this may leave. false: the run has fewer operations. */
static bool crash_at(uint64_t n, int variants, const char *const *sets, uint64_t expected)
{
    sim_disk *d = sim_disk_new(n);
    test_run r;
    progress p = {0};
    make(&r, sets, d);
    sim_disk_stop_at(d, n);
    const bool ended = train(&r, sets, &p) == MOE_OK;
    test_run_shut(&r);
    uint64_t x = n * 977 + 1;
    for (int i = 0; i < variants && !ended; i++) {
        x = x * 6364136223846793005ULL + 1442695040888963407ULL;
        const uint64_t kept = i == 0 ? x ^ (x >> 31) : i == 1 ? 0 : i == 2 ? UINT64_MAX : x ^ (x >> 29);
        sim_disk *booted = sim_disk_reboot(d, kept, i == 1 || i == 2 ? 0 : x | 1);
        progress q = {0};
        r.options.io = sim_disk_io(booted);
        const moe_err rc = train(&r, sets, &q);
        cr_assert_eq(rc, MOE_OK, "stop at %llu, survivors %llx: %s", (unsigned long long)n, (unsigned long long)kept, moe_error_text());
        cr_assert(test_run_weights_hash(&r) == expected, "stop at %llu, survivors %llx: weights differ at the end", (unsigned long long)n,
                  (unsigned long long)kept);
        test_run_shut(&r);
        sim_disk_free(booted);
    }
    test_run_close(&r);
    sim_disk_free(d);
    return !ended;
}

/* Where the run begins again after a crash at operation n. */
static void found_after(uint64_t n, const char *const *sets)
{
    sim_disk *d = sim_disk_new(n);
    test_run r;
    progress p = {0};
    make(&r, sets, d);
    sim_disk_stop_at(d, n);
    const moe_err rc = train(&r, sets, &p);
    test_run_shut(&r);
    sim_disk *booted = sim_disk_reboot(d, n * 0x9e3779b97f4a7c15ULL, n | 1);
    r.options.io = sim_disk_io(booted);
    MUST(test_run_open(&r, sets));
    const uint64_t found = r.t.finished;
    cr_assert(found == p.committed || found == p.attempted, "stop at %llu (%d): found step %llu, committed %llu, in progress %llu",
              (unsigned long long)n, rc, (unsigned long long)found, (unsigned long long)p.committed, (unsigned long long)p.attempted);
    test_run_close(&r);
    sim_disk_free(booted);
    sim_disk_free(d);
}

Test(faults, power_fails_at_any_operation)
{
    const char *const *const ways[] = {deferred, speculative};
    for (int w = 0; w < 2; w++) {
        const uint64_t expected = undisturbed(ways[w]);
        const uint64_t stride = long_form() ? 1 : 13;
        for (uint64_t n = (uint64_t)w; crash_at(n, long_form() ? 6 : 1, ways[w], expected); n += stride)
            if (n % 4 == 0)
                found_after(n, ways[w]);
    }
}
