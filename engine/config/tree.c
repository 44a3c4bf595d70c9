#include "engine/config/tree.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

typedef struct reader {
    yaml_parser_t parser;
    config_origin origin;
    problems *p;
    tree_node *open[TREE_DEPTH_MAX]; /* lists and mappings that are not closed */
    int depth, nodes;
    char *key; /* read, its value not yet */
    config_origin key_at;
    tree_node *root;
    moe_err rc; /* MOE_E_OS: out of memory */
} reader;

static config_origin place(const reader *r, yaml_mark_t mark)
{
    config_origin at = r->origin;
    if (at.kind == ORIGIN_FILE) {
        at.line = (int)mark.line + 1;
        at.col = (int)mark.column + 1;
    }
    return at;
}

static bool refuse(reader *r, yaml_mark_t mark, const char *why)
{
    problems_add(r->p, place(r, mark), "", "%s", why);
    return false;
}

static bool out_of_memory(reader *r)
{
    r->rc = moe_fail(MOE_E_OS, "out of memory while reading %s", r->p->file);
    return false;
}

static void node_clear(tree_node *n)
{
    for (int i = 0; i < n->n; i++) /* as deep as TREE_DEPTH_MAX */
        node_clear(&n->child[i]);
    free(n->child);
    free(n->text);
    free(n->key);
}

void tree_free(tree_node *n)
{
    if (n)
        node_clear(n);
    free(n);
}

static tree_node *child_add(tree_node *parent)
{
    if (parent->n == parent->capacity) {
        const int capacity = parent->capacity ? parent->capacity * 2 : 8;
        tree_node *child = realloc(parent->child, (size_t)capacity * sizeof *child);
        if (!child)
            return NULL;
        parent->child = child;
        parent->capacity = capacity;
    }
    tree_node *n = &parent->child[parent->n++];
    memset(n, 0, sizeof *n);
    return n;
}

/* A place for the node that begins here: the root, the next item, or the value of the key just read. */
static tree_node *node_place(reader *r)
{
    if (r->depth == 0)
        return r->root;
    tree_node *parent = r->open[r->depth - 1];
    tree_node *n = child_add(parent);
    if (!n)
        return NULL;
    if (parent->kind == TREE_MAP) {
        n->key = r->key;
        n->key_at = r->key_at;
        r->key = NULL;
    }
    return n;
}

static bool takes_key(const reader *r) { return r->depth > 0 && r->open[r->depth - 1]->kind == TREE_MAP && !r->key; }

static bool begin_collection(reader *r, tree_kind kind, const yaml_event_t *e)
{
    if (takes_key(r))
        return refuse(r, e->start_mark, "expected a key, got a list or a mapping");
    if (r->depth == TREE_DEPTH_MAX)
        return refuse(r, e->start_mark, "lists and mappings are nested too deep");
    tree_node *n = node_place(r);
    if (!n)
        return out_of_memory(r);
    n->kind = kind;
    n->at = place(r, e->start_mark);
    /* The parent's array grows only while this node is closed, so the pointer stays good while it is on the stack. */
    r->open[r->depth++] = n;
    return true;
}

static bool add_key(reader *r, const yaml_event_t *e)
{
    const char *text = (const char *)e->data.scalar.value;
    const tree_node *map = r->open[r->depth - 1];
    r->key_at = place(r, e->start_mark);
    for (int i = 0; i < map->n; i++)
        if (strcmp(map->child[i].key, text) == 0) {
            char first[1024];
            problems_place(r->p, map->child[i].key_at, first, sizeof first);
            problems_add(r->p, r->key_at, text, "expected each key once, it is already at %s", first);
            break;
        }
    r->key = strdup(text);
    return r->key ? true : out_of_memory(r);
}

static bool add_scalar(reader *r, const yaml_event_t *e)
{
    const char *text = (const char *)e->data.scalar.value;
    if (strlen(text) != e->data.scalar.length)
        return refuse(r, e->start_mark, "expected text, got a NUL character");
    if (takes_key(r))
        return add_key(r, e);
    tree_node *n = node_place(r);
    if (!n)
        return out_of_memory(r);
    n->kind = TREE_SCALAR;
    n->at = place(r, e->start_mark);
    n->quoted = e->data.scalar.style != YAML_PLAIN_SCALAR_STYLE;
    n->text = strdup(text);
    return n->text ? true : out_of_memory(r);
}

/* Anchors and tags ride on the events of values. */
static bool is_decorated(const yaml_event_t *e)
{
    switch (e->type) {
    case YAML_SCALAR_EVENT:
        return e->data.scalar.anchor || e->data.scalar.tag;
    case YAML_SEQUENCE_START_EVENT:
        return e->data.sequence_start.anchor || e->data.sequence_start.tag;
    case YAML_MAPPING_START_EVENT:
        return e->data.mapping_start.anchor || e->data.mapping_start.tag;
    default:
        return false;
    }
}

/* False: stop reading. */
static bool take_event(reader *r, const yaml_event_t *e, int *documents)
{
    if (is_decorated(e))
        return refuse(r, e->start_mark, "anchors (&) and tags (!) are not supported: write the value where it is used");
    if (++r->nodes > 2 * TREE_NODES_MAX)
        return refuse(r, e->start_mark, "too many values for a configuration");
    switch (e->type) {
    case YAML_DOCUMENT_START_EVENT:
        return ++*documents == 1 || refuse(r, e->start_mark, "expected one document, got a second one (---)");
    case YAML_ALIAS_EVENT:
        return refuse(r, e->start_mark, "aliases (*) are not supported: write the value where it is used");
    case YAML_SCALAR_EVENT:
        return add_scalar(r, e);
    case YAML_SEQUENCE_START_EVENT:
        return begin_collection(r, TREE_LIST, e);
    case YAML_MAPPING_START_EVENT:
        return begin_collection(r, TREE_MAP, e);
    case YAML_SEQUENCE_END_EVENT:
    case YAML_MAPPING_END_EVENT:
        r->depth--;
        return true;
    default:
        return true;
    }
}

static void syntax_problem(reader *r)
{
    const yaml_parser_t *y = &r->parser;
    config_origin at = place(r, y->problem_mark);
    if (y->error == YAML_MEMORY_ERROR) {
        out_of_memory(r);
    } else if (y->error == YAML_READER_ERROR) {
        at.line = at.col = 0;
        problems_add(r->p, at, "", "expected UTF-8 text, found \"%s\" at byte %zu", y->problem, y->problem_offset);
    } else {
        problems_add(r->p, at, "", "not YAML: %s%s%s", y->context ? y->context : "", y->context ? ", " : "", y->problem);
    }
}

static unsigned hex4(const char *s)
{
    unsigned x = 0;
    for (int i = 0; i < 4; i++) {
        const char c = s[i] | 32;
        const unsigned digit = c >= '0' && c <= '9' ? (unsigned)(c - '0') : c >= 'a' && c <= 'f' ? (unsigned)(c - 'a' + 10) : 16;
        if (digit == 16)
            return 0;
        x = x << 4 | digit;
    }
    return x;
}

/* JSON writes characters past U+FFFF as two escapes, \ud83d\ude00, which YAML does not know: they become one, \U0001f600. */
static char *join_surrogates(const char *text, size_t bytes, size_t *joined)
{
    char *out = malloc(bytes + 1);
    size_t n = 0;
    for (size_t i = 0; out && i < bytes;) {
        const bool escape = text[i] == '\\' && i + 1 < bytes;
        const unsigned high = escape && i + 12 <= bytes && text[i + 1] == 'u' ? hex4(text + i + 2) : 0;
        const unsigned low = high >> 10 == 0x36 && text[i + 6] == '\\' && text[i + 7] == 'u' ? hex4(text + i + 8) : 0;
        if (low >> 10 == 0x37) {
            n += (size_t)sprintf(out + n, "\\U%08x", 0x10000 + ((high & 0x3ff) << 10) + (low & 0x3ff));
            i += 12;
        } else {
            for (int k = 0; k < 1 + escape; k++) /* an escaped backslash begins no escape */
                out[n++] = text[i++];
        }
    }
    *joined = n;
    return out;
}

/* A text whose first character is a brace. */
static bool looks_like_json(const char *text, size_t bytes)
{
    size_t i = 0;
    while (i < bytes && strchr(" \t\r\n", text[i]) && text[i])
        i++;
    return i < bytes && text[i] == '{';
}

moe_err tree_read(tree_node **out, const char *text, size_t bytes, config_origin origin, problems *p)
{
    reader r = {.origin = origin, .p = p};
    *out = NULL;
    char *json = NULL;
    r.root = calloc(1, sizeof *r.root);
    if (looks_like_json(text, bytes))
        text = json = join_surrogates(text, bytes, &bytes);
    if (!r.root || !text || !yaml_parser_initialize(&r.parser)) {
        free(r.root);
        free(json);
        return moe_fail(MOE_E_OS, "out of memory while reading %s", p->file);
    }
    r.root->at = origin;
    yaml_parser_set_encoding(&r.parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&r.parser, (const unsigned char *)text, bytes);
    int documents = 0;
    bool whole = false, more = true;
    while (more) {
        yaml_event_t e;
        if (!yaml_parser_parse(&r.parser, &e)) {
            syntax_problem(&r);
            break;
        }
        whole = e.type == YAML_STREAM_END_EVENT;
        more = take_event(&r, &e, &documents) && !whole;
        yaml_event_delete(&e);
    }
    yaml_parser_delete(&r.parser);
    free(r.key);
    free(json);
    if (r.rc != MOE_OK || !whole) {
        tree_free(r.root);
        return r.rc;
    }
    if (r.root->kind == TREE_SCALAR && !r.root->text && !(r.root->text = strdup(""))) {
        tree_free(r.root);
        return moe_fail(MOE_E_OS, "out of memory while reading %s", p->file);
    }
    *out = r.root;
    return MOE_OK;
}

bool tree_is_null(const tree_node *n)
{
    static const char *const null[] = {"", "~", "null", "Null", "NULL"};
    if (n->kind != TREE_SCALAR || n->quoted)
        return false;
    for (size_t i = 0; i < sizeof null / sizeof null[0]; i++)
        if (strcmp(n->text, null[i]) == 0)
            return true;
    return false;
}

const char *tree_describe(const tree_node *n, char *out, size_t size)
{
    enum { SHOWN = 60 }; /* bytes */
    if (n->kind == TREE_LIST)
        snprintf(out, size, "a list");
    else if (n->kind == TREE_MAP)
        snprintf(out, size, "a mapping");
    else if (tree_is_null(n))
        snprintf(out, size, "nothing");
    else {
        size_t shown = strlen(n->text) > SHOWN ? SHOWN : strlen(n->text);
        while (shown > 0 && (n->text[shown] & 0xC0) == 0x80) /* not inside a UTF-8 character */
            shown--;
        snprintf(out, size, "%s\"%.*s%s\"", n->quoted ? "the text " : "", (int)shown, n->text, n->text[shown] ? "..." : "");
    }
    return out;
}
