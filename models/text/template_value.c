/* Values of a template: lists and dictionaries, and how Python compares and looks into them. Everything lies in the room. One thread. */
#include <string.h>

#include "models/text/template_private.h"
#include "models/text/utf8.h"

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
