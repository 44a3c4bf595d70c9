/* One function a step, from list to list; a token at a time for streams (text_decoder_piece), where a step that needs the whole text (Fuse, then
 * Strip) is applied to the first token only.
 * Owns the steps. */
#include "models/text/decode.h"

#include <stdlib.h>
#include <string.h>

#include "models/text/tokenizer_file.h"
#include "models/text/utf8.h"

struct text_decoder {
    int steps;
    text_decoder_step step[DECODER_STEPS];
};

static const char replacement[] = "\xEF\xBF\xBD"; /* U+FFFD */

moe_err text_list_push(text_list *l, const char *text, size_t bytes)
{
    if (l->n == l->capacity) {
        const size_t capacity = l->capacity * 2 + 64;
        size_t *end = realloc(l->end, capacity * sizeof *end);
        if (!end)
            return moe_fail(MOE_E_OS, "no memory for %zu texts", capacity);
        l->end = end;
        l->capacity = capacity;
    }
    TRY(text_buffer_reserve(&l->bytes, bytes + 1)); /* never NULL */
    TRY(text_buffer_append(&l->bytes, text, bytes));
    l->end[l->n++] = l->bytes.n;
    return MOE_OK;
}

void text_list_free(text_list *l)
{
    text_buffer_free(&l->bytes);
    free(l->end);
    *l = (text_list){0};
}

moe_err text_decoder_open(text_decoder **out)
{
    *out = calloc(1, sizeof **out);
    return *out ? MOE_OK : moe_fail(MOE_E_OS, "no memory for a decoder");
}

void text_decoder_close(text_decoder *d)
{
    if (!d)
        return;
    for (int i = 0; i < d->steps; i++) {
        pattern_close(d->step[i].pattern);
        free(d->step[i].text);
    }
    free(d);
}

bool text_decoder_is_byte_level(const text_decoder *d) { return d->steps == 0 || (d->steps == 1 && d->step[0].kind == DECODE_BYTE_LEVEL); }

moe_err text_decoder_add(text_decoder *d, text_decoder_step step)
{
    if (d->steps == DECODER_STEPS) {
        pattern_close(step.pattern);
        free(step.text);
        return moe_fail(MOE_E_DATA, "more than %d steps of decoding", DECODER_STEPS);
    }
    d->step[d->steps++] = step;
    return MOE_OK;
}

/* --- one text ------------------------------------------------------------------------------------------------------------------- */

/* The byte that "<0xNN>" names, -1: it is another text. */
static int named_byte(const char *s, size_t n)
{
    int value = 0;
    if (n != 6 || memcmp(s, "<0x", 3) != 0 || s[5] != '>')
        return -1;
    for (int i = 3; i < 5; i++) {
        const char c = s[i];
        const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
        if (digit < 0 && !(i == 3 && c == '+')) /* Rust's number parser takes a sign */
            return -1;
        value = value * 16 + (digit < 0 ? 0 : digit);
    }
    return value;
}

moe_err decode_append_lossy(text_buffer *out, const char *s, size_t n)
{
    while (n > 0) {
        const size_t whole = utf8_valid_prefix(s, n);
        TRY(text_buffer_append(out, s, whole));
        s += whole;
        n -= whole;
        if (n == 0)
            break;
        const unsigned char *u = (const unsigned char *)s;
        const size_t need = u[0] < 0xC2 || u[0] > 0xF4 ? 1 : u[0] < 0xE0 ? 2 : u[0] < 0xF0 ? 3 : 4;
        const unsigned char low = u[0] == 0xE0 ? 0xA0 : u[0] == 0xF0 ? 0x90 : 0x80, high = u[0] == 0xED ? 0x9F : u[0] == 0xF4 ? 0x8F : 0xBF;
        size_t k = 1;
        while (k < need && k < n && u[k] >= (k == 1 ? low : 0x80) && u[k] <= (k == 1 ? high : 0xBF))
            k++;
        TRY(text_buffer_append(out, replacement, 3));
        s += k;
        n -= k;
    }
    return MOE_OK;
}

static moe_err replace_all(const char *s, size_t n, const char *from, size_t from_n, const char *to, size_t to_n, text_buffer *out)
{
    for (const char *at; from_n > 0 && (at = memmem(s, n, from, from_n)) != NULL;) {
        TRY(text_buffer_append(out, s, (size_t)(at - s)));
        TRY(text_buffer_append(out, to, to_n));
        n -= (size_t)(at - s) + from_n;
        s = at + from_n;
    }
    return text_buffer_append(out, s, n);
}

static moe_err replace_pattern(const text_decoder_step *d, pattern_room *room, const char *s, size_t n, text_buffer *out)
{
    size_t done = 0, from = 0;
    while (from < n) {
        bool found;
        size_t first, last;
        TRY(pattern_next(d->pattern, room, s, s, n, from, &found, &first, &last));
        if (!found)
            break;
        TRY(text_buffer_append(out, s + done, first - done));
        TRY(text_buffer_append(out, d->text, d->bytes));
        done = from = last;
        if (first == last)
            for (from++; from < n && utf8_is_continuation(s[from]);)
                from++;
    }
    return text_buffer_append(out, s + done, n - done);
}

static void strip(const text_decoder_step *d, const char **s, size_t *n, bool end)
{
    uint32_t cp;
    for (int64_t i = 0; i < d->start && *n > 0; i++) {
        const size_t k = utf8_decode(*s, *n, &cp);
        if (cp != d->mark)
            break;
        *s += k;
        *n -= k;
    }
    for (int64_t i = 0; end && i < d->stop && *n > 0; i++) {
        size_t at = *n - 1;
        while (at > 0 && utf8_is_continuation((*s)[at]))
            at--;
        utf8_decode(*s + at, *n - at, &cp);
        if (cp != d->mark)
            break;
        *n = at;
    }
}

static moe_err metaspace(const text_decoder_step *d, const char *s, size_t n, bool first, text_buffer *out)
{
    char mark[4];
    const size_t bytes = utf8_encode(mark, d->mark);
    return replace_all(s, n, mark, bytes, " ", first && d->lead ? 0 : 1, out);
}

static moe_err clean_up(text_buffer *text, size_t from)
{
    static const char *const pairs[][2] = {{" .", "."}, {" ?", "?"}, {" !", "!"}, {" ,", ","}, {" ' ", "'"}, {" n't", "n't"}, {" 'm", "'m"},
                                           {" do not", " don't"}, {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};
    text_buffer other = {0};
    moe_err rc = MOE_OK;
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0] && rc == MOE_OK; i++) {
        other.n = 0;
        TRY_GOTO(replace_all(text->data + from, text->n - from, pairs[i][0], strlen(pairs[i][0]), pairs[i][1], strlen(pairs[i][1]), &other), rc, done);
        text->n = from;
        TRY_GOTO(text_buffer_append(text, other.data, other.n), rc, done);
    }
done:
    text_buffer_free(&other);
    return rc;
}

static moe_err join_word(const text_decoder_step *d, const char *s, size_t n, bool first, text_buffer *out)
{
    const size_t from = out->n;
    const bool on = !first && n >= d->bytes && memcmp(s, d->text, d->bytes) == 0;
    TRY(text_buffer_append(out, " ", !first && !on));
    TRY(text_buffer_append(out, s + (on ? d->bytes : 0), n - (on ? d->bytes : 0)));
    return d->cleanup && out->n > from ? clean_up(out, from) : MOE_OK;
}

static moe_err byte_level(const char *s, size_t n, text_buffer *out)
{
    TRY(text_buffer_reserve(out, n + 1));
    memcpy(out->data + out->n, s, n);
    tokenizer_letters_to_bytes(out->data + out->n, &n);
    out->n += n;
    return MOE_OK;
}

/* Steps that go text by text. */
static moe_err run_text(const text_decoder_step *d, pattern_room *room, const char *s, size_t n, bool first, bool last, text_buffer *out)
{
    switch (d->kind) {
    case DECODE_REPLACE: return replace_pattern(d, room, s, n, out);
    case DECODE_METASPACE: return metaspace(d, s, n, first, out);
    case DECODE_WORDPIECE: return join_word(d, s, n, first, out);
    case DECODE_BPE: return replace_all(s, n, d->text, d->bytes, " ", !last, out);
    case DECODE_STRIP: strip(d, &s, &n, true); return text_buffer_append(out, s, n);
    case DECODE_BYTE_LEVEL: return byte_level(s, n, out);
    case DECODE_BYTE_FALLBACK:
    case DECODE_FUSE: break;
    }
    return text_buffer_append(out, s, n);
}

/* --- lists ---------------------------------------------------------------------------------------------------------------------- */

/* A run of named bytes is a text where they are UTF-8, else U+FFFD for each. */
static moe_err flush_bytes(text_list *out, text_buffer *bytes)
{
    const size_t n = bytes->n;
    bytes->n = 0;
    if (n > 0 && utf8_valid_prefix(bytes->data, n) == n)
        return text_list_push(out, bytes->data, n);
    for (size_t i = 0; i < n; i++)
        TRY(text_list_push(out, replacement, 3));
    return MOE_OK;
}

static moe_err byte_fallback(const text_list *in, text_list *out, text_buffer *bytes)
{
    for (size_t i = 0, at = 0; i < in->n; at = in->end[i++]) {
        const int byte = named_byte(in->bytes.data + at, in->end[i] - at);
        if (byte >= 0) {
            const char c = (char)byte;
            TRY(text_buffer_append(bytes, &c, 1));
            continue;
        }
        TRY(flush_bytes(out, bytes));
        TRY(text_list_push(out, in->bytes.data + at, in->end[i] - at));
    }
    return flush_bytes(out, bytes);
}

static moe_err run_list(const text_decoder_step *d, pattern_room *room, const text_list *in, text_list *out, text_buffer *b)
{
    b->n = 0;
    if (d->kind == DECODE_FUSE)
        return text_list_push(out, in->bytes.data, in->bytes.n);
    if (d->kind == DECODE_BYTE_FALLBACK)
        return byte_fallback(in, out, b);
    for (size_t i = 0, at = 0; i < in->n; at = in->end[i++]) {
        if (d->kind != DECODE_BYTE_LEVEL)
            b->n = 0;
        TRY(text_buffer_reserve(b, 1));
        TRY(run_text(d, room, in->bytes.data + at, in->end[i] - at, i == 0, i + 1 == in->n, b));
        if (d->kind != DECODE_BYTE_LEVEL)
            TRY(text_list_push(out, b->data, b->n));
    }
    if (d->kind != DECODE_BYTE_LEVEL)
        return MOE_OK;
    TRY(decode_append_lossy(&out->bytes, b->data, b->n));
    return text_list_push(out, NULL, 0);
}

static moe_err join_by_spaces(const text_list *l, text_buffer *out)
{
    for (size_t i = 0, at = 0; i < l->n; at = l->end[i++]) {
        TRY(text_buffer_append(out, " ", i > 0));
        TRY(text_buffer_append(out, l->bytes.data + at, l->end[i] - at));
    }
    return MOE_OK;
}

moe_err text_decoder_run(const text_decoder *d, text_list *tokens, text_buffer *out)
{
    text_list other = {0};
    text_buffer b = {0};
    pattern_room *room = NULL;
    moe_err rc;
    if (d->steps == 0)
        return join_by_spaces(tokens, out);
    TRY(pattern_room_open(&room));
    for (int i = 0; i < d->steps; i++) {
        other.n = other.bytes.n = 0;
        TRY_GOTO(run_list(&d->step[i], room, tokens, &other, &b), rc, done);
        const text_list spare = *tokens;
        *tokens = other;
        other = spare;
    }
    rc = text_buffer_append(out, tokens->bytes.data, tokens->bytes.n);
done:
    pattern_room_close(room);
    text_list_free(&other);
    text_buffer_free(&b);
    return rc;
}

moe_err text_decoder_piece(const text_decoder *d, const char *text, size_t bytes, bool first, text_buffer *out)
{
    text_buffer room[2] = {{0}, {0}};
    pattern_room *match = NULL;
    bool fused = false;
    moe_err rc;
    TRY_GOTO(pattern_room_open(&match), rc, done);
    if (d->steps == 0)
        TRY_GOTO(text_buffer_append(out, " ", !first), rc, done);
    for (int i = 0; i < d->steps; i++) {
        const text_decoder_step *s = &d->step[i];
        text_buffer *to = &room[i % 2];
        const int byte = s->kind == DECODE_BYTE_FALLBACK ? named_byte(text, bytes) : -1;
        const char c = (char)byte;
        fused = fused || s->kind == DECODE_FUSE || s->kind == DECODE_BYTE_LEVEL;
        if (s->kind == DECODE_STRIP && fused) { /* of the whole text: only its beginning is known */
            if (first)
                strip(s, &text, &bytes, false);
            continue;
        }
        to->n = 0;
        TRY_GOTO(text_buffer_reserve(to, 1), rc, done);
        TRY_GOTO(byte >= 0 ? text_buffer_append(to, &c, 1) : run_text(s, match, text, bytes, first, false, to), rc, done);
        text = to->data;
        bytes = to->n;
    }
    rc = text_buffer_append(out, text, bytes);
done:
    pattern_room_close(match);
    text_buffer_free(&room[0]);
    text_buffer_free(&room[1]);
    return rc;
}
