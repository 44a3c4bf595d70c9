/* Routing traces: which experts a model chose, token by token, layer by layer. Owns the lists; knows nothing of caches.
 * Three formats, told apart by their first bytes:
 *   JSON lines  {"tok": n, "layers": [[ids], ...]} a token
 *   CSV         header lines "#...", then a line of column names with phase, step, layer and expert (turn, if there is one, begins new tokens as
 *               step does), then one routed expert a row; only rows of phase 1 (decoding) are taken
 *   .trace      int32 L, T, K, n_greedy, then T * L * K int32 ids, little-endian
 * Threads: pure functions. Rule: a file is hostile until it is checked; what is in a trace is in range, ascending and there once. */
#ifndef MOE_ENGINE_SERVE_TRACE_H
#define MOE_ENGINE_SERVE_TRACE_H

#include <stddef.h>
#include <stdint.h>

#include "engine/base/error.h"

enum {
    TRACE_LAYERS_MAX = 4096,
    TRACE_EXPERTS_MAX = 65536,     /* of a layer */
    TRACE_ACCESSES_MAX = 1 << 24,
    TRACE_BYTES_MAX = 1 << 28,     /* of a file */
};

typedef struct trace {
    int64_t tokens;
    int layers, experts; /* experts: one more than the largest id */
    int64_t *begin;      /* [tokens * layers + 1]  into expert    */
    int32_t *expert;     /* [accesses]  ascending within a list   */
    int64_t accesses;
} trace;

/* MOE_E_NOINPUT when the file cannot be read; MOE_E_DATA names the file, the line or byte, what was found and what was expected. */
moe_err trace_read(trace *out, const char *path) MOE_MUST_CHECK;
/* The same from memory; `name` is for messages. */
moe_err trace_parse(trace *out, const char *name, const void *data, size_t bytes) MOE_MUST_CHECK;
void trace_free(trace *t);

#endif
