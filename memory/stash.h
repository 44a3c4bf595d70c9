/* The activation stash: blocks that forward makes and backward takes, last in first out. Blocks live in RAM up to a budget; past
 * it the oldest finished blocks are written to the store's spill file and their memory is reused; backward reads them back ahead
 * of the computation. Same bits either way. One compute thread; the spill runs on the store's thread. */
#ifndef MOE_MEMORY_STASH_H
#define MOE_MEMORY_STASH_H

#include "memory/store.h"

typedef struct stash stash;

/* host_bytes: at least twice the largest block, plus one block in use. st may be NULL: host_bytes must then hold everything.
 * The spill file (store_config.spill_bytes) must hold all blocks of a pass: MOE_E_IO when it is exceeded. */
moe_err stash_open(stash **out, store *st, size_t host_bytes, uint64_t spill_bytes) MOE_MUST_CHECK;
void stash_close(stash *s);

typedef int32_t stash_id; /* order of creation in this pass, from 0 */

/* A new writable block (IO_ALIGN-aligned, contents undefined); blocks until memory is free. stash_seal: it is final and may be
 * spilled. */
moe_err stash_new(stash *s, size_t bytes, stash_id *id, void **buf) MOE_MUST_CHECK;
void stash_seal(stash *s, stash_id id);
/* Backward: the block in RAM (blocks while it is read), pinned until stash_free, the caller's to change: nothing reads a copy of it
 * again, not even one that is still being written. Also starts reading the blocks made before it. */
moe_err stash_take(stash *s, stash_id id, void **buf) MOE_MUST_CHECK;
/* Gone for good. When all blocks are gone the ids begin at 0 again. */
void stash_free(stash *s, stash_id id);
/* An abandoned pass: frees every block. */
void stash_reset(stash *s);

typedef struct stash_stats {
    double stall_seconds;
    uint64_t resident_bytes, peak_bytes, spilled_bytes;
} stash_stats;
void stash_get_stats(stash *s, stash_stats *out);
moe_err stash_check(stash *s) MOE_MUST_CHECK;

#endif
