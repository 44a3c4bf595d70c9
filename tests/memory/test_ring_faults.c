/* The ring and what can be wrong: too few slots, plans that cannot be, reads that fail, and copies and kernels that fail, hang or take the device with
 * them: the sentence names the stream and the section that it was. */
#include "memory/ring.h"
#include "tests/memory/device_fixture.h"

enum { LAYERS = 2, EXPERTS = 4, IDS = LAYERS * EXPERTS, SLOTS = 3 };

typedef struct rig {
    below host;
    device *d;
    ring_config c;
    ring *ring;
    uint8_t result[IDS][SLOT_BYTES];
    expert_id launched[IDS];
    int nlaunched;
} rig;

static void rig_open(rig *r, uint64_t seed, bool threads)
{
    memset(r, 0, sizeof *r);
    OK(device_sim_open(&r->d, &(device_sim_config){.seed = seed, .threads = threads, .memory_bytes = 1 << 15}));
    r->c = (ring_config){.device = r->d, .source = below_source(&r->host, 4, seed), .layers = LAYERS, .experts = EXPERTS, .held = 1,
                         .slot_bytes = SLOT_BYTES, .result_bytes = SLOT_BYTES, .planned = IDS, .deadline_seconds = threads ? 0.05 : 60};
    r->c.device_bytes = ring_least_bytes(&r->c) / 2 * SLOTS;
    OK(ring_open(&r->ring, &r->c));
}

static void rig_close(rig *r)
{
    ring_close(r->ring);
    cr_assert_eq(r->host.leases, 0);
    device_close(r->d);
}

static moe_err run_all(rig *r)
{
    expert_id id[IDS];
    for (int i = 0; i < IDS; i++)
        id[i] = (expert_id)i;
    TRY(ring_plan(r->ring, id, IDS));
    while (ring_left(r->ring) > 0) {
        device_lease l;
        TRY(ring_next(r->ring, true, &l));
        r->launched[r->nlaunched++] = l.id;
        const device_result result = {.to = r->result[l.id], .bytes = SLOT_BYTES};
        moe_err rc = launch_look(r->d, &l, 0, true);
        const moe_err passed = ring_release(r->ring, &l, &result);
        TRY(passed != MOE_OK ? passed : rc);
    }
    return ring_drain(r->ring);
}

/* The nth piece of work of each stream is that of the nth section taken below, which is the nth launched. */
static void expect_named(const rig *r, device_stream s, int nth, const char *reason)
{
    char stream[64], expert[64];
    const expert_id id = r->host.taken[nth];
    snprintf(stream, sizeof stream, "ring, device sim: the %s stream", device_stream_name(s));
    snprintf(expert, sizeof expert, "expert %d of layer %d: ", (int)id % EXPERTS, (int)id / EXPERTS);
    cr_assert(strstr(moe_error_text(), stream), "\"%s\" lacks \"%s\"", moe_error_text(), stream);
    cr_assert(strstr(moe_error_text(), expert), "\"%s\" lacks \"%s\"", moe_error_text(), expert);
    cr_assert(strstr(moe_error_text(), reason), "\"%s\" lacks \"%s\"", moe_error_text(), reason);
}

static void strike_each(device_sim_fault what, const char *const reason[DEVICE_STREAMS], bool threads)
{
    for (int s = 0; s < DEVICE_STREAMS; s++)
        for (int nth = 0; nth < IDS; nth += threads ? 3 : 1)
            for (uint64_t seed = 0; seed < (threads ? 1 : 40); seed++) {
                rig r;
                rig_open(&r, seed, threads);
                device_sim_strike(r.d, (device_stream)s, (uint64_t)nth, what);
                cr_assert_eq(run_all(&r), MOE_E_IO);
                expect_named(&r, (device_stream)s, nth, reason[s]);
                device_lease l;
                cr_assert_eq(ring_next(r.ring, true, &l), MOE_E_IO); /* nothing goes any more, and it is said again */
                expect_named(&r, (device_stream)s, nth, reason[s]);
                cr_assert_eq(ring_plan(r.ring, &(expert_id){0}, 1), MOE_E_IO);
                OK(ring_check(r.ring));
                rig_close(&r);
            }
}

Test(ring_faults, a_failed_copy_or_kernel_names_its_stream_and_section)
{
    static const char *const reason[] = {"the kernel failed", "the copy failed", "the copy failed"};
    strike_each(DEVICE_SIM_FAIL, reason, false);
    strike_each(DEVICE_SIM_FAIL, reason, true);
}

Test(ring_faults, a_hung_copy_or_kernel_names_its_stream_and_section)
{
    static const char *const reason[] = {"does not come back", "does not come back", "does not come back"};
    strike_each(DEVICE_SIM_HANG, reason, false);
    strike_each(DEVICE_SIM_HANG, reason, true);
}

Test(ring_faults, a_lost_device)
{
    static const char *const reason[] = {"the device is gone", "the device is gone", "the device is gone"};
    strike_each(DEVICE_SIM_LOSE, reason, false);
}

Test(ring_faults, too_few_slots_are_refused_with_the_number)
{
    rig r;
    ring *none;
    char text[64];
    rig_open(&r, 1, false);
    r.c.held = 4;
    r.c.device_bytes = ring_least_bytes(&r.c) - 1;
    snprintf(text, sizeof text, "5 slots are needed, %zu bytes", ring_least_bytes(&r.c));
    FAILS(ring_open(&none, &r.c), MOE_E_CONFIG, text);
    cr_assert_null(none);
    r.c.slot_bytes = SIZE_MAX / 3;
    FAILS(ring_open(&none, &r.c), MOE_E_CONFIG, "no more than memory can hold");
    cr_assert_eq(ring_least_bytes(&r.c), SIZE_MAX);
    r.c.slot_bytes = 1 << 20;
    r.c.device_bytes = ring_least_bytes(&r.c);
    FAILS(ring_open(&none, &r.c), MOE_E_CONFIG, "bytes of device memory;"); /* more than the device has */
    r.c.held = 0;
    FAILS(ring_open(&none, &r.c), MOE_E_CONFIG, "0 leases at once");
    rig_close(&r);
}

Test(ring_faults, plans_that_cannot_be)
{
    rig r;
    device_lease a, b, c;
    rig_open(&r, 1, false);
    FAILS(ring_plan(r.ring, (expert_id[]){1, 2, 1}, 3), MOE_E_DATA, "section 1 is planned");
    FAILS(ring_plan(r.ring, (expert_id[]){IDS}, 1), MOE_E_DATA, "section 8 is planned");
    OK(ring_plan(r.ring, (expert_id[]){0, 1, 2, 3, 4, 5, 6, 7}, IDS));
    FAILS(ring_plan(r.ring, (expert_id[]){0, 1, 2, 3, 4, 5, 6, 7}, IDS), MOE_E_FULL, "8 more sections");
    FAILS(ring_expire(r.ring), MOE_E_CONFIG, "8 sections are planned");
    OK(ring_next(r.ring, true, &a));
    OK(ring_next(r.ring, true, &b));
    OK(ring_next(r.ring, true, &c));
    device_lease d;
    FAILS(ring_next(r.ring, true, &d), MOE_E_FULL, "all 3 slots are leased");
    cr_assert_null(d.slot);
    const device_result large = {.to = r.result[0], .bytes = SLOT_BYTES + 1};
    FAILS(ring_release(r.ring, &a, &large), MOE_E_CONFIG, "there is room for 600");
    OK(ring_release(r.ring, &b, NULL));
    OK(ring_release(r.ring, &c, NULL));
    OK(ring_release(r.ring, &c, NULL)); /* a zeroed lease */
    OK(ring_check(r.ring));
    rig_close(&r);
}

/* The others come first; then it is told, may be tried again, and given up. */
Test(ring_faults, a_failed_read_comes_after_the_others)
{
    for (uint64_t seed = 0; seed < 50; seed++) {
        rig r;
        device_lease l;
        rig_open(&r, seed, false);
        r.host.failing = 2;
        OK(ring_plan(r.ring, (expert_id[]){0, 1, 2, 3}, 4));
        for (int i = 0; i < 3; i++) {
            OK(ring_next(r.ring, true, &l));
            cr_assert_neq(l.id, 2);
            OK(launch_look(r.d, &l, 0, false));
            OK(ring_release(r.ring, &l, NULL));
        }
        FAILS(ring_next(r.ring, true, &l), MOE_E_IO, "a bad block");
        cr_assert(l.id == 2 && l.slot == NULL);
        if (seed % 2 == 0) {
            r.host.failing = -1;
            OK(ring_next(r.ring, true, &l));
            cr_assert_eq(l.id, 2);
            OK(ring_release(r.ring, &l, NULL));
        } else {
            ring_skip(r.ring, 2);
        }
        cr_assert_eq(ring_left(r.ring), 0);
        OK(ring_next(r.ring, true, &l));
        cr_assert_null(l.slot);
        OK(ring_check(r.ring));
        rig_close(&r);
    }
    ring_close(NULL);
}
