/* A training run without numbers: walks the phases as the engine does, but instead of computing it writes into every part a
 * pattern made of (section, part, step, variant), and checks the pattern at every lease. Stale, torn or mixed content cannot
 * pass. tier_check runs after every call. One variant of a step is the speculative update, the other the one that is redone after
 * a rollback. */
#ifndef MOE_TESTS_MEMORY_TIER_SIM_H
#define MOE_TESTS_MEMORY_TIER_SIM_H

#include "memory/tier.h"
#include "tests/memory/fake_store.h"

typedef struct sim_config {
    int layers, experts, host_parts; /* host_parts: slots of the tier */
    int keep;
    const char *policy;
    int prefetch;
    bool no_store;
    int speculate, rollback; /* percent of the steps, percent of those */
    int groups;              /* of micro-batches, at most */
    int touched;             /* percent of the experts */
    int delay_us;
    bool no_v;   /* records without v: both moments in m */
    bool halves; /* w and r of half the size, under one slot */
    bool hold; /* keep a second lease while acquiring */
    uint64_t seed;
} sim_config;

typedef struct sim_section {
    uint64_t step, grad_step;
    int grad_count, variant;
    bool speculative;
    uint64_t before_step;
    int before_variant;
} sim_section;

typedef struct sim {
    sim_config c;
    tier *t;
    store *st;
    checkpoint *cp;
    int sections;
    uint64_t finished, random;
    sim_section *now, *saved; /* [sections] the truth; as of the last commit */
    record *records;          /* [sections] of the last commit */
    uint64_t saved_step;
    bool committed, speculating;
} sim;

void sim_open(sim *m, const sim_config *c);
void sim_close(sim *m);
uint64_t sim_random(sim *m, uint64_t n);

moe_err sim_step(sim *m);     /* one training step; an error of the tier is passed on */
moe_err sim_evaluate(sim *m); /* forward phases only */
moe_err sim_commit(sim *m);   /* flush and name what is on disk */
void sim_check_saved(sim *m); /* the named places still hold the last commit */
void sim_restart(sim *m);     /* drops the tier and opens it at the last commit */
moe_err sim_abandon(sim *m);  /* half a step, given up */

#endif
