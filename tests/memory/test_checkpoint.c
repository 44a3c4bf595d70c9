/* The manifest's reader against hostile bytes, and the checkpoint folder: keep, broken and missing files, failures that repeat.
 * The crash test of the commit protocol is test_crash.c. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <xxhash.h>

#include "memory/checkpoint.h"
#include "memory/manifest.h"
#include "tests/memory/disk_fill.h"
#include "tests/memory/sim_disk.h"

enum { SECTIONS = 4, DENSE_BYTES = 5000 };

typedef struct sample {
    record rec[SECTIONS];
    adamw_step log[16];
    manifest m;
} sample;

static manifest *sample_make(sample *s, uint64_t step)
{
    memset(s, 0, sizeof *s);
    for (int i = 0; i < SECTIONS; i++)
        s->rec[i] = (record){.step = 0, .slot = -1, .grad_slot = -1};
    s->rec[1] = (record){
        .step = step - 1, .grad_step = step, .slot = (int16_t)(step % 2), .grad_slot = (int16_t)(step % 2), .sum = {1, 2, 3, 4}};
    for (uint64_t i = 0; i < step; i++)
        s->log[i] =
            (adamw_step){.step = i + 1, .lr = 1e-3, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1, .clip = 0.5};
    s->m = (manifest){.uuid = {1, 2, 3},
                      .step = step,
                      .sections = SECTIONS,
                      .records = s->rec,
                      .log_steps = step,
                      .log = s->log,
                      .dense_bytes = DENSE_BYTES,
                      .state = "state",
                      .state_bytes = 5};
    return &s->m;
}

Test(manifest, round_trip)
{
    sample s;
    void *data;
    size_t n;
    cr_assert_eq(manifest_format(sample_make(&s, 5), &data, &n), MOE_OK);
    manifest *m;
    cr_assert_eq(manifest_parse(&m, data, n, "test"), MOE_OK, "%s", moe_error_text());
    cr_assert_eq(m->step, 5);
    cr_assert_eq(m->sections, SECTIONS);
    cr_assert(memcmp(m->records, s.rec, sizeof s.rec) == 0);
    cr_assert(m->log_steps == 5 && memcmp(m->log, s.log, 5 * sizeof s.log[0]) == 0);
    cr_assert(m->state_bytes == 5 && memcmp(m->state, "state", 5) == 0);
    cr_assert(memcmp(m->uuid, s.m.uuid, 16) == 0);
    free(m);
    free(data);
}

Test(manifest, every_flipped_bit_and_every_cut_is_refused)
{
    sample s;
    void *data;
    size_t n;
    cr_assert_eq(manifest_format(sample_make(&s, 3), &data, &n), MOE_OK);
    manifest *m;
    for (size_t i = 0; i < 8 * n; i++) {
        ((uint8_t *)data)[i / 8] ^= (uint8_t)(1u << (i % 8));
        cr_assert_eq(manifest_parse(&m, data, n, "test"), MOE_E_DATA, "bit %zu", i);
        cr_assert_null(m);
        ((uint8_t *)data)[i / 8] ^= (uint8_t)(1u << (i % 8));
    }
    for (size_t cut = 0; cut < n; cut++)
        cr_assert_eq(manifest_parse(&m, data, cut, "test"), MOE_E_DATA, "cut at %zu", cut);
    free(data);
}

/* A hostile file has a right checksum. */
static moe_err parse_patched(const void *data, size_t n, size_t at, const void *value, size_t size)
{
    uint8_t *copy = malloc(n);
    memcpy(copy, data, n);
    memcpy(copy + at, value, size);
    const uint64_t sum = XXH3_64bits(copy, n - 8);
    memcpy(copy + n - 8, &sum, 8);
    manifest *m;
    const moe_err rc = manifest_parse(&m, copy, n, "test");
    cr_assert((rc == MOE_OK) == (m != NULL));
    free(m);
    free(copy);
    return rc;
}

Test(manifest, fields_out_of_range_are_refused)
{
    sample s;
    void *data;
    size_t n;
    cr_assert_eq(manifest_format(sample_make(&s, 5), &data, &n), MOE_OK);
    static const uint64_t huge[] = {UINT64_MAX, 1ULL << 63, 1ULL << 40, 1ULL << 32, 306783379, 7};
    for (size_t at = offsetof(manifest_header, version); at < sizeof(manifest_header); at += 8)
        for (size_t k = 0; k < sizeof huge / sizeof huge[0]; k++) {
            const bool free_field = (at >= offsetof(manifest_header, uuid) && at < offsetof(manifest_header, step)) ||
                                    at == offsetof(manifest_header, dense_sum) || at == offsetof(manifest_header, dense_bytes) ||
                                    at == offsetof(manifest_header, sections);
            const moe_err rc = parse_patched(data, n, at, &huge[k], 8);
            cr_assert(rc == MOE_E_DATA || free_field, "offset %zu value %llx accepted", at, (unsigned long long)huge[k]);
        }
    const size_t rec1 = sizeof(manifest_header) + sizeof(record), log0 = sizeof(manifest_header) + SECTIONS * sizeof(record);
#define REFUSED(at, type, value)                                                                                                 \
    cr_assert_eq(parse_patched(data, n, (at), &(type){value}, sizeof(type)), MOE_E_DATA, "%s = %s accepted", #at, #value)
    REFUSED(rec1 + offsetof(record, step), uint64_t, 6);
    REFUSED(rec1 + offsetof(record, step), uint64_t, 5); /* the gradient of step 5 is pending on it */
    REFUSED(rec1 + offsetof(record, grad_step), uint64_t, 6);
    REFUSED(rec1 + offsetof(record, grad_step), uint64_t, 0);
    REFUSED(rec1 + offsetof(record, grad_step), uint64_t, 4);
    REFUSED(rec1 + offsetof(record, slot), int16_t, -2);
    REFUSED(rec1 + offsetof(record, slot), int16_t, -1);
    REFUSED(rec1 + offsetof(record, slot), int16_t, 0x7fff);
    REFUSED(rec1 + offsetof(record, grad_slot), int16_t, -1);
    REFUSED(rec1 + offsetof(record, grad_slot), int16_t, 0x7fff);
    REFUSED(rec1 + offsetof(record, reserved), uint32_t, 1);
    REFUSED(log0 + offsetof(adamw_step, step), uint64_t, 2);
    REFUSED(log0 + offsetof(adamw_step, lr), double, __builtin_nan(""));
    REFUSED(log0 + offsetof(adamw_step, lr), double, __builtin_inf());
    REFUSED(log0 + offsetof(adamw_step, beta1), double, -0.5);
    REFUSED(log0 + offsetof(adamw_step, beta2), double, 1.5);
    REFUSED(log0 + offsetof(adamw_step, eps), double, -1);
    REFUSED(log0 + offsetof(adamw_step, clip), double, 1.5);
    REFUSED(log0 + offsetof(adamw_step, weight_decay), double, __builtin_nan(""));
#undef REFUSED
    free(data);
}

Test(manifest, log_must_reach_back_to_the_oldest_record)
{
    sample s;
    sample_make(&s, 5);
    s.m.log = s.log + 1; /* steps 2 .. 5; section 0 stands at step 0 */
    s.m.log_steps = 4;
    cr_assert_eq(manifest_check(&s.m, "test"), MOE_E_DATA);
    for (int i = 0; i < SECTIONS; i++)
        if (i != 1)
            s.rec[i] = (record){.step = 1, .slot = 0, .grad_slot = -1};
    cr_assert_eq(manifest_check(&s.m, "test"), MOE_OK, "%s", moe_error_text());
}

Test(manifest, nothing_in_it)
{
    const manifest empty = {.sections = 0, .dense_slot = -1};
    void *data;
    size_t n;
    cr_assert_eq(manifest_format(&empty, &data, &n), MOE_OK);
    manifest *m;
    cr_assert_eq(manifest_parse(&m, data, n, "test"), MOE_OK, "%s", moe_error_text());
    free(m);
    free(data);
}

/* --- the folder --------------------------------------------------------------------------------------------------------------
 */

typedef struct folder {
    sim_disk *d;
    checkpoint *c;
    const manifest *latest;
    char note[512];
    void *dense;
} folder;

static moe_err folder_open(folder *f, int keep)
{
    if (f->d == NULL)
        f->d = sim_disk_new(1);
    if (f->dense == NULL)
        f->dense = fill_alloc(DENSE_BYTES);
    checkpoint_close(f->c);
    f->c = NULL;
    return checkpoint_open(&f->c, sim_disk_io(f->d), "ck", keep, true, &f->latest, f->note);
}

static void folder_close(folder *f)
{
    checkpoint_close(f->c);
    sim_disk_free(f->d);
    free(f->dense);
}

static moe_err folder_commit(folder *f, uint64_t step)
{
    sample s;
    fill_bytes(f->dense, DENSE_BYTES, step);
    return checkpoint_commit(f->c, NULL, sample_make(&s, step), f->dense);
}

static void count_name(void *user, const char *name)
{
    (void)name;
    ++*(int *)user;
}

static int folder_files(folder *f)
{
    int n = 0;
    cr_assert_eq(sim_disk_io(f->d)->ops->list(sim_disk_io(f->d), "ck", count_name, &n), MOE_OK);
    return n;
}

#define OK(call) cr_assert_eq((call), MOE_OK, "%s", moe_error_text())

Test(checkpoint, keeps_as_many_as_asked)
{
    folder f = {0};
    OK(folder_open(&f, 2));
    cr_assert_null(f.latest);
    for (uint64_t step = 1; step <= 6; step++)
        OK(folder_commit(&f, step));
    cr_assert_eq(folder_files(&f), 2 + 3); /* manifests; dense slots: keep + 1 */
    cr_assert(checkpoint_names_slot(f.c, 1, 0, false) && checkpoint_names_slot(f.c, 1, 1, true));
    cr_assert_not(checkpoint_names_slot(f.c, 0, 0, false));
    OK(folder_open(&f, 1)); /* fewer now: the older one goes with the next commit */
    cr_assert_eq(f.latest->step, 6);
    cr_assert_not(checkpoint_names_slot(f.c, 1, 1, false));
    OK(folder_commit(&f, 7));
    cr_assert(checkpoint_names_slot(f.c, 1, 1, false) && !checkpoint_names_slot(f.c, 1, 0, false));
    OK(folder_commit(&f, 7)); /* the same step again replaces it */
    OK(folder_open(&f, 1));
    cr_assert_eq(f.latest->step, 7);
    OK(checkpoint_read_dense(f.c, f.dense, DENSE_BYTES));
    cr_assert_eq(fill_differs(f.dense, DENSE_BYTES, 7), DENSE_BYTES);
    cr_assert_eq(f.latest->dense_bytes, DENSE_BYTES);
    folder_close(&f);
}

Test(checkpoint, broken_newest_is_skipped_with_a_note)
{
    folder f = {0};
    OK(folder_open(&f, 2));
    OK(folder_commit(&f, 1));
    OK(folder_commit(&f, 2));
    cr_assert(sim_disk_flip(f.d, "ck/manifest-2.bin", 70));
    OK(folder_open(&f, 2));
    cr_assert_eq(f.latest->step, 1);
    cr_assert(strstr(f.note, "manifest-2.bin") && strstr(f.note, "step 1"), "%s", f.note);
    OK(checkpoint_read_dense(f.c, f.dense, DENSE_BYTES));
    cr_assert_eq(fill_differs(f.dense, DENSE_BYTES, 1), DENSE_BYTES);
    cr_assert(sim_disk_flip(f.d, "ck/manifest-1.bin", 70));
    cr_assert_eq(folder_open(&f, 2), MOE_E_DATA); /* never silently from the beginning */
    cr_assert(strstr(moe_error_text(), "no checkpoint is whole"));
    folder_close(&f);
}

Test(checkpoint, a_read_error_is_not_a_broken_manifest)
{
    folder f = {0};
    OK(folder_open(&f, 2));
    OK(folder_commit(&f, 1));
    OK(folder_commit(&f, 2));
    sim_disk_fail(f.d, SIM_READ, "manifest-2", 1, MOE_E_IO, "Input/output error");
    cr_assert_eq(folder_open(&f, 2), MOE_E_IO);
    cr_assert(strstr(moe_error_text(), "manifest-2.bin"));
    folder_close(&f);
}

Test(checkpoint, dense_part_damaged_or_missing)
{
    folder f = {0};
    OK(folder_open(&f, 1));
    OK(folder_commit(&f, 1));
    cr_assert_eq(checkpoint_read_dense(f.c, f.dense, DENSE_BYTES + 1), MOE_E_DATA);
    cr_assert(sim_disk_flip(f.d, "ck/dense-0.bin", 4999));
    cr_assert_eq(checkpoint_read_dense(f.c, f.dense, DENSE_BYTES), MOE_E_DATA);
    cr_assert(strstr(moe_error_text(), "checksum"));
    cr_assert(sim_disk_truncate(f.d, "ck/dense-0.bin", 4096));
    cr_assert_eq(checkpoint_read_dense(f.c, f.dense, DENSE_BYTES), MOE_E_DATA);
    cr_assert(sim_disk_remove(f.d, "ck/dense-0.bin"));
    cr_assert_eq(checkpoint_read_dense(f.c, f.dense, DENSE_BYTES), MOE_E_NOINPUT);
    folder_close(&f);
}

Test(checkpoint, full_disk_leaves_the_last_one_and_the_object_usable)
{
    folder f = {0};
    OK(folder_open(&f, 1));
    OK(folder_commit(&f, 1));
    for (uint64_t free_bytes = 0; free_bytes < 9000; free_bytes += 300) {
        sim_disk_set_free_bytes(f.d, free_bytes);
        const moe_err rc = folder_commit(&f, 2);
        if (rc == MOE_OK)
            break;
        cr_assert_eq(rc, MOE_E_IO);
        cr_assert(strstr(moe_error_text(), "disk full"), "%s", moe_error_text());
        sim_disk *booted = sim_disk_reboot(f.d, UINT64_MAX, 0);
        folder g = {.d = booted};
        OK(folder_open(&g, 1));
        cr_assert_eq(g.latest->step, 1);
        OK(checkpoint_read_dense(g.c, g.dense, DENSE_BYTES));
        folder_close(&g);
    }
    OK(folder_commit(&f, 3));
    folder_close(&f);
}

Test(checkpoint, a_folder_that_cannot_be_synced_for_a_while)
{
    folder f = {0};
    OK(folder_open(&f, 2));
    OK(folder_commit(&f, 1));
    sim_disk_fail(f.d, SIM_SYNC_DIR, "ck", 200, MOE_E_IO, "Input/output error");
    for (int i = 0; i < 200; i++)
        cr_assert_eq(folder_commit(&f, 2), MOE_E_IO);
    OK(folder_commit(&f, 2));
    OK(folder_open(&f, 2));
    cr_assert_eq(f.latest->step, 2);
    folder_close(&f);
}

Test(checkpoint, read_only_folder)
{
    folder f = {0};
    OK(folder_open(&f, 1));
    OK(folder_commit(&f, 1));
    sim_disk_fail(f.d, SIM_CREATE, "ck/", 1000, MOE_E_CREATE, "Read-only file system");
    cr_assert_eq(folder_commit(&f, 2), MOE_E_CREATE);
    OK(folder_open(&f, 1));
    cr_assert_eq(f.latest->step, 1);
    folder_close(&f);
}

Test(checkpoint, an_impossible_manifest_is_never_written)
{
    folder f = {0};
    sample s;
    OK(folder_open(&f, 1));
    sample_make(&s, 3);
    s.rec[0].grad_slot = 1; /* without a gradient */
    cr_assert_eq(checkpoint_commit(f.c, NULL, &s.m, f.dense), MOE_E_DATA);
    cr_assert_eq(folder_files(&f), 0);
    cr_assert_eq(folder_open(&f, 0), MOE_E_CONFIG);
    folder_close(&f);
}

Test(checkpoint, latest_stays_valid_while_commits_go_on)
{
    folder f = {0};
    OK(folder_open(&f, 1));
    OK(folder_commit(&f, 1));
    OK(folder_open(&f, 1));
    const manifest *first = f.latest;
    for (uint64_t step = 2; step < 6; step++)
        OK(folder_commit(&f, step));
    cr_assert_eq(first->step, 1);
    cr_assert_eq(first->records[1].grad_step, 1);
    folder_close(&f);
}
