/* The traffic of a training step through the store, without the computation: sections visited in a circle, a few under way at
 * once. Owns the buffers and the ops. One thread calls; completions come from the store's thread. Rule: reads of a section come
 * first, its writes when all of them have landed, into the other slot. */
#ifndef MOE_BENCH_STORE_MIX_H
#define MOE_BENCH_STORE_MIX_H

#include "memory/store.h"

typedef enum mix_kind {
    MIX_FORWARD,  /* deferred forward: reads w m v g, writes w m v (16 : 12 bytes per parameter) */
    MIX_BACKWARD, /* reads w, writes g (4 : 4)                                                     */
    MIX_READ,     /* reads w m v g                                                                 */
    MIX_FILL,     /* writes w m v g: prepares both slots                                           */
} mix_kind;

typedef struct mix mix;

/* `under_way` sections at once; their buffers are one registered block when `registered`. */
moe_err mix_open(mix **out, store *st, const store_config *c, int under_way, bool registered) MOE_MUST_CHECK;
void mix_close(mix *m);

/* Visits sections until `seconds` have passed and at least `sections` were visited; waits for the last op. */
moe_err mix_run(mix *m, mix_kind kind, double seconds, int64_t sections) MOE_MUST_CHECK;

#endif
