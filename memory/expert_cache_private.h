/* The inside of the expert cache, shared by expert_cache.c (doors), expert_cache_open.c (sizes, files), expert_cache_read.c (reads in flight),
 * expert_cache_hot.c and expert_cache_check.c. One thread.
 *
 * A slot is FREE, READING (a flight fills it), RESIDENT or LOST (a read that came too late may still write into it). A section has at most one
 * slot; while that is RESIDENT without a lease, and only then, the policy may give it up. A flight reads one expert: its pieces are the
 * transfers, its landing buffer (absent where records are read straight into slots) holds the 4 KiB-aligned spans around its ranges. The last
 * bytes of a file that fill no block are read once when it is opened and copied from there: O_DIRECT cannot read them.
 * Rule: c->text is overwritten by the next failure; failures of reads wait in c->failure until somebody asks for the expert. */
#ifndef MOE_MEMORY_EXPERT_CACHE_PRIVATE_H
#define MOE_MEMORY_EXPERT_CACHE_PRIVATE_H

#include "memory/expert_cache.h"

enum { FAILURES = 16, FAILURE_TEXT = 512, NO_SLOT = -1 };

typedef enum slot_state { SLOT_FREE, SLOT_READING, SLOT_RESIDENT, SLOT_LOST } slot_state;

typedef struct cache_slot {
    slot_state state;
    expert_id id;
    int leases;
    int flight; /* READING, LOST */
} cache_slot;

/* Flags of a section. */
enum {
    ID_QUEUED = 1, /* in the queue of reads ahead               */
    ID_UNUSED = 2, /* read ahead, not chosen yet                */
    ID_FAILED = 4, /* its last read failed, nobody has been told */
};

typedef struct flight {
    bool busy, ahead, lost; /* lost: given up, its transfers have not come back */
    expert_id id;
    int slot, pieces_left;
    double started;
    moe_err rc;
    char text[256]; /* of the first piece that failed */
    char *landing;  /* NULL: none                     */
    void *raw[EXPERT_RANGES];
    size_t bytes; /* asked from the disk */
    io_transfer *piece;
} flight;

typedef struct cache_file {
    io_file *f;
    uint64_t size, tail_at; /* tail_at: size rounded down to IO_ALIGN */
    char *tail;             /* [size - tail_at]                       */
} cache_file;

typedef struct failure {
    expert_id id;
    moe_err rc;
    char text[FAILURE_TEXT];
} failure;

/* What open makes of a configuration. */
typedef struct cache_sizes {
    size_t landing;     /* bytes of a landing buffer, 0: none      */
    size_t stride;      /* bytes of a slot                         */
    int pieces;         /* transfers of an expert at most          */
    size_t tables;      /* bytes                                   */
} cache_sizes;

struct expert_cache {
    expert_cache_config c;
    size_t ids;
    cache_sizes size;
    int slots, flights;
    cache_policy *policy;
    io_queue *queue;
    cache_file *file; /* [nfiles] */

    cache_slot *slot;  /* [slots]  */
    int32_t *slot_of;  /* [ids]    NO_SLOT */
    uint8_t *flags;    /* [ids]    */
    int32_t *free_slot; /* [slots]  a stack */
    int nfree;
    flight *flight;    /* [flights] */
    int32_t *landed;   /* [flights]  all pieces are back, not looked at */
    int nlanded;
    int busy, ahead_busy; /* flights; lost ones are busy */
    int pieces_out;       /* transfers with the queue    */
    uint32_t *queued;     /* [ids]  ring of reads ahead; QUEUED_HOT: only into a free slot */
    size_t queue_head, queue_n;

    failure failure[FAILURES];
    int next_failure;
    moe_err broken; /* the queue itself failed: nothing is read any more */
    char broken_text[FAILURE_TEXT];

    char *tables, *landings, *slots_base; /* budget blocks */
    expert_cache_stats stats;
};

#define QUEUED_HOT 0x80000000u

static inline int id_layer(const expert_cache *c, expert_id id) { return (int)(id / (expert_id)c->c.experts); }
static inline int id_expert(const expert_cache *c, expert_id id) { return (int)(id % (expert_id)c->c.experts); }
static inline char *slot_at(const expert_cache *c, int slot) { return c->slots_base + (size_t)slot * c->size.stride; }
static inline bool id_resident(const expert_cache *c, expert_id id)
{
    return c->slot_of[id] != NO_SLOT && c->slot[c->slot_of[id]].state == SLOT_RESIDENT;
}
static inline bool id_reading(const expert_cache *c, expert_id id)
{
    return c->slot_of[id] != NO_SLOT && c->slot[c->slot_of[id]].state == SLOT_READING;
}

/* The 4 KiB-aligned span around a range. */
static inline uint64_t span_begin(const expert_range *r) { return r->offset & ~(uint64_t)(IO_ALIGN - 1); }
static inline uint64_t span_end(const expert_range *r)
{
    return (r->offset + r->bytes + IO_ALIGN - 1) & ~(uint64_t)(IO_ALIGN - 1);
}

/* expert_cache_read.c */
typedef enum read_kind { READ_DEMAND, READ_FORCE /* even what is due may go */, READ_AHEAD, READ_HOT /* free slots only */ } read_kind;
bool cache_start(expert_cache *c, expert_id id, read_kind kind); /* false: no room now */
void cache_start_ahead(expert_cache *c);                         /* as many of the queue as may */
void cache_poll(expert_cache *c, bool block);                    /* takes in what came back */
void cache_queue_ahead(expert_cache *c, expert_id id, bool hot);
int cache_lost(const expert_cache *c); /* flights that were given up and have not come back */
moe_err cache_tell_failure(expert_cache *c, expert_id id); /* of a section that has ID_FAILED; then it has it no more */
void cache_forget_failure(expert_cache *c, expert_id id);

#endif
