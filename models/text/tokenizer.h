/* Text <-> token ids, as Hugging Face's tokenizers: BPE (byte-level, or of characters with byte fallback), Unigram, WordPiece and WordLevel
 * with their normalizers, pre-tokenizers, decoders and post-processors from a tokenizer.json; byte-level BPE and SentencePiece's BPE from a
 * GGUF file; and plain bytes. The file is hostile until checked; what is not supported is an error at load that names the component. Thread-safe
 * once loaded. */
#ifndef MOE_MODELS_TEXT_TOKENIZER_H
#define MOE_MODELS_TEXT_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/error.h"
#include "models/text/text_buffer.h"

typedef struct tokenizer tokenizer;

/* path: "bytes", a tokenizer.json, a GGUF file, or a folder that holds a tokenizer.json (tokenizer_config.json beside it names the EOS) or a
 * tokenizer.gguf. */
moe_err tokenizer_open(tokenizer **out, const char *path) MOE_MUST_CHECK;
void tokenizer_close(tokenizer *t);
bool tokenizer_is_bytes(const tokenizer *t);
int tokenizer_vocab(const tokenizer *t);   /* number of ids, added tokens included                */
int32_t tokenizer_eos(const tokenizer *t); /* -1: none (bytes)                                    */
int32_t tokenizer_bos(const tokenizer *t); /* the token that stands before every text, -1: none (tokenizer_encode does not add it) */
bool tokenizer_is_special(const tokenizer *t, int32_t id); /* an added token with "special": true  */

/* Appends ids of text[0, bytes) to *ids (malloc'ed, grown; *n, *capacity updated). specials: text of added special tokens becomes
 * those tokens; otherwise it is plain text (user text can never become a special token). */
typedef struct token_ids {
    int32_t *id;
    size_t n, capacity;
} token_ids;
moe_err tokenizer_encode(const tokenizer *t, const char *text, size_t bytes, bool specials, token_ids *out) MOE_MUST_CHECK;
/* The same with what the post-processor puts before and after a text (<s>, [CLS] ... [SEP]). */
moe_err tokenizer_encode_whole(const tokenizer *t, const char *text, size_t bytes, bool specials, token_ids *out) MOE_MUST_CHECK;
/* The first special token in text[from, bytes): its span (with the white space that belongs to it) and id; false: there is none. */
bool tokenizer_next_special(const tokenizer *t, const char *text, size_t bytes, size_t from, size_t *first, size_t *last, int32_t *id);

/* The bytes of one id (not necessarily whole characters); valid while the tokenizer lives. */
moe_err tokenizer_piece(const tokenizer *t, int32_t id, const char **bytes, size_t *n) MOE_MUST_CHECK;

/* The same for the first token of a text, where some tokenizers leave a space out. */
moe_err tokenizer_first_piece(const tokenizer *t, int32_t id, const char **bytes, size_t *n) MOE_MUST_CHECK;
/* Appends the text of ids[0, count); ids without a piece have none. Pieces one by one give the same but for bytes that are no UTF-8. */
moe_err tokenizer_decode(const tokenizer *t, const int32_t *ids, size_t count, bool skip_special, text_buffer *out) MOE_MUST_CHECK;

/* Copies the tokenizer's files into a folder (prepare keeps them beside the data; bytes writes {"type": "bytes"} as
 * tokenizer.json; from a GGUF file: its tokenizer as tokenizer.gguf). */
moe_err tokenizer_save(const tokenizer *t, const char *dir) MOE_MUST_CHECK;

#endif
