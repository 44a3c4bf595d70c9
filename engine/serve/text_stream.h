/* Text from tokens, one at a time: never half a character, never the beginning of what may become a stop string. Owns the bytes that wait;
 * borrows the tokenizer and knows no model. What was emitted, in one piece, is what Hugging Face decodes from the same ids, cut before the
 * first stop string (but for bytes that are no UTF-8 and come from tokens like <0xE6>, and for decoders that look at a whole text's end).
 * Threads: a stream belongs to one thread at a time. Rule: a piece of text is valid until the next call on its stream.
 *
 * Bytes that are no UTF-8 become U+FFFD, one for each maximal part of a character (Unicode 3.9, as Rust's from_utf8_lossy); a character
 * that is not finished waits for the next token, and at the end it is U+FFFD. Of several stop strings the one that ends first counts
 * (of those that end together, the longest), so the text does not depend on where tokens begin. */
#ifndef MOE_ENGINE_SERVE_TEXT_STREAM_H
#define MOE_ENGINE_SERVE_TEXT_STREAM_H

#include "models/text/tokenizer.h"

enum {
    TEXT_MAX_STOPS = 64,
    TEXT_MAX_STOP_BYTES = 1024,
};

typedef enum text_finish { TEXT_RUNNING, TEXT_EOS, TEXT_STOP } text_finish;

typedef struct text_stream_options {
    const tokenizer *tokenizer;
    const char *const *stop; /* [nstop] UTF-8                                  */
    int nstop;
    const int32_t *eos;      /* [neos] tokens that end the text and are not in it */
    int neos;
    bool skip_special;       /* special tokens have no text                    */
    bool begins;             /* nothing stands before the first token: tokenizers that put a space in front of a text leave it out again */
} text_stream_options;

typedef struct text_stream text_stream;

/* Copies nothing: what the options point to must live as long as the stream. MOE_E_USAGE: an empty or overlong stop string, or too many. */
moe_err text_stream_open(text_stream **out, const text_stream_options *o) MOE_MUST_CHECK;
void text_stream_close(text_stream *s); /* NULL: no-op */

/* The text that is certain now, maybe none. A token without a piece (a padded vocabulary) has no text. When the stream has finished, every
 * further token has none. */
moe_err text_stream_push(text_stream *s, int32_t token, const char **text, size_t *n) MOE_MUST_CHECK;
/* No more tokens: what still waited. */
moe_err text_stream_end(text_stream *s, const char **text, size_t *n) MOE_MUST_CHECK;

text_finish text_stream_finish(const text_stream *s);
/* The stop string that ended the text, NULL: none did. */
const char *text_stream_stop(const text_stream *s);

#endif
