/* The vocabulary and the merges as hash tables, built piece by piece. Both tables double when they are half full.
 * Owns them. One thread until bpe_finish. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "models/text/bpe_private.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

moe_err token_ids_reserve(token_ids *ids, size_t more)
{
    if (more <= ids->capacity - ids->n)
        return MOE_OK;
    const size_t want = ids->n + more, capacity = want + want / 2 + 64;
    int32_t *id = more < SIZE_MAX / 64 ? realloc(ids->id, capacity * sizeof *id) : NULL;
    if (!id)
        return moe_fail(MOE_E_OS, "no memory for %zu token ids", capacity);
    ids->id = id;
    ids->capacity = capacity;
    return MOE_OK;
}

moe_err bpe_open(bpe **out)
{
    *out = calloc(1, sizeof **out);
    if (!*out)
        return moe_fail(MOE_E_OS, "no memory for a vocabulary");
    (*out)->unk_id = -1;
    return MOE_OK;
}

void bpe_close(bpe *b)
{
    if (!b)
        return;
    free(b->pieces);
    free(b->text);
    free(b->words);
    free(b->merges);
    free(b->prefix);
    free(b->suffix);
    free(b->unk);
    free(b);
}

moe_err bpe_use_chars(bpe *b, const bpe_chars *c)
{
    b->chars = true;
    b->fuse_unk = c->fuse_unk;
    b->byte_fallback = c->byte_fallback;
    b->prefix = strdup(c->prefix ? c->prefix : "");
    b->suffix = strdup(c->suffix ? c->suffix : "");
    b->unk = c->unk ? strdup(c->unk) : NULL;
    b->has_unk = b->unk != NULL;
    if (!b->prefix || !b->suffix || (c->unk && !b->unk))
        return moe_fail(MOE_E_OS, "no memory for a vocabulary");
    b->prefix_n = strlen(b->prefix);
    b->suffix_n = strlen(b->suffix);
    if (b->prefix_n > BPE_MAX_AFFIX || b->suffix_n > BPE_MAX_AFFIX)
        return moe_fail(MOE_E_DATA, "prefix or suffix of subwords of %zu bytes; expected at most %d",
                        b->prefix_n > b->suffix_n ? b->prefix_n : b->suffix_n, BPE_MAX_AFFIX);
    return MOE_OK;
}

void bpe_set_unknown(bpe *b, int32_t id)
{
    b->has_unk = true;
    b->unk_id = id;
}

int32_t bpe_ids(const bpe *b) { return b->ids; }

bool bpe_piece(const bpe *b, int32_t id, const char **bytes, size_t *n)
{
    const bool there = id >= 0 && id < b->ids && b->pieces[id].used;
    *bytes = there ? b->text + b->pieces[id].offset : "";
    *n = there ? b->pieces[id].n : 0;
    return there;
}

/* The slot of these bytes: the one that holds them, or the free one where they would go. */
static size_t word_slot(const bpe *b, const char *bytes, size_t n)
{
    size_t i = XXH3_64bits(bytes, n) & (b->word_slots - 1);
    for (; b->words[i] >= 0; i = (i + 1) & (b->word_slots - 1)) {
        const piece *p = b->pieces + b->words[i];
        if (p->n == n && memcmp(b->text + p->offset, bytes, n) == 0)
            break;
    }
    return i;
}

int32_t bpe_find(const bpe *b, const char *bytes, size_t n) { return b->word_slots ? b->words[word_slot(b, bytes, n)] : -1; }

static moe_err grow_words(bpe *b)
{
    const size_t slots = b->word_slots ? b->word_slots * 2 : 1024;
    int32_t *words = malloc(slots * sizeof *words);
    if (!words)
        return moe_fail(MOE_E_OS, "no memory for a vocabulary of %zu pieces", slots / 2);
    memset(words, 0xFF, slots * sizeof *words);
    free(b->words);
    b->words = words;
    b->word_slots = slots;
    for (int32_t id = 0; id < b->ids; id++)
        if (b->pieces[id].plain)
            words[word_slot(b, b->text + b->pieces[id].offset, b->pieces[id].n)] = id;
    return MOE_OK;
}

static moe_err grow_pieces(bpe *b, int32_t id, size_t n)
{
    if (id >= b->capacity) {
        const int32_t capacity = id + id / 2 + 1024;
        piece *pieces = realloc(b->pieces, (size_t)capacity * sizeof *pieces);
        if (!pieces)
            return moe_fail(MOE_E_OS, "no memory for a vocabulary of %d ids", capacity);
        memset(pieces + b->capacity, 0, (size_t)(capacity - b->capacity) * sizeof *pieces);
        b->pieces = pieces;
        b->capacity = capacity;
    }
    if (!b->text || n > b->text_capacity - b->text_n) {
        const size_t capacity = (b->text_n + n) * 2 + 65536;
        char *text = realloc(b->text, capacity);
        if (!text)
            return moe_fail(MOE_E_OS, "no memory for %zu bytes of vocabulary", capacity);
        b->text = text;
        b->text_capacity = capacity;
    }
    return MOE_OK;
}

moe_err bpe_add_piece(bpe *b, int32_t id, const char *bytes, size_t n, bool plain)
{
    if (id < 0 || id >= BPE_MAX_IDS || n > UINT32_MAX)
        return moe_fail(MOE_E_DATA, "vocabulary: id %d is out of range (0 to %d)", id, BPE_MAX_IDS - 1);
    if (id < b->ids && b->pieces[id].used)
        return moe_fail(MOE_E_DATA, "vocabulary: id %d is given twice (second piece: \"%.*s\")", id, (int)(n < 60 ? n : 60),
                        bytes);
    if (plain && bpe_find(b, bytes, n) >= 0)
        return moe_fail(MOE_E_DATA, "vocabulary: piece \"%.*s\" has two ids, %d and %d", (int)(n < 60 ? n : 60), bytes,
                        bpe_find(b, bytes, n), id);
    TRY(grow_pieces(b, id, n));
    if (plain && b->plain * 2 >= b->word_slots)
        TRY(grow_words(b));
    memcpy(b->text + b->text_n, bytes, n);
    b->pieces[id] = (piece){.offset = b->text_n, .n = (uint32_t)n, .used = true, .plain = plain};
    b->text_n += n;
    if (id >= b->ids)
        b->ids = id + 1;
    if (plain) {
        b->words[word_slot(b, bytes, n)] = id;
        b->plain++;
    }
    return MOE_OK;
}

static moe_err grow_merges(bpe *b)
{
    const size_t old_slots = b->merge_slots, slots = old_slots ? old_slots * 2 : 1024;
    merge *old = b->merges, *merges = malloc(slots * sizeof *merges);
    if (!merges)
        return moe_fail(MOE_E_OS, "no memory for %zu merges", slots / 2);
    for (size_t i = 0; i < slots; i++)
        merges[i].pair = EMPTY_PAIR;
    b->merges = merges;
    b->merge_slots = slots;
    for (size_t i = 0; i < old_slots; i++)
        if (old[i].pair != EMPTY_PAIR)
            merges[merge_slot(b, old[i].pair)] = old[i];
    free(old);
    return MOE_OK;
}

static moe_err find_part(const bpe *b, int64_t rank, const char *bytes, size_t n, int32_t *id)
{
    *id = bpe_find(b, bytes, n);
    return *id >= 0 ? MOE_OK
                    : moe_fail(MOE_E_DATA, "merge %lld: \"%.*s\" is not in the vocabulary", (long long)rank,
                               (int)(n < 60 ? n : 60), bytes);
}

moe_err bpe_add_merge(bpe *b, int64_t rank, const char *left, size_t nleft, const char *right, size_t nright)
{
    char both[4096];
    int32_t l, r, id;
    const size_t cut = b->chars ? b->prefix_n : 0; /* of the right part */
    if (rank < 0 || rank >= (int64_t)NO_RANK || nleft > sizeof both / 2 || nright > sizeof both / 2)
        return moe_fail(MOE_E_DATA, "merge %lld: a piece of more than %zu bytes", (long long)rank, sizeof both / 2);
    if (nright < cut)
        return moe_fail(MOE_E_DATA, "merge %lld: the second part is shorter than the prefix of subwords", (long long)rank);
    memcpy(both, left, nleft);
    memcpy(both + nleft, right + cut, nright - cut);
    TRY(find_part(b, rank, left, nleft, &l));
    TRY(find_part(b, rank, right, nright, &r));
    TRY(find_part(b, rank, both, nleft + nright - cut, &id));
    if (b->merge_count * 2 >= b->merge_slots)
        TRY(grow_merges(b));
    merge *m = b->merges + merge_slot(b, (uint64_t)(uint32_t)l << 32 | (uint32_t)r);
    b->merge_count += m->pair == EMPTY_PAIR;
    *m = (merge){(uint64_t)(uint32_t)l << 32 | (uint32_t)r, (uint32_t)rank,
                 id}; /* a pair listed twice: the later rank, as the oracle */
    return MOE_OK;
}

int32_t bpe_find_byte(const bpe *b, unsigned char byte)
{
    char name[8];
    return bpe_find(b, name, (size_t)snprintf(name, sizeof name, "<0x%02X>", byte));
}

moe_err bpe_finish(bpe *b, bool whole_words, bool all_bytes)
{
    b->whole_words = whole_words;
    if (b->unk)
        b->unk_id = bpe_find(b, b->unk, strlen(b->unk));
    if (b->merge_slots == 0)
        TRY(grow_merges(b));
    for (int c = 0; c < 256; c++) {
        const char byte = (char)c;
        b->byte_id[c] = b->chars ? bpe_find_byte(b, (unsigned char)c) : bpe_find(b, &byte, 1);
        if (b->byte_id[c] < 0 && all_bytes && !b->chars)
            return moe_fail(MOE_E_DATA, "vocabulary: byte 0x%02x is not in it; a byte-level vocabulary holds all 256", c);
    }
    return MOE_OK;
}
