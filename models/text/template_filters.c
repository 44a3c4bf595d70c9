/* What stands behind "|", by one table. Like jinja2's, but tojson, which is transformers' (json.dumps). One thread; everything lies in the
 * room. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/text.h"
#include "models/text/template_private.h"

typedef value (*filter_fn)(run *r, value v, const arguments *a);

static const arguments no_arguments = {0};

static int64_t length_of(run *r, const value *v)
{
    if (v->type == V_STRING)
        return (int64_t)str_chars(v->s);
    if (v->type == V_LIST || v->type == V_TUPLE)
        return (int64_t)v->list->n;
    if (v->type == V_DICT)
        return (int64_t)v->dict->n;
    if (v->type != V_UNDEFINED)
        template_fail(r->m, MOE_E_DATA, "%s has no length", value_name(v));
    return 0;
}

static value filter_length(run *r, value v, const arguments *a)
{
    (void)a;
    return value_int(length_of(r, &v));
}

static value filter_string(run *r, value v, const arguments *a)
{
    (void)a;
    return value_string(value_str(r->m, &v));
}

static value filter_trim(run *r, value v, const arguments *a)
{
    value chars;
    const bool given = argument(a, 0, "chars", &chars) && chars.type == V_STRING;
    return value_string(str_strip(r->m, value_str(r->m, &v), given ? chars.s : NULL, true, true));
}

static value filter_upper(run *r, value v, const arguments *a)
{
    (void)a;
    return value_string(text_case(r->m, value_str(r->m, &v), 'u'));
}

static value filter_lower(run *r, value v, const arguments *a)
{
    (void)a;
    return value_string(text_case(r->m, value_str(r->m, &v), 'l'));
}

static value filter_capitalize(run *r, value v, const arguments *a)
{
    (void)a;
    return value_string(text_case(r->m, value_str(r->m, &v), 'c'));
}

static value filter_replace(run *r, value v, const arguments *a)
{
    value text[3];
    arguments b = *a;
    value *copy = room_array(r->m, (size_t)a->n + 1, sizeof *copy);
    for (int i = 0; i < a->n; i++) {
        copy[i] = a->v[i];
        if (i < 2)
            copy[i] = value_string(value_str(r->m, &copy[i]));
    }
    b.v = copy;
    text[0] = value_string(value_str(r->m, &v));
    const method f = {text[0], str_new(r->m, "replace", 7, false)};
    return template_call_method(r, &f, &b);
}

static value filter_items(run *r, value v, const arguments *a)
{
    (void)a;
    if (v.type == V_UNDEFINED)
        return value_list(list_new(r->m));
    if (v.type != V_DICT)
        template_fail(r->m, MOE_E_DATA, "items: expected a dictionary, found %s", value_name(&v));
    const method f = {v, str_new(r->m, "items", 5, false)};
    return template_call_method(r, &f, &no_arguments);
}

/* The attribute a.b.0 of v, as jinja2's make_attrgetter: subscripts first; what is undefined on the way becomes the fallback (NULL: none). */
static value get_path_or(run *r, value v, const value *path, const value *fallback)
{
    const str *s = path->type == V_STRING ? path->s : value_str(r->m, path);
    for (size_t from = 0; from <= s->n;) {
        const char *dot = from < s->n ? memchr(s->p + from, '.', s->n - from) : NULL;
        const size_t to = dot ? (size_t)(dot - s->p) : s->n;
        const str *name = str_slice(r->m, s, from, to);
        int64_t i;
        char digits[24] = "";
        if (name->n > 0 && name->n < sizeof digits && name->p[0] >= '0' && name->p[0] <= '9')
            memcpy(digits, name->p, name->n);
        if (digits[0] && text_parse_int(digits, &i) && (v.type == V_LIST || v.type == V_TUPLE))
            v = i < (int64_t)v.list->n ? v.list->v[i] : value_undefined(r->m, "an item");
        else
            v = template_getattr(r, &v, name, true);
        if (v.type == V_UNDEFINED && fallback != NULL)
            v = *fallback;
        from = to + 1;
    }
    return v;
}

static value get_path(run *r, value v, const value *path) { return get_path_or(r, v, path, NULL); }

static value filter_join(run *r, value v, const arguments *a)
{
    value d, attribute;
    buffer b = {.m = r->m};
    const str *between = argument(a, 0, "d", &d) ? value_str(r->m, &d) : str_new(r->m, "", 0, false);
    const bool by = argument(a, 1, "attribute", &attribute);
    const list *l = value_items(r->m, &v);
    for (size_t i = 0; i < l->n; i++) {
        const value x = by ? get_path(r, l->v[i], &attribute) : l->v[i];
        if (i > 0)
            buffer_str(&b, between);
        buffer_str(&b, value_str(r->m, &x));
    }
    return value_string(buffer_take(&b));
}

static value filter_default(run *r, value v, const arguments *a)
{
    value d, boolean;
    const bool falsy = argument(a, 1, "boolean", &boolean) && value_true(&boolean);
    if (!argument(a, 0, "default_value", &d))
        d = value_text(r->m, "");
    return v.type == V_UNDEFINED || (falsy && !value_true(&v)) ? d : v;
}

static value filter_list(run *r, value v, const arguments *a)
{
    (void)a;
    list *l = list_new(r->m);
    const list *from = value_items(r->m, &v);
    for (size_t i = 0; i < from->n; i++)
        list_add(r->m, l, from->v[i]);
    return value_list(l);
}

/* The arguments behind the first `skip`, for a test or a filter that is named by one. */
static arguments rest_of(const arguments *a, int skip)
{
    return (arguments){a->v + (skip < a->n ? skip : a->n), a->key + (skip < a->n ? skip : a->n), skip < a->n ? a->n - skip : 0};
}

static const str *name_argument(run *r, const arguments *a, int i, const char *what)
{
    value v;
    if (!argument(a, i, NULL, &v) || v.type != V_STRING)
        template_fail(r->m, MOE_E_DATA, "%s: expected a name", what);
    return v.s;
}

/* select, reject, selectattr, rejectattr: by a test, or by truth. */
static value choose(run *r, value v, const arguments *a, bool attribute, bool keep, const char *what)
{
    list *out = list_new(r->m);
    const list *l = value_items(r->m, &v);
    const int at = attribute ? 1 : 0;
    value path = value_none();
    int test = -1;
    if (attribute && !argument(a, 0, NULL, &path))
        template_fail(r->m, MOE_E_DATA, "%s: expected the name of an attribute", what);
    if (a->n > at) {
        const str *name = name_argument(r, a, at, what);
        test = template_find_test(name);
        if (test < 0)
            template_fail(r->m, MOE_E_DATA, "the test \"%.*s\" is not supported", (int)name->n, name->p);
    }
    const arguments rest = rest_of(a, at + 1);
    for (size_t i = 0; i < l->n; i++) {
        const value x = attribute ? get_path(r, l->v[i], &path) : l->v[i];
        if ((test >= 0 ? template_apply_test(r, test, x, &rest) : value_true(&x)) == keep)
            list_add(r->m, out, l->v[i]);
    }
    return value_list(out);
}

static value filter_select(run *r, value v, const arguments *a) { return choose(r, v, a, false, true, "select"); }
static value filter_reject(run *r, value v, const arguments *a) { return choose(r, v, a, false, false, "reject"); }
static value filter_selectattr(run *r, value v, const arguments *a) { return choose(r, v, a, true, true, "selectattr"); }
static value filter_rejectattr(run *r, value v, const arguments *a) { return choose(r, v, a, true, false, "rejectattr"); }

static value filter_map(run *r, value v, const arguments *a)
{
    list *out = list_new(r->m);
    const list *l = value_items(r->m, &v);
    value path, fallback;
    const bool by = argument(a, -1, "attribute", &path), has_default = argument(a, -1, "default", &fallback);
    int filter = -1;
    if (!by) {
        const str *name = name_argument(r, a, 0, "map");
        filter = template_find_filter(name);
        if (filter < 0)
            template_fail(r->m, MOE_E_DATA, "the filter \"%.*s\" is not supported", (int)name->n, name->p);
    }
    const arguments rest = rest_of(a, 1);
    for (size_t i = 0; i < l->n; i++) {
        if (by)
            list_add(r->m, out, get_path_or(r, l->v[i], &path, has_default ? &fallback : NULL));
        else
            list_add(r->m, out, template_apply_filter(r, filter, l->v[i], &rest));
    }
    return value_list(out);
}

/* What sorting and comparing look at: jinja2 ignores case unless it is told not to. */
static value sort_key(run *r, value v, bool sensitive)
{
    return v.type == V_STRING && !sensitive ? value_string(text_case(r->m, v.s, 'l')) : v;
}

/* Stable merge sort of items by keys; both move. */
static void sort_by(run *r, value *key, value *v, size_t n, bool reverse, value *key_room, value *room_v)
{
    const size_t half = n / 2;
    if (n < 2)
        return;
    sort_by(r, key, v, half, reverse, key_room, room_v);
    sort_by(r, key + half, v + half, n - half, reverse, key_room, room_v);
    size_t i = 0, j = half, k = 0;
    while (i < half || j < n) {
        room_step(r->m, 1);
        int c = i == half ? 1 : j == n ? -1 : value_order(r->m, &key[i], &key[j]);
        if (i < half && j < n && reverse)
            c = -c;
        const size_t from = c <= 0 ? i++ : j++;
        key_room[k] = key[from];
        room_v[k++] = v[from];
    }
    memcpy(key, key_room, n * sizeof *key);
    memcpy(v, room_v, n * sizeof *v);
}

static void sort_items(run *r, value *key, value *v, size_t n, bool reverse)
{
    sort_by(r, key, v, n, reverse, room_array(r->m, n + 1, sizeof *key), room_array(r->m, n + 1, sizeof *v));
}

static bool flag(const arguments *a, int i, const char *key)
{
    value v;
    return argument(a, i, key, &v) && value_true(&v);
}

static value filter_sort(run *r, value v, const arguments *a)
{
    value attribute;
    const bool sensitive = flag(a, 1, "case_sensitive"), by = argument(a, 2, "attribute", &attribute) && attribute.type != V_NONE;
    const value out = filter_list(r, v, a);
    value *key = room_array(r->m, out.list->n + 1, sizeof *key);
    for (size_t i = 0; i < out.list->n; i++)
        key[i] = sort_key(r, by ? get_path(r, out.list->v[i], &attribute) : out.list->v[i], sensitive);
    sort_items(r, key, out.list->v, out.list->n, flag(a, 0, "reverse"));
    return out;
}

static value filter_dictsort(run *r, value v, const arguments *a)
{
    value by;
    const bool values = argument(a, 1, "by", &by) && by.type == V_STRING && str_is(by.s, "value");
    const value out = filter_items(r, v, a);
    value *key = room_array(r->m, out.list->n + 1, sizeof *key);
    for (size_t i = 0; i < out.list->n; i++)
        key[i] = sort_key(r, out.list->v[i].list->v[values], flag(a, 0, "case_sensitive"));
    sort_items(r, key, out.list->v, out.list->n, flag(a, 2, "reverse"));
    return out;
}

static value filter_unique(run *r, value v, const arguments *a)
{
    value attribute;
    const bool sensitive = flag(a, 0, "case_sensitive"), by = argument(a, 1, "attribute", &attribute) && attribute.type != V_NONE;
    const list *l = value_items(r->m, &v);
    list *out = list_new(r->m);
    dict *seen = dict_new(r->m);
    for (size_t i = 0; i < l->n; i++) {
        const value key = sort_key(r, by ? get_path(r, l->v[i], &attribute) : l->v[i], sensitive);
        value found;
        if (dict_get(r->m, seen, &key, &found))
            continue;
        dict_set(r->m, seen, key, value_bool(true));
        list_add(r->m, out, l->v[i]);
    }
    return value_list(out);
}

static value filter_first(run *r, value v, const arguments *a)
{
    (void)a;
    const list *l = value_items(r->m, &v);
    return l->n > 0 ? l->v[0] : value_undefined(r->m, "the first item of nothing");
}

static value filter_last(run *r, value v, const arguments *a)
{
    (void)a;
    const list *l = value_items(r->m, &v);
    return l->n > 0 ? l->v[l->n - 1] : value_undefined(r->m, "the last item of nothing");
}

/* min and max of a list. */
static value extreme(run *r, value v, const arguments *a, int sign)
{
    const list *l = value_items(r->m, &v);
    value best = value_undefined(r->m, "an extreme of nothing"), best_key = best;
    for (size_t i = 0; i < l->n; i++) {
        const value key = sort_key(r, l->v[i], flag(a, 0, "case_sensitive"));
        if (i == 0 || sign * value_order(r->m, &key, &best_key) > 0) {
            best = l->v[i];
            best_key = key;
        }
    }
    return best;
}

static value filter_min(run *r, value v, const arguments *a) { return extreme(r, v, a, -1); }
static value filter_max(run *r, value v, const arguments *a) { return extreme(r, v, a, 1); }

static value filter_reverse(run *r, value v, const arguments *a)
{
    (void)a;
    const list *l = value_items(r->m, &v);
    list *out = list_new(r->m);
    for (size_t i = l->n; i-- > 0;)
        list_add(r->m, out, l->v[i]);
    if (v.type != V_STRING)
        return value_list(out);
    buffer b = {.m = r->m};
    for (size_t i = 0; i < out->n; i++)
        buffer_str(&b, out->v[i].s);
    return value_string(buffer_take(&b));
}

/* Text as a number; false: it is none. */
static bool parse_number(run *r, const str *s, double *f, int64_t *i, bool *whole)
{
    char text[64];
    s = str_strip(r->m, s, NULL, true, true);
    if (s->n == 0 || s->n >= sizeof text)
        return false;
    memcpy(text, s->p, s->n);
    text[s->n] = '\0';
    *whole = strspn(text, "+-0123456789") == s->n && text_parse_int(text + (text[0] == '+'), i);
    return *whole || text_parse_double(text, f);
}

static value filter_int(run *r, value v, const arguments *a)
{
    value d;
    double f = 0;
    int64_t i;
    bool whole = false;
    if (!argument(a, 0, "default", &d))
        d = value_int(0);
    if (v.type == V_INT || v.type == V_BOOL)
        return value_int(v.i);
    if (v.type == V_FLOAT)
        f = v.f;
    else if (v.type != V_STRING || !parse_number(r, v.s, &f, &i, &whole))
        return d;
    if (whole)
        return value_int(i);
    return fabs(f) < 9e18 ? value_int((int64_t)f) : d;
}

static value filter_float(run *r, value v, const arguments *a)
{
    value d;
    double f;
    int64_t i;
    bool whole = false;
    if (!argument(a, 0, "default", &d))
        d = value_float(0);
    if (value_number(&v, &f))
        return value_float(f);
    if (v.type != V_STRING || !parse_number(r, v.s, &f, &i, &whole))
        return d;
    return value_float(whole ? (double)i : f);
}

static value filter_abs(run *r, value v, const arguments *a)
{
    (void)a;
    if (v.type == V_FLOAT)
        return value_float(fabs(v.f));
    const int64_t i = value_whole(r->m, &v, "abs");
    if (i == INT64_MIN)
        template_fail(r->m, MOE_E_DATA, "an integer past 64 bits");
    return value_int(i < 0 ? -i : i);
}

static value filter_safe(run *r, value v, const arguments *a)
{
    (void)r;
    (void)a;
    return v;
}

static value filter_indent(run *r, value v, const arguments *a)
{
    value width;
    buffer b = {.m = r->m};
    const str *s = value_str(r->m, &v);
    const bool given = argument(a, 0, "width", &width), first = flag(a, 1, "first"), blank = flag(a, 2, "blank");
    const int64_t n = given && width.type != V_STRING ? value_whole(r->m, &width, "indent") : 4;
    for (size_t from = 0, line = 0; from <= s->n; line++) {
        const char *end = from < s->n ? memchr(s->p + from, '\n', s->n - from) : NULL;
        const size_t to = end ? (size_t)(end - s->p) : s->n;
        if (line == 0 ? first : blank || to > from) {
            if (given && width.type == V_STRING)
                buffer_str(&b, width.s);
            for (int64_t i = 0; !(given && width.type == V_STRING) && i < n; i++) {
                room_step(r->m, 1);
                buffer_text(&b, " ");
            }
        }
        buffer_part(&b, s, from, end ? to + 1 : to);
        from = to + 1;
    }
    return value_string(buffer_take(&b));
}

static value filter_tojson(run *r, value v, const arguments *a)
{
    json_style style = {.indent = -1};
    value x;
    buffer b = {.m = r->m};
    style.ascii = flag(a, 0, "ensure_ascii");
    style.sort = flag(a, 3, "sort_keys");
    if (argument(a, 1, "indent", &x) && x.type == V_STRING)
        style.indent_text = x.s;
    else if (argument(a, 1, "indent", &x) && x.type != V_NONE)
        style.indent = (int)(value_whole(r->m, &x, "tojson: indent") > 1000 ? 1000 : x.i < 0 ? 0 : x.i);
    style.comma = str_new(r->m, style.indent < 0 && style.indent_text == NULL ? ", " : ",", style.indent < 0 && style.indent_text == NULL ? 2 : 1, false);
    style.colon = str_new(r->m, ": ", 2, false);
    if (argument(a, 2, "separators", &x) && x.type != V_NONE) {
        const list *l = value_items(r->m, &x);
        if (l->n != 2 || l->v[0].type != V_STRING || l->v[1].type != V_STRING)
            template_fail(r->m, MOE_E_DATA, "tojson: separators: expected two strings");
        style.comma = l->v[0].s;
        style.colon = l->v[1].s;
    }
    template_json_write(&b, &v, &style, 0);
    return value_string(buffer_take(&b));
}

/* What comes out is as marked as the text was: one marked byte marks all of it. */
static value filter_from_json(run *r, value v, const arguments *a)
{
    (void)a;
    if (v.type != V_STRING)
        template_fail(r->m, MOE_E_DATA, "from_json: expected a string, found %s", value_name(&v));
    bool mark = false;
    for (size_t i = 0; i < v.s->n; i++)
        mark |= v.s->mark[i];
    return template_json_read(r->m, "from_json", v.s->p ? v.s->p : "", v.s->n, mark);
}

static const struct {
    const char *name;
    filter_fn fn;
} filters[] = {
    {"tojson", filter_tojson}, {"length", filter_length}, {"count", filter_length}, {"trim", filter_trim}, {"string", filter_string},
    {"items", filter_items}, {"join", filter_join}, {"default", filter_default}, {"d", filter_default}, {"list", filter_list},
    {"select", filter_select}, {"reject", filter_reject}, {"selectattr", filter_selectattr}, {"rejectattr", filter_rejectattr},
    {"map", filter_map}, {"dictsort", filter_dictsort}, {"upper", filter_upper}, {"lower", filter_lower}, {"capitalize", filter_capitalize},
    {"replace", filter_replace}, {"from_json", filter_from_json}, {"first", filter_first}, {"last", filter_last}, {"min", filter_min},
    {"max", filter_max}, {"int", filter_int}, {"float", filter_float}, {"abs", filter_abs}, {"unique", filter_unique}, {"sort", filter_sort},
    {"reverse", filter_reverse}, {"safe", filter_safe}, {"indent", filter_indent},
};

int template_find_filter(const str *name)
{
    for (int i = 0; i < (int)(sizeof filters / sizeof *filters); i++)
        if (str_is(name, filters[i].name))
            return i;
    return -1;
}

value template_apply_filter(run *r, int which, value v, const arguments *a) { return filters[which].fn(r, v, a); }
