/* The two text formats of routing traces: JSON lines and CSV. Owns nothing. Threads: pure functions.
 * Rule: every number is checked against its range before it is kept; messages name the line. */
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "engine/serve/trace_private.h"
#include "models/formats/json_reader.h"

typedef struct slice {
    const char *p;
    size_t n;
} slice;

/* Takes what comes before the next `end` (or all that is left) off the front of *rest. */
static slice cut(slice *rest, char end)
{
    const char *at = rest->n == 0 ? NULL : memchr(rest->p, end, rest->n);
    const slice got = {rest->p, at == NULL ? rest->n : (size_t)(at - rest->p)};
    const size_t used = got.n + (at != NULL);
    rest->p += used;
    rest->n -= used;
    return got;
}

static slice cut_line(slice *rest)
{
    slice line = cut(rest, '\n');
    if (line.n > 0 && line.p[line.n - 1] == '\r')
        line.n--;
    return line;
}

/* --- JSON lines --------------------------------------------------------------------------------------------------------------
 */

static moe_err read_layer(trace_list *l, json_reader *r, int32_t layer)
{
    for (json_event e;;) {
        TRY(json_next(r, &e));
        if (e == JSON_ARRAY_END)
            return MOE_OK;
        if (e != JSON_NUMBER)
            return json_fail(r, MOE_E_DATA, "%s in the list of layer %d; expected ids of experts", json_event_name(e), layer);
        int64_t id;
        TRY(json_int(r, 0, TRACE_EXPERTS_MAX - 1, &id));
        TRY(trace_add(l, r->name, (trace_access){l->tokens, layer, (int32_t)id}));
    }
}

static moe_err read_layers(trace_list *l, json_reader *r, int32_t *layers)
{
    TRY(json_expect(r, JSON_ARRAY));
    for (json_event e;;) {
        TRY(json_next(r, &e));
        if (e == JSON_ARRAY_END)
            return MOE_OK;
        if (e != JSON_ARRAY)
            return json_fail(r, MOE_E_DATA, "%s in \"layers\"; expected a list of ids for each layer", json_event_name(e));
        if (*layers == TRACE_LAYERS_MAX)
            return json_fail(r, MOE_E_DATA, "more than %d layers", TRACE_LAYERS_MAX);
        TRY(read_layer(l, r, (*layers)++));
    }
}

static moe_err read_token(trace_list *l, json_reader *r, int32_t *layers)
{
    *layers = -1;
    TRY(json_expect(r, JSON_OBJECT));
    for (json_event e;;) {
        TRY(json_next(r, &e));
        if (e == JSON_OBJECT_END)
            break;
        if (!json_is(r, "layers")) {
            TRY(json_skip(r));
            continue;
        }
        if (*layers >= 0)
            return json_fail(r, MOE_E_DATA, "\"layers\" twice in one token");
        *layers = 0;
        TRY(read_layers(l, r, layers));
    }
    TRY(json_expect(r, JSON_END));
    return *layers >= 0 ? MOE_OK
                        : json_fail(r, MOE_E_DATA, "no \"layers\" in it; expected {\"tok\": n, \"layers\": [[ids], ...]}");
}

moe_err trace_parse_jsonl(trace_list *l, const char *name, const char *text, size_t bytes)
{
    slice rest = {text, bytes};
    int32_t expected = -1;
    for (long long number = 1; rest.n > 0; number++) {
        const slice line = cut_line(&rest);
        if (line.n == 0)
            continue;
        char where[512];
        snprintf(where, sizeof where, "%.480s:%lld", name, number);
        json_reader r;
        json_open(&r, where, line.p, line.n);
        int32_t layers;
        TRY(read_token(l, &r, &layers));
        if (expected >= 0 && layers != expected)
            return moe_fail(MOE_E_DATA, "%s: %d layers; the tokens before have %d", where, layers, expected);
        expected = layers;
        if (l->tokens++ == TRACE_ACCESSES_MAX)
            return moe_fail(MOE_E_DATA, "%s: more than %d tokens", where, TRACE_ACCESSES_MAX);
    }
    return MOE_OK;
}

/* --- CSV ---------------------------------------------------------------------------------------------------------------------
 */

enum { TURN, PHASE, STEP, LAYER, EXPERT, COLUMNS };
static const char *const column_name[COLUMNS] = {"turn", "phase", "step", "layer", "expert"};

static const int64_t column_max[COLUMNS] = {INT32_MAX, INT32_MAX, INT32_MAX, TRACE_LAYERS_MAX - 1, TRACE_EXPERTS_MAX - 1};

/* Which column of ours each column of the file is; -1: none of them. */
typedef struct csv_columns {
    int which[64];
    int n;
} csv_columns;

static moe_err read_names(csv_columns *c, const char *name, long long number, slice line)
{
    bool found[COLUMNS] = {false};
    while (line.n > 0) {
        const slice word = cut(&line, ',');
        if (c->n == (int)(sizeof c->which / sizeof c->which[0]))
            return moe_fail(MOE_E_DATA, "%s:%lld: more than %d columns", name, number, c->n);
        int which = -1;
        for (int i = 0; i < COLUMNS; i++)
            if (word.n == strlen(column_name[i]) && memcmp(word.p, column_name[i], word.n) == 0)
                which = i;
        if (which >= 0 && found[which])
            return moe_fail(MOE_E_DATA, "%s:%lld: the column \"%s\" is there twice", name, number, column_name[which]);
        if (which >= 0)
            found[which] = true;
        c->which[c->n++] = which;
    }
    for (int i = PHASE; i < COLUMNS; i++)
        if (!found[i])
            return moe_fail(MOE_E_DATA, "%s:%lld: no column \"%s\"; expected phase, step, layer and expert among the names", name,
                            number, column_name[i]);
    return MOE_OK;
}

static bool read_number(slice s, int64_t max, int64_t *out)
{
    if (s.n == 0 || s.n > 10)
        return false;
    int64_t x = 0;
    for (size_t i = 0; i < s.n; i++) {
        if (s.p[i] < '0' || s.p[i] > '9')
            return false;
        x = 10 * x + (s.p[i] - '0');
    }
    *out = x;
    return x <= max;
}

static moe_err read_row(const csv_columns *c, const char *name, long long number, slice line, int64_t value[COLUMNS])
{
    for (int i = 0; i < c->n; i++) {
        if (line.n == 0)
            return moe_fail(MOE_E_DATA, "%s:%lld: %d columns; expected %d", name, number, i, c->n);
        const slice word = cut(&line, ',');
        const int which = c->which[i];
        if (which >= 0 && !read_number(word, column_max[which], &value[which]))
            return moe_fail(MOE_E_DATA, "%s:%lld: \"%.*s\" for %s; expected 0 .. %lld", name, number,
                            (int)(word.n < 32 ? word.n : 32), word.p, column_name[which], (long long)column_max[which]);
    }
    return line.n == 0 ? MOE_OK : moe_fail(MOE_E_DATA, "%s:%lld: more than %d columns", name, number, c->n);
}

moe_err trace_parse_csv(trace_list *l, const char *name, const char *text, size_t bytes)
{
    slice rest = {text, bytes};
    csv_columns columns = {.n = 0};
    int64_t last[COLUMNS] = {-1, -1, -1, -1, -1};
    for (long long number = 1; rest.n > 0; number++) {
        const slice line = cut_line(&rest);
        if (line.n == 0 || line.p[0] == '#')
            continue;
        if (columns.n == 0) {
            TRY(read_names(&columns, name, number, line));
            continue;
        }
        int64_t now[COLUMNS] = {0};
        TRY(read_row(&columns, name, number, line, now));
        if (now[PHASE] != 1)
            continue;
        if (now[STEP] != last[STEP] || now[TURN] != last[TURN])
            l->tokens++;
        else if (now[LAYER] < last[LAYER])
            return moe_fail(MOE_E_DATA, "%s:%lld: layer %lld after layer %lld of the same step; expected ascending layers", name,
                            number, (long long)now[LAYER], (long long)last[LAYER]);
        memcpy(last, now, sizeof last);
        TRY(trace_add(l, name, (trace_access){l->tokens - 1, (int32_t)now[LAYER], (int32_t)now[EXPERT]}));
    }
    return MOE_OK;
}
