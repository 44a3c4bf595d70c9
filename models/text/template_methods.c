/* Methods of strings, lists, dictionaries and loops, as in Python. What changes its object is refused, as in jinja2's immutable sandbox.
 * One thread; everything lies in the room. */
#include <string.h>

#include "models/text/template_private.h"
#include "models/text/utf8.h"

/* --- upper and lower case ----------------------------------------------------------------------------------------------------- */

/* Blocks in which letters have case; their mappings are not known here, so they are refused rather than left as they are. */
static bool may_have_case(uint32_t cp)
{
    static const uint32_t block[][2] = {{0xAA, 0x587}, {0x10A0, 0x10FF}, {0x13A0, 0x13FD}, {0x1C80, 0x1CBF}, {0x1D00, 0x1FFF},
                                        {0x2071, 0x24E9}, {0x2C00, 0x2DFF}, {0xA640, 0xA7FF}, {0xAB30, 0xABBF}, {0xFB00, 0xFB17},
                                        {0xFF21, 0xFF5A}, {0x10400, 0x10D85}, {0x118A0, 0x118DF}, {0x16E40, 0x16E7F}, {0x1D400, 0x1D7CB},
                                        {0x1DF00, 0x1E943}};
    for (size_t i = 0; i < sizeof block / sizeof *block; i++)
        if (cp >= block[i][0] && cp <= block[i][1])
            return cp != 0xD7 && cp != 0xF7 && cp != 0xB0 && cp != 0xB7 && !(cp >= 0x300 && cp <= 0x344) && !(cp >= 0x2190 && cp <= 0x245F);
    return false;
}

static bool is_upper(char c) { return c >= 'A' && c <= 'Z'; }
static bool is_lower(char c) { return c >= 'a' && c <= 'z'; }

const str *text_case(room *m, const str *s, int how)
{
    buffer b = {.m = m};
    bool first = true; /* of the string, or of a word */
    for (size_t i = 0; i < s->n;) {
        uint32_t cp;
        const size_t n = utf8_decode(s->p + i, s->n - i, &cp);
        if (may_have_case(cp))
            template_fail(m, MOE_E_DATA, "changing the case of U+%04X is not supported", cp);
        char c = s->p[i];
        const bool up = how == 'u' || (how != 'l' && first);
        if (n == 1 && (is_upper(c) || is_lower(c))) {
            c = up && is_lower(c) ? (char)(c - 32) : !up && is_upper(c) ? (char)(c + 32) : c;
            buffer_add(&b, &c, 1, s->mark[i]);
        } else {
            buffer_part(&b, s, i, i + n);
        }
        first = how == 't' && !(n == 1 && (is_upper(c) || is_lower(c)));
        i += n;
    }
    return buffer_take(&b);
}

/* --- strings ------------------------------------------------------------------------------------------------------------------ */

static const str *text_argument(room *m, const arguments *a, int i, const char *key, const char *what)
{
    value v;
    if (!argument(a, i, key, &v) || v.type == V_NONE)
        return NULL;
    if (v.type != V_STRING)
        template_fail(m, MOE_E_DATA, "%s: expected a string, found %s", what, value_name(&v));
    return v.s;
}

static int64_t whole_argument(room *m, const arguments *a, int i, const char *key, int64_t fallback, const char *what)
{
    value v;
    return argument(a, i, key, &v) ? value_whole(m, &v, what) : fallback;
}

static bool starts_at(const str *s, size_t at, const str *part)
{
    return part->n <= s->n - at && (part->n == 0 || memcmp(s->p + at, part->p, part->n) == 0);
}

/* startswith, endswith: a string, or a tuple of them. */
static bool has_end(room *m, const str *s, const value *v, bool at_start)
{
    if (v->type == V_TUPLE) {
        for (size_t i = 0; i < v->list->n; i++)
            if (has_end(m, s, &v->list->v[i], at_start))
                return true;
        return false;
    }
    if (v->type != V_STRING)
        template_fail(m, MOE_E_DATA, "%s: expected a string, found %s", at_start ? "startswith" : "endswith", value_name(v));
    return v->s->n <= s->n && starts_at(s, at_start ? 0 : s->n - v->s->n, v->s);
}

static void add_part(room *m, list *l, const str *s, size_t from, size_t to) { list_add(m, l, value_string(str_slice(m, s, from, to))); }

/* Words between white space. */
static list *split_space(room *m, const str *s, int64_t most)
{
    list *l = list_new(m);
    for (size_t i = 0;;) {
        uint32_t cp;
        size_t n;
        while (i < s->n && (n = utf8_decode(s->p + i, s->n - i, &cp)) > 0 && text_is_space(cp))
            i += n;
        if (i == s->n)
            return l;
        const size_t from = i;
        if (most >= 0 && (int64_t)l->n == most) {
            list_add(m, l, value_string(str_strip(m, str_slice(m, s, from, s->n), NULL, false, true)));
            return l;
        }
        while (i < s->n && (n = utf8_decode(s->p + i, s->n - i, &cp)) > 0 && !text_is_space(cp))
            i += n;
        add_part(m, l, s, from, i);
    }
}

static list *split_by(room *m, const str *s, const str *by, int64_t most)
{
    list *l = list_new(m);
    size_t from = 0;
    if (by->n == 0)
        template_fail(m, MOE_E_DATA, "split: an empty separator");
    room_step(m, 1 + (int64_t)s->n / 16);
    for (const char *at; (most < 0 || (int64_t)l->n < most) && from < s->n && (at = memmem(s->p + from, s->n - from, by->p, by->n)) != NULL;) {
        add_part(m, l, s, from, (size_t)(at - s->p));
        from = (size_t)(at - s->p) + by->n;
    }
    add_part(m, l, s, from, s->n);
    return l;
}

static list *reversed(room *m, const list *l)
{
    list *out = list_new(m);
    for (size_t i = l->n; i-- > 0;)
        list_add(m, out, l->v[i]);
    return out;
}

/* From the right, with a limit. */
static list *split_right(room *m, const str *s, const str *by, int64_t most)
{
    list *l = list_new(m);
    size_t to = s->n;
    if (by == NULL || by->n == 0)
        template_fail(m, MOE_E_DATA, "rsplit: expected a separator");
    for (size_t at = s->n; at-- > 0 && (int64_t)l->n < most;) {
        room_step(m, 1);
        if (at + by->n > to || !starts_at(s, at, by))
            continue;
        add_part(m, l, s, at + by->n, to);
        to = at;
    }
    add_part(m, l, s, 0, to);
    return reversed(m, l);
}

static list *split_lines(room *m, const str *s, bool keep)
{
    list *l = list_new(m);
    for (size_t from = 0, i = 0; i < s->n || from < s->n;) {
        uint32_t cp = 0;
        const size_t n = i < s->n ? utf8_decode(s->p + i, s->n - i, &cp) : 0;
        const bool end = n > 0 && ((cp >= 0x0A && cp <= 0x0D) || (cp >= 0x1C && cp <= 0x1E) || cp == 0x85 || cp == 0x2028 || cp == 0x2029);
        if (n > 0 && !end) {
            i += n;
            continue;
        }
        const size_t to = i;
        i += n + (cp == '\r' && i + 1 < s->n && s->p[i + 1] == '\n');
        add_part(m, l, s, from, keep ? i : to);
        from = i;
        if (n == 0)
            break;
    }
    return l;
}

static value replace(room *m, const str *s, const arguments *a)
{
    const str *from = text_argument(m, a, 0, "old", "replace"), *to = text_argument(m, a, 1, "new", "replace");
    int64_t left = whole_argument(m, a, 2, "count", -1, "replace");
    buffer b = {.m = m};
    size_t i = 0;
    if (from == NULL || to == NULL)
        template_fail(m, MOE_E_DATA, "replace: expected two strings");
    while (left != 0 && i <= s->n) {
        const char *at = from->n == 0 ? s->p + i : i < s->n ? memmem(s->p + i, s->n - i, from->p, from->n) : NULL;
        if (from->n > 0 && at == NULL)
            break;
        const size_t where = from->n == 0 ? i : (size_t)(at - s->p);
        room_step(m, 1 + (int64_t)(where - i) / 16);
        buffer_part(&b, s, i, where);
        buffer_str(&b, to);
        left--;
        i = where + from->n;
        if (from->n == 0) { /* before every character and at the end */
            uint32_t cp;
            const size_t n = where < s->n ? utf8_decode(s->p + where, s->n - where, &cp) : 1;
            buffer_part(&b, s, where, where < s->n ? where + n : where);
            i = where + n;
        }
    }
    if (i < s->n)
        buffer_part(&b, s, i, s->n);
    return value_string(buffer_take(&b));
}

/* The offset in characters, -1: not there. */
static int64_t find(room *m, const str *s, const str *part, bool last)
{
    if (part == NULL)
        template_fail(m, MOE_E_DATA, "find: expected a string");
    room_step(m, 1 + (int64_t)s->n / 16);
    int64_t found = -1;
    for (size_t at = 0; at + part->n <= s->n && (found < 0 || last); at++)
        if (!(at < s->n && utf8_is_continuation(s->p[at])) && starts_at(s, at, part)) {
            const str before = {.n = at, .p = s->p};
            found = (int64_t)str_chars(&before);
        }
    return found;
}

static int64_t count(room *m, const str *s, const str *part)
{
    int64_t n = 0;
    if (part == NULL)
        template_fail(m, MOE_E_DATA, "count: expected a string");
    if (part->n == 0)
        return (int64_t)str_chars(s) + 1;
    for (size_t at = 0; at + part->n <= s->n;) {
        const bool here = starts_at(s, at, part);
        n += here;
        at += here ? part->n : 1;
    }
    room_step(m, 1 + (int64_t)s->n / 16);
    return n;
}

/* isdigit and so on; ASCII, and false for everything else but letters of scripts without case. */
static bool is_all(const str *s, const char *what)
{
    for (size_t i = 0; i < s->n;) {
        uint32_t cp;
        const size_t n = utf8_decode(s->p + i, s->n - i, &cp);
        const bool digit = cp >= '0' && cp <= '9', letter = cp >= 0x80 ? !text_is_space(cp) : is_upper((char)cp) || is_lower((char)cp);
        const bool good = strcmp(what, "isspace") == 0 ? text_is_space(cp) : strcmp(what, "isalpha") == 0 ? letter : strcmp(what, "isalnum") == 0 ? letter || digit : digit;
        if (!good)
            return false;
        i += n;
    }
    return s->n > 0;
}

static bool is_case(room *m, const str *s, bool upper)
{
    bool any = false;
    for (size_t i = 0; i < s->n; i++) {
        if ((unsigned char)s->p[i] >= 0x80)
            template_fail(m, MOE_E_DATA, "the case of text that is not ASCII is not supported");
        if (upper ? is_lower(s->p[i]) : is_upper(s->p[i]))
            return false;
        any |= upper ? is_upper(s->p[i]) : is_lower(s->p[i]);
    }
    return any;
}

static value join(room *m, const str *between, const arguments *a)
{
    value v;
    buffer b = {.m = m};
    if (!argument(a, 0, NULL, &v))
        template_fail(m, MOE_E_DATA, "join: expected a list");
    const list *l = value_items(m, &v);
    for (size_t i = 0; i < l->n; i++) {
        if (l->v[i].type != V_STRING)
            template_fail(m, MOE_E_DATA, "join: expected strings, found %s", value_name(&l->v[i]));
        if (i > 0)
            buffer_str(&b, between);
        buffer_str(&b, l->v[i].s);
    }
    return value_string(buffer_take(&b));
}

typedef enum string_method {
    S_STRIP, S_LSTRIP, S_RSTRIP, S_SPLIT, S_RSPLIT, S_SPLITLINES, S_STARTSWITH, S_ENDSWITH, S_UPPER, S_LOWER, S_TITLE, S_CAPITALIZE, S_REPLACE, S_FIND,
    S_RFIND, S_COUNT, S_JOIN, S_REMOVEPREFIX, S_REMOVESUFFIX, S_ISDIGIT, S_ISALPHA, S_ISALNUM, S_ISSPACE, S_ISUPPER, S_ISLOWER, STRING_METHODS
} string_method;

static const char *const string_methods[STRING_METHODS] = {
    "strip", "lstrip", "rstrip", "split", "rsplit", "splitlines", "startswith", "endswith", "upper", "lower", "title", "capitalize", "replace",
    "find", "rfind", "count", "join", "removeprefix", "removesuffix", "isdigit", "isalpha", "isalnum", "isspace", "isupper", "islower",
};
static const char *const dict_methods[] = {"items", "keys", "values", "get", "copy"};
static const char *const list_methods[] = {"index", "count"};
static const char *const changing_methods[] = {"append", "extend", "insert", "pop", "remove", "reverse", "sort", "clear", "update", "setdefault", "popitem"};
static const char *const loop_methods[] = {"cycle", "changed"};

static int find_name(const char *const *names, int n, const str *name)
{
    for (int i = 0; i < n; i++)
        if (str_is(name, names[i]))
            return i;
    return -1;
}

#define FIND(names, name) find_name(names, (int)(sizeof(names) / sizeof *(names)), name)

bool template_is_method(const str *name)
{
    return FIND(string_methods, name) >= 0 || FIND(dict_methods, name) >= 0 || FIND(list_methods, name) >= 0 || FIND(changing_methods, name) >= 0;
}

bool template_has_method(const value *v, const str *name)
{
    switch (v->type) {
    case V_STRING: return FIND(string_methods, name) >= 0;
    case V_TUPLE: return FIND(list_methods, name) >= 0;
    case V_LIST: {
        const int i = FIND(changing_methods, name);
        return FIND(list_methods, name) >= 0 || (i >= 0 && i <= 7);
    }
    case V_DICT: return FIND(dict_methods, name) >= 0 || FIND(changing_methods, name) >= 7 || str_is(name, "pop");
    case V_LOOP: return FIND(loop_methods, name) >= 0;
    default: return false;
    }
}

static value string_call(room *m, const str *s, int which, const arguments *a)
{
    const char *name = string_methods[which];
    value v;
    arguments_at_most(m, a, 3, name);
    switch ((string_method)which) {
    case S_STRIP:
    case S_LSTRIP:
    case S_RSTRIP: return value_string(str_strip(m, s, text_argument(m, a, 0, "chars", name), which != S_RSTRIP, which != S_LSTRIP));
    case S_SPLIT:
    case S_RSPLIT: {
        const str *by = text_argument(m, a, 0, "sep", name);
        const int64_t most = whole_argument(m, a, 1, "maxsplit", -1, name);
        if (which == S_RSPLIT && most >= 0)
            return value_list(split_right(m, s, by, most));
        return value_list(by != NULL ? split_by(m, s, by, most) : split_space(m, s, most));
    }
    case S_SPLITLINES: return value_list(split_lines(m, s, argument(a, 0, "keepends", &v) && value_true(&v)));
    case S_STARTSWITH:
    case S_ENDSWITH:
        if (a->n != 1 || !argument(a, 0, NULL, &v))
            template_fail(m, MOE_E_DATA, "%s: expected one argument", name);
        return value_bool(has_end(m, s, &v, which == S_STARTSWITH));
    case S_UPPER: return value_string(text_case(m, s, 'u'));
    case S_LOWER: return value_string(text_case(m, s, 'l'));
    case S_TITLE: return value_string(text_case(m, s, 't'));
    case S_CAPITALIZE: return value_string(text_case(m, s, 'c'));
    case S_REPLACE: return replace(m, s, a);
    case S_FIND:
    case S_RFIND: arguments_at_most(m, a, 1, name); return value_int(find(m, s, text_argument(m, a, 0, "sub", name), which == S_RFIND));
    case S_COUNT: arguments_at_most(m, a, 1, name); return value_int(count(m, s, text_argument(m, a, 0, "sub", name)));
    case S_JOIN: return join(m, s, a);
    case S_REMOVEPREFIX:
    case S_REMOVESUFFIX: {
        const bool prefix = which == S_REMOVEPREFIX;
        const str *part = text_argument(m, a, 0, NULL, name);
        if (part == NULL || part->n > s->n || !starts_at(s, prefix ? 0 : s->n - part->n, part))
            return value_string(s);
        return value_string(prefix ? str_slice(m, s, part->n, s->n) : str_slice(m, s, 0, s->n - part->n));
    }
    case S_ISUPPER:
    case S_ISLOWER: return value_bool(is_case(m, s, which == S_ISUPPER));
    default: return value_bool(is_all(s, name));
    }
}

static value dict_call(room *m, const value *self, const str *name, const arguments *a)
{
    const dict *d = self->dict;
    value v, w;
    list *l = list_new(m);
    if (str_is(name, "copy"))
        return *self;
    if (str_is(name, "get")) {
        if (!argument(a, 0, NULL, &v))
            template_fail(m, MOE_E_DATA, "get: expected a key");
        if (dict_get(m, d, &v, &w))
            return w;
        return argument(a, 1, NULL, &w) ? w : value_none();
    }
    for (size_t i = 0; i < d->n; i++) {
        if (!str_is(name, "items")) {
            list_add(m, l, str_is(name, "keys") ? d->key[i] : d->v[i]);
            continue;
        }
        list *pair = list_new(m);
        list_add(m, pair, d->key[i]);
        list_add(m, pair, d->v[i]);
        list_add(m, l, (value){.type = V_TUPLE, .list = pair});
    }
    return value_list(l);
}

static value list_call(room *m, const list *l, const str *name, const arguments *a)
{
    value v;
    int64_t n = 0;
    if (!argument(a, 0, NULL, &v))
        template_fail(m, MOE_E_DATA, "%.*s: expected a value", (int)name->n, name->p);
    for (size_t i = 0; i < l->n; i++) {
        room_step(m, 1);
        if (!value_equal(m, &l->v[i], &v, 0))
            continue;
        if (str_is(name, "index"))
            return value_int((int64_t)i);
        n++;
    }
    if (str_is(name, "index"))
        template_fail(m, MOE_E_DATA, "index: the list does not hold this value");
    return value_int(n);
}

static value loop_call(room *m, loop_state *l, const str *name, const arguments *a)
{
    if (a->n == 0)
        template_fail(m, MOE_E_DATA, "loop.%.*s: expected a value", (int)name->n, name->p);
    if (str_is(name, "cycle"))
        return a->v[l->at % a->n];
    list *all = list_new(m);
    for (int i = 0; i < a->n; i++)
        list_add(m, all, a->v[i]);
    const value now = {.type = V_TUPLE, .list = all};
    const bool changed = !l->has_changed || !value_equal(m, &l->changed, &now, 0);
    l->has_changed = true;
    l->changed = now;
    return value_bool(changed);
}

value template_call_method(run *r, const method *f, const arguments *a)
{
    const value *self = &f->self;
    if (self->type == V_STRING)
        return string_call(r->m, self->s, FIND(string_methods, f->name), a);
    if (self->type == V_LOOP)
        return loop_call(r->m, self->loop, f->name, a);
    if (FIND(changing_methods, f->name) >= 0)
        template_fail(r->m, MOE_E_DATA, "the method \"%.*s\" would change %s; that is not allowed", (int)f->name->n, f->name->p, value_name(self));
    return self->type == V_DICT ? dict_call(r->m, self, f->name, a) : list_call(r->m, self->list, f->name, a);
}
