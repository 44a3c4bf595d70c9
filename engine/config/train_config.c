#include "engine/config/train_config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/config/detail.h"
#include "models/formats/hf.h"

/* A reading under way. */
typedef struct reading {
    train_config *c;
    problems p;
    tree_node *root;
    tree_node **set; /* the value of each --set */
    int nsets;
    config_entries entries;
} reading;

value_state *config_state(const train_config *c, const char *name) { return &c->detail->knob[knob_find(name)]; }

static moe_err no_memory(const char *source) { return moe_fail(MOE_E_OS, "out of memory while reading %s", source); }

/* --- paths ---------------------------------------------------------------------------------------------------------------- */

/* `path` as seen from the folder of the file `source`, absolute; NULL: out of memory. */
static char *absolute_path(const char *source, const char *path)
{
    text_buf t = {0};
    char *out, *here = NULL;
    const char *slash = strrchr(source, '/');
    if (path[0] != '/') {
        if (source[0] != '/' && (here = getcwd(NULL, 0)) != NULL)
            text_printf(&t, "%s/", here);
        if (slash)
            text_add_bytes(&t, source, (size_t)(slash - source) + 1);
    }
    free(here);
    text_add(&t, path);
    return text_take(&t, &out) == MOE_OK ? out : NULL;
}

/* The name of the file without folder and suffix. */
static char *name_of(const char *source)
{
    const char *slash = strrchr(source, '/');
    const char *base = slash ? slash + 1 : source;
    const char *dot = strrchr(base, '.');
    return dot && dot > base ? strndup(base, (size_t)(dot - base)) : strdup(base);
}

/* --- steps of reading ----------------------------------------------------------------------------------------------------- */

static moe_err take_file(reading *r, const char *text, size_t bytes)
{
    const config_origin whole = {.kind = ORIGIN_FILE};
    TRY(tree_read(&r->root, text, bytes, whole, &r->p));
    return r->root ? entries_collect(&r->entries, "", r->root, whole, &r->p) : MOE_OK;
}

static moe_err take_set(reading *r, int i)
{
    const char *text = r->p.sets[i], *equals = strchr(text, '=');
    const config_origin origin = {.kind = ORIGIN_SET, .set = i};
    char path[160];
    if (!equals || equals == text) {
        problems_add(&r->p, origin, "", "expected key=value, like optimizer.lr=1e-4");
        return MOE_OK;
    }
    TRY(tree_read(&r->set[i], equals + 1, strlen(equals + 1), origin, &r->p));
    if (!r->set[i])
        return MOE_OK;
    snprintf(path, sizeof path, "%.*s", (int)(equals - text), text);
    return entries_collect(&r->entries, path, r->set[i], origin, &r->p);
}

static moe_err assign_text(train_config *c, const knob *k, const char *text, problems *p)
{
    tree_node scalar = {.kind = TREE_SCALAR, .text = (char *)text}, *list = NULL;
    if (text[0] == '[')
        TRY(tree_read(&list, text, strlen(text), (config_origin){0}, p));
    if (!knob_assign(k, c, list ? list : &scalar, p))
        problems_add(p, (config_origin){0}, k->name, "the default in the table is wrong: %s", text);
    tree_free(list);
    return MOE_OK;
}

static moe_err take_defaults(reading *r)
{
    for (int i = 0; i < config_nknobs; i++)
        if (config_knobs[i].fallback)
            TRY(assign_text(r->c, &config_knobs[i], config_knobs[i].fallback, &r->p));
    return MOE_OK;
}

static void take_entries(reading *r)
{
    for (int i = 0; i < r->entries.n; i++) {
        const config_entry *e = &r->entries.item[i];
        const int k = knob_find(e->path);
        if (k < 0)
            continue;
        value_state *s = &r->c->detail->knob[k];
        s->at = e->node->at;
        if (!knob_assign(&config_knobs[k], r->c, e->node, &r->p))
            s->bad = true;
    }
}

/* Where a missing key of `section` would stand: at the section, else at the top of the file. */
static config_origin section_at(const reading *r, const char *section, size_t bytes)
{
    for (int i = 0; i < r->root->n; i++)
        if (r->root->kind == TREE_MAP && strlen(r->root->child[i].key) == bytes &&
            strncmp(r->root->child[i].key, section, bytes) == 0)
            return r->root->child[i].key_at;
    return (config_origin){.kind = ORIGIN_FILE, .line = 1, .col = 1};
}

static void refuse_missing(reading *r)
{
    for (int i = 0; i < config_nknobs; i++) {
        const knob *k = &config_knobs[i];
        value_state *s = &r->c->detail->knob[i];
        if (k->fallback || k->derived || s->at.kind != ORIGIN_DEFAULT)
            continue;
        text_buf t = {0};
        knob_expected(k, &t);
        problems_add(&r->p, section_at(r, k->name, strcspn(k->name, ".")), k->name, "expected %s, got nothing (required: %s)",
                     t.data, k->help);
        text_free(&t);
        s->bad = true;
    }
}

static moe_err take_model(reading *r)
{
    train_config *c = r->c;
    if (config_state(c, "model.from")->bad)
        return MOE_OK;
    TRY(model_keys_take(c, &r->entries, section_at(r, "model", strlen("model")), &r->p));
    if (!c->model_from || problems_count(&r->p) > 0)
        return MOE_OK;
    c->detail->from_written = c->model_from;
    c->model_from = absolute_path(c->source, c->detail->from_written);
    if (!c->model_from)
        return no_memory(c->source);
    moe_err rc = hf_config_load(&c->model, c->model_from);
    const model_family *f = rc == MOE_OK ? model_family_find(c->model.model_type) : NULL;
    if (f && f->served_only)
        rc = moe_fail(MOE_E_CONFIG, "%s/config.json: model_type is %s, which is served, not trained: %s", c->model_from, f->model_type, f->served_only);
    if (rc != MOE_OK) { /* its own exit code: the folder may be missing */
        char place[1024], sentence[MOE_ERROR_TEXT];
        moe_error_take(sentence, sizeof sentence);
        return moe_fail(rc, "%s: model.from: %s", problems_place(&r->p, config_state(c, "model.from")->at, place, sizeof place),
                        sentence);
    }
    c->detail->model_ready = true;
    return MOE_OK;
}

static void derive(train_config *c)
{
    if (config_state(c, "train.micro_batch_tokens")->at.kind == ORIGIN_DEFAULT)
        c->micro_batch_tokens = c->tokens_per_step;
    if (config_state(c, "balance.aux_loss_coef")->at.kind == ORIGIN_DEFAULT)
        c->aux_coef = c->model.aux_coef;
}

static moe_err read_all(reading *r, const char *text, size_t bytes)
{
    train_config *c = r->c;
    TRY(take_defaults(r));
    TRY(take_file(r, text, bytes));
    for (int i = 0; i < r->nsets; i++)
        TRY(take_set(r, i));
    if (r->root) { /* else the text ends in the middle of something: what is missing is not known */
        take_entries(r);
        TRY(take_model(r));
        refuse_missing(r);
        derive(c);
        config_check(c, &r->p);
    }
    TRY(problems_fail(&r->p));
    c->detail->data_written = c->data_path;
    c->data_path = absolute_path(c->source, c->detail->data_written);
    return c->data_path ? MOE_OK : no_memory(c->source);
}

moe_err train_config_parse(train_config **out, const char *text, size_t bytes, const char *source, const char *const *sets,
                           int nsets)
{
    reading r = {.c = calloc(1, sizeof *r.c), .p = {.file = source, .sets = sets}, .nsets = nsets};
    moe_err rc = MOE_OK;
    *out = NULL;
    r.set = calloc((size_t)nsets + 1, sizeof *r.set);
    if (r.c)
        r.c->detail = calloc(1, sizeof *r.c->detail);
    if (r.c && r.c->detail) {
        r.c->source = strdup(source);
        r.c->name = name_of(source);
    }
    if (!r.set || !r.c || !r.c->detail || !r.c->source || !r.c->name)
        rc = no_memory(source);
    else
        rc = read_all(&r, text, bytes);
    for (int i = 0; r.set && i < nsets; i++)
        tree_free(r.set[i]);
    free(r.set);
    free(r.entries.item);
    tree_free(r.root);
    problems_free(&r.p);
    if (rc == MOE_OK)
        *out = r.c;
    else
        train_config_free(r.c);
    return rc;
}

moe_err train_config_load(train_config **out, const char *path, const char *const *sets, int nsets)
{
    *out = NULL;
    FILE *f = fopen(path, "rbe");
    if (!f)
        return moe_fail(MOE_E_NOINPUT, "cannot open the configuration %s: %s", path, strerror(errno));
    char *text = malloc(TREE_BYTES_MAX + 1);
    const size_t bytes = text ? fread(text, 1, TREE_BYTES_MAX + 1, f) : 0;
    const bool failed = ferror(f) != 0;
    const int error = errno;
    fclose(f);
    moe_err rc;
    if (!text)
        rc = no_memory(path);
    else if (failed)
        rc = moe_fail(MOE_E_NOINPUT, "cannot read the configuration %s: %s", path, strerror(error));
    else if (bytes > TREE_BYTES_MAX)
        rc = moe_fail(MOE_E_CONFIG, "%s: expected a configuration of at most 1 MiB; is this another file?", path);
    else
        rc = train_config_parse(out, text, bytes, path, sets, nsets);
    free(text);
    return rc;
}

void train_config_free(train_config *c)
{
    if (!c)
        return;
    if (c->detail) {
        const int n = c->detail->family ? c->detail->family->nkeys : 0;
        model_values_free(c->detail->values, n);
        free(c->detail->values);
        free(c->detail->value);
        free(c->detail->data_written);
        free(c->detail->from_written);
        free(c->detail);
    }
    for (int i = 0; i < config_nknobs; i++)
        knob_free(&config_knobs[i], c);
    free(c->source);
    free(c->name);
    free(c);
}
