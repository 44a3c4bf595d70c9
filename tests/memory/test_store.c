/* The store over real files, with both backends: round trips, damage, wrong folders, full and unfit disks, priorities, deadlines. What a
 * real disk cannot be made to do comes from the simulated one. The files live under $TMPDIR or /var/tmp. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/memory/disk_fill.h"
#include "tests/memory/scratch.h"
#include "tests/memory/sim_disk.h"

#define OK(call) cr_assert_eq((call), MOE_OK, "%s", moe_error_text())
#define FAILS(call, code, text)                                                                                                        \
    do {                                                                                                                               \
        cr_assert_eq((call), (code), "%s", moe_error_text());                                                                          \
        cr_assert(strstr(moe_error_text(), (text)), "\"%s\" lacks \"%s\"", moe_error_text(), (text));                                  \
    } while (0)

enum { SECTIONS = 4 };

static const size_t some_parts[STORE_PARTS] = {2 * IO_CHUNK + 12345, 4096, IO_CHUNK, 100};

typedef struct fixture {
    scratch dir;
    io *io;
    store *store;
    store_config c;
    const char *dirs[2];
    char path[2][SCRATCH_PATH];
} fixture;

static bool real_setup(fixture *b, const char *backend, int ndirs)
{
    memset(b, 0, sizeof *b);
    scratch_make(&b->dir);
    char note[256];
    if (io_open(&b->io, backend, note) != MOE_OK) {
        fprintf(stderr, "skip: %s: %s\n", backend, moe_error_text());
        scratch_remove(&b->dir);
        return false;
    }
    for (int d = 0; d < ndirs; d++) {
        scratch_path(&b->dir, b->path[d], d == 0 ? "store0" : "store1");
        b->dirs[d] = b->path[d];
    }
    b->c = (store_config){.io = b->io, .dirs = b->dirs, .ndirs = ndirs, .uuid = {1, 2, 3}, .sections = SECTIONS, .slots = 2,
                          .spill_bytes = 5 * IO_CHUNK + IO_ALIGN, .create = true};
    memcpy(b->c.part_bytes, some_parts, sizeof some_parts);
    b->c.buffered = !scratch_has_direct(&b->dir);
    return true;
}

static void real_end(fixture *b)
{
    store_close(b->store);
    io_close(b->io);
    scratch_remove(&b->dir);
}

static void reopen(fixture *b)
{
    store_close(b->store);
    b->store = NULL;
    b->c.create = false;
    OK(store_open(&b->store, &b->c));
}

static uint64_t key(int s, int p, int slot) { return (uint64_t)(s * 100 + p * 10 + slot); }

/* All parts of all sections to or from one slot. sums: [SECTIONS * STORE_PARTS] */
static moe_err move_all(fixture *b, bool write, int slot, uint64_t *sums)
{
    enum { N = SECTIONS * STORE_PARTS };
    static store_op op[N];
    latch l = LATCH_INIT;
    for (int i = 0; i < N; i++) {
        const int s = i / STORE_PARTS, p = i % STORE_PARTS;
        op[i] = (store_op){.write = write, .priority = (store_priority)(i % 3), .section = s, .part = (store_part)p, .slot = slot,
                           .buf = fill_alloc(some_parts[p]), .sum = sums[i]};
        if (write)
            fill_bytes(op[i].buf, some_parts[p], key(s, p, slot));
        latch_submit(b->store, &op[i], &l);
        if (i % 7 == 3)
            store_promote(b->store, &op[i]);
    }
    latch_wait(&l);
    OK(store_check(b->store));
    moe_err rc = MOE_OK;
    for (int i = 0; i < N; i++) {
        if (op[i].rc != MOE_OK && rc == MOE_OK)
            rc = moe_error_set(op[i].rc, op[i].text);
        else if (!write && op[i].rc == MOE_OK)
            cr_assert_eq(fill_differs(op[i].buf, some_parts[i % STORE_PARTS], key(i / STORE_PARTS, i % STORE_PARTS, slot)), some_parts[i % STORE_PARTS]);
        sums[i] = op[i].sum;
        free(op[i].buf);
    }
    return rc;
}

static moe_err one_spill(fixture *b, bool write, uint64_t offset, size_t n)
{
    latch l = LATCH_INIT;
    store_op op = {.write = write, .spill = true, .priority = STORE_WRITE, .offset = offset, .bytes = n, .buf = fill_alloc(n)};
    if (write)
        fill_bytes(op.buf, n, offset);
    latch_submit(b->store, &op, &l);
    latch_wait(&l);
    if (!write && op.rc == MOE_OK)
        cr_assert_eq(fill_differs(op.buf, n, offset), n);
    free(op.buf);
    return op.rc == MOE_OK ? MOE_OK : moe_error_set(op.rc, op.text);
}

static void round_trip(const char *backend, int ndirs, bool buffered)
{
    fixture b;
    if (!real_setup(&b, backend, ndirs))
        return;
    b.c.buffered |= buffered;
    OK(store_open(&b.store, &b.c));
    uint64_t sums[2][SECTIONS * STORE_PARTS] = {0};
    OK(move_all(&b, true, 0, sums[0]));
    OK(move_all(&b, true, 1, sums[1]));
    OK(store_sync(b.store));
    OK(one_spill(&b, true, IO_ALIGN, 4 * IO_CHUNK + 100));
    OK(one_spill(&b, false, IO_ALIGN, 4 * IO_CHUNK + 100));
    store_stats st;
    store_get_stats(b.store, &st);
    uint64_t record_bytes = 0;
    for (int p = 0; p < STORE_PARTS; p++)
        record_bytes += fill_pad(some_parts[p]);
    cr_assert_eq(st.write_bytes, 2 * SECTIONS * record_bytes + fill_pad(4 * IO_CHUNK + 100));
    cr_assert_eq(st.spill_write_bytes, fill_pad(4 * IO_CHUNK + 100));
    cr_assert(st.busy_seconds > 0 && st.sum_seconds > 0);
    reopen(&b);
    OK(move_all(&b, false, 1, sums[1]));
    b.c.slots = 3; /* one more kept checkpoint: a slot is added, the old ones stay */
    reopen(&b);
    cr_assert_eq(store_slots(b.store), 3);
    OK(move_all(&b, false, 0, sums[0]));
    uint64_t third[SECTIONS * STORE_PARTS] = {0};
    OK(move_all(&b, true, 2, third));
    b.c.slots = 2;
    reopen(&b);
    cr_assert_eq(store_slots(b.store), 3);
    OK(move_all(&b, false, 2, third));
    sums[0][7] ^= 1;
    FAILS(move_all(&b, false, 0, sums[0]), MOE_E_DATA, "section 1 part g slot 0: checksum mismatch");
    real_end(&b);
}

Test(store, round_trip_io_uring) { round_trip("io_uring", 1, false); }

Test(store, round_trip_io_uring_two_folders) { round_trip("io_uring", 2, false); }

Test(store, round_trip_pread_two_folders) { round_trip("pread", 2, false); }

Test(store, round_trip_buffered_io_uring) { round_trip("io_uring", 1, true); }

Test(store, round_trip_buffered_pread) { round_trip("pread", 1, true); }

Test(store, registered_memory)
{
    fixture b;
    if (!real_setup(&b, "io_uring", 1))
        return;
    OK(store_open(&b.store, &b.c));
    const size_t n = fill_pad(some_parts[0]);
    char *region = fill_alloc(2 * n);
    store_register(b.store, region, 2 * n);
    latch l = LATCH_INIT;
    store_op out = {.write = true, .section = 2, .slot = 1, .buf = region};
    fill_bytes(region, some_parts[0], 77);
    latch_submit(b.store, &out, &l);
    latch_wait(&l);
    store_op in = {.section = 2, .slot = 1, .buf = region + n, .sum = out.sum};
    latch_submit(b.store, &in, &l);
    latch_wait(&l);
    cr_assert_eq(in.rc, MOE_OK, "%s", in.text);
    cr_assert_eq(fill_differs(region + n, some_parts[0], 77), some_parts[0]);
    real_end(&b);
    free(region);
}

/* --- damage ------------------------------------------------------------------------------------------------------------------ */

static void damaged(const char *backend)
{
    fixture b;
    if (!real_setup(&b, backend, 1))
        return;
    OK(store_open(&b.store, &b.c));
    uint64_t sums[SECTIONS * STORE_PARTS] = {0};
    OK(move_all(&b, true, 0, sums));
    store_close(b.store);
    b.store = NULL;
    char path[SCRATCH_PATH + 32];
    snprintf(path, sizeof path, "%s/slot-0.bin", b.path[0]);
    scratch_flip(path, 2 * IO_CHUNK + 5);
    reopen(&b);
    FAILS(move_all(&b, false, 0, sums), MOE_E_DATA, "section 0 part w slot 0: checksum mismatch");
    cr_assert(strstr(moe_error_text(), "slot-0.bin at offset 0: expected "), "%s", moe_error_text());
    store_close(b.store);
    b.store = NULL;

    b.c.uuid[0] = 9;
    FAILS(store_open(&b.store, &b.c), MOE_E_CONFIG, "belongs to run 01020300-");
    b.c.create = true;
    FAILS(store_open(&b.store, &b.c), MOE_E_CREATE, "holds the store of run 01020300-");
    b.c.uuid[0] = 1;
    b.c.create = false;
    b.c.sections = 6;
    FAILS(store_open(&b.store, &b.c), MOE_E_DATA, "a store of 4 sections, expected 6");
    b.c.sections = SECTIONS;
    b.c.part_bytes[2]++;
    FAILS(store_open(&b.store, &b.c), MOE_E_DATA, "part v");
    b.c.part_bytes[2]--;
    cr_assert_eq(truncate(path, 8192), 0);
    FAILS(store_open(&b.store, &b.c), MOE_E_DATA, "slot-0.bin: 8192 bytes, expected ");
    cr_assert_eq(unlink(path), 0);
    FAILS(store_open(&b.store, &b.c), MOE_E_NOINPUT, "slot-0.bin: missing");
    snprintf(path, sizeof path, "%s/store.id", b.path[0]);
    scratch_flip(path, 33);
    FAILS(store_open(&b.store, &b.c), MOE_E_DATA, "store.id: checksum mismatch");
    cr_assert_eq(truncate(path, 5), 0);
    FAILS(store_open(&b.store, &b.c), MOE_E_DATA, "store.id");
    cr_assert_eq(unlink(path), 0);
    FAILS(store_open(&b.store, &b.c), MOE_E_NOINPUT, "store.id: missing");
    b.c.create = true; /* files of nobody are not overwritten */
    FAILS(store_open(&b.store, &b.c), MOE_E_CREATE, "slot-1.bin");
    real_end(&b);
}

Test(store, damaged_io_uring) { damaged("io_uring"); }

Test(store, damaged_pread) { damaged("pread"); }

/* A file cut while it is open: the read says where it ended. */
Test(store, file_ends_inside_a_record)
{
    static const char *const backends[] = {"io_uring", "pread"};
    for (int i = 0; i < 2; i++) {
        fixture b;
        if (!real_setup(&b, backends[i], 1))
            continue;
        OK(store_open(&b.store, &b.c));
        uint64_t sums[SECTIONS * STORE_PARTS] = {0};
        OK(move_all(&b, true, 0, sums));
        char path[SCRATCH_PATH + 32];
        snprintf(path, sizeof path, "%s/slot-0.bin", b.path[0]);
        cr_assert_eq(truncate(path, IO_CHUNK + 8192), 0);
        FAILS(move_all(&b, false, 0, sums), MOE_E_IO, "the file ends there");
        real_end(&b);
    }
}

Test(store, swapped_folders)
{
    fixture b;
    if (!real_setup(&b, "auto", 2))
        return;
    OK(store_open(&b.store, &b.c));
    store_close(b.store);
    b.store = NULL;
    b.c.create = false;
    const char *t = b.dirs[0];
    b.dirs[0] = b.dirs[1];
    b.dirs[1] = t;
    FAILS(store_open(&b.store, &b.c), MOE_E_CONFIG, "the same folders in order");
    b.c.ndirs = 1;
    FAILS(store_open(&b.store, &b.c), MOE_E_CONFIG, "the same folders in order");
    real_end(&b);
}

Test(store, creating_again_after_an_interrupted_creation)
{
    fixture b;
    if (!real_setup(&b, "auto", 1))
        return;
    OK(store_open(&b.store, &b.c));
    store_close(b.store);
    char path[SCRATCH_PATH + 32];
    snprintf(path, sizeof path, "%s/slot-1.bin", b.path[0]);
    cr_assert_eq(unlink(path), 0);
    OK(store_open(&b.store, &b.c));
    real_end(&b);
}

/* --- disks that do not fit --------------------------------------------------------------------------------------------------- */

Test(store, tmpfs_is_refused)
{
    fixture b;
    struct stat st;
    if (stat("/dev/shm", &st) != 0 || !real_setup(&b, "auto", 1))
        return;
    snprintf(b.path[0], SCRATCH_PATH, "/dev/shm/store-test-%d", (int)getpid());
    b.c.buffered = false;
    const moe_err rc = store_open(&b.store, &b.c);
    rmdir(b.path[0]);
    cr_assert_eq(rc, MOE_E_CONFIG);
    cr_assert(strstr(moe_error_text(), "memory.buffered"), "%s", moe_error_text());
    real_end(&b);
}

Test(store, disk_too_small_names_what_is_missing)
{
    fixture b;
    if (!real_setup(&b, "auto", 2))
        return;
    b.c.sections = 1 << 24; /* some 90 TB */
    FAILS(store_open(&b.store, &b.c), MOE_E_IO, "disk full: the store needs ");
    cr_assert(strstr(moe_error_text(), " are free ("), "%s", moe_error_text());
    cr_assert_gt(store_disk_bytes(&b.c), 1ULL << 40);
    b.c.sections = INT32_MAX;
    b.c.part_bytes[0] = SIZE_MAX;
    FAILS(store_open(&b.store, &b.c), MOE_E_CONFIG, "too large");
    real_end(&b);
}

/* --- faults a real disk does not offer --------------------------------------------------------------------------------------- */

static void sim_setup(fixture *b, sim_disk **d)
{
    memset(b, 0, sizeof *b);
    *d = sim_disk_new(3);
    b->io = sim_disk_io(*d);
    b->dirs[0] = "store";
    b->c = (store_config){.io = b->io, .dirs = b->dirs, .ndirs = 1, .sections = SECTIONS, .slots = 1, .create = true, .depth = 2,
                          .spill_bytes = IO_CHUNK};
    memcpy(b->c.part_bytes, some_parts, sizeof some_parts);
}

Test(store, unfit_file_systems)
{
    fixture b;
    sim_disk *d;
    sim_setup(&b, &d);
    sim_disk_set_in_memory(d, true);
    FAILS(store_open(&b.store, &b.c), MOE_E_CONFIG, "memory.buffered");
    sim_disk_set_in_memory(d, false);
    sim_disk_set_no_direct(d, true);
    FAILS(store_open(&b.store, &b.c), MOE_E_CONFIG, "O_DIRECT");
    sim_disk_set_in_memory(d, true);
    b.c.buffered = true;
    OK(store_open(&b.store, &b.c));
    store_close(b.store);
    sim_disk_fail(d, SIM_CREATE, "store/", 100, MOE_E_CREATE, "Read-only file system");
    FAILS(store_open(&b.store, &b.c), MOE_E_CREATE, "Read-only");
    sim_disk_free(d);
}

Test(store, read_and_write_errors_name_the_file_and_pass)
{
    fixture b;
    sim_disk *d;
    sim_setup(&b, &d);
    OK(store_open(&b.store, &b.c));
    uint64_t sums[SECTIONS * STORE_PARTS] = {0};
    OK(move_all(&b, true, 0, sums));
    sim_disk_fail(d, SIM_WRITE, "slot-0", 1, MOE_E_IO, "disk full");
    FAILS(move_all(&b, true, 0, sums), MOE_E_IO, "slot-0.bin: disk full");
    OK(move_all(&b, true, 0, sums));
    sim_disk_fail(d, SIM_READ, "slot-0", 3, MOE_E_IO, "Input/output error");
    FAILS(move_all(&b, false, 0, sums), MOE_E_IO, "slot-0.bin: Input/output error");
    OK(move_all(&b, false, 0, sums));
    OK(store_sync(b.store));
    store_close(b.store);
    sim_disk_free(d);
}

Test(store, a_failed_sync_is_not_forgotten)
{
    fixture b;
    sim_disk *d;
    sim_setup(&b, &d);
    OK(store_open(&b.store, &b.c));
    uint64_t sums[SECTIONS * STORE_PARTS] = {0};
    OK(move_all(&b, true, 0, sums));
    sim_disk_fail(d, SIM_SYNC, "slot-0", 1, MOE_E_IO, "Input/output error");
    FAILS(store_sync(b.store), MOE_E_IO, "Input/output error");
    FAILS(store_sync(b.store), MOE_E_IO, "Input/output error");
    store_close(b.store);
    b.c.create = false;
    OK(store_open(&b.store, &b.c));
    OK(store_sync(b.store));
    store_close(b.store);
    sim_disk_free(d);
}

/* A disk that does not answer: every op ends with a sentence, later ones at once, and close returns. */
Test(store, deadline, .timeout = 20)
{
    fixture b;
    sim_disk *d;
    sim_setup(&b, &d);
    b.c.deadline_seconds = 0.2;
    OK(store_open(&b.store, &b.c));
    sim_disk_fail(d, SIM_HANG, "slot-0", 1, MOE_E_IO, "");
    uint64_t sums[SECTIONS * STORE_PARTS] = {0};
    FAILS(move_all(&b, true, 0, sums), MOE_E_IO, "it does not answer");
    FAILS(move_all(&b, false, 0, sums), MOE_E_IO, "it does not answer");
    FAILS(store_sync(b.store), MOE_E_IO, "it does not answer");
    sim_disk_fail(d, SIM_HANG, "", 0, MOE_OK, ""); /* late answers find nobody, and nothing breaks */
    store_close(b.store);
    sim_disk_free(d);
}

Test(store, impossible_ops_end_with_a_sentence)
{
    fixture b;
    sim_disk *d;
    sim_setup(&b, &d);
    OK(store_open(&b.store, &b.c));
    char *buf = fill_alloc(8 * IO_CHUNK);
    const store_op bad[] = {
        {.section = -1, .buf = buf},
        {.section = SECTIONS, .buf = buf},
        {.slot = 1, .buf = buf},
        {.slot = -1, .buf = buf},
        {.buf = buf + 8},
        {.spill = true, .buf = buf, .offset = 1, .bytes = 1},
        {.spill = true, .buf = buf, .offset = 0, .bytes = IO_CHUNK + 1},
        {.spill = true, .buf = buf, .offset = UINT64_MAX - 4095, .bytes = 8192},
        {.spill = true, .buf = buf, .offset = 0, .bytes = 0},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        latch l = LATCH_INIT;
        store_op op = bad[i];
        latch_submit(b.store, &op, &l);
        latch_wait(&l);
        cr_assert_neq(op.rc, MOE_OK, "op %zu", i);
        cr_assert(strlen(op.text) > 0);
    }
    store_close(b.store);
    free(buf);
    sim_disk_free(d);
}

/* --- who goes first ---------------------------------------------------------------------------------------------------------- */

typedef struct order {
    pthread_mutex_t lock;
    char ended[64];
    int n;
    latch *latch;
} order;

static void note_end(store_op *op)
{
    order *o = op->user;
    pthread_mutex_lock(&o->lock);
    o->ended[o->n++] = "DWP"[op->priority];
    pthread_mutex_unlock(&o->lock);
    pthread_mutex_lock(&o->latch->lock);
    o->latch->left--;
    pthread_cond_signal(&o->latch->zero);
    pthread_mutex_unlock(&o->latch->lock);
}

/* One transfer at a time: demand first, but two dozen of it do not keep a write or a prefetch waiting to the end. */
Test(store, priorities_without_starvation)
{
    fixture b;
    sim_disk *d;
    sim_setup(&b, &d);
    b.c.depth = 1;
    OK(store_open(&b.store, &b.c));
    latch l = LATCH_INIT;
    order o = {.lock = PTHREAD_MUTEX_INITIALIZER, .latch = &l};
    enum { N = 36 };
    static store_op op[N];
    char *buf = fill_alloc(N * IO_ALIGN);
    sim_disk_fail(d, SIM_READ, "slot-0", 0, MOE_OK, "");
    l.left = N;
    for (int i = 0; i < N; i++) {
        const store_priority pri = i < 6 ? STORE_PREFETCH : i < 12 ? STORE_WRITE : STORE_DEMAND;
        op[i] = (store_op){.write = true, .priority = pri, .section = i % SECTIONS, .part = STORE_M, .buf = buf + (size_t)i * IO_ALIGN,
                           .done = note_end, .user = &o};
    }
    for (int i = 0; i < N; i++)
        store_submit(b.store, &op[i]);
    latch_wait(&l);
    OK(store_check(b.store));
    int last_demand = 0, first_prefetch = N, first_write = N;
    for (int i = 0; i < N; i++) {
        last_demand = o.ended[i] == 'D' ? i : last_demand;
        first_prefetch = o.ended[i] == 'P' && first_prefetch == N && i > 0 ? i : first_prefetch;
        first_write = o.ended[i] == 'W' && first_write == N ? i : first_write;
    }
    cr_assert(first_write < last_demand && first_prefetch < last_demand, "order %.36s", o.ended);
    store_close(b.store);
    free(buf);
    sim_disk_free(d);
}
