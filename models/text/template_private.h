/* Private to the templates: memory, values, the tree, and what the files tell each other.
 * Inside this room an error does not return: template_fail writes the sentence and jumps to the public function, which frees the room.
 * Rule: nothing here owns memory but the room; no file, lock or malloc may be held across a call that can fail. */
#ifndef MOE_MODELS_TEXT_TEMPLATE_PRIVATE_H
#define MOE_MODELS_TEXT_TEMPLATE_PRIVATE_H

#include <setjmp.h>

#include "models/text/template.h"

/* --- memory --- */

typedef struct room_block {
    struct room_block *next;
    size_t used, bytes;
} room_block;

typedef struct room {
    room_block *block;
    size_t used, limit;
    int64_t steps; /* left; parsing has no limit but memory */
    int line;      /* of what is parsed or run at the moment, for errors */
    const char *name;
    moe_err rc;
    jmp_buf jump;
} room;

enum { MOST_NESTED = 200 }; /* lists in lists, when they are compared or printed */

_Noreturn void template_fail(room *m, moe_err code, const char *fmt, ...) MOE_PRINTF(3, 4) __attribute__((cold));
void *room_get(room *m, size_t bytes); /* zeroed, 16-byte aligned; fails instead of NULL */
void *room_array(room *m, size_t n, size_t size);
void room_step(room *m, int64_t n); /* fails when the steps are used up */
void room_free(room *m);

/* --- values --- */

typedef struct str { /* UTF-8; never changed once made */
    size_t n;
    char *p;
    uint8_t *mark; /* [n] 1: from the variables */
} str;

typedef enum value_type {
    V_UNDEFINED, V_NONE, V_BOOL, V_INT, V_FLOAT, V_STRING, V_LIST, V_TUPLE, V_DICT, V_NAMESPACE, V_MACRO, V_FUNCTION, V_LOOP, V_METHOD,
} value_type;

typedef struct value value;
typedef struct list list;
typedef struct dict dict;
typedef struct macro macro;
typedef struct loop_state loop_state;
typedef struct method method;

struct value {
    value_type type;
    union {
        int64_t i; /* bool too; V_FUNCTION: which */
        double f;
        const str *s; /* V_UNDEFINED: what was not there, or NULL */
        list *list;
        dict *dict; /* V_NAMESPACE too */
        const macro *macro;
        loop_state *loop;
        const method *method;
    };
};

struct list {
    value *v;
    size_t n, capacity;
};

struct dict { /* in order of insertion */
    value *key, *v;
    size_t n, capacity;
};

struct method {
    value self;
    const str *name;
};

struct loop_state {
    const list *items;
    int64_t at, depth;
    value changed;
    bool has_changed;
};

typedef struct buffer { /* a string that grows */
    room *m;
    char *p;
    uint8_t *mark;
    size_t n, capacity;
} buffer;

void buffer_add(buffer *b, const char *p, size_t n, bool mark);
void buffer_text(buffer *b, const char *text); /* not marked */
void buffer_str(buffer *b, const str *s);
void buffer_part(buffer *b, const str *s, size_t from, size_t to);
const str *buffer_take(buffer *b);

const str *str_new(room *m, const char *p, size_t n, bool mark);
const str *str_slice(room *m, const str *s, size_t from, size_t to); /* shares the bytes */
bool str_is(const str *s, const char *text);
bool str_equal(const str *a, const str *b);
size_t str_chars(const str *s);
size_t str_offset(const str *s, size_t chars); /* bytes of the first `chars` characters */
bool text_is_space(uint32_t cp);               /* Python's str.isspace */
const str *str_strip(room *m, const str *s, const str *chars, bool left, bool right); /* chars NULL: white space */

value value_none(void);
value value_bool(bool b);
value value_int(int64_t i);
value value_float(double f);
value value_string(const str *s);
value value_text(room *m, const char *text); /* not marked */
value value_undefined(room *m, const char *what);
value value_list(list *l);
value value_dict(dict *d);
list *list_new(room *m);
void list_add(room *m, list *l, value v);
dict *dict_new(room *m);
void dict_set(room *m, dict *d, value key, value v);
bool dict_get(room *m, const dict *d, const value *key, value *out);
bool dict_find(room *m, const dict *d, const char *key, value *out);

const char *value_name(const value *v); /* "a string", ... for messages */
bool value_true(const value *v);
bool value_equal(room *m, const value *a, const value *b, int depth);
int value_order(room *m, const value *a, const value *b); /* < 0, 0, > 0; fails when they have no order */
bool value_contains(room *m, const value *in, const value *v);
list *value_items(room *m, const value *v); /* what a for loop goes over; fails when it is not iterable */
const str *value_str(room *m, const value *v);  /* Python's str() */
void value_repr(buffer *b, const value *v, int depth);
int64_t value_whole(room *m, const value *v, const char *what); /* an int or a bool */
bool value_number(const value *v, double *out);

/* --- JSON --- */

typedef struct json_style {
    bool ascii, sort;
    int indent;             /* -1: on one line        */
    const str *indent_text; /* NULL: `indent` spaces  */
    const str *comma, *colon;
} json_style;

value template_json_read(room *m, const char *what, const char *text, size_t n, bool mark);
void template_json_write(buffer *b, const value *v, const json_style *style, int depth);

/* --- the tree --- */

typedef enum token_kind { K_DATA, K_VAR_BEGIN, K_VAR_END, K_BLOCK_BEGIN, K_BLOCK_END, K_NAME, K_STRING, K_INT, K_FLOAT, K_OP, K_END } token_kind;

typedef struct token {
    token_kind kind;
    int line;
    const str *s; /* of data, names, strings, operators */
    int64_t i;
    double f;
} token;

typedef struct token_list {
    token *t;
    size_t n, capacity;
} token_list;

void template_lex(room *m, const char *text, size_t n, token_list *out);

typedef enum node_kind {
    N_TEXT, N_OUTPUT, N_FOR, N_IF, N_SET, N_SET_BLOCK, N_MACRO, N_FILTER_BLOCK, N_BREAK, N_CONTINUE, N_GENERATION,
    N_CONST, N_NAME, N_LIST, N_TUPLE, N_DICT, N_COND, N_OR, N_AND, N_NOT, N_COMPARE, N_BINARY, N_NEG, N_POS, N_CONCAT, N_ATTR, N_ITEM,
    N_SLICE, N_CALL, N_FILTER, N_TEST, N_NSREF,
} node_kind;

typedef enum tree_op { OP_EQ, OP_NE, OP_LT, OP_LE, OP_GT, OP_GE, OP_IN, OP_NOT_IN, OP_ADD, OP_SUB, OP_MUL, OP_DIV, OP_FLOORDIV, OP_MOD, OP_POW } tree_op;

typedef struct node {
    node_kind kind;
    int line;
    int op;             /* N_BINARY; N_FILTER, N_TEST: index of the table */
    const str *name;
    value constant;
    struct node *a, *b, *c;      /* operands; for: target, iterable, condition                          */
    struct node *body, *other;   /* statements                                                           */
    struct node **item;          /* [n] elements, arguments, parameters, operands of a comparison        */
    const str **key;             /* [n] names of keyword arguments and parameters, NULL: positional      */
    int *ops;                    /* [n] of a comparison                                                   */
    int n;
    struct node *next;
} node;

struct macro {
    const node *n;
    struct frame *frame; /* where it was defined */
};

node *template_parse_all(room *m, const token_list *tokens);
const node *template_body(const chat_template *t, const char **name);

typedef struct parser {
    room *m;
    const token *t;
    int depth, loops;
    dict *known; /* names that the template itself binds: calls of others are refused */
    list *called; /* names that are called: [name, line] after each other            */
} parser;

/* Expressions (template_expr.c); tuple: a, b without parentheses is one. */
node *parse_expression(parser *p, bool conditional);
node *parse_tuple(parser *p, bool conditional);
node *parse_target(parser *p);
node *parse_filter_chain(parser *p, node *base);
node *parser_node(parser *p, node_kind kind);
bool parser_op(parser *p, const char *op);   /* takes it when it is next */
void parser_expect_op(parser *p, const char *op);
bool parser_word(parser *p, const char *word);
bool parser_at_word(const parser *p, const char *word);
const str *parser_name(parser *p);
_Noreturn void parser_fail(parser *p, const char *expected);

/* --- running --- */

typedef struct frame {
    struct frame *up;
    dict *names;
} frame;

typedef struct run {
    room *m;
    frame *frame;
    buffer *out;
    struct tm now;
    size_t max_output;
    int depth;
} run;

typedef struct arguments { /* evaluated */
    value *v;
    const str **key; /* NULL: positional */
    int n;
} arguments;

value template_eval(run *r, const node *n);
value template_call_macro(run *r, const macro *f, const arguments *a);
value template_call_function(run *r, int64_t which, const arguments *a);
int template_find_function(const str *name); /* -1: none */
value template_getattr(run *r, const value *v, const str *name, bool item_first);

/* Filters, tests and methods, by tables. */
int template_find_filter(const str *name);
value template_apply_filter(run *r, int which, value v, const arguments *a);
int template_find_test(const str *name);
bool template_apply_test(run *r, int which, value v, const arguments *a);
bool template_is_method(const str *name);
bool template_has_method(const value *v, const str *name);
value template_call_method(run *r, const method *f, const arguments *a);
const str *text_case(room *m, const str *s, int how); /* 'u', 'l', 'c' (capitalize), 't' (title) */

/* The i-th positional argument or the one named `key`; false: not given. */
bool argument(const arguments *a, int i, const char *key, value *out);
void arguments_at_most(room *m, const arguments *a, int most, const char *what);

#endif
