/* Merging: repeatedly join the adjacent pair of the lowest rank, the leftmost of equals, until no pair has a rank.
 * Words of up to SHORT_WORD bytes scan their pairs; longer ones keep them in a heap ordered by (rank, position) over a linked
 * list, so that a megabyte of one letter costs n log n. A heap entry is stale when its pair no longer has the rank it was pushed
 * with. Both ways give the same ids (test: short_and_long_words_agree).
 * Owns the rooms; the tables are bpe.c's. */
#include <stdlib.h>
#include <string.h>

#include "models/text/bpe_private.h"
#include "models/text/utf8.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

enum {
    SHORT_WORD = 96,       /* bytes: where the scan and the heap cost the same */
    CACHE_WORDS = 1 << 15, /* entries, a power of two: 2 MiB */
    CACHE_WORD_BYTES = 20,
    CACHE_WORD_IDS = 8,
};

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
    char text[2 * BPE_MAX_AFFIX + 4];
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
