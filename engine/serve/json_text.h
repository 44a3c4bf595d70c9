/* Strings as JSON, for --json output. Bytes that are no UTF-8 become U+FFFD. Pure. */
#ifndef MOE_ENGINE_SERVE_JSON_TEXT_H
#define MOE_ENGINE_SERVE_JSON_TEXT_H

#include "engine/base/text.h"

/* Appends s[0, n) with its quotes. */
void json_text_add(text_buf *t, const char *s, size_t n);

#endif
