/* What stands behind "is", by one table. One thread. */
#include <math.h>
#include <string.h>

#include "models/text/template_private.h"

typedef enum test_kind {
    T_DEFINED, T_UNDEFINED, T_STRING, T_NONE, T_MAPPING, T_ITERABLE, T_SEQUENCE, T_NUMBER, T_INTEGER, T_FLOAT, T_BOOLEAN, T_TRUE, T_FALSE, T_EVEN,
    T_ODD, T_DIVISIBLEBY, T_EQ, T_EQUALTO, T_NE, T_LT, T_LE, T_GT, T_GE, T_IN, T_SAMEAS, T_CALLABLE, T_LOWER, T_UPPER, TESTS
} test_kind;

static const char *const tests[TESTS] = {
    "defined", "undefined", "string", "none", "mapping", "iterable", "sequence", "number", "integer", "float", "boolean", "true", "false",
    "even", "odd", "divisibleby", "eq", "equalto", "ne", "lt", "le", "gt", "ge", "in", "sameas", "callable", "lower", "upper",
};

int template_find_test(const str *name)
{
    for (int i = 0; i < TESTS; i++)
        if (str_is(name, tests[i]))
            return i;
    return -1;
}

static bool is_same(room *m, const value *a, const value *b)
{
    return a->type == b->type && (a->type < V_STRING || a->type == V_STRING ? value_equal(m, a, b, 0) : a->dict == b->dict);
}

static bool with_other(run *r, int which, const value *v, const arguments *a)
{
    value w;
    if (!argument(a, 0, NULL, &w))
        template_fail(r->m, MOE_E_DATA, "is %s: expected an argument", tests[which]);
    switch (which) {
    case T_DIVISIBLEBY: {
        const int64_t n = value_whole(r->m, v, "divisibleby"), by = value_whole(r->m, &w, "divisibleby");
        if (by == 0)
            template_fail(r->m, MOE_E_DATA, "division by zero");
        return by == -1 || n % by == 0;
    }
    case T_EQ:
    case T_EQUALTO: return value_equal(r->m, v, &w, 0);
    case T_NE: return !value_equal(r->m, v, &w, 0);
    case T_IN: return value_contains(r->m, &w, v);
    case T_SAMEAS: return is_same(r->m, v, &w);
    default: break;
    }
    const int c = value_order(r->m, v, &w);
    return which == T_LT ? c < 0 : which == T_LE ? c <= 0 : which == T_GT ? c > 0 : c >= 0;
}

static bool has_case(run *r, const value *v, int how)
{
    const str *s = value_str(r->m, v);
    const method f = {value_string(s), str_new(r->m, how == T_UPPER ? "isupper" : "islower", 7, false)};
    const arguments none = {0};
    const value out = template_call_method(r, &f, &none);
    return out.i != 0;
}

bool template_apply_test(run *r, int which, value v, const arguments *a)
{
    const value_type t = v.type;
    switch (which) {
    case T_DEFINED: return t != V_UNDEFINED;
    case T_UNDEFINED: return t == V_UNDEFINED;
    case T_STRING: return t == V_STRING;
    case T_NONE: return t == V_NONE;
    case T_MAPPING: return t == V_DICT;
    case T_ITERABLE: return t == V_STRING || t == V_LIST || t == V_TUPLE || t == V_DICT || t == V_UNDEFINED;
    case T_SEQUENCE: return t == V_STRING || t == V_LIST || t == V_TUPLE || t == V_DICT || t == V_UNDEFINED;
    case T_NUMBER: return t == V_INT || t == V_FLOAT || t == V_BOOL;
    case T_INTEGER: return t == V_INT;
    case T_FLOAT: return t == V_FLOAT;
    case T_BOOLEAN: return t == V_BOOL;
    case T_TRUE: return t == V_BOOL && v.i;
    case T_FALSE: return t == V_BOOL && !v.i;
    case T_EVEN: return value_whole(r->m, &v, "even") % 2 == 0;
    case T_ODD: return value_whole(r->m, &v, "odd") % 2 != 0;
    case T_CALLABLE: return t == V_MACRO || t == V_FUNCTION || t == V_METHOD;
    case T_LOWER:
    case T_UPPER: return has_case(r, &v, which);
    default: return with_other(r, which, &v, a);
    }
}
