/* The host tier of a model that is only read: experts in RAM slots over files in place (an expert = a few unaligned ranges) or
 * packed records (one aligned range). Reads whole experts, many in flight, through memory/io.h; what lands is handed to `land`, which
 * lays it out as the kernels want it. Evicts by policy (memory/cache_policy.h) only what is not leased.
 * Threads: all calls, open and close too, from one thread (the computing one); reads are carried by the io queue's own means.
 * Rule: a leased section is never evicted, moved or overwritten; a lease is released exactly once. */
#ifndef MOE_MEMORY_EXPERT_CACHE_H
#define MOE_MEMORY_EXPERT_CACHE_H

#include "memory/cache_policy.h"
#include "memory/io.h"

enum { EXPERT_RANGES = 6 /* gate, up, down, and the scales of each */, EXPERT_CACHE_DEPTH = 16 };

typedef struct expert_range {
    int file; /* index into files */
    uint64_t offset;
    size_t bytes;
} expert_range;

typedef struct expert_cache_config {
    io *io;
    const char *const *files; /* [nfiles] opened O_DIRECT where the file system allows it (else buffered, with the cache dropped behind) */
    int nfiles;
    int layers, experts;      /* MoE layers, experts a layer                                  */
    size_t slot_bytes;        /* of an expert as it lies in a slot                            */
    size_t host_bytes;        /* for slots, landing buffers and tables together               */
    int depth;                /* experts in flight at most; 0: EXPERT_CACHE_DEPTH             */
    double deadline_seconds;  /* a read that takes longer is MOE_E_IO; 0: IO_DEADLINE_SECONDS */
    const char *policy;       /* NULL: the default                                            */
    /* Where a section lies: fills range[], returns how many (1 .. EXPERT_RANGES). */
    int (*ranges)(void *user, expert_id id, expert_range range[EXPERT_RANGES]);
    /* The ranges as read (raw[i], any alignment, land's to overwrite) -> slot. NULL: one range that is read straight into the slot (4 KiB-aligned record). On the compute
     * thread. MOE_E_DATA: the record is damaged (checksum). */
    moe_err (*land)(void *user, expert_id id, void *const raw[EXPERT_RANGES], void *slot);
    /* Beside land NULL: looks at a record in its slot before anybody gets it. MOE_E_DATA: it is damaged. NULL: not looked at. */
    moe_err (*check)(void *user, expert_id id, const void *slot);
    void *user;
} expert_cache_config;

typedef struct expert_cache expert_cache;

/* Bytes for two slots: below this open refuses (MOE_E_CONFIG with the number). SIZE_MAX when ranges() says what no memory can hold. */
size_t expert_cache_least_bytes(const expert_cache_config *c);
/* Checks every range against its file: MOE_E_DATA names file and expert. */
moe_err expert_cache_open(expert_cache **out, const expert_cache_config *c) MOE_MUST_CHECK;
void expert_cache_close(expert_cache *c); /* waits for what is in flight, not for a disk that hangs; NULL: no-op */

/* The computation is at a layer and has chosen these experts (its union over the batch, ascending): counts the accesses, starts
 * the reads that are missing, as many as have room. */
moe_err expert_cache_choose(expert_cache *c, int layer, const int32_t *experts, int n) MOE_MUST_CHECK;
/* Before the choose of a step of many tokens: ids [T, K], what each of them chose in this layer, n different ones. The policy learns from
 * it where the union says nothing because it is nearly the whole layer. MOE_E_DATA: no such expert. */
moe_err expert_cache_tokens(expert_cache *c, int layer, const int32_t *ids, int64_t T, int K, int n) MOE_MUST_CHECK;
/* Reads that will be wanted later (predicted, or the next layers of the ring): started after everything that was chosen. Only a hint. */
void expert_cache_ahead(expert_cache *c, int layer, const int32_t *experts, int n);

typedef struct expert_lease {
    expert_id id;
    const void *slot;
} expert_lease;

/* Blocks until one of the n wanted sections is resident, those already there first, and leases it; reads that are missing are started on the way.
 * *which: index into wanted. wait false: returns at once with *which = -1 when none is resident.
 * MOE_E_FULL: every slot is leased. MOE_E_IO, MOE_E_DATA: the read of wanted[*which] failed and no other is there or under way (the sentence
 * names file and expert); the same call tries it again. On error nothing is owed. */
moe_err expert_cache_acquire_any(expert_cache *c, const expert_id *wanted, int n, bool wait, int *which, expert_lease *out) MOE_MUST_CHECK;
void expert_cache_release(expert_cache *c, expert_lease *l); /* zeroed lease: no-op */

/* Takes in what has arrived and starts what can start, without waiting. The calls above do it too; for long stretches without any. */
void expert_cache_poll(expert_cache *c);

typedef struct expert_cache_stats {
    uint64_t accesses, hits; /* of what was chosen; a hit was resident at that moment                  */
    uint64_t reads;          /* experts, ahead_reads of them before they were chosen                   */
    uint64_t read_bytes, ahead_reads;
    uint64_t wasted_bytes;   /* read ahead and given up before they were chosen                        */
    double stall_seconds;    /* acquire_any waited                                                     */
    int slots, depth;        /* what there is room for                                                 */
} expert_cache_stats;
void expert_cache_get_stats(const expert_cache *c, expert_cache_stats *out);

/* The hot set: ids of what is resident, best first, as a small file; loading starts the reads
 * into free slots, nothing is evicted for them. A file of another model or a damaged one is ignored with false. */
moe_err expert_cache_save_hot(const expert_cache *c, const char *path, uint64_t fingerprint) MOE_MUST_CHECK;
bool expert_cache_load_hot(expert_cache *c, const char *path, uint64_t fingerprint);

/* All invariants; for tests. MOE_E_DATA says which one is broken. */
moe_err expert_cache_check(const expert_cache *c) MOE_MUST_CHECK;

#endif
