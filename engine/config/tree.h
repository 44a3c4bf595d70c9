/* YAML text -> a tree of scalars, lists and mappings with their places. The subset people write in configurations: block and flow
 * style, comments, quotes, one document; JSON is part of it. Anchors, aliases, tags and further documents are refused: they make a value
 * come from somewhere else than where it stands. Owns the tree. One thread. Rule: the text is hostile; every size has a limit. */
#ifndef MOE_ENGINE_CONFIG_TREE_H
#define MOE_ENGINE_CONFIG_TREE_H

#include <stdbool.h>
#include <stddef.h>

#include "engine/config/problems.h"

enum {
    TREE_BYTES_MAX = 1 << 20, /* of a file               */
    TREE_DEPTH_MAX = 16,      /* lists and mappings open */
    TREE_NODES_MAX = 1 << 14,
};

typedef enum tree_kind { TREE_SCALAR, TREE_LIST, TREE_MAP } tree_kind;

typedef struct tree_node {
    tree_kind kind;
    config_origin at;
    char *text;               /* TREE_SCALAR, NUL-terminated and without NULs inside */
    bool quoted;              /* TREE_SCALAR: 'x', "x" or a block, never a number or null */
    char *key;                /* of a mapping's child */
    config_origin key_at;
    struct tree_node *child;  /* of lists and mappings */
    int n, capacity;
} tree_node;

/* `origin` is that of the whole text: ORIGIN_FILE (lines and columns are filled in) or one ORIGIN_SET. Problems are added to p; after one
 * that ends the reading (all but repeated keys) *out is NULL. An empty text is a null scalar. MOE_E_OS only when out of memory. */
moe_err tree_read(tree_node **out, const char *text, size_t bytes, config_origin origin, problems *p) MOE_MUST_CHECK;
void tree_free(tree_node *n); /* NULL: no-op */

/* Plain "", ~ or null. */
bool tree_is_null(const tree_node *n);
/* What a sentence says it got: 10k, the string "x", a list, a mapping, nothing. Cut to the size of `out`. Returns out. */
const char *tree_describe(const tree_node *n, char *out, size_t size);

#endif
