/* What subcommands of moe-serve do once their arguments are parsed. */
#ifndef MOE_ENGINE_SERVE_COMMANDS_H
#define MOE_ENGINE_SERVE_COMMANDS_H

#include <stdio.h>

#include "engine/serve/session.h"

/* Logits of every token as [tokens, vocabulary] fp32 in a .npy file. tokens: "1,2,3", or a file of ids between commas or blanks.
 * o: sequences, chunk and context are set here. MOE_E_DATA: no list of ids, or an id past the vocabulary. The file appears whole or not
 * at all. */
moe_err command_logits(const session_options *o, const char *tokens, const char *out) MOE_MUST_CHECK;

enum { BENCH_STREAMS = 16, BENCH_CHUNK = 512 /* tokens of a step at most, and so streams together */ };

typedef struct bench_options {
    session_options session; /* sequences, chunk and context are set here */
    int64_t warmup, prefill, decode; /* tokens                            */
    uint64_t seed;
    int streams[BENCH_STREAMS], nstreams;
    bool json;
} bench_options;

/* Token i of prompt p: (splitmix64 of seed << 48 | p << 24 | i) modulo V; p is 0 for prefill, 2^24 - 1 for the warm-up, else
 * streams << 8 | number of the stream. Ready, prefill of one sequence, decode of each number of streams: tokens per second, what the experts' cache did, how long it waited. */
moe_err command_bench(const bench_options *o, FILE *out) MOE_MUST_CHECK;

#endif
