/* Ranks: one small table of collectives. A transport is a row of it; `self` is one rank and needs no library. The engine calls the table
 * and never asks which transport is behind it.
 * Order of sums: rank 0 + rank 1 + ..., whatever the transport. Every call is collective: all ranks make it, in the same order, with the
 * same sizes. Threads: the compute thread. A rank that does not answer within the transport's deadline is MOE_E_TEMP and named. */
#ifndef MOE_COMM_COMM_H
#define MOE_COMM_COMM_H

#include <stddef.h>
#include <stdint.h>

#include "engine/base/error.h"

typedef struct comm comm;

typedef struct comm_ops {
    const char *name;
    moe_err (*sum_doubles)(comm *c, double *x, size_t n);            /* in place, on every rank                              */
    moe_err (*sum_floats)(comm *c, float *x, size_t n);
    moe_err (*broadcast)(comm *c, void *x, size_t bytes, int root);
    /* Rank r gets send_bytes[r] bytes of `in` (laid out by rank) and `out` receives recv_bytes[r] bytes from rank r. */
    moe_err (*all_to_all)(comm *c, void *out, const size_t *recv_bytes, const void *in, const size_t *send_bytes);
    moe_err (*barrier)(comm *c);
    void (*destroy)(comm *c);
} comm_ops;

struct comm {
    const comm_ops *ops;
    int rank, size;
};

/* transport: "self". MOE_E_CONFIG for any other, naming those of this build. */
moe_err comm_open(comm **out, const char *transport) MOE_MUST_CHECK;
void comm_close(comm *c); /* NULL: no-op */

#endif
