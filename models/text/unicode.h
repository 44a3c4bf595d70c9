/* Unicode as Hugging Face tokenizers sees it: NFC, and a stand-in text for regular expressions whose library has older tables.
 * Tables: unicode_tables.inc, made by make_unicode.py. Texts must be valid UTF-8.
 * Read-only once open, any thread. A text that needs nothing (nearly all) costs one bit test per non-ASCII character. */
#ifndef MOE_MODELS_TEXT_UNICODE_H
#define MOE_MODELS_TEXT_UNICODE_H

#include <stddef.h>

#include "engine/base/error.h"
#include "models/text/text_buffer.h"

typedef struct unicode_maps unicode_maps;

moe_err unicode_open(unicode_maps **out) MOE_MUST_CHECK;
void unicode_close(unicode_maps *m);

/* The text in normalization form C: *out is `text` itself when it already is, else inside *room (overwritten). */
moe_err unicode_nfc(const unicode_maps *m, const char *text, size_t bytes, text_buffer *room, const char **out,
                    size_t *n) MOE_MUST_CHECK;

/* The text with every code point that PCRE2's tables class wrongly replaced by one of the right class and the same length, so
 * that offsets of matches hold for the true text. *out is `text` itself when nothing is replaced, else inside *room
 * (overwritten). */
moe_err unicode_shadow(const unicode_maps *m, const char *text, size_t bytes, text_buffer *room, const char **out) MOE_MUST_CHECK;

#endif
