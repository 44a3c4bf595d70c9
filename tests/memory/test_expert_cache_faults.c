/* The expert cache and what can be wrong: files that do not hold the experts, reads that fail, records that are damaged, a disk
 * that hangs; and real files through both backends, with the last bytes of a file that O_DIRECT cannot read. */
#include "tests/memory/expert_cache_fixture.h"

static void sim_setup(fixture *f, sim_disk **disk)
{
    *disk = sim_disk_new(3);
    fixture_plan(f, false, 700);
    OK(io_make_dir(sim_disk_io(*disk), "m"));
    fixture_files(f, sim_disk_io(*disk), "m");
}

static moe_err acquire(fixture *f, expert_id id, expert_lease *l)
{
    int which;
    const moe_err rc = expert_cache_acquire_any(f->cache, &id, 1, true, &which, l);
    const moe_err sound = expert_cache_check(f->cache);
    cr_assert(rc == MOE_OK || which <= 0);
    return sound != MOE_OK ? MOE_E_NUMERIC : rc; /* check's sentence then replaces that of the read */
}

Test(expert_cache_faults, experts_outside_their_files)
{
    static const struct {
        int file;
        int64_t offset, bytes;
        const char *text;
    } bad[] = {
        {2, 0, 10, "expert 3 of layer 1 lies in file 2 of 2"},
        {-1, 0, 10, "in file -1"},
        {0, 0, 0, "expert 3 of layer 1: 0 bytes"},
        {0, 1 << 30, 10, "m/file0: expert 3 of layer 1: 10 bytes at offset 1073741824"},
        {1, 100, 1 << 30, "m/file1: expert 3 of layer 1: 1073741824 bytes"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        fixture f;
        sim_disk *disk;
        sim_setup(&f, &disk);
        f.range[EXPERTS + 3][1] = (expert_range){bad[i].file, (uint64_t)bad[i].offset, (size_t)bad[i].bytes};
        f.c.host_bytes = (size_t)8 << 30; /* enough for any slot; nothing is touched */
        FAILS(expert_cache_open(&f.cache, &f.c), MOE_E_DATA, bad[i].text);
        cr_assert(f.cache == NULL);
        sim_disk_free(disk);
    }
}

Test(expert_cache_faults, sizes_that_overflow_and_files_that_are_missing)
{
    fixture f;
    sim_disk *disk;
    sim_setup(&f, &disk);
    f.c.host_bytes = 1 << 24;
    f.range[4][2].bytes = SIZE_MAX - 5;
    cr_assert_eq(expert_cache_least_bytes(&f.c), SIZE_MAX);
    FAILS(expert_cache_open(&f.cache, &f.c), MOE_E_CONFIG, "memory can hold");
    f.range[4][2] = (expert_range){0, UINT64_MAX - 3, 10};
    FAILS(expert_cache_open(&f.cache, &f.c), MOE_E_CONFIG, "memory can hold");
    f.range[4][2] = f.range[3][2];
    cr_assert(sim_disk_remove(disk, "m/file1"));
    FAILS(expert_cache_open(&f.cache, &f.c), MOE_E_NOINPUT, "m/file1");
    f.c.policy = "mru";
    FAILS(expert_cache_open(&f.cache, &f.c), MOE_E_CONFIG, "learned, lru, lfu");
    sim_disk_free(disk);
}

Test(expert_cache_faults, a_choice_out_of_range)
{
    fixture f;
    sim_disk *disk;
    sim_setup(&f, &disk);
    fixture_open(&f, 4);
    FAILS(expert_cache_choose(f.cache, LAYERS, (int32_t[]){0}, 1), MOE_E_DATA, "layer 3");
    FAILS(expert_cache_choose(f.cache, 0, (int32_t[]){EXPERTS}, 1), MOE_E_DATA, "expert 6 of layer 0");
    FAILS(expert_cache_choose(f.cache, 0, (int32_t[]){2, 2}, 2), MOE_E_DATA, "ascending");
    expert_cache_ahead(f.cache, 0, (int32_t[]){-1}, 1);
    expert_lease l;
    FAILS(acquire(&f, IDS, &l), MOE_E_DATA, "section 18");
    OK(expert_cache_check(f.cache));
    expert_cache_close(f.cache);
    sim_disk_free(disk);
}

Test(expert_cache_faults, a_failed_read_is_told_once_and_can_be_tried_again)
{
    fixture f;
    sim_disk *disk;
    sim_setup(&f, &disk);
    fixture_open(&f, 10);
    expert_lease l;
    sim_disk_fail(disk, SIM_READ, "file0", 1, MOE_E_IO, "a bad block");
    FAILS(acquire(&f, 7, &l), MOE_E_IO, "m/file0");
    cr_assert(strstr(moe_error_text(), "expert 1 of layer 1") && strstr(moe_error_text(), "a bad block"), "%s", moe_error_text());
    OK(acquire(&f, 7, &l));
    expect_content(&f, &l);
    expert_cache_release(f.cache, &l);
    f.damaged = 9;
    FAILS(acquire(&f, 9, &l), MOE_E_DATA, "expert 3 of layer 1: the checksum does not match");
    FAILS(acquire(&f, 9, &l), MOE_E_DATA, "m/file");
    f.damaged = -1;
    OK(acquire(&f, 9, &l));
    expect_content(&f, &l);
    expert_cache_release(f.cache, &l);
    expert_cache_close(f.cache);
    sim_disk_free(disk);
}

/* One of a union is damaged: the others come first, then it is named; a read ahead that fails is not told. */
Test(expert_cache_faults, the_others_come_before_the_failure)
{
    fixture f;
    sim_disk *disk;
    sim_setup(&f, &disk);
    fixture_open(&f, 10);
    f.damaged = 2;
    OK(expert_cache_choose(f.cache, 0, (int32_t[]){1, 2, 3, 4}, 4));
    expert_id wanted[4] = {1, 2, 3, 4};
    int which;
    for (int n = 4; n > 1; n--) {
        expert_lease l;
        OK(expert_cache_acquire_any(f.cache, wanted, n, true, &which, &l));
        cr_assert_neq(l.id, 2);
        expect_content(&f, &l);
        expert_cache_release(f.cache, &l);
        memmove(wanted + which, wanted + which + 1, (size_t)(n - which - 1) * sizeof *wanted);
    }
    expert_lease l;
    FAILS(acquire(&f, 2, &l), MOE_E_DATA, "expert 2 of layer 0");
    f.damaged = 8;
    expert_cache_ahead(f.cache, 1, (int32_t[]){2}, 1);
    for (int i = 0; i < 50; i++)
        expert_cache_poll(f.cache);
    f.damaged = -1;
    OK(acquire(&f, 8, &l));
    expert_cache_release(f.cache, &l);
    expert_cache_close(f.cache);
    sim_disk_free(disk);
}

/* More failures than their sentences have room for: each expert is told once, none is read again meanwhile. */
Test(expert_cache_faults, a_disk_that_reads_nothing_any_more_ends_the_wait)
{
    fixture f;
    sim_disk *disk;
    expert_id wanted[IDS];
    expert_cache_stats s;
    sim_setup(&f, &disk);
    fixture_open(&f, IDS);
    for (int i = 0; i < IDS; i++)
        wanted[i] = (expert_id)i;
    sim_disk_fail(disk, SIM_READ, "file", 4000, MOE_E_IO, "the disk is gone");
    for (int n = IDS; n > 0; n--) {
        expert_lease l;
        char name[64];
        int which;
        FAILS(expert_cache_acquire_any(f.cache, wanted, n, true, &which, &l), MOE_E_IO, "m/file");
        cr_assert(which >= 0 && which < n);
        snprintf(name, sizeof name, "expert %u of layer %u: ", wanted[which] % EXPERTS, wanted[which] / EXPERTS);
        cr_assert(strstr(moe_error_text(), name), "\"%s\" lacks \"%s\"", moe_error_text(), name);
        memmove(wanted + which, wanted + which + 1, (size_t)(n - which - 1) * sizeof *wanted);
        OK(expert_cache_check(f.cache));
    }
    expert_cache_get_stats(f.cache, &s);
    cr_assert_eq(s.reads, IDS);
    sim_disk_fail(disk, SIM_READ, "file", 0, MOE_OK, "");
    expert_lease l;
    OK(acquire(&f, 0, &l));
    expect_content(&f, &l);
    expert_cache_release(f.cache, &l);
    expert_cache_close(f.cache);
    sim_disk_free(disk);
}

Test(expert_cache_faults, a_disk_that_hangs_ends_the_wait_and_others_go_on)
{
    fixture f;
    sim_disk *disk;
    sim_setup(&f, &disk);
    f.c.deadline_seconds = 0.05;
    f.c.depth = 3;
    f.c.host_bytes = 1 << 22;
    OK(expert_cache_open(&f.cache, &f.c));
    expert_lease l;
    sim_disk_fail(disk, SIM_HANG, "file0", 1, MOE_OK, "");
    FAILS(acquire(&f, 7, &l), MOE_E_IO, "expert 1 of layer 1: waited 0 s for the disk");
    OK(acquire(&f, 7, &l)); /* another flight reads it */
    expect_content(&f, &l);
    expert_cache_release(f.cache, &l);
    sim_disk_fail(disk, SIM_HANG, "file0", 100, MOE_OK, "");
    for (expert_id id = 10; id < 12; id++)
        FAILS(acquire(&f, id, &l), MOE_E_IO, "it does not answer");
    FAILS(acquire(&f, 12, &l), MOE_E_IO, "3 reads never came back");
    OK(acquire(&f, 7, &l)); /* what is resident is still there */
    expect_content(&f, &l);
    sim_disk_fail(disk, SIM_HANG, "file0", 0, MOE_OK, ""); /* the hung ones come back */
    for (int i = 0; i < 100; i++)
        expert_cache_poll(f.cache);
    expert_lease other;
    OK(acquire(&f, 12, &other));
    expect_content(&f, &l);
    expect_content(&f, &other);
    expert_cache_release(f.cache, &l);
    expert_cache_release(f.cache, &other);
    expert_cache_close(f.cache);
    sim_disk_free(disk);
}

Test(expert_cache_faults, closing_while_reads_are_in_flight)
{
    fixture f;
    sim_disk *disk;
    sim_setup(&f, &disk);
    fixture_open(&f, 12);
    OK(expert_cache_choose(f.cache, 0, (int32_t[]){0, 1, 2, 3, 4, 5}, 6));
    expert_cache_ahead(f.cache, 1, (int32_t[]){0, 1, 2, 3}, 4);
    expert_cache_close(f.cache);
    expert_cache_close(NULL);
    sim_disk_free(disk);
}

/* --- real files --------------------------------------------------------------------------------------------------------------
 */

static void all_of_it(fixture *f, int slots)
{
    fixture_open(f, slots);
    uint32_t x = 17;
    for (int pass = 0; pass < 6; pass++)
        for (int layer = 0; layer < LAYERS; layer++) {
            int32_t e[EXPERTS];
            expert_id wanted[EXPERTS];
            int n = pass == 0 ? EXPERTS : draw_choice(&x, e);
            for (int i = 0; pass == 0 && i < n; i++)
                e[i] = i;
            for (int i = 0; i < n; i++)
                wanted[i] = (expert_id)(layer * EXPERTS + e[i]);
            OK(expert_cache_choose(f->cache, layer, e, n));
            if (layer + 1 < LAYERS)
                expert_cache_ahead(f->cache, layer + 1, (int32_t[]){1, 3}, 2);
            for (expert_lease l; n > 0;) {
                int which;
                OK(expert_cache_acquire_any(f->cache, wanted, n, true, &which, &l));
                expect_content(f, &l);
                expert_cache_release(f->cache, &l);
                memmove(wanted + which, wanted + which + 1, (size_t)(n-- - which - 1) * sizeof *wanted);
                OK(expert_cache_check(f->cache));
            }
        }
    OK(expert_cache_save_hot(f->cache, f->path[0], 1)); /* over a file that is open: the old one stays readable */
    expert_cache_close(f->cache);
}

static void real_files(const char *backend, bool records, size_t unit, int slots)
{
    char note[256];
    io *disk;
    if (io_open(&disk, backend, note) != MOE_OK) {
        fprintf(stderr, "skip: %s: %s\n", backend, moe_error_text());
        return;
    }
    scratch dir;
    scratch_make(&dir);
    fixture f;
    fixture_plan(&f, records, unit);
    fixture_files(&f, disk, dir.path);
    cr_assert(f.file_bytes[0] % IO_ALIGN != 0 && f.file_bytes[1] % IO_ALIGN != 0, "the tails are what is tested");
    all_of_it(&f, slots);
    scratch_remove(&dir);
    io_close(disk);
}

Test(expert_cache_faults, real_files_through_io_uring)
{
    real_files("io_uring", false, 1, 4); /* experts smaller than a block: some lie in a file's tail alone */
    real_files("io_uring", false, 5000, 7);
    real_files("io_uring", true, 3000, 5);
    real_files("io_uring", false, 300000, 4); /* ranges of more than one piece */
}

Test(expert_cache_faults, real_files_through_pread)
{
    real_files("pread", false, 1, 4);
    real_files("pread", false, 5000, 7);
    real_files("pread", true, 3000, 5);
    real_files("pread", true, 400000, 3);
}
