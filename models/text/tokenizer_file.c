/* One pass notes where the sections are (a reader is a value and can be kept as a bookmark); then model, normalizer, pre-tokenizer, decoder,
 * vocabulary, added tokens and post-processor are read in the order they need. Not used, by intent: truncation, padding. What is not
 * known is an error that names it.
 * A byte-level BPE without affixes works on bytes: its pieces are turned into bytes here; all other models work on the texts as they stand. */
#include "models/text/tokenizer_file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "models/formats/json_reader.h"
#include "models/text/component.h"
#include "models/text/text_buffer.h"
#include "models/text/tokenizer_steps.h"
#include "models/text/utf8.h"

typedef struct sections {
    json_reader added, normalizer, pre_tokenizer, decoder, frame, model, vocab, merges; /* at the value; text NULL: absent */
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

/* What the model says beside its vocabulary and merges. */
typedef struct model_settings {
    text_buffer prefix, suffix, unk;
    bool has_unk, fuse_unk, byte_fallback, whole_words, word_level;
    int64_t unk_id, max_chars;
} model_settings;

static void free_settings(model_settings *m)
{
    text_buffer_free(&m->prefix);
    text_buffer_free(&m->suffix);
    text_buffer_free(&m->unk);
}

static moe_err read_type(const component *c, tokenizer_parts *p, model_settings *m)
{
    text_buffer b = {0};
    bool found;
    TRY(component_text(c, "type", &b, &found));
    const bool bpe = !found || (b.n == 3 && memcmp(b.data, "BPE", 3) == 0), unigram = b.n == 7 && memcmp(b.data, "Unigram", 7) == 0;
    m->word_level = b.n == 9 && memcmp(b.data, "WordLevel", 9) == 0;
    const bool wordpiece = b.n == 9 && memcmp(b.data, "WordPiece", 9) == 0;
    p->kind = unigram ? MODEL_UNIGRAM : bpe ? MODEL_BPE : MODEL_WORDPIECE;
    moe_err rc = MOE_OK;
    if (!bpe && !unigram && !wordpiece && !m->word_level)
        rc = json_fail(&c->inside, MOE_E_DATA, "model \"%.*s\" is not supported; BPE, Unigram, WordPiece and WordLevel are", (int)(b.n < 40 ? b.n : 40),
                       b.data);
    text_buffer_free(&b);
    return rc;
}

/* Sampling would give other ids each time. */
static moe_err refuse_dropout(const component *c)
{
    json_reader r;
    json_event e;
    bool found;
    double value = 0;
    TRY(component_at(c, "dropout", &r, &found));
    if (!found)
        return MOE_OK;
    TRY(json_next(&r, &e));
    if (e == JSON_NUMBER)
        TRY(json_double(&r, &value));
    return value == 0 ? MOE_OK : json_fail(&r, MOE_E_DATA, "model.dropout is set; it is not supported");
}

/* Neither NUL nor more than a name: it becomes a C string. */
static moe_err read_name(const component *c, const char *key, text_buffer *out, bool *found)
{
    TRY(component_text(c, key, out, found));
    if (out->n > 0 && memchr(out->data, '\0', out->n))
        return json_fail(&c->inside, MOE_E_DATA, "model.%s holds a NUL character", key);
    return text_buffer_append_zero(out);
}

static moe_err read_model(json_reader r, sections *s, tokenizer_parts *p, model_settings *m)
{
    bool found;
    TRY(json_expect(&r, JSON_OBJECT));
    const component c = {.type = "model", .inside = r};
    m->unk_id = -1;
    m->max_chars = 100;
    TRY(read_type(&c, p, m));
    TRY(refuse_dropout(&c));
    TRY(read_name(&c, "continuing_subword_prefix", &m->prefix, &found));
    if (!found && p->kind == MODEL_WORDPIECE) {
        TRY(text_buffer_append(&m->prefix, "##", 2));
        TRY(text_buffer_append_zero(&m->prefix));
    }
    TRY(read_name(&c, "end_of_word_suffix", &m->suffix, NULL));
    TRY(read_name(&c, "unk_token", &m->unk, &m->has_unk));
    TRY(component_flag(&c, "fuse_unk", &m->fuse_unk, NULL));
    TRY(component_flag(&c, "byte_fallback", &m->byte_fallback, NULL));
    TRY(component_flag(&c, "ignore_merges", &m->whole_words, NULL));
    TRY(component_int(&c, "unk_id", 0, BPE_MAX_IDS - 1, &m->unk_id));
    TRY(component_int(&c, "max_input_chars_per_word", 0, INT32_MAX, &m->max_chars));
    TRY(component_at(&c, "vocab", &s->vocab, &found));
    return component_at(&c, "merges", &s->merges, &found);
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
                                   : json_is(r, "post_processor") ? &s->frame
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

/* letters: pieces are in GPT-2's alphabet and become bytes. */
static moe_err read_vocab(json_reader r, bpe *model, bool letters, text_buffer *b)
{
    TRY(json_expect(&r, JSON_OBJECT));
    for (bool more;;) {
        TRY(tokenizer_next_key(&r, &more));
        if (!more)
            return MOE_OK;
        TRY(tokenizer_decode_text(&r, b));
        int64_t id;
        TRY(json_get_int(&r, 0, highest_id(&r), &id));
        const bool plain = b->n > 0 && (!letters || tokenizer_letters_to_bytes(b->data, &b->n));
        if (bpe_add_piece(model, (int32_t)id, b->data, b->n, plain) != MOE_OK)
            return tokenizer_locate(&r);
    }
}

/* [["piece", score], ...] in the order of ids. */
static moe_err read_scores(json_reader r, tokenizer_parts *p, text_buffer *b)
{
    TRY(json_expect(&r, JSON_ARRAY));
    for (int32_t id = 0; id < BPE_MAX_IDS; id++) {
        json_event e;
        double score;
        TRY(json_next(&r, &e));
        if (e == JSON_ARRAY_END)
            return MOE_OK;
        if (e != JSON_ARRAY)
            return json_fail(&r, MOE_E_DATA, "vocab: expected [piece, score], found %s", json_event_name(e));
        TRY(json_expect(&r, JSON_STRING));
        TRY(tokenizer_decode_text(&r, b));
        TRY(json_get_double(&r, &score));
        if (bpe_add_piece(p->model, id, b->data, b->n, b->n > 0) != MOE_OK)
            return tokenizer_locate(&r);
        TRY(unigram_add(p->unigram, id, score));
        TRY(json_expect(&r, JSON_ARRAY_END));
    }
    return json_fail(&r, MOE_E_DATA, "vocab: more than %d pieces", BPE_MAX_IDS);
}

/* The two parts of a merge: ["a", "b"] or "a b". */
static moe_err read_pair(json_reader *r, json_event e, text_buffer *b, size_t *left)
{
    if (e == JSON_ARRAY) {
        TRY(json_expect(r, JSON_STRING));
        TRY(tokenizer_decode_text(r, b));
        *left = b->n;
        TRY(json_expect(r, JSON_STRING));
        TRY(text_buffer_reserve(b, r->raw_bytes));
        b->n += json_decode(r, b->data + b->n);
        return json_expect(r, JSON_ARRAY_END);
    }
    if (e != JSON_STRING)
        return json_fail(r, MOE_E_DATA, "merges: expected a string or a pair, found %s", json_event_name(e));
    TRY(tokenizer_decode_text(r, b));
    const char *space = memchr(b->data, ' ', b->n);
    if (!space || memchr(space + 1, ' ', b->n - (size_t)(space + 1 - b->data)))
        return json_fail(r, MOE_E_DATA, "merges: expected two parts and one space, found \"%.*s\"", (int)(b->n < 60 ? b->n : 60),
                         b->data);
    *left = (size_t)(space - b->data);
    memmove(b->data + *left, space + 1, b->n - *left - 1);
    b->n--;
    return MOE_OK;
}

static moe_err read_merges(json_reader r, bpe *model, bool letters, text_buffer *b)
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
        const bool plain = !letters || (tokenizer_letters_to_bytes(b->data, &n) && tokenizer_letters_to_bytes(right, &m));
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
    if (!p->decoder)
        tokenizer_letters_to_bytes(copy, &m);
    const bool same = m == n && memcmp(copy, bytes, n) == 0;
    free(copy);
    return same ? MOE_OK
                : json_fail(r, MOE_E_DATA, "added token %d is \"%.*s\" but \"%.*s\" in the vocabulary", t->id,
                            (int)(content->n < 60 ? content->n : 60), content->data, (int)(n < 60 ? n : 60), bytes);
}

static moe_err note_special(tokenizer_parts *p, const added_token *t)
{
    const size_t id = (size_t)t->id;
    if (!t->special)
        return MOE_OK;
    if (id >= p->special.n) {
        TRY(text_buffer_reserve(&p->special, id + 1 - p->special.n));
        memset(p->special.data + p->special.n, 0, id + 1 - p->special.n);
        p->special.n = id + 1;
    }
    p->special.data[id] = 1;
    return MOE_OK;
}

static moe_err read_added_token(json_reader *r, tokenizer_parts *p, text_buffer *content)
{
    added_token t = {.id = -1};
    bool normalized = true;
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
            TRY(tokenizer_decode_text(r, content));
            continue;
        }
        TRY(tokenizer_flag(r, "special", &t.special, &hit));
        TRY(tokenizer_flag(r, "lstrip", &t.lstrip, &hit));
        TRY(tokenizer_flag(r, "rstrip", &t.rstrip, &hit));
        TRY(tokenizer_flag(r, "normalized", &normalized, &hit));
        TRY(tokenizer_flag(r, "single_word", &t.single_word, &hit));
        if (!hit)
            TRY(json_skip(r));
    }
    if (t.id < 0 || content->n == 0)
        return json_fail(r, MOE_E_DATA, "added token without %s", t.id < 0 ? "\"id\"" : "\"content\"");
    TRY(settle_added(r, p, content, &t));
    TRY(note_special(p, &t));
    if (!normalized || normal_steps(p->normal) == 0)
        return added_add(normalized ? p->added_normalized : p->added, content->data, content->n, t);
    normal_room *room;
    const char *text;
    size_t n;
    moe_err rc;
    TRY(normal_room_open(&room));
    TRY_GOTO(normal_run(p->normal, room, content->data, content->n, &text, &n, NULL), rc, done);
    rc = added_add(p->added_normalized, text, n, t);
done:
    normal_room_close(room);
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

static moe_err open_parts(tokenizer_parts *p)
{
    TRY(bpe_open(&p->model));
    TRY(unicode_open(&p->unicode));
    TRY(normal_open(&p->normal, p->unicode));
    TRY(split_open(&p->words));
    TRY(added_open(&p->added));
    return added_open(&p->added_normalized);
}

static moe_err read_bpe(tokenizer_parts *p, const sections *s, const model_settings *m, bool letters, text_buffer *b)
{
    const bpe_chars chars = {.prefix = m->prefix.data, .suffix = m->suffix.data, .unk = m->has_unk ? m->unk.data : NULL,
                             .fuse_unk = m->fuse_unk, .byte_fallback = m->byte_fallback};
    if (!letters)
        TRY(bpe_use_chars(p->model, &chars));
    TRY(read_vocab(s->vocab, p->model, letters, b));
    TRY(read_merges(s->merges, p->model, letters, b));
    return bpe_finish(p->model, m->whole_words, true);
}

static moe_err read_wordpiece(tokenizer_parts *p, const sections *s, const model_settings *m, text_buffer *b)
{
    wordpiece *w = &p->wordpiece;
    TRY(read_vocab(s->vocab, p->model, false, b));
    *w = (wordpiece){.vocabulary = p->model, .max_chars = (size_t)m->max_chars, .unk = -1, .whole = m->word_level};
    if (m->prefix.n > sizeof w->prefix)
        return moe_fail(MOE_E_DATA, "continuing_subword_prefix of %zu bytes; expected at most %zu", m->prefix.n, sizeof w->prefix);
    memcpy(w->prefix, m->prefix.data, m->prefix.n);
    w->prefix_n = m->prefix.n;
    if (m->has_unk)
        w->unk = bpe_find(p->model, m->unk.data, m->unk.n);
    for (int32_t id = 0; id < bpe_ids(p->model); id++) {
        const char *text;
        size_t n;
        if (bpe_piece(p->model, id, &text, &n) && n > w->max_piece)
            w->max_piece = n;
    }
    return MOE_OK;
}

static moe_err read_vocabulary(tokenizer_parts *p, const sections *s, const model_settings *m, bool letters, text_buffer *b)
{
    if (p->kind == MODEL_BPE)
        return read_bpe(p, s, m, letters, b);
    if (p->kind == MODEL_WORDPIECE)
        return read_wordpiece(p, s, m, b);
    TRY(unigram_open(&p->unigram, p->model));
    TRY(read_scores(s->vocab, p, b));
    return unigram_finish(p->unigram, (int32_t)m->unk_id, m->byte_fallback);
}

static moe_err with_name(const char *name, moe_err rc)
{
    char text[512];
    if (rc != MOE_E_DATA)
        return rc;
    moe_error_take(text, sizeof text);
    return strncmp(text, name, strlen(name)) == 0 ? moe_fail(rc, "%s", text) : moe_fail(rc, "%s: %s", name, text);
}

static moe_err parse_parts(tokenizer_parts *p, sections *s, const char *name, model_settings *m, text_buffer *b)
{
    bool byte_level = false;
    TRY(open_parts(p));
    TRY(read_model(s->model, s, p, m));
    if (!s->vocab.text || (p->kind == MODEL_BPE && !s->merges.text))
        return moe_fail(MOE_E_DATA, "%s: model has no \"%s\"", name, s->vocab.text ? "merges" : "vocab");
    if (s->normalizer.text)
        TRY(tokenizer_steps_normalizer(s->normalizer, p));
    if (s->pre_tokenizer.text)
        TRY(tokenizer_steps_words(s->pre_tokenizer, p, &byte_level));
    const bool letters = byte_level && p->kind == MODEL_BPE && m->prefix.n == 0 && m->suffix.n == 0;
    if (byte_level && !letters)
        TRY(split_add_letters(p->words));
    TRY(text_decoder_open(&p->decoder));
    if (s->decoder.text)
        TRY(tokenizer_steps_decoder(s->decoder, p));
    if (letters && text_decoder_is_byte_level(p->decoder)) {
        text_decoder_close(p->decoder);
        p->decoder = NULL;
    } else if (letters) {
        return moe_fail(MOE_E_DATA, "%s: a decoder other than ByteLevel is not supported behind the pre_tokenizer ByteLevel", name);
    }
    TRY(with_name(name, read_vocabulary(p, s, m, letters, b)));
    if (s->added.text)
        TRY(read_added(s->added, p, b));
    if (s->frame.text)
        TRY(with_name(name, tokenizer_steps_frame(s->frame, p)));
    return p->decoder ? tokenizer_pieces_make(p) : MOE_OK;
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
    model_settings m = {0};
    const moe_err rc = parse_parts(p, &s, name, &m, &b);
    text_buffer_free(&b);
    free_settings(&m);
    return rc;
}

void tokenizer_parts_free(tokenizer_parts *p)
{
    bpe_close(p->model);
    unigram_close(p->unigram);
    normal_close(p->normal);
    unicode_close(p->unicode);
    split_close(p->words);
    text_decoder_close(p->decoder);
    free(p->middle.text);
    free(p->middle.end);
    free(p->first.text);
    free(p->first.end);
    text_buffer_free(&p->special);
    free(p->before.id);
    free(p->after.id);
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
