/* Normalizer and pre-tokenizer: tables of the components that are known, each with the function that adds it. What is not known is refused
 * by its name. Owns nothing. One thread. */
#include "models/text/tokenizer_steps.h"

#include <stdlib.h>
#include <string.h>

#include "models/text/component.h"
#include "models/text/utf8.h"

/* The pattern of ByteLevel with use_regex: GPT-2's. */
static const char gpt2_pattern[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

enum { METASPACE_MARK = 0x2581 };

moe_err tokenizer_decode_text(const json_reader *r, text_buffer *b)
{
    b->n = 0;
    TRY(text_buffer_reserve(b, r->raw_bytes + 1));
    b->n = json_decode(r, b->data);
    return MOE_OK;
}

moe_err tokenizer_next_key(json_reader *r, bool *more)
{
    json_event e;
    TRY(json_next(r, &e));
    *more = e == JSON_KEY;
    return MOE_OK;
}

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

/* --- normalizer ----------------------------------------------------------------------------------------------------------------- */

static moe_err add_nfc(const component *c, normal *n) { (void)c; return normal_add_form(n, UNICODE_NFC); }
static moe_err add_nfd(const component *c, normal *n) { (void)c; return normal_add_form(n, UNICODE_NFD); }
static moe_err add_nfkc(const component *c, normal *n) { (void)c; return normal_add_form(n, UNICODE_NFKC); }
static moe_err add_nfkd(const component *c, normal *n) { (void)c; return normal_add_form(n, UNICODE_NFKD); }
static moe_err add_lowercase(const component *c, normal *n) { (void)c; return normal_add_lower(n); }
static moe_err add_strip_accents(const component *c, normal *n) { (void)c; return normal_add_strip_marks(n); }
static moe_err add_nmt(const component *c, normal *n) { (void)c; return normal_add_nmt(n); }

static moe_err add_strip(const component *c, normal *n)
{
    bool left = true, right = true;
    TRY(component_flag(c, "strip_left", &left, NULL));
    TRY(component_flag(c, "strip_right", &right, NULL));
    return normal_add_strip(n, left, right);
}

static moe_err add_bert(const component *c, normal *n)
{
    normal_bert b = {true, true, true, true};
    bool found;
    TRY(component_flag(c, "clean_text", &b.clean, NULL));
    TRY(component_flag(c, "handle_chinese_chars", &b.chinese, NULL));
    TRY(component_flag(c, "lowercase", &b.lower, NULL));
    TRY(component_flag(c, "strip_accents", &b.accents, &found));
    if (!found)
        b.accents = b.lower;
    return normal_add_bert(n, b);
}

static moe_err add_prepend(const component *c, normal *n)
{
    text_buffer b = {0};
    moe_err rc;
    TRY_GOTO(component_text(c, "prepend", &b, NULL), rc, done);
    rc = normal_add_prepend(n, b.data, b.n);
done:
    text_buffer_free(&b);
    return rc;
}

static moe_err add_replace(const component *c, normal *n)
{
    text_buffer pattern = {0}, content = {0};
    bool literal;
    moe_err rc;
    TRY_GOTO(component_pattern(c, "pattern", &pattern, &literal), rc, done);
    TRY_GOTO(component_text(c, "content", &content, NULL), rc, done);
    rc = normal_add_replace(n, pattern.data, pattern.n, literal, content.data, content.n);
done:
    text_buffer_free(&pattern);
    text_buffer_free(&content);
    return rc;
}

static moe_err add_precompiled(const component *c, normal *n)
{
    text_buffer b = {0};
    charsmap *map = NULL;
    moe_err rc;
    TRY_GOTO(component_text(c, "precompiled_charsmap", &b, NULL), rc, done);
    TRY_GOTO(charsmap_open(&map, b.data, b.n), rc, done);
    rc = normal_add_charsmap(n, map);
done:
    text_buffer_free(&b);
    return rc;
}

static const struct {
    const char *type;
    moe_err (*add)(const component *c, normal *n);
} normalizers[] = {
    {"NFC", add_nfc},     {"NFD", add_nfd},     {"NFKC", add_nfkc},         {"NFKD", add_nfkd},      {"Lowercase", add_lowercase},
    {"Strip", add_strip}, {"StripAccents", add_strip_accents}, {"Nmt", add_nmt}, {"BertNormalizer", add_bert}, {"Prepend", add_prepend},
    {"Replace", add_replace}, {"Precompiled", add_precompiled},
};

static moe_err add_normalizer(const component *c, void *arg)
{
    tokenizer_parts *p = arg;
    for (size_t i = 0; i < sizeof normalizers / sizeof normalizers[0]; i++)
        if (strcmp(c->type, normalizers[i].type) == 0) {
            const moe_err rc = normalizers[i].add(c, p->normal);
            return rc == MOE_E_DATA ? tokenizer_locate(&c->inside) : rc;
        }
    return json_fail(&c->inside, MOE_E_DATA, "normalizer \"%s\" is not supported", c->type);
}

/* --- pre-tokenizer -------------------------------------------------------------------------------------------------------------- */

static moe_err read_behavior(const component *c, split_behavior *out)
{
    static const char *const names[] = {"Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"};
    text_buffer b = {0};
    bool found;
    moe_err rc = component_text(c, "behavior", &b, &found);
    if (rc == MOE_OK && found) {
        size_t i = 0;
        while (i < 5 && !(strlen(names[i]) == b.n && memcmp(names[i], b.data, b.n) == 0))
            i++;
        if (i == 5)
            rc = moe_fail(MOE_E_DATA, "%s: behavior \"%.*s\" is not supported", c->type, (int)(b.n < 40 ? b.n : 40), b.data);
        *out = (split_behavior)i;
    }
    text_buffer_free(&b);
    return rc;
}

static moe_err add_split(const component *c, split *words)
{
    text_buffer b = {0};
    split_behavior behavior = SPLIT_ISOLATED;
    bool literal, invert = false;
    moe_err rc;
    TRY_GOTO(component_pattern(c, "pattern", &b, &literal), rc, done);
    TRY_GOTO(read_behavior(c, &behavior), rc, done);
    TRY_GOTO(component_flag(c, "invert", &invert, NULL), rc, done);
    rc = split_add_pattern(words, b.data, b.n, literal, invert, behavior);
done:
    text_buffer_free(&b);
    return rc;
}

static moe_err add_digits(const component *c, split *words)
{
    bool single = false;
    TRY(component_flag(c, "individual_digits", &single, NULL));
    return split_add_class(words, UNICODE_NUMERIC, single ? SPLIT_ISOLATED : SPLIT_CONTIGUOUS);
}

static moe_err add_punctuation(const component *c, split *words)
{
    split_behavior behavior = SPLIT_ISOLATED;
    TRY(read_behavior(c, &behavior));
    return split_add_class(words, UNICODE_PUNCTUATION, behavior);
}

static moe_err add_bert_words(const component *c, split *words)
{
    (void)c;
    TRY(split_add_spaces(words));
    return split_add_class(words, UNICODE_PUNCTUATION, SPLIT_ISOLATED);
}

static moe_err add_whitespace(const component *c, split *words) { (void)c; return split_add_words(words); }
static moe_err add_whitespace_split(const component *c, split *words) { (void)c; return split_add_spaces(words); }

static moe_err add_delimiter(const component *c, split *words)
{
    uint32_t cp = 0;
    char text[4];
    bool found;
    TRY(component_char(c, "delimiter", &cp, &found));
    if (!found)
        return moe_fail(MOE_E_DATA, "CharDelimiterSplit without a delimiter");
    return split_add_pattern(words, text, utf8_encode(text, cp), true, false, SPLIT_REMOVED);
}

moe_err tokenizer_steps_metaspace(const component *c, uint32_t *mark, split_lead *lead, bool *cut)
{
    static const char *const names[] = {"never", "first", "always"};
    text_buffer b = {0};
    bool found, prefix = true;
    *mark = METASPACE_MARK;
    *lead = SPLIT_LEAD_ALWAYS;
    *cut = true;
    TRY(component_char(c, "replacement", mark, NULL));
    TRY(component_flag(c, "split", cut, NULL));
    TRY(component_flag(c, "add_prefix_space", &prefix, NULL));
    moe_err rc = component_text(c, "prepend_scheme", &b, &found);
    size_t i = found ? 0 : 2;
    while (rc == MOE_OK && i < 3 && found && !(strlen(names[i]) == b.n && memcmp(names[i], b.data, b.n) == 0))
        i++;
    if (rc == MOE_OK && i == 3)
        rc = moe_fail(MOE_E_DATA, "Metaspace: prepend_scheme \"%.*s\" is not supported", (int)(b.n < 40 ? b.n : 40), b.data);
    if (rc == MOE_OK && found && !prefix && i != 0)
        rc = moe_fail(MOE_E_DATA, "Metaspace: add_prefix_space is false but prepend_scheme is \"%s\"", names[i]);
    text_buffer_free(&b);
    *lead = prefix ? (split_lead)i : SPLIT_LEAD_NEVER;
    return rc;
}

static moe_err add_metaspace(const component *c, split *words)
{
    uint32_t mark;
    split_lead lead;
    bool cut;
    TRY(tokenizer_steps_metaspace(c, &mark, &lead, &cut));
    return split_add_metaspace(words, mark, lead, cut);
}

static moe_err add_byte_level(const component *c, split *words)
{
    bool prefix = true, regex = true;
    TRY(component_flag(c, "add_prefix_space", &prefix, NULL));
    TRY(component_flag(c, "use_regex", &regex, NULL));
    if (prefix)
        TRY(split_add_prefix_space(words));
    return regex ? split_add_pattern(words, gpt2_pattern, strlen(gpt2_pattern), false, false, SPLIT_ISOLATED) : MOE_OK;
}

static const struct {
    const char *type;
    moe_err (*add)(const component *c, split *words);
} pre_tokenizers[] = {
    {"Split", add_split},
    {"Digits", add_digits},
    {"Punctuation", add_punctuation},
    {"BertPreTokenizer", add_bert_words},
    {"Whitespace", add_whitespace},
    {"WhitespaceSplit", add_whitespace_split},
    {"CharDelimiterSplit", add_delimiter},
    {"Metaspace", add_metaspace},
    {"ByteLevel", add_byte_level},
};

typedef struct pre_tokenizer {
    split *words;
    bool byte_level; /* seen: its letters are still to be made */
} pre_tokenizer;

static moe_err add_pre_tokenizer(const component *c, void *arg)
{
    pre_tokenizer *p = arg;
    if (p->byte_level) /* something follows */
        TRY(split_add_letters(p->words));
    p->byte_level = strcmp(c->type, "ByteLevel") == 0;
    for (size_t i = 0; i < sizeof pre_tokenizers / sizeof pre_tokenizers[0]; i++)
        if (strcmp(c->type, pre_tokenizers[i].type) == 0) {
            const moe_err rc = pre_tokenizers[i].add(c, p->words);
            return rc == MOE_E_DATA ? tokenizer_locate(&c->inside) : rc;
        }
    return json_fail(&c->inside, MOE_E_DATA, "pre_tokenizer \"%s\" is not supported", c->type);
}

moe_err tokenizer_steps_normalizer(json_reader at, tokenizer_parts *p)
{
    return component_each(at, "normalizer", "normalizers", add_normalizer, p);
}

moe_err tokenizer_steps_words(json_reader at, tokenizer_parts *p, bool *byte_level)
{
    pre_tokenizer pre = {.words = p->words};
    TRY(component_each(at, "pre_tokenizer", "pretokenizers", add_pre_tokenizer, &pre));
    *byte_level = pre.byte_level;
    return MOE_OK;
}
