/* The tokenizer inside a GGUF file -> the parts of a tokenizer. Private to models/text and models/formats.
 * Byte-level BPE (tokenizer.ggml.model "gpt2"): tokenizer.ggml.pre names the cutting into words and the normalization, which are those of the
 * model's tokenizer.json, so that the ids are. SentencePiece's BPE ("llama"): the merges follow from the scores. Control tokens are added special tokens, user-defined ones added tokens. */
#ifndef MOE_MODELS_TEXT_TOKENIZER_GGUF_H
#define MOE_MODELS_TEXT_TOKENIZER_GGUF_H

#include "engine/base/text.h"
#include "models/formats/gguf.h"
#include "models/text/tokenizer_file.h"

#define TOKENIZER_GGUF "tokenizer.gguf" /* in a folder: a file without tensors */

typedef struct tokenizer_ends {
    int32_t eos, bos; /* -1: none; bos only where a text begins with it (add_bos_token) */
} tokenizer_ends;

/* Fills a zeroed tokenizer_parts; on error the caller frees what is there. */
moe_err tokenizer_gguf_parse(tokenizer_parts *p, tokenizer_ends *ends, const gguf *g) MOE_MUST_CHECK;
/* The tokenizer's metadata as a file of its own. */
moe_err tokenizer_gguf_text(const char *path, text_buf *out) MOE_MUST_CHECK;

#endif
