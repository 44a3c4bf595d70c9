/* Two waiting rooms: `half` holds bytes of a character that is not finished, `text` holds whole characters that may begin a stop string.
 * Owns both. One thread. */
#include "engine/serve/text_stream.h"

#include <stdlib.h>
#include <string.h>

#include "models/text/text_buffer.h"
#include "models/text/utf8.h"

static const char replacement[] = "\xEF\xBF\xBD"; /* U+FFFD */

struct text_stream {
    text_stream_options o;
    text_buffer half, text;
    bool begun;     /* a token with text was there */
    size_t emitted; /* bytes of `text` that the last call handed out */
    text_finish finish;
    const char *stopped_by;
};

moe_err text_stream_open(text_stream **out, const text_stream_options *o)
{
    *out = NULL;
    if (o->nstop > TEXT_MAX_STOPS)
        return moe_fail(MOE_E_USAGE, "stop: %d strings; expected at most %d", o->nstop, TEXT_MAX_STOPS);
    for (int i = 0; i < o->nstop; i++) {
        const size_t n = strlen(o->stop[i]);
        if (n == 0 || n > TEXT_MAX_STOP_BYTES)
            return moe_fail(MOE_E_USAGE, "stop: a string of %zu bytes; expected 1 to %d", n, TEXT_MAX_STOP_BYTES);
        if (utf8_valid_prefix(o->stop[i], n) < n)
            return moe_fail(MOE_E_USAGE, "stop: string %d is not valid UTF-8", i + 1);
    }
    text_stream *s = calloc(1, sizeof *s);
    if (s == NULL)
        return moe_fail(MOE_E_OS, "no memory for a stream of text");
    s->o = *o;
    *out = s;
    return MOE_OK;
}

void text_stream_close(text_stream *s)
{
    if (s == NULL)
        return;
    text_buffer_free(&s->half);
    text_buffer_free(&s->text);
    free(s);
}

text_finish text_stream_finish(const text_stream *s) { return s->finish; }

const char *text_stream_stop(const text_stream *s) { return s->stopped_by; }

/* Length of the longest part of s[0, n), n > 0, that begins some character without being one; at least 1 where none begins.
 * *open: more bytes could finish it. */
static size_t unfinished(const char *s, size_t n, bool *open)
{
    const unsigned char *u = (const unsigned char *)s;
    const size_t need = u[0] < 0xC2 || u[0] > 0xF4 ? 1 : u[0] < 0xE0 ? 2 : u[0] < 0xF0 ? 3 : 4;
    const unsigned char low = u[0] == 0xE0 ? 0xA0 : u[0] == 0xF0 ? 0x90 : 0x80;
    const unsigned char high = u[0] == 0xED ? 0x9F : u[0] == 0xF4 ? 0x8F : 0xBF;
    size_t k = 1;
    while (k < need && k < n && u[k] >= (k == 1 ? low : 0x80) && u[k] <= (k == 1 ? high : 0xBF))
        k++;
    *open = k == n && k < need;
    return k;
}

/* Moves what is decided from `half` to `text`; at the end everything is. */
static moe_err decode(text_stream *s, bool end)
{
    size_t at = 0;
    while (at < s->half.n) {
        const char *from = s->half.data + at;
        const size_t whole = utf8_valid_prefix(from, s->half.n - at);
        TRY(text_buffer_append(&s->text, from, whole));
        at += whole;
        if (at == s->half.n)
            break;
        bool open;
        const size_t part = unfinished(from + whole, s->half.n - at, &open);
        if (open && !end)
            break;
        TRY(text_buffer_append(&s->text, replacement, sizeof replacement - 1));
        at += part;
    }
    s->half.n -= at;
    if (s->half.n > 0)
        memmove(s->half.data, s->half.data + at, s->half.n);
    return MOE_OK;
}

/* The first stop string that ends in text(from, n]: where the longest of them begins. */
static bool find_stop(text_stream *s, size_t from, size_t *begin)
{
    for (size_t end = from + 1; end <= s->text.n; end++) {
        size_t longest = 0;
        for (int i = 0; i < s->o.nstop; i++) {
            const size_t n = strlen(s->o.stop[i]);
            if (n > longest && n <= end && memcmp(s->text.data + end - n, s->o.stop[i], n) == 0) {
                longest = n;
                s->stopped_by = s->o.stop[i];
            }
        }
        if (longest > 0) {
            *begin = end - longest;
            return true;
        }
    }
    return false;
}

/* Bytes at the end of the text that begin a stop string. */
static size_t undecided(const text_stream *s)
{
    size_t most = 0;
    for (int i = 0; i < s->o.nstop; i++) {
        size_t n = strlen(s->o.stop[i]) - 1;
        for (n = n < s->text.n ? n : s->text.n; n > most; n--)
            if (memcmp(s->text.data + s->text.n - n, s->o.stop[i], n) == 0)
                most = n;
    }
    return most;
}

static void drop_emitted(text_stream *s)
{
    s->text.n -= s->emitted;
    if (s->text.n > 0)
        memmove(s->text.data, s->text.data + s->emitted, s->text.n);
    s->emitted = 0;
}

/* `scanned` bytes of the text hold no stop string. */
static void emit(text_stream *s, size_t scanned, bool end, const char **text, size_t *n)
{
    size_t begin;
    if (find_stop(s, scanned, &begin)) {
        s->finish = TEXT_STOP;
        s->text.n = begin;
        s->half.n = 0;
        s->emitted = begin;
    } else {
        s->emitted = s->text.n - (end ? 0 : undecided(s));
    }
    if (s->emitted > 0)
        *text = s->text.data;
    *n = s->emitted;
}

static bool is_eos(const text_stream *s, int32_t token)
{
    for (int i = 0; i < s->o.neos; i++)
        if (s->o.eos[i] == token)
            return true;
    return false;
}

moe_err text_stream_push(text_stream *s, int32_t token, const char **text, size_t *n)
{
    const char *piece;
    size_t bytes;
    *text = "";
    *n = 0;
    drop_emitted(s);
    if (s->finish != TEXT_RUNNING)
        return MOE_OK;
    if (is_eos(s, token)) {
        s->finish = TEXT_EOS;
        return MOE_OK;
    }
    if (s->o.skip_special && tokenizer_is_special(s->o.tokenizer, token))
        return MOE_OK;
    const bool first = s->o.begins && !s->begun;
    if ((first ? tokenizer_first_piece : tokenizer_piece)(s->o.tokenizer, token, &piece, &bytes) != MOE_OK)
        return MOE_OK;
    s->begun = true;
    const size_t scanned = s->text.n;
    TRY(text_buffer_append(&s->half, piece, bytes));
    TRY(decode(s, false));
    emit(s, scanned, false, text, n);
    return MOE_OK;
}

moe_err text_stream_end(text_stream *s, const char **text, size_t *n)
{
    *text = "";
    *n = 0;
    drop_emitted(s);
    const size_t scanned = s->text.n;
    TRY(decode(s, true));
    emit(s, scanned, true, text, n);
    return MOE_OK;
}
