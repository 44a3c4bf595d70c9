/* The "decoder" of a tokenizer.json: a list of steps from the texts of tokens to one text.
 * Owns patterns and texts of the steps. Read-only once built, any thread (each thread needs its own pattern_room).
 * A step sees the list of texts of the step before it; the rest is joined. */
#ifndef MOE_MODELS_TEXT_DECODE_H
#define MOE_MODELS_TEXT_DECODE_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/base/error.h"
#include "models/text/pattern.h"
#include "models/text/text_buffer.h"

enum { DECODER_STEPS = 16 };

typedef struct text_decoder text_decoder;

typedef enum text_decoder_kind {
    DECODE_BYTE_LEVEL,    /* letters of GPT-2's alphabet are bytes; all is joined */
    DECODE_BYTE_FALLBACK, /* "<0xNN>" are bytes                                   */
    DECODE_FUSE,          /* joined                                               */
    DECODE_STRIP,         /* `mark` at both ends, at most start and stop times    */
    DECODE_REPLACE,       /* `pattern` by `text`                                  */
    DECODE_METASPACE,     /* `mark` is a space; lead: none in the first text      */
    DECODE_WORDPIECE,     /* a space before texts without the prefix `text`       */
    DECODE_BPE,           /* the suffix `text` is a space                         */
} text_decoder_kind;

typedef struct text_decoder_step {
    text_decoder_kind kind;
    uint32_t mark;
    int64_t start, stop;
    bool lead, cleanup;
    pattern *pattern;
    char *text; /* malloc'ed */
    size_t bytes;
} text_decoder_step;

/* Texts one after the other: text k is bytes[end[k - 1], end[k]). */
typedef struct text_list {
    text_buffer bytes;
    size_t *end, n, capacity;
} text_list;
moe_err text_list_push(text_list *l, const char *text, size_t bytes) MOE_MUST_CHECK;
void text_list_free(text_list *l);

moe_err text_decoder_open(text_decoder **out) MOE_MUST_CHECK;
void text_decoder_close(text_decoder *d);
/* No steps, or the one step ByteLevel. */
bool text_decoder_is_byte_level(const text_decoder *d);
/* Takes pattern and text, also on failure. */
moe_err text_decoder_add(text_decoder *d, text_decoder_step step) MOE_MUST_CHECK;

/* Appends valid UTF-8 as it is and U+FFFD for each maximal part of a character that is not whole. */
moe_err decode_append_lossy(text_buffer *out, const char *s, size_t n) MOE_MUST_CHECK;
/* Appends the text of the tokens' texts to out; the list is used up. Without steps: joined by spaces. */
moe_err text_decoder_run(const text_decoder *d, text_list *tokens, text_buffer *out) MOE_MUST_CHECK;
/* Appends what one token adds to a text that ends with it so far; first: nothing stands before it. Bytes are bytes here, not characters. */
moe_err text_decoder_piece(const text_decoder *d, const char *text, size_t bytes, bool first, text_buffer *out) MOE_MUST_CHECK;

#endif
