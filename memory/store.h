/* Records at rest on SSD. Owns the store files and the I/O thread; holds no data in memory besides what is in flight.
 *
 * A training record of a section has up to five parts: w (weights), r (their rest: the lower halves of master weights whose
 * nearest bf16 is w, kernels/halves.h), m, v (moments), g (pending gradient), each padded to IO_ALIGN; a part of 0 bytes does not
 * exist: no file has room for it and no transfer may name it. w, r, m, v are written together and share a slot number; g has its
 * own. Every part has `slots` places on disk: a write goes to a slot that no kept checkpoint names (the caller chooses; see
 * catalog.h). Sections are striped over the folders. The spill area is a scratch file of raw blocks (activations) that no
 * checkpoint knows. Threads: store_submit and store_sync from any thread; `done` runs on the I/O thread and must not block. */
#ifndef MOE_MEMORY_STORE_H
#define MOE_MEMORY_STORE_H

#include "memory/io.h"

typedef int32_t section_id; /* expert sections: layer-major over the MoE layers, then expert */

typedef enum store_part { STORE_W, STORE_R, STORE_M, STORE_V, STORE_G, STORE_PARTS } store_part;
#define STORE_LETTERS "wrmvg"

typedef struct store_config {
    io *io;
    const char *const *dirs; /* [ndirs] folders, made when absent                        */
    int ndirs;
    uint8_t uuid[16];        /* of the run: written to each folder, checked on open      */
    int32_t sections;
    size_t part_bytes[STORE_PARTS]; /* before padding                                    */
    int slots;               /* places per part: checkpoint.keep + 1 (+ 1 when speculative) */
    uint64_t spill_bytes;    /* of the scratch file, 0: none                             */
    bool create;             /* make new files (those of the same run are made anew); else open and check existing ones */
    bool buffered;           /* no O_DIRECT: page cache is dropped behind each transfer  */
    int depth;               /* transfers in flight per drive, 0: the default            */
    double deadline_seconds; /* a transfer in flight longer is MOE_E_IO and ends the store; 0: IO_DEADLINE_SECONDS */
} store_config;

typedef struct store store;

/* Creating reserves every byte at once: MOE_E_IO names what is missing when the disk is too small, a folder that holds another run's
 * store is MOE_E_CREATE. Opening a folder of another run is MOE_E_CONFIG, a missing file MOE_E_NOINPUT, a wrong size MOE_E_DATA. tmpfs or
 * no O_DIRECT: MOE_E_CONFIG unless buffered. Opening with more slots than the files have adds slots; with fewer changes nothing. */
moe_err store_open(store **out, const store_config *c) MOE_MUST_CHECK;
void store_close(store *s); /* waits for what is in flight; NULL: no-op */

/* Slots per part on disk: at least store_config.slots. */
int store_slots(const store *s);

/* For readers that bring their own I/O: checks the folders' identities, opens and changes nothing. *slots: how many each part has. */
moe_err store_look(const store_config *c, int *slots) MOE_MUST_CHECK;
/* Where a part of a section lies: in the file slot-<slot>.bin of folder *dir. */
void store_where(const store_config *c, section_id section, store_part part, int *dir, uint64_t *offset);

/* Optional, before the first transfer: memory that buffers come from, registered with the kernel where that is allowed. Only speed. */
void store_register(store *s, void *base, size_t bytes);

/* Bytes that store_open will reserve in all folders together. */
uint64_t store_disk_bytes(const store_config *c);

typedef enum store_priority { STORE_DEMAND, STORE_WRITE, STORE_PREFETCH } store_priority;

/* One part, or one spill block. The caller keeps it alive until done(op). buf is IO_ALIGN-aligned and holds the padded part. */
typedef struct store_op {
    bool write, spill;
    store_priority priority;
    section_id section;   /* records */
    store_part part;      /* records */
    int slot;             /* records */
    uint64_t offset;      /* spill: IO_ALIGN-aligned */
    size_t bytes;         /* spill: length, padded up to IO_ALIGN by the store */
    void *buf;
    uint64_t sum;         /* records: XXH3-64 of the unpadded part. write: out; read: expected, a mismatch is MOE_E_DATA */
    void (*done)(struct store_op *op);
    void *user;

    moe_err rc;           /* out */
    char text[256];       /* out: sentence of the error */
    uint64_t private_[8];
} store_op;

void store_submit(store *s, store_op *op);
/* A waiting prefetch becomes a demand. */
void store_promote(store *s, store_op *op);
/* Waits for the writes submitted before, then fdatasync of every file that was written. */
moe_err store_sync(store *s) MOE_MUST_CHECK;

typedef struct store_stats {
    uint64_t read_bytes, write_bytes; /* of records and spill, padded: what went to the drive */
    uint64_t spill_read_bytes, spill_write_bytes;
    double busy_seconds;              /* at least one transfer in flight */
    double sum_seconds;               /* CPU time spent in checksums     */
} store_stats;

void store_get_stats(store *s, store_stats *out);

/* States every invariant; MOE_E_DATA names the first that fails. */
moe_err store_check(store *s) MOE_MUST_CHECK;

#endif
