/* A byte-level BPE without affixes works on bytes: its pieces are turned into bytes here; all other models work on the texts as they stand.
 * Owns nothing. One thread. */
#include "models/text/tokenizer_model.h"

#include <stdlib.h>
#include <string.h>

#include "models/text/component.h"
#include "models/text/tokenizer_steps.h"
#include "models/text/utf8.h"

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

void tokenizer_model_settings_free(model_settings *m)
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

moe_err tokenizer_model_settings(json_reader r, tokenizer_parts *p, model_settings *m)
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
    TRY(component_at(&c, "vocab", &m->vocab, &found));
    return component_at(&c, "merges", &m->merges, &found);
}

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
        TRY(json_get_int(&r, 0, tokenizer_highest_id(&r), &id));
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

static moe_err read_bpe(tokenizer_parts *p, const model_settings *m, bool letters, text_buffer *b)
{
    const bpe_chars chars = {.prefix = m->prefix.data, .suffix = m->suffix.data, .unk = m->has_unk ? m->unk.data : NULL,
                             .fuse_unk = m->fuse_unk, .byte_fallback = m->byte_fallback};
    if (!letters)
        TRY(bpe_use_chars(p->model, &chars));
    TRY(read_vocab(m->vocab, p->model, letters, b));
    TRY(read_merges(m->merges, p->model, letters, b));
    return bpe_finish(p->model, m->whole_words, true);
}

static moe_err read_wordpiece(tokenizer_parts *p, const model_settings *m, text_buffer *b)
{
    wordpiece *w = &p->wordpiece;
    TRY(read_vocab(m->vocab, p->model, false, b));
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

moe_err tokenizer_model_read(tokenizer_parts *p, const model_settings *m, bool letters, text_buffer *b)
{
    if (p->kind == MODEL_BPE)
        return read_bpe(p, m, letters, b);
    if (p->kind == MODEL_WORDPIECE)
        return read_wordpiece(p, m, b);
    TRY(unigram_open(&p->unigram, p->model));
    TRY(read_scores(m->vocab, p, b));
    return unigram_finish(p->unigram, (int32_t)m->unk_id, m->byte_fallback);
}
