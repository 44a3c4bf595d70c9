/* tokenizer.json and tokenizer_config.json -> the parts of a tokenizer. Private to models/text.
 * The texts are hostile until checked; errors name the file, the byte and the component that is not supported.
 * Fills a zeroed tokenizer_parts; on error the caller frees what is there. */
#ifndef MOE_MODELS_TEXT_TOKENIZER_FILE_H
#define MOE_MODELS_TEXT_TOKENIZER_FILE_H

#include <stdbool.h>
#include <stdint.h>

#include "models/text/added.h"
#include "models/text/bpe.h"
#include "models/text/decode.h"
#include "models/text/normal.h"
#include "models/text/split.h"
#include "models/text/unicode.h"
#include "models/text/unigram.h"
#include "models/text/wordpiece.h"

typedef enum tokenizer_model { MODEL_BPE, MODEL_UNIGRAM, MODEL_WORDPIECE } tokenizer_model;

/* What each id adds to a text: text[end[id - 1], end[id]). */
typedef struct piece_texts {
    char *text;
    size_t *end; /* [n] */
    int32_t n;
} piece_texts;

typedef struct tokenizer_parts {
    bool bytes; /* {"type": "bytes"}: nothing else is set */
    tokenizer_model kind;
    bpe *model; /* the vocabulary, and the merges of BPE */
    unigram *unigram;
    wordpiece wordpiece;
    split *words;
    added_set *added, *added_normalized; /* looked for before and after normalization */
    unicode_maps *unicode;
    normal *normal;
    text_decoder *decoder;          /* NULL: byte-level BPE, pieces are the bytes of the text */
    piece_texts middle, first; /* with a decoder: of ids within a text, and of those that begin one */
    text_buffer special;       /* [id] 1: an added token with "special"; shorter: 0 */
    token_ids before, after;   /* what the post-processor puts around a text */
} tokenizer_parts;

/* `name` for messages; text[0, bytes) is the file. */
moe_err tokenizer_file_parse(tokenizer_parts *p, const char *name, const char *text, size_t bytes) MOE_MUST_CHECK;
void tokenizer_parts_free(tokenizer_parts *p);

/* Makes `middle` and `first`. */
moe_err tokenizer_pieces_make(tokenizer_parts *p) MOE_MUST_CHECK;

/* A piece in GPT-2's alphabet -> bytes, in place; false when a character is not in the alphabet (left as it is). The text is valid UTF-8. */
bool tokenizer_letters_to_bytes(char *s, size_t *n);

/* eos_token of a tokenizer_config.json: malloc'ed, *eos NULL when it is absent or null. */
moe_err tokenizer_config_eos(const char *name, const char *text, size_t bytes, char **eos) MOE_MUST_CHECK;

#endif
