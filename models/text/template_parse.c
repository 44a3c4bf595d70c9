/* Statements of a template: tokens become a tree. Owns nothing; the parsed template owns the room in which all of it lies.
 * One thread. Rule: whatever the parser does not know is an error that names it and its line. */
#include <stdlib.h>
#include <string.h>

#include "models/text/template_private.h"
#include "models/text/utf8.h"

enum { PARSE_MEMORY = 256 << 20, MOST_BLOCKS = 100 };

struct chat_template {
    room m;
    char *name;
    node *body;
};

typedef struct body_end { /* words that end a body */
    const char *word[4];
} body_end;

static node *parse_body(parser *p, const body_end *end);

/* A body whose text is captured: no loop outside of it can be left from within. */
static node *parse_captured(parser *p, const char *end)
{
    const int loops = p->loops;
    p->loops = 0;
    node *body = parse_body(p, &(body_end){{end}});
    p->loops = loops;
    return body;
}

static void end_block(parser *p)
{
    if (p->t->kind != K_BLOCK_END)
        parser_fail(p, "\"%}\"");
    p->t++;
}

static node *parse_for(parser *p)
{
    node *n = parser_node(p, N_FOR);
    n->a = parse_target(p);
    if (n->a->kind == N_NSREF)
        template_fail(p->m, MOE_E_DATA, "a loop over an attribute is not supported");
    if (!parser_word(p, "in"))
        parser_fail(p, "\"in\"");
    n->b = parse_tuple(p, false);
    if (parser_word(p, "if"))
        n->c = parse_expression(p, true);
    if (parser_at_word(p, "recursive"))
        template_fail(p->m, MOE_E_DATA, "recursive loops are not supported");
    end_block(p);
    p->loops++;
    n->body = parse_body(p, &(body_end){{"else", "endfor"}});
    p->loops--;
    if (parser_word(p, "else")) {
        end_block(p);
        n->other = parse_body(p, &(body_end){{"endfor"}});
    }
    p->t++;
    end_block(p);
    return n;
}

static node *parse_if(parser *p)
{
    node *first = parser_node(p, N_IF), *n = first;
    for (;;) {
        n->a = parse_tuple(p, true);
        end_block(p);
        n->body = parse_body(p, &(body_end){{"elif", "else", "endif"}});
        if (!parser_word(p, "elif"))
            break;
        n = n->other = parser_node(p, N_IF);
    }
    if (parser_word(p, "else")) {
        end_block(p);
        n->other = parse_body(p, &(body_end){{"endif"}});
    }
    p->t++;
    end_block(p);
    return first;
}

static node *parse_set(parser *p)
{
    node *n = parser_node(p, N_SET);
    n->a = parse_target(p);
    if (parser_op(p, "=")) {
        n->b = parse_tuple(p, true);
        end_block(p);
        return n;
    }
    n->kind = N_SET_BLOCK;
    if (n->a->kind == N_TUPLE)
        parser_fail(p, "\"=\"");
    if (parser_op(p, "|"))
        n->b = parse_filter_chain(p, NULL);
    end_block(p);
    n->body = parse_captured(p, "endset");
    p->t++;
    end_block(p);
    return n;
}

static node *parse_macro(parser *p)
{
    node *n = parser_node(p, N_MACRO);
    node *item[64], *fallback[64];
    n->name = parser_name(p);
    dict_set(p->m, p->known, value_string(n->name), value_bool(true));
    parser_expect_op(p, "(");
    while (!parser_op(p, ")")) {
        if (n->n == 64)
            template_fail(p->m, MOE_E_DATA, "a macro has more than 64 parameters");
        item[n->n] = parser_node(p, N_NAME);
        item[n->n]->name = parser_name(p);
        dict_set(p->m, p->known, value_string(item[n->n]->name), value_bool(true));
        fallback[n->n] = parser_op(p, "=") ? parse_expression(p, true) : NULL;
        if (fallback[n->n] == NULL && n->n > 0 && fallback[n->n - 1] != NULL)
            template_fail(p->m, MOE_E_DATA, "a parameter without a default behind one with it");
        n->n++;
        if (!(p->t->kind == K_OP && str_is(p->t->s, ")")))
            parser_expect_op(p, ",");
    }
    n->item = room_array(p->m, 64, sizeof(node *)); /* the defaults */
    n->key = room_array(p->m, 64, sizeof(str *));
    for (int i = 0; i < n->n; i++) {
        n->item[i] = fallback[i];
        n->key[i] = item[i]->name;
    }
    end_block(p);
    n->body = parse_captured(p, "endmacro");
    p->t++;
    if (p->t->kind == K_NAME)
        p->t++;
    end_block(p);
    return n;
}

static node *parse_filter_block(parser *p)
{
    node *n = parser_node(p, N_FILTER_BLOCK);
    n->b = parse_filter_chain(p, NULL);
    end_block(p);
    n->body = parse_captured(p, "endfilter");
    p->t++;
    end_block(p);
    return n;
}

static node *parse_generation(parser *p)
{
    node *n = parser_node(p, N_GENERATION);
    end_block(p);
    n->body = parse_captured(p, "endgeneration");
    p->t++;
    end_block(p);
    return n;
}

static node *parse_jump(parser *p, node_kind kind)
{
    node *n = parser_node(p, kind);
    if (p->loops == 0)
        template_fail(p->m, MOE_E_DATA, "break and continue belong into a loop");
    end_block(p);
    return n;
}

static node *parse_statement(parser *p)
{
    p->m->line = p->t->line;
    if (parser_word(p, "for"))
        return parse_for(p);
    if (parser_word(p, "if"))
        return parse_if(p);
    if (parser_word(p, "set"))
        return parse_set(p);
    if (parser_word(p, "macro"))
        return parse_macro(p);
    if (parser_word(p, "filter"))
        return parse_filter_block(p);
    if (parser_word(p, "generation"))
        return parse_generation(p);
    if (parser_word(p, "break"))
        return parse_jump(p, N_BREAK);
    if (parser_word(p, "continue"))
        return parse_jump(p, N_CONTINUE);
    const str *name = parser_name(p);
    template_fail(p->m, MOE_E_DATA, "the statement \"%.*s\" is not supported here", (int)(name->n < 40 ? name->n : 40), name->p);
}

static node *parse_output(parser *p)
{
    node *n = parser_node(p, N_OUTPUT);
    n->a = parse_tuple(p, true);
    if (p->t->kind != K_VAR_END)
        parser_fail(p, "\"}}\"");
    p->t++;
    return n;
}

/* Statements up to {% word of one of `end`; the parser then stands at that word. end NULL: up to the end of the text. */
static node *parse_body(parser *p, const body_end *end)
{
    node *first = NULL, **last = &first;
    if (++p->depth > MOST_BLOCKS)
        template_fail(p->m, MOE_E_DATA, "statements nest deeper than %d", MOST_BLOCKS);
    for (;;) {
        node *n;
        if (p->t->kind == K_END) {
            if (end != NULL)
                parser_fail(p, end->word[1] == NULL ? end->word[0] : "the end of a statement");
            break;
        } else if (p->t->kind == K_DATA) {
            n = parser_node(p, N_TEXT);
            n->name = p->t++->s;
        } else if (p->t->kind == K_VAR_BEGIN) {
            p->t++;
            n = parse_output(p);
        } else {
            p->t++; /* "{%" */
            bool ended = false;
            for (int i = 0; end != NULL && i < 4 && end->word[i] != NULL; i++)
                ended |= parser_at_word(p, end->word[i]);
            if (ended)
                break;
            n = parse_statement(p);
        }
        *last = n;
        last = &n->next;
    }
    p->depth--;
    return first;
}

/* What is called by a bare name must be a function, or something that the template itself binds. */
static void check_calls(parser *p)
{
    for (size_t i = 0; i < p->called->n; i += 2) {
        const str *name = p->called->v[i].s;
        value v;
        p->m->line = (int)p->called->v[i + 1].i;
        if (template_find_function(name) < 0 && !dict_get(p->m, p->known, &p->called->v[i], &v))
            template_fail(p->m, MOE_E_DATA, "the function \"%.*s\" is not supported", (int)(name->n < 40 ? name->n : 40), name->p);
    }
}

node *template_parse_all(room *m, const token_list *tokens)
{
    parser p = {.m = m, .t = tokens->t, .known = dict_new(m), .called = list_new(m)};
    node *body = parse_body(&p, NULL);
    check_calls(&p);
    return body;
}

moe_err template_open(chat_template **out, const char *name, const char *text, size_t n)
{
    *out = NULL;
    if (n > TEMPLATE_MAX_BYTES)
        return moe_fail(MOE_E_DATA, "%s: a template of %zu bytes; expected at most %d", name, n, TEMPLATE_MAX_BYTES);
    if (utf8_valid_prefix(text, n) < n)
        return moe_fail(MOE_E_DATA, "%s: not valid UTF-8", name);
    chat_template *t = calloc(1, sizeof *t);
    if (t == NULL || (t->name = strdup(name)) == NULL) {
        free(t);
        return moe_fail(MOE_E_OS, "no memory for a template");
    }
    t->m = (room){.limit = PARSE_MEMORY, .steps = INT64_MAX, .name = t->name, .line = 1};
    if (setjmp(t->m.jump) != 0) {
        const moe_err rc = t->m.rc;
        template_close(t);
        return rc;
    }
    token_list tokens = {0};
    template_lex(&t->m, text, n, &tokens);
    t->body = template_parse_all(&t->m, &tokens);
    *out = t;
    return MOE_OK;
}

void template_close(chat_template *t)
{
    if (t == NULL)
        return;
    room_free(&t->m);
    free(t->name);
    free(t);
}

const node *template_body(const chat_template *t, const char **name)
{
    *name = t->name;
    return t->body;
}
