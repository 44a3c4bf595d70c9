/* One pass notes where the sections are (a reader is a value and can be kept as a bookmark); then vocabulary, merges, added
 * tokens, normalizer and pre-tokenizer are read in the order they need. Supported: model BPE without dropout, affixes or byte
 * fallback; normalizer none or NFC; pre-tokenizers Split (Regex or String; Isolated, Removed), Digits, ByteLevel, Sequence of
 * those; decoder ByteLevel. Not used, by intent: post_processor (training text gets no BOS), truncation, padding. Everything else
 * is an error that names it. */
#include "models/text/tokenizer_file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "models/formats/json_reader.h"
#include "models/text/text_buffer.h"
#include "models/text/tokenizer_steps.h"
#include "models/text/utf8.h"

typedef struct sections {
    json_reader added, normalizer, pre_tokenizer, decoder, model, vocab, merges; /* at the value; text NULL: absent */
    bool has_type, is_bytes;
} sections;

/* GPT-2's alphabet: printable Latin-1 bytes stand for themselves, the others for U+0100 and up in order. */
static int byte_of_letter(uint32_t cp)
{
    const bool printable = (cp >= 0x21 && cp <= 0x7E) || (cp >= 0xA1 && cp <= 0xFF && cp != 0xAD);
    if (printable)
        return (int)cp;
    if (cp < 0x100 || cp > 0x143)
        return -1;
    const uint32_t k = cp - 0x100; /* the k-th of 0x00-0x20, 0x7F-0xA0, 0xAD */
    return (int)(k <= 0x20 ? k : k == 0x43 ? 0xAD : 0x7F + (k - 0x21));
}

bool tokenizer_letters_to_bytes(char *s, size_t *n)
{
    uint32_t cp;
    for (size_t i = 0; i < *n;) {
        const size_t k = utf8_decode(s + i, *n - i, &cp);
        if (byte_of_letter(cp) < 0)
            return false;
        i += k;
    }
    size_t out = 0;
    for (size_t i = 0; i < *n;) {
        i += utf8_decode(s + i, *n - i, &cp);
        s[out++] = (char)byte_of_letter(cp);
    }
    *n = out;
    return true;
}

/* A value that must be null, false, "" or absent for the file to be supported. */
static moe_err expect_unset(json_reader *r, const char *what)
{
    json_event e;
    TRY(json_next(r, &e));
    double zero = 1;
    if (e == JSON_NUMBER)
        TRY(json_double(r, &zero));
    if (e == JSON_NULL || e == JSON_FALSE || (e == JSON_STRING && r->raw_bytes == 0) || (e == JSON_NUMBER && zero == 0))
        return MOE_OK;
    return json_fail(r, MOE_E_DATA, "%s is set; it is not supported", what);
}

static moe_err read_model(json_reader *r, sections *s, bool *whole_words)
{
    static const char *const unset[] = {"dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"};
    TRY(json_expect(r, JSON_OBJECT));
    for (bool more;;) {
        TRY(tokenizer_next_key(r, &more));
        if (!more)
            return MOE_OK;
        if (json_is(r, "type")) {
            TRY(json_expect(r, JSON_STRING));
            if (!json_is(r, "BPE"))
                return json_fail(r, MOE_E_DATA, "model \"%.*s\" is not supported; only BPE (byte-level) is",
                                 (int)(r->raw_bytes < 40 ? r->raw_bytes : 40), r->raw);
            continue;
        }
        if (json_is(r, "ignore_merges")) {
            json_event e;
            TRY(json_next(r, &e));
            *whole_words = e == JSON_TRUE;
            TRY(json_skip_rest(r));
            continue;
        }
        const char *found = NULL;
        for (size_t i = 0; i < sizeof unset / sizeof unset[0]; i++)
            if (json_is(r, unset[i]))
                found = unset[i];
        if (found) {
            char what[80];
            snprintf(what, sizeof what, "model.%s", found);
            TRY(expect_unset(r, what));
            continue;
        }
        if (json_is(r, "vocab"))
            s->vocab = *r;
        else if (json_is(r, "merges"))
            s->merges = *r;
        TRY(json_skip(r));
    }
}

/* Notes where the sections of the file are; checks the JSON of the whole file on the way. */
static moe_err find_sections(json_reader *r, sections *s)
{
    TRY(json_expect(r, JSON_OBJECT));
    for (bool more;;) {
        TRY(tokenizer_next_key(r, &more));
        if (!more)
            return json_expect(r, JSON_END);
        json_reader *const where = json_is(r, "added_tokens")    ? &s->added
                                   : json_is(r, "normalizer")    ? &s->normalizer
                                   : json_is(r, "pre_tokenizer") ? &s->pre_tokenizer
                                   : json_is(r, "decoder")       ? &s->decoder
                                   : json_is(r, "model")         ? &s->model
                                                                 : NULL;
        if (where)
            *where = *r;
        if (json_is(r, "type")) {
            json_event e;
            TRY(json_next(r, &e));
            s->is_bytes = e == JSON_STRING && json_is(r, "bytes");
            TRY(json_skip_rest(r));
        } else {
            TRY(json_skip(r));
        }
    }
}

/* A vocabulary without large holes has fewer ids than its file has bytes: a short hostile file cannot ask for a large table. */
static int64_t highest_id(const json_reader *r) { return r->bytes < BPE_MAX_IDS ? (int64_t)r->bytes : BPE_MAX_IDS - 1; }

static moe_err read_vocab(json_reader r, bpe *model, text_buffer *b)
{
    TRY(json_expect(&r, JSON_OBJECT));
    for (bool more;;) {
        TRY(tokenizer_next_key(&r, &more));
        if (!more)
            return MOE_OK;
        TRY(tokenizer_decode(&r, b));
        int64_t id;
        TRY(json_get_int(&r, 0, highest_id(&r), &id));
        const bool plain = b->n > 0 && tokenizer_letters_to_bytes(b->data, &b->n);
        if (bpe_add_piece(model, (int32_t)id, b->data, b->n, plain) != MOE_OK)
            return tokenizer_locate(&r);
    }
}

/* The two parts of a merge: ["a", "b"] or "a b". */
static moe_err read_pair(json_reader *r, json_event e, text_buffer *b, size_t *left)
{
    if (e == JSON_ARRAY) {
        TRY(json_expect(r, JSON_STRING));
        TRY(tokenizer_decode(r, b));
        *left = b->n;
        TRY(json_expect(r, JSON_STRING));
        TRY(text_buffer_reserve(b, r->raw_bytes));
        b->n += json_decode(r, b->data + b->n);
        return json_expect(r, JSON_ARRAY_END);
    }
    if (e != JSON_STRING)
        return json_fail(r, MOE_E_DATA, "merges: expected a string or a pair, found %s", json_event_name(e));
    TRY(tokenizer_decode(r, b));
    const char *space = memchr(b->data, ' ', b->n);
    if (!space || memchr(space + 1, ' ', b->n - (size_t)(space + 1 - b->data)))
        return json_fail(r, MOE_E_DATA, "merges: expected two parts and one space, found \"%.*s\"", (int)(b->n < 60 ? b->n : 60),
                         b->data);
    *left = (size_t)(space - b->data);
    memmove(b->data + *left, space + 1, b->n - *left - 1);
    b->n--;
    return MOE_OK;
}

static moe_err read_merges(json_reader r, bpe *model, text_buffer *b)
{
    TRY(json_expect(&r, JSON_ARRAY));
    for (int64_t rank = 0;; rank++) {
        json_event e;
        TRY(json_next(&r, &e));
        if (e == JSON_ARRAY_END)
            return MOE_OK;
        size_t left = 0;
        TRY(read_pair(&r, e, b, &left));
        size_t n = left, m = b->n - left;
        char *const right = b->data + left;
        const bool plain = tokenizer_letters_to_bytes(b->data, &n) && tokenizer_letters_to_bytes(right, &m);
        if (!plain)
            return json_fail(&r, MOE_E_DATA, "merge %lld has characters that stand for no byte", (long long)rank);
        if (bpe_add_merge(model, rank, b->data, n, right, m) != MOE_OK)
            return tokenizer_locate(&r);
    }
}

/* An id that the vocabulary has must have this text there; a new one becomes a piece that is only found as an added token. */
static moe_err settle_added(json_reader *r, tokenizer_parts *p, const text_buffer *content, const added_token *t)
{
    const char *bytes;
    size_t n;
    if (!bpe_piece(p->model, t->id, &bytes, &n))
        return bpe_add_piece(p->model, t->id, content->data, content->n, false);
    char *copy = malloc(content->n + 1);
    if (!copy)
        return moe_fail(MOE_E_OS, "no memory for an added token");
    memcpy(copy, content->data, content->n);
    size_t m = content->n;
    tokenizer_letters_to_bytes(copy, &m);
    const bool same = m == n && memcmp(copy, bytes, n) == 0;
    free(copy);
    return same ? MOE_OK
                : json_fail(r, MOE_E_DATA, "added token %d is \"%.*s\" but \"%.*s\" in the vocabulary", t->id,
                            (int)(content->n < 60 ? content->n : 60), content->data, (int)(n < 60 ? n : 60), bytes);
}

static moe_err read_added_token(json_reader *r, tokenizer_parts *p, text_buffer *content)
{
    added_token t = {.id = -1};
    bool single_word = false, normalized = true;
    content->n = 0;
    for (bool more;;) {
        TRY(tokenizer_next_key(r, &more));
        if (!more)
            break;
        bool hit = false;
        if (json_is(r, "id")) {
            int64_t id;
            TRY(json_get_int(r, 0, highest_id(r), &id));
            t.id = (int32_t)id;
            continue;
        }
        if (json_is(r, "content")) {
            TRY(json_expect(r, JSON_STRING));
            TRY(tokenizer_decode(r, content));
            continue;
        }
        TRY(tokenizer_flag(r, "special", &t.special, &hit));
        TRY(tokenizer_flag(r, "lstrip", &t.lstrip, &hit));
        TRY(tokenizer_flag(r, "rstrip", &t.rstrip, &hit));
        TRY(tokenizer_flag(r, "normalized", &normalized, &hit));
        TRY(tokenizer_flag(r, "single_word", &single_word, &hit));
        if (!hit)
            TRY(json_skip(r));
    }
    if (t.id < 0 || content->n == 0)
        return json_fail(r, MOE_E_DATA, "added token without %s", t.id < 0 ? "\"id\"" : "\"content\"");
    if (single_word)
        return json_fail(r, MOE_E_DATA, "added token \"%.*s\": single_word is not supported",
                         (int)(content->n < 60 ? content->n : 60), content->data);
    TRY(settle_added(r, p, content, &t));
    if (!normalized || !p->nfc)
        return added_add(normalized ? p->added_normalized : p->added, content->data, content->n, t);
    text_buffer room = {0};
    const char *text;
    size_t n;
    moe_err rc;
    TRY_GOTO(unicode_nfc(p->unicode, content->data, content->n, &room, &text, &n), rc, done);
    TRY_GOTO(added_add(p->added_normalized, text, n, t), rc, done);
done:
    text_buffer_free(&room);
    return rc;
}

static moe_err read_added(json_reader r, tokenizer_parts *p, text_buffer *b)
{
    TRY(json_expect(&r, JSON_ARRAY));
    for (json_event e;;) {
        TRY(json_next(&r, &e));
        if (e == JSON_ARRAY_END)
            return MOE_OK;
        if (e != JSON_OBJECT)
            return json_fail(&r, MOE_E_DATA, "added_tokens: expected an object, found %s", json_event_name(e));
        TRY(read_added_token(&r, p, b));
    }
}

static moe_err parse_parts(tokenizer_parts *p, sections *s, const char *name, text_buffer *b)
{
    bool whole_words = false;
    json_reader model = s->model;
    TRY(read_model(&model, s, &whole_words));
    if (!s->vocab.text || !s->merges.text)
        return moe_fail(MOE_E_DATA, "%s: model has no \"%s\"", name, s->vocab.text ? "merges" : "vocab");
    TRY(bpe_open(&p->model));
    TRY(unicode_open(&p->unicode));
    TRY(split_open(&p->words));
    TRY(added_open(&p->added));
    TRY(added_open(&p->added_normalized));
    if (s->normalizer.text)
        TRY(tokenizer_steps_normalizer(s->normalizer, p));
    if (!s->pre_tokenizer.text)
        return moe_fail(MOE_E_DATA, "%s: no pre_tokenizer; only byte-level BPE is supported", name);
    TRY(tokenizer_steps_words(s->pre_tokenizer, p));
    if (s->decoder.text)
        TRY(tokenizer_steps_decoder(s->decoder));
    TRY(read_vocab(s->vocab, p->model, b));
    TRY(read_merges(s->merges, p->model, b));
    if (s->added.text)
        TRY(read_added(s->added, p, b));
    if (bpe_finish(p->model, whole_words, true) == MOE_OK)
        return MOE_OK;
    char text[512];
    moe_error_take(text, sizeof text);
    return moe_fail(MOE_E_DATA, "%s: %s", name, text);
}

moe_err tokenizer_file_parse(tokenizer_parts *p, const char *name, const char *text, size_t bytes)
{
    json_reader r;
    sections s = {0};
    json_open(&r, name, text, bytes);
    TRY(find_sections(&r, &s));
    if (!s.model.text) {
        p->bytes = s.is_bytes;
        return s.is_bytes ? MOE_OK : moe_fail(MOE_E_DATA, "%s: no \"model\"; this is not a tokenizer.json", name);
    }
    text_buffer b = {0};
    const moe_err rc = parse_parts(p, &s, name, &b);
    text_buffer_free(&b);
    return rc;
}

void tokenizer_parts_free(tokenizer_parts *p)
{
    bpe_close(p->model);
    unicode_close(p->unicode);
    split_close(p->words);
    added_close(p->added);
    added_close(p->added_normalized);
    *p = (tokenizer_parts){0};
}

moe_err tokenizer_config_eos(const char *name, const char *text, size_t bytes, char **eos)
{
    json_reader r;
    *eos = NULL;
    json_open(&r, name, text, bytes);
    TRY(json_expect(&r, JSON_OBJECT));
    for (bool more;;) {
        TRY(tokenizer_next_key(&r, &more));
        if (!more)
            return MOE_OK;
        if (!json_is(&r, "eos_token")) {
            TRY(json_skip(&r));
            continue;
        }
        json_event e;
        TRY(json_next(&r, &e));
        if (e == JSON_STRING)
            return json_copy(&r, eos);
        if (e == JSON_ARRAY)
            return json_fail(&r, MOE_E_DATA, "eos_token: expected a string, an object or null, found an array");
        while (e == JSON_OBJECT || e == JSON_KEY) { /* {"__type": "AddedToken", "content": ...} */
            TRY(tokenizer_next_key(&r, &more));
            if (!more || json_is(&r, "content"))
                return more ? json_get_string(&r, eos) : MOE_OK;
            TRY(json_skip(&r));
        }
    }
}
