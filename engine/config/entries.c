/* From the tree of a YAML text to a flat list of (whole name, value), with unknown names told at once. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/config/detail.h"

enum { CANDIDATES_MAX = 2 * KNOBS_MAX, CANDIDATE_BYTES = 48 };

typedef struct candidates {
    char name[CANDIDATES_MAX][CANDIDATE_BYTES];
    int n;
} candidates;

static const char *candidate_at(const void *ctx, int i)
{
    const candidates *c = ctx;
    return i < c->n ? c->name[i] : NULL;
}

static void candidate_add(candidates *c, const char *name, size_t bytes)
{
    for (int i = 0; i < c->n; i++)
        if (strlen(c->name[i]) == bytes && strncmp(c->name[i], name, bytes) == 0)
            return;
    if (c->n < CANDIDATES_MAX)
        snprintf(c->name[c->n++], CANDIDATE_BYTES, "%.*s", (int)bytes, name);
}

/* The names that may follow `prefix` ("" or "optimizer."). */
static void children_of(candidates *c, const char *prefix)
{
    const size_t n = strlen(prefix);
    c->n = 0;
    for (int i = 0; i < config_nknobs; i++)
        if (strncmp(config_knobs[i].name, prefix, n) == 0)
            candidate_add(c, config_knobs[i].name + n, strcspn(config_knobs[i].name + n, "."));
}

/* A knob with this last word in another section, or NULL. */
static const char *elsewhere(const char *leaf)
{
    candidates c = {.n = 0};
    for (int i = 0; i < config_nknobs; i++) {
        const char *last = strrchr(config_knobs[i].name, '.') + 1;
        candidate_add(&c, last, strlen(last));
    }
    const char *near = text_nearest(leaf, candidate_at, &c);
    for (int i = 0; near && i < config_nknobs; i++)
        if (strcmp(strrchr(config_knobs[i].name, '.') + 1, near) == 0)
            return config_knobs[i].name;
    return NULL;
}

static void unknown_key(const char *path, config_origin at, problems *p)
{
    char prefix[160];
    const char *dot = strrchr(path, '.');
    const char *leaf = dot ? dot + 1 : path;
    candidates c;
    snprintf(prefix, sizeof prefix, "%.*s", (int)(leaf - path), path);
    children_of(&c, prefix);
    const char *near = text_nearest(leaf, candidate_at, &c);
    if (near) {
        problems_add(p, at, path, "unknown key; did you mean %s%s?", prefix, near);
        return;
    }
    const char *other = elsewhere(leaf);
    if (other) {
        problems_add(p, at, path, "unknown key; did you mean %s?", other);
        return;
    }
    text_buf t = {0};
    for (int i = 0; i < c.n; i++)
        text_printf(&t, "%s%s", i ? ", " : "", c.name[i]);
    problems_add(p, at, path, "unknown key%s%s", t.used ? "; expected one of: " : "", t.used ? t.data : "");
    text_free(&t);
}

static moe_err entry_add(config_entries *list, const char *path, const tree_node *node, config_origin at, const problems *p)
{
    if (list->n == list->capacity) {
        const int capacity = list->capacity ? list->capacity * 2 : 64;
        config_entry *item = realloc(list->item, (size_t)capacity * sizeof *item);
        if (!item)
            return moe_fail(MOE_E_OS, "out of memory while reading %s", p->file);
        list->item = item;
        list->capacity = capacity;
    }
    config_entry *e = &list->item[list->n++];
    snprintf(e->path, sizeof e->path, "%s", path);
    e->node = node;
    e->at = at;
    return MOE_OK;
}

static bool is_model_key(const char *path) { return strncmp(path, "model.", 6) == 0 && path[6] && !strchr(path + 6, '.'); }

moe_err entries_collect(config_entries *list, const char *path, const tree_node *node, config_origin at, problems *p)
{
    if (knob_find(path) >= 0 || is_model_key(path))
        return entry_add(list, path, node, at, p);
    if (*path && !knob_is_section(path)) {
        unknown_key(path, at, p);
        return MOE_OK;
    }
    if (tree_is_null(node)) /* a section with all its keys commented out */
        return MOE_OK;
    if (node->kind != TREE_MAP) {
        char got[160];
        problems_add(p, node->at, path, "expected a mapping of keys, got %s", tree_describe(node, got, sizeof got));
        return MOE_OK;
    }
    for (int i = 0; i < node->n; i++) {
        const tree_node *child = &node->child[i];
        char name[160];
        const int n = snprintf(name, sizeof name, "%s%s%s", path, *path ? "." : "", child->key);
        if (strchr(child->key, '.') || n >= (int)sizeof name)
            problems_add(p, child->key_at, name, "unknown key; a key is one word, its section is the mapping around it");
        else
            TRY(entries_collect(list, name, child, child->key_at, p)); /* as deep as TREE_DEPTH_MAX */
    }
    return MOE_OK;
}
