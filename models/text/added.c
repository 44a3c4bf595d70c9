/* A trie of the texts: nodes hold their first child and their next sibling. A table of first bytes skips the rest of the text
 * fast. Read-only once built. White space is Unicode's White_Space. */
#include "models/text/added.h"

#include <stdlib.h>
#include <string.h>

#include "models/text/unicode.h"
#include "models/text/utf8.h"

typedef struct node {
    int32_t child, sibling; /* 0: none (node 0 is the root) */
    int32_t token;          /* index, -1: no text ends here */
    char byte;
} node;

struct added_set {
    node *nodes;
    int32_t n, capacity;
    added_token *tokens;
    int32_t count;
    bool starts[256];
};

static moe_err new_node(added_set *s, char byte, int32_t *out)
{
    if (s->n == s->capacity) {
        const int32_t capacity = s->capacity * 2 + 256;
        node *nodes = s->capacity < INT32_MAX / 4 ? realloc(s->nodes, (size_t)capacity * sizeof *nodes) : NULL;
        if (!nodes)
            return moe_fail(MOE_E_OS, "no memory for added tokens");
        s->nodes = nodes;
        s->capacity = capacity;
    }
    s->nodes[s->n] = (node){.token = -1, .byte = byte};
    *out = s->n++;
    return MOE_OK;
}

moe_err added_open(added_set **out)
{
    added_set *s = *out = calloc(1, sizeof *s);
    int32_t root;
    if (s && new_node(s, 0, &root) == MOE_OK)
        return MOE_OK;
    added_close(s);
    *out = NULL;
    return moe_fail(MOE_E_OS, "no memory for added tokens");
}

void added_close(added_set *s)
{
    if (!s)
        return;
    free(s->nodes);
    free(s->tokens);
    free(s);
}

static int32_t find_child(const added_set *s, int32_t at, char byte)
{
    int32_t c = s->nodes[at].child;
    while (c && s->nodes[c].byte != byte)
        c = s->nodes[c].sibling;
    return c;
}

moe_err added_add(added_set *s, const char *text, size_t bytes, added_token token)
{
    if (bytes == 0)
        return moe_fail(MOE_E_DATA, "added token %d is empty", token.id);
    int32_t at = 0;
    for (size_t i = 0; i < bytes; i++) {
        int32_t c = find_child(s, at, text[i]);
        if (!c) {
            TRY(new_node(s, text[i], &c));
            s->nodes[c].sibling = s->nodes[at].child;
            s->nodes[at].child = c;
        }
        at = c;
    }
    if (s->nodes[at].token >= 0)
        return moe_fail(MOE_E_DATA, "added token \"%.*s\" is given twice", (int)(bytes < 60 ? bytes : 60), text);
    added_token *tokens = realloc(s->tokens, ((size_t)s->count + 1) * sizeof *tokens);
    if (!tokens)
        return moe_fail(MOE_E_OS, "no memory for added tokens");
    s->tokens = tokens;
    s->tokens[s->count] = token;
    s->nodes[at].token = s->count++;
    s->starts[(unsigned char)text[0]] = true;
    return MOE_OK;
}

static size_t strip_left(const char *text, size_t first, size_t from)
{
    while (first > from) {
        size_t i = first - 1;
        uint32_t cp;
        while (i > from && utf8_is_continuation(text[i]))
            i--;
        if (utf8_decode(text + i, first - i, &cp) != first - i || !utf8_is_space(cp))
            break;
        first = i;
    }
    return first;
}

static size_t strip_right(const char *text, size_t bytes, size_t last)
{
    while (last < bytes) {
        uint32_t cp;
        const size_t k = utf8_decode(text + last, bytes - last, &cp);
        if (k == 0 || !utf8_is_space(cp))
            break;
        last += k;
    }
    return last;
}

/* The longest token that begins at text[i]; its end in *last, -1 when none does. */
static int32_t longest_at(const added_set *s, const char *text, size_t bytes, size_t i, size_t *last)
{
    int32_t best = -1;
    for (int32_t at = find_child(s, 0, text[i]); at;) {
        i++;
        if (s->nodes[at].token >= 0) {
            best = s->nodes[at].token;
            *last = i;
        }
        at = i < bytes ? find_child(s, at, text[i]) : 0;
    }
    return best;
}

/* Neither the character before text[first, last) nor the one behind it is a word's. */
static bool stands_alone(const char *text, size_t bytes, size_t first, size_t last)
{
    uint32_t cp;
    size_t i = first;
    while (i > 0 && (i == first || utf8_is_continuation(text[i])))
        i--;
    if (first > 0 && utf8_decode(text + i, first - i, &cp) > 0 && unicode_is(UNICODE_WORD, cp))
        return false;
    return last == bytes || utf8_decode(text + last, bytes - last, &cp) == 0 || !unicode_is(UNICODE_WORD, cp);
}

bool added_find(const added_set *s, const char *text, size_t bytes, size_t from, bool specials, size_t *first, size_t *last,
                int32_t *id)
{
    for (size_t i = from; s->count > 0 && i < bytes;) {
        size_t end = 0;
        const int32_t token = s->starts[(unsigned char)text[i]] ? longest_at(s, text, bytes, i, &end) : -1;
        if (token < 0) {
            i++;
            continue;
        }
        const added_token *t = s->tokens + token;
        if ((t->special && !specials) || (t->single_word && !stands_alone(text, bytes, i, end))) {
            i = end;
            continue;
        }
        *first = t->lstrip ? strip_left(text, i, from) : i;
        *last = t->rstrip ? strip_right(text, bytes, end) : end;
        *id = t->id;
        return true;
    }
    return false;
}
