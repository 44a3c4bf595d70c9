/* What a cache of experts would have hit on a recorded routing: every policy of memory/cache_policy.h, and the optimum (Belady), which knows the future.
 * One cache for all layers, a slot holds one expert of one layer; accesses in the order token, layer, expert; the whole trace runs, counting
 * starts at token floor(tokens / 4). Knows no disks and no times. Threads: pure functions. */
#ifndef MOE_ENGINE_SERVE_REPLAY_H
#define MOE_ENGINE_SERVE_REPLAY_H

#include <stdbool.h>
#include <stdio.h>

#include "engine/serve/trace.h"

typedef struct replay_count {
    int64_t accesses, hits; /* of those that are counted */
} replay_count;

/* policy NULL or "": the default. */
moe_err replay_policy(const trace *t, int64_t slots, const char *policy, replay_count *out) MOE_MUST_CHECK;
moe_err replay_optimum(const trace *t, int64_t slots, replay_count *out) MOE_MUST_CHECK;

/* The command: a table for people, or one JSON object. policy NULL: every one there is; else that one, with lru and the optimum beside it.
 * MOE_E_USAGE when slots < 1. */
moe_err command_replay(const char *path, int64_t slots, const char *policy, bool json, FILE *out) MOE_MUST_CHECK;

#endif
