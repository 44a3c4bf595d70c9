/* Normalizer, pre-tokenizer, decoder and post-processor of a tokenizer.json, and the small helpers that its reading shares. Private to
 * models/text. Owns nothing: fills tokenizer_parts. `at` is a reader that stands before the component's value. MOE_E_DATA names
 * the component that is not supported. */
#ifndef MOE_MODELS_TEXT_TOKENIZER_STEPS_H
#define MOE_MODELS_TEXT_TOKENIZER_STEPS_H

#include "models/formats/json_reader.h"
#include "models/text/component.h"
#include "models/text/text_buffer.h"
#include "models/text/tokenizer_file.h"

moe_err tokenizer_steps_normalizer(json_reader at, tokenizer_parts *p) MOE_MUST_CHECK;
/* *byte_level: the last step turns bytes into letters; it is left out, the caller does it. */
moe_err tokenizer_steps_words(json_reader at, tokenizer_parts *p, bool *byte_level) MOE_MUST_CHECK;
moe_err tokenizer_steps_decoder(json_reader at, tokenizer_parts *p) MOE_MUST_CHECK;
moe_err tokenizer_steps_frame(json_reader at, tokenizer_parts *p) MOE_MUST_CHECK; /* the post-processor; needs the vocabulary */

/* The settings of Metaspace, which the pre-tokenizer and the decoder share. */
moe_err tokenizer_steps_metaspace(const component *c, uint32_t *mark, split_lead *lead, bool *cut) MOE_MUST_CHECK;

/* The string just read, decoded into b (overwritten). */
moe_err tokenizer_decode_text(const json_reader *r, text_buffer *b) MOE_MUST_CHECK;
/* The next key of the open object; *more false at its end. */
moe_err tokenizer_next_key(json_reader *r, bool *more) MOE_MUST_CHECK;
/* The error just made, with the file and the byte in front; MOE_E_DATA. */
moe_err tokenizer_locate(const json_reader *r) MOE_MUST_CHECK;
/* When the key just read is `key` and *hit is not set: reads true or false and sets *hit. */
moe_err tokenizer_flag(json_reader *r, const char *key, bool *flag, bool *hit) MOE_MUST_CHECK;

#endif
