/* The "model" of a tokenizer.json: its settings, then the vocabulary and the merges. Private to models/text.
 * Fills tokenizer_parts; errors name file and byte. One thread. */
#ifndef MOE_MODELS_TEXT_TOKENIZER_MODEL_H
#define MOE_MODELS_TEXT_TOKENIZER_MODEL_H

#include "models/formats/json_reader.h"
#include "models/text/text_buffer.h"
#include "models/text/tokenizer_file.h"

/* What the model says beside its vocabulary and merges. */
typedef struct model_settings {
    text_buffer prefix, suffix, unk;
    bool has_unk, fuse_unk, byte_fallback, whole_words, word_level;
    int64_t unk_id, max_chars;
    json_reader vocab, merges; /* at the value; text NULL: absent */
} model_settings;

/* at: before the value. Sets p->kind. The settings are freed also on failure. */
moe_err tokenizer_model_settings(json_reader at, tokenizer_parts *p, model_settings *m) MOE_MUST_CHECK;
void tokenizer_model_settings_free(model_settings *m);
/* letters: a byte-level BPE, whose pieces become bytes. b: scratch. */
moe_err tokenizer_model_read(tokenizer_parts *p, const model_settings *m, bool letters, text_buffer *b) MOE_MUST_CHECK;

/* A vocabulary without large holes has fewer ids than its file has bytes: a short hostile file cannot ask for a large table. */
static inline int64_t tokenizer_highest_id(const json_reader *r) { return r->bytes < BPE_MAX_IDS ? (int64_t)r->bytes : BPE_MAX_IDS - 1; }

#endif
