/* Config text -> values -> spec, by the tables under test. Owns nothing. Single-threaded tests. A key that the family lacks is an
 * error. */
#include "tests/models/make_spec.h"

#include <stdlib.h>
#include <string.h>

static moe_err set_value(const model_family *f, model_value *values, char *pair)
{
    char *text = strchr(pair, '=');
    *text++ = '\0';
    for (int i = 0; i < f->nkeys; i++) {
        if (strcmp(f->keys[i].name, pair) != 0)
            continue;
        model_values_free(&values[i], 1);
        model_key key = f->keys[i];
        key.fallback = key.kind == MODEL_INTS && strcmp(text, "null") != 0 ? "[]" : text;
        TRY(model_value_default(&values[i], &key));
        values[i].set = true;
        for (char *at = text + 1; key.kind == MODEL_INTS && text[0] == '[' && *at != ']' && *at != '\0';) {
            values[i].ints = realloc(values[i].ints, (size_t)(values[i].nints + 1) * sizeof *values[i].ints);
            values[i].ints[values[i].nints++] = strtoll(at, &at, 10);
            at += *at == ',';
        }
        return MOE_OK;
    }
    return moe_fail(MOE_E_CONFIG, "%s is not a key of %s", pair, f->model_type);
}

moe_err make_spec(model_spec *out, const char *model_type, const char *pairs)
{
    const model_family *f = model_family_find(model_type);
    char *text = strdup(pairs), *rest = text;
    model_value *values = calloc((size_t)f->nkeys, sizeof *values);
    moe_err rc = MOE_OK;
    for (int i = 0; i < f->nkeys; i++)
        TRY_GOTO(model_value_default(&values[i], &f->keys[i]), rc, out);
    for (char *pair; (pair = strtok_r(rest, " ", &rest)) != NULL;)
        TRY_GOTO(set_value(f, values, pair), rc, out);
    rc = f->build(out, values);
out:
    model_values_free(values, f->nkeys);
    free(values);
    free(text);
    return rc;
}
