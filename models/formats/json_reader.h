/* A pull reader over JSON text in memory: one event at a time, strings and numbers as slices of the text, nothing allocated, no
 * recursion. Strict RFC 8259 (strings are valid UTF-8, no lone surrogates, nothing after the value); duplicate keys are left to
 * the caller. One reader belongs to one thread. The text must outlive the reader and everything it handed out.
 *
 *     json_reader r;
 *     json_open(&r, path, text, bytes);
 *     TRY(json_expect(&r, JSON_OBJECT));
 *     for (json_event e;;) {
 *         TRY(json_next(&r, &e));              // JSON_KEY or JSON_OBJECT_END
 *         if (e == JSON_OBJECT_END)
 *             break;
 *         if (json_is(&r, "size"))
 *             TRY(json_get_int(&r, 0, 1 << 20, &size));
 *         else
 *             TRY(json_skip(&r));
 *     }
 *     TRY(json_expect(&r, JSON_END)); */
#ifndef MOE_MODELS_FORMATS_JSON_READER_H
#define MOE_MODELS_FORMATS_JSON_READER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/error.h"

enum { JSON_DEPTH = 64 }; /* open objects and arrays; one bit each in `kinds` */

typedef enum json_event {
    JSON_OBJECT,
    JSON_OBJECT_END,
    JSON_ARRAY,
    JSON_ARRAY_END,
    JSON_KEY,
    JSON_STRING,
    JSON_NUMBER,
    JSON_TRUE,
    JSON_FALSE,
    JSON_NULL,
    JSON_END, /* the value is complete and only white space follows; stays so */
} json_event;

typedef struct json_reader {
    const char *name; /* of the text, for messages: a path, or "file:line" */
    const char *text;
    size_t bytes, at;  /* at: next byte to read                               */
    int max_depth;     /* default JSON_DEPTH; the caller may lower it         */
    size_t max_string; /* bytes of one raw string or number; default no limit */

    json_event event; /* the last one                                    */
    size_t where;     /* offset of its first byte                        */
    const char *raw;  /* JSON_KEY, _STRING: between the quotes; _NUMBER  */
    size_t raw_bytes;
    bool escaped; /* raw holds backslashes                           */

    uint64_t kinds; /* private: bit of a level = 1: object */
    int depth;      /* open levels (readable)              */
    int state;      /* private */
} json_reader;

void json_open(json_reader *r, const char *name, const void *text, size_t bytes);

/* The next event. MOE_E_DATA "NAME: byte N: ...". */
moe_err json_next(json_reader *r, json_event *e) MOE_MUST_CHECK;
/* The next event must be `e` (MOE_E_DATA names both). */
moe_err json_expect(json_reader *r, json_event e) MOE_MUST_CHECK;
/* Passes over the next value, with everything in it. */
moe_err json_skip(json_reader *r) MOE_MUST_CHECK;
/* Passes over the rest of the value whose first event was just read (nothing to do for strings, numbers, ...). */
moe_err json_skip_rest(json_reader *r) MOE_MUST_CHECK;

/* The key or string just read equals the NUL-terminated s. */
bool json_is(const json_reader *r, const char *s);
/* Decodes the key or string just read into out (room for raw_bytes bytes; no NUL is added); returns the length. */
size_t json_decode(const json_reader *r, char *out);
/* Decoded copy, malloc'ed, NUL-terminated; MOE_E_DATA when it holds a NUL character. *out is NULL on error. */
moe_err json_copy(const json_reader *r, char **out) MOE_MUST_CHECK;

/* The number just read. Integers: no fraction, no exponent, in [low, high]. */
moe_err json_int(const json_reader *r, int64_t low, int64_t high, int64_t *out) MOE_MUST_CHECK;
moe_err json_uint(const json_reader *r, uint64_t high, uint64_t *out) MOE_MUST_CHECK;
moe_err json_double(const json_reader *r, double *out) MOE_MUST_CHECK; /* finite */

/* The next event must be a number, a string, true or false; then as above. */
moe_err json_get_int(json_reader *r, int64_t low, int64_t high, int64_t *out) MOE_MUST_CHECK;
moe_err json_get_uint(json_reader *r, uint64_t high, uint64_t *out) MOE_MUST_CHECK;
moe_err json_get_double(json_reader *r, double *out) MOE_MUST_CHECK;
moe_err json_get_string(json_reader *r, char **out) MOE_MUST_CHECK;
moe_err json_get_bool(json_reader *r, bool *out) MOE_MUST_CHECK;

/* "NAME: byte N: <sentence>" for the event just read; returns code. */
moe_err json_fail(const json_reader *r, moe_err code, const char *fmt, ...) MOE_PRINTF(3, 4) __attribute__((cold));
const char *json_event_name(json_event e);

#endif
