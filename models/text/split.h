/* Cutting text into words before the model sees it: the "pre_tokenizer" of a tokenizer.json as a list of levels, each one applied to every
 * piece of the level before it (look-around sees only the piece).
 * A level cuts at a pattern, at a class of characters, or changes the piece (Metaspace, a space in front, bytes as letters).
 * The list is read-only once built, any thread; each thread needs its own split_room. */
#ifndef MOE_MODELS_TEXT_SPLIT_H
#define MOE_MODELS_TEXT_SPLIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/error.h"
#include "models/text/unicode.h"

enum { SPLIT_LEVELS = 16 };

typedef struct split split;
typedef struct split_room split_room;

/* What becomes of the matches: "the-final--countdown" cut at "-" is */
typedef enum split_behavior {
    SPLIT_REMOVED,       /* the final countdown          */
    SPLIT_ISOLATED,      /* the - final - - countdown    */
    SPLIT_WITH_PREVIOUS, /* the- final- - countdown      */
    SPLIT_WITH_NEXT,     /* the -final - -countdown      */
    SPLIT_CONTIGUOUS,    /* the - final -- countdown     */
} split_behavior;

typedef enum split_lead { SPLIT_LEAD_NEVER, SPLIT_LEAD_FIRST, SPLIT_LEAD_ALWAYS } split_lead;

moe_err split_open(split **out) MOE_MUST_CHECK;
void split_close(split *s);
/* Each adds a level; MOE_E_DATA: too many, or the pattern is not supported. invert: matches are gaps, gaps are matches. */
moe_err split_add_pattern(split *s, const char *pattern, size_t bytes, bool literal, bool invert, split_behavior behavior) MOE_MUST_CHECK;
moe_err split_add_class(split *s, unicode_class class, split_behavior behavior) MOE_MUST_CHECK;
moe_err split_add_spaces(split *s) MOE_MUST_CHECK;           /* cut at white space, which is dropped   */
moe_err split_add_words(split *s) MOE_MUST_CHECK;            /* \w+|[^\w\s]+; the rest is dropped      */
/* Spaces become `mark`, which `lead` also puts in front of a piece without it (FIRST: of one that begins the text); cut: before each. */
moe_err split_add_metaspace(split *s, uint32_t mark, split_lead lead, bool cut) MOE_MUST_CHECK;
moe_err split_add_prefix_space(split *s) MOE_MUST_CHECK;     /* a space in front of a piece without one */
moe_err split_add_letters(split *s) MOE_MUST_CHECK;          /* each byte as a letter of GPT-2's alphabet */
int split_levels(const split *s);

moe_err split_room_open(split_room **out) MOE_MUST_CHECK;
void split_room_close(split_room *r);

/* Calls word(arg, text, bytes) for every piece of text[0, bytes), in order. `shadow` is what patterns match: the text itself or its
 * stand-in (unicode.h). Both are valid UTF-8. begins: the text begins what is encoded. Stops at the first error. */
typedef moe_err (*split_word_fn)(void *arg, const char *text, size_t bytes);
moe_err split_run(const split *s, split_room *room, const char *text, const char *shadow, size_t bytes, bool begins, split_word_fn word,
                  void *arg) MOE_MUST_CHECK;

#endif
