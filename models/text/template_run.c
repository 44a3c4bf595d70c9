/* Statements of a template at work: scopes, loops, macros, output; and the public rendering. A loop's body, a macro and a block have
 * scopes of their own, an if has not. Owns the room of one rendering and frees it. Any thread, one rendering each. */
#include <stdlib.h>
#include <string.h>

#include "models/text/template_private.h"

typedef enum flow { FLOW_NEXT, FLOW_BREAK, FLOW_CONTINUE } flow;

static flow run_body(run *r, const node *n);

static void push(run *r, frame *f, frame *up)
{
    *f = (frame){.up = up, .names = dict_new(r->m)};
    r->frame = f;
}

static void assign(run *r, const node *target, value v)
{
    if (target->kind == N_NAME) {
        dict_set(r->m, r->frame->names, value_string(target->name), v);
        return;
    }
    if (target->kind == N_NSREF) {
        const node name = {.kind = N_NAME, .line = target->line, .name = target->name};
        const value ns = template_eval(r, &name);
        if (ns.type != V_NAMESPACE)
            template_fail(r->m, MOE_E_DATA, "cannot assign an attribute of %s; expected a namespace", value_name(&ns));
        dict_set(r->m, ns.dict, value_string(target->a->name), v);
        return;
    }
    const list *l = value_items(r->m, &v);
    if (l->n != (size_t)target->n)
        template_fail(r->m, MOE_E_DATA, "%zu values for %d names", l->n, target->n);
    for (int i = 0; i < target->n; i++)
        assign(r, target->item[i], l->v[i]);
}

/* The text of a body, run in a scope of its own. */
static const str *capture(run *r, const node *body, frame *up)
{
    buffer out = {.m = r->m}, *before = r->out;
    frame *f = room_get(r->m, sizeof *f), *here = r->frame;
    push(r, f, up);
    r->out = &out;
    run_body(r, body);
    r->out = before;
    r->frame = here;
    return buffer_take(&out);
}

value template_call_macro(run *r, const macro *m, const arguments *a)
{
    const node *n = m->n;
    frame *f = room_get(r->m, sizeof *f), *here = r->frame;
    push(r, f, m->frame);
    for (int i = 0; i < a->n; i++) {
        int k = i;
        if (a->key[i] != NULL)
            for (k = 0; k < n->n && !str_equal(n->key[k], a->key[i]);)
                k++;
        if (k >= n->n)
            template_fail(r->m, MOE_E_DATA, "macro \"%.*s\": %s", (int)n->name->n, n->name->p,
                          a->key[i] != NULL ? "an argument of an unknown name" : "too many arguments");
        dict_set(r->m, f->names, value_string(n->key[k]), a->v[i]);
    }
    for (int i = 0; i < n->n; i++) {
        const value key = value_string(n->key[i]);
        value v;
        if (dict_get(r->m, f->names, &key, &v))
            continue;
        v = n->item[i] != NULL ? template_eval(r, n->item[i]) : (value){.type = V_UNDEFINED, .s = n->key[i]};
        dict_set(r->m, f->names, key, v);
    }
    const str *text = capture(r, n->body, f);
    r->frame = here;
    return value_string(text);
}

static const list *loop_items(run *r, const node *n)
{
    const value v = template_eval(r, n->b);
    const list *all = value_items(r->m, &v);
    if (n->c == NULL)
        return all;
    list *some = list_new(r->m);
    frame *here = r->frame, *f = room_get(r->m, sizeof *f);
    for (size_t i = 0; i < all->n; i++) {
        push(r, f, here);
        assign(r, n->a, all->v[i]);
        const value c = template_eval(r, n->c);
        if (value_true(&c))
            list_add(r->m, some, all->v[i]);
    }
    r->frame = here;
    return some;
}

static void run_for(run *r, const node *n)
{
    const list *items = loop_items(r, n);
    frame *here = r->frame;
    loop_state *l = room_get(r->m, sizeof *l);
    *l = (loop_state){.items = items};
    const value loop = {.type = V_LOOP, .loop = l};
    if (items->n == 0)
        run_body(r, n->other);
    for (size_t i = 0; i < items->n; i++) {
        frame *f = room_get(r->m, sizeof *f);
        l->at = (int64_t)i;
        push(r, f, here);
        dict_set(r->m, f->names, value_text(r->m, "loop"), loop);
        assign(r, n->a, items->v[i]);
        const flow end = run_body(r, n->body);
        r->frame = here;
        if (end == FLOW_BREAK)
            break;
    }
}

static flow run_if(run *r, const node *n)
{
    for (; n != NULL && n->kind == N_IF; n = n->other) {
        const value v = template_eval(r, n->a);
        if (value_true(&v))
            return run_body(r, n->body);
        if (n->other == NULL || n->other->kind != N_IF || n->other->next != NULL)
            return run_body(r, n->other);
    }
    return FLOW_NEXT;
}

/* Filters of a block: the innermost one has no operand, the block's text takes its place. */
static value filter_text(run *r, const node *filter, const str *text)
{
    const node operand = {.kind = N_CONST, .line = filter->line, .constant = filter->a != NULL ? filter_text(r, filter->a, text) : value_string(text)};
    node f = *filter;
    f.a = (node *)&operand;
    return template_eval(r, &f);
}

static void write_out(run *r, const str *s)
{
    if (s->n > r->max_output - (r->out->n < r->max_output ? r->out->n : r->max_output))
        template_fail(r->m, MOE_E_DATA, "the text is longer than %zu bytes", r->max_output);
    room_step(r->m, 1 + (int64_t)s->n / 64);
    buffer_str(r->out, s);
}

static flow run_statement(run *r, const node *n)
{
    value v;
    switch (n->kind) {
    case N_TEXT: write_out(r, n->name); break;
    case N_OUTPUT:
        v = template_eval(r, n->a);
        write_out(r, value_str(r->m, &v));
        break;
    case N_FOR: run_for(r, n); break;
    case N_IF: return run_if(r, n);
    case N_SET: assign(r, n->a, template_eval(r, n->b)); break;
    case N_SET_BLOCK: {
        const str *text = capture(r, n->body, r->frame);
        assign(r, n->a, n->b != NULL ? filter_text(r, n->b, text) : value_string(text));
        break;
    }
    case N_FILTER_BLOCK:
        v = filter_text(r, n->b, capture(r, n->body, r->frame));
        write_out(r, value_str(r->m, &v));
        break;
    case N_GENERATION: write_out(r, capture(r, n->body, r->frame)); break;
    case N_MACRO: {
        macro *m = room_get(r->m, sizeof *m);
        *m = (macro){n, r->frame};
        dict_set(r->m, r->frame->names, value_string(n->name), (value){.type = V_MACRO, .macro = m});
        break;
    }
    case N_BREAK: return FLOW_BREAK;
    default: return FLOW_CONTINUE;
    }
    return FLOW_NEXT;
}

static flow run_body(run *r, const node *n)
{
    flow end = FLOW_NEXT;
    for (; n != NULL && end == FLOW_NEXT; n = n->next) {
        room_step(r->m, 1);
        r->m->line = n->line;
        end = run_statement(r, n);
    }
    return end;
}

/* --- rendering ---------------------------------------------------------------------------------------------------------------- */

static void add_names(run *r, const char *what, const char *text, size_t n, bool mark)
{
    const value v = template_json_read(r->m, what, text, n, mark);
    if (v.type != V_DICT)
        template_fail(r->m, MOE_E_DATA, "%s: expected an object, found %s", what, value_name(&v));
    for (size_t i = 0; i < v.dict->n; i++)
        dict_set(r->m, r->frame->names, v.dict->key[i], v.dict->v[i]);
}

static moe_err give(template_output *out, const buffer *b)
{
    size_t changes = 1;
    for (size_t i = 1; i < b->n; i++)
        changes += b->mark[i] != b->mark[i - 1];
    out->text = malloc(b->n + 1);
    out->segment = malloc(changes * sizeof *out->segment);
    if (out->text == NULL || out->segment == NULL) {
        template_output_free(out);
        return moe_fail(MOE_E_OS, "no memory for a text of %zu bytes", b->n);
    }
    if (b->n > 0)
        memcpy(out->text, b->p, b->n);
    out->text[out->n = b->n] = '\0';
    for (size_t i = 0; i < b->n; i++)
        if (i == 0 || b->mark[i] != b->mark[i - 1])
            out->segment[out->segments++] = (template_segment){i, b->mark[i]};
    return MOE_OK;
}

moe_err template_render(const chat_template *t, const template_input *in, template_output *out)
{
    room m = {
        .limit = in->max_memory ? in->max_memory : (size_t)256 << 20, .steps = in->max_steps ? in->max_steps : 10000000, .line = 1,
    };
    frame global = {0};
    buffer text = {.m = &m};
    run r = {.m = &m, .frame = &global, .out = &text, .now = in->now, .max_output = in->max_output ? in->max_output : (size_t)16 << 20};
    const node *body = template_body(t, &m.name);
    *out = (template_output){0};
    if (setjmp(m.jump) != 0) {
        room_free(&m);
        return m.rc;
    }
    global.names = dict_new(&m);
    add_names(&r, "variables", in->variables, in->variables_bytes, true);
    if (in->trusted != NULL)
        add_names(&r, "trusted variables", in->trusted, in->trusted_bytes, false);
    run_body(&r, body);
    const moe_err rc = give(out, &text);
    room_free(&m);
    return rc;
}

void template_output_free(template_output *o)
{
    free(o->text);
    free(o->segment);
    *o = (template_output){0};
}
