/* A regular expression or a literal text of a tokenizer.json, and the search for it.
 * Patterns are Oniguruma's in the file and PCRE2's here: what the two read differently is refused by name when a pattern is opened.
 * Read-only once open, any thread; each thread needs its own pattern_room. */
#ifndef MOE_MODELS_TEXT_PATTERN_H
#define MOE_MODELS_TEXT_PATTERN_H

#include <stdbool.h>
#include <stddef.h>

#include "engine/base/error.h"

typedef struct pattern pattern;
typedef struct pattern_room pattern_room;

moe_err pattern_open(pattern **out, const char *text, size_t bytes, bool literal) MOE_MUST_CHECK;
void pattern_close(pattern *p);
moe_err pattern_room_open(pattern_room **out) MOE_MUST_CHECK;
void pattern_room_close(pattern_room *r);

/* The next match at or after `from` of text[0, bytes); *found false when there is none. `shadow` is what a regular expression with
 * classes of characters sees: the text itself or its stand-in (unicode.h); others see the text. Both are valid UTF-8. */
moe_err pattern_next(const pattern *p, pattern_room *room, const char *text, const char *shadow, size_t bytes, size_t from, bool *found,
                     size_t *first, size_t *last) MOE_MUST_CHECK;

#endif
