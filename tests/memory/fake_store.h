/* A store without a disk, for tests of the tier and the stash: link-time replacements of store_submit, store_promote, store_sync
 * and checkpoint_names_slot. Places live in RAM; a thread ends the operations in random order after random delays and fails them
 * on demand. It watches the rules of its callers: no write to a place that a kept checkpoint names, no two operations on one
 * place of which one writes, no place beyond those there are, no change of a buffer that is being written. fake_store_problem
 * says which rule was broken first. */
#ifndef MOE_TESTS_MEMORY_FAKE_STORE_H
#define MOE_TESTS_MEMORY_FAKE_STORE_H

#include "memory/checkpoint.h"
#include "memory/store.h"

typedef struct fake_config {
    int sections, slots;
    size_t part_bytes, half_bytes; /* of m, v, g, and of w without r / of w and r; 0: no r */
    uint64_t spill_bytes;
    int delay_us; /* at most, per operation */
    bool lax;     /* a buffer may change while it is written */
    uint64_t seed;
} fake_config;

store *fake_store_open(const fake_config *c);
void fake_store_close(store *s);
const char *fake_store_problem(store *s); /* "" when there is none */

/* Of a thousand operations so many fail. */
void fake_store_fail(store *s, int reads, int writes);
/* Operations transfer their bytes, but do not end until it is opened again. */
void fake_store_gate(store *s, bool closed);
/* The stored bytes of a place, NULL when never written. Nothing may be in flight. */
const void *fake_store_place(store *s, section_id section, store_part part, int slot);
uint64_t fake_store_writes(store *s);
uint64_t fake_store_reads(store *s);

/* A checkpoint that only knows names. commit keeps the newest `keep` sets of records. */
checkpoint *fake_checkpoint_open(store *s, int sections, int keep);
void fake_checkpoint_close(checkpoint *c);
void fake_checkpoint_commit(checkpoint *c, const record *records);

#endif
