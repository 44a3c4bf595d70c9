/* Owns the list of families and the reading of a default's text. Does not know what a key means (families/).
 * Threads: pure functions over constant tables.
 * Rule: a new family is one file in families/ and one row here. */
#include "models/family.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "models/families/common.h"

static const model_family *const FAMILIES[] = {&family_qwen3_moe, &family_olmoe, &family_qwen2_moe, &family_mixtral, &family_glm4_moe,
                                               &family_gpt_oss,
                                               &family_deepseek_v2, &family_deepseek_v3, &family_kimi_k2,
                                               &family_llama,     &family_qwen2, &family_qwen3};

enum { NFAMILIES = sizeof FAMILIES / sizeof *FAMILIES };

const model_family *model_family_at(int i) { return i >= 0 && i < NFAMILIES ? FAMILIES[i] : NULL; }

const model_family *model_family_find(const char *model_type)
{
    for (int i = 0; i < NFAMILIES; i++)
        if (strcmp(FAMILIES[i]->model_type, model_type) == 0)
            return FAMILIES[i];
    return NULL;
}

static bool parse_integer(model_value *out, const char *text)
{
    char *end;
    errno = 0;
    out->integer = strtoll(text, &end, 10);
    out->number = (double)out->integer;
    return end != text && *end == '\0' && errno == 0;
}

static bool parse_number(model_value *out, const char *text)
{
    char *end;
    errno = 0;
    out->number = strtod(text, &end);
    return end != text && *end == '\0' && errno == 0 && isfinite(out->number);
}

static bool parse_bool(model_value *out, const char *text)
{
    out->boolean = strcmp(text, "true") == 0;
    return out->boolean || strcmp(text, "false") == 0;
}

moe_err model_value_default(model_value *out, const model_key *key)
{
    const char *text = key->fallback;
    bool good = false;
    memset(out, 0, sizeof *out);
    if (strcmp(text, "null") == 0) {
        out->null = true;
        return MOE_OK;
    }
    switch (key->kind) {
    case MODEL_INT:
        good = parse_integer(out, text);
        break;
    case MODEL_NUMBER:
        good = parse_number(out, text);
        break;
    case MODEL_BOOL:
        good = parse_bool(out, text);
        break;
    case MODEL_INTS:
        good = strcmp(text, "[]") == 0;
        break;
    case MODEL_STRING:
        out->string = strdup(text);
        if (out->string == NULL)
            return moe_fail(MOE_E_OS, "out of memory for the default of %s", key->name);
        return MOE_OK;
    }
    if (!good)
        return moe_fail(MOE_E_CONFIG, "the default of %s in the table of its family, \"%s\", is not of the key's kind", key->name,
                        text);
    return MOE_OK;
}

void model_values_free(model_value *values, int n)
{
    for (int i = 0; values != NULL && i < n; i++) {
        free(values[i].ints);
        free(values[i].string);
        values[i].ints = NULL;
        values[i].string = NULL;
    }
}
