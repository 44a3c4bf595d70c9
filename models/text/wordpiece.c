/* Each step looks for at most max_piece bytes, longest first, by the hash of the vocabulary.
 * Owns nothing. Pure. */
#include "models/text/wordpiece.h"

#include <stdlib.h>
#include <string.h>

#include "models/text/utf8.h"

/* The longest piece at word[at]; its id and end, or -1. room: prefix_n + max_piece bytes. */
static int32_t longest(const wordpiece *w, const char *word, size_t at, size_t n, char *room, size_t *end)
{
    const size_t prefix = at > 0 ? w->prefix_n : 0;
    *end = at;
    size_t k = n - at < w->max_piece ? n - at : w->max_piece;
    memcpy(room, w->prefix, prefix);
    memcpy(room + prefix, word + at, k);
    for (; k > 0; k--) {
        if (at + k < n && utf8_is_continuation(word[at + k]))
            continue;
        const int32_t id = bpe_find(w->vocabulary, room, prefix + k);
        *end = at + k;
        if (id >= 0)
            return id;
    }
    return -1;
}

static size_t count_chars(const char *s, size_t n)
{
    size_t chars = 0;
    for (size_t i = 0; i < n; i++)
        chars += !utf8_is_continuation(s[i]);
    return chars;
}

static moe_err cut(const wordpiece *w, const char *word, size_t n, char *room, token_ids *out, bool *known)
{
    *known = true;
    for (size_t at = 0; at < n && *known;) {
        size_t end;
        const int32_t id = longest(w, word, at, n, room, &end);
        *known = id >= 0;
        TRY(token_ids_reserve(out, 1));
        out->id[out->n] = id;
        out->n += *known;
        at = end;
    }
    return MOE_OK;
}

moe_err wordpiece_word(const wordpiece *w, const char *word, size_t n, token_ids *out)
{
    const size_t before = out->n;
    bool known = false;
    TRY(token_ids_reserve(out, 1));
    if (w->whole) {
        const int32_t id = bpe_find(w->vocabulary, word, n);
        known = id >= 0;
        out->id[out->n] = id;
        out->n += known;
    } else if (count_chars(word, n) <= w->max_chars) {
        char *room = malloc(w->prefix_n + w->max_piece + 1);
        if (!room)
            return moe_fail(MOE_E_OS, "no memory for a word");
        const moe_err rc = cut(w, word, n, room, out, &known);
        free(room);
        TRY(rc);
    }
    if (known)
        return MOE_OK;
    out->n = before;
    if (w->unk < 0)
        return moe_fail(MOE_E_DATA, "\"%.*s\" is not in the vocabulary, and neither is unk_token", (int)(n < 60 ? n : 60), word);
    out->id[out->n++] = w->unk;
    return MOE_OK;
}
