/* Cutting text into words before the merges: the "pre_tokenizer" of a tokenizer.json as a list of levels, each one a regular
 * expression applied to every piece of the level before it (look-around sees only the piece).
 * Patterns are Oniguruma's in the file and PCRE2's here: what the two read differently is refused by name when a level is added.
 * The list is read-only once built, any thread; each thread needs its own split_room. */
#ifndef MOE_MODELS_TEXT_SPLIT_H
#define MOE_MODELS_TEXT_SPLIT_H

#include <stdbool.h>
#include <stddef.h>

#include "engine/base/error.h"

enum { SPLIT_LEVELS = 16 };

typedef struct split split;
typedef struct split_room split_room;

moe_err split_open(split **out) MOE_MUST_CHECK;
void split_close(split *s);
/* keep_matches, keep_gaps: which pieces go on (both: "Isolated"; one: "Removed" without and with "invert"). */
moe_err split_add(split *s, const char *pattern, size_t bytes, bool keep_matches, bool keep_gaps) MOE_MUST_CHECK;

moe_err split_room_open(split_room **out) MOE_MUST_CHECK;
void split_room_close(split_room *r);

/* Calls word(arg, text, bytes) for every piece of text[0, bytes), in order. `shadow` is what is matched: the text itself or its
 * stand-in (unicode.h). Both are valid UTF-8. Stops at the first error. */
typedef moe_err (*split_word_fn)(void *arg, const char *text, size_t bytes);
moe_err split_run(const split *s, split_room *room, const char *text, const char *shadow, size_t bytes, split_word_fn word,
                  void *arg) MOE_MUST_CHECK;

#endif
