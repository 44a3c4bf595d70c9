/* Eviction policies: the keys alone, and the hits they reach in a simulated training run. */
#include <criterion/criterion.h>
#include <string.h>

#include "memory/policy.h"
#include "tests/memory/tier_sim.h"

#define OK(call)                                                                                                                 \
    do {                                                                                                                         \
        const moe_err ok_rc = (call);                                                                                            \
        cr_assert(ok_rc == MOE_OK, "%s: %s", #call, moe_error_text());                                                           \
    } while (0)

Test(policy, keys_order_the_parts)
{
    const policy *p;
    OK(policy_find(&p, NULL));
    cr_assert_str_eq(p->name, "schedule");
    cr_assert(p->key(&(policy_use){.next = 9}) > p->key(&(policy_use){.next = 8}));
    OK(policy_find(&p, "lru"));
    cr_assert(p->key(&(policy_use){.last = 3}) > p->key(&(policy_use){.last = 4}));
    OK(policy_find(&p, "lfu"));
    const policy_use cold_new = {.hits = 1, .last = 100, .threshold = 2}, cold_old = {.hits = 1, .last = 1, .threshold = 2};
    const policy_use colder = {.hits = 0.5, .last = 200, .threshold = 2}, hot = {.hits = 2, .last = 0, .threshold = 2};
    cr_assert(p->key(&colder) > p->key(&cold_old), "fewer hits go first");
    cr_assert(p->key(&cold_old) > p->key(&cold_new), "of equals the older goes first");
    cr_assert(p->key(&cold_new) > p->key(&hot), "below the threshold goes before above");
}

Test(policy, an_unknown_name_is_told_the_known_ones)
{
    const policy *p;
    cr_assert_eq(policy_find(&p, "mru"), MOE_E_CONFIG);
    cr_assert(p == NULL && strstr(moe_error_text(), "schedule, lru, lfu") != NULL, "%s", moe_error_text());
}

static double hit_rate(const char *name, int slots, int touched, int experts, uint64_t seed)
{
    const sim_config c = {
        .layers = 4, .experts = experts, .host_parts = slots, .keep = 1, .policy = name, .touched = touched, .seed = seed};
    sim m;
    sim_open(&m, &c);
    for (int i = 0; i < 12; i++)
        OK(sim_step(&m));
    tier_stats s;
    tier_get_stats(m.t, &s);
    sim_close(&m);
    return (double)s.hits / (double)(s.hits + s.misses);
}

enum { ALL = 1000 }; /* percent: every expert in every step, although the touches are skewed */

/* Where every expert is touched the schedule is an oracle and must not lose; where only chances are known it must still win as
 * long as memory holds clearly less than everything. Same seed: the touches are the same for all three. */
Test(policy, the_schedule_hits_at_least_as_often)
{
    const struct {
        int slots, touched, experts;
    } cases[] = {{16, ALL, 4}, {40, ALL, 4}, {50, ALL, 4}, {56, ALL, 4}, {40, 100, 4}, {40, 60, 8}, {64, 60, 8}, {64, 30, 16}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const double belady = hit_rate("schedule", cases[i].slots, cases[i].touched, cases[i].experts, i + 1);
        const double lru = hit_rate("lru", cases[i].slots, cases[i].touched, cases[i].experts, i + 1);
        const double lfu = hit_rate("lfu", cases[i].slots, cases[i].touched, cases[i].experts, i + 1);
        cr_log_info("%d slots, %d%% of %d experts touched: schedule %.3f, lru %.3f, lfu %.3f\n", cases[i].slots, cases[i].touched,
                    cases[i].experts, belady, lru, lfu);
        cr_expect(belady >= lru && belady >= lfu, "%d slots, %d%% of %d experts: schedule %.3f, lru %.3f, lfu %.3f",
                  cases[i].slots, cases[i].touched, cases[i].experts, belady, lru, lfu);
    }
}
