/* eos_token_id of generation_config.json or config.json. Reads a small file at once; owns it until the numbers are out. One thread. */
#include "engine/serve/eos.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "models/formats/json_reader.h"

enum { FILE_LIMIT = 8 << 20 }; /* bytes; real ones have a few thousand */

/* *text NULL: there is no such file. */
static moe_err read_small(const char *path, char **text, size_t *n)
{
    *text = NULL;
    *n = 0;
    FILE *f = fopen(path, "re");
    if (f == NULL)
        return errno == ENOENT || errno == ENOTDIR ? MOE_OK : moe_fail(MOE_E_NOINPUT, "%s: cannot open: %s", path, strerror(errno));
    char *buffer = malloc(FILE_LIMIT + 1);
    if (buffer == NULL) {
        fclose(f);
        return moe_fail(MOE_E_OS, "%s: no memory to read it", path);
    }
    *n = fread(buffer, 1, FILE_LIMIT + 1, f);
    const bool failed = ferror(f);
    fclose(f);
    if (failed || *n > FILE_LIMIT) {
        free(buffer);
        return failed ? moe_fail(MOE_E_IO, "%s: cannot read", path)
                      : moe_fail(MOE_E_DATA, "%s: longer than %d bytes", path, FILE_LIMIT);
    }
    *text = buffer;
    return MOE_OK;
}

static moe_err add(eos_set *out, const json_reader *r, int V)
{
    int64_t token;
    TRY(json_int(r, 0, (int64_t)V - 1, &token));
    if (out->n == EOS_MAX)
        return json_fail(r, MOE_E_DATA, "eos_token_id: more than %d tokens", EOS_MAX);
    out->token[out->n++] = (int32_t)token;
    return MOE_OK;
}

/* The value behind the key "eos_token_id". */
static moe_err read_value(eos_set *out, json_reader *r, int V)
{
    json_event e;
    TRY(json_next(r, &e));
    if (e == JSON_NULL)
        return MOE_OK;
    if (e == JSON_NUMBER)
        return add(out, r, V);
    if (e != JSON_ARRAY)
        return json_fail(r, MOE_E_DATA, "eos_token_id: expected a number, a list or null, found %s", json_event_name(e));
    for (;;) {
        TRY(json_next(r, &e));
        if (e == JSON_ARRAY_END)
            return MOE_OK;
        if (e != JSON_NUMBER)
            return json_fail(r, MOE_E_DATA, "eos_token_id: expected numbers, found %s", json_event_name(e));
        TRY(add(out, r, V));
    }
}

static moe_err parse(eos_set *out, const char *path, const char *text, size_t n, int V)
{
    json_reader r;
    json_open(&r, path, text, n);
    TRY(json_expect(&r, JSON_OBJECT));
    for (json_event e;;) {
        TRY(json_next(&r, &e));
        if (e == JSON_OBJECT_END)
            return json_expect(&r, JSON_END);
        if (json_is(&r, "eos_token_id")) {
            out->n = 0; /* of a repeated key the last one counts, as in Python */
            TRY(read_value(out, &r, V));
        } else {
            TRY(json_skip(&r));
        }
    }
}

moe_err eos_find(eos_set *out, const char *folder, const char *config, const tokenizer *t, int V)
{
    static const char *const names[] = {"generation_config.json", "config.json"};
    *out = (eos_set){.n = 0};
    for (size_t i = 0; folder != NULL && out->n == 0 && i < sizeof names / sizeof *names; i++) {
        char *path, *text;
        size_t n;
        if (asprintf(&path, "%s/%s", folder, names[i]) < 0)
            return moe_fail(MOE_E_OS, "no memory for a path");
        moe_err rc = read_small(path, &text, &n);
        if (rc == MOE_OK && text != NULL)
            rc = parse(out, path, text, n, V);
        free(text);
        free(path);
        TRY(rc);
    }
    if (out->n == 0 && config != NULL)
        TRY(parse(out, "the model's configuration", config, strlen(config), V));
    if (out->n == 0 && t != NULL && tokenizer_eos(t) >= 0 && tokenizer_eos(t) < V)
        out->token[out->n++] = tokenizer_eos(t);
    return MOE_OK;
}
