/* Every problem of a configuration, collected so that all are shown at once. Owns the sentences; knows nothing of YAML or knobs.
 * One thread. Rule: a reader that finds a problem goes on where it can; whoever owns the list asks problems_fail at the end. */
#ifndef MOE_ENGINE_CONFIG_PROBLEMS_H
#define MOE_ENGINE_CONFIG_PROBLEMS_H

#include "engine/base/error.h"

/* Where a value came from. */
typedef enum origin_kind { ORIGIN_DEFAULT, ORIGIN_FILE, ORIGIN_SET } origin_kind;

typedef struct config_origin {
    origin_kind kind;
    int line, col;   /* ORIGIN_FILE: from 1; 0: the file as a whole    */
    int set;         /* ORIGIN_SET: which of the --set, from 0         */
} config_origin;

typedef struct problem {
    config_origin at;
    int order;       /* of discovery */
    char *sentence;
} problem;

typedef struct problems {
    const char *file;            /* borrowed: what the sentences call the file */
    const char *const *sets;     /* borrowed */
    problem *item;
    int n, capacity;
    int dropped;                 /* could not be kept: out of memory, or too many */
} problems;

enum { PROBLEMS_MAX = 1000 };

/* key "" for problems of no key. The sentence says "expected ..., got ...". */
void problems_add(problems *p, config_origin at, const char *key, const char *fmt, ...) MOE_PRINTF(4, 5);
int problems_count(const problems *p);
/* MOE_OK when there are none; else MOE_E_CONFIG with one line for each, in the order of the file, then the --set. */
moe_err problems_fail(problems *p) MOE_MUST_CHECK;
void problems_free(problems *p);

/* "file:3:7", "file" or "--set a.b=v" into out. Returns out. */
const char *problems_place(const problems *p, config_origin at, char *out, size_t size);

#endif
