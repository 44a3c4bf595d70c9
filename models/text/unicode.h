/* Unicode as Hugging Face tokenizers sees it: normalization forms, classes of characters, lower case, and a stand-in text for regular
 * expressions whose library has older tables.
 * Tables: unicode_tables.inc and unicode_classes.inc, made by make_unicode.py and make_unicode_classes.py. Texts must be valid UTF-8.
 * Read-only once open, any thread. A text that needs nothing (nearly all) costs one bit test per non-ASCII character. */
#ifndef MOE_MODELS_TEXT_UNICODE_H
#define MOE_MODELS_TEXT_UNICODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/error.h"
#include "models/text/text_buffer.h"

typedef struct unicode_maps unicode_maps;

moe_err unicode_open(unicode_maps **out) MOE_MUST_CHECK;
void unicode_close(unicode_maps *m);

/* The text in normalization form C: *out is `text` itself when it already is, else inside *room (overwritten). */
moe_err unicode_nfc(const unicode_maps *m, const char *text, size_t bytes, text_buffer *room, const char **out,
                    size_t *n) MOE_MUST_CHECK;

/* Any of the four forms; as above. */
typedef enum unicode_form { UNICODE_NFC, UNICODE_NFD, UNICODE_NFKC, UNICODE_NFKD } unicode_form;
moe_err unicode_normalize(const unicode_maps *m, unicode_form form, const char *text, size_t bytes, text_buffer *room, const char **out,
                          size_t *n) MOE_MUST_CHECK;

/* The classes that parts of a tokenizer use, each with the tables of that part (they are of several ages). */
typedef enum unicode_class {
    UNICODE_CONTROL,     /* BertNormalizer: dropped                                       */
    UNICODE_NONSPACING,  /* BertNormalizer: accents                                       */
    UNICODE_MARK,        /* StripAccents                                                  */
    UNICODE_PUNCTUATION, /* Punctuation, BertPreTokenizer                                 */
    UNICODE_WORD,        /* \w of Whitespace and of single_word                           */
    UNICODE_NUMERIC,     /* Digits                                                        */
    UNICODE_EXTEND,      /* grapheme clusters: goes with the character before it, ...     */
    UNICODE_PREPEND,     /* ... with the one behind it,                                   */
    UNICODE_PICTOGRAPH,  /* ... with one like it and a joiner (U+200D) between them       */
    UNICODE_CLASSES
} unicode_class;
bool unicode_is(unicode_class class, uint32_t cp);
uint32_t unicode_lower(uint32_t cp); /* U+0130 has two characters ("i" and U+0307): the caller adds the second */
/* The full compatibility decomposition of cp where it is another than the canonical one: its text and length; NULL otherwise. */
const char *unicode_compatible(uint32_t cp, size_t *n);
/* Length of the first grapheme cluster of text[0, bytes), bytes > 0. (Without the conjuncts of Indic scripts.) */
size_t unicode_cluster(const char *text, size_t bytes);

/* The text with every code point that PCRE2's tables class wrongly replaced by one of the right class and the same length, so
 * that offsets of matches hold for the true text. *out is `text` itself when nothing is replaced, else inside *room
 * (overwritten). */
moe_err unicode_shadow(const unicode_maps *m, const char *text, size_t bytes, text_buffer *room, const char **out) MOE_MUST_CHECK;

#endif
