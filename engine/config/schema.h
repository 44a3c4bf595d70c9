/* The one list of knobs: name, type, default, unit, range, help, and whether it may change on resume. Makes the parser, --print-config,
 * --set, docs/config.md and the resume rules. The keys below `model:` are the families' (models/family.h) and not listed here.
 * Threads: constant data. Rule: a new knob is one row of schema.c and one field of train_config. */
#ifndef MOE_ENGINE_CONFIG_SCHEMA_H
#define MOE_ENGINE_CONFIG_SCHEMA_H

#include "engine/base/text.h"
#include "engine/config/train_config.h"
#include "engine/config/tree.h"

typedef enum knob_kind {
    KNOB_INT,    /* int              */
    KNOB_INT64,  /* int64_t          */
    KNOB_UINT64, /* uint64_t         */
    KNOB_NUMBER, /* double           */
    KNOB_PAIR,   /* two doubles, one after the other */
    KNOB_BOOL,   /* bool             */
    KNOB_CHOICE, /* an enum, in the order of `choices`                   */
    KNOB_WORD,   /* char *, one of `choices`                             */
    KNOB_SIZE,   /* uint64_t, bytes: "1536MiB"                           */
    KNOB_PATH,   /* char *, as written                                   */
    KNOB_PATHS,  /* char **, and the count at offset2                    */
} knob_kind;

typedef struct knob {
    const char *name;     /* "optimizer.schedule.kind"                                              */
    knob_kind kind;
    size_t offset, offset2;
    const char *fallback; /* YAML text; NULL: required, unless derived                              */
    const char *derived;  /* the default in words, filled in after reading: "train.tokens_per_step" */
    double min, max;      /* allowed range                                                          */
    bool above_min, below_max; /* min (max) itself is not allowed                                   */
    const char *choices;  /* "cosine|linear"                                                        */
    const char *unit;     /* "tokens"; NULL: none                                                   */
    bool resume;          /* may change when a run is resumed                                       */
    const char *help;
} knob;

enum { KNOBS_MAX = 64 };

extern const knob config_knobs[];
extern const int config_nknobs;
/* The sections in the order of the file, with what they are about: {"data", "..."}; {NULL} ends. */
typedef struct config_section {
    const char *name, *help;
} config_section;
extern const config_section config_sections[];

/* -1 when unknown. */
int knob_find(const char *name);
/* Is `path` the beginning of some knob ("optimizer.schedule")? */
bool knob_is_section(const char *path);

/* Takes the value of a node; a problem is added and false returned when it is not of the knob's kind or range. */
bool knob_assign(const knob *k, train_config *c, const tree_node *n, problems *p);
/* "a whole number from 1 to 1024 (tokens)": what sentences and docs expect. */
void knob_expected(const knob *k, text_buf *t);
/* The value as YAML that reads back as the same. */
void knob_print(const knob *k, const train_config *c, text_buf *t);
/* A string as YAML, quoted where it must be. */
void tree_print_string(text_buf *t, const char *s);
/* A number as YAML, with a point where YAML 1.1 readers want one (1.0e-8). */
void tree_print_number(text_buf *t, double x);
void knob_free(const knob *k, train_config *c);

#endif
