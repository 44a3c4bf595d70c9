/* Merging: repeatedly join the adjacent pair of the lowest rank, the leftmost of equals, until no pair has a rank.
 * Words of up to SHORT_WORD bytes scan their pairs; longer ones keep them in a heap ordered by (rank, position) over a linked
 * list, so that a megabyte of one letter costs n log n. A heap entry is stale when its pair no longer has the rank it was pushed
 * with. Both ways give the same ids (test: short_and_long_words_agree). Hashing is XXH3. */
#include "models/text/bpe.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "models/text/utf8.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

enum {
    SHORT_WORD = 96,       /* bytes: where the scan and the heap cost the same */
    CACHE_WORDS = 1 << 15, /* entries, a power of two: 2 MiB */
    CACHE_WORD_BYTES = 20,
    CACHE_WORD_IDS = 8,
    MAX_AFFIX = 256, /* bytes */
};

typedef struct piece {
    uint64_t offset; /* into `text` */
    uint32_t n;
    bool used, plain;
} piece;

typedef struct merge {
    uint64_t pair; /* left << 32 | right; EMPTY_PAIR: free slot */
    uint32_t rank;
    int32_t id;
} merge;

#define EMPTY_PAIR UINT64_MAX
#define NO_RANK    UINT32_MAX

struct bpe {
    piece *pieces; /* [capacity] by id */
    int32_t ids, capacity;
    char *text;
    size_t text_n, text_capacity;
    int32_t *words; /* [word_slots] ids of plain pieces by hash of their bytes, -1: free */
    size_t word_slots, plain;
    merge *merges; /* [merge_slots] */
    size_t merge_slots, merge_count;
    int32_t byte_id[256]; /* of the byte, or with chars of "<0xNN>" */
    bool whole_words, chars, fuse_unk, byte_fallback;
    char *prefix, *suffix, *unk; /* never NULL with chars, but unk */
    size_t prefix_n, suffix_n;
    bool has_unk;
    int32_t unk_id; /* -1: not in the vocabulary */
};

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
    if (b->prefix_n > MAX_AFFIX || b->suffix_n > MAX_AFFIX)
        return moe_fail(MOE_E_DATA, "prefix or suffix of subwords of %zu bytes; expected at most %d",
                        b->prefix_n > b->suffix_n ? b->prefix_n : b->suffix_n, MAX_AFFIX);
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

static size_t merge_slot(const bpe *b, uint64_t pair)
{
    uint64_t h = pair * UINT64_C(0x9E3779B97F4A7C15); /* Fibonacci hashing; the high bits are the good ones */
    size_t i = (h ^ h >> 32) & (b->merge_slots - 1);
    while (b->merges[i].pair != pair && b->merges[i].pair != EMPTY_PAIR)
        i = (i + 1) & (b->merge_slots - 1);
    return i;
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

/* One line of the cache: the whole answer for a short word. */
typedef struct cached_word {
    char bytes[CACHE_WORD_BYTES];
    uint8_t n, ids; /* n 0: empty */
    int32_t id[CACHE_WORD_IDS];
} cached_word;

struct bpe_room {
    cached_word *cache;        /* [CACHE_WORDS] */
    int32_t *id, *prev, *next; /* [capacity] */
    uint64_t *heap;            /* [3 * capacity] rank << 32 | position */
    size_t capacity;
};

moe_err bpe_room_open(bpe_room **out)
{
    *out = calloc(1, sizeof **out);
    if (*out && ((*out)->cache = calloc(CACHE_WORDS, sizeof *(*out)->cache)))
        return MOE_OK;
    free(*out);
    *out = NULL;
    return moe_fail(MOE_E_OS, "no memory for a cache of words");
}

void bpe_room_close(bpe_room *r)
{
    if (!r)
        return;
    free(r->cache);
    free(r->id);
    free(r->prev);
    free(r->next);
    free(r->heap);
    free(r);
}

static const merge *find_merge(const bpe *b, int32_t left, int32_t right)
{
    const merge *m = b->merges + merge_slot(b, (uint64_t)(uint32_t)left << 32 | (uint32_t)right);
    return m->pair == EMPTY_PAIR ? NULL : m;
}

/* The ids of a word's bytes, without those that are no piece; returns how many. */
static size_t byte_ids(const bpe *b, const char *word, size_t n, int32_t *id)
{
    size_t out = 0;
    for (size_t i = 0; i < n; i++) {
        id[out] = b->byte_id[(unsigned char)word[i]];
        out += id[out] >= 0;
    }
    return out;
}

/* The bytes of one character with its affixes, each as a piece; 0 when one of them is none. */
static size_t fall_back(const bpe *b, const char *text, size_t n, int32_t *id)
{
    for (size_t i = 0; i < n; i++)
        if ((id[i] = b->byte_id[(unsigned char)text[i]]) < 0)
            return 0;
    return n;
}

/* The ids of a word's characters; `unk` waits until a known one comes, as the oracle has it (bytes pass it). */
static moe_err char_ids(const bpe *b, const char *word, size_t bytes, int32_t *id, size_t *count)
{
    char text[2 * MAX_AFFIX + 4];
    size_t out = 0;
    bool waits = false;
    for (size_t i = 0, k; i < bytes; i += k) {
        uint32_t cp;
        size_t n = i > 0 ? b->prefix_n : 0;
        k = utf8_decode(word + i, bytes - i, &cp);
        memcpy(text, b->prefix, n);
        memcpy(text + n, word + i, k);
        n += k;
        if (i + k == bytes) {
            memcpy(text + n, b->suffix, b->suffix_n);
            n += b->suffix_n;
        }
        const int32_t found = bpe_find(b, text, n);
        const size_t fallen = found < 0 && b->byte_fallback ? fall_back(b, text, n, id + out) : 0;
        out += fallen;
        if (found >= 0) {
            if (waits)
                id[out++] = b->unk_id;
            id[out++] = found;
            waits = false;
        } else if (fallen == 0 && b->has_unk) {
            if (b->unk_id < 0)
                return moe_fail(MOE_E_DATA, "vocabulary: the piece for unknown characters, \"%.60s\", is not in it", b->unk);
            if (waits && !b->fuse_unk)
                id[out++] = b->unk_id;
            waits = true;
        }
    }
    if (waits)
        id[out++] = b->unk_id;
    *count = out;
    return MOE_OK;
}

static size_t merge_short(const bpe *b, int32_t *id, size_t n)
{
    uint32_t rank[SHORT_WORD];
    for (size_t i = 0; i + 1 < n; i++) {
        const merge *m = find_merge(b, id[i], id[i + 1]);
        rank[i] = m ? m->rank : NO_RANK;
    }
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++)
            if (rank[i] < rank[best])
                best = i;
        if (rank[best] == NO_RANK)
            break;
        id[best] = find_merge(b, id[best], id[best + 1])->id;
        n--;
        memmove(id + best + 1, id + best + 2, (n - best - 1) * sizeof *id);
        if (best + 2 < n)
            memmove(rank + best + 1, rank + best + 2, (n - best - 2) * sizeof *rank);
        for (size_t i = best ? best - 1 : 0; i <= best && i + 1 < n; i++) {
            const merge *m = find_merge(b, id[i], id[i + 1]);
            rank[i] = m ? m->rank : NO_RANK;
        }
    }
    return n;
}

static void heap_push(uint64_t *heap, size_t *n, uint64_t key)
{
    size_t i = (*n)++;
    for (; i > 0 && heap[(i - 1) / 2] > key; i = (i - 1) / 2)
        heap[i] = heap[(i - 1) / 2];
    heap[i] = key;
}

static uint64_t heap_pop(uint64_t *heap, size_t *n)
{
    const uint64_t top = heap[0], key = heap[--*n];
    size_t i = 0;
    for (size_t child = 1; child < *n; child = 2 * i + 1) {
        child += child + 1 < *n && heap[child + 1] < heap[child];
        if (heap[child] >= key)
            break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = key;
    return top;
}

static moe_err room_reserve(bpe_room *r, size_t n)
{
    if (n <= r->capacity)
        return MOE_OK;
    if (n > INT32_MAX)
        return moe_fail(MOE_E_DATA, "a word of %zu bytes (no place to cut it)", n);
    free(r->id);
    free(r->prev);
    free(r->next);
    free(r->heap);
    r->id = malloc(n * sizeof *r->id);
    r->prev = malloc(n * sizeof *r->prev);
    r->next = malloc(n * sizeof *r->next);
    r->heap = malloc(3 * n * sizeof *r->heap); /* n - 1 first pairs, at most two more per merge */
    const bool all = r->id && r->prev && r->next && r->heap;
    r->capacity = all ? n : 0;
    return all ? MOE_OK : moe_fail(MOE_E_OS, "no memory for a word of %zu bytes", n);
}

static void push_pair(const bpe *b, bpe_room *r, size_t *heap_n, int32_t at)
{
    if (at < 0 || r->next[at] < 0)
        return;
    const merge *m = find_merge(b, r->id[at], r->id[r->next[at]]);
    if (m)
        heap_push(r->heap, heap_n, (uint64_t)m->rank << 32 | (uint32_t)at);
}

/* Merges r->id[0, n); leaves the ids in r->id[0, result). */
static size_t merge_long(const bpe *b, bpe_room *r, size_t n)
{
    size_t heap_n = 0;
    for (size_t i = 0; i < n; i++) {
        r->prev[i] = (int32_t)i - 1;
        r->next[i] = i + 1 < n ? (int32_t)i + 1 : -1;
    }
    for (size_t i = 0; i < n; i++)
        push_pair(b, r, &heap_n, (int32_t)i);
    while (heap_n > 0) {
        const uint64_t key = heap_pop(r->heap, &heap_n);
        const int32_t at = (int32_t)(uint32_t)key;
        const int32_t right = r->id[at] < 0 ? -1 : r->next[at];
        const merge *m = right < 0 ? NULL : find_merge(b, r->id[at], r->id[right]);
        if (!m || m->rank != key >> 32)
            continue; /* stale */
        r->id[at] = m->id;
        r->id[right] = -1;
        r->next[at] = r->next[right];
        if (r->next[at] >= 0)
            r->prev[r->next[at]] = at;
        push_pair(b, r, &heap_n, r->prev[at]);
        push_pair(b, r, &heap_n, at);
    }
    size_t out = 0;
    for (int32_t i = n > 0 ? 0 : -1; i >= 0; i = r->next[i])
        r->id[out++] = r->id[i];
    return out;
}

static moe_err append_ids(token_ids *out, const int32_t *id, size_t n)
{
    TRY(token_ids_reserve(out, n));
    memcpy(out->id + out->n, id, n * sizeof *id);
    out->n += n;
    return MOE_OK;
}

/* A word that is not in the cache. */
static moe_err merge_word(const bpe *b, bpe_room *r, const char *word, size_t n, token_ids *out)
{
    const int32_t whole = b->whole_words ? bpe_find(b, word, n) : -1;
    if (whole >= 0)
        return append_ids(out, &whole, 1);
    if (b->chars) {
        size_t count = 0;
        TRY(room_reserve(r, (n < INT32_MAX ? n : INT32_MAX) * (1 + b->prefix_n) + b->suffix_n + 1));
        TRY(char_ids(b, word, n, r->id, &count));
        return append_ids(out, r->id, count <= SHORT_WORD ? merge_short(b, r->id, count) : merge_long(b, r, count));
    }
    if (n <= SHORT_WORD) {
        int32_t id[SHORT_WORD];
        return append_ids(out, id, merge_short(b, id, byte_ids(b, word, n, id)));
    }
    TRY(room_reserve(r, n));
    return append_ids(out, r->id, merge_long(b, r, byte_ids(b, word, n, r->id)));
}

moe_err bpe_word(const bpe *b, bpe_room *r, const char *word, size_t n, token_ids *out)
{
    if (n > CACHE_WORD_BYTES)
        return merge_word(b, r, word, n, out);
    cached_word *c = r->cache + (XXH3_64bits(word, n) & (CACHE_WORDS - 1));
    if (c->n == n && memcmp(c->bytes, word, n) == 0)
        return append_ids(out, c->id, c->ids);
    const size_t before = out->n;
    TRY(merge_word(b, r, word, n, out));
    const size_t ids = out->n - before;
    if (ids <= CACHE_WORD_IDS) {
        memcpy(c->bytes, word, n);
        c->n = (uint8_t)n;
        c->ids = (uint8_t)ids;
        memcpy(c->id, out->id + before, ids * sizeof *c->id);
    }
    return MOE_OK;
}
