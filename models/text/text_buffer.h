/* A growing byte buffer. Owns its memory; a zeroed one is empty.
 * One thread at a time. Pointers into it die with the next append. */
#ifndef MOE_MODELS_TEXT_TEXT_BUFFER_H
#define MOE_MODELS_TEXT_TEXT_BUFFER_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/error.h"

typedef struct text_buffer {
    char *data;
    size_t n, capacity;
} text_buffer;

/* Room for `more` bytes behind the n that are there. */
static inline moe_err text_buffer_reserve(text_buffer *b, size_t more)
{
    if (more <= b->capacity - b->n)
        return MOE_OK;
    if (more > SIZE_MAX / 4 - b->n)
        return moe_fail(MOE_E_OS, "no memory for a text of %zu bytes", more);
    const size_t want = b->n + more, capacity = want + want / 2 + 64;
    char *data = realloc(b->data, capacity);
    if (!data)
        return moe_fail(MOE_E_OS, "no memory for a text of %zu bytes", capacity);
    b->data = data;
    b->capacity = capacity;
    return MOE_OK;
}

static inline moe_err text_buffer_append(text_buffer *b, const void *data, size_t n)
{
    if (n == 0)
        return MOE_OK;
    TRY(text_buffer_reserve(b, n));
    memcpy(b->data + b->n, data, n);
    b->n += n;
    return MOE_OK;
}

/* A zero byte behind the text, not counted. */
static inline moe_err text_buffer_append_zero(text_buffer *b)
{
    TRY(text_buffer_reserve(b, 1));
    b->data[b->n] = '\0';
    return MOE_OK;
}

static inline void text_buffer_free(text_buffer *b)
{
    free(b->data);
    *b = (text_buffer){0};
}

#endif
