/* Decoder and post-processor: what stands behind the model. Both are read into tokenizer_parts: a list of decoding steps, and the ids that
 * stand before and after a text. What is not known is refused by its name. Owns nothing. One thread. */
#include <stdlib.h>
#include <string.h>

#include "models/text/component.h"
#include "models/text/tokenizer_steps.h"

enum {
    MAX_FRAME = 64,   /* tokens on one side of a text that one step puts there */
    MAX_TOKENS = 1024 /* that all steps do                                     */
};

/* --- decoder -------------------------------------------------------------------------------------------------------------------- */

/* The text of a setting, malloc'ed (also when it is empty). */
static moe_err take_text(const component *c, const char *key, const char *otherwise, text_decoder_step *d)
{
    text_buffer b = {0};
    bool found;
    const moe_err rc = component_text(c, key, &b, &found);
    if (rc == MOE_OK && found) {
        d->text = b.data;
        d->bytes = b.n;
        return MOE_OK;
    }
    text_buffer_free(&b);
    TRY(rc);
    d->text = strdup(otherwise);
    d->bytes = strlen(otherwise);
    return d->text ? MOE_OK : moe_fail(MOE_E_OS, "no memory for a decoder");
}

static moe_err read_replace(const component *c, text_decoder_step *d)
{
    text_buffer b = {0};
    bool literal;
    moe_err rc;
    TRY_GOTO(component_pattern(c, "pattern", &b, &literal), rc, done);
    TRY_GOTO(take_text(c, "content", "", d), rc, done);
    rc = pattern_open(&d->pattern, b.data, b.n, literal);
done:
    text_buffer_free(&b);
    return rc;
}

static moe_err read_strip(const component *c, text_decoder_step *d)
{
    d->mark = ' ';
    TRY(component_char(c, "content", &d->mark, NULL));
    TRY(component_int(c, "start", 0, INT32_MAX, &d->start));
    return component_int(c, "stop", 0, INT32_MAX, &d->stop);
}

static moe_err read_metaspace(const component *c, text_decoder_step *d)
{
    split_lead lead;
    bool cut;
    TRY(tokenizer_steps_metaspace(c, &d->mark, &lead, &cut));
    d->lead = lead != SPLIT_LEAD_NEVER;
    return MOE_OK;
}

static moe_err read_wordpiece(const component *c, text_decoder_step *d)
{
    d->cleanup = true;
    TRY(component_flag(c, "cleanup", &d->cleanup, NULL));
    return take_text(c, "prefix", "##", d);
}

static moe_err read_bpe(const component *c, text_decoder_step *d)
{
    TRY(take_text(c, "suffix", "</w>", d));
    return d->bytes > 0 ? MOE_OK : moe_fail(MOE_E_DATA, "BPEDecoder: an empty suffix is not supported");
}

static moe_err read_nothing(const component *c, text_decoder_step *d)
{
    (void)c;
    (void)d;
    return MOE_OK;
}

static const struct {
    const char *type;
    text_decoder_kind kind;
    moe_err (*read)(const component *c, text_decoder_step *d);
} decoders[] = {
    {"ByteLevel", DECODE_BYTE_LEVEL, read_nothing}, {"ByteFallback", DECODE_BYTE_FALLBACK, read_nothing}, {"Fuse", DECODE_FUSE, read_nothing},
    {"Strip", DECODE_STRIP, read_strip},            {"Replace", DECODE_REPLACE, read_replace},            {"Metaspace", DECODE_METASPACE, read_metaspace},
    {"WordPiece", DECODE_WORDPIECE, read_wordpiece}, {"BPEDecoder", DECODE_BPE, read_bpe},
};

static moe_err add_decoder(const component *c, void *arg)
{
    tokenizer_parts *p = arg;
    for (size_t i = 0; i < sizeof decoders / sizeof decoders[0]; i++) {
        text_decoder_step d = {.kind = decoders[i].kind};
        if (strcmp(c->type, decoders[i].type) != 0)
            continue;
        const moe_err rc = decoders[i].read(c, &d);
        if (rc == MOE_OK)
            return text_decoder_add(p->decoder, d) == MOE_OK ? MOE_OK : tokenizer_locate(&c->inside);
        pattern_close(d.pattern);
        free(d.text);
        return rc == MOE_E_DATA ? tokenizer_locate(&c->inside) : rc;
    }
    return json_fail(&c->inside, MOE_E_DATA, "decoder \"%s\" is not supported", c->type);
}

moe_err tokenizer_steps_decoder(json_reader at, tokenizer_parts *p) { return component_each(at, "decoder", "decoders", add_decoder, p); }

/* --- post-processor ------------------------------------------------------------------------------------------------------------- */

/* One step's tokens before and after the text. */
typedef struct frame {
    int32_t before[MAX_FRAME], after[MAX_FRAME];
    int nbefore, nafter;
    bool text; /* seen */
} frame;

static moe_err add_to_frame(const json_reader *r, const tokenizer_parts *p, frame *f, int64_t id)
{
    const char *bytes;
    size_t n;
    if (!bpe_piece(p->model, (int32_t)id, &bytes, &n))
        return json_fail(r, MOE_E_DATA, "post_processor: id %lld is not in the vocabulary", (long long)id);
    if ((f->text ? f->nafter : f->nbefore) == MAX_FRAME)
        return json_fail(r, MOE_E_DATA, "post_processor: more than %d tokens on one side of a text", MAX_FRAME);
    if (f->text)
        f->after[f->nafter++] = (int32_t)id;
    else
        f->before[f->nbefore++] = (int32_t)id;
    return MOE_OK;
}

/* The ids of the special token `name` in {"name": {"id": ..., "ids": [...], ...}}. */
static moe_err add_special(const component *c, const tokenizer_parts *p, frame *f, const text_buffer *name)
{
    json_reader r;
    bool found, more;
    TRY(component_at(c, "special_tokens", &r, &found));
    if (!found)
        return json_fail(&c->inside, MOE_E_DATA, "TemplateProcessing without special_tokens");
    TRY(json_expect(&r, JSON_OBJECT));
    for (text_buffer key = {0};;) {
        moe_err rc = tokenizer_next_key(&r, &more);
        bool same = false;
        if (rc == MOE_OK && more) {
            rc = tokenizer_decode_text(&r, &key);
            same = key.n == name->n && memcmp(key.data, name->data, key.n) == 0;
        }
        text_buffer_free(&key);
        TRY(rc);
        if (!more)
            return json_fail(&c->inside, MOE_E_DATA, "TemplateProcessing: \"%.*s\" is not among its special_tokens",
                             (int)(name->n < 60 ? name->n : 60), name->data);
        if (same)
            break;
        TRY(json_skip(&r));
    }
    TRY(json_expect(&r, JSON_OBJECT));
    component inside = {.type = "special_tokens", .inside = r};
    TRY(component_at(&inside, "ids", &r, &found));
    if (!found)
        return json_fail(&r, MOE_E_DATA, "TemplateProcessing: a special token without ids");
    TRY(json_expect(&r, JSON_ARRAY));
    for (json_event e;;) {
        int64_t id;
        TRY(json_next(&r, &e));
        if (e == JSON_ARRAY_END)
            return MOE_OK;
        if (e != JSON_NUMBER)
            return json_fail(&r, MOE_E_DATA, "TemplateProcessing: expected an id, found %s", json_event_name(e));
        TRY(json_int(&r, 0, BPE_MAX_IDS - 1, &id));
        TRY(add_to_frame(&r, p, f, id));
    }
}

/* {"SpecialToken": {"id": name, ...}} or {"Sequence": {"id": "A", ...}} */
static moe_err add_template_piece(const component *c, const tokenizer_parts *p, frame *f, json_reader *r)
{
    TRY(json_expect(r, JSON_KEY));
    const bool special = json_is(r, "SpecialToken");
    if (!special && !json_is(r, "Sequence"))
        return json_fail(r, MOE_E_DATA, "TemplateProcessing: expected a SpecialToken or a Sequence");
    TRY(json_expect(r, JSON_OBJECT));
    const component inside = {.type = "TemplateProcessing", .inside = *r};
    TRY(json_skip_rest(r));
    text_buffer id = {0};
    moe_err rc;
    TRY_GOTO(component_text(&inside, "id", &id, NULL), rc, done);
    if (special) {
        rc = add_special(c, p, f, &id);
    } else if (f->text || id.n != 1 || id.data[0] != 'A') {
        rc = json_fail(r, MOE_E_DATA, "TemplateProcessing: \"single\" with other than one sequence A is not supported");
    } else {
        f->text = true;
    }
done:
    text_buffer_free(&id);
    TRY(rc);
    return json_expect(r, JSON_OBJECT_END);
}

static moe_err read_template(const component *c, const tokenizer_parts *p, frame *f)
{
    json_reader r;
    bool found;
    TRY(component_at(c, "single", &r, &found));
    if (!found)
        return json_fail(&c->inside, MOE_E_DATA, "TemplateProcessing without \"single\"");
    TRY(json_expect(&r, JSON_ARRAY));
    for (int pieces = 0;; pieces++) {
        json_event e;
        TRY(json_next(&r, &e));
        if (pieces > 2 * MAX_FRAME)
            return json_fail(&r, MOE_E_DATA, "TemplateProcessing: more than %d pieces", 2 * MAX_FRAME);
        if (e == JSON_ARRAY_END)
            return f->text ? MOE_OK : json_fail(&r, MOE_E_DATA, "TemplateProcessing: \"single\" has no sequence");
        if (e != JSON_OBJECT)
            return json_fail(&r, MOE_E_DATA, "TemplateProcessing: expected an object, found %s", json_event_name(e));
        TRY(add_template_piece(c, p, f, &r));
    }
}

/* [text, id] */
static moe_err read_end(const component *c, const tokenizer_parts *p, frame *f, const char *key)
{
    json_reader r;
    int64_t id;
    bool found;
    TRY(component_at(c, key, &r, &found));
    if (!found)
        return json_fail(&c->inside, MOE_E_DATA, "%s without \"%s\"", c->type, key);
    TRY(json_expect(&r, JSON_ARRAY));
    TRY(json_expect(&r, JSON_STRING));
    TRY(json_get_int(&r, 0, BPE_MAX_IDS - 1, &id));
    return add_to_frame(&r, p, f, id);
}

/* A later step stands around an earlier one. */
static moe_err put_around(tokenizer_parts *p, const frame *f)
{
    token_ids before = {0};
    moe_err rc;
    if (p->before.n + p->after.n > MAX_TOKENS)
        return moe_fail(MOE_E_DATA, "post_processor: more than %d tokens around a text", MAX_TOKENS);
    TRY_GOTO(token_ids_reserve(&before, (size_t)f->nbefore + p->before.n + 1), rc, fail);
    memcpy(before.id, f->before, (size_t)f->nbefore * sizeof *f->before);
    if (p->before.n > 0)
        memcpy(before.id + f->nbefore, p->before.id, p->before.n * sizeof *p->before.id);
    before.n = (size_t)f->nbefore + p->before.n;
    TRY_GOTO(token_ids_reserve(&p->after, (size_t)f->nafter + 1), rc, fail);
    memcpy(p->after.id + p->after.n, f->after, (size_t)f->nafter * sizeof *f->after);
    p->after.n += (size_t)f->nafter;
    free(p->before.id);
    p->before = before;
    return MOE_OK;
fail:
    free(before.id);
    return rc;
}

static moe_err add_frame(const component *c, void *arg)
{
    tokenizer_parts *p = arg;
    frame f = {0};
    if (strcmp(c->type, "ByteLevel") == 0) /* moves offsets, which we do not give */
        return MOE_OK;
    if (strcmp(c->type, "TemplateProcessing") == 0) {
        TRY(read_template(c, p, &f));
    } else if (strcmp(c->type, "BertProcessing") == 0 || strcmp(c->type, "RobertaProcessing") == 0) {
        TRY(read_end(c, p, &f, "cls"));
        f.text = true;
        TRY(read_end(c, p, &f, "sep"));
    } else {
        return json_fail(&c->inside, MOE_E_DATA, "post_processor \"%s\" is not supported", c->type);
    }
    return put_around(p, &f);
}

moe_err tokenizer_steps_frame(json_reader at, tokenizer_parts *p) { return component_each(at, "post_processor", "processors", add_frame, p); }
