/* The fixture of the store tests: a store of a few odd-sized parts over real files or the simulated disk, and all its parts moved
 * at once. */
#ifndef MOE_TESTS_MEMORY_STORE_FIXTURE_H
#define MOE_TESTS_MEMORY_STORE_FIXTURE_H

#include <criterion/criterion.h>
#include <stdio.h>

#include "tests/memory/disk_fill.h"
#include "tests/memory/scratch.h"
#include "tests/memory/sim_disk.h"

#define OK(call) cr_assert_eq((call), MOE_OK, "%s", moe_error_text())
#define FAILS(call, code, text)                                                                                                  \
    do {                                                                                                                         \
        cr_assert_eq((call), (code), "%s", moe_error_text());                                                                    \
        cr_assert(strstr(moe_error_text(), (text)), "\"%s\" lacks \"%s\"", moe_error_text(), (text));                            \
    } while (0)

enum { SECTIONS = 4 };

static const size_t some_parts[STORE_PARTS] = {2 * IO_CHUNK + 12345, 5000, 4096, IO_CHUNK, 100};

typedef struct fixture {
    scratch dir;
    io *io;
    store *store;
    store_config c;
    const char *dirs[2];
    char path[2][SCRATCH_PATH];
} fixture;

static inline bool real_setup(fixture *b, const char *backend, int ndirs)
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
    b->c = (store_config){.io = b->io,
                          .dirs = b->dirs,
                          .ndirs = ndirs,
                          .uuid = {1, 2, 3},
                          .sections = SECTIONS,
                          .slots = 2,
                          .spill_bytes = 5 * IO_CHUNK + IO_ALIGN,
                          .create = true};
    memcpy(b->c.part_bytes, some_parts, sizeof some_parts);
    b->c.buffered = !scratch_has_direct(&b->dir);
    return true;
}

static inline void real_end(fixture *b)
{
    store_close(b->store);
    io_close(b->io);
    scratch_remove(&b->dir);
}

static inline void reopen(fixture *b)
{
    store_close(b->store);
    b->store = NULL;
    b->c.create = false;
    OK(store_open(&b->store, &b->c));
}

static inline uint64_t key(int s, int p, int slot) { return (uint64_t)(s * 100 + p * 10 + slot); }

/* All parts of all sections to or from one slot. sums: [SECTIONS * STORE_PARTS] */
static inline moe_err move_all(fixture *b, bool write, int slot, uint64_t *sums)
{
    enum { N = SECTIONS * STORE_PARTS };
    static store_op op[N];
    latch l = LATCH_INIT;
    for (int i = 0; i < N; i++) {
        const int s = i / STORE_PARTS, p = i % STORE_PARTS;
        op[i] = (store_op){.write = write,
                           .priority = (store_priority)(i % 3),
                           .section = s,
                           .part = (store_part)p,
                           .slot = slot,
                           .buf = fill_alloc(some_parts[p]),
                           .sum = sums[i]};
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
            cr_assert_eq(fill_differs(op[i].buf, some_parts[i % STORE_PARTS], key(i / STORE_PARTS, i % STORE_PARTS, slot)),
                         some_parts[i % STORE_PARTS]);
        sums[i] = op[i].sum;
        free(op[i].buf);
    }
    return rc;
}

static inline void sim_setup(fixture *b, sim_disk **d)
{
    memset(b, 0, sizeof *b);
    *d = sim_disk_new(3);
    b->io = sim_disk_io(*d);
    b->dirs[0] = "store";
    b->c = (store_config){.io = b->io,
                          .dirs = b->dirs,
                          .ndirs = 1,
                          .sections = SECTIONS,
                          .slots = 1,
                          .create = true,
                          .depth = 2,
                          .spill_bytes = IO_CHUNK};
    memcpy(b->c.part_bytes, some_parts, sizeof some_parts);
}

#endif
