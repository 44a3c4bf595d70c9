/* Chat templates: the part of Jinja2 that they use, with the output of jinja2 in the environment of transformers (trim_blocks,
 * lstrip_blocks, loop controls, its tojson, raise_exception, strftime_now; immutable sandbox). Owns the parsed template; a rendering owns nothing of
 * it. Knows no tokenizer and no clock.
 * A template is hostile until parsed and stays so while it runs: steps, memory and output have budgets, nothing outside is reached.
 * What is not supported is an error when it is parsed, with line and feature. Threads: a parsed template is read-only, any thread renders.
 *
 * Statements: for (else, if), if, set (also of a namespace, of several names, of a block), macro, filter, break, continue, generation, raw.
 * Expressions: all operators, slices, conditions, literals of lists, tuples and dictionaries, calls; filters, tests and methods by the
 * tables of template_filters.c, template_tests.c and template_methods.c.
 * Rule: what comes from `variables` is marked and stays marked through every operation; a tokenizer must not find special tokens in it. */
#ifndef MOE_MODELS_TEXT_TEMPLATE_H
#define MOE_MODELS_TEXT_TEMPLATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include "engine/base/error.h"

enum { TEMPLATE_MAX_BYTES = 1 << 20 };

typedef struct chat_template chat_template;

/* name: for messages. MOE_E_DATA "NAME:LINE: ..." for bad syntax and for what is not supported. */
moe_err template_open(chat_template **out, const char *name, const char *text, size_t n) MOE_MUST_CHECK;
void template_close(chat_template *t); /* NULL: no-op */

typedef struct template_input {
    const char *variables; /* a JSON object: messages, tools, add_generation_prompt, ...; marked          */
    size_t variables_bytes;
    const char *trusted;   /* a JSON object of what the model's files say: bos_token, eos_token, ...; NULL: none */
    size_t trusted_bytes;
    struct tm now;         /* for strftime_now                                                            */
    int64_t max_steps;     /* 0: 10 million                                                               */
    size_t max_output;     /* bytes, 0: 16 MiB                                                            */
    size_t max_memory;     /* bytes while it runs, 0: 256 MiB                                             */
} template_input;

/* Text [begin of this, begin of the next) is from one side. Neighbours differ in `user`. */
typedef struct template_segment {
    size_t begin;
    bool user; /* from the variables: no special tokens in it */
} template_segment;

typedef struct template_output {
    char *text; /* malloc'ed, NUL behind it */
    size_t n;
    template_segment *segment; /* malloc'ed */
    size_t segments;
} template_output;

/* MOE_E_DATA: an error of the template or of the variables (raise_exception too), with line; a budget that is used up.
 * *out is empty on error. */
moe_err template_render(const chat_template *t, const template_input *in, template_output *out) MOE_MUST_CHECK;
void template_output_free(template_output *o);

#endif
