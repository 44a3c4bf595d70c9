/* Checkpoints: the manifest and the dense part. A checkpoint flushes nothing that is pending: the caller has written the dirty
 * sections (tier_flush), then checkpoint_commit writes the dense part, syncs the stores, writes manifest.tmp, syncs it, renames it,
 * syncs the folder. A crash at any instant reopens at the last committed one. `keep` older ones stay until the next commit.
 *
 * Files in DIR (the run folder's checkpoint/): manifest-<step>.bin for each kept checkpoint, dense-<k>.bin (k = 0 .. keep).
 * The manifest is one header, the records, the step log, the caller's state blob, and an XXH3-64 over all of it. Its reader treats the file
 * as hostile (fuzzed). */
#ifndef MOE_MEMORY_CHECKPOINT_H
#define MOE_MEMORY_CHECKPOINT_H

#include "kernels/adamw.h"
#include "memory/catalog.h"

typedef struct manifest {
    uint8_t uuid[16];
    uint64_t step;          /* finished steps */
    int32_t sections;
    record *records;        /* [sections]                                      */
    uint64_t log_steps;
    adamw_step *log;        /* [log_steps] consecutive steps, the last == step */
    uint64_t dense_bytes;   /* length of the dense part                        */
    uint64_t dense_sum;     /* XXH3-64                                         */
    int32_t dense_slot;     /* filled in by commit                             */
    void *state;            /* the caller's own bytes (data position, router biases, config echo) */
    uint64_t state_bytes;   /* at most 64 MiB                                  */
} manifest;

typedef struct checkpoint checkpoint; /* the folder with its kept manifests */

/* Opens DIR (made when absent). Finds the newest manifest that is whole; a broken newest one is skipped with a note (>= 512 bytes).
 * *latest is NULL when there is none; it stays owned by the checkpoint and valid until checkpoint_close, commits or not. MOE_E_DATA when
 * there are manifests and none is whole. */
moe_err checkpoint_open(checkpoint **out, io *io, const char *dir, int keep, bool direct, const manifest **latest, char *note) MOE_MUST_CHECK;
void checkpoint_close(checkpoint *c);

/* Reads the dense part of the latest manifest into buf (IO_ALIGN-aligned, padded); checks its sum. */
moe_err checkpoint_read_dense(checkpoint *c, void *buf, uint64_t bytes) MOE_MUST_CHECK;

/* Commits `m` (copied; dense_slot and dense_sum are filled in the copy). `st` (NULL: no experts on disk) is synced first. dense:
 * IO_ALIGN-aligned, padded. The slots that the oldest kept manifest named alone become free. On an error the last checkpoint is whole and
 * the call may be made again, with the same step or a later one. */
moe_err checkpoint_commit(checkpoint *c, store *st, const manifest *m, const void *dense) MOE_MUST_CHECK;

/* Is this slot of the section named by a kept checkpoint (`grad`: of part g)? */
bool checkpoint_names_slot(const checkpoint *c, section_id s, int slot, bool grad);

/* The reader alone, for tests and the fuzzer: *out is malloc'ed as one block, free() it. `what` names the file in errors. */
moe_err manifest_parse(manifest **out, const void *data, size_t bytes, const char *what) MOE_MUST_CHECK;

#endif
