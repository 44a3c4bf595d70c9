/* The keys below `model:`, by the tables of the families: typed values, then the spec. */
#include <stdlib.h>
#include <string.h>

#include "engine/config/detail.h"

typedef struct key_list {
    const model_family *family;
} key_list;

static const char *key_at(const void *ctx, int i)
{
    static const char *const own[] = {"model_type", "from"};
    const model_family *f = ((const key_list *)ctx)->family;
    if (i < f->nkeys)
        return f->keys[i].name;
    return i - f->nkeys < 2 ? own[i - f->nkeys] : NULL;
}

static const char *nearest_key(const model_family *f, const char *name)
{
    const key_list k = {f};
    return text_nearest(name, key_at, &k);
}

/* Of those that are trained. */
static const char *family_name_at(const void *ctx, int i)
{
    const model_family *f;
    (void)ctx;
    for (int k = 0; (f = model_family_at(k)) != NULL; k++)
        if (!f->served_only && i-- == 0)
            return f->model_type;
    return NULL;
}

static void list_families(text_buf *t)
{
    const char *name;
    for (int i = 0; (name = family_name_at(NULL, i)) != NULL; i++)
        text_printf(t, "%s%s", i ? ", " : "", name);
}

static bool is_plain(const tree_node *n) { return n->kind == TREE_SCALAR && !n->quoted; }

static bool take_ints(model_value *v, const tree_node *n)
{
    if (n->kind != TREE_LIST)
        return false;
    int64_t *ints = calloc((size_t)n->n + 1, sizeof *ints);
    for (int i = 0; i < n->n; i++)
        if (!ints || !is_plain(&n->child[i]) || !text_parse_int(n->child[i].text, &ints[i])) {
            free(ints);
            return false;
        }
    v->ints = ints;
    v->nints = n->n;
    return ints != NULL;
}

static bool take_value(const model_key *k, model_value *v, const tree_node *n)
{
    static const char *const expected_bool[] = {"false", "False", "FALSE", "true", "True", "TRUE"};
    *v = (model_value){.set = true};
    if (tree_is_null(n)) { /* whether null means something is the family's to say */
        v->null = true;
        return true;
    }
    switch (k->kind) {
    case MODEL_INT:
        if (!is_plain(n) || !text_parse_int(n->text, &v->integer))
            return false;
        v->number = (double)v->integer;
        return true;
    case MODEL_NUMBER:
        return is_plain(n) && text_parse_double(n->text, &v->number);
    case MODEL_BOOL:
        for (int i = 0; i < 6 && is_plain(n); i++)
            if (strcmp(n->text, expected_bool[i]) == 0) {
                v->boolean = i >= 3;
                return true;
            }
        return false;
    case MODEL_INTS:
        return take_ints(v, n);
    case MODEL_STRING:
        return n->kind == TREE_SCALAR && (v->string = strdup(n->text)) != NULL;
    }
    return false;
}

static void take_entry(config_detail *d, const config_entry *e, problems *p)
{
    static const char *const expected[] = {"a whole number", "a number", "true or false", "a list of whole numbers", "text"};
    const char *name = e->path + strlen("model.");
    char got[160];
    for (int i = 0; i < d->family->nkeys; i++) {
        const model_key *k = &d->family->keys[i];
        if (strcmp(k->name, name) != 0)
            continue;
        model_values_free(&d->values[i], 1);
        d->value[i].at = e->node->at;
        if (!take_value(k, &d->values[i], e->node)) {
            d->value[i].bad = true;
            problems_add(p, e->node->at, e->path, "expected %s, got %s", expected[k->kind],
                         tree_describe(e->node, got, sizeof got));
        }
        return;
    }
    const char *near = nearest_key(d->family, name);
    if (near)
        problems_add(p, e->at, e->path, "unknown key; did you mean model.%s?", near);
    else
        problems_add(p, e->at, e->path, "unknown key of model_type %s", d->family->model_type);
}

static bool is_own_key(const config_entry *e)
{
    return strcmp(e->path, "model.from") == 0 || strcmp(e->path, "model.model_type") == 0;
}

static moe_err fill_defaults(config_detail *d)
{
    const int n = d->family->nkeys;
    d->values = calloc((size_t)n, sizeof *d->values);
    d->value = calloc((size_t)n, sizeof *d->value);
    if (!d->values || !d->value)
        return moe_fail(MOE_E_OS, "out of memory for the model's keys");
    for (int i = 0; i < n; i++)
        TRY(model_value_default(&d->values[i], &d->family->keys[i]));
    return MOE_OK;
}

/* Where the key that a family's sentence speaks of was given: the first name of a key in it. */
static void blame(const config_detail *d, const char *sentence, problems *p)
{
    const char *first = NULL;
    config_origin at = d->model_type_at;
    for (int i = 0; i < d->family->nkeys; i++) {
        const char *name = d->family->keys[i].name;
        const size_t n = strlen(name);
        for (const char *s = strstr(sentence, name); s; s = strstr(s + 1, name)) {
            const bool word = (s == sentence || !strchr("abcdefghijklmnopqrstuvwxyz_", s[-1])) &&
                              !(s[n] && strchr("abcdefghijklmnopqrstuvwxyz_", s[n]));
            if (word && (!first || s < first)) {
                first = s;
                at = d->value[i].at.kind == ORIGIN_DEFAULT ? d->model_type_at : d->value[i].at;
            }
        }
    }
    if (first == sentence)
        problems_add(p, at, "", "model.%s", sentence);
    else
        problems_add(p, at, "model", "%s", sentence);
}

static bool find_family(config_detail *d, const config_entries *list, config_origin section, problems *p)
{
    const config_entry *given = NULL;
    for (int i = 0; i < list->n; i++)
        if (strcmp(list->item[i].path, "model.model_type") == 0)
            given = &list->item[i];
    text_buf names = {0};
    list_families(&names);
    if (!given) {
        problems_add(p, section, "model.model_type", "expected one of %s (or model.from: a Hugging Face folder), got nothing",
                     names.data);
    } else {
        char got[160];
        d->model_type_at = given->node->at;
        d->family = given->node->kind == TREE_SCALAR ? model_family_find(given->node->text) : NULL;
        const char *near = given->node->kind == TREE_SCALAR ? text_nearest(given->node->text, family_name_at, NULL) : NULL;
        if (!d->family)
            problems_add(p, given->node->at, given->path, "expected one of %s, got %s%s%s%s", names.data,
                         tree_describe(given->node, got, sizeof got), near ? "; did you mean " : "", near ? near : "",
                         near ? "?" : "");
        if (d->family && d->family->served_only) {
            problems_add(p, given->node->at, given->path, "%s models are served, not trained: %s", d->family->model_type, d->family->served_only);
            d->family = NULL;
        }
    }
    text_free(&names);
    return d->family != NULL;
}

moe_err model_keys_take(train_config *c, const config_entries *list, config_origin section, problems *p)
{
    config_detail *d = c->detail;
    if (c->model_from) {
        for (int i = 0; i < list->n; i++)
            if (strncmp(list->item[i].path, "model.", 6) == 0 && strcmp(list->item[i].path, "model.from") != 0)
                problems_add(p, list->item[i].at, list->item[i].path,
                             "expected no other model key beside model.from: the folder's config.json has them");
        return MOE_OK;
    }
    if (!find_family(d, list, section, p))
        return MOE_OK;
    TRY(fill_defaults(d));
    const int before = problems_count(p);
    for (int i = 0; i < list->n; i++)
        if (strncmp(list->item[i].path, "model.", 6) == 0 && !is_own_key(&list->item[i]))
            take_entry(d, &list->item[i], p);
    if (problems_count(p) > before)
        return MOE_OK;
    const moe_err rc = d->family->build(&c->model, d->values);
    if (rc == MOE_OK) {
        d->model_ready = true;
    } else if (rc == MOE_E_CONFIG) {
        char sentence[MOE_ERROR_TEXT];
        moe_error_take(sentence, sizeof sentence);
        blame(d, sentence, p);
    } else {
        return rc;
    }
    return MOE_OK;
}
