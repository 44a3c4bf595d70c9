/* A component of a tokenizer.json: an object with a "type" and settings, or a Sequence of such. Private to models/text.
 * Owns nothing: a component is a bookmark in the text. Every look at a setting reads the object again, so no order of keys matters.
 * One thread. */
#ifndef MOE_MODELS_TEXT_COMPONENT_H
#define MOE_MODELS_TEXT_COMPONENT_H

#include "models/formats/json_reader.h"
#include "models/text/text_buffer.h"

typedef struct component {
    char type[40];
    json_reader inside; /* behind the opening brace */
} component;

typedef moe_err (*component_fn)(const component *c, void *arg);

/* Calls fn for the component at r, or for each one of a Sequence, whose list is under `list`. Null: nothing to do. */
moe_err component_each(json_reader r, const char *what, const char *list, component_fn fn, void *arg) MOE_MUST_CHECK;

/* The settings. Absent or null: the flag or number stays, *found (may be NULL) is false, a text is empty. */
moe_err component_flag(const component *c, const char *key, bool *flag, bool *found) MOE_MUST_CHECK;
moe_err component_int(const component *c, const char *key, int64_t low, int64_t high, int64_t *out) MOE_MUST_CHECK;
moe_err component_text(const component *c, const char *key, text_buffer *out, bool *found) MOE_MUST_CHECK;
/* A text that must be one character. */
moe_err component_char(const component *c, const char *key, uint32_t *cp, bool *found) MOE_MUST_CHECK;
/* {"Regex": text} or {"String": text}; must be there. */
moe_err component_pattern(const component *c, const char *key, text_buffer *out, bool *literal) MOE_MUST_CHECK;
/* A reader that stands before the value. */
moe_err component_at(const component *c, const char *key, json_reader *at, bool *found) MOE_MUST_CHECK;

#endif
