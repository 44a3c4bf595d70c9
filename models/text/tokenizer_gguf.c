/* Owns the meaning of the tokenizer.ggml.* keys; the ways of cutting and SentencePiece's vocabularies are in the files beside it.
 * Threads: pure.
 * Rule: a tokenizer that would give other ids than the model was trained with is refused by name. */
#include "models/text/tokenizer_gguf.h"

#include <stdio.h>
#include <string.h>

#include "models/formats/gguf_writer.h"
#include "models/text/text_buffer.h"
#include "models/text/tokenizer_gguf_private.h"
#include "models/text/utf8.h"

/* The error just made, with the file in front. */
moe_err tokenizer_gguf_locate(const gguf *g, moe_err rc)
{
    char text[512];
    if (rc != MOE_E_DATA)
        return rc;
    moe_error_take(text, sizeof text);
    return moe_fail(rc, "%s: %s", gguf_path(g, 0), text);
}

static moe_err check_utf8(const gguf *g, const char *what, int64_t i, const char *s, size_t n)
{
    if (utf8_valid_prefix(s, n) == n)
        return MOE_OK;
    return moe_fail(MOE_E_DATA, "%s: %s %lld is not valid UTF-8", gguf_path(g, 0), what, (long long)i);
}

/* A token of byte-level BPE. */
static moe_err add_token(tokenizer_parts *p, int32_t id, int64_t type, const char *s, size_t n, text_buffer *b)
{
    const bool added = type == TOKEN_CONTROL || type == TOKEN_USER || type == TOKEN_UNKNOWN;
    b->n = 0;
    TRY(text_buffer_append(b, s, n));
    const bool plain = type == TOKEN_NORMAL && n > 0 && tokenizer_letters_to_bytes(b->data, &b->n);
    TRY(bpe_add_piece(p->model, id, n > 0 ? b->data : "", b->n, plain));
    if (!added || n == 0)
        return MOE_OK;
    return added_add(p->added, s, n, (added_token){.id = id, .special = type != TOKEN_USER});
}

moe_err tokenizer_gguf_tokens(tokenizer_parts *p, const gguf *g, int highest_type, gguf_token_fn add, text_buffer *b)
{
    const gguf_value *tokens, *types = NULL;
    const char *s;
    size_t n, at = 0;
    TRY(gguf_get_array(g, "tokenizer.ggml.tokens", GGUF_STRING, &tokens));
    if (tokens->n > BPE_MAX_IDS)
        return moe_fail(MOE_E_DATA, "%s: tokenizer.ggml.tokens has %llu tokens: expected at most %d", gguf_path(g, 0), (unsigned long long)tokens->n,
                        (int)BPE_MAX_IDS);
    if (gguf_find(g, "tokenizer.ggml.token_type") != NULL) {
        TRY(gguf_get_array(g, "tokenizer.ggml.token_type", GGUF_I32, &types));
        if (types->n != tokens->n)
            return moe_fail(MOE_E_DATA, "%s: tokenizer.ggml.token_type has %llu items: expected %llu, one a token", gguf_path(g, 0),
                            (unsigned long long)types->n, (unsigned long long)tokens->n);
    }
    for (int32_t id = 0; gguf_next_string(tokens, &at, &s, &n); id++) {
        const int64_t type = types != NULL ? gguf_item_int(types, (uint64_t)id) : TOKEN_NORMAL;
        if (type < TOKEN_NORMAL || type > highest_type)
            return moe_fail(MOE_E_DATA, "%s: token %d has type %lld: expected %d to %d", gguf_path(g, 0), id, (long long)type, (int)TOKEN_NORMAL,
                            highest_type);
        TRY(check_utf8(g, "token", id, s, n));
        TRY(tokenizer_gguf_locate(g, add(p, id, type, s, n, b)));
    }
    return MOE_OK;
}

/* "left right" */
static moe_err read_merges(tokenizer_parts *p, const gguf *g, text_buffer *b)
{
    const gguf_value *merges;
    const char *s;
    size_t n, at = 0;
    TRY(gguf_get_array(g, "tokenizer.ggml.merges", GGUF_STRING, &merges));
    for (int64_t rank = 0; gguf_next_string(merges, &at, &s, &n); rank++) {
        const char *space = memchr(s, ' ', n);
        TRY(check_utf8(g, "merge", rank, s, n));
        if (space == NULL || memchr(space + 1, ' ', n - (size_t)(space + 1 - s)) != NULL)
            return moe_fail(MOE_E_DATA, "%s: merge %lld is \"%.*s\": expected two parts and one space", gguf_path(g, 0), (long long)rank,
                            n < 60 ? (int)n : 60, s);
        b->n = 0;
        TRY(text_buffer_append(b, s, n));
        size_t left = (size_t)(space - s), right = n - left - 1;
        char *second = b->data + left + 1;
        if (!tokenizer_letters_to_bytes(b->data, &left) || !tokenizer_letters_to_bytes(second, &right))
            return moe_fail(MOE_E_DATA, "%s: merge %lld has characters that stand for no byte", gguf_path(g, 0), (long long)rank);
        TRY(tokenizer_gguf_locate(g, bpe_add_merge(p->model, rank, b->data, left, second, right)));
    }
    return MOE_OK;
}

static moe_err read_id(const gguf *g, const char *key, int32_t ids, int32_t *out)
{
    int64_t id;
    *out = -1;
    if (gguf_find(g, key) == NULL)
        return MOE_OK;
    TRY(gguf_get_int(g, key, 0, ids - 1, &id));
    *out = (int32_t)id;
    return MOE_OK;
}

static moe_err read_flag(const gguf *g, const char *key, bool *flag)
{
    return gguf_find(g, key) != NULL ? gguf_get_bool(g, key, flag) : MOE_OK;
}

static moe_err set_frame(token_ids *side, int32_t id)
{
    if (id < 0)
        return MOE_OK;
    TRY(token_ids_reserve(side, 1));
    side->id[side->n++] = id;
    return MOE_OK;
}

/* begins, spm: what holds where the file says nothing (SentencePiece's own ids are <unk> <s> </s>, and <s> begins a text). */
static moe_err read_ends(tokenizer_parts *p, const gguf *g, bool begins, bool spm, tokenizer_ends *ends)
{
    const int32_t ids = bpe_ids(p->model);
    bool ended = false;
    int32_t bos;
    TRY(read_id(g, "tokenizer.ggml.eos_token_id", ids, &ends->eos));
    TRY(read_id(g, "tokenizer.ggml.bos_token_id", ids, &bos));
    TRY(read_flag(g, "tokenizer.ggml.add_bos_token", &begins));
    TRY(read_flag(g, "tokenizer.ggml.add_eos_token", &ended));
    if (spm && bos < 0 && ids > 1)
        bos = 1;
    if (spm && ends->eos < 0 && ids > 2)
        ends->eos = 2;
    ends->bos = begins ? bos : -1;
    TRY(set_frame(&p->before, ends->bos));
    return set_frame(&p->after, ended ? ends->eos : -1);
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

static moe_err read_byte_level(tokenizer_parts *p, const gguf *g, const pre_kind *pre)
{
    text_buffer b = {0};
    moe_err rc;
    if (pre->nfc)
        TRY(normal_add_form(p->normal, UNICODE_NFC));
    for (int i = 0; i < MAX_PATTERNS && pre->pattern[i] != NULL; i++)
        TRY(split_add_pattern(p->words, pre->pattern[i], strlen(pre->pattern[i]), false, false, SPLIT_ISOLATED));
    TRY_GOTO(tokenizer_gguf_tokens(p, g, TOKEN_UNUSED, add_token, &b), rc, out);
    TRY_GOTO(read_merges(p, g, &b), rc, out);
    rc = bpe_finish(p->model, pre->whole_words, false);
out:
    text_buffer_free(&b);
    return rc;
}

moe_err tokenizer_gguf_parse(tokenizer_parts *p, tokenizer_ends *ends, const gguf *g)
{
    const pre_kind *pre = NULL;
    const char *model;
    size_t n;
    *ends = (tokenizer_ends){-1, -1};
    TRY(gguf_get_string(g, "tokenizer.ggml.model", &model, &n));
    const bool spm = n == 5 && memcmp(model, "llama", 5) == 0;
    if (!spm && !(n == 4 && memcmp(model, "gpt2", 4) == 0))
        return moe_fail(MOE_E_DATA, "%s: tokenizer.ggml.model is \"%.*s\": only \"gpt2\" (byte-level BPE) and \"llama\" (SentencePiece's BPE) are supported",
                        gguf_path(g, 0), n < 64 ? (int)n : 64, model);
    if (!spm)
        TRY(tokenizer_gguf_pre(g, &pre));
    TRY(open_parts(p));
    TRY(spm ? tokenizer_gguf_spm(p, g) : read_byte_level(p, g, pre));
    return read_ends(p, g, spm || pre->begins, spm, ends);
}

moe_err tokenizer_gguf_text(const char *path, text_buf *out)
{
    static const char *const prefixes[] = {"tokenizer.", NULL};
    gguf *g;
    TRY(gguf_open(&g, path));
    const moe_err rc = gguf_subset(g, prefixes, out);
    gguf_close(g);
    return rc;
}
