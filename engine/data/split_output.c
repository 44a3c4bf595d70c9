/* Safe cuts. (1) Behind a single line feed whose neighbours are no white space and whose right neighbour is a letter, digit or
 * non-ASCII: patterns of the GPT-2, cl100k, o200k, Llama, Qwen and DeepSeek families end a word there whatever follows, and a
 * line feed never composes. (2) Before a single space between an ASCII letter or digit and an ASCII letter: a space opens a word
 * in all of them. A text without either for HARD_PIECE bytes is cut between two characters: one word of that length may then
 * become two. Test: pieces_change_no_token.
 *
 * Documents are joined by EOS: the token is written when the next document brings its first one, and belongs to the document
 * before. */
#include "engine/data/split_output.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "models/text/utf8.h"

enum {
    PIECE = 1 << 20,      /* bytes: tokenized at once when there is a safe cut */
    HARD_PIECE = 4 << 20, /* bytes: cut anyway */
};

moe_err split_output_open(split_output *o, const tokenizer *tok, const char *dir, const char *split)
{
    *o = (split_output){.tok = tok, .where = ""};
    o->count = calloc((size_t)tokenizer_vocab(tok), sizeof *o->count);
    if (!o->count)
        return moe_fail(MOE_E_OS, "no memory for %d counts", tokenizer_vocab(tok));
    return megatron_writer_open(&o->writer, dir, split, tokenizer_vocab(tok));
}

void split_output_close(split_output *o)
{
    megatron_writer_close(&o->writer);
    text_buffer_free(&o->text);
    free(o->ids.id);
    free(o->count);
    *o = (split_output){0};
}

/* The character before position i is no white space (i > 0, valid UTF-8 before it). */
static bool solid_before(const char *text, size_t i)
{
    size_t k = i - 1;
    uint32_t cp;
    while (k > 0 && utf8_is_continuation(text[k]))
        k--;
    return utf8_decode(text + k, i - k, &cp) == i - k && !utf8_is_space(cp) && cp >= 0x20;
}

static bool solid_after(const char *text, size_t n, size_t i)
{
    uint32_t cp;
    return utf8_decode(text + i, n - i, &cp) > 0 && !utf8_is_space(cp) && (cp >= 0x80 || isalnum((int)cp));
}

size_t split_output_safe_cut(const char *text, size_t n)
{
    for (size_t i = n > 5 ? n - 5 : 0; i > 0; i--) /* the character behind the cut is whole */
        if (text[i - 1] == '\n' && i > 1 && solid_before(text, i - 1) && solid_after(text, n, i))
            return i;
    for (size_t i = n > 5 ? n - 5 : 0; i > 0; i--)
        if (text[i] == ' ' && isalnum((unsigned char)text[i - 1]) && isalpha((unsigned char)text[i + 1]) &&
            (unsigned char)text[i - 1] < 0x80 && (unsigned char)text[i + 1] < 0x80)
            return i;
    return 0;
}

/* The last border between characters of valid text. */
static size_t last_character(const char *text, size_t n)
{
    size_t i = n;
    while (i > 0 && n - i < 4 && utf8_is_continuation(text[i - 1]))
        i--;
    return i > 0 ? i - 1 : 0;
}

/* The first tokens of a document close the document before. */
static moe_err join_documents(split_output *o)
{
    const int32_t eos = tokenizer_eos(o->tok);
    o->begun = false;
    if (!o->open) {
        o->open = true;
        return MOE_OK;
    }
    if (eos >= 0) {
        TRY(megatron_writer_tokens(&o->writer, &eos, 1));
        o->count[eos]++;
    } else if (!tokenizer_is_bytes(o->tok)) {
        return moe_fail(MOE_E_DATA,
                        "%s: a second document, but the tokenizer has no end-of-sequence token to join them with; put a "
                        "tokenizer_config.json with \"eos_token\" beside the tokenizer.json",
                        o->where);
    }
    return megatron_writer_end_document(&o->writer);
}

static moe_err tokenize(split_output *o, const char *text, size_t n)
{
    o->ids.n = 0;
    if (!tokenizer_is_bytes(o->tok)) {
        const size_t valid = utf8_valid_prefix(text, n);
        if (valid < n)
            return moe_fail(MOE_E_DATA,
                            "%s: not valid UTF-8 at byte %lld (0x%02x); convert it (iconv) or use the tokenizer \"bytes\"",
                            o->where, (long long)(o->text_start + (int64_t)valid), (unsigned char)text[valid]);
    }
    TRY(tokenizer_encode(o->tok, text, n, false, &o->ids));
    if (o->ids.n == 0)
        return MOE_OK;
    if (o->begun)
        TRY(join_documents(o));
    for (size_t i = 0; i < o->ids.n; i++)
        o->count[o->ids.id[i]]++;
    return megatron_writer_tokens(&o->writer, o->ids.id, (int64_t)o->ids.n);
}

void split_output_begin(split_output *o, const char *where, int64_t offset)
{
    o->begun = true;
    o->where = where;
    o->text.n = 0;
    o->text_start = offset;
}

/* Tokenizes what can be cut off the text that waits. */
static moe_err drain(split_output *o)
{
    while (o->text.n >= PIECE) {
        size_t cut = split_output_safe_cut(o->text.data, o->text.n);
        if (cut == 0 && o->text.n < HARD_PIECE)
            return MOE_OK;
        if (cut == 0)
            cut = last_character(o->text.data, o->text.n);
        TRY(tokenize(o, o->text.data, cut));
        o->text.n -= cut;
        o->text_start += (int64_t)cut;
        memmove(o->text.data, o->text.data + cut, o->text.n);
    }
    return MOE_OK;
}

moe_err split_output_text(split_output *o, const char *text, size_t n)
{
    o->bytes += (int64_t)n;
    if (tokenizer_is_bytes(o->tok))
        return tokenize(o, text, n);
    while (n > 0) {
        const size_t k = n < PIECE ? n : PIECE;
        TRY(text_buffer_append(&o->text, text, k));
        TRY(drain(o));
        text += k;
        n -= k;
    }
    return MOE_OK;
}

moe_err split_output_end(split_output *o)
{
    if (o->text.n > 0)
        TRY(tokenize(o, o->text.data, o->text.n));
    o->text.n = 0;
    return MOE_OK;
}

moe_err split_output_finish(split_output *o) { return megatron_writer_finish(&o->writer); }
