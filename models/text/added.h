/* Added tokens ("<|endoftext|>"): found in text before anything else is done with it, the leftmost first, the longest of those.
 * Owns copies of their texts. Two sets: `normalized` tokens are looked for in normalized text, the others in the text as it came.
 * Built once, then read-only, any thread. */
#ifndef MOE_MODELS_TEXT_ADDED_H
#define MOE_MODELS_TEXT_ADDED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/error.h"

typedef struct added_token {
    int32_t id;
    bool special, lstrip, rstrip; /* strip: white space on that side belongs to the token */
    bool single_word;             /* no word character stands beside it                   */
} added_token;

typedef struct added_set added_set;

moe_err added_open(added_set **out) MOE_MUST_CHECK;
void added_close(added_set *s);
/* MOE_E_DATA: empty text, or a text that is there. */
moe_err added_add(added_set *s, const char *text, size_t bytes, added_token token) MOE_MUST_CHECK;

/* The first match in text[from, bytes): its span (with stripped white space, never before `from`) and id; false when there is
 * none. Special tokens count only with `specials`, single words only
 * alone; the text of one that does not count is passed over whole. */
bool added_find(const added_set *s, const char *text, size_t bytes, size_t from, bool specials, size_t *first, size_t *last,
                int32_t *id);

#endif
