/* A model's own chat template and the special tokens that it names, from the files beside its tokenizer: chat_template.jinja, else
 * tokenizer_config.json; or from a GGUF file. Owns both. Read-only once open, any thread renders. */
#ifndef MOE_MODELS_TEXT_CHAT_H
#define MOE_MODELS_TEXT_CHAT_H

#include "models/text/template.h"
#include "models/text/tokenizer.h"

typedef struct chat chat;

/* path: as for tokenizer_open (model_tokenizer of models/model.h). MOE_E_NOINPUT: it has no chat template. */
moe_err chat_open(chat **out, const char *path) MOE_MUST_CHECK;
void chat_close(chat *c); /* NULL: no-op */

/* json: a list of messages, or an object of variables ({"messages": [...], "add_generation_prompt": true, "tools": [...]}); now: for
 * strftime_now. */
moe_err chat_render(const chat *c, const char *json, size_t n, const struct tm *now, template_output *out) MOE_MUST_CHECK;

/* Appends the ids of a rendered text: special tokens only where the template wrote them whole, everything between them as one plain text. */
moe_err chat_encode(const tokenizer *t, const template_output *text, token_ids *out) MOE_MUST_CHECK;

#endif
