/* The host tier on a store without a disk: see tier_sim.h. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/memory/tier_sim.h"

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
enum { ROUNDS = 3 };
#else
enum { ROUNDS = 6 };
#endif

static int rounds(void) { return getenv("MOE_TEST_LONG") != NULL ? 12 * ROUNDS : ROUNDS; }

#define OK(call)                                                                                                                 \
    do {                                                                                                                         \
        const moe_err ok_rc = (call);                                                                                            \
        cr_assert(ok_rc == MOE_OK, "%s: %s", #call, moe_error_text());                                                           \
    } while (0)

static const char *const policies[] = {"schedule", "lru", "lfu"};

/* Steps with everything in between, then a restart from the last commit. */
static void live(const sim_config *c)
{
    sim m;
    sim_open(&m, c);
    for (int i = 0; i < 12; i++) {
        OK(sim_step(&m));
        switch (sim_random(&m, 6)) {
        case 0:
        case 1:
            OK(sim_commit(&m));
            break;
        case 2:
            OK(sim_evaluate(&m));
            break;
        case 3:
            OK(sim_abandon(&m));
            if (sim_random(&m, 2) == 0)
                OK(sim_commit(&m));
            break;
        case 4:
            if (m.st != NULL)
                sim_restart(&m);
            break;
        default:
            break;
        }
    }
    OK(sim_commit(&m));
    if (m.st != NULL)
        sim_restart(&m);
    OK(sim_step(&m));
    sim_close(&m);
}

Test(tier, contents_survive_any_slots_policy_and_prefetch)
{
    const int slots[] = {8, 9, 13, 20, 40, 60};
    const int depths[] = {0, 1, 8};
    for (int round = 0; round < rounds(); round++)
        for (size_t i = 0; i < 6; i++)
            for (size_t d = 0; d < 3; d++) {
                const sim_config c = {.layers = 3,
                                      .experts = 5,
                                      .host_parts = slots[i],
                                      .keep = 1 + round % 2,
                                      .policy = policies[(i + d + (size_t)round) % 3],
                                      .prefetch = depths[d],
                                      .groups = 1 + round % 3,
                                      .touched = 60,
                                      .delay_us = round % 2 == 0 ? 60 : 0,
                                      .hold = round % 2 == 0,
                                      .seed = (uint64_t)round * 100 + i * 10 + d};
                live(&c);
            }
}

Test(tier, speculative_steps_kept_and_taken_back)
{
    const int slots[] = {8, 11, 20, 60};
    for (int round = 0; round < rounds(); round++)
        for (size_t i = 0; i < 4; i++) {
            const sim_config c = {.layers = 3,
                                  .experts = 4,
                                  .host_parts = slots[i],
                                  .keep = 1,
                                  .policy = policies[round % 3],
                                  .prefetch = (int)(i * 3),
                                  .speculate = round % 2 == 0 ? 60 : 100,
                                  .rollback = 40,
                                  .groups = 1 + round % 2,
                                  .touched = 70,
                                  .delay_us = round % 2 == 0 ? 60 : 0,
                                  .seed = 7000 + (uint64_t)round * 10 + i};
            live(&c);
        }
}

/* Both moments in m: three parts a record, so six slots do. */
Test(tier, records_without_v)
{
    const int slots[] = {6, 7, 11, 20, 45};
    for (int round = 0; round < rounds(); round++)
        for (size_t i = 0; i < 5; i++) {
            const sim_config c = {.layers = 3,
                                  .experts = 5,
                                  .host_parts = slots[i],
                                  .keep = 1 + round % 2,
                                  .policy = policies[(i + (size_t)round) % 3],
                                  .prefetch = (int)i * 2,
                                  .speculate = round % 3 == 0 ? 60 : 0,
                                  .rollback = 40,
                                  .groups = 1 + round % 2,
                                  .touched = 65,
                                  .delay_us = round % 2 == 0 ? 60 : 0,
                                  .hold = round % 3 != 0,
                                  .no_v = true,
                                  .seed = 9000 + (uint64_t)round * 10 + i};
            live(&c);
        }
}

/* w and r of half the size under one slot, with and without v: as many slots as without r do. */
Test(tier, records_of_halves)
{
    const int slots[] = {8, 9, 13, 20, 40, 60};
    for (int round = 0; round < 2 * rounds(); round++)
        for (size_t i = 0; i < 6; i++) {
            const bool no_v = round % 2 != 0;
            const sim_config c = {.layers = 3,
                                  .experts = 5,
                                  .host_parts = no_v ? slots[i] * 3 / 4 : slots[i],
                                  .keep = 1 + round % 2,
                                  .policy = policies[(i + (size_t)round) % 3],
                                  .prefetch = (int)i * 2,
                                  .speculate = round % 3 == 0 ? 60 : 0,
                                  .rollback = 40,
                                  .groups = 1 + round % 2,
                                  .touched = 65,
                                  .delay_us = round % 2 == 0 ? 60 : 0,
                                  .hold = round % 3 != 0,
                                  .no_v = no_v,
                                  .halves = true,
                                  .seed = 11000 + (uint64_t)round * 10 + i};
            live(&c);
        }
}

Test(tier, halves_without_a_store)
{
    const sim_config c = {.layers = 2,
                          .experts = 4,
                          .host_parts = 32,
                          .policy = "schedule",
                          .prefetch = 4,
                          .groups = 2,
                          .touched = 60,
                          .no_store = true,
                          .halves = true,
                          .seed = 6};
    live(&c);
}

Test(tier, without_a_store)
{
    const sim_config c = {.layers = 2,
                          .experts = 4,
                          .host_parts = 32,
                          .policy = "schedule",
                          .prefetch = 4,
                          .groups = 2,
                          .touched = 60,
                          .no_store = true,
                          .seed = 5};
    live(&c);
}

Test(tier, one_layer_of_one_expert)
{
    const sim_config c = {
        .layers = 1, .experts = 1, .host_parts = 8, .keep = 1, .policy = "schedule", .prefetch = 2, .touched = 100, .seed = 9};
    live(&c);
}
