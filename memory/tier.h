/* The host tier of expert sections: slots in RAM over the store, with leases, an eviction policy, prefetch along the schedule and
 * overlapped write-back. The computation asks for sections and never sees a file.
 *
 * A training pass is a cycle of phases: forward of MoE layer 0 .. L-1, then backward of L-1 .. 0. The engine says which phase it
 * is in (tier_enter) and, once the router has spoken, which experts the phase touches (tier_expect). From that the tier
 *   - evicts what is needed farthest in the future (policy "schedule"; "lru" and "lfu" are the others),
 *   - prefetches ahead of the computation into slots that are free or hold something needed later than the prefetched part;
 *     before the router has spoken a section is read when its touch is likelier than not, and bytes of wrong guesses are counted,
 *   - writes dirty parts back while computation goes on, keeping enough clean slots for the reads to come.
 * When everything fits, nothing is read twice and nothing is written but by tier_flush.
 *
 * Parts are leased separately: w for the computation, r, m and v only for the update, g while a gradient is made or applied.
 * Where records have r, w and r are half as large as the others and share a slot: r comes and goes with w, and costs no room.
 * Threads: all calls from the compute thread; I/O completions come from the store's thread. Rule: a leased part is never evicted,
 * moved or overwritten; a lease is released exactly once. */
#ifndef MOE_MEMORY_TIER_H
#define MOE_MEMORY_TIER_H

#include "memory/catalog.h"
#include "memory/checkpoint.h"

enum {
    TIER_W = 1 << STORE_W,
    TIER_R = 1 << STORE_R,
    TIER_M = 1 << STORE_M,
    TIER_V = 1 << STORE_V,
    TIER_G = 1 << STORE_G,
    TIER_STATE = TIER_W | TIER_R | TIER_M | TIER_V,
    TIER_ALL = TIER_STATE | TIER_G
};

typedef struct tier tier;

typedef struct tier_config {
    store *store;           /* NULL: everything must fit in RAM (no disk at all)          */
    checkpoint *checkpoint; /* says which slots are named; NULL with store NULL           */
    int layers, experts;    /* MoE layers, experts per layer: section = layer * experts + expert */
    /* All equal, for the slots are, but: v may be 0 (both moments lie in m); r may be 0, or w and r may be equal and about half
     * of the others. A part of 0 bytes is one that records do not have: a lease never holds it, whatever was asked for. */
    size_t part_bytes[STORE_PARTS];
    size_t host_bytes;               /* for the slots; at least two whole records (tier_least_bytes) */
    const char *policy;              /* "schedule" (default), "lru", "lfu"                          */
    double lfu_threshold, lfu_decay; /* the paper's hit counts (arXiv 2205.10034)              */
    int prefetch_depth;              /* reads in flight ahead of the computation; 0: none           */
    bool read_only;                  /* evaluation of a finished run: dirty parts are dropped, never written */
    const record *records;           /* [layers * experts] to start from, or NULL: all new          */
    /* Makes part `part` of a section that was never written (initial weights; moments zero). On the compute thread. */
    moe_err (*fill)(void *user, section_id s, store_part part, float *buf);
    void *user;
} tier_config;

size_t tier_least_bytes(const tier_config *c);
/* Bytes of one slot for such parts. */
size_t tier_slot_bytes(const size_t part_bytes[STORE_PARTS]);

moe_err tier_open(tier **out, const tier_config *c) MOE_MUST_CHECK;
void tier_close(tier *t); /* drops what is dirty */

typedef struct tier_phase {
    int layer; /* MoE layer                                                       */
    bool backward;
} tier_phase;

/* The computation enters this phase. Evaluation passes forward phases only. */
void tier_enter(tier *t, tier_phase p);
/* The sections this layer touches in this step: touch[e] != 0. Before the call the tier guesses from earlier steps. Forgotten
 * when the next forward phase of the layer begins. */
void tier_expect(tier *t, int layer, const uint8_t *touch);
/* Steps that are finished: a record with grad_step or step below it needs r, m, v (and g) in its next forward phase. */
void tier_set_step(tier *t, uint64_t finished);

typedef struct tier_lease {
    section_id section;
    unsigned parts;           /* TIER_* held */
    float *part[STORE_PARTS]; /* NULL where not held */
} tier_lease;

/* Blocks until one of the n wanted sections has all of want_parts resident, preferring what is already there ("run as they
 * land"), and leases those parts. Parts in `fresh` are not read: they come as slots whose contents mean nothing (a new gradient,
 * which the caller begins by writing all of it); a g that exists already (in RAM, or on disk from an earlier group of
 * micro-batches of the same step) is brought back instead. *which: index into wanted. parts_of(user, section) says which parts
 * each section needs (an update needs more than a product). A lease that holds m or v may change w, r, m and v; one with g in
 * `fresh` may change g. Such a lease is alone and waits for writes of these parts that are in flight; any other lease only reads,
 * and several may hold a part. Errors: MOE_E_FULL when every slot is leased; MOE_E_IO or MOE_E_DATA with the store's sentence,
 * and the same call may be tried again. On error *out is zeroed and nothing is owed. */
typedef unsigned (*tier_parts_fn)(void *user, section_id s);
moe_err tier_acquire_any(tier *t, const section_id *wanted, int n, tier_parts_fn parts_of, void *user, unsigned fresh, int *which,
                         tier_lease *out) MOE_MUST_CHECK;
moe_err tier_acquire(tier *t, section_id s, unsigned parts, unsigned fresh, tier_lease *out) MOE_MUST_CHECK;

/* Gives back `parts` of the lease (TIER_ALL: all it holds). `dirty` of them were changed; `drop` of them are no longer needed by
 * anybody (an applied gradient). A change of w, r, m, v states the step they now stand at; a new g its grad_step. */
typedef struct tier_change {
    unsigned dirty, drop;
    uint64_t step;      /* with dirty W, R, M, V */
    uint64_t grad_step; /* with dirty G       */
} tier_change;
void tier_release(tier *t, tier_lease *l, unsigned parts, tier_change c);

/* Logical state of a section (its resident parts included, whatever the disk holds). */
record tier_record(tier *t, section_id s);

/* Speculative update (DESIGN.md section 4): between begin and resolve, dirty W, R, M, V of a release with c.step == the running
 * step go to a slot of their own and the previous state stays on disk. resolve(keep == false) returns every such section to the
 * previous (w, r, m, v) with its pending g. Needs store slots >= keep + 2. In backward a lease with m or v waits until the state
 * it may change is on disk. */
void tier_speculate_begin(tier *t, uint64_t step);
moe_err tier_speculate_resolve(tier *t, bool keep) MOE_MUST_CHECK;

/* A step that is given up: every gradient of a step beyond the finished ones (tier_set_step) is forgotten. Nothing may be leased;
 * a speculative step is taken back first (tier_speculate_resolve). */
void tier_abandon(tier *t);

/* Writes every dirty part and waits; afterwards tier_catalog is what is on disk. */
moe_err tier_flush(tier *t) MOE_MUST_CHECK;
/* [layers * experts], valid until the next call that changes anything. */
const record *tier_catalog(tier *t);

typedef struct tier_stats {
    uint64_t hits, misses;      /* parts asked for and resident / not (a prefetch that comes too late is a miss; a part that is
                                   made here, not read, is neither) */
    uint64_t wasted_read_bytes; /* read ahead and evicted or forgotten untouched */
    double stall_seconds;       /* the computation waited for a part or a slot   */
    uint64_t dirty_bytes, resident_bytes, capacity_bytes;
} tier_stats;
void tier_get_stats(tier *t, tier_stats *out);

/* States every invariant; MOE_E_DATA names the first that fails. Tests call it after every operation. */
moe_err tier_check(tier *t) MOE_MUST_CHECK;

#endif
