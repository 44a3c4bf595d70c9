/* The inside of the activation stash, shared by memory/stash*.c only.
 *
 * The arena is a ring over virtual positions: a block at position p lies at p modulo the capacity and never crosses a multiple of
 * it. The blocks in RAM stand in `ring` in order of position and together span at most the capacity.
 *
 *      position  ->    [ 7 ][  8  ][ gap ][ 9 ][10][ 11 ]
 *                       bottom                      top
 *
 * Forward puts new blocks above the top (first in) and, when the span is full, lets the bottom go once it has been written (first
 * out). Backward frees from the top (last in, first out) and brings the spilled ones back below the bottom, in the reverse order
 * of their going; positions may become negative. So both directions are a queue in one direction or the other, and there is no
 * fragmentation beyond the gap where a block would have crossed the end. A block freed in the middle (a layer frees its blocks in
 * any order) leaves a gap that goes with its neighbours.
 *
 * The spill file is a stack in the same way: blocks are written oldest first, and freed blocks at its end give their place back.
 * A block that has been written and is still in RAM is clean: it goes without another write, and need not be read if it stays.
 * Writing begins before it must (SPILL_MARGIN), so that forward rarely waits; it costs writes of blocks that would just have
 * fitted, never a read. In backward nothing is written but to make room that a call waits for.
 *
 * Threads: everything is guarded by `lock`; the store's thread ends transfers and starts the next ones. */
#ifndef MOE_MEMORY_STASH_PRIVATE_H
#define MOE_MEMORY_STASH_PRIVATE_H

#include <pthread.h>

#include "memory/stash.h"

enum {
    STASH_OPS = 8,        /* transfers in flight */
    STASH_DEADLINE = 300, /* seconds without a completion before a wait is an error */
    SPILL_MARGIN = 4,     /* a quarter of the arena is kept free or clean in forward */
};

typedef struct stash_block {
    size_t bytes;      /* padded */
    int64_t pos;       /* while in RAM */
    uint64_t spill_at; /* place in the spill file, when has_place */
    int8_t op;         /* transfer in flight, -1: none */
    bool here;         /* in RAM (or arriving) */
    bool reading, has_place, spilled, sealed, pinned, freed;
    bool failed; /* its last transfer */
} stash_block;

typedef struct stash_op {
    store_op op;
    stash *owner;
    stash_id id; /* -1: free */
} stash_op;

struct stash {
    store *st;
    char *memory;
    int64_t capacity;
    uint64_t spill_bytes, spill_end;
    pthread_mutex_t lock;
    pthread_cond_t landed;
    bool inited, backward;
    uint64_t events;
    stash_block *block; /* by id */
    int32_t *ring;      /* ids in RAM by position */
    int32_t *spill;     /* ids with a place in the spill file, by place */
    int blocks, room, in_ring, in_spill, live, in_flight;
    stash_id newest; /* no younger block is left: reading ahead begins here */
    moe_err rc;      /* of the last failed transfer */
    char text[256];
    stash_op op[STASH_OPS];
    stash_stats stats;
};

/* stash_ring.c; all under the lock. */
bool ring_place_top(const stash *s, size_t bytes, int64_t *pos);
bool ring_place_bottom(const stash *s, size_t bytes, int64_t *pos);
void ring_push(stash *s, stash_id id, bool top, int64_t pos);
void ring_drop(stash *s, stash_id id);               /* lets go of the memory; no transfer in flight */
stash_id ring_end(const stash *s);                   /* the block whose going makes room, -1: none can */
bool ring_evict(stash *s);                           /* lets it go when it is clean */
void block_settle(stash *s, stash_id id);            /* a freed block gives back what it holds, as soon as nothing is in flight */
moe_err block_write(stash *s, stash_id id);          /* MOE_E_IO: the spill file is full */
bool block_read(stash *s, stash_id id, bool demand); /* false: no room or no op */
void stash_pump(stash *s);
moe_err stash_wait(stash *s, const char *who);

#endif
