/* Values of a template: strings that know which of their bytes come from the variables, lists, dictionaries; how Python compares and
 * prints them. Everything lies in the room. One thread. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/text.h"
#include "models/text/template_private.h"
#include "models/text/utf8.h"

enum { MOST_NESTED = 200 };

/* --- memory ------------------------------------------------------------------------------------------------------------------- */

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

/* --- making ------------------------------------------------------------------------------------------------------------------- */

value value_none(void) { return (value){.type = V_NONE}; }
value value_bool(bool b) { return (value){.type = V_BOOL, .i = b}; }
value value_int(int64_t i) { return (value){.type = V_INT, .i = i}; }
value value_float(double f) { return (value){.type = V_FLOAT, .f = f}; }
value value_string(const str *s) { return (value){.type = V_STRING, .s = s}; }
value value_text(room *m, const char *text) { return value_string(str_new(m, text, strlen(text), false)); }
value value_undefined(room *m, const char *what) { return (value){.type = V_UNDEFINED, .s = what ? str_new(m, what, strlen(what), false) : NULL}; }
value value_list(list *l) { return (value){.type = V_LIST, .list = l}; }
value value_dict(dict *d) { return (value){.type = V_DICT, .dict = d}; }

list *list_new(room *m) { return room_get(m, sizeof(list)); }

void list_add(room *m, list *l, value v)
{
    if (l->n == l->capacity) {
        const size_t capacity = l->capacity ? 2 * l->capacity : 8;
        value *grown = room_array(m, capacity, sizeof *grown);
        if (l->n > 0)
            memcpy(grown, l->v, l->n * sizeof *grown);
        l->v = grown;
        l->capacity = capacity;
    }
    l->v[l->n++] = v;
    room_step(m, 1);
}

dict *dict_new(room *m) { return room_get(m, sizeof(dict)); }

static bool dict_index(room *m, const dict *d, const value *key, size_t *at)
{
    room_step(m, 1 + (int64_t)d->n / 8);
    for (*at = 0; *at < d->n; ++*at)
        if (value_equal(m, &d->key[*at], key, 0))
            return true;
    return false;
}

void dict_set(room *m, dict *d, value key, value v)
{
    size_t at;
    if (key.type >= V_LIST && key.type != V_TUPLE)
        template_fail(m, MOE_E_DATA, "%s cannot be a key of a dictionary", value_name(&key));
    if (dict_index(m, d, &key, &at)) {
        d->v[at] = v;
        return;
    }
    if (d->n == d->capacity) {
        const size_t capacity = d->capacity ? 2 * d->capacity : 8;
        value *keys = room_array(m, capacity, sizeof *keys), *values = room_array(m, capacity, sizeof *values);
        if (d->n > 0) {
            memcpy(keys, d->key, d->n * sizeof *keys);
            memcpy(values, d->v, d->n * sizeof *values);
        }
        d->key = keys;
        d->v = values;
        d->capacity = capacity;
    }
    d->key[d->n] = key;
    d->v[d->n++] = v;
}

bool dict_get(room *m, const dict *d, const value *key, value *out)
{
    size_t at;
    if (!dict_index(m, d, key, &at))
        return false;
    *out = d->v[at];
    return true;
}

bool dict_find(room *m, const dict *d, const char *key, value *out)
{
    const str s = {.n = strlen(key), .p = (char *)key};
    const value k = value_string(&s);
    return dict_get(m, d, &k, out);
}

/* --- looking ------------------------------------------------------------------------------------------------------------------ */

const char *value_name(const value *v)
{
    static const char *const names[] = {"an undefined value", "none", "a boolean", "an integer", "a float", "a string", "a list", "a tuple",
                                        "a dictionary", "a namespace", "a macro", "a function", "a loop", "a method"};
    return names[v->type];
}

bool value_true(const value *v)
{
    switch (v->type) {
    case V_UNDEFINED:
    case V_NONE: return false;
    case V_BOOL:
    case V_INT: return v->i != 0;
    case V_FLOAT: return v->f != 0;
    case V_STRING: return v->s->n > 0;
    case V_LIST:
    case V_TUPLE: return v->list->n > 0;
    case V_DICT: return v->dict->n > 0;
    default: return true;
    }
}

bool value_number(const value *v, double *out)
{
    *out = v->type == V_FLOAT ? v->f : v->type == V_INT || v->type == V_BOOL ? (double)v->i : 0;
    return v->type == V_FLOAT || v->type == V_INT || v->type == V_BOOL;
}

int64_t value_whole(room *m, const value *v, const char *what)
{
    if (v->type != V_INT && v->type != V_BOOL)
        template_fail(m, MOE_E_DATA, "%s: expected an integer, found %s", what, value_name(v));
    return v->i;
}

static bool lists_equal(room *m, const list *a, const list *b, int depth)
{
    if (a->n != b->n)
        return false;
    for (size_t i = 0; i < a->n; i++)
        if (!value_equal(m, &a->v[i], &b->v[i], depth))
            return false;
    return true;
}

static bool dicts_equal(room *m, const dict *a, const dict *b, int depth)
{
    if (a->n != b->n)
        return false;
    for (size_t i = 0; i < a->n; i++) {
        value other;
        if (!dict_get(m, b, &a->key[i], &other) || !value_equal(m, &a->v[i], &other, depth))
            return false;
    }
    return true;
}

bool value_equal(room *m, const value *a, const value *b, int depth)
{
    double x, y;
    if (depth > MOST_NESTED)
        template_fail(m, MOE_E_DATA, "values nest deeper than %d", MOST_NESTED);
    if (value_number(a, &x) && value_number(b, &y))
        return a->type != V_FLOAT && b->type != V_FLOAT ? a->i == b->i : x == y;
    if (a->type != b->type)
        return false;
    switch (a->type) {
    case V_UNDEFINED:
    case V_NONE: return true;
    case V_STRING: return str_equal(a->s, b->s);
    case V_LIST:
    case V_TUPLE: room_step(m, 1); return lists_equal(m, a->list, b->list, depth + 1);
    case V_DICT: room_step(m, 1); return dicts_equal(m, a->dict, b->dict, depth + 1);
    case V_FUNCTION: return a->i == b->i;
    default: return a->dict == b->dict; /* the same object */
    }
}

static int compare_str(const str *a, const str *b)
{
    const size_t n = a->n < b->n ? a->n : b->n;
    const int c = n > 0 ? memcmp(a->p, b->p, n) : 0;
    return c != 0 ? c : (a->n > b->n) - (a->n < b->n);
}

static int compare_lists(room *m, const list *a, const list *b)
{
    for (size_t i = 0; i < a->n && i < b->n; i++) {
        room_step(m, 1);
        if (!value_equal(m, &a->v[i], &b->v[i], 0))
            return value_order(m, &a->v[i], &b->v[i]);
    }
    return (a->n > b->n) - (a->n < b->n);
}

int value_order(room *m, const value *a, const value *b)
{
    double x, y;
    if (a->type != V_FLOAT && b->type != V_FLOAT && value_number(a, &x) && value_number(b, &y))
        return (a->i > b->i) - (a->i < b->i);
    if (value_number(a, &x) && value_number(b, &y))
        return (x > y) - (x < y);
    if (a->type == V_STRING && b->type == V_STRING)
        return compare_str(a->s, b->s);
    if (a->type == b->type && (a->type == V_LIST || a->type == V_TUPLE))
        return compare_lists(m, a->list, b->list);
    template_fail(m, MOE_E_DATA, "%s and %s have no order", value_name(a), value_name(b));
}

bool value_contains(room *m, const value *in, const value *v)
{
    value found;
    if (in->type == V_STRING) {
        if (v->type != V_STRING)
            template_fail(m, MOE_E_DATA, "\"in\" a string: expected a string, found %s", value_name(v));
        room_step(m, 1 + (int64_t)in->s->n / 64);
        return v->s->n == 0 || (in->s->n > 0 && memmem(in->s->p, in->s->n, v->s->p, v->s->n) != NULL);
    }
    if (in->type == V_DICT)
        return dict_get(m, in->dict, v, &found);
    if (in->type == V_UNDEFINED)
        return false;
    if (in->type != V_LIST && in->type != V_TUPLE)
        template_fail(m, MOE_E_DATA, "\"in\": expected a string, list or dictionary, found %s", value_name(in));
    for (size_t i = 0; i < in->list->n; i++) {
        room_step(m, 1);
        if (value_equal(m, &in->list->v[i], v, 0))
            return true;
    }
    return false;
}

list *value_items(room *m, const value *v)
{
    list *l = list_new(m);
    if (v->type == V_LIST || v->type == V_TUPLE)
        return v->list;
    if (v->type == V_UNDEFINED)
        return l;
    if (v->type == V_STRING) {
        for (size_t i = 0; i < v->s->n;) {
            uint32_t cp;
            const size_t n = utf8_decode(v->s->p + i, v->s->n - i, &cp);
            list_add(m, l, value_string(str_slice(m, v->s, i, i + n)));
            i += n;
        }
        return l;
    }
    if (v->type != V_DICT)
        template_fail(m, MOE_E_DATA, "%s cannot be gone through", value_name(v));
    for (size_t i = 0; i < v->dict->n; i++)
        list_add(m, l, v->dict->key[i]);
    return l;
}

/* --- printing ----------------------------------------------------------------------------------------------------------------- */

/* Python's repr of a float: the shortest digits, positional from 1e-4 to under 1e16. */
static void float_repr(buffer *b, double f)
{
    char shortest[TEXT_NUMBER], digits[TEXT_NUMBER], out[64];
    if (!isfinite(f)) {
        buffer_text(b, isnan(f) ? "nan" : f > 0 ? "inf" : "-inf");
        return;
    }
    text_double(shortest, f);
    int n = 0, exponent = 0, point = -1, seen = 0;
    for (const char *p = shortest; *p; p++) {
        if (*p == 'e' || *p == 'E') {
            exponent = atoi(p + 1);
            break;
        }
        if (*p == '.')
            point = seen;
        if (*p >= '0' && *p <= '9') {
            seen++;
            digits[n++] = *p;
        }
    }
    if (point < 0)
        point = seen;
    int lead = 0;
    while (lead + 1 < n && digits[lead] == '0')
        lead++;
    while (n > lead + 1 && digits[n - 1] == '0')
        n--;
    const bool zero = digits[lead] == '0';
    const int e = zero ? 0 : point - lead - 1 + exponent; /* value = d.ddd * 10^e */
    const char *d = digits + lead;
    n -= lead;
    char *q = out;
    if (signbit(f))
        *q++ = '-';
    if (e < -4 || e >= 16) {
        q += sprintf(q, "%c%s%.*s", d[0], n > 1 ? "." : "", n - 1, d + 1);
        sprintf(q, "e%c%02d", e < 0 ? '-' : '+', abs(e));
    } else if (e < 0) {
        q += sprintf(q, "0.%.*s", -e - 1, "000");
        sprintf(q, "%.*s", n, d);
    } else {
        for (int i = 0; i <= e; i++)
            *q++ = i < n ? d[i] : '0';
        sprintf(q, ".%s%.*s", n > e + 1 ? "" : "0", n > e + 1 ? n - e - 1 : 0, d + (n > e + 1 ? e + 1 : 0));
    }
    buffer_text(b, out);
}

/* Control characters, separators other than the blank, and what is no character: Python escapes them in repr. (Code points that are not assigned
 * it escapes as well; here they are kept.) */
static bool unprintable(uint32_t cp)
{
    return cp < 0x20 || (cp >= 0x7F && cp <= 0xA0) || cp == 0xAD || (utf8_is_space(cp) && cp != ' ') || (cp >= 0x200B && cp <= 0x200F) ||
           (cp >= 0x202A && cp <= 0x202E) || (cp >= 0x2060 && cp <= 0x206F) || (cp >= 0xE000 && cp <= 0xF8FF) || cp == 0xFEFF ||
           (cp >= 0xFFF0 && cp <= 0xFFFB) || (cp & 0xFFFE) == 0xFFFE || cp >= 0xE0000;
}

static void str_repr(buffer *b, const str *s)
{
    const bool apostrophe = s->n > 0 && memchr(s->p, '\'', s->n) != NULL, quote = s->n > 0 && memchr(s->p, '"', s->n) != NULL;
    const char q = apostrophe && !quote ? '"' : '\'';
    buffer_add(b, &q, 1, false);
    for (size_t i = 0; i < s->n;) {
        uint32_t cp;
        char escape[16] = "";
        const size_t n = utf8_decode(s->p + i, s->n - i, &cp);
        if (cp == '\\' || cp == (unsigned char)q)
            snprintf(escape, sizeof escape, "\\%c", (char)cp);
        else if (cp == '\n' || cp == '\r' || cp == '\t')
            snprintf(escape, sizeof escape, "\\%c", cp == '\n' ? 'n' : cp == '\r' ? 'r' : 't');
        else if (unprintable(cp))
            snprintf(escape, sizeof escape, cp < 0x100 ? "\\x%02x" : cp < 0x10000 ? "\\u%04x" : "\\U%08x", cp);
        if (escape[0])
            buffer_add(b, escape, strlen(escape), s->mark[i]);
        else
            buffer_part(b, s, i, i + n);
        i += n;
    }
    buffer_add(b, &q, 1, false);
}

static void list_repr(buffer *b, const list *l, bool tuple, int depth)
{
    buffer_text(b, tuple ? "(" : "[");
    for (size_t i = 0; i < l->n; i++) {
        buffer_text(b, i > 0 ? ", " : "");
        value_repr(b, &l->v[i], depth + 1);
    }
    buffer_text(b, !tuple ? "]" : l->n == 1 ? ",)" : ")");
}

void value_repr(buffer *b, const value *v, int depth)
{
    char text[32];
    room_step(b->m, 1);
    if (depth > MOST_NESTED)
        template_fail(b->m, MOE_E_DATA, "values nest deeper than %d", MOST_NESTED);
    switch (v->type) {
    case V_UNDEFINED: buffer_text(b, "Undefined"); break;
    case V_NONE: buffer_text(b, "None"); break;
    case V_BOOL: buffer_text(b, v->i ? "True" : "False"); break;
    case V_INT:
        snprintf(text, sizeof text, "%lld", (long long)v->i);
        buffer_text(b, text);
        break;
    case V_FLOAT: float_repr(b, v->f); break;
    case V_STRING: str_repr(b, v->s); break;
    case V_LIST:
    case V_TUPLE: list_repr(b, v->list, v->type == V_TUPLE, depth); break;
    case V_DICT:
        buffer_text(b, "{");
        for (size_t i = 0; i < v->dict->n; i++) {
            buffer_text(b, i > 0 ? ", " : "");
            value_repr(b, &v->dict->key[i], depth + 1);
            buffer_text(b, ": ");
            value_repr(b, &v->dict->v[i], depth + 1);
        }
        buffer_text(b, "}");
        break;
    default: template_fail(b->m, MOE_E_DATA, "%s has no text", value_name(v));
    }
}

const str *value_str(room *m, const value *v)
{
    if (v->type == V_STRING)
        return v->s;
    buffer b = {.m = m};
    if (v->type != V_UNDEFINED)
        value_repr(&b, v, 0);
    return buffer_take(&b);
}
