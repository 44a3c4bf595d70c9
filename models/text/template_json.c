/* JSON into values, and values into JSON as Python's json.dumps writes it. Everything lies in the room. One thread. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "models/formats/json_reader.h"
#include "models/text/template_private.h"
#include "models/text/utf8.h"

typedef struct reading {
    room *m;
    json_reader r;
    const char *what;
    bool mark;
} reading;

/* Hands the reader's sentence on. */
static void check(reading *x, moe_err rc)
{
    char text[512];
    if (rc == MOE_OK)
        return;
    moe_error_take(text, sizeof text);
    template_fail(x->m, rc, "%s", text);
}

static const str *read_string(reading *x)
{
    char *p = room_get(x->m, x->r.raw_bytes + 1);
    const size_t n = json_decode(&x->r, p);
    str *s = room_get(x->m, sizeof *s);
    *s = (str){.n = n, .p = p, .mark = room_get(x->m, n + 1)};
    memset(s->mark, x->mark, n);
    return s;
}

static bool is_whole(const json_reader *r)
{
    for (size_t i = 0; i < r->raw_bytes; i++)
        if (strchr(".eE", r->raw[i]) != NULL)
            return false;
    return true;
}

static value read_value(reading *x, json_event e);

static value read_array(reading *x)
{
    list *l = list_new(x->m);
    for (json_event e;;) {
        check(x, json_next(&x->r, &e));
        if (e == JSON_ARRAY_END)
            return value_list(l);
        list_add(x->m, l, read_value(x, e));
    }
}

static value read_object(reading *x)
{
    dict *d = dict_new(x->m);
    for (json_event e;;) {
        check(x, json_next(&x->r, &e));
        if (e == JSON_OBJECT_END)
            return value_dict(d);
        const value key = value_string(read_string(x));
        check(x, json_next(&x->r, &e));
        dict_set(x->m, d, key, read_value(x, e));
    }
}

/* The value whose first event was just read; the reader bounds the depth. */
static value read_value(reading *x, json_event e)
{
    int64_t i;
    double f;
    room_step(x->m, 1);
    switch (e) {
    case JSON_OBJECT: return read_object(x);
    case JSON_ARRAY: return read_array(x);
    case JSON_STRING: return value_string(read_string(x));
    case JSON_TRUE:
    case JSON_FALSE: return value_bool(e == JSON_TRUE);
    case JSON_NULL: return value_none();
    default:
        if (is_whole(&x->r)) {
            check(x, json_int(&x->r, INT64_MIN, INT64_MAX, &i));
            return value_int(i);
        }
        check(x, json_double(&x->r, &f));
        return value_float(f);
    }
}

value template_json_read(room *m, const char *what, const char *text, size_t n, bool mark)
{
    reading x = {.m = m, .what = what, .mark = mark};
    json_event e;
    json_open(&x.r, what, text, n);
    check(&x, json_next(&x.r, &e));
    const value v = read_value(&x, e);
    check(&x, json_expect(&x.r, JSON_END));
    return v;
}

/* --- writing ------------------------------------------------------------------------------------------------------------------ */

static void write_string(buffer *b, const str *s, bool ascii)
{
    static const char escaped[] = "\"\\\b\f\n\r\t", letters[] = "\"\\bfnrt";
    buffer_text(b, "\"");
    for (size_t i = 0; i < s->n;) {
        uint32_t cp;
        char out[16] = "";
        const size_t n = utf8_decode(s->p + i, s->n - i, &cp);
        const char *at = cp > 0 && cp < 0x80 ? strchr(escaped, (int)cp) : NULL;
        if (at != NULL)
            snprintf(out, sizeof out, "\\%c", letters[at - escaped]);
        else if (cp < 0x20 || (ascii && cp >= 0x7F && cp < 0x10000))
            snprintf(out, sizeof out, "\\u%04x", cp);
        else if (ascii && cp >= 0x10000)
            snprintf(out, sizeof out, "\\u%04x\\u%04x", 0xD800 + ((cp - 0x10000) >> 10), 0xDC00 + ((cp - 0x10000) & 0x3FF));
        if (out[0])
            buffer_add(b, out, strlen(out), s->mark[i]);
        else
            buffer_part(b, s, i, i + n);
        i += n;
    }
    buffer_text(b, "\"");
}

static void new_line(buffer *b, const json_style *style, int depth)
{
    if (style->indent < 0 && style->indent_text == NULL)
        return;
    buffer_text(b, "\n");
    for (int i = 0; i < depth; i++) {
        if (style->indent_text != NULL)
            buffer_str(b, style->indent_text);
        for (int k = 0; style->indent_text == NULL && k < style->indent; k++)
            buffer_text(b, " ");
    }
}

static void separate(buffer *b, const json_style *style, size_t i, int depth)
{
    if (i > 0)
        buffer_str(b, style->comma);
    new_line(b, style, depth);
}

/* A key as json.dumps turns it into a string. */
static const str *key_text(buffer *b, const value *key)
{
    buffer text = {.m = b->m};
    if (key->type == V_STRING)
        return key->s;
    if (key->type == V_NONE || key->type == V_BOOL || key->type == V_INT || key->type == V_FLOAT)
        template_json_write(&text, key, NULL, 0);
    else
        template_fail(b->m, MOE_E_DATA, "tojson: %s cannot be a key", value_name(key));
    return buffer_take(&text);
}

static void write_dict(buffer *b, const dict *d, const json_style *style, int depth)
{
    size_t *order = room_array(b->m, d->n + 1, sizeof *order);
    for (size_t i = 0; i < d->n; i++) {
        size_t k = i;
        for (; style->sort && k > 0 && value_order(b->m, &d->key[order[k - 1]], &d->key[i]) > 0; k--)
            order[k] = order[k - 1];
        room_step(b->m, 1 + (int64_t)(i - k));
        order[k] = i;
    }
    buffer_text(b, "{");
    for (size_t i = 0; i < d->n; i++) {
        separate(b, style, i, depth + 1);
        write_string(b, key_text(b, &d->key[order[i]]), style->ascii);
        buffer_str(b, style->colon);
        template_json_write(b, &d->v[order[i]], style, depth + 1);
    }
    if (d->n > 0)
        new_line(b, style, depth);
    buffer_text(b, "}");
}

void template_json_write(buffer *b, const value *v, const json_style *style, int depth)
{
    room_step(b->m, 1);
    if (depth > 200)
        template_fail(b->m, MOE_E_DATA, "tojson: values nest deeper than 200");
    switch (v->type) {
    case V_NONE: buffer_text(b, "null"); break;
    case V_BOOL: buffer_text(b, v->i ? "true" : "false"); break;
    case V_FLOAT:
        if (isfinite(v->f))
            value_repr(b, v, 0);
        else
            buffer_text(b, isnan(v->f) ? "NaN" : v->f > 0 ? "Infinity" : "-Infinity");
        break;
    case V_INT: value_repr(b, v, 0); break;
    case V_STRING: write_string(b, v->s, style->ascii); break;
    case V_DICT: write_dict(b, v->dict, style, depth); break;
    case V_LIST:
    case V_TUPLE:
        buffer_text(b, "[");
        for (size_t i = 0; i < v->list->n; i++) {
            separate(b, style, i, depth + 1);
            template_json_write(b, &v->list->v[i], style, depth + 1);
        }
        if (v->list->n > 0)
            new_line(b, style, depth);
        buffer_text(b, "]");
        break;
    default: template_fail(b->m, MOE_E_DATA, "tojson: %s is not JSON", value_name(v));
    }
}
