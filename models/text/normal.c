/* Two buffers take turns: a step reads one and writes the other. A step that changes nothing leaves the text where it is.
 * Owns what the steps need. Read-only once built. */
#include "models/text/normal.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "models/text/pattern.h"
#include "models/text/utf8.h"

typedef enum step_kind { STEP_FORM, STEP_LOWER, STEP_STRIP, STEP_MARKS, STEP_NMT, STEP_BERT, STEP_PREPEND, STEP_REPLACE, STEP_CHARSMAP } step_kind;

typedef struct normal_step {
    step_kind kind;
    unicode_form form;
    bool left, right;
    normal_bert bert;
    pattern *pattern;
    charsmap *map;
    char *text;
    size_t bytes;
} normal_step;

struct normal {
    const unicode_maps *unicode;
    int steps;
    normal_step step[NORMAL_STEPS];
};

struct normal_room {
    pattern_room *match;
    text_buffer text[2], shadow;
};

/* The text between two steps. */
typedef struct normal_text {
    const char *text;
    size_t bytes;
    bool begins;
} normal_text;

moe_err normal_open(normal **out, const unicode_maps *unicode)
{
    *out = calloc(1, sizeof **out);
    if (!*out)
        return moe_fail(MOE_E_OS, "no memory for a normalizer");
    (*out)->unicode = unicode;
    return MOE_OK;
}

static void close_step(normal_step *s)
{
    pattern_close(s->pattern);
    charsmap_close(s->map);
    free(s->text);
}

void normal_close(normal *s)
{
    if (!s)
        return;
    for (int i = 0; i < s->steps; i++)
        close_step(&s->step[i]);
    free(s);
}

int normal_steps(const normal *s) { return s->steps; }

static moe_err add(normal *s, normal_step step)
{
    if (s->steps == NORMAL_STEPS) {
        close_step(&step);
        return moe_fail(MOE_E_DATA, "more than %d steps of normalization", NORMAL_STEPS);
    }
    s->step[s->steps++] = step;
    return MOE_OK;
}

static moe_err keep_text(normal_step *step, const char *text, size_t bytes)
{
    step->text = malloc(bytes + 1);
    if (!step->text)
        return moe_fail(MOE_E_OS, "no memory for a normalizer");
    memcpy(step->text, text, bytes);
    step->bytes = bytes;
    return MOE_OK;
}

moe_err normal_add_form(normal *s, unicode_form form) { return add(s, (normal_step){.kind = STEP_FORM, .form = form}); }
moe_err normal_add_lower(normal *s) { return add(s, (normal_step){.kind = STEP_LOWER}); }
moe_err normal_add_strip_marks(normal *s) { return add(s, (normal_step){.kind = STEP_MARKS}); }
moe_err normal_add_nmt(normal *s) { return add(s, (normal_step){.kind = STEP_NMT}); }
moe_err normal_add_bert(normal *s, normal_bert bert) { return add(s, (normal_step){.kind = STEP_BERT, .bert = bert}); }
moe_err normal_add_charsmap(normal *s, charsmap *map) { return add(s, (normal_step){.kind = STEP_CHARSMAP, .map = map}); }

moe_err normal_add_strip(normal *s, bool left, bool right)
{
    return add(s, (normal_step){.kind = STEP_STRIP, .left = left, .right = right});
}

moe_err normal_add_prepend(normal *s, const char *text, size_t bytes)
{
    normal_step step = {.kind = STEP_PREPEND};
    TRY(keep_text(&step, text, bytes));
    return add(s, step);
}

moe_err normal_add_replace(normal *s, const char *text, size_t bytes, bool literal, const char *by, size_t by_bytes)
{
    normal_step step = {.kind = STEP_REPLACE};
    TRY(keep_text(&step, by, by_bytes));
    const moe_err rc = pattern_open(&step.pattern, text, bytes, literal);
    if (rc == MOE_OK)
        return add(s, step);
    close_step(&step);
    return rc;
}

moe_err normal_room_open(normal_room **out)
{
    *out = calloc(1, sizeof **out);
    if (!*out)
        return moe_fail(MOE_E_OS, "no memory for normalizing");
    const moe_err rc = pattern_room_open(&(*out)->match);
    if (rc != MOE_OK) {
        free(*out);
        *out = NULL;
    }
    return rc;
}

void normal_room_close(normal_room *r)
{
    if (!r)
        return;
    pattern_room_close(r->match);
    text_buffer_free(&r->text[0]);
    text_buffer_free(&r->text[1]);
    text_buffer_free(&r->shadow);
    free(r);
}

/* --- characters ----------------------------------------------------------------------------------------------------------------- */

enum { DROPPED = UINT32_MAX };

static uint32_t nmt(uint32_t c)
{
    if ((c >= 1 && c <= 8) || c == 0xB || (c >= 0xE && c <= 0x1F) || c == 0x7F || c == 0x8F || c == 0x9F)
        return DROPPED;
    const bool space = c == 9 || c == 0xA || c == 0xC || c == 0xD || c == 0x1680 || (c >= 0x200B && c <= 0x200F) || c == 0x2028 || c == 0x2029 ||
                       c == 0x2581 || c == 0xFEFF || c == 0xFFFD;
    return space ? ' ' : c;
}

static uint32_t clean(uint32_t c)
{
    if (c == '\t' || c == '\n' || c == '\r')
        return ' ';
    if (c >= 0x20 && c < 0x7F)
        return c;
    if (c == 0 || c == 0xFFFD || unicode_is(UNICODE_CONTROL, c))
        return DROPPED;
    return utf8_is_space(c) ? ' ' : c;
}

static uint32_t drop_mark(uint32_t c) { return c >= 0x80 && unicode_is(UNICODE_MARK, c) ? DROPPED : c; }

static uint32_t drop_accent(uint32_t c) { return c >= 0x80 && unicode_is(UNICODE_NONSPACING, c) ? DROPPED : c; }

/* Every character through `map`, into `out`. lower: U+0130 has two. */
static moe_err map_text(normal_text *t, uint32_t (*map)(uint32_t), bool lower, text_buffer *out)
{
    out->n = 0;
    for (size_t i = 0; i < t->bytes;) {
        uint32_t cp;
        const size_t k = utf8_decode(t->text + i, t->bytes - i, &cp);
        const uint32_t to = map(cp);
        TRY(text_buffer_reserve(out, 8));
        if (to == DROPPED)
            t->begins = t->begins && i > 0;
        else
            out->n += utf8_encode(out->data + out->n, to);
        if (lower && cp == 0x130)
            out->n += utf8_encode(out->data + out->n, 0x307);
        i += k;
    }
    t->text = out->n > 0 ? out->data : "";
    t->bytes = out->n;
    return MOE_OK;
}

static bool is_chinese(uint32_t c)
{
    return (c >= 0x4E00 && c <= 0x9FFF) || (c >= 0x3400 && c <= 0x4DBF) || (c >= 0x20000 && c <= 0x2A6DF) || (c >= 0x2A700 && c <= 0x2B73F) ||
           (c >= 0x2B740 && c <= 0x2B81F) || (c >= 0x2B920 && c <= 0x2CEAF) || (c >= 0xF900 && c <= 0xFAFF) || (c >= 0x2F800 && c <= 0x2FA1F);
}

/* Spaces around Chinese characters. */
static moe_err part_chinese(normal_text *t, text_buffer *out)
{
    out->n = 0;
    for (size_t i = 0; i < t->bytes;) {
        uint32_t cp;
        const size_t k = utf8_decode(t->text + i, t->bytes - i, &cp);
        const bool apart = is_chinese(cp);
        TRY(text_buffer_append(out, " ", apart));
        TRY(text_buffer_append(out, t->text + i, k));
        TRY(text_buffer_append(out, " ", apart));
        i += k;
    }
    t->text = out->n > 0 ? out->data : "";
    t->bytes = out->n;
    return MOE_OK;
}

/* --- steps ---------------------------------------------------------------------------------------------------------------------- */

/* The buffer that the text does not lie in. */
static text_buffer *other(normal_room *r, const normal_text *t)
{
    const uintptr_t at = (uintptr_t)t->text, first = (uintptr_t)r->text[0].data;
    return &r->text[first != 0 && at >= first && at - first < r->text[0].capacity];
}

static moe_err run_form(const normal *s, unicode_form form, normal_room *r, normal_text *t)
{
    return unicode_normalize(s->unicode, form, t->text, t->bytes, other(r, t), &t->text, &t->bytes);
}

static moe_err run_bert(const normal *s, const normal_bert *b, normal_room *r, normal_text *t)
{
    if (b->clean)
        TRY(map_text(t, clean, false, other(r, t)));
    if (b->chinese)
        TRY(part_chinese(t, other(r, t)));
    if (b->accents) {
        TRY(run_form(s, UNICODE_NFD, r, t));
        TRY(map_text(t, drop_accent, false, other(r, t)));
    }
    return b->lower ? map_text(t, unicode_lower, true, other(r, t)) : MOE_OK;
}

static void run_strip(const normal_step *s, normal_text *t)
{
    uint32_t cp;
    for (size_t k; s->left && t->bytes > 0; t->text += k, t->bytes -= k, t->begins = false) {
        k = utf8_decode(t->text, t->bytes, &cp);
        if (!utf8_is_space(cp))
            break;
    }
    while (s->right && t->bytes > 0) {
        size_t i = t->bytes - 1;
        while (i > 0 && utf8_is_continuation(t->text[i]))
            i--;
        utf8_decode(t->text + i, t->bytes - i, &cp);
        if (!utf8_is_space(cp))
            break;
        t->bytes = i;
    }
}

static moe_err run_replace(const normal *s, const normal_step *step, normal_room *r, normal_text *t)
{
    const char *shadow;
    text_buffer *out = other(r, t);
    size_t done = 0, from = 0;
    out->n = 0;
    TRY(unicode_shadow(s->unicode, t->text, t->bytes, &r->shadow, &shadow));
    while (from <= t->bytes && t->bytes > 0) {
        bool found;
        size_t first, last;
        TRY(pattern_next(step->pattern, r->match, t->text, shadow, t->bytes, from, &found, &first, &last));
        if (!found)
            break;
        if (last > first || first > done || first == 0) { /* an empty match behind a match is none */
            TRY(text_buffer_append(out, t->text + done, first - done));
            TRY(text_buffer_append(out, step->text, step->bytes));
            uint32_t cp;
            if (first == 0 && last > 0) /* what begins the text is the first character's only when it alone was replaced */
                t->begins = t->begins && step->bytes > 0 && utf8_decode(t->text, t->bytes, &cp) == last;
            done = last;
        }
        from = last;
        if (first == last)
            for (from++; from < t->bytes && utf8_is_continuation(t->text[from]);)
                from++;
    }
    TRY(text_buffer_append(out, t->text + done, t->bytes - done));
    t->text = out->n > 0 ? out->data : "";
    t->bytes = out->n;
    return MOE_OK;
}

static moe_err run_prepend(const normal_step *step, normal_room *r, normal_text *t)
{
    text_buffer *out = other(r, t);
    if (t->bytes == 0)
        return MOE_OK;
    out->n = 0;
    TRY(text_buffer_append(out, step->text, step->bytes));
    TRY(text_buffer_append(out, t->text, t->bytes));
    t->text = out->data;
    t->bytes = out->n;
    return MOE_OK;
}

static moe_err run_charsmap(const normal_step *step, normal_room *r, normal_text *t)
{
    text_buffer *out = other(r, t);
    out->n = 0;
    TRY(charsmap_apply(step->map, t->text, t->bytes, out));
    t->text = out->n > 0 ? out->data : "";
    t->bytes = out->n;
    return MOE_OK;
}

static moe_err run_step(const normal *s, const normal_step *step, normal_room *r, normal_text *t)
{
    switch (step->kind) {
    case STEP_FORM: return run_form(s, step->form, r, t);
    case STEP_LOWER: return map_text(t, unicode_lower, true, other(r, t));
    case STEP_STRIP: run_strip(step, t); return MOE_OK;
    case STEP_MARKS: return map_text(t, drop_mark, false, other(r, t));
    case STEP_NMT: return map_text(t, nmt, false, other(r, t));
    case STEP_BERT: return run_bert(s, &step->bert, r, t);
    case STEP_PREPEND: return run_prepend(step, r, t);
    case STEP_REPLACE: return run_replace(s, step, r, t);
    case STEP_CHARSMAP: return run_charsmap(step, r, t);
    }
    return MOE_OK;
}

moe_err normal_run(const normal *s, normal_room *room, const char *text, size_t bytes, const char **out, size_t *n, bool *begins)
{
    normal_text t = {text, bytes, true};
    moe_err rc = MOE_OK;
    for (int i = 0; i < s->steps && rc == MOE_OK; i++)
        rc = run_step(s, &s->step[i], room, &t);
    *out = t.text;
    *n = t.bytes;
    if (begins)
        *begins = *begins && t.begins;
    return rc;
}
