/* SentencePiece's BPE: the whole text is one word of characters; of all neighbours that make a piece together, those of the piece with the highest
 * score are joined first, the leftmost of equals. That is BPE whose merges are all ways to cut a piece into two, ranked by the piece's
 * score (arXiv 1808.06226; sentencepiece's bpe_model.cc), so the table of bpe.h is made from the scores.
 * Spaces are U+2581, one more stands in front (add_space_prefix) of the text and of what follows an added token, as llama.cpp has it. What is
 * no piece becomes its bytes, where the vocabulary has byte tokens, else the unknown token, one for a run.
 * Owns nothing. One thread. Rule: control, byte and unknown tokens never come out of plain text. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "models/text/tokenizer_gguf_private.h"
#include "models/text/utf8.h"

#define MARK "\xE2\x96\x81" /* U+2581 */

enum { MAX_PIECE = 1024 }; /* bytes: all cuts of a piece are looked up; sentencepiece's trainer makes 64 */

static moe_err add_token(tokenizer_parts *p, int32_t id, int64_t type, const char *s, size_t n, text_buffer *b)
{
    (void)b;
    if (n > MAX_PIECE)
        return moe_fail(MOE_E_DATA, "token %d has %zu bytes: expected at most %d", id, n, MAX_PIECE);
    const bool added = type == TOKEN_CONTROL || type == TOKEN_USER || type == TOKEN_UNKNOWN;
    TRY(bpe_add_piece(p->model, id, n > 0 ? s : "", n, n > 0 && (type == TOKEN_NORMAL || type == TOKEN_BYTE)));
    if (!added || n == 0)
        return MOE_OK;
    return added_add(p->added, s, n, (added_token){.id = id, .special = type != TOKEN_USER});
}

typedef struct scored {
    float score;
    int32_t id;
} scored;

static int by_score(const void *a, const void *b)
{
    const scored *x = a, *y = b;
    return x->score > y->score ? -1 : x->score < y->score ? 1 : x->id - y->id;
}

static bool is_normal(const gguf_value *types, int32_t id)
{
    return id >= 0 && (types == NULL || gguf_item_int(types, (uint64_t)id) == TOKEN_NORMAL);
}

/* Every way to cut a piece into two pieces is a merge. */
static moe_err add_cuts(bpe *b, const gguf_value *types, int64_t rank, const char *s, size_t n)
{
    for (size_t cut = 1; cut < n; cut++)
        if (!utf8_is_continuation(s[cut]) && is_normal(types, bpe_find(b, s, cut)) && is_normal(types, bpe_find(b, s + cut, n - cut)))
            TRY(bpe_add_merge(b, rank, s, cut, s + cut, n - cut));
    return MOE_OK;
}

/* Equal scores have one rank. */
static moe_err add_merges(tokenizer_parts *p, const gguf_value *types, const scored *order, int32_t n)
{
    int64_t rank = 0;
    for (int32_t i = 0; i < n; i++) {
        const char *s;
        size_t bytes;
        rank += i > 0 && order[i].score < order[i - 1].score;
        if (is_normal(types, order[i].id) && bpe_piece(p->model, order[i].id, &s, &bytes))
            TRY(add_cuts(p->model, types, rank, s, bytes));
    }
    return MOE_OK;
}

static moe_err read_scores(tokenizer_parts *p, const gguf *g)
{
    const gguf_value *scores;
    const int32_t ids = bpe_ids(p->model);
    TRY(gguf_get_array(g, "tokenizer.ggml.scores", GGUF_F32, &scores));
    if (scores->n != (uint64_t)ids)
        return moe_fail(MOE_E_DATA, "%s: tokenizer.ggml.scores has %llu items: expected %d, one a token", gguf_path(g, 0), (unsigned long long)scores->n,
                        ids);
    scored *order = malloc(((size_t)ids + 1) * sizeof *order);
    if (order == NULL)
        return moe_fail(MOE_E_OS, "no memory for %d scores", ids);
    moe_err rc = MOE_OK;
    for (int32_t id = 0; id < ids && rc == MOE_OK; id++) {
        order[id] = (scored){(float)gguf_item_number(scores, (uint64_t)id), id};
        if (isnan(order[id].score))
            rc = moe_fail(MOE_E_DATA, "%s: the score of token %d is not a number", gguf_path(g, 0), id);
    }
    if (rc == MOE_OK) {
        qsort(order, (size_t)ids, sizeof *order, by_score);
        rc = tokenizer_gguf_locate(g, add_merges(p, gguf_find(g, "tokenizer.ggml.token_type"), order, ids));
    }
    free(order);
    return rc;
}

/* Bytes or an unknown token: one of them takes what is no piece. */
static moe_err read_unknown(tokenizer_parts *p, const gguf *g)
{
    const char *s;
    size_t n;
    int64_t id = 0;
    if (gguf_find(g, "tokenizer.ggml.unknown_token_id") != NULL)
        TRY(gguf_get_int(g, "tokenizer.ggml.unknown_token_id", 0, bpe_ids(p->model) - 1, &id));
    if (bpe_piece(p->model, (int32_t)id, &s, &n)) {
        bpe_set_unknown(p->model, (int32_t)id);
        return MOE_OK;
    }
    return moe_fail(MOE_E_DATA, "%s: the vocabulary is empty", gguf_path(g, 0));
}

static moe_err make_decoder(tokenizer_parts *p, bool prefix)
{
    text_decoder_step spaces = {.kind = DECODE_REPLACE, .bytes = 1};
    TRY(text_decoder_open(&p->decoder));
    TRY(pattern_open(&spaces.pattern, MARK, 3, true));
    spaces.text = strdup(" ");
    if (spaces.text == NULL) {
        pattern_close(spaces.pattern);
        return moe_fail(MOE_E_OS, "no memory for a decoder");
    }
    TRY(text_decoder_add(p->decoder, spaces));
    TRY(text_decoder_add(p->decoder, (text_decoder_step){.kind = DECODE_BYTE_FALLBACK}));
    TRY(text_decoder_add(p->decoder, (text_decoder_step){.kind = DECODE_FUSE}));
    return prefix ? text_decoder_add(p->decoder, (text_decoder_step){.kind = DECODE_STRIP, .mark = ' ', .start = 1}) : MOE_OK;
}

moe_err tokenizer_gguf_spm(tokenizer_parts *p, const gguf *g)
{
    const bpe_chars chars = {.fuse_unk = true, .byte_fallback = true};
    text_buffer b = {0};
    bool prefix = true;
    if (gguf_find(g, "tokenizer.ggml.add_space_prefix") != NULL)
        TRY(gguf_get_bool(g, "tokenizer.ggml.add_space_prefix", &prefix));
    if (prefix)
        TRY(normal_add_prepend(p->normal, MARK, 3));
    TRY(normal_add_replace(p->normal, " ", 1, true, MARK, 3));
    TRY(bpe_use_chars(p->model, &chars));
    const moe_err rc = tokenizer_gguf_tokens(p, g, TOKEN_BYTE, add_token, &b);
    text_buffer_free(&b);
    TRY(rc);
    TRY(read_unknown(p, g));
    TRY(read_scores(p, g));
    TRY(tokenizer_gguf_locate(g, bpe_finish(p->model, false, false)));
    TRY(make_decoder(p, prefix));
    return tokenizer_pieces_make(p);
}
