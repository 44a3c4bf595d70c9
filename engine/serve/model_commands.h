/* What subcommands of moe-model do once their arguments are parsed. Data goes to `out`, progress to stderr. */
#ifndef MOE_ENGINE_SERVE_MODEL_COMMANDS_H
#define MOE_ENGINE_SERVE_MODEL_COMMANDS_H

#include <stdbool.h>
#include <stdio.h>

#include "models/formats/packed.h"
#include "models/upcycle.h"

/* host_bytes 0: what the system allows. */
moe_err command_inspect(const char *path, uint64_t host_bytes, bool json, FILE *out) MOE_MUST_CHECK;
/* path: a model, or anything tokenizer_open takes. text "-": stdin. Ids between commas, or ids and pieces as JSON. specials: text of special tokens becomes
 * those tokens. */
moe_err command_tokenize(const char *path, const char *text, bool specials, bool json, FILE *out) MOE_MUST_CHECK;
/* ids: "1,2,3" (commas or blanks between), "-": stdin. */
moe_err command_detokenize(const char *path, const char *ids, bool json, FILE *out) MOE_MUST_CHECK;
/* A packed folder of the model, converted where the options say so. */
/* The model's own chat template over a file of messages ("-": stdin): a list, or an object of variables. */
moe_err command_template(const char *path, const char *messages, bool json, FILE *out) MOE_MUST_CHECK;
moe_err command_pack(const char *path, const char *dir, const packed_options *o, FILE *out) MOE_MUST_CHECK;
/* experts, top_k, noise, seed and dtype of o; the rest is filled in. */
moe_err command_upcycle(const char *path, const char *dir, const upcycle_options *o, FILE *out) MOE_MUST_CHECK;

#endif
