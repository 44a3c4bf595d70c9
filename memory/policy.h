/* Eviction policies: which idle part of the host tier goes first. Owns the table; knows nothing of slots, locks or disks.
 * A policy is one key function: the idle part with the largest key is evicted (or written back) first.
 *   schedule   Belady's rule with the schedule as the oracle: the next use farthest in the future (tier_schedule.c).
 *   lru        the last use farthest in the past.
 *   lfu        the hit counts of SE-MoE (arXiv 2205.10034, hierarchical storage): a part that is used gains a hit, hits decay
 * with time, parts at or above the threshold stay as long as one below it can go. Counts alone never forget and cannot choose
 * between equals: the decay is applied once per cycle of the schedule, and equal counts fall back to the last use. */
#ifndef MOE_MEMORY_POLICY_H
#define MOE_MEMORY_POLICY_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/base/error.h"

/* What is known of a part when its key is made. */
typedef struct policy_use {
    double next;      /* phases from the start of the run to the expected next use */
    uint64_t last;    /* number of the lease that used it last; later is larger    */
    double hits;      /* decayed count of leases                                   */
    double threshold; /* lfu: hits from which a part counts as hot                 */
} policy_use;

typedef struct policy {
    const char *name;
    double (*key)(const policy_use *u);
    bool by_time; /* the key is the next use itself */
    bool decays;  /* hits fade once per cycle and every key is made anew          */
} policy;

/* NULL or "" is the default, "schedule". MOE_E_CONFIG names the policies there are. */
moe_err policy_find(const policy **out, const char *name) MOE_MUST_CHECK;

#endif
