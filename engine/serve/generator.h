/* Texts from prompts: continuous batching of many sequences over serve_step, sampling, stop strings. Owns samplers, streams of text and
 * what was generated; borrows the engine, the tokenizer and every array of the options. Knows no terminal and no files.
 * A text depends on its prompt, its number and the options only: not on the others, nor on the memory. Threads: one caller.
 * Rule: open before serve_open, so that its memory is counted when the engine plans. */
#ifndef MOE_ENGINE_SERVE_GENERATOR_H
#define MOE_ENGINE_SERVE_GENERATOR_H

#include <signal.h>

#include "engine/serve/sampler.h"
#include "engine/serve/serve.h"
#include "engine/serve/text_stream.h"
#include "models/text/text_buffer.h"

typedef enum generate_finish {
    GENERATE_RUNNING,
    GENERATE_EOS,
    GENERATE_STOP,        /* a stop string                     */
    GENERATE_LENGTH,      /* max_tokens                        */
    GENERATE_INTERRUPTED,
    GENERATE_ERROR,       /* of this sequence; see `error`     */
} generate_finish;

const char *generate_finish_name(generate_finish f);

typedef struct generator_options {
    const tokenizer *tokenizer;
    int V;
    const token_ids *prompt;   /* [nprompts] at least one token each                              */
    int nprompts;
    int streams;               /* texts from each prompt; text i is stream i % streams of prompt i / streams */
    int64_t max_tokens;        /* of a text                                                       */
    int chunk;                 /* tokens of a step at most, as in serve_config                    */
    int max_running;           /* sequences at once, as in serve_config; the others follow        */
    sampler_options sampling;
    const char *const *stop;
    int nstop;
    const int32_t *eos;
    int neos;
    bool skip_special;
    const volatile sig_atomic_t *interrupted; /* NULL: never */
    void (*emit)(void *user, int i, const char *text, size_t n); /* as it comes; NULL: not asked for */
    void *user;
} generator_options;

typedef struct generated {
    generate_finish finish;
    const char *stop;        /* GENERATE_STOP: which                               */
    token_ids tokens;        /* with the one that ended it                         */
    text_buffer text;
    sampler_result *sampled; /* [tokens.n] when sampling.logprobs > 0, else NULL   */
    int64_t reused;          /* prompt tokens whose keys and values were there     */
    double first_seconds;    /* from the beginning of generator_run to its first token */
    moe_err rc;
    char error[256];
} generated;

typedef struct generator_times {
    double seconds, prefill_seconds, decode_seconds; /* a step with prompt tokens counts as prefill */
    int64_t prompt_tokens, prefill_steps, decode_steps, decoded; /* decoded: tokens of the steps that count as decode */
} generator_times;

typedef struct generator generator;

/* MOE_E_USAGE, MOE_E_CONFIG, MOE_E_DATA: options out of range, a prompt without tokens or with one past the vocabulary. */
moe_err generator_open(generator **out, const generator_options *o) MOE_MUST_CHECK;
void generator_close(generator *g); /* NULL: no-op */
/* Once. An error of one sequence ends that text (GENERATE_ERROR) and no other; what is returned is an error of all of them. */
moe_err generator_run(generator *g, serve *s) MOE_MUST_CHECK;

int generator_texts(const generator *g);
const generated *generator_text(const generator *g, int i);
const generator_times *generator_get_times(const generator *g);

#endif
