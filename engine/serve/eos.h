/* Which tokens end a text: what the model's files say, in the order transformers asks them. Owns nothing; knows no streams.
 * Files are hostile until checked. Thread-safe. */
#ifndef MOE_ENGINE_SERVE_EOS_H
#define MOE_ENGINE_SERVE_EOS_H

#include "models/text/tokenizer.h"

enum { EOS_MAX = 64 };

typedef struct eos_set {
    int32_t token[EOS_MAX];
    int n;
} eos_set;

/* folder: NULL, or one that may hold generation_config.json and config.json; config: NULL, or the text of a config.json (a packed folder has it in its
 * manifest). The first that has "eos_token_id" (a number, a list, not null) decides, else the tokenizer's own (NULL: none) does. MOE_E_DATA names the file: not JSON, a token past the vocabulary V, more than
 * EOS_MAX. */
moe_err eos_find(eos_set *out, const char *folder, const char *config, const tokenizer *t, int V) MOE_MUST_CHECK;

#endif
