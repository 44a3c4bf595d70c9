/* The simulated device: what is ordered by events passes under every schedule, with steps and with threads; whatever lacks an event is found
 * under every schedule too; copies and kernels that fail, hang, or take the device with them. */
#include <criterion/criterion.h>
#include <string.h>

#include "memory/device_sim.h"

#define OK(call) cr_assert_eq((call), MOE_OK, "%s", moe_error_text())

enum { BYTES = 700, SEEDS = 300, THREAD_SEEDS = 20 };

/* Two buffers on the device, three on the host, and the chain copy-in, kernel, copy-out, copy-in of something else into the same place. */
typedef struct bench {
    device *d;
    device_event *arrived, *computed, *emptied;
    void *in, *out;
    uint8_t from[BYTES], next[BYTES], to[BYTES];
} bench;

typedef struct invert_args {
    uint8_t *out;
    const uint8_t *in;
    size_t n;
} invert_args;

static moe_err invert(void *native, const void *args)
{
    const invert_args *a = args;
    cr_assert_null(native);
    for (size_t i = 0; i < a->n; i++)
        a->out[i] = (uint8_t)~a->in[i];
    return MOE_OK;
}

static moe_err refuse(void *native, const void *args)
{
    (void)native;
    return moe_fail(MOE_E_DATA, "expert %d of 8", *(const int *)args);
}

static void set_up(bench *b, uint64_t seed, bool threads)
{
    memset(b, 0, sizeof *b);
    OK(device_sim_open(&b->d, &(device_sim_config){.seed = seed, .threads = threads, .memory_bytes = 1 << 16}));
    OK(b->d->ops->alloc(b->d, &b->in, BYTES, "the input"));
    OK(b->d->ops->alloc(b->d, &b->out, BYTES, "the output"));
    OK(b->d->ops->event_open(b->d, &b->arrived));
    OK(b->d->ops->event_open(b->d, &b->computed));
    OK(b->d->ops->event_open(b->d, &b->emptied));
    for (int i = 0; i < BYTES; i++) {
        b->from[i] = (uint8_t)(i * 7 + 3);
        b->next[i] = (uint8_t)(i * 5 + 1);
    }
}

static void tear_down(bench *b)
{
    b->d->ops->event_close(b->d, b->arrived);
    b->d->ops->event_close(b->d, b->computed);
    b->d->ops->event_close(b->d, b->emptied);
    b->d->ops->free(b->d, b->in);
    b->d->ops->free(b->d, b->out);
    device_sim_stats s;
    device_sim_get_stats(b->d, &s);
    cr_assert(s.events == 0 && s.allocations == 0 && s.free_bytes == 1 << 16);
    device_close(b->d);
}

static moe_err launch_invert(bench *b, size_t bytes)
{
    const invert_args a = {.out = b->out, .in = b->in, .n = bytes};
    const device_range touch[] = {{b->in, bytes, false}, {b->out, bytes, true}};
    return b->d->ops->launch(b->d, &(device_work){.fn = invert, .args = &a, .args_bytes = sizeof a, .touch = touch, .ntouch = 2});
}

typedef enum lack { NOTHING, ARRIVAL, COMPUTED, IN_USE, EMPTIED } lack;

/* The chain twice over, without one of its events. */
static moe_err run_chain(bench *b, lack without)
{
    const device_ops *ops = b->d->ops;
    bool done = false;
    for (int round = 0; round < 2; round++) {
        if (without != IN_USE)
            TRY(ops->wait(b->d, DEVICE_COPY_IN, b->computed));
        TRY(ops->copy(b->d, DEVICE_COPY_IN, b->in, round == 0 ? b->from : b->next, BYTES));
        TRY(ops->record(b->d, DEVICE_COPY_IN, b->arrived));
        if (without != ARRIVAL)
            TRY(ops->wait(b->d, DEVICE_COMPUTE, b->arrived));
        if (without != EMPTIED)
            TRY(ops->wait(b->d, DEVICE_COMPUTE, b->emptied));
        TRY(launch_invert(b, BYTES));
        TRY(ops->record(b->d, DEVICE_COMPUTE, b->computed));
        if (without != COMPUTED)
            TRY(ops->wait(b->d, DEVICE_COPY_OUT, b->computed));
        TRY(ops->copy(b->d, DEVICE_COPY_OUT, b->to, b->out, BYTES));
        TRY(ops->record(b->d, DEVICE_COPY_OUT, b->emptied));
    }
    TRY(ops->sync(b->d, b->emptied, 30, &done));
    return done ? MOE_OK : moe_fail(MOE_E_IO, "not done");
}

static void expect_next_inverted(const bench *b)
{
    for (int i = 0; i < BYTES; i++)
        cr_assert_eq(b->to[i], (uint8_t)~b->next[i], "byte %d", i);
}

Test(device_sim, a_chain_with_its_events_passes_under_every_schedule)
{
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        bench b;
        set_up(&b, seed, seed % (SEEDS / THREAD_SEEDS) == 0);
        OK(run_chain(&b, NOTHING));
        expect_next_inverted(&b);
        device_sim_stats s;
        device_sim_get_stats(b.d, &s);
        cr_assert(s.done[DEVICE_COPY_IN] == 2 && s.done[DEVICE_COMPUTE] == 2 && s.copied_bytes[DEVICE_COPY_OUT] == 2 * BYTES);
        tear_down(&b);
    }
}

Test(device_sim, every_missing_event_is_found_under_every_schedule)
{
    static const struct {
        lack without;
        const char *text, *other; /* which of the two comes too early is the schedule's choice */
    } broken[] = {
        {ARRIVAL, "compute stream reads", "copy-in stream overwrites"},
        {COMPUTED, "copy-out stream reads", "compute stream overwrites"},
        {IN_USE, "copy-in stream overwrites", "compute stream reads"},
        {EMPTIED, "compute stream overwrites", "copy-out stream reads"},
    };
    for (size_t k = 0; k < sizeof broken / sizeof broken[0]; k++)
        for (uint64_t seed = 0; seed < SEEDS; seed++) {
            bench b;
            set_up(&b, seed, seed % (SEEDS / THREAD_SEEDS) == 0);
            cr_assert_eq(run_chain(&b, broken[k].without), MOE_E_NUMERIC, "%s at seed %d", broken[k].text, (int)seed);
            cr_assert(strstr(moe_error_text(), broken[k].text) || strstr(moe_error_text(), broken[k].other), "\"%s\" lacks \"%s\"",
                      moe_error_text(), broken[k].text);
            tear_down(&b);
        }
}

/* What the host has waited for orders what it queues afterwards; a query that says "done" does too. */
Test(device_sim, the_host_orders_by_waiting)
{
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        bench b;
        set_up(&b, seed, false);
        const device_ops *ops = b.d->ops;
        bool done = false;
        OK(ops->copy(b.d, DEVICE_COPY_IN, b.in, b.next, BYTES));
        OK(ops->record(b.d, DEVICE_COPY_IN, b.arrived));
        while (!done)
            OK(ops->query(b.d, b.arrived, &done));
        OK(launch_invert(&b, BYTES));
        OK(ops->record(b.d, DEVICE_COMPUTE, b.computed));
        OK(ops->sync(b.d, b.computed, 1, &done));
        cr_assert(done);
        OK(ops->copy(b.d, DEVICE_COPY_OUT, b.to, b.out, BYTES));
        OK(ops->record(b.d, DEVICE_COPY_OUT, b.emptied));
        OK(ops->sync(b.d, b.emptied, 1, &done));
        cr_assert(done);
        expect_next_inverted(&b);
        tear_down(&b);
    }
}

/* A wait means the record before it: the event's next record, still to come, neither delays it nor orders it. */
Test(device_sim, a_wait_means_the_last_record_before_it)
{
    bench b;
    set_up(&b, 5, false);
    const device_ops *ops = b.d->ops;
    bool done = false;
    OK(ops->sync(b.d, b.computed, 1, &done));
    cr_assert(done); /* never recorded */
    OK(ops->record(b.d, DEVICE_COPY_IN, b.arrived));
    OK(ops->wait(b.d, DEVICE_COMPUTE, b.arrived));
    OK(ops->copy(b.d, DEVICE_COPY_IN, b.in, b.from, BYTES));
    OK(ops->record(b.d, DEVICE_COPY_IN, b.arrived));
    moe_err rc = launch_invert(&b, BYTES);
    if (rc == MOE_OK)
        rc = ops->record(b.d, DEVICE_COMPUTE, b.computed);
    if (rc == MOE_OK)
        rc = ops->sync(b.d, b.computed, 1, &done);
    cr_assert_eq(rc, MOE_E_NUMERIC);
    cr_assert(strstr(moe_error_text(), "compute stream reads"), "%s", moe_error_text());
    tear_down(&b);
}

static moe_err forgotten(bench *b)
{
    TRY(b->d->ops->copy(b->d, DEVICE_COPY_IN, b->in, b->from, BYTES));
    TRY(b->d->ops->forget(b->d, DEVICE_COPY_IN, b->in, BYTES));
    TRY(b->d->ops->record(b->d, DEVICE_COPY_IN, b->arrived));
    TRY(b->d->ops->wait(b->d, DEVICE_COMPUTE, b->arrived));
    return launch_invert(b, BYTES);
}
static moe_err never_written(bench *b) { return launch_invert(b, BYTES); }
static moe_err beyond_the_end(bench *b) { return b->d->ops->copy(b->d, DEVICE_COPY_IN, b->in, b->from, BYTES + DEVICE_ALIGN); }
static moe_err no_device_memory(bench *b) { return b->d->ops->copy(b->d, DEVICE_COPY_IN, b->to, b->from, BYTES); }

Test(device_sim, reading_what_is_not_there_and_touching_what_is_nobodys)
{
    static const struct {
        moe_err (*run)(bench *b);
        const char *text;
    } broken[] = {
        {forgotten, "where nothing is"}, {never_written, "where nothing is"}, {beyond_the_end, "no allocation"}, {no_device_memory, "no allocation"}};
    for (size_t k = 0; k < sizeof broken / sizeof broken[0]; k++)
        for (uint64_t seed = 0; seed < 20; seed++) {
            bench b;
            bool done;
            set_up(&b, seed, false);
            moe_err rc = broken[k].run(&b);
            for (int s = 0; rc == MOE_OK && s < DEVICE_STREAMS; s++) {
                rc = b.d->ops->record(b.d, (device_stream)s, b.emptied);
                if (rc == MOE_OK)
                    rc = b.d->ops->sync(b.d, b.emptied, 1, &done);
            }
            cr_assert_eq(rc, MOE_E_NUMERIC, "%s", broken[k].text);
            cr_assert(strstr(moe_error_text(), broken[k].text), "\"%s\" lacks \"%s\"", moe_error_text(), broken[k].text);
            tear_down(&b);
        }
}

Test(device_sim, faults_end_the_device)
{
    for (uint64_t seed = 0; seed < 60; seed++) {
        bench b;
        set_up(&b, seed, seed % 10 == 0);
        device_sim_strike(b.d, (device_stream)(seed % DEVICE_STREAMS), seed / 3 % 2, seed % 2 ? DEVICE_SIM_FAIL : DEVICE_SIM_LOSE);
        cr_assert_eq(run_chain(&b, NOTHING), MOE_E_IO);
        cr_assert(strstr(moe_error_text(), seed % 2 ? "failed" : "the device is gone"), "%s", moe_error_text());
        bool done;
        const moe_err rc = b.d->ops->sync(b.d, b.emptied, 1, &done);
        cr_assert(done ? rc == MOE_OK : rc == MOE_E_IO);
        tear_down(&b);
    }
}

/* Time is virtual without threads: a deadline is over at once when nothing can move. */
Test(device_sim, a_hung_copy_ends_a_wait_at_its_deadline)
{
    for (int threads = 0; threads < 2; threads++)
        for (int s = 0; s < DEVICE_STREAMS; s++) {
            bench b;
            bool done;
            set_up(&b, (uint64_t)s, threads != 0);
            device_sim_strike(b.d, (device_stream)s, 0, DEVICE_SIM_HANG);
            OK(b.d->ops->copy(b.d, DEVICE_COPY_IN, b.in, b.from, BYTES));
            OK(b.d->ops->record(b.d, DEVICE_COPY_IN, b.arrived));
            OK(b.d->ops->wait(b.d, DEVICE_COMPUTE, b.arrived));
            OK(launch_invert(&b, BYTES));
            OK(b.d->ops->record(b.d, DEVICE_COMPUTE, b.computed));
            OK(b.d->ops->wait(b.d, DEVICE_COPY_OUT, b.computed));
            OK(b.d->ops->copy(b.d, DEVICE_COPY_OUT, b.to, b.out, BYTES));
            OK(b.d->ops->record(b.d, DEVICE_COPY_OUT, b.emptied));
            OK(b.d->ops->sync(b.d, b.emptied, threads ? 0.05 : 3600, &done));
            cr_assert(!done);
            OK(b.d->ops->query(b.d, b.arrived, &done));
            cr_assert(s == DEVICE_COPY_IN ? !done : true);
            tear_down(&b);
        }
}

Test(device_sim, what_a_kernel_says_is_the_error)
{
    bench b;
    bool done;
    set_up(&b, 1, true);
    const int expert = 11;
    OK(b.d->ops->launch(b.d, &(device_work){.fn = refuse, .args = &expert, .args_bytes = sizeof expert}));
    (void)!b.d->ops->record(b.d, DEVICE_COMPUTE, b.computed);
    cr_assert_eq(b.d->ops->sync(b.d, b.computed, 30, &done), MOE_E_DATA);
    cr_assert_str_eq(moe_error_text(), "expert 11 of 8");
    tear_down(&b);
}

Test(device_sim, limits)
{
    bench b;
    void *p;
    char args[DEVICE_ARGS + 1] = {0};
    set_up(&b, 1, false);
    cr_assert_eq(b.d->ops->alloc(b.d, &p, 1 << 16, "a layer"), MOE_E_CONFIG);
    cr_assert_str_eq(moe_error_text(), "device sim: a layer needs 65536 bytes of device memory; 64000 are free");
    cr_assert_eq(b.d->ops->alloc(b.d, &p, SIZE_MAX - 3, "a layer"), MOE_E_CONFIG);
    cr_assert_null(p);
    cr_assert_eq(b.d->ops->launch(b.d, &(device_work){.fn = invert, .args = args, .args_bytes = sizeof args}), MOE_E_CONFIG);
    device_close(NULL);
    tear_down(&b);
}
