/* The inside of the store, shared by store.c (doors), store_files.c (layout on disk), store_chunk.c
 * (chunks, checksums, order) and store_thread.c (the I/O thread).
 * Everything below `lock` in struct store is guarded by it; an op's state belongs to the I/O thread except `list` and the links.
 * Rule: `done` of an op is called without the lock, as the last touch of the op. */
#ifndef MOE_MEMORY_STORE_PRIVATE_H
#define MOE_MEMORY_STORE_PRIVATE_H

#include <pthread.h>
#include <stdatomic.h>

#include "memory/store.h"

enum {
    STORE_MAX_DIRS = 64,
    STORE_MAX_SLOTS = 64,
    STORE_MAX_DEPTH = 256,
    STORE_DEFAULT_DEPTH = 16, /* sweep: bench/store */
    STORE_LISTS = 4,          /* one per priority, then ops that were refused */
    STORE_REFUSED = 3,
    STORE_WINDOW = 64, /* chunks of one op that may be on their way beyond the part that is summed */
};
#define STORE_STRIPE ((uint64_t)IO_CHUNK) /* bytes of the spill area on one drive before the next drive's turn */

/* On disk: "store.id" of each folder, written before the files it speaks of. */
typedef struct store_id {
    char magic[8];
    uint8_t uuid[16];
    uint32_t version, dirs, dir; /* folders of the store, number of this one */
    int32_t sections;
    uint64_t part_bytes[STORE_PARTS];
    uint32_t slots, reserved;
    uint64_t sum; /* XXH3-64 of all before it */
} store_id;
_Static_assert(sizeof(store_id) == 96, "store.id is a file format");

/* One folder: slot-<k>.bin holds, for each section of this folder in order, the padded parts w | r | m | v | g of slot k. */
typedef struct store_drive {
    char *dir;
    io_file *slot[STORE_MAX_SLOTS];
    io_file *spill;
    bool made;                          /* by this process: a creation that fails removes its files */
    int in_flight;                      /* chunks; I/O thread */
    atomic_bool dirty[STORE_MAX_SLOTS]; /* written since the last sync */
} store_drive;

/* A checksum under way; kept on a free list, made when that is empty. */
typedef struct hash_cell {
    struct hash_cell *next;
    void *state; /* XXH3_state_t */
} hash_cell;

typedef struct op_state {
    store_op *next, *prev; /* in its list                                                     */
    uint64_t issued;       /* bytes handed to the queue                                       */
    uint64_t settled;      /* bytes that came back, in any order                              */
    uint64_t summed;       /* chunks whose bytes are in the sum                               */
    uint64_t landed;       /* bit i: chunk summed + i came back (reads)                       */
    hash_cell *hash;       /* sum of the first `summed` chunks; NULL: one chunk, or spill     */
    uint32_t list;         /* 1 + index of the list it waits in, 0: none                      */
    uint32_t epoch;        /* of a write: which store_sync waits for it                       */
} op_state;
_Static_assert(sizeof(op_state) <= sizeof(((store_op *)0)->private_), "op_state lives in store_op.private_");

static inline op_state *op_state_of(store_op *op) { return (op_state *)(void *)op->private_; }

typedef struct op_list {
    store_op *head, *tail;
} op_list;

typedef struct chunk {
    io_transfer t;
    store_op *op; /* NULL: free, or given up */
    int drive;
    bool in_flight; /* else free, or landed and not looked at yet */
    double started;
    struct chunk *next; /* free, or landed */
} chunk;

struct store {
    io *io;
    uint8_t uuid[16];
    int ndirs;
    int32_t sections;
    int slots;
    size_t part_bytes[STORE_PARTS];
    uint64_t padded[STORE_PARTS], part_offset[STORE_PARTS], record_bytes;
    uint64_t spill_bytes;
    bool buffered;
    int depth;
    double deadline;
    store_drive *drive; /* [ndirs] */

    /* I/O thread only */
    io_queue *queue;
    chunk *chunks; /* [nchunks] */
    int nchunks;
    chunk *free_chunk, *landed, **landed_end;
    int in_flight;
    double looked; /* when the deadlines were last looked at */
    hash_cell *free_hash;
    int write_passed, prefetch_passed; /* how often others went first while one waited */
    store_stats delta;                 /* since the last merge into stats */

    pthread_mutex_t lock;
    pthread_cond_t changed;    /* an op ended; the thread started or stopped */
    pthread_mutex_t sync_lock; /* one store_sync at a time */
    pthread_t thread;
    bool thread_started, running, quit;
    bool sleeping; /* the thread has room for a chunk and waits, or is about to */
    op_list list[STORE_LISTS];
    void *register_base; /* asked for by store_register, NULL when done */
    size_t register_bytes;
    double busy_since; /* 0: idle */
    uint32_t epoch;
    int64_t writes_pending[2]; /* by parity of the epoch */
    int64_t ops_pending;
    moe_err broken; /* not MOE_OK: every op fails with broken_text */
    char broken_text[256];
    moe_err sync_broken; /* a sync failed: what is on disk is unknown until the store is opened again */
    char sync_text[256];
    store_stats stats;
};

/* store_files.c */
moe_err store_layout(store *s, const store_config *c) MOE_MUST_CHECK;
moe_err store_files_open(store *s, const store_config *c) MOE_MUST_CHECK;
void store_files_close(store *s);
uint64_t store_dir_sections(int32_t sections, int ndirs, int dir);

/* store_chunk.c, on the I/O thread. */
io_transfer *take_chunks(store *s);                   /* with the lock held: the chunks that go now, linked  */
store_op *first_ready(store *s, store_priority list); /* with the lock held: the op whose chunk could go     */
void merge_stats(store *s);                           /* with the lock held                                  */
void sum_next_chunk(store *s, store_op *op);
void chunk_land(store *s, chunk *c); /* came back from the disk: its place is free at once, its bytes wait for chunk_settle */
void chunk_settle(store *s);         /* the oldest landed chunk: checksum of a read, end of its op                          */
void op_fail(store_op *op, moe_err rc, const char *text);
bool op_is_over(const store *s, store_op *op);
void op_end(store *s, store_op *op); /* calls done; afterwards the op is the caller's */

/* store_thread.c */
moe_err store_thread_start(store *s) MOE_MUST_CHECK;
void store_thread_stop(store *s);
/* With the lock held. */
void op_list_add(store *s, store_op *op, uint32_t list);
void op_list_remove(store *s, store_op *op);
double store_now(void);

#endif
