/* The way of a text: added tokens -> normalizer -> added tokens of normalized text -> words -> model; and back, ids -> text.
 * Each thread that encodes borrows a workroom (match data, word cache, buffers) from a list under a lock, so that encoding itself
 * shares nothing. Everything else is read-only once open (tokenizer_open.c). */
#include <stdlib.h>

#include "models/text/tokenizer_private.h"
#include "models/text/utf8.h"

static void close_room(workroom *w)
{
    bpe_room_close(w->bpe);
    unigram_room_close(w->unigram);
    split_room_close(w->split);
    normal_room_close(w->normal);
    text_buffer_free(&w->shadow);
    free(w);
}

void tokenizer_close(tokenizer *t)
{
    if (!t)
        return;
    for (workroom *w = t->rooms, *next; w; w = next) {
        next = w->next;
        close_room(w);
    }
    tokenizer_parts_free(&t->parts);
    pthread_mutex_destroy(&t->lock);
    free(t->path);
    free(t->dir);
    free(t);
}

bool tokenizer_is_bytes(const tokenizer *t) { return t->parts.bytes; }

int tokenizer_vocab(const tokenizer *t) { return t->parts.bytes ? 256 : bpe_ids(t->parts.model); }

int32_t tokenizer_eos(const tokenizer *t) { return t->ends.eos; }

int32_t tokenizer_bos(const tokenizer *t) { return t->ends.bos; }

bool tokenizer_is_special(const tokenizer *t, int32_t id)
{
    const char *text;
    size_t n, first, last;
    int32_t found;
    if (t->parts.bytes || !bpe_piece(t->parts.model, id, &text, &n))
        return false;
    if (!t->gguf)
        return (size_t)id < t->parts.special.n && t->parts.special.data[id];
    const added_set *const sets[] = {t->parts.added, t->parts.added_normalized};
    for (int i = 0; i < 2; i++) /* one that does not count without specials is special */
        if (added_find(sets[i], text, n, 0, true, &first, &last, &found) && found == id)
            return !added_find(sets[i], text, n, 0, false, &first, &last, &found) || found != id;
    return false;
}

bool tokenizer_next_special(const tokenizer *t, const char *text, size_t bytes, size_t from, size_t *first, size_t *last, int32_t *id)
{
    bool any = false;
    if (t->parts.bytes)
        return false;
    const added_set *const sets[] = {t->parts.added, t->parts.added_normalized};
    for (int i = 0; i < 2; i++) {
        size_t begin, end;
        int32_t found;
        for (size_t at = from; added_find(sets[i], text, bytes, at, true, &begin, &end, &found); at = end) {
            if (!tokenizer_is_special(t, found))
                continue;
            if (!any || begin < *first) {
                *first = begin;
                *last = end;
                *id = found;
            }
            any = true;
            break;
        }
    }
    return any;
}

static moe_err borrow_room(tokenizer *t, workroom **out)
{
    pthread_mutex_lock(&t->lock);
    workroom *w = *out = t->rooms;
    if (w)
        t->rooms = w->next;
    pthread_mutex_unlock(&t->lock);
    if (w)
        return MOE_OK;
    w = calloc(1, sizeof *w);
    if (!w)
        return moe_fail(MOE_E_OS, "no memory for encoding");
    moe_err rc;
    TRY_GOTO(bpe_room_open(&w->bpe), rc, fail);
    TRY_GOTO(unigram_room_open(&w->unigram), rc, fail);
    TRY_GOTO(split_room_open(&w->split), rc, fail);
    TRY_GOTO(normal_room_open(&w->normal), rc, fail);
    *out = w;
    return MOE_OK;
fail:
    close_room(w);
    return rc;
}

static void return_room(tokenizer *t, workroom *w)
{
    pthread_mutex_lock(&t->lock);
    w->next = t->rooms;
    t->rooms = w;
    pthread_mutex_unlock(&t->lock);
}

typedef struct encode_job {
    const tokenizer *t;
    workroom *room;
    bool specials;
    token_ids *out;
} encode_job;

static moe_err encode_word(void *arg, const char *word, size_t bytes)
{
    const encode_job *j = arg;
    const tokenizer_parts *p = &j->t->parts;
    switch (p->kind) {
    case MODEL_BPE: return bpe_word(p->model, j->room->bpe, word, bytes, j->out);
    case MODEL_UNIGRAM: return unigram_word(p->unigram, j->room->unigram, word, bytes, j->out);
    case MODEL_WORDPIECE: return wordpiece_word(&p->wordpiece, word, bytes, j->out);
    }
    return MOE_OK;
}

/* Text without added tokens. begins: the whole text begins with it. */
static moe_err encode_plain(encode_job *j, const char *text, size_t bytes, bool begins)
{
    const char *shadow;
    TRY(unicode_shadow(j->t->parts.unicode, text, bytes, &j->room->shadow, &shadow));
    return split_run(j->t->parts.words, j->room->split, text, shadow, bytes, begins, encode_word, j);
}

/* Cuts the added tokens of a set out of the text and hands what is between them to `rest`. */
static moe_err encode_between(encode_job *j, const added_set *set, const char *text, size_t bytes, bool begins,
                              moe_err (*rest)(encode_job *, const char *, size_t, bool))
{
    size_t from = 0, first, last;
    int32_t id;
    while (added_find(set, text, bytes, from, j->specials, &first, &last, &id)) {
        if (first > from)
            TRY(rest(j, text + from, first - from, begins && from == 0));
        TRY(token_ids_reserve(j->out, 1));
        j->out->id[j->out->n++] = id;
        from = last;
    }
    return from < bytes ? rest(j, text + from, bytes - from, begins && from == 0) : MOE_OK;
}

static moe_err encode_normalized(encode_job *j, const char *text, size_t bytes, bool begins)
{
    const char *normal;
    size_t n;
    TRY(normal_run(j->t->parts.normal, j->room->normal, text, bytes, &normal, &n, &begins));
    return encode_between(j, j->t->parts.added_normalized, normal, n, begins, encode_plain);
}

static moe_err encode_bytes(const char *text, size_t bytes, token_ids *out)
{
    TRY(token_ids_reserve(out, bytes));
    for (size_t i = 0; i < bytes; i++)
        out->id[out->n + i] = (unsigned char)text[i];
    out->n += bytes;
    return MOE_OK;
}

moe_err tokenizer_encode(const tokenizer *t, const char *text, size_t bytes, bool specials, token_ids *out)
{
    if (t->parts.bytes)
        return encode_bytes(text, bytes, out);
    const size_t valid = utf8_valid_prefix(text, bytes);
    if (valid < bytes)
        return moe_fail(MOE_E_DATA, "text is not valid UTF-8: byte 0x%02x at offset %zu", (unsigned char)text[valid], valid);
    encode_job j = {.t = t, .specials = specials, .out = out};
    const size_t before = out->n;
    TRY(borrow_room((tokenizer *)t, &j.room)); /* the list of rooms is the only thing that changes, under its lock */
    const moe_err rc = encode_between(&j, t->parts.added, text, bytes, true, encode_normalized);
    return_room((tokenizer *)t, j.room);
    if (rc != MOE_OK)
        out->n = before;
    return rc;
}

moe_err tokenizer_encode_whole(const tokenizer *t, const char *text, size_t bytes, bool specials, token_ids *out)
{
    const token_ids *const sides[] = {&t->parts.before, &t->parts.after};
    const size_t before = out->n;
    for (int i = 0; i < 2; i++) {
        moe_err rc = token_ids_reserve(out, sides[i]->n);
        for (size_t k = 0; rc == MOE_OK && k < sides[i]->n; k++)
            out->id[out->n++] = sides[i]->id[k];
        if (rc == MOE_OK && i == 0)
            rc = tokenizer_encode(t, text, bytes, specials, out);
        if (rc != MOE_OK) {
            out->n = before;
            return rc;
        }
    }
    return MOE_OK;
}

/* The piece of an id in a table of texts. */
static void find_text(const piece_texts *p, int32_t id, const char **bytes, size_t *n)
{
    const size_t first = id > 0 ? p->end[id - 1] : 0;
    *n = p->end[id] - first;
    *bytes = *n > 0 ? p->text + first : "";
}

moe_err tokenizer_first_piece(const tokenizer *t, int32_t id, const char **bytes, size_t *n)
{
    TRY(tokenizer_piece(t, id, bytes, n));
    if (t->parts.decoder)
        find_text(&t->parts.first, id, bytes, n);
    return MOE_OK;
}

static moe_err decode_pieces(const tokenizer *t, const int32_t *ids, size_t count, bool skip_special, text_list *l)
{
    for (size_t i = 0; i < count; i++) {
        const char *bytes;
        size_t n;
        if ((skip_special && tokenizer_is_special(t, ids[i])) || (!t->parts.bytes && !bpe_piece(t->parts.model, ids[i], &bytes, &n)))
            continue;
        if (t->parts.bytes)
            TRY(tokenizer_piece(t, ids[i], &bytes, &n));
        TRY(text_list_push(l, bytes, n));
    }
    return MOE_OK;
}

moe_err tokenizer_decode(const tokenizer *t, const int32_t *ids, size_t count, bool skip_special, text_buffer *out)
{
    text_list l = {0};
    const size_t before = out->n;
    moe_err rc = decode_pieces(t, ids, count, skip_special, &l);
    if (rc == MOE_OK && t->parts.decoder)
        rc = text_decoder_run(t->parts.decoder, &l, out);
    else if (rc == MOE_OK)
        rc = t->parts.bytes ? text_buffer_append(out, l.bytes.data, l.bytes.n) : decode_append_lossy(out, l.bytes.data, l.bytes.n);
    text_list_free(&l);
    if (rc != MOE_OK)
        out->n = before;
    return rc;
}

moe_err tokenizer_piece(const tokenizer *t, int32_t id, const char **bytes, size_t *n)
{
    if (t->parts.bytes) {
        *bytes = id >= 0 && id < 256 ? t->byte + id : "";
        *n = id >= 0 && id < 256;
        return *n ? MOE_OK : moe_fail(MOE_E_DATA, "token id %d is not a byte", id);
    }
    if (bpe_piece(t->parts.model, id, bytes, n)) {
        if (t->parts.decoder)
            find_text(&t->parts.middle, id, bytes, n);
        return MOE_OK;
    }
    return moe_fail(MOE_E_DATA, "token id %d is not in the vocabulary of %d", id, bpe_ids(t->parts.model));
}
