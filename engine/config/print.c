/* A configuration as text again: --print-config with the origin of every value, and the echo that a checkpoint keeps. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/config/detail.h"

enum { ORIGIN_COLUMN = 52 }; /* where the comments begin */

const char *family_config_class(const model_family *f, char *out, size_t size)
{
    const char *suffix = strstr(f->architecture, "ForCausalLM");
    snprintf(out, size, "%.*sConfig", (int)(suffix ? suffix - f->architecture : (long)strlen(f->architecture)), f->architecture);
    return out;
}

void model_value_print(const model_key *k, const model_value *v, text_buf *t)
{
    if (v->null) {
        text_add(t, "null");
        return;
    }
    switch (k->kind) {
    case MODEL_INT:
        text_printf(t, "%lld", (long long)v->integer);
        break;
    case MODEL_NUMBER:
        tree_print_number(t, v->number);
        break;
    case MODEL_BOOL:
        text_add(t, v->boolean ? "true" : "false");
        break;
    case MODEL_STRING:
        tree_print_string(t, v->string);
        break;
    case MODEL_INTS:
        text_add(t, "[");
        for (int i = 0; i < v->nints; i++)
            text_printf(t, "%s%lld", i ? ", " : "", (long long)v->ints[i]);
        text_add(t, "]");
        break;
    }
}

static void print_origin(const train_config *c, config_origin at, const char *fallback, text_buf *t)
{
    text_pad(t, ORIGIN_COLUMN - 1);
    if (at.kind == ORIGIN_FILE)
        text_printf(t, " # %s:%d", c->source, at.line);
    else
        text_printf(t, " # %s", at.kind == ORIGIN_SET ? "--set" : fallback);
}

/* Keys that the chosen schedule or policy does not look at. */
static const char *unused_because(const train_config *c, const char *name)
{
    if (strcmp(name, "optimizer.schedule.decay_steps") == 0 && c->schedule != SCHEDULE_WSD)
        return "; only wsd uses it";
    if (strcmp(name, "optimizer.schedule.min_lr") == 0 && c->schedule == SCHEDULE_CONSTANT)
        return "; constant does not use it";
    if (strncmp(name, "memory.lfu_", 11) == 0 && strcmp(c->policy, "lfu") != 0)
        return "; only policy lfu uses it";
    return "";
}

static void print_model(const train_config *c, text_buf *t)
{
    const config_detail *d = c->detail;
    char class[80], fallback[128];
    text_add(t, "model:\n");
    if (c->model_from) {
        text_add(t, "  from: ");
        tree_print_string(t, c->model_from);
        print_origin(c, config_state(c, "model.from")->at, "default", t);
        text_printf(t,
                    "\n  # its config.json: %s, vocab_size %d, hidden_size %d, %d layers, %d heads, %d key and value heads, "
                    "head_dim %d,\n"
                    "  # expert width %d, %d experts, %d per token\n",
                    c->model.model_type, c->model.V, c->model.D, c->model.L, c->model.H, c->model.Hkv, c->model.hd, c->model.F,
                    c->model.E, c->model.K);
        return;
    }
    text_printf(t, "  model_type: %s", d->family->model_type);
    print_origin(c, d->model_type_at, "default", t);
    family_config_class(d->family, class, sizeof class);
    for (int i = 0; i < d->family->nkeys; i++) {
        snprintf(fallback, sizeof fallback, i < d->family->class_keys ? "default of %s" : "default, unknown to %s", class);
        text_printf(t, "\n  %s: ", d->family->keys[i].name);
        model_value_print(&d->family->keys[i], &d->values[i], t);
        print_origin(c, d->value[i].at, fallback, t);
    }
    text_add(t, "\n");
}

static void print_knob(const train_config *c, int i, text_buf *t)
{
    const knob *k = &config_knobs[i];
    const char *leaf = strrchr(k->name, '.') + 1;
    char fallback[96];
    text_printf(t, "%*s%s: ", strchr(k->name, '.') + 1 == leaf ? 2 : 4, "", leaf);
    knob_print(k, c, t);
    snprintf(fallback, sizeof fallback, "default%s%s", k->derived ? ": " : "", k->derived ? k->derived : "");
    print_origin(c, c->detail->knob[i].at, fallback, t);
    text_printf(t, "%s\n", unused_because(c, k->name));
}

moe_err train_config_print(const train_config *c, char **out)
{
    text_buf t = {0};
    char section[64] = "model", inner[64] = "";
    print_model(c, &t);
    for (int i = 0; i < config_nknobs; i++) {
        const char *name = config_knobs[i].name, *leaf = strrchr(name, '.');
        const size_t top = strcspn(name, ".");
        if (strncmp(name, "model.", 6) == 0)
            continue;
        if (strlen(section) != top || strncmp(section, name, top) != 0) {
            snprintf(section, sizeof section, "%.*s", (int)top, name);
            text_printf(&t, "%s:\n", section);
            inner[0] = '\0';
        }
        if (name + top != leaf && strncmp(inner, name + top + 1, (size_t)(leaf - name) - top - 1) != 0) {
            snprintf(inner, sizeof inner, "%.*s", (int)((size_t)(leaf - name) - top - 1), name + top + 1);
            text_printf(&t, "  %s:\n", inner);
        }
        print_knob(c, i, &t);
    }
    return text_take(&t, out);
}

/* --- resume --------------------------------------------------------------------------------------------------------------- */

static void echo_number(text_buf *t, const char *key, double x)
{
    char s[TEXT_NUMBER];
    text_printf(t, "model.from.%s = %s\n", key, text_double(s, x));
}

/* What is computed, should the folder have another config.json next time. */
static void echo_folder(const model_spec *m, text_buf *t)
{
    text_printf(t, "model.from.model_type = %s\n", m->model_type);
    echo_number(t, "vocab_size", m->V);
    echo_number(t, "hidden_size", m->D);
    echo_number(t, "num_hidden_layers", m->L);
    echo_number(t, "num_attention_heads", m->H);
    echo_number(t, "num_key_value_heads", m->Hkv);
    echo_number(t, "head_dim", m->hd);
    echo_number(t, "moe_intermediate_size", m->F);
    echo_number(t, "num_experts", m->E);
    echo_number(t, "num_experts_per_tok", m->K);
    echo_number(t, "intermediate_size", m->F_dense);
    echo_number(t, "tie_word_embeddings", m->tied);
    echo_number(t, "norm_topk_prob", m->router.normalize);
    echo_number(t, "rope_theta", m->rope_theta);
    echo_number(t, "rope_type", m->rope.type);
    echo_number(t, "rope_factor", m->rope.factor);
    echo_number(t, "rms_norm_eps", (double)m->rms_eps);
}

/* A path stands there twice, as written and absolute; one of the two must agree (paths_agree). */
static void echo_path(text_buf *t, const char *key, const char *written, const char *absolute)
{
    text_printf(t, "%s = ", key);
    tree_print_string(t, written);
    text_printf(t, "\n%s (absolute) = ", key);
    tree_print_string(t, absolute);
    text_add(t, "\n");
}

moe_err train_config_echo(const train_config *c, char **out)
{
    text_buf t = {0};
    const config_detail *d = c->detail;
    if (c->model_from) {
        echo_path(&t, "model.from", d->from_written, c->model_from);
        echo_folder(&c->model, &t);
    } else {
        text_printf(&t, "model.model_type = %s\n", d->family->model_type);
        for (int i = 0; i < d->family->nkeys; i++) {
            text_printf(&t, "model.%s = ", d->family->keys[i].name);
            model_value_print(&d->family->keys[i], &d->values[i], &t);
            text_add(&t, "\n");
        }
    }
    for (int i = 0; i < config_nknobs; i++) {
        const knob *k = &config_knobs[i];
        if (k->resume || strncmp(k->name, "model.", 6) == 0)
            continue;
        if (strcmp(k->name, "data.path") == 0) {
            echo_path(&t, k->name, d->data_written, c->data_path);
            continue;
        }
        text_add(&t, k->name);
        text_add(&t, " = ");
        knob_print(k, c, &t);
        text_add(&t, "\n");
    }
    return text_take(&t, out);
}

typedef struct echo_line {
    const char *key, *value;
    int nkey, nvalue;
} echo_line;

/* The next line of *text, false at the end. A line without " = " has an empty value. */
static bool next_line(const char **text, echo_line *l)
{
    if (!**text)
        return false;
    const int n = (int)strcspn(*text, "\n");
    const char *middle = memmem(*text, (size_t)n, " = ", 3);
    l->key = *text;
    l->nkey = middle ? (int)(middle - *text) : n;
    l->value = middle ? middle + 3 : *text + n;
    l->nvalue = (int)(*text + n - l->value);
    *text += n + ((*text)[n] == '\n');
    return true;
}

static bool find_line(const char *text, const echo_line *wanted, echo_line *found)
{
    while (next_line(&text, found))
        if (found->nkey == wanted->nkey && memcmp(found->key, wanted->key, (size_t)wanted->nkey) == 0)
            return true;
    *found = (echo_line){.value = "nothing", .nvalue = 7};
    return false;
}

static bool same_value(const char *saved, const char *now, const char *key, const char *suffix)
{
    char name[160];
    echo_line a, b;
    const echo_line wanted = {.key = name, .nkey = snprintf(name, sizeof name, "%s%s", key, suffix)};
    return find_line(saved, &wanted, &a) && find_line(now, &wanted, &b) && a.nvalue == b.nvalue &&
           memcmp(a.value, b.value, (size_t)a.nvalue) == 0;
}

/* A project that moves as a whole keeps its paths as written; a configuration that is saved elsewhere keeps where they lead. */
static bool paths_agree(const char *saved, const char *now, const echo_line *line)
{
    static const char *const keys[] = {"data.path", "model.from"};
    for (int i = 0; i < 2; i++) {
        const size_t n = strlen(keys[i]);
        if ((size_t)line->nkey >= n && memcmp(line->key, keys[i], n) == 0 && (line->nkey == (int)n || line->key[n] == ' '))
            return same_value(saved, now, keys[i], "") || same_value(saved, now, keys[i], " (absolute)");
    }
    return false;
}

/* A key that came into being after the run was started stands at its default then. */
static bool is_new_default(const echo_line *line)
{
    char name[160];
    snprintf(name, sizeof name, "%.*s", line->nkey, line->key);
    const int i = knob_find(name);
    return i >= 0 && config_knobs[i].fallback != NULL && strlen(config_knobs[i].fallback) == (size_t)line->nvalue &&
           memcmp(config_knobs[i].fallback, line->value, (size_t)line->nvalue) == 0;
}

moe_err train_config_compare_echo(const char *saved, const char *now)
{
    text_buf t = {0};
    echo_line line, other;
    for (const char *p = saved; next_line(&p, &line);)
        if ((!find_line(now, &line, &other) || line.nvalue != other.nvalue ||
             memcmp(line.value, other.value, (size_t)line.nvalue) != 0) &&
            !memmem(line.key, (size_t)line.nkey, " (absolute)", 11) && !paths_agree(saved, now, &line))
            text_printf(&t, "%.*s: the run was started with %.*s, the configuration now says %.*s\n", line.nkey, line.key,
                        line.nvalue, line.value, other.nvalue, other.value);
    for (const char *p = now; next_line(&p, &line);)
        if (!find_line(saved, &line, &other) && !memmem(line.key, (size_t)line.nkey, " (absolute)", 11) && !is_new_default(&line))
            text_printf(&t, "%.*s: the run was started with nothing, the configuration now says %.*s\n", line.nkey, line.key,
                        line.nvalue, line.value);
    if (!t.used && !t.failed)
        return MOE_OK;
    text_add(&t, "only memory.*, checkpoint.*, eval.*, run.*, train.steps, optimizer.lr and optimizer.schedule.* may change when "
                 "a run is resumed; "
                 "use another --run-dir for a new run");
    const moe_err rc =
        t.failed ? moe_fail(MOE_E_OS, "out of memory while comparing configurations") : moe_fail(MOE_E_CONFIG, "%s", t.data);
    text_free(&t);
    return rc;
}
