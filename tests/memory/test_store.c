/* The store over real files, with both backends: round trips, damage, wrong folders, full and unfit disks. The files live under
 * $TMPDIR or /var/tmp. What a real disk cannot be made to do is in test_store_faults.c. */
#include <sys/stat.h>

#include "tests/memory/store_fixture.h"

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
    sums[0][2 * STORE_PARTS - 1] ^= 1;
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

/* --- damage ------------------------------------------------------------------------------------------------------------------
 */

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
    b.c.part_bytes[STORE_V]++;
    FAILS(store_open(&b.store, &b.c), MOE_E_DATA, "part v");
    b.c.part_bytes[STORE_V]--;
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

/* --- disks that do not fit ---------------------------------------------------------------------------------------------------
 */

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
    FAILS(store_open(&b.store, &b.c), MOE_E_CONFIG, "the disk is too small: the store needs ");
    cr_assert(strstr(moe_error_text(), " are free ("), "%s", moe_error_text());
    cr_assert_gt(store_disk_bytes(&b.c), 1ULL << 40);
    b.c.sections = INT32_MAX;
    b.c.part_bytes[0] = SIZE_MAX;
    FAILS(store_open(&b.store, &b.c), MOE_E_CONFIG, "too large");
    real_end(&b);
}
