/* The room of a template, in which everything lies until it is freed as one, its budgets of steps and bytes; buffers and strings, which know which of
 * their bytes come from the variables. One thread. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "models/text/template_private.h"
#include "models/text/utf8.h"

void template_fail(room *m, moe_err code, const char *fmt, ...)
{
    char text[1024];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    m->rc = moe_fail(code, "%s:%d: %s", m->name, m->line, text);
    longjmp(m->jump, 1);
}

void *room_get(room *m, size_t bytes)
{
    enum { BLOCK = 64 << 10 };
    if (bytes > m->limit || m->used > m->limit - bytes)
        template_fail(m, MOE_E_DATA, "the template needs more than %zu bytes of memory", m->limit);
    bytes = (bytes + 15) & ~(size_t)15;
    room_block *b = m->block;
    if (b == NULL || bytes > b->bytes - b->used) {
        const size_t room_bytes = bytes > BLOCK ? bytes : BLOCK;
        b = calloc(1, sizeof *b + room_bytes);
        if (b == NULL)
            template_fail(m, MOE_E_OS, "no memory for %zu bytes of a template", bytes);
        b->bytes = room_bytes;
        b->next = m->block;
        m->block = b;
    }
    void *p = (char *)(b + 1) + b->used;
    b->used += bytes;
    m->used += bytes;
    return p;
}

void *room_array(room *m, size_t n, size_t size)
{
    if (n > m->limit / size)
        template_fail(m, MOE_E_DATA, "the template needs more than %zu bytes of memory", m->limit);
    return room_get(m, n * size);
}

void room_step(room *m, int64_t n)
{
    if ((m->steps -= n) < 0)
        template_fail(m, MOE_E_DATA, "the template takes too many steps");
}

void room_free(room *m)
{
    for (room_block *b = m->block, *next; b != NULL; b = next) {
        next = b->next;
        free(b);
    }
    m->block = NULL;
}

/* --- strings ------------------------------------------------------------------------------------------------------------------ */

static void buffer_grow(buffer *b, size_t more)
{
    if (more <= b->capacity - b->n)
        return;
    const size_t capacity = (b->n + more) + (b->n + more) / 2 + 32;
    char *p = room_array(b->m, capacity, 1);
    uint8_t *mark = room_array(b->m, capacity, 1);
    if (b->n > 0) {
        memcpy(p, b->p, b->n);
        memcpy(mark, b->mark, b->n);
    }
    b->p = p;
    b->mark = mark;
    b->capacity = capacity;
}

void buffer_add(buffer *b, const char *p, size_t n, bool mark)
{
    if (n == 0)
        return;
    buffer_grow(b, n);
    memcpy(b->p + b->n, p, n);
    memset(b->mark + b->n, mark, n);
    b->n += n;
}

void buffer_text(buffer *b, const char *text) { buffer_add(b, text, strlen(text), false); }

void buffer_part(buffer *b, const str *s, size_t from, size_t to)
{
    if (to <= from)
        return;
    buffer_grow(b, to - from);
    memcpy(b->p + b->n, s->p + from, to - from);
    memcpy(b->mark + b->n, s->mark + from, to - from);
    b->n += to - from;
}

void buffer_str(buffer *b, const str *s) { buffer_part(b, s, 0, s->n); }

const str *buffer_take(buffer *b)
{
    str *s = room_get(b->m, sizeof *s);
    room_step(b->m, 1 + (int64_t)b->n / 64);
    *s = (str){.n = b->n, .p = b->p, .mark = b->mark};
    return s;
}

const str *str_new(room *m, const char *p, size_t n, bool mark)
{
    str *s = room_get(m, sizeof *s);
    s->n = n;
    s->p = room_get(m, n + 1);
    s->mark = room_get(m, n + 1);
    if (n > 0)
        memcpy(s->p, p, n);
    memset(s->mark, mark, n);
    return s;
}

const str *str_slice(room *m, const str *s, size_t from, size_t to)
{
    str *part = room_get(m, sizeof *part);
    if (to > from)
        *part = (str){.n = to - from, .p = s->p + from, .mark = s->mark + from};
    return part;
}

bool str_is(const str *s, const char *text) { return s->n == strlen(text) && memcmp(s->p, text, s->n) == 0; }

bool str_equal(const str *a, const str *b) { return a->n == b->n && (a->n == 0 || memcmp(a->p, b->p, a->n) == 0); }

size_t str_chars(const str *s)
{
    size_t n = 0;
    for (size_t i = 0; i < s->n; i++)
        n += !utf8_is_continuation(s->p[i]);
    return n;
}

size_t str_offset(const str *s, size_t chars)
{
    size_t i = 0;
    for (; i < s->n; i++)
        if (!utf8_is_continuation(s->p[i]) && chars-- == 0)
            break;
    return i;
}

bool text_is_space(uint32_t cp) { return utf8_is_space(cp) || (cp >= 0x1C && cp <= 0x1F); }

static bool strips(const str *chars, const char *p, size_t n, uint32_t cp)
{
    if (chars == NULL)
        return text_is_space(cp);
    for (size_t i = 0; i + n <= chars->n; i++)
        if (memcmp(chars->p + i, p, n) == 0)
            return true;
    return false;
}

const str *str_strip(room *m, const str *s, const str *chars, bool left, bool right)
{
    size_t from = 0, to = s->n;
    uint32_t cp;
    while (left && from < to) {
        const size_t n = utf8_decode(s->p + from, to - from, &cp);
        if (n == 0 || !strips(chars, s->p + from, n, cp))
            break;
        from += n;
    }
    while (right && to > from) {
        size_t at = to - 1;
        while (at > from && utf8_is_continuation(s->p[at]))
            at--;
        if (utf8_decode(s->p + at, to - at, &cp) == 0 || !strips(chars, s->p + at, to - at, cp))
            break;
        to = at;
    }
    room_step(m, 1 + (int64_t)(s->n - (to - from)) / 16);
    return str_slice(m, s, from, to);
}
