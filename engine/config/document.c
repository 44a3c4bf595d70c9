/* docs/config.md from the tables. A test holds the committed page against this. */
#include <string.h>

#include "engine/config/detail.h"

static void print_knob_row(const knob *k, text_buf *t)
{
    const size_t top = strcspn(k->name, ".") + 1;
    text_printf(t, "| `%s` | ", k->name + top);
    knob_expected(k, t);
    text_add(t, " | ");
    if (k->derived)
        text_printf(t, "that of `%s`", k->derived);
    else if (k->fallback)
        text_printf(t, "`%s`", k->fallback);
    else
        text_add(t, "**required**");
    text_printf(t, " | %s | %s |\n", k->resume ? "yes" : "no", k->help);
}

static void print_family(const model_family *f, text_buf *t)
{
    static const char *const kind[] = {"whole number", "number", "true or false", "list of whole numbers", "text"};
    char class[80];
    family_config_class(f, class, sizeof class);
    text_printf(
        t,
        "### `model_type: %s`\n\nDefaults are those of transformers' `%s`.\n\n| key | value | default | |\n|---|---|---|---|\n",
        f->model_type, class);
    for (int i = 0; i < f->nkeys; i++)
        text_printf(t, "| `%s` | %s | `%s` | %s%s |\n", f->keys[i].name, kind[f->keys[i].kind], f->keys[i].fallback,
                    f->keys[i].help, i < f->class_keys ? "" : " *(not in transformers)*");
    text_add(t, "\n");
}

static void print_intro(text_buf *t)
{
    text_add(t, "# The configuration of `moe-train`\n\n"
                "<!-- Written by the `docs` target (cmake --build BUILD --target docs) from engine/config/schema.c and "
                "models/families/. -->\n\n"
                "A YAML file; JSON is YAML and works unchanged. Nested keys are named with dots, as in `--set "
                "optimizer.lr=1e-4`, which overrides the\n"
                "file and takes any value the file takes (`--set memory.ssd=[a,b]`). `--print-config` shows every value and "
                "where it came from.\n\n"
                "- Scalars follow the YAML 1.2 core schema: `true` and `false` (not `yes`), `200` or `0x1f` for whole numbers, "
                "`3.0e-4` for numbers.\n"
                "  `10k` is not a number, `8_192` neither, and `\"200\"` in quotes is text.\n"
                "- Sizes: `1536MiB`, `8G`, `1.5 GiB`. K M G T and KiB MiB GiB TiB are 1024-based, KB MB GB TB 1000-based, a bare "
                "number is bytes.\n"
                "- Anchors, aliases, tags and a second document are refused; so is a key given twice.\n"
                "- `data.path` and `model.from` are relative to the file (also when given with `--set`), `memory.ssd` to the run "
                "folder.\n"
                "- Every problem is told at once, as `file:line:column: key: expected ..., got ...`; an unknown key with the "
                "nearest known one.\n"
                "- When a run is resumed only the keys marked *yes* below may change; another one that differs is an error that "
                "names it.\n\n"
                "The learning rate at step s, counted from 1: `lr * s / warmup_steps` up to `warmup_steps`; from there to "
                "`min_lr` at `steps` half a\n"
                "cosine (`cosine`), a straight line (`linear`), or flat and then a straight line over the last `decay_steps` "
                "(`wsd`); `constant` stays.\n\n");
}

moe_err train_config_document(char **out)
{
    text_buf t = {0};
    print_intro(&t);
    for (const config_section *s = config_sections; s->name; s++) {
        text_printf(&t, "## %s\n\n%s\n\n| key | value | default | may change on resume | |\n|---|---|---|---|---|\n", s->name,
                    s->help);
        if (strcmp(s->name, "model") == 0)
            text_add(&t,
                     "| `model_type` | a family, see below | **required**, unless `from` is given | no | which architecture |\n");
        for (int i = 0; i < config_nknobs; i++)
            if (strncmp(config_knobs[i].name, s->name, strlen(s->name)) == 0 && config_knobs[i].name[strlen(s->name)] == '.')
                print_knob_row(&config_knobs[i], &t);
        text_add(&t, "\n");
    }
    text_add(&t, "## Families\n\n");
    const model_family *f;
    for (int i = 0; (f = model_family_at(i)) != NULL; i++)
        if (!f->served_only)
            print_family(f, &t);
    t.used -= t.used > 0; /* one newline at the end */
    return text_take(&t, out);
}
