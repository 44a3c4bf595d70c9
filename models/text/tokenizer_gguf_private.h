/* What the readers of each tokenizer.ggml.model share. Private to models/text/tokenizer_gguf*.c.
 * Owns nothing. One thread. Errors name the file. */
#ifndef MOE_MODELS_TEXT_TOKENIZER_GGUF_PRIVATE_H
#define MOE_MODELS_TEXT_TOKENIZER_GGUF_PRIVATE_H

#include "models/text/tokenizer_gguf.h"

/* tokenizer.ggml.token_type */
enum { TOKEN_NORMAL = 1, TOKEN_UNKNOWN, TOKEN_CONTROL, TOKEN_USER, TOKEN_UNUSED, TOKEN_BYTE };

enum { MAX_PATTERNS = 6 };

/* tokenizer.ggml.pre of byte-level BPE: how a text is cut into words, and what else goes with the name. */
typedef struct pre_kind {
    const char *names, *pattern[MAX_PATTERNS]; /* names: with spaces between; each pattern cuts the pieces of the one before */
    bool nfc, whole_words, begins;             /* begins: a text begins with BOS unless the file says otherwise */
} pre_kind;

/* MOE_E_DATA names the unknown name and those that are known. */
moe_err tokenizer_gguf_pre(const gguf *g, const pre_kind **out) MOE_MUST_CHECK;

/* tokenizer.ggml.model "llama": the vocabulary of SentencePiece's BPE, its merges, the marks for spaces and the way back. The parts are open. */
moe_err tokenizer_gguf_spm(tokenizer_parts *p, const gguf *g) MOE_MUST_CHECK;

/* Calls add for every token, in the order of ids, with its type; b: scratch for it. types: the highest that may occur. */
typedef moe_err (*gguf_token_fn)(tokenizer_parts *p, int32_t id, int64_t type, const char *s, size_t n, text_buffer *b);
moe_err tokenizer_gguf_tokens(tokenizer_parts *p, const gguf *g, int highest_type, gguf_token_fn add, text_buffer *b) MOE_MUST_CHECK;
/* The error just made, with the file in front. */
moe_err tokenizer_gguf_locate(const gguf *g, moe_err rc) MOE_MUST_CHECK;

#endif
