/* SentencePiece's precompiled character map ("Precompiled" of a tokenizer.json): a double array (Darts) from texts to replacements.
 * Owns a copy of the map. Applied as Hugging Face does: a grapheme cluster of up to five bytes whose beginning is in the map is replaced
 * whole by what its shortest such beginning stands for; otherwise each character by itself.
 * The map is hostile until it is open; read-only then, any thread. */
#ifndef MOE_MODELS_TEXT_CHARSMAP_H
#define MOE_MODELS_TEXT_CHARSMAP_H

#include <stddef.h>

#include "engine/base/error.h"
#include "models/text/text_buffer.h"

typedef struct charsmap charsmap;

/* text[0, bytes): the map in base64. */
moe_err charsmap_open(charsmap **out, const char *text, size_t bytes) MOE_MUST_CHECK;
void charsmap_close(charsmap *m);
/* Appends the text with its replacements. */
moe_err charsmap_apply(const charsmap *m, const char *text, size_t bytes, text_buffer *out) MOE_MUST_CHECK;

#endif
