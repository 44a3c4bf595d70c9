/* The ring on the simulated device: random plans, slots, host slots and delays; forward, backward with results, steps after which everything in host
 * memory is different. Every kernel looks at every byte of its slot. And the tests of these tests: what leaves an event out, frees a
 * slot early, skips a copy-out or gives a host lease back early is found. */
#include "memory/ring.h"
#include "tests/memory/device_fixture.h"

#ifdef __SANITIZE_THREAD__
enum { SCHEDULES = 300 }; /* 20 times as slow there, and only those with threads say more */
#else
enum { SCHEDULES = 2500 };
#endif
enum { THREAD_SCHEDULES = 25, SABOTAGES = 120, LAYERS_MAX = 4, EXPERTS_MAX = 5, HELD_MAX = 3, MEMORY = 1 << 16 };

typedef struct run {
    uint64_t random;
    int layers, experts, held;
    below host;
    device *sim;
    device_lie lie;
    device *d;
    ring *ring;
    bool early;     /* the test of the test: a release before the launch */
    device_lease lease[HELD_MAX];
    int leases, next_layer; /* next_layer: phases planned so far */
    bool backward;
    int planned, passed, landed;
    uint8_t result[LAYERS_MAX * EXPERTS_MAX][SLOT_BYTES];
    bool expected[LAYERS_MAX * EXPERTS_MAX], has_landed[LAYERS_MAX * EXPERTS_MAX];
} run;

static moe_err run_open(run *r, uint64_t seed, bool threads, lie what)
{
    memset(r, 0, sizeof *r);
    r->random = seed * 0x9e3779b97f4a7c15u + 77;
    r->layers = 1 + (int)draw(&r->random, LAYERS_MAX);
    r->experts = 1 + (int)draw(&r->random, EXPERTS_MAX);
    r->held = 1 + (int)draw(&r->random, HELD_MAX);
    OK(device_sim_open(&r->sim, &(device_sim_config){.seed = seed, .threads = threads, .memory_bytes = MEMORY}));
    r->d = device_lie_of(&r->lie, r->sim, what);
    ring_config c = {.device = r->d, .layers = r->layers, .experts = r->experts, .held = r->held, .slot_bytes = SLOT_BYTES,
                     .result_bytes = SLOT_BYTES, .planned = (size_t)r->experts * (1 + draw(&r->random, 3)), .deadline_seconds = 20};
    c.source = below_source(&r->host, 1 + (int)draw(&r->random, HOST_SLOTS_MAX), seed);
    const size_t slot = ring_least_bytes(&c) / (size_t)(r->held + 1);
    c.device_bytes = slot * ((size_t)r->held + 1 + draw(&r->random, 6));
    OK(ring_open(&r->ring, &c));
    return ring_check(r->ring);
}

static void run_close(run *r)
{
    ring_close(r->ring);
    cr_assert_eq(r->host.leases, 0, "%d host leases are owed", r->host.leases);
    device_sim_stats s;
    device_sim_get_stats(r->sim, &s);
    cr_assert(s.events == 0 && s.allocations == 0);
    r->d->ops->close(r->d);
}

static void landed(void *user, expert_id id, void *to)
{
    run *r = user;
    cr_assert(to == r->result[id] && r->expected[id] && !r->has_landed[id]);
    r->has_landed[id] = true;
    r->landed++;
}

/* Plans the next layer that there is room for; perhaps nothing of it is chosen. */
static moe_err plan_some(run *r)
{
    expert_id id[EXPERTS_MAX];
    if (r->next_layer == r->layers)
        return MOE_OK;
    const int layer = r->backward ? r->layers - 1 - r->next_layer : r->next_layer;
    int n = 0;
    for (int e = 0; e < r->experts; e++)
        if (draw(&r->random, 4) != 0)
            id[n++] = (expert_id)(layer * r->experts + e);
    const moe_err rc = ring_plan(r->ring, id, n);
    if (rc == MOE_E_FULL && ring_left(r->ring) > 0)
        return MOE_OK;
    r->next_layer += rc == MOE_OK;
    r->planned += rc == MOE_OK ? n : 0;
    return rc;
}

static moe_err take_one(run *r)
{
    const bool wait = draw(&r->random, 3) != 0;
    device_lease l;
    TRY(ring_next(r->ring, wait, &l));
    if (l.slot == NULL)
        return MOE_OK;
    if (!r->early)
        TRY(launch_look(r->d, &l, r->host.version, r->backward));
    r->lease[r->leases++] = l;
    return MOE_OK;
}

static moe_err release_one(run *r)
{
    const int i = (int)draw(&r->random, (uint32_t)r->leases);
    device_lease l = r->lease[i], gone = l;
    r->lease[i] = r->lease[--r->leases];
    const device_result result = {.to = r->result[l.id], .bytes = SLOT_BYTES, .landed = landed, .user = r};
    r->expected[l.id] = r->backward;
    r->has_landed[l.id] = false;
    memset(r->result[l.id], 0, SLOT_BYTES);
    r->passed++;
    TRY(ring_release(r->ring, &l, r->backward ? &result : NULL));
    return r->early ? launch_look(r->d, &gone, r->host.version, r->backward) : MOE_OK;
}

static moe_err run_pass(run *r, bool backward)
{
    r->backward = backward;
    r->next_layer = 0;
    memset(r->expected, 0, sizeof r->expected);
    while (r->next_layer < r->layers || ring_left(r->ring) > 0 || r->leases > 0) {
        const uint32_t what = draw(&r->random, 4);
        if (what == 0)
            TRY(plan_some(r));
        else if (r->leases > 0 && (what == 1 || r->leases == r->held || ring_left(r->ring) == 0))
            TRY(release_one(r));
        else if (ring_left(r->ring) > 0)
            TRY(take_one(r));
        else
            TRY(ring_poll(r->ring));
        TRY(ring_check(r->ring));
    }
    return MOE_OK;
}

static moe_err check_results(const run *r)
{
    for (int id = 0; id < r->layers * r->experts; id++)
        for (size_t i = 0; r->expected[id] && i < SLOT_BYTES; i++)
            if (!r->has_landed[id] || (r->result[id][i] ^ byte_of((expert_id)id, r->host.version, i)) != 0xff)
                return moe_fail(MOE_E_NUMERIC, "the result of section %d: byte %zu is %02x", id, i, r->result[id][i]);
    return MOE_OK;
}

/* Two steps of forward and backward; between them what lies in host memory changes. */
static moe_err run_steps(run *r)
{
    for (int step = 0; step < 2; step++) {
        TRY(run_pass(r, false));
        TRY(run_pass(r, true));
        TRY(ring_drain(r->ring));
        TRY(check_results(r));
        TRY(ring_expire(r->ring));
        r->host.version++;
    }
    return r->passed == r->planned ? MOE_OK : moe_fail(MOE_E_DATA, "%d of %d", r->passed, r->planned);
}

Test(ring, random_schedules)
{
    uint64_t hits = 0;
    for (uint64_t seed = 0; seed < SCHEDULES; seed++) {
        run r;
        ring_stats s;
        OK(run_open(&r, seed, seed < THREAD_SCHEDULES, LIE_NONE));
        cr_assert_eq(run_steps(&r), MOE_OK, "seed %d: %s", (int)seed, moe_error_text());
        ring_get_stats(r.ring, &s);
        cr_assert(s.leases == (uint64_t)r.planned && s.copied_bytes == (s.leases - s.hits) * SLOT_BYTES);
        cr_assert_eq(s.result_bytes, (uint64_t)r.landed * SLOT_BYTES);
        hits += s.hits;
        run_close(&r);
    }
    cr_assert_gt(hits, SCHEDULES); /* backward begins with what forward ended with */
}

/* --- tests of the tests ------------------------------------------------------------------------------------------------------ */

static int sabotage(lie what, bool early, int64_t countdown)
{
    int found = 0;
    for (uint64_t seed = 0; seed < SABOTAGES; seed++) {
        run r;
        OK(run_open(&r, seed, false, what));
        r.early = early;
        r.lie.countdown = countdown < 0 ? (int64_t)draw(&r.random, 20) : countdown;
        const moe_err rc = run_steps(&r);
        cr_assert(rc == MOE_OK || rc == MOE_E_NUMERIC, "%s", moe_error_text());
        found += rc != MOE_OK;
        ring_close(r.ring); /* what it owes below is not asked: the device lied */
        r.d->ops->close(r.d);
    }
    return found;
}

/* A wait may be needless (the slot is new, the host has seen that it has arrived): then nothing is wrong, and nothing is found. */
Test(ring, broken_variants_are_found)
{
    static const struct {
        lie what;
        bool early;
        int least; /* percent of the schedules */
        const char *name;
    } broken[] = {
        {LIE_NO_WAIT_COMPUTE, false, 80, "compute does not wait for the copy-in"},
        {LIE_NO_WAIT_COPY_IN, false, 20, "copy-in does not wait until the slot was passed"},
        {LIE_NO_WAIT_COPY_OUT, false, 80, "copy-out does not wait for the computation"},
        {LIE_NO_COPY_OUT, false, 80, "copy-out is skipped"},
        {LIE_DONE, false, 70, "the host lease goes back before the copy has read it"},
        {LIE_NONE, true, 80, "the slot is freed before the launch"},
        {LIE_WAIT_ONE, false, 15, "one wait is left out"},
    };
    for (size_t i = 0; i < sizeof broken / sizeof broken[0]; i++) {
        const int found = sabotage(broken[i].what, broken[i].early, -1);
        cr_assert_geq(found * 100, broken[i].least * SABOTAGES, "%s: found in %d of %d schedules", broken[i].name, found, SABOTAGES);
    }
}
