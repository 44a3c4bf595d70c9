/* Owns the meaning of the tokenizer.ggml.* keys. The file format is gguf.h's.
 * Threads: pure.
 * Rule: a tokenizer that would give other ids than the model was trained with is refused by name. */
#include "models/text/tokenizer_gguf.h"

#include <stdio.h>
#include <string.h>

#include "models/formats/gguf_writer.h"
#include "models/text/text_buffer.h"
#include "models/text/utf8.h"

#define GPT2_WORDS "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
#define LINES_AND_BLANKS "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define CONTRACTIONS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define WORD_START "[^\\r\\n\\p{L}\\p{N}]?"
#define UPPER "\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}"
#define LOWER "\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}"

enum { MAX_PATTERNS = 3 };

/* tokenizer.ggml.pre: what the tokenizer.json of those models says. */
static const struct pre {
    const char *name, *pattern[MAX_PATTERNS];
    bool nfc, whole_words;
} PRES[] = {
    {"gpt-2", {GPT2_WORDS}, false, false},
    {"olmo", {GPT2_WORDS}, true, false},
    {"smollm", {"\\p{N}", GPT2_WORDS}, false, false},
    {"qwen2", {CONTRACTIONS "|" WORD_START "\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" LINES_AND_BLANKS}, true, false},
    {"llama-bpe", {CONTRACTIONS "|" WORD_START "\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" LINES_AND_BLANKS}, false, true},
    {"deepseek-v3",
     {"\\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
      "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|" LINES_AND_BLANKS},
     false, false},
    {"gpt-4o",
     {WORD_START "[" UPPER "]*[" LOWER "]+" CONTRACTIONS "?|" WORD_START "[" UPPER "]+[" LOWER "]*" CONTRACTIONS
                 "?|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" LINES_AND_BLANKS},
     false, true},
};

enum { NPRES = sizeof PRES / sizeof *PRES };

/* tokenizer.ggml.token_type */
enum { TOKEN_NORMAL = 1, TOKEN_UNKNOWN, TOKEN_CONTROL, TOKEN_USER, TOKEN_UNUSED, TOKEN_BYTE };

static moe_err find_pre(const gguf *g, const struct pre **out)
{
    const char *name;
    size_t n;
    text_buf known = {0};
    TRY(gguf_get_string(g, "tokenizer.ggml.model", &name, &n));
    if (n != 4 || memcmp(name, "gpt2", 4) != 0)
        return moe_fail(MOE_E_DATA, "%s: tokenizer.ggml.model is \"%.*s\": only \"gpt2\" (byte-level BPE) is supported", gguf_path(g, 0),
                        n < 64 ? (int)n : 64, name);
    TRY(gguf_get_string(g, "tokenizer.ggml.pre", &name, &n));
    for (int i = 0; i < NPRES; i++) {
        if (strlen(PRES[i].name) == n && memcmp(PRES[i].name, name, n) == 0) {
            *out = &PRES[i];
            text_free(&known);
            return MOE_OK;
        }
        text_printf(&known, "%s%s", i ? ", " : "", PRES[i].name);
    }
    const moe_err rc = moe_fail(MOE_E_DATA, "%s: tokenizer.ggml.pre is \"%.*s\": expected one of %s", gguf_path(g, 0), n < 64 ? (int)n : 64, name,
                                known.failed ? "those known" : known.data);
    text_free(&known);
    return rc;
}

/* The error just made, with the file in front. */
static moe_err locate(const gguf *g, moe_err rc)
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

/* One token of the vocabulary; b: scratch. */
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

static moe_err read_tokens(tokenizer_parts *p, const gguf *g, text_buffer *b)
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
        if (type < TOKEN_NORMAL || type >= TOKEN_BYTE)
            return moe_fail(MOE_E_DATA, "%s: token %d has type %lld: expected %d to %d", gguf_path(g, 0), id, (long long)type, (int)TOKEN_NORMAL,
                            (int)TOKEN_UNUSED);
        TRY(check_utf8(g, "token", id, s, n));
        TRY(locate(g, add_token(p, id, type, s, n, b)));
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
        TRY(locate(g, bpe_add_merge(p->model, rank, b->data, left, second, right)));
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

static moe_err read_ends(const gguf *g, int32_t ids, tokenizer_ends *ends)
{
    bool begins = false;
    TRY(read_id(g, "tokenizer.ggml.eos_token_id", ids, &ends->eos));
    if (gguf_find(g, "tokenizer.ggml.add_bos_token") != NULL)
        TRY(gguf_get_bool(g, "tokenizer.ggml.add_bos_token", &begins));
    return begins ? read_id(g, "tokenizer.ggml.bos_token_id", ids, &ends->bos) : MOE_OK;
}

moe_err tokenizer_gguf_parse(tokenizer_parts *p, tokenizer_ends *ends, const gguf *g)
{
    const struct pre *pre = NULL;
    text_buffer b = {0};
    moe_err rc;
    *ends = (tokenizer_ends){-1, -1};
    TRY(find_pre(g, &pre));
    TRY(bpe_open(&p->model));
    TRY(unicode_open(&p->unicode));
    TRY(normal_open(&p->normal, p->unicode));
    TRY(split_open(&p->words));
    TRY(added_open(&p->added));
    TRY(added_open(&p->added_normalized));
    if (pre->nfc)
        TRY(normal_add_form(p->normal, UNICODE_NFC));
    for (int i = 0; i < MAX_PATTERNS && pre->pattern[i] != NULL; i++)
        TRY(split_add_pattern(p->words, pre->pattern[i], strlen(pre->pattern[i]), false, false, SPLIT_ISOLATED));
    TRY_GOTO(read_tokens(p, g, &b), rc, out);
    TRY_GOTO(read_merges(p, g, &b), rc, out);
    TRY_GOTO(read_ends(g, bpe_ids(p->model), ends), rc, out);
    rc = bpe_finish(p->model, pre->whole_words, false);
out:
    text_buffer_free(&b);
    return rc;
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
