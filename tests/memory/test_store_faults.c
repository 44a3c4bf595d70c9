/* The store over the simulated disk: unfit and full file systems, errors, disks that do not answer, impossible ops, who goes
 * first. */
#include "tests/memory/store_fixture.h"

static void count_slots(void *user, const char *name)
{
    *(int *)user += strncmp(name, "slot-", 5) == 0 || strcmp(name, "spill.bin") == 0;
}

/* The disk fills up while files are made (statvfs cannot know): what was made goes away again. */
Test(store, full_disk_while_creating_leaves_no_files)
{
    fixture b;
    sim_disk *d;
    sim_setup(&b, &d);
    b.c.slots = 3;
    for (uint64_t n = 0;; n++) {
        sim_disk_fail_at(d, n + sim_disk_operations(d), MOE_E_IO, "disk full");
        const uint64_t before = sim_disk_operations(d);
        const moe_err rc = store_open(&b.store, &b.c);
        if (rc == MOE_OK)
            break;
        cr_assert_gt(sim_disk_operations(d), before);
        cr_assert(strstr(moe_error_text(), "disk full"), "%s", moe_error_text());
        int left = 0;
        if (b.io->ops->exists(b.io, "store"))
            OK(b.io->ops->list(b.io, "store", count_slots, &left));
        cr_assert_eq(left, 0, "operation %llu", (unsigned long long)n);
    }
    store_close(b.store);
    b.c.create = false;
    b.c.slots = 5; /* the same while slots are added: the store opens as before */
    int left = 0;
    sim_disk_fail_at(d, sim_disk_operations(d) + 3, MOE_E_IO, "disk full");
    FAILS(store_open(&b.store, &b.c), MOE_E_IO, "disk full");
    OK(b.io->ops->list(b.io, "store", count_slots, &left));
    cr_assert_eq(left, 3 + 1);
    b.c.slots = 3;
    OK(store_open(&b.store, &b.c));
    cr_assert_eq(store_slots(b.store), 3);
    store_close(b.store);
    sim_disk_free(d);
}

/* --- faults a real disk does not offer ---------------------------------------------------------------------------------------
 */

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

/* --- who goes first ----------------------------------------------------------------------------------------------------------
 */

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
        op[i] = (store_op){.write = true,
                           .priority = pri,
                           .section = i % SECTIONS,
                           .part = STORE_M,
                           .buf = buf + (size_t)i * IO_ALIGN,
                           .done = note_end,
                           .user = &o};
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
