/* Small helpers for text: a growing buffer, numbers that do not depend on the locale of the user, the nearest spelling.
 * Owns nothing but the buffer's bytes. Thread-safe. Rule: no program calls setlocale, so strtod and printf speak "C". */
#ifndef MOE_ENGINE_BASE_TEXT_H
#define MOE_ENGINE_BASE_TEXT_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/error.h"

/* A growing string. `{0}` is empty. A failed allocation sticks in `failed`, so that a whole page can be written before one check. */
typedef struct text_buf {
    char *data; /* NUL-terminated once anything was written */
    size_t used, capacity;
    bool failed;
} text_buf;

void text_add(text_buf *t, const char *s);
void text_add_bytes(text_buf *t, const void *bytes, size_t n);
void text_printf(text_buf *t, const char *fmt, ...) MOE_PRINTF(2, 3);
void text_vprintf(text_buf *t, const char *fmt, va_list ap) MOE_PRINTF(2, 0);
/* Pads with spaces until the last line is `column` bytes long. */
void text_pad(text_buf *t, size_t column);
void text_free(text_buf *t);
/* Gives the string away (never NULL on MOE_OK); MOE_E_OS when an allocation had failed. */
moe_err text_take(text_buf *t, char **out) MOE_MUST_CHECK;

enum { TEXT_NUMBER = 32 }; /* bytes of one printed number */

/* The shortest decimal that reads back as the same double; "nan", "inf", "-inf" for those. Returns out. */
const char *text_double(char out[TEXT_NUMBER], double x);
/* 1234567 -> "1,234,567". Returns out. */
const char *text_count(char out[TEXT_NUMBER], int64_t n);
/* Bytes for people: "512 B", "1.5 MiB", "12.4 GiB". Returns out. */
const char *text_bytes(char out[TEXT_NUMBER], double bytes);
/* Seconds for people: "850 ms", "12.3 s", "4:05", "1:02:03", "3d 04:00". Returns out. */
const char *text_seconds(char out[TEXT_NUMBER], double seconds);

/* Whole strings of the YAML 1.2 core schema: 12, -3, 0x1f, 0o17 / 1, 1.5, .5, 1e-8. No blanks, no underscores, nothing behind.
 * False: not such a number (parse_int also: outside int64; parse_uint: outside uint64; parse_double: overflow). */
bool text_parse_int(const char *s, int64_t *out);
bool text_parse_uint(const char *s, uint64_t *out);
bool text_parse_double(const char *s, double *out);

/* Edit distance with swaps of neighbours; case and '-' against '_' cost nothing. */
int text_distance(const char *a, const char *b);
/* The candidate nearest to `word`, or NULL when none is near enough to be what was meant. `next` gives the i-th candidate, NULL past
 * the end. */
typedef const char *(*text_candidate_fn)(const void *ctx, int i);
const char *text_nearest(const char *word, text_candidate_fn next, const void *ctx);

#endif
