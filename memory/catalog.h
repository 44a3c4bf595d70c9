/* What is where: for each expert section the slots, steps and checksums of its record. The catalog in memory runs ahead of the
 * disk's manifest; a checkpoint writes it out (checkpoint.h). Not thread-safe by itself: the tier guards it.
 *
 * A record holds (w, r, m, v) as of `step` (0: initial values, never trained) and at most one pending gradient, of step
 * `grad_step` (0: none). Slot -1 means "never written": w is the initial value (computed or imported), m and v are zero. */
#ifndef MOE_MEMORY_CATALOG_H
#define MOE_MEMORY_CATALOG_H

#include "memory/store.h"

typedef struct record {
    uint64_t step;              /* state of w, r, m, v                     */
    uint64_t grad_step;         /* pending gradient; always > step; 0 none */
    int16_t slot;               /* of w, r, m, v; -1: never written        */
    int16_t grad_slot;          /* of g; -1: not on disk                   */
    uint32_t reserved;          /* 0 */
    uint64_t sum[STORE_PARTS];  /* XXH3-64 of each part on disk; 0 for a part of 0 bytes */
} record;
_Static_assert(sizeof(record) == 64, "record is part of the manifest");

#endif
