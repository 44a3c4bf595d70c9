/* What a command of moe-serve needs around the engine: the model, the disk, the threads, sizes taken from the machine where the user gave
 * none. Owns them. Open, then allocate what the command holds itself (the plan counts it), then start.
 * Threads: one caller. */
#ifndef MOE_ENGINE_SERVE_SESSION_H
#define MOE_ENGINE_SERVE_SESSION_H

#include "engine/serve/serve.h"

typedef struct session_options {
    const char *path;    /* MODEL                                         */
    uint64_t host_bytes; /* 0: what the machine has                       */
    int threads;         /* 0: one for each processor                     */
    const char *backend; /* NULL: the fastest                             */
    const char *policy;  /* NULL: the default                             */
    const char *kv;      /* f32, bf16, q8_0; NULL: bf16                   */
    int sequences, chunk;
    int64_t context;     /* tokens of one sequence                        */
    bool hot;            /* remember the resident experts in the user's cache folder */
} session_options;

typedef struct session {
    model *model;
    io *io;
    char io_note[256]; /* "" or why io_uring is not used */
    char limit_source[64];
    char hot[512];     /* path, "": none */
    moe_pool *pool;
    moe_stream stream;
    serve_config config;
    serve *serve; /* NULL until session_start */
} session;

moe_err session_open(session *s, const session_options *o) MOE_MUST_CHECK;
moe_err session_start(session *s) MOE_MUST_CHECK;
void session_close(session *s);

#endif
