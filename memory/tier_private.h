/* The inside of the host tier, shared by memory/tier*.c only.
 *
 * A section has up to five parts (w, r, m, v, g). A part is in a slot, or on disk, or was never written (then tier_config.fill
 * makes it again). Every slot has one op of the store in it, so a part has at most one transfer in flight and nothing is
 * allocated while it runs.
 *
 * State of a slot:
 *   FREE      on the free list
 *   FILL      given to a part whose content does not exist yet; the acquire that asked for it makes the content
 *   READING   a read is in flight
 *   READY     holds the part; may be dirty, leased, `writing` (a write is in flight, the content may be read meanwhile)
 *   FAILED    the read failed; op.rc and op.text say why; the next acquire that needs the part reports it and lets go of the slot
 *   DOOMED    content is no longer needed but its write is still in flight; free when that ends
 * A slot is *idle* when it is READY or FAILED, not leased, not pinned by a waiting acquire, not being written. Idle slots sit in
 * one of two heaps, clean or dirty, with the one to go first on top (policy.h). Only idle slots are evicted; only idle dirty
 * slots are written in the background. So a part that is leased is never touched by anybody else, but a write that was in flight
 * before a lease for reading began goes on. A lease for changing (m or v asked for: w, r, m, v; g in `fresh`: g) waits for that
 * write first.
 *
 * Halves. Where records have r, w and r of a section share a slot: w lies in its first half, r in a slot of its own, the *tail*,
 * whose buffer is the second half. A tail is taken only under the w of its section, is in no heap and on no free list, and goes
 * with its head: a head is idle when its tail is idle too or not there, dirty when one of them is, and free when both are. So
 * reading w alone moves half the bytes, bringing r for the update needs no room, and everything that counts slots counts heads.
 *
 * The record on disk. w, r, m and v share a slot number, so a new version is a unit: `next` says where it goes, of which step it
 * is and which parts have arrived. With all of them it becomes `disk`. The number is the lowest that no kept checkpoint names
 * (and that is not the state to return to, while an update is speculative): with keep + 1 places there is always one, and it may
 * be that of `disk` itself, which is then overwritten in place -- nobody needs it any more, since all of the newer version is in
 * RAM or in `next` before the first byte goes out, and a crash goes back to a checkpoint. A part is read from `next` if it has
 * arrived there, else from `disk`; never from a mixture. A part that records do not have (0 bytes) counts as arrived. g has a
 * place of its own and is one part, so it needs no `next`.
 *
 * Threads: everything is guarded by `lock`. The compute thread makes all decisions that look at checkpoints (which disk slot);
 * the store's thread ends transfers and starts the next prefetches and write-backs (tier_pump). Lock order: tier, then store. */
#ifndef MOE_MEMORY_TIER_PRIVATE_H
#define MOE_MEMORY_TIER_PRIVATE_H

#include <pthread.h>

#include "memory/policy.h"
#include "memory/tier.h"

enum { TIER_DEADLINE = 300 };  /* seconds without any completion before a wait is an error */
enum { TIER_RECORD_SLOTS = 4 }; /* slots that a record takes at most */
enum { TIER_FLIGHT_MAX = 64 }; /* demand reads, or writes, in flight at most */
#define TIER_NEVER 1e15        /* phases: a use that will not come */

typedef enum slot_state { SLOT_FREE, SLOT_FILL, SLOT_READING, SLOT_READY, SLOT_FAILED, SLOT_DOOMED } slot_state;
enum { HEAP_CLEAN, HEAP_DIRTY, HEAPS };

typedef struct tier_slot {
    tier *owner;
    float *buf;
    section_id section; /* -1: free */
    store_part part;
    slot_state state;
    bool dirty, writing;
    bool ahead;        /* read before it was asked for, not used yet */
    bool demanded;     /* the read in flight counts as a demand      */
    bool missed;       /* an acquire waited for it                   */
    bool write_failed; /* not tried again until somebody needs it    */
    uint16_t leases, pins;
    uint32_t version, op_version; /* version: counts changes; op_version: of the write in flight */
    uint64_t op_step;
    double key, next; /* eviction key of the policy; expected next use in phases */
    uint64_t last;    /* number of the lease that used it last, or of the time it came */
    int heap, pos;    /* heap -1: not idle */
    int32_t next_free;
    store_op op;
} tier_slot;

/* One version of w, r, m, v at rest. */
typedef struct tier_version {
    int16_t slot; /* -1: none; of `disk`: never written */
    uint8_t have; /* those of TIER_STATE that are there (all, in `disk`) */
    uint64_t step;
    uint64_t sum[STORE_G];
} tier_version;

typedef enum touch { TOUCH_UNKNOWN, TOUCH_YES, TOUCH_NO } touch;

typedef struct tier_section {
    int32_t slot[STORE_PARTS]; /* host slots, -1: not in RAM */
    uint64_t step, grad_step;  /* the logical record; while speculative grad_step may equal step */
    tier_version disk, next;
    tier_version before; /* speculative: the state to return to */
    bool speculative;
    int16_t grad_slot;   /* where the g of disk_grad_step lies, -1: nowhere */
    int16_t grad_target; /* where the g in RAM will go */
    uint64_t disk_grad_step, grad_sum;
    uint8_t flight;          /* TIER_*: a write of this part is in flight (also of a doomed slot) */
    uint8_t changing;        /* TIER_*: leased for changing */
    uint8_t touch;           /* of the current step, see tier_expect */
    uint64_t used;           /* clock of the phase that leased it last */
    float chance;            /* moving average of touches */
    float hits[STORE_PARTS]; /* of the lfu policy; kept while the part is away */
} tier_section;

typedef struct tier_heap {
    int32_t *item;
    int n;
} tier_heap;

struct tier {
    tier_config c;
    const policy *policy;
    size_t padded;    /* bytes of a slot */
    bool halves;      /* slots have tails */
    unsigned parts;   /* TIER_* that a record has */
    int record_parts; /* slots that a record takes */
    int sections, slots;
    bool fits; /* a slot for every part: nothing is ever written back or evicted */
    float *memory;
    tier_slot *slot; /* [slots], then their tails, [slots] */
    tier_section *section;
    record *catalog;
    unsigned *want; /* [sections] parts wanted by the running acquire */
    int32_t free_head;
    int free_count;
    tier_heap heap[HEAPS];

    pthread_mutex_t lock;
    pthread_cond_t landed;
    bool inited;
    uint64_t events;                       /* completions, for the deadline */
    int reads_ahead, reads_demand, writes; /* in flight */
    bool starving;                         /* an acquire waits for slots: no prefetch */
    bool quiet;                            /* flush, resolve, close: no background work */
    moe_err write_rc;                      /* last failed write; reported by the acquire or flush that needs the slot */
    char write_text[256];

    int pos;           /* position in the cycle, -1 before the first phase */
    bool forward_only; /* evaluation: the cycle has no backward half */
    uint64_t clock;    /* phases entered */
    uint64_t finished; /* steps */
    uint64_t walk;     /* clock of the phase the prefetcher looks at; all before it is there */
    int walk_expert;
    uint64_t lease_count;
    bool speculating, update_in_backward;
    uint64_t speculative_step;
    bool speculation_broken; /* a change was released whose previous state is not on disk */
    int writeback_mark, writeback_depth;

    tier_stats stats;
    int dirty_count, leased_count;
};

static inline tier_slot *part_slot(tier *t, section_id s, store_part p)
{
    const int32_t h = t->section[s].slot[p];
    return h < 0 ? NULL : &t->slot[h];
}
static inline int slot_index(const tier *t, const tier_slot *h) { return (int)(h - t->slot); }
static inline bool slot_is_tail(const tier *t, const tier_slot *h) { return slot_index(t, h) >= t->slots; }
static inline tier_slot *slot_head(const tier *t, const tier_slot *tail) { return &t->slot[slot_index(t, tail) - t->slots]; }
/* NULL: there are none, or h is one. */
static inline tier_slot *slot_tail(const tier *t, const tier_slot *h)
{
    return t->halves && !slot_is_tail(t, h) ? &t->slot[slot_index(t, h) + t->slots] : NULL;
}
static inline size_t part_padded(const tier *t, store_part p)
{
    return (t->c.part_bytes[p] + IO_ALIGN - 1) / IO_ALIGN * IO_ALIGN;
}
static inline int cycle_length(const tier *t) { return t->forward_only ? t->c.layers : 2 * t->c.layers; }

/* tier_slots.c: free list, heaps, eviction. */
void slot_place(tier *t, tier_slot *h); /* recomputes key and heap after any change of the slot or its schedule */
void slot_place_all(tier *t);
/* From the free list; r: the tail of w. NULL: there is none. */
tier_slot *slot_take(tier *t, section_id s, store_part p, slot_state state);
bool slot_tail_free(const tier *t, section_id s); /* w is here and r may be put under it */
void slot_free(tier *t, tier_slot *h);  /* lets go of the content and the tail; a write in flight makes it DOOMED first */
void slot_evict(tier *t, tier_slot *h); /* an idle clean slot; counts what was read for nothing */
bool slot_make_room(tier *t, double next,
                    bool force); /* one free slot, by evicting the first idle clean part; see tier_slots.c */
int heap_count_from(const tier *t, int heap, double key, int limit); /* slots with at least this key, counted up to limit */

/* tier_schedule.c: when is a part needed next; reading ahead. */
typedef struct tier_use {
    double raw, expected; /* phases: the next time it may be used; the same, later the less likely it is */
} tier_use;
tier_use schedule_next_use(const tier *t, section_id s, store_part p);
void schedule_place_section(tier *t, section_id s);
void schedule_prefetch(tier *t);

/* tier_transfer.c: reads, writes, write-back, completions. */
bool part_on_disk(const tier *t, section_id s, store_part p);
void read_start(tier *t, section_id s, store_part p, bool demand); /* a slot must be free */
bool write_start(tier *t, tier_slot *h); /* with its tail; false: not dirty, or a write of this part is in flight already */
void writes_forgive(tier *t);            /* failed writes have been reported: they may be tried again */
void writeback(tier *t);
void tier_pump(tier *t);
moe_err wait_landed(tier *t, const char *who); /* one completion; MOE_E_IO after TIER_DEADLINE */
void version_begin(tier *t, tier_section *x, unsigned part, uint64_t step);
int gradient_target(tier *t, section_id s);
void gradient_forget(tier *t, section_id s);

/* tier_speculate.c */
bool speculation_blocks(tier *t, section_id s, unsigned parts); /* the previous state is not on disk yet; starts writing it */
void speculation_release(tier *t, section_id s, uint64_t step); /* before the first change of a version is booked */

/* tier_release.c */
void readonly_revert(tier *t, section_id s); /* read-only: back to what the disk holds, once w is gone */

#endif
