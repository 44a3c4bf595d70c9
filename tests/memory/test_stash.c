/* The activation stash on a store without a disk, and with none at all. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "memory/stash.h"
#include "tests/memory/fake_store.h"

#define OK(call)                                                                                                                 \
    do {                                                                                                                         \
        const moe_err ok_rc = (call);                                                                                            \
        cr_assert(ok_rc == MOE_OK, "%s: %s", #call, moe_error_text());                                                           \
    } while (0)

static uint64_t seed;

static uint64_t draw(uint64_t n)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (seed >> 11) % n;
}

static void check(stash *s, store *st)
{
    OK(stash_check(s));
    if (st != NULL)
        cr_assert_str_eq(fake_store_problem(st), "");
}

static uint64_t word_of(int pass, stash_id id, size_t i)
{
    return ((uint64_t)pass << 48) ^ ((uint64_t)(unsigned)id << 24) ^ (i * 0x9e3779b97f4a7c15u);
}

static void write_block(void *buf, size_t bytes, int pass, stash_id id)
{
    for (size_t i = 0; i < bytes / 8; i++)
        ((uint64_t *)buf)[i] = word_of(pass, id, i);
}

static void check_block(const void *buf, size_t bytes, int pass, stash_id id)
{
    for (size_t i = 0; i < bytes / 8; i++)
        cr_assert(((const uint64_t *)buf)[i] == word_of(pass, id, i), "pass %d block %d word %zu: %llx, expected %llx", pass, id,
                  i, (unsigned long long)((const uint64_t *)buf)[i], (unsigned long long)word_of(pass, id, i));
}

typedef struct made {
    stash_id id;
    size_t bytes;
} made;

/* Layers of up to three blocks; backward takes and frees a layer's blocks in any order. */
static moe_err pass(stash *s, store *st, int number, int layers, size_t largest, bool give_up)
{
    made m[64][3];
    int count[64];
    for (int l = 0; l < layers; l++) {
        count[l] = 1 + (int)draw(3);
        void *buf[3];
        for (int i = 0; i < count[l]; i++) {
            m[l][i].bytes = 8 * (1 + draw(largest / 8));
            TRY(stash_new(s, m[l][i].bytes, &m[l][i].id, &buf[i]));
            check(s, st);
            if (draw(2) == 0) { /* sealed at once, or with its layer */
                write_block(buf[i], m[l][i].bytes, number, m[l][i].id);
                stash_seal(s, m[l][i].id);
                buf[i] = NULL;
            }
        }
        for (int i = 0; i < count[l]; i++)
            if (buf[i] != NULL) {
                write_block(buf[i], m[l][i].bytes, number, m[l][i].id);
                stash_seal(s, m[l][i].id);
            }
        check(s, st);
    }
    for (int l = layers - 1; l >= (give_up ? layers / 2 : 0); l--) {
        for (int i = count[l] - 1; i >= 0; i--) {
            void *buf;
            TRY(stash_take(s, m[l][i].id, &buf));
            check(s, st);
            check_block(buf, m[l][i].bytes, number, m[l][i].id);
        }
        const int first = (int)draw((uint64_t)count[l]);
        for (int i = 0; i < count[l]; i++) {
            stash_free(s, m[l][(first + i) % count[l]].id);
            check(s, st);
        }
    }
    if (give_up)
        stash_reset(s);
    check(s, st);
    return MOE_OK;
}

Test(stash, contents_survive_a_small_budget)
{
    const int rounds = getenv("MOE_TEST_LONG") != NULL ? 400 : 16;
    int spilled = 0;
    for (int round = 0; round < rounds; round++) {
        seed = 1000 + (uint64_t)round;
        const size_t largest = 20000, host = 9 * 5 * IO_ALIGN + (size_t)round % 8 * 7 * IO_ALIGN;
        const fake_config f = {.sections = 1,
                               .slots = 1,
                               .part_bytes = 8,
                               .spill_bytes = 8 << 20,
                               .delay_us = round % 2 == 0 ? 80 : 0,
                               .seed = seed};
        store *st = fake_store_open(&f);
        stash *s;
        OK(stash_open(&s, st, host, f.spill_bytes));
        for (int n = 0; n < 4; n++)
            OK(pass(s, st, n, 4 + (int)draw(40), largest, draw(4) == 0));
        stash_reset(s); /* a write may still be in flight */
        check(s, st);
        stash_stats stats;
        stash_get_stats(s, &stats);
        cr_assert(stats.peak_bytes <= host && stats.resident_bytes == 0);
        spilled += stats.spilled_bytes > 0 && fake_store_reads(st) > 0;
        stash_close(s);
        fake_store_close(st);
    }
    cr_assert(spilled > rounds / 2, "only %d of %d rounds spilled", spilled, rounds);
}

Test(stash, without_a_store_everything_stays)
{
    seed = 77;
    stash *s;
    OK(stash_open(&s, NULL, 4 << 20, 0));
    for (int n = 0; n < 4; n++)
        OK(pass(s, NULL, n, 30, 20000, n == 2));
    stash_id id;
    void *buf;
    OK(stash_new(s, 3 << 20, &id, &buf));
    cr_assert_eq(id, 0, "ids begin at 0 again");
    stash_seal(s, id);
    cr_assert_eq(stash_new(s, 2 << 20, &id, &buf), MOE_E_CONFIG);
    cr_assert(strstr(moe_error_text(), "no room") != NULL, "%s", moe_error_text());
    cr_assert_eq(stash_new(s, 5 << 20, &id, &buf), MOE_E_CONFIG);
    check(s, NULL);
    stash_close(s);
}

Test(stash, what_fits_is_never_read_back)
{
    seed = 3;
    const fake_config f = {.sections = 1, .slots = 1, .part_bytes = 8, .spill_bytes = 1 << 20, .seed = 1};
    store *st = fake_store_open(&f);
    stash *s;
    OK(stash_open(&s, st, 4 << 20, f.spill_bytes));
    OK(pass(s, st, 0, 20, 20000, false));
    cr_assert_eq(fake_store_reads(st), 0);
    cr_assert_eq(fake_store_writes(st), 0);
    stash_close(s);
    fake_store_close(st);
}

Test(stash, a_full_spill_file_and_failing_transfers_are_errors)
{
    seed = 5;
    const fake_config f = {.sections = 1, .slots = 1, .part_bytes = 8, .spill_bytes = 10 * IO_ALIGN, .seed = 2};
    store *st = fake_store_open(&f);
    stash *s;
    OK(stash_open(&s, st, 8 * IO_ALIGN, f.spill_bytes));
    moe_err rc = MOE_OK;
    for (int i = 0; i < 100 && rc == MOE_OK; i++) {
        stash_id id;
        void *buf;
        rc = stash_new(s, 2 * IO_ALIGN, &id, &buf);
        if (rc == MOE_OK)
            stash_seal(s, id);
        check(s, st);
    }
    cr_assert_eq(rc, MOE_E_IO);
    cr_assert(strstr(moe_error_text(), "spill file") != NULL, "%s", moe_error_text());
    stash_reset(s);
    for (int round = 0; round < 40;
         round++) { /* some of the time it goes well: nothing may hang, and afterwards all is well again */
        fake_store_fail(st, round % 2 == 0 ? 200 : 0, round % 2 == 0 ? 0 : 200);
        seed = 50 + (uint64_t)round;
        const moe_err failed = pass(s, st, round, 4, IO_ALIGN, false);
        cr_assert(failed == MOE_OK || (failed == MOE_E_IO && strstr(moe_error_text(), "injected") != NULL), "%d %s", failed,
                  moe_error_text());
        stash_reset(s);
        check(s, st);
    }
    fake_store_fail(st, 0, 0);
    OK(pass(s, st, 99, 4, IO_ALIGN, false));
    stash_close(s);
    fake_store_close(st);
}

Test(stash, misuse_is_an_error)
{
    stash *s;
    cr_assert_eq(stash_open(&s, NULL, 100, 0), MOE_E_CONFIG);
    OK(stash_open(&s, NULL, 1 << 20, 0));
    void *buf;
    stash_id id;
    cr_assert_eq(stash_take(s, 0, &buf), MOE_E_CONFIG);
    OK(stash_new(s, 100, &id, &buf));
    OK(stash_take(s, id, &buf));
    cr_assert_eq(stash_take(s, id, &buf), MOE_E_CONFIG);
    stash_free(s, id);
    stash_free(s, id);
    cr_assert_eq(stash_take(s, id, &buf), MOE_E_CONFIG);
    stash_close(s);
}
