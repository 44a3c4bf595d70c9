/* Bookmarks are copies of a json_reader; the JSON has been checked once before, so that a second reading only fails for values of the wrong
 * kind. Owns nothing. One thread. */
#include "models/text/component.h"

#include <stdio.h>
#include <string.h>

#include "models/text/tokenizer_steps.h"
#include "models/text/utf8.h"

enum { MAX_DEPTH = 8 }; /* Sequences inside of Sequences */

moe_err component_at(const component *c, const char *key, json_reader *at, bool *found)
{
    json_reader r = c->inside;
    *found = false;
    for (bool more;;) {
        TRY(tokenizer_next_key(&r, &more));
        if (!more)
            return MOE_OK;
        if (json_is(&r, key)) {
            *at = r;
            *found = true;
        }
        TRY(json_skip(&r));
    }
}

/* The first event of a setting that is there and not null. */
static moe_err setting(const component *c, const char *key, json_reader *r, json_event *e, bool *found)
{
    TRY(component_at(c, key, r, found));
    if (!*found)
        return MOE_OK;
    TRY(json_next(r, e));
    *found = *e != JSON_NULL;
    return MOE_OK;
}

moe_err component_flag(const component *c, const char *key, bool *flag, bool *found)
{
    json_reader r;
    json_event e;
    bool here;
    TRY(setting(c, key, &r, &e, &here));
    if (found)
        *found = here;
    if (!here)
        return MOE_OK;
    if (e != JSON_TRUE && e != JSON_FALSE)
        return json_fail(&r, MOE_E_DATA, "%s.%s: expected true or false, found %s", c->type, key, json_event_name(e));
    *flag = e == JSON_TRUE;
    return MOE_OK;
}

moe_err component_int(const component *c, const char *key, int64_t low, int64_t high, int64_t *out)
{
    json_reader r;
    json_event e;
    bool here;
    TRY(setting(c, key, &r, &e, &here));
    if (!here)
        return MOE_OK;
    if (e != JSON_NUMBER)
        return json_fail(&r, MOE_E_DATA, "%s.%s: expected a number, found %s", c->type, key, json_event_name(e));
    return json_int(&r, low, high, out);
}

moe_err component_text(const component *c, const char *key, text_buffer *out, bool *found)
{
    json_reader r;
    json_event e;
    bool here;
    out->n = 0;
    TRY(text_buffer_reserve(out, 1));
    TRY(setting(c, key, &r, &e, &here));
    if (found)
        *found = here;
    if (!here)
        return MOE_OK;
    if (e != JSON_STRING)
        return json_fail(&r, MOE_E_DATA, "%s.%s: expected a string, found %s", c->type, key, json_event_name(e));
    return tokenizer_decode_text(&r, out);
}

moe_err component_char(const component *c, const char *key, uint32_t *cp, bool *found)
{
    text_buffer b = {0};
    uint32_t first;
    bool here;
    moe_err rc;
    TRY_GOTO(component_text(c, key, &b, &here), rc, done);
    if (here && (b.n == 0 || utf8_decode(b.data, b.n, &first) != b.n))
        rc = json_fail(&c->inside, MOE_E_DATA, "%s.%s: expected one character", c->type, key);
    else if (here)
        *cp = first;
    if (found)
        *found = here;
done:
    text_buffer_free(&b);
    return rc;
}

moe_err component_pattern(const component *c, const char *key, text_buffer *out, bool *literal)
{
    json_reader r;
    json_event e;
    bool here;
    TRY(setting(c, key, &r, &e, &here));
    if (!here || e != JSON_OBJECT)
        return json_fail(here ? &r : &c->inside, MOE_E_DATA, "%s without a pattern {\"Regex\": ...} or {\"String\": ...}", c->type);
    TRY(json_expect(&r, JSON_KEY));
    *literal = json_is(&r, "String");
    if (!*literal && !json_is(&r, "Regex"))
        return json_fail(&r, MOE_E_DATA, "%s: expected a pattern {\"Regex\": ...} or {\"String\": ...}", c->type);
    TRY(json_expect(&r, JSON_STRING));
    TRY(tokenizer_decode_text(&r, out));
    return json_expect(&r, JSON_OBJECT_END);
}

static moe_err each(json_reader r, const char *what, const char *list, int depth, component_fn fn, void *arg)
{
    json_event e;
    TRY(json_next(&r, &e));
    if (e == JSON_NULL)
        return MOE_OK;
    if (e != JSON_OBJECT)
        return json_fail(&r, MOE_E_DATA, "%s: expected an object, found %s", what, json_event_name(e));
    component c = {.inside = r};
    json_reader at;
    bool found;
    TRY(component_at(&c, "type", &at, &found));
    if (!found)
        return json_fail(&r, MOE_E_DATA, "%s without a \"type\"", what);
    TRY(json_expect(&at, JSON_STRING));
    snprintf(c.type, sizeof c.type, "%.*s", (int)(at.raw_bytes < sizeof c.type ? at.raw_bytes : sizeof c.type - 1), at.raw);
    if (strcmp(c.type, "Sequence") != 0)
        return fn(&c, arg);
    TRY(component_at(&c, list, &at, &found));
    if (!found || depth == MAX_DEPTH)
        return json_fail(&r, MOE_E_DATA, "%s: a Sequence %s is not supported", what, found ? "so deep inside of others" : "without a list");
    TRY(json_expect(&at, JSON_ARRAY));
    for (;;) {
        const json_reader item = at;
        TRY(json_next(&at, &e));
        if (e == JSON_ARRAY_END)
            return MOE_OK;
        TRY(each(item, what, list, depth + 1, fn, arg));
        TRY(json_skip_rest(&at));
    }
}

moe_err component_each(json_reader r, const char *what, const char *list, component_fn fn, void *arg) { return each(r, what, list, 0, fn, arg); }
