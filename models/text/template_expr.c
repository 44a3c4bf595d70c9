/* Expressions of a template, in jinja2's grammar and precedence:
 * a if c else b; or; and; not; comparisons (chained), in, is; + -; ~; * / // %; **; unary + -; a.b a[b] a(b); a|filter.
 * One thread; the tree lies in the room. */
#include <string.h>

#include "models/text/template_private.h"

enum { MOST_DEPTH = 200 };

node *parser_node(parser *p, node_kind kind)
{
    node *n = room_get(p->m, sizeof *n);
    n->kind = kind;
    n->line = p->m->line = p->t->line;
    return n;
}

static const char *token_text(const token *t)
{
    static const char *const names[] = {"text", "\"{{\"", "\"}}\"", "\"{%\"", "\"%}\"", "", "a string", "a number", "a number", "", "the end"};
    return names[t->kind];
}

void parser_fail(parser *p, const char *expected)
{
    const token *t = p->t;
    p->m->line = t->line;
    if (t->kind == K_NAME || t->kind == K_OP)
        template_fail(p->m, MOE_E_DATA, "expected %s, found \"%.*s\"", expected, (int)(t->s->n < 40 ? t->s->n : 40), t->s->p);
    template_fail(p->m, MOE_E_DATA, "expected %s, found %s", expected, token_text(t));
}

static bool at_op(const parser *p, const char *op) { return p->t->kind == K_OP && str_is(p->t->s, op); }

bool parser_op(parser *p, const char *op)
{
    if (!at_op(p, op))
        return false;
    p->t++;
    return true;
}

void parser_expect_op(parser *p, const char *op)
{
    char quoted[8] = {'"'};
    if (parser_op(p, op))
        return;
    strcat(strcat(quoted, op), "\"");
    parser_fail(p, quoted);
}

bool parser_at_word(const parser *p, const char *word) { return p->t->kind == K_NAME && str_is(p->t->s, word); }

bool parser_word(parser *p, const char *word)
{
    if (!parser_at_word(p, word))
        return false;
    p->t++;
    return true;
}

const str *parser_name(parser *p)
{
    if (p->t->kind != K_NAME)
        parser_fail(p, "a name");
    return (p->t++)->s;
}

static void deeper(parser *p)
{
    if (++p->depth > MOST_DEPTH)
        template_fail(p->m, MOE_E_DATA, "expressions nest deeper than %d", MOST_DEPTH);
}

static node *pair(parser *p, node_kind kind, int op, node *a, node *b)
{
    node *n = parser_node(p, kind);
    n->op = op;
    n->a = a;
    n->b = b;
    return n;
}

static void add_item(parser *p, node *n, const str *key, node *item)
{
    if ((n->n & (n->n - 1)) == 0) { /* 0, 1, 2, 4, ...: full */
        const size_t most = n->n ? 2 * (size_t)n->n : 1;
        node **items = room_array(p->m, most, sizeof(node *));
        const str **keys = room_array(p->m, most, sizeof(str *));
        if (n->n > 0) {
            memcpy(items, n->item, (size_t)n->n * sizeof *items);
            memcpy(keys, n->key, (size_t)n->n * sizeof *keys);
        }
        n->item = items;
        n->key = keys;
    }
    n->item[n->n] = item;
    n->key[n->n++] = key;
}

static node *constant(parser *p, value v)
{
    node *n = parser_node(p, N_CONST);
    n->constant = v;
    return n;
}

static node *parse_unary(parser *p, bool filters);

static node *parse_list(parser *p)
{
    node *n = parser_node(p, N_LIST);
    while (!parser_op(p, "]")) {
        add_item(p, n, NULL, parse_expression(p, true));
        if (!at_op(p, "]"))
            parser_expect_op(p, ",");
    }
    return n;
}

static node *parse_dict(parser *p)
{
    node *n = parser_node(p, N_DICT);
    while (!parser_op(p, "}")) {
        add_item(p, n, NULL, parse_expression(p, true));
        parser_expect_op(p, ":");
        add_item(p, n, NULL, parse_expression(p, true));
        if (!at_op(p, "}"))
            parser_expect_op(p, ",");
    }
    return n;
}

static node *parse_name(parser *p)
{
    static const struct {
        const char *word;
        value_type type;
        int i;
    } words[] = {{"true", V_BOOL, 1}, {"True", V_BOOL, 1}, {"false", V_BOOL, 0}, {"False", V_BOOL, 0}, {"none", V_NONE, 0}, {"None", V_NONE, 0}};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (parser_word(p, words[i].word))
            return constant(p, (value){.type = words[i].type, .i = words[i].i});
    node *n = parser_node(p, N_NAME);
    n->name = parser_name(p);
    return n;
}

static node *parse_primary(parser *p)
{
    const token *t = p->t;
    buffer b = {.m = p->m};
    switch (t->kind) {
    case K_NAME: return parse_name(p);
    case K_INT: p->t++; return constant(p, value_int(t->i));
    case K_FLOAT: p->t++; return constant(p, value_float(t->f));
    case K_STRING:
        for (; p->t->kind == K_STRING; p->t++)
            buffer_str(&b, p->t->s);
        return constant(p, value_string(buffer_take(&b)));
    default: break;
    }
    if (parser_op(p, "[")) {
        return parse_list(p);
    } else if (parser_op(p, "{")) {
        return parse_dict(p);
    } else if (parser_op(p, "(")) {
        node *n = at_op(p, ")") ? parser_node(p, N_TUPLE) : parse_tuple(p, true);
        parser_expect_op(p, ")");
        return n;
    }
    parser_fail(p, "an expression");
}

/* Behind "(". */
static void parse_arguments(parser *p, node *call)
{
    bool named = false;
    while (!parser_op(p, ")")) {
        const str *key = NULL;
        if (at_op(p, "*") || at_op(p, "**"))
            template_fail(p->m, MOE_E_DATA, "arguments with * are not supported");
        if (p->t->kind == K_NAME && p->t[1].kind == K_OP && str_is(p->t[1].s, "=")) {
            key = p->t->s;
            p->t += 2;
            named = true;
        } else if (named) {
            parser_fail(p, "a named argument");
        }
        add_item(p, call, key, parse_expression(p, true));
        if (!at_op(p, ")"))
            parser_expect_op(p, ",");
    }
}

static node *parse_subscript(parser *p, node *base)
{
    node *part[3] = {NULL};
    int n = 0;
    bool slice = false;
    for (;;) {
        if (!at_op(p, ":") && !at_op(p, "]"))
            part[n] = parse_expression(p, true);
        if (n == 2 || !parser_op(p, ":"))
            break;
        slice = true;
        n++;
    }
    if (at_op(p, ","))
        template_fail(p->m, MOE_E_DATA, "several subscripts are not supported");
    if (!slice && part[0] == NULL)
        parser_fail(p, "a subscript");
    parser_expect_op(p, "]");
    node *out = pair(p, slice ? N_SLICE : N_ITEM, 0, base, part[0]);
    if (slice) {
        out->b = NULL;
        for (int i = 0; i < 3; i++)
            add_item(p, out, NULL, part[i]);
    }
    return out;
}

static node *parse_call(parser *p, node *callee)
{
    node *n = parser_node(p, N_CALL);
    n->a = callee;
    if (callee->kind == N_ATTR && !template_is_method(callee->name) && !(callee->a->kind == N_NAME && str_is(callee->a->name, "loop")))
        template_fail(p->m, MOE_E_DATA, "the method \"%.*s\" is not supported", (int)callee->name->n, callee->name->p);
    if (callee->kind == N_NAME) {
        list_add(p->m, p->called, value_string(callee->name));
        list_add(p->m, p->called, value_int(n->line));
    }
    parse_arguments(p, n);
    return n;
}

static node *parse_postfix(parser *p, node *n)
{
    for (;;) {
        if (parser_op(p, ".")) {
            if (p->t->kind == K_INT) {
                n = pair(p, N_ITEM, 0, n, constant(p, value_int(p->t->i)));
                p->t++;
            } else {
                n = pair(p, N_ATTR, 0, n, NULL);
                n->name = parser_name(p);
            }
        } else if (parser_op(p, "[")) {
            n = parse_subscript(p, n);
        } else if (parser_op(p, "(")) {
            n = parse_call(p, n);
        } else {
            return n;
        }
    }
}

static const str *dotted_name(parser *p)
{
    const str *name = parser_name(p);
    if (at_op(p, "."))
        template_fail(p->m, MOE_E_DATA, "filters and tests with dots are not supported");
    return name;
}

static node *parse_filter(parser *p, node *base)
{
    node *n = parser_node(p, N_FILTER);
    n->name = dotted_name(p);
    n->a = base;
    n->op = template_find_filter(n->name);
    if (n->op < 0)
        template_fail(p->m, MOE_E_DATA, "the filter \"%.*s\" is not supported", (int)n->name->n, n->name->p);
    if (parser_op(p, "("))
        parse_arguments(p, n);
    return n;
}

node *parse_filter_chain(parser *p, node *base)
{
    node *n = parse_filter(p, base);
    while (parser_op(p, "|"))
        n = parse_filter(p, n);
    return n;
}

static bool begins_argument(const parser *p)
{
    const token *t = p->t;
    if (t->kind == K_NAME)
        return !str_is(t->s, "else") && !str_is(t->s, "or") && !str_is(t->s, "and") && !str_is(t->s, "is") && !str_is(t->s, "if") &&
               !str_is(t->s, "in") && !str_is(t->s, "not") && !str_is(t->s, "recursive");
    return t->kind == K_STRING || t->kind == K_INT || t->kind == K_FLOAT || at_op(p, "[") || at_op(p, "{");
}

static node *parse_test(parser *p, node *base)
{
    const bool negated = parser_word(p, "not");
    node *n = parser_node(p, N_TEST);
    n->name = dotted_name(p);
    n->a = base;
    n->op = template_find_test(n->name);
    if (n->op < 0)
        template_fail(p->m, MOE_E_DATA, "the test \"%.*s\" is not supported", (int)n->name->n, n->name->p);
    if (parser_op(p, "("))
        parse_arguments(p, n);
    else if (begins_argument(p))
        add_item(p, n, NULL, parse_postfix(p, parse_primary(p)));
    return negated ? pair(p, N_NOT, 0, n, NULL) : n;
}

static node *parse_unary(parser *p, bool filters)
{
    node *n;
    deeper(p);
    if (parser_op(p, "-"))
        n = pair(p, N_NEG, 0, parse_unary(p, false), NULL);
    else if (parser_op(p, "+"))
        n = pair(p, N_POS, 0, parse_unary(p, false), NULL);
    else
        n = parse_primary(p);
    n = parse_postfix(p, n);
    while (filters) {
        if (parser_op(p, "|"))
            n = parse_filter(p, n);
        else if (parser_word(p, "is"))
            n = parse_test(p, n);
        else if (parser_op(p, "("))
            n = parse_call(p, n);
        else
            break;
    }
    p->depth--;
    return n;
}

static node *parse_pow(parser *p)
{
    node *n = parse_unary(p, true);
    while (parser_op(p, "**"))
        n = pair(p, N_BINARY, OP_POW, n, parse_unary(p, true));
    return n;
}

static node *parse_product(parser *p)
{
    node *n = parse_pow(p);
    for (;;) {
        if (parser_op(p, "*"))
            n = pair(p, N_BINARY, OP_MUL, n, parse_pow(p));
        else if (parser_op(p, "/"))
            n = pair(p, N_BINARY, OP_DIV, n, parse_pow(p));
        else if (parser_op(p, "//"))
            n = pair(p, N_BINARY, OP_FLOORDIV, n, parse_pow(p));
        else if (parser_op(p, "%"))
            n = pair(p, N_BINARY, OP_MOD, n, parse_pow(p));
        else
            return n;
    }
}

static node *parse_concat(parser *p)
{
    node *first = parse_product(p);
    if (!at_op(p, "~"))
        return first;
    node *n = parser_node(p, N_CONCAT);
    add_item(p, n, NULL, first);
    while (parser_op(p, "~"))
        add_item(p, n, NULL, parse_product(p));
    return n;
}

static node *parse_sum(parser *p)
{
    node *n = parse_concat(p);
    for (;;) {
        if (parser_op(p, "+"))
            n = pair(p, N_BINARY, OP_ADD, n, parse_concat(p));
        else if (parser_op(p, "-"))
            n = pair(p, N_BINARY, OP_SUB, n, parse_concat(p));
        else
            return n;
    }
}

static int comparison(parser *p)
{
    static const char *const ops[] = {"==", "!=", "<", "<=", ">", ">="};
    for (int i = OP_EQ; i <= OP_GE; i++)
        if (parser_op(p, ops[i]))
            return i;
    if (parser_word(p, "in"))
        return OP_IN;
    if (parser_at_word(p, "not") && p->t[1].kind == K_NAME && str_is(p->t[1].s, "in")) {
        p->t += 2;
        return OP_NOT_IN;
    }
    return -1;
}

static node *parse_compare(parser *p)
{
    node *first = parse_sum(p), *n = NULL;
    for (int o; (o = comparison(p)) >= 0;) {
        if (n == NULL) {
            n = parser_node(p, N_COMPARE);
            n->a = first;
        }
        node *right = parse_sum(p);
        right = pair(p, N_COMPARE, o, right, NULL); /* carries the operator */
        add_item(p, n, NULL, right);
    }
    return n != NULL ? n : first;
}

static node *parse_not(parser *p)
{
    if (!parser_word(p, "not"))
        return parse_compare(p);
    deeper(p);
    node *n = pair(p, N_NOT, 0, parse_not(p), NULL);
    p->depth--;
    return n;
}

static node *parse_and(parser *p)
{
    node *n = parse_not(p);
    while (parser_word(p, "and"))
        n = pair(p, N_AND, 0, n, parse_not(p));
    return n;
}

static node *parse_or(parser *p)
{
    node *n = parse_and(p);
    while (parser_word(p, "or"))
        n = pair(p, N_OR, 0, n, parse_and(p));
    return n;
}

node *parse_expression(parser *p, bool conditional)
{
    deeper(p);
    node *n = parse_or(p);
    while (conditional && parser_word(p, "if")) {
        node *c = pair(p, N_COND, 0, n, parse_or(p));
        if (parser_word(p, "else"))
            c->c = parse_expression(p, true);
        n = c;
    }
    p->depth--;
    return n;
}

node *parse_tuple(parser *p, bool conditional)
{
    node *first = parse_expression(p, conditional);
    if (!at_op(p, ","))
        return first;
    node *n = parser_node(p, N_TUPLE);
    add_item(p, n, NULL, first);
    while (parser_op(p, ",")) {
        if (at_op(p, ")") || at_op(p, "=") || p->t->kind == K_VAR_END || p->t->kind == K_BLOCK_END || parser_at_word(p, "in"))
            break;
        add_item(p, n, NULL, parse_expression(p, conditional));
    }
    return n;
}

static node *target_name(parser *p)
{
    node *n = parser_node(p, N_NAME);
    n->name = parser_name(p);
    dict_set(p->m, p->known, value_string(n->name), value_bool(true));
    if (!parser_op(p, "."))
        return n;
    n->kind = N_NSREF;
    n->a = parser_node(p, N_NAME);
    n->a->name = parser_name(p);
    return n;
}

node *parse_target(parser *p)
{
    const bool parenthesis = parser_op(p, "(");
    node *first = target_name(p), *n = first;
    if (at_op(p, ",")) {
        n = parser_node(p, N_TUPLE);
        add_item(p, n, NULL, first);
        while (parser_op(p, ",") && p->t->kind == K_NAME && !parser_at_word(p, "in"))
            add_item(p, n, NULL, target_name(p));
    }
    if (parenthesis)
        parser_expect_op(p, ")");
    return n;
}
