/* The "normalizer" of a tokenizer.json: a list of steps, each of which makes a text of a text.
 * Owns patterns, texts and maps of the steps; borrows the Unicode tables. Read-only once built, any thread; each thread needs its own room.
 * Texts are valid UTF-8 and stay so. */
#ifndef MOE_MODELS_TEXT_NORMAL_H
#define MOE_MODELS_TEXT_NORMAL_H

#include <stdbool.h>
#include <stddef.h>

#include "engine/base/error.h"
#include "models/text/charsmap.h"
#include "models/text/text_buffer.h"
#include "models/text/unicode.h"

enum { NORMAL_STEPS = 32 };

typedef struct normal normal;
typedef struct normal_room normal_room;

typedef struct normal_bert {
    bool clean, chinese, accents, lower;
} normal_bert;

moe_err normal_open(normal **out, const unicode_maps *unicode) MOE_MUST_CHECK;
void normal_close(normal *s);
int normal_steps(const normal *s);
/* Each adds a step; MOE_E_DATA: too many, or not supported. */
moe_err normal_add_form(normal *s, unicode_form form) MOE_MUST_CHECK;
moe_err normal_add_lower(normal *s) MOE_MUST_CHECK;
moe_err normal_add_strip(normal *s, bool left, bool right) MOE_MUST_CHECK; /* white space */
moe_err normal_add_strip_marks(normal *s) MOE_MUST_CHECK;
moe_err normal_add_nmt(normal *s) MOE_MUST_CHECK; /* control characters go, odd spaces become spaces */
moe_err normal_add_bert(normal *s, normal_bert bert) MOE_MUST_CHECK;
moe_err normal_add_prepend(normal *s, const char *text, size_t bytes) MOE_MUST_CHECK;
moe_err normal_add_replace(normal *s, const char *pattern, size_t bytes, bool literal, const char *by, size_t by_bytes) MOE_MUST_CHECK;
moe_err normal_add_charsmap(normal *s, charsmap *map) MOE_MUST_CHECK; /* takes the map, also on failure */

moe_err normal_room_open(normal_room **out) MOE_MUST_CHECK;
void normal_room_close(normal_room *r);

/* All steps: *out is `text` itself or lies in the room until its next use. *begins (may be NULL) becomes false when what the text began with
 * was taken away. */
moe_err normal_run(const normal *s, normal_room *room, const char *text, size_t bytes, const char **out, size_t *n, bool *begins) MOE_MUST_CHECK;

#endif
