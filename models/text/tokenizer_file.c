/* One pass notes where the sections are (a reader is a value and can be kept as a bookmark); then model, normalizer, pre-tokenizer, decoder,
 * vocabulary, added tokens and post-processor are read in the order they need. Not used, by intent: truncation, padding. What is not
 * known is an error that names it. The model itself is tokenizer_model.c's. */
#include "models/text/tokenizer_file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "models/formats/json_reader.h"
#include "models/text/component.h"
#include "models/text/tokenizer_model.h"
#include "models/text/tokenizer_steps.h"

typedef struct sections {
    json_reader added, normalizer, pre_tokenizer, decoder, frame, model; /* at the value; text NULL: absent */
    bool has_type, is_bytes;
} sections;

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
            TRY(json_get_int(r, 0, tokenizer_highest_id(r), &id));
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
    TRY(tokenizer_model_settings(s->model, p, m));
    if (!m->vocab.text || (p->kind == MODEL_BPE && !m->merges.text))
        return moe_fail(MOE_E_DATA, "%s: model has no \"%s\"", name, m->vocab.text ? "merges" : "vocab");
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
    TRY(with_name(name, tokenizer_model_read(p, m, letters, b)));
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
    tokenizer_model_settings_free(&m);
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
