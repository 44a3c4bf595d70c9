/* Levels run depth first: a piece goes through all further levels before the next piece is cut, so that nothing but the buffers of levels
 * that change text is kept. Cutting yields spans (match or gap, in order); the behaviour folds neighbours together.
 * Owns patterns and buffers. Read-only once built; a room belongs to one thread. */
#include "models/text/split.h"

#include <stdlib.h>
#include <string.h>

#include "models/text/pattern.h"
#include "models/text/utf8.h"

typedef enum level_kind { CUT_PATTERN, CUT_CLASS, CUT_SPACES, CUT_MARK, KEEP_WORDS, CHANGE_METASPACE, CHANGE_PREFIX, CHANGE_LETTERS } level_kind;

typedef struct split_level {
    level_kind kind;
    pattern *pattern;
    split_behavior behavior;
    bool invert;
    unicode_class class;
    uint32_t mark;
    split_lead lead;
} split_level;

struct split {
    int levels;
    split_level level[SPLIT_LEVELS];
};

struct split_room {
    pattern_room *match;
    text_buffer text[SPLIT_LEVELS], shadow[SPLIT_LEVELS]; /* of levels that change text */
};

moe_err split_open(split **out)
{
    *out = calloc(1, sizeof **out);
    return *out ? MOE_OK : moe_fail(MOE_E_OS, "no memory for the word splitter");
}

void split_close(split *s)
{
    if (!s)
        return;
    for (int i = 0; i < s->levels; i++)
        pattern_close(s->level[i].pattern);
    free(s);
}

int split_levels(const split *s) { return s->levels; }

static moe_err add(split *s, split_level level)
{
    if (s->levels == SPLIT_LEVELS) {
        pattern_close(level.pattern);
        return moe_fail(MOE_E_DATA, "more than %d steps of pre-tokenization", SPLIT_LEVELS);
    }
    s->level[s->levels++] = level;
    return MOE_OK;
}

moe_err split_add_pattern(split *s, const char *text, size_t bytes, bool literal, bool invert, split_behavior behavior)
{
    split_level level = {.kind = CUT_PATTERN, .invert = invert, .behavior = behavior};
    TRY(pattern_open(&level.pattern, text, bytes, literal));
    return add(s, level);
}

moe_err split_add_class(split *s, unicode_class class, split_behavior behavior)
{
    return add(s, (split_level){.kind = CUT_CLASS, .class = class, .behavior = behavior});
}

moe_err split_add_spaces(split *s) { return add(s, (split_level){.kind = CUT_SPACES, .behavior = SPLIT_REMOVED}); }

moe_err split_add_words(split *s) { return add(s, (split_level){.kind = KEEP_WORDS}); }

moe_err split_add_metaspace(split *s, uint32_t mark, split_lead lead, bool cut)
{
    TRY(add(s, (split_level){.kind = CHANGE_METASPACE, .mark = mark, .lead = lead}));
    return cut ? add(s, (split_level){.kind = CUT_MARK, .mark = mark, .behavior = SPLIT_WITH_NEXT}) : MOE_OK;
}

moe_err split_add_prefix_space(split *s) { return add(s, (split_level){.kind = CHANGE_PREFIX}); }

moe_err split_add_letters(split *s) { return add(s, (split_level){.kind = CHANGE_LETTERS}); }

moe_err split_room_open(split_room **out)
{
    *out = calloc(1, sizeof **out);
    if (!*out)
        return moe_fail(MOE_E_OS, "no memory for matching");
    const moe_err rc = pattern_room_open(&(*out)->match);
    if (rc != MOE_OK) {
        free(*out);
        *out = NULL;
    }
    return rc;
}

void split_room_close(split_room *r)
{
    if (!r)
        return;
    pattern_room_close(r->match);
    for (int i = 0; i < SPLIT_LEVELS; i++) {
        text_buffer_free(&r->text[i]);
        text_buffer_free(&r->shadow[i]);
    }
    free(r);
}

/* A piece of text on its way through the levels. */
typedef struct piece {
    const char *text, *shadow;
    size_t bytes;
    bool begins; /* the whole text begins with it */
} piece;

typedef struct split_job {
    const split *s;
    split_room *room;
    split_word_fn word;
    void *arg;
} split_job;

static moe_err run_level(const split_job *j, int level, piece p);

/* What the behaviour holds back of a piece that is being cut. */
typedef struct fold {
    const split_job *j;
    int level;
    const piece *p;
    size_t first, last; /* the span held back */
    bool held, match;   /* match: the last span was one */
} fold;

static moe_err emit(const fold *f, size_t first, size_t last)
{
    return run_level(f->j, f->level + 1, (piece){f->p->text + first, f->p->shadow + first, last - first, f->p->begins && first == 0});
}

static moe_err flush(fold *f)
{
    const bool held = f->held;
    f->held = false;
    return held ? emit(f, f->first, f->last) : MOE_OK;
}

/* The next span of the piece, in order. */
static moe_err fold_span(fold *f, size_t first, size_t last, bool match)
{
    const split_level *l = &f->j->s->level[f->level];
    match = match != l->invert;
    bool joins = false;
    switch (l->behavior) {
    case SPLIT_REMOVED: return match ? MOE_OK : emit(f, first, last);
    case SPLIT_ISOLATED: return emit(f, first, last);
    case SPLIT_CONTIGUOUS: joins = match == f->match; break;
    case SPLIT_WITH_PREVIOUS: joins = match && !f->match; break;
    case SPLIT_WITH_NEXT: joins = !match && f->match; break;
    }
    f->match = match;
    if (joins && f->held) {
        f->last = last;
        return MOE_OK;
    }
    TRY(flush(f));
    f->held = true;
    f->first = first;
    f->last = last;
    return MOE_OK;
}

static moe_err cut_pattern(const split_job *j, int level, const piece *p)
{
    fold f = {.j = j, .level = level, .p = p};
    size_t done = 0, from = 0;
    while (from < p->bytes) {
        bool found;
        size_t first, last;
        TRY(pattern_next(j->s->level[level].pattern, j->room->match, p->text, p->shadow, p->bytes, from, &found, &first, &last));
        if (!found)
            break;
        if (first > done)
            TRY(fold_span(&f, done, first, false));
        if (last > first || first > done || first == 0) /* an empty match behind a match is none */
            TRY(fold_span(&f, first, last, true));
        done = from = last;
        if (first == last) /* an empty match cuts; the search goes on behind the next character */
            for (from++; from < p->bytes && utf8_is_continuation(p->shadow[from]);)
                from++;
    }
    if (done < p->bytes)
        TRY(fold_span(&f, done, p->bytes, false));
    return flush(&f);
}

static bool cuts_at(const split_level *l, uint32_t cp)
{
    return l->kind == CUT_CLASS ? unicode_is(l->class, cp) : l->kind == CUT_SPACES ? utf8_is_space(cp) : cp == l->mark;
}

/* Every character of the class is a match of its own. */
static moe_err cut_class(const split_job *j, int level, const piece *p)
{
    fold f = {.j = j, .level = level, .p = p};
    size_t done = 0;
    for (size_t i = 0; i < p->bytes;) {
        uint32_t cp;
        const size_t k = utf8_decode(p->text + i, p->bytes - i, &cp);
        if (cuts_at(&j->s->level[level], cp)) {
            if (done < i)
                TRY(fold_span(&f, done, i, false));
            TRY(fold_span(&f, i, i + k, true));
            done = i + k;
        }
        i += k;
    }
    if (done < p->bytes)
        TRY(fold_span(&f, done, p->bytes, false));
    return flush(&f);
}

/* Runs of word characters and runs of what is neither that nor white space. */
static moe_err keep_words(const split_job *j, int level, const piece *p)
{
    enum { SPACE, WORD, SIGN } now, kind = SPACE;
    const fold f = {.j = j, .level = level, .p = p};
    size_t first = 0;
    for (size_t i = 0, k; i < p->bytes; i += k) {
        uint32_t cp;
        k = utf8_decode(p->text + i, p->bytes - i, &cp);
        now = unicode_is(UNICODE_WORD, cp) ? WORD : utf8_is_space(cp) ? SPACE : SIGN;
        if (now == kind)
            continue;
        if (kind != SPACE)
            TRY(emit(&f, first, i));
        first = i;
        kind = now;
    }
    return kind != SPACE ? emit(&f, first, p->bytes) : MOE_OK;
}

/* `mark` for every space of text[0, n), behind `lead` bytes of it. */
static moe_err mark_spaces(text_buffer *b, const char *text, size_t n, const char *mark, size_t mark_bytes, bool lead)
{
    b->n = 0;
    TRY(text_buffer_reserve(b, n + mark_bytes));
    TRY(text_buffer_append(b, mark, lead ? mark_bytes : 0));
    for (size_t i = 0; i < n;) {
        const char *space = memchr(text + i, ' ', n - i);
        const size_t end = space ? (size_t)(space - text) : n;
        TRY(text_buffer_append(b, text + i, end - i));
        if (space)
            TRY(text_buffer_append(b, mark, mark_bytes));
        i = end + 1;
    }
    return MOE_OK;
}

static moe_err change_text(const split_job *j, int level, const piece *p)
{
    const split_level *l = &j->s->level[level];
    text_buffer *const text = &j->room->text[level], *const shadow = &j->room->shadow[level];
    char mark[4] = " ";
    const size_t bytes = l->kind == CHANGE_METASPACE ? utf8_encode(mark, l->mark) : 1;
    const bool has = (p->bytes >= bytes && memcmp(p->text, mark, bytes) == 0) || p->text[0] == ' ';
    const bool lead = !has && (l->kind == CHANGE_PREFIX || l->lead == SPLIT_LEAD_ALWAYS || (l->lead == SPLIT_LEAD_FIRST && p->begins));
    TRY(mark_spaces(text, p->text, p->bytes, mark, bytes, lead));
    if (p->shadow != p->text)
        TRY(mark_spaces(shadow, p->shadow, p->bytes, mark, bytes, lead));
    return run_level(j, level + 1, (piece){text->data, p->shadow != p->text ? shadow->data : text->data, text->n, p->begins});
}

/* GPT-2's alphabet: printable Latin-1 bytes stand for themselves, the others for U+0100 and up in order. */
static uint32_t letter_of_byte(unsigned c)
{
    if ((c >= 0x21 && c <= 0x7E) || (c >= 0xA1 && c != 0xAD))
        return c;
    return 0x100 + (c <= 0x20 ? c : c == 0xAD ? 0x43 : c - 0x7F + 0x21);
}

static moe_err change_letters(const split_job *j, int level, const piece *p)
{
    text_buffer *const text = &j->room->text[level];
    text->n = 0;
    TRY(text_buffer_reserve(text, 2 * p->bytes));
    for (size_t i = 0; i < p->bytes; i++)
        text->n += utf8_encode(text->data + text->n, letter_of_byte((unsigned char)p->text[i]));
    return run_level(j, level + 1, (piece){text->data, text->data, text->n, p->begins});
}

/* Depth is the number of levels (at most SPLIT_LEVELS). */
static moe_err run_level(const split_job *j, int level, piece p)
{
    if (p.bytes == 0)
        return MOE_OK;
    if (level == j->s->levels)
        return j->word(j->arg, p.text, p.bytes);
    switch (j->s->level[level].kind) {
    case CUT_PATTERN: return cut_pattern(j, level, &p);
    case CUT_CLASS:
    case CUT_SPACES:
    case CUT_MARK: return cut_class(j, level, &p);
    case KEEP_WORDS: return keep_words(j, level, &p);
    case CHANGE_METASPACE:
    case CHANGE_PREFIX: return change_text(j, level, &p);
    case CHANGE_LETTERS: return change_letters(j, level, &p);
    }
    return MOE_OK;
}

moe_err split_run(const split *s, split_room *room, const char *text, const char *shadow, size_t bytes, bool begins, split_word_fn word,
                  void *arg)
{
    const split_job job = {s, room, word, arg};
    return run_level(&job, 0, (piece){text, shadow, bytes, begins});
}
