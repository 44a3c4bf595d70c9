/* The functions that a template can call, and how their arguments are found. Everything lies in the room. One thread. */
#include <stdio.h>
#include <string.h>

#include "models/text/template_private.h"

enum { MOST_RANGE = 100000 }; /* jinja2's sandbox: range of at most 100000 */

enum { FN_RAISE, FN_STRFTIME, FN_RANGE, FN_NAMESPACE, FN_DICT, FUNCTIONS };

int template_find_function(const str *name)
{
    static const char *const names[FUNCTIONS] = {"raise_exception", "strftime_now", "range", "namespace", "dict"};
    for (int i = 0; i < FUNCTIONS; i++)
        if (str_is(name, names[i]))
            return i;
    return -1;
}

bool argument(const arguments *a, int i, const char *key, value *out)
{
    if (i >= 0 && i < a->n && a->key[i] == NULL) {
        *out = a->v[i];
        return true;
    }
    for (int k = 0; key != NULL && k < a->n; k++)
        if (a->key[k] != NULL && str_is(a->key[k], key)) {
            *out = a->v[k];
            return true;
        }
    return false;
}

void arguments_at_most(room *m, const arguments *a, int most, const char *what)
{
    if (a->n > most)
        template_fail(m, MOE_E_DATA, "%s: %d arguments; expected at most %d", what, a->n, most);
}

static value call_range(run *r, const arguments *a)
{
    int64_t bound[3] = {0, 0, 1};
    value v;
    arguments_at_most(r->m, a, 3, "range");
    for (int i = 0; i < 3; i++)
        if (argument(a, i, NULL, &v))
            bound[i] = value_whole(r->m, &v, "range");
    if (a->n < 2) {
        bound[1] = bound[0];
        bound[0] = 0;
    }
    if (a->n == 0 || bound[2] == 0)
        template_fail(r->m, MOE_E_DATA, a->n == 0 ? "range: expected 1 to 3 arguments" : "range: a step of 0");
    list *l = list_new(r->m);
    for (int64_t i = bound[0]; bound[2] > 0 ? i < bound[1] : i > bound[1];) {
        if (l->n == MOST_RANGE)
            template_fail(r->m, MOE_E_DATA, "range: more than %d items", MOST_RANGE);
        list_add(r->m, l, value_int(i));
        if (__builtin_add_overflow(i, bound[2], &i))
            break;
    }
    return value_list(l);
}

/* namespace(...) and dict(...): a dictionary, then names. */
static value call_dict(run *r, const arguments *a, value_type type)
{
    dict *d = dict_new(r->m);
    for (int i = 0; i < a->n; i++) {
        if (a->key[i] != NULL) {
            dict_set(r->m, d, value_string(a->key[i]), a->v[i]);
            continue;
        }
        if (a->v[i].type != V_DICT || i > 0)
            template_fail(r->m, MOE_E_DATA, "%s: expected one dictionary and names, found %s", type == V_DICT ? "dict" : "namespace",
                          value_name(&a->v[i]));
        for (size_t k = 0; k < a->v[i].dict->n; k++)
            dict_set(r->m, d, a->v[i].dict->key[k], a->v[i].dict->v[k]);
    }
    return (value){.type = type, .dict = d};
}

static value call_strftime(run *r, const arguments *a)
{
    value v;
    char format[256], text[1024];
    if (!argument(a, 0, "format", &v) || v.type != V_STRING || v.s->n >= sizeof format)
        template_fail(r->m, MOE_E_DATA, "strftime_now: expected a format of at most %zu bytes", sizeof format - 1);
    if (v.s->n > 0 && memchr(v.s->p, '\0', v.s->n) != NULL)
        template_fail(r->m, MOE_E_DATA, "strftime_now: a NUL in the format");
    snprintf(format, sizeof format, "%.*s", (int)v.s->n, v.s->n ? v.s->p : "");
    const size_t n = strftime(text, sizeof text, format, &r->now);
    bool mark = false;
    for (size_t i = 0; i < v.s->n; i++)
        mark |= v.s->mark[i];
    return value_string(str_new(r->m, text, n, mark));
}

value template_call_function(run *r, int64_t which, const arguments *a)
{
    value v;
    switch (which) {
    case FN_RANGE: return call_range(r, a);
    case FN_NAMESPACE: return call_dict(r, a, V_NAMESPACE);
    case FN_DICT: return call_dict(r, a, V_DICT);
    case FN_STRFTIME: return call_strftime(r, a);
    default: break;
    }
    const str *text = argument(a, 0, "message", &v) ? value_str(r->m, &v) : str_new(r->m, "raise_exception", 15, false);
    template_fail(r->m, MOE_E_DATA, "%.*s", (int)(text->n < 800 ? text->n : 800), text->n ? text->p : "");
}
