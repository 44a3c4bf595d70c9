/* moe-serve generate: prompts in, texts out. Owns the way from the command line's words to generator.h and what is printed. One thread. */
#ifndef MOE_ENGINE_SERVE_GENERATE_H
#define MOE_ENGINE_SERVE_GENERATE_H

#include <stdio.h>

#include "engine/serve/sampler.h"
#include "engine/serve/session.h"

typedef struct generate_options {
    session_options session;     /* sequences and context are set here; chunk: 0 the default             */
    const char *tokenizer;       /* NULL: the model's; else a path or "bytes"                             */
    const char *const *prompt;   /* [nprompts] text; "-" is what stdin holds                              */
    int nprompts;
    const char *prompt_tokens;   /* "1,2,3" instead of texts, NULL: none                                  */
    bool prompt_specials;        /* special tokens may be written in the prompts                          */
    int streams, parallel;       /* texts from each prompt; sequences at once at most                     */
    int64_t max_tokens;
    sampler_options sampling;    /* without bias and breakers                                             */
    const char *const *bias;     /* [nbias] "ID=B"                                                        */
    int nbias;
    const char *const *breaker;  /* [nbreakers] texts: a token that holds one ends a repetition of DRY     */
    int nbreakers;
    const char *const *stop;
    int nstop;
    bool ignore_eos, show_specials, json, quiet;
} generate_options;

/* Texts to `out` (one text as it comes, several one after the other, or one JSON object), a line of figures to `note`. MOE_E_TEMP after SIGINT or
 * SIGTERM, with the texts so far written. A disk error of one text is returned after all are written. */
moe_err command_generate(const generate_options *o, FILE *out, FILE *note) MOE_MUST_CHECK;

#endif
