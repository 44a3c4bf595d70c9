/* Which expert leaves the cache first. Owns what is known of every expert of a model that is only read (uses, ages, chances) and the set of
 * those that may go; knows no slots, no leases, no disks. The order of calls alone decides: no clock, no chance, no thread.
 * Threads: one caller. Rule: the owner keeps the set true: enter when a section may be evicted, leave when it may not (leased, gone).
 *
 *   lru      the last use farthest in the past.
 *   lfu      the hit counts of SE-MoE (arXiv 2205.10034, hierarchical storage): every use is a hit, hits fade with each pass, experts at the
 *            threshold or above stay as long as one below it can go; below it the older use goes first.
 *   learned  the longest expected wait, the default. An expert of layer m can only be wanted when the computation is at m, once in a pass, so
 *            its wait is the way to m in the cycle of layers plus, in passes, the odds against it being chosen there, (1 - p) / p. p is a
 *            logistic regression over how often it was chosen lately (three rates of forgetting) and how long ago, whose few weights are
 *            learned while running from every choice of every layer, resident or not: a router that repeats itself turns it into
 *            least-recently-used, one with favourites into least-frequently-used. (That the wait decides is Belady's rule with the
 *            expectation for the truth; mixing recency and frequency by what is observed: ARC, LeCaR, CACHEUS.)
 *            A pass of many tokens that chooses nearly the whole layer says nothing of chances; its single tokens do (cache_policy_tokens), so
 *            that a prompt leaves behind what its text will go on to need. Where nobody tells of them only the way decides, right for a scan. */
#ifndef MOE_MEMORY_CACHE_POLICY_H
#define MOE_MEMORY_CACHE_POLICY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/error.h"

typedef uint32_t expert_id; /* layer * experts + expert: MoE layers only */

enum { CACHE_EXPERTS_MAX = 1 << 22 }; /* layers * experts at most */

typedef struct cache_policy cache_policy;

/* The i-th name, the default first; NULL past the last. */
const char *cache_policy_name(int i);
/* What open takes from the heap, about. */
size_t cache_policy_bytes(int layers, int experts);
/* name NULL or "": the default. MOE_E_CONFIG names the policies there are. */
moe_err cache_policy_open(cache_policy **out, const char *name, int layers, int experts) MOE_MUST_CHECK;
void cache_policy_close(cache_policy *p); /* NULL: no-op */

/* The computation is at a layer and has chosen these (ascending, each once): chances are learned; what was due in this layer is due no more, what
 * is chosen becomes due where the policy looks at whole layers (learned). Each of them is touched afterwards. */
void cache_policy_choose(cache_policy *p, int layer, const int32_t *expert, int n);
/* So many of a layer's experts are nearly the whole of it: the choice says nothing of chances, only what single tokens chose does. */
bool cache_policy_is_scan(const cache_policy *p, int n);
/* Before the choose of such a pass: ids [T, K], what each of its tokens chose. The last ones are learned from as if each were a pass. */
void cache_policy_tokens(cache_policy *p, int layer, const int32_t *ids, int64_t T, int K);
/* It is used: now it is the most recent, and not due any more. */
void cache_policy_touch(cache_policy *p, expert_id id);
/* Due: wanted soon for certain. Never the victim unless that is asked for. */
void cache_policy_set_due(cache_policy *p, expert_id id, bool due);

/* May be evicted from now on / may not. Both may be repeated. */
void cache_policy_enter(cache_policy *p, expert_id id);
void cache_policy_leave(cache_policy *p, expert_id id);
/* The one to go, which stays in the set until it leaves; false when there is none. due_too: when only those that are due are left, one of them. */
bool cache_policy_victim(cache_policy *p, bool due_too, expert_id *id);
/* The smaller, the more it is worth keeping; comparable now, within one policy. */
double cache_policy_key(const cache_policy *p, expert_id id);

/* All invariants; for tests. MOE_E_DATA says which one is broken. */
moe_err cache_policy_check(const cache_policy *p) MOE_MUST_CHECK;

#endif
