/* The components: each has a type and its settings; a Sequence holds a flat list of them. What is not known is refused by its
 * name. Reads through bookmarks (copies of a json_reader), so no order of keys matters. One thread. */
#include "models/text/tokenizer_steps.h"

#include <stdio.h>
#include <string.h>

/* The pattern of ByteLevel with use_regex: GPT-2's. */
static const char gpt2_pattern[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

moe_err tokenizer_decode(const json_reader *r, text_buffer *b)
{
    b->n = 0;
    TRY(text_buffer_reserve(b, r->raw_bytes + 1));
    b->n = json_decode(r, b->data);
    return MOE_OK;
}

/* The next key of the open object; *more false at its end. */
moe_err tokenizer_next_key(json_reader *r, bool *more)
{
    json_event e;
    TRY(json_next(r, &e));
    *more = e == JSON_KEY;
    return MOE_OK;
}

/* The error just made, with the file and the byte in front. */
moe_err tokenizer_locate(const json_reader *r)
{
    char text[512];
    moe_error_take(text, sizeof text);
    return json_fail(r, MOE_E_DATA, "%s", text);
}

moe_err tokenizer_flag(json_reader *r, const char *key, bool *flag, bool *hit)
{
    if (*hit || !json_is(r, key))
        return MOE_OK;
    *hit = true;
    return json_get_bool(r, flag);
}

/* One component {"type": ..., ...} of the normalizer or the pre-tokenizer. */
typedef struct component {
    char type[40], behavior[24];
    json_reader list;    /* of a Sequence, at the array                 */
    text_buffer pattern; /* Split: a regular expression, String escaped */
    bool has_list, has_pattern, invert, individual_digits, add_prefix_space, use_regex;
} component;

static void read_name(const json_reader *r, char *out, size_t size)
{
    const size_t n = r->raw_bytes < size - 1 ? r->raw_bytes : size - 1;
    memcpy(out, r->raw, n);
    out[n] = '\0';
}

static moe_err read_pattern(json_reader *r, component *c)
{
    TRY(json_expect(r, JSON_OBJECT));
    TRY(json_expect(r, JSON_KEY));
    const bool regex = json_is(r, "Regex");
    if (!regex && !json_is(r, "String"))
        return json_fail(r, MOE_E_DATA, "Split: expected a pattern {\"Regex\": ...} or {\"String\": ...}");
    TRY(json_expect(r, JSON_STRING));
    TRY(tokenizer_decode(r, &c->pattern));
    c->has_pattern = true;
    if (!regex) { /* every ASCII sign escaped: the pattern is the text */
        text_buffer escaped = {0};
        for (size_t i = 0; i < c->pattern.n; i++) {
            const char ch = c->pattern.data[i];
            const bool sign =
                ch > 0x20 && ch < 0x7F && !(ch >= '0' && ch <= '9') && !(ch >= 'A' && ch <= 'Z') && !(ch >= 'a' && ch <= 'z');
            TRY(text_buffer_append(&escaped, sign ? "\\" : "", sign));
            TRY(text_buffer_append(&escaped, &ch, 1));
        }
        text_buffer_free(&c->pattern);
        c->pattern = escaped;
    }
    return json_expect(r, JSON_OBJECT_END);
}

static moe_err read_component(json_reader *r, component *c)
{
    for (bool more;;) {
        TRY(tokenizer_next_key(r, &more));
        if (!more)
            return MOE_OK;
        bool hit = false;
        if (json_is(r, "type") || json_is(r, "behavior")) {
            const bool type = json_is(r, "type");
            TRY(json_expect(r, JSON_STRING));
            read_name(r, type ? c->type : c->behavior, type ? sizeof c->type : sizeof c->behavior);
            continue;
        }
        if (json_is(r, "normalizers") || json_is(r, "pretokenizers")) {
            c->list = *r;
            c->has_list = true;
        } else if (json_is(r, "pattern")) {
            TRY(read_pattern(r, c));
            continue;
        }
        TRY(tokenizer_flag(r, "invert", &c->invert, &hit));
        TRY(tokenizer_flag(r, "individual_digits", &c->individual_digits, &hit));
        TRY(tokenizer_flag(r, "add_prefix_space", &c->add_prefix_space, &hit));
        TRY(tokenizer_flag(r, "use_regex", &c->use_regex, &hit));
        if (!hit)
            TRY(json_skip(r));
    }
}

typedef moe_err (*component_fn)(const json_reader *r, const component *c, void *arg);

/* Calls fn for the component at r, or for each one of a Sequence (which holds no further Sequence). Null: nothing to do. */
static moe_err each_component(json_reader r, const char *what, int depth, component_fn fn, void *arg)
{
    json_event e;
    TRY(json_next(&r, &e));
    if (e == JSON_NULL)
        return MOE_OK;
    if (e != JSON_OBJECT)
        return json_fail(&r, MOE_E_DATA, "%s: expected an object, found %s", what, json_event_name(e));
    component c = {.use_regex = true};
    moe_err rc;
    TRY_GOTO(read_component(&r, &c), rc, done);
    if (strcmp(c.type, "Sequence") != 0) {
        TRY_GOTO(fn(&r, &c, arg), rc, done);
        goto done;
    }
    if (!c.has_list || depth > 0) {
        rc = json_fail(&r, MOE_E_DATA, "%s: a Sequence %s is not supported", what,
                       depth > 0 ? "inside a Sequence" : "without a list");
        goto done;
    }
    json_reader list = c.list;
    TRY_GOTO(json_expect(&list, JSON_ARRAY), rc, done);
    for (;;) {
        const json_reader item = list;
        TRY_GOTO(json_next(&list, &e), rc, done);
        if (e == JSON_ARRAY_END)
            break;
        TRY_GOTO(each_component(item, what, depth + 1, fn, arg), rc, done);
        TRY_GOTO(json_skip_rest(&list), rc, done);
    }
done:
    text_buffer_free(&c.pattern);
    return rc;
}

static moe_err add_normalizer(const json_reader *r, const component *c, void *arg)
{
    tokenizer_parts *p = arg;
    if (strcmp(c->type, "NFC") != 0)
        return json_fail(r, MOE_E_DATA, "normalizer \"%s\" is not supported; NFC is", c->type);
    p->nfc = true;
    return MOE_OK;
}

typedef struct pre_tokenizer {
    split *words;
    bool byte_level; /* seen: nothing may follow */
} pre_tokenizer;

static moe_err add_split(const json_reader *r, const component *c, split *words)
{
    const bool isolated = strcmp(c->behavior, "Isolated") == 0, removed = strcmp(c->behavior, "Removed") == 0;
    if (!c->has_pattern)
        return json_fail(r, MOE_E_DATA, "pre_tokenizer Split without a pattern");
    if (!isolated && !removed)
        return json_fail(r, MOE_E_DATA, "pre_tokenizer Split: behavior \"%s\" is not supported; Isolated and Removed are",
                         c->behavior);
    if (split_add(words, c->pattern.data, c->pattern.n, isolated || c->invert, isolated || !c->invert) == MOE_OK)
        return MOE_OK;
    return tokenizer_locate(r);
}

static moe_err add_pre_tokenizer(const json_reader *r, const component *c, void *arg)
{
    pre_tokenizer *p = arg;
    if (p->byte_level)
        return json_fail(r, MOE_E_DATA, "pre_tokenizer \"%s\" after ByteLevel is not supported", c->type);
    if (strcmp(c->type, "Split") == 0)
        return add_split(r, c, p->words);
    if (strcmp(c->type, "Digits") == 0) {
        const char *pattern = c->individual_digits ? "\\p{N}" : "\\p{N}+";
        return split_add(p->words, pattern, strlen(pattern), true, true);
    }
    if (strcmp(c->type, "ByteLevel") != 0)
        return json_fail(r, MOE_E_DATA, "pre_tokenizer \"%s\" is not supported; Split, Digits, ByteLevel and Sequence are",
                         c->type);
    if (c->add_prefix_space)
        return json_fail(r, MOE_E_DATA, "pre_tokenizer ByteLevel: add_prefix_space is not supported");
    p->byte_level = true;
    return c->use_regex ? split_add(p->words, gpt2_pattern, strlen(gpt2_pattern), true, true) : MOE_OK;
}

static moe_err check_decoder(const json_reader *r, const component *c, void *arg)
{
    (void)arg;
    return strcmp(c->type, "ByteLevel") == 0 ? MOE_OK
                                             : json_fail(r, MOE_E_DATA, "decoder \"%s\" is not supported; ByteLevel is", c->type);
}

moe_err tokenizer_steps_normalizer(json_reader at, tokenizer_parts *p)
{
    return each_component(at, "normalizer", 0, add_normalizer, p);
}

moe_err tokenizer_steps_words(json_reader at, tokenizer_parts *p)
{
    pre_tokenizer pre = {.words = p->words};
    TRY(each_component(at, "pre_tokenizer", 0, add_pre_tokenizer, &pre));
    return pre.byte_level
               ? MOE_OK
               : json_fail(&at, MOE_E_DATA, "the pre_tokenizer has no ByteLevel step; only byte-level BPE is supported");
}

moe_err tokenizer_steps_decoder(json_reader at) { return each_component(at, "decoder", 0, check_decoder, NULL); }
