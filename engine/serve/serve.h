/* A model that answers: dense weights resident in their own format, experts through the cache, keys and values in pages. One step takes tokens of many
 * sequences (prefill chunks and single decoded tokens mixed) through all layers. Knows no text, no sampling, no requests.
 * Same tokens, same logits, bit for bit: whatever the memory, the neighbours in the batch, the chunks, prefix reuse, packed or in place.
 * Threads: one caller; parallel inside each operation. */
#ifndef MOE_ENGINE_SERVE_SERVE_H
#define MOE_ENGINE_SERVE_SERVE_H

#include "kernels/backend.h"
#include "memory/expert_cache.h"
#include "models/model.h"

typedef struct serve_config {
    const model *model;
    const moe_backend *be;
    moe_stream *stream;
    io *io;
    uint64_t host_bytes;   /* the whole process; 95 % of it is planned                        */
    numfmt kv;             /* NUM_F32, NUM_BF16, NUM_Q8_0                                     */
    int max_sequences;
    int64_t max_context;   /* tokens of one sequence                                          */
    int chunk;             /* tokens of a step at most                                        */
    const char *policy;
    const char *hot;       /* file with the experts that were resident last time: read on opening, written on closing; NULL: none */
} serve_config;

typedef struct serve serve;

/* MOE_E_CONFIG when it does not fit: names the parts and the least that would. */
moe_err serve_open(serve **out, const serve_config *c) MOE_MUST_CHECK;
void serve_close(serve *s);

moe_err serve_sequence_begin(serve *s, int *sequence) MOE_MUST_CHECK;   /* MOE_E_FULL: max_sequences */
void serve_sequence_end(serve *s, int sequence);
int64_t serve_sequence_length(const serve *s, int sequence);
/* For a sequence that has no tokens yet, before its first step: keys and values of a prefix that was computed before are taken over.
 * Returns how many of the n tokens are there now (whole pages, at most n - 1: the last one is always computed). */
int64_t serve_sequence_reuse(serve *s, int sequence, const int32_t *token, int64_t n);

typedef enum serve_want { SERVE_NONE, SERVE_LAST, SERVE_ALL } serve_want;

typedef struct serve_span {
    int sequence;
    const int32_t *token; /* [n], appended to the sequence              */
    int n;
    serve_want want;      /* which logits                               */
    moe_err rc;           /* out: a disk error breaks this span's sequence, which can only be ended, and leaves the others running */
    char text[256];
} serve_span;

/* logits: [rows wanted, V] in span order. MOE_E_DATA for a token past the vocabulary, MOE_E_CONFIG past max_context: nothing is changed then. */
moe_err serve_step(serve *s, serve_span *span, int n, float *logits) MOE_MUST_CHECK;

typedef struct serve_stats {
    expert_cache_stats cache;
    uint64_t dense_bytes, kv_bytes, scratch_bytes, tokens;
    uint64_t least_bytes; /* of host memory that would do */
    double open_seconds, step_seconds;
} serve_stats;
void serve_get_stats(const serve *s, serve_stats *out);

#endif
