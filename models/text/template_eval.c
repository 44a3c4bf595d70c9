/* Values of expressions. Python's rules for numbers, slices, truth and comparison; jinja2's for attributes, subscripts and what is undefined.
 * One thread; everything lies in the room. */
#include <math.h>
#include <stdio.h>

#include "kernels/math.h"
#include "models/text/template_private.h"

enum { MOST_DEEP = 2000 };

static void refuse_undefined(run *r, const value *v)
{
    if (v->type == V_UNDEFINED)
        template_fail(r->m, MOE_E_DATA, "%.*s is undefined", v->s ? (int)v->s->n : 5, v->s ? v->s->p : "value");
}

/* --- numbers ------------------------------------------------------------------------------------------------------------------ */

static int64_t int_power(run *r, int64_t base, int64_t exponent)
{
    int64_t out = 1;
    for (int64_t i = 0; i < exponent; i++) {
        room_step(r->m, 1);
        if (__builtin_mul_overflow(out, base, &out))
            template_fail(r->m, MOE_E_DATA, "an integer past 64 bits");
        if (out == base && (base == 0 || base == 1))
            return out;
    }
    return out;
}

static value int_arithmetic(run *r, int o, int64_t a, int64_t b)
{
    int64_t c = 0;
    bool over = false;
    if ((o == OP_FLOORDIV || o == OP_MOD || o == OP_DIV) && b == 0)
        template_fail(r->m, MOE_E_DATA, "division by zero");
    switch (o) {
    case OP_ADD: over = __builtin_add_overflow(a, b, &c); break;
    case OP_SUB: over = __builtin_sub_overflow(a, b, &c); break;
    case OP_MUL: over = __builtin_mul_overflow(a, b, &c); break;
    case OP_DIV: return value_float((double)a / (double)b);
    case OP_POW: return b >= 0 ? value_int(int_power(r, a, b)) : value_float(moe_pow((double)a, (double)b));
    default:
        if (b == -1) {
            over = __builtin_sub_overflow(0, a, &c);
            c = o == OP_MOD ? 0 : c;
            over = o != OP_MOD && over;
            break;
        }
        c = a / b - (a % b != 0 && (a < 0) != (b < 0));
        c = o == OP_MOD ? a - c * b : c;
    }
    if (over)
        template_fail(r->m, MOE_E_DATA, "an integer past 64 bits");
    return value_int(c);
}

static value float_arithmetic(run *r, int o, double a, double b)
{
    if ((o == OP_FLOORDIV || o == OP_MOD || o == OP_DIV) && b == 0)
        template_fail(r->m, MOE_E_DATA, "division by zero");
    switch (o) {
    case OP_ADD: return value_float(a + b);
    case OP_SUB: return value_float(a - b);
    case OP_MUL: return value_float(a * b);
    case OP_DIV: return value_float(a / b);
    case OP_POW: return value_float(moe_pow(a, b));
    default: break;
    }
    double rest = fmod(a, b);
    if (rest != 0 && (rest < 0) != (b < 0))
        rest += b;
    return value_float(o == OP_MOD ? rest : floor((a - rest) / b + 0.5));
}

static value repeat(run *r, const value *v, int64_t times)
{
    if (v->type == V_STRING) {
        buffer b = {.m = r->m};
        for (int64_t i = 0; i < times && v->s->n > 0; i++) {
            room_step(r->m, 1);
            buffer_str(&b, v->s);
        }
        return value_string(buffer_take(&b));
    }
    value out = *v;
    out.list = list_new(r->m);
    for (int64_t i = 0; i < times && v->list->n > 0; i++)
        for (size_t k = 0; k < v->list->n; k++)
            list_add(r->m, out.list, v->list->v[k]);
    return out;
}

static bool is_sequence(const value *v) { return v->type == V_STRING || v->type == V_LIST || v->type == V_TUPLE; }

static value binary(run *r, int o, const value *a, const value *b)
{
    static const char *const signs[] = {[OP_ADD] = "+", [OP_SUB] = "-", [OP_MUL] = "*", [OP_DIV] = "/", [OP_FLOORDIV] = "//", [OP_MOD] = "%", [OP_POW] = "**"};
    double x, y;
    refuse_undefined(r, a);
    refuse_undefined(r, b);
    if (value_number(a, &x) && value_number(b, &y))
        return a->type == V_FLOAT || b->type == V_FLOAT ? float_arithmetic(r, o, x, y) : int_arithmetic(r, o, a->i, b->i);
    if (o == OP_ADD && a->type == V_STRING && b->type == V_STRING) {
        buffer t = {.m = r->m};
        buffer_str(&t, a->s);
        buffer_str(&t, b->s);
        return value_string(buffer_take(&t));
    }
    if (o == OP_ADD && a->type == b->type && is_sequence(a)) {
        value out = *a;
        out.list = list_new(r->m);
        for (size_t i = 0; i < a->list->n; i++)
            list_add(r->m, out.list, a->list->v[i]);
        for (size_t i = 0; i < b->list->n; i++)
            list_add(r->m, out.list, b->list->v[i]);
        return out;
    }
    if (o == OP_MUL && is_sequence(a) && (b->type == V_INT || b->type == V_BOOL))
        return repeat(r, a, b->i);
    if (o == OP_MUL && is_sequence(b) && (a->type == V_INT || a->type == V_BOOL))
        return repeat(r, b, a->i);
    if (o == OP_MOD && a->type == V_STRING)
        template_fail(r->m, MOE_E_DATA, "formatting with %% is not supported");
    template_fail(r->m, MOE_E_DATA, "%s %s %s is not possible", value_name(a), signs[o], value_name(b));
}

static bool compare(run *r, int o, const value *a, const value *b)
{
    switch (o) {
    case OP_EQ: return value_equal(r->m, a, b, 0);
    case OP_NE: return !value_equal(r->m, a, b, 0);
    case OP_IN: return value_contains(r->m, b, a);
    case OP_NOT_IN: return !value_contains(r->m, b, a);
    default: break;
    }
    refuse_undefined(r, a);
    refuse_undefined(r, b);
    const int c = value_order(r->m, a, b);
    return o == OP_LT ? c < 0 : o == OP_LE ? c <= 0 : o == OP_GT ? c > 0 : c >= 0;
}

/* --- attributes and subscripts ------------------------------------------------------------------------------------------------ */

static value loop_field(run *r, const loop_state *l, const str *name)
{
    const int64_t n = (int64_t)l->items->n;
    if (str_is(name, "index"))
        return value_int(l->at + 1);
    if (str_is(name, "index0"))
        return value_int(l->at);
    if (str_is(name, "revindex"))
        return value_int(n - l->at);
    if (str_is(name, "revindex0"))
        return value_int(n - l->at - 1);
    if (str_is(name, "first"))
        return value_bool(l->at == 0);
    if (str_is(name, "last"))
        return value_bool(l->at == n - 1);
    if (str_is(name, "length"))
        return value_int(n);
    if (str_is(name, "depth"))
        return value_int(1);
    if (str_is(name, "depth0"))
        return value_int(0);
    if (str_is(name, "previtem"))
        return l->at > 0 ? l->items->v[l->at - 1] : value_undefined(r->m, "there is no previous item");
    if (str_is(name, "nextitem"))
        return l->at + 1 < n ? l->items->v[l->at + 1] : value_undefined(r->m, "there is no next item");
    return value_undefined(r->m, "an attribute of loop");
}

static value missing(run *r, const value *v, const str *name)
{
    char text[128];
    snprintf(text, sizeof text, "'%.*s' of %s", (int)(name->n < 60 ? name->n : 60), name->p ? name->p : "", value_name(v));
    return value_undefined(r->m, text);
}

value template_getattr(run *r, const value *v, const str *name, bool item_first)
{
    const value key = value_string(name);
    value out;
    refuse_undefined(r, v);
    if (item_first && v->type == V_DICT && dict_get(r->m, v->dict, &key, &out))
        return out;
    if (template_has_method(v, name)) {
        method *f = room_get(r->m, sizeof *f);
        *f = (method){*v, name};
        return (value){.type = V_METHOD, .method = f};
    }
    if ((v->type == V_DICT || v->type == V_NAMESPACE) && dict_get(r->m, v->dict, &key, &out))
        return out;
    if (v->type == V_LOOP)
        return loop_field(r, v->loop, name);
    return missing(r, v, name);
}

static value item(run *r, const value *v, const value *key)
{
    value out;
    refuse_undefined(r, v);
    if (key->type == V_STRING)
        return template_getattr(r, v, key->s, true);
    if (v->type == V_DICT)
        return dict_get(r->m, v->dict, key, &out) ? out : missing(r, v, value_str(r->m, key));
    if (is_sequence(v) && (key->type == V_INT || key->type == V_BOOL)) {
        const int64_t n = (int64_t)(v->type == V_STRING ? str_chars(v->s) : v->list->n), i = key->i < 0 ? key->i + n : key->i;
        if (i < 0 || i >= n)
            return missing(r, v, value_str(r->m, key));
        if (v->type != V_STRING)
            return v->list->v[i];
        const size_t from = str_offset(v->s, (size_t)i), to = str_offset(v->s, (size_t)i + 1);
        return value_string(str_slice(r->m, v->s, from, to));
    }
    return missing(r, v, value_str(r->m, key));
}

static int64_t slice_bound(run *r, const node *n, int64_t fallback, int64_t length, int64_t low, int64_t high)
{
    if (n == NULL)
        return fallback;
    const value v = template_eval(r, n);
    if (v.type == V_NONE)
        return fallback;
    int64_t i = value_whole(r->m, &v, "a slice");
    i = i < 0 ? i + length : i;
    return i < low ? low : i > high ? high : i;
}

static value slice(run *r, const node *n)
{
    const value v = template_eval(r, n->a);
    refuse_undefined(r, &v);
    if (!is_sequence(&v))
        template_fail(r->m, MOE_E_DATA, "%s has no slices", value_name(&v));
    const int64_t length = (int64_t)(v.type == V_STRING ? str_chars(v.s) : v.list->n);
    int64_t step = 1;
    if (n->n > 2 && n->item[2] != NULL) {
        const value s = template_eval(r, n->item[2]);
        step = s.type == V_NONE ? 1 : value_whole(r->m, &s, "a slice");
    }
    if (step == 0)
        template_fail(r->m, MOE_E_DATA, "a slice with step 0");
    const bool up = step > 0;
    const int64_t from = slice_bound(r, n->item[0], up ? 0 : length - 1, length, up ? 0 : -1, up ? length : length - 1);
    const int64_t to = slice_bound(r, n->item[1], up ? length : -1, length, up ? 0 : -1, up ? length : length - 1);
    if (v.type == V_STRING && step == 1) {
        room_step(r->m, 1 + length / 64);
        const size_t begin = str_offset(v.s, (size_t)from), end = str_offset(v.s, (size_t)(to > from ? to : from));
        return value_string(str_slice(r->m, v.s, begin, end));
    }
    const list *all = value_items(r->m, &v);
    list *l = list_new(r->m);
    buffer b = {.m = r->m};
    for (int64_t i = from; up ? i < to : i > to;) {
        if (v.type == V_STRING)
            buffer_str(&b, all->v[i].s);
        else
            list_add(r->m, l, all->v[i]);
        if (__builtin_add_overflow(i, step, &i))
            break;
    }
    return v.type == V_STRING ? value_string(buffer_take(&b)) : (value){.type = v.type, .list = l};
}

/* --- calls -------------------------------------------------------------------------------------------------------------------- */

static void evaluate_arguments(run *r, const node *n, arguments *a)
{
    a->n = n->n;
    a->v = room_array(r->m, (size_t)n->n + 1, sizeof *a->v);
    a->key = n->key;
    for (int i = 0; i < n->n; i++)
        a->v[i] = template_eval(r, n->item[i]);
}

static value call(run *r, const node *n)
{
    arguments a;
    const value f = template_eval(r, n->a);
    refuse_undefined(r, &f);
    evaluate_arguments(r, n, &a);
    r->m->line = n->line;
    switch (f.type) {
    case V_MACRO: return template_call_macro(r, f.macro, &a);
    case V_FUNCTION: return template_call_function(r, f.i, &a);
    case V_METHOD: return template_call_method(r, f.method, &a);
    default: template_fail(r->m, MOE_E_DATA, "%s cannot be called", value_name(&f));
    }
}

/* --- all of it ---------------------------------------------------------------------------------------------------------------- */

static value look_up(run *r, const str *name)
{
    const value key = value_string(name);
    value v;
    for (const frame *f = r->frame; f != NULL; f = f->up)
        if (dict_get(r->m, f->names, &key, &v))
            return v;
    const int which = template_find_function(name);
    if (which >= 0)
        return (value){.type = V_FUNCTION, .i = which};
    return (value){.type = V_UNDEFINED, .s = name};
}

static value sequence(run *r, const node *n)
{
    if (n->kind == N_DICT) {
        dict *d = dict_new(r->m);
        for (int i = 0; i + 1 < n->n; i += 2) {
            const value key = template_eval(r, n->item[i]);
            dict_set(r->m, d, key, template_eval(r, n->item[i + 1]));
        }
        return value_dict(d);
    }
    list *l = list_new(r->m);
    for (int i = 0; i < n->n; i++)
        list_add(r->m, l, template_eval(r, n->item[i]));
    return (value){.type = n->kind == N_LIST ? V_LIST : V_TUPLE, .list = l};
}

static value chain(run *r, const node *n)
{
    value left = template_eval(r, n->a);
    for (int i = 0; i < n->n; i++) {
        const value right = template_eval(r, n->item[i]->a);
        if (!compare(r, n->item[i]->op, &left, &right))
            return value_bool(false);
        left = right;
    }
    return value_bool(true);
}

static value negate(run *r, const node *n)
{
    const value v = template_eval(r, n->a), zero = value_int(0);
    double x;
    refuse_undefined(r, &v);
    if (!value_number(&v, &x))
        template_fail(r->m, MOE_E_DATA, "%s has no sign", value_name(&v));
    if (n->kind == N_POS)
        return v.type == V_BOOL ? value_int(v.i) : v;
    return v.type == V_FLOAT ? value_float(-v.f) : binary(r, OP_SUB, &zero, &v);
}

static value apply(run *r, const node *n, value v)
{
    arguments a;
    evaluate_arguments(r, n, &a);
    r->m->line = n->line;
    return n->kind == N_FILTER ? template_apply_filter(r, n->op, v, &a) : value_bool(template_apply_test(r, n->op, v, &a));
}

static value evaluate(run *r, const node *n)
{
    value v, w;
    switch (n->kind) {
    case N_CONST: return n->constant;
    case N_NAME: return look_up(r, n->name);
    case N_LIST:
    case N_TUPLE:
    case N_DICT: return sequence(r, n);
    case N_COND:
        v = template_eval(r, n->b);
        if (value_true(&v))
            return template_eval(r, n->a);
        return n->c != NULL ? template_eval(r, n->c) : value_undefined(r->m, "a condition without else");
    case N_AND:
    case N_OR:
        v = template_eval(r, n->a);
        return value_true(&v) == (n->kind == N_OR) ? v : template_eval(r, n->b);
    case N_NOT: v = template_eval(r, n->a); return value_bool(!value_true(&v));
    case N_COMPARE: return chain(r, n);
    case N_BINARY:
        v = template_eval(r, n->a);
        w = template_eval(r, n->b);
        r->m->line = n->line;
        return binary(r, n->op, &v, &w);
    case N_NEG:
    case N_POS: return negate(r, n);
    case N_CONCAT: {
        buffer b = {.m = r->m};
        for (int i = 0; i < n->n; i++) {
            v = template_eval(r, n->item[i]);
            buffer_str(&b, value_str(r->m, &v));
        }
        return value_string(buffer_take(&b));
    }
    case N_ATTR: v = template_eval(r, n->a); return template_getattr(r, &v, n->name, false);
    case N_ITEM:
        v = template_eval(r, n->a);
        w = template_eval(r, n->b);
        return item(r, &v, &w);
    case N_SLICE: return slice(r, n);
    case N_CALL: return call(r, n);
    default: /* N_FILTER, N_TEST; without an operand a block is what is filtered (template_run.c) */ return apply(r, n, template_eval(r, n->a));
    }
}

value template_eval(run *r, const node *n)
{
    room_step(r->m, 1);
    if (++r->depth > MOST_DEEP)
        template_fail(r->m, MOE_E_DATA, "calls and expressions nest deeper than %d", MOST_DEEP);
    r->m->line = n->line;
    const value v = evaluate(r, n);
    r->depth--;
    return v;
}
