/* How Python prints values: repr and str. Everything lies in the room. One thread. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/text.h"
#include "models/text/template_private.h"
#include "models/text/utf8.h"

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
