/* Viterbi over byte positions: from each position that begins a character every piece that begins there is tried, by a trie whose edges are
 * one hash table of (node, byte). Linear in the word for pieces of bounded length. Neighbours that are unknown become one.
 * Owns the tables. Read-only once finished. */
#include "models/text/unigram.h"

#include <stdlib.h>
#include <string.h>

#include "models/text/utf8.h"

#define NO_EDGE UINT64_MAX
#define UNK_PENALTY 10.0 /* below the worst score */

typedef struct edge {
    uint64_t key; /* node << 8 | byte */
    int32_t to;
} edge;

struct unigram {
    const bpe *vocabulary;
    double *score; /* [ids] */
    int32_t ids, capacity;
    edge *edges; /* [slots], a power of two */
    size_t slots, count;
    int32_t *piece; /* [nodes] id of the piece that ends there, -1: none */
    int32_t nodes, node_capacity;
    double min_score;
    int32_t unk, byte_id[256];
    bool byte_fallback;
};

typedef struct path {
    double score;
    int32_t first, id; /* first: where the piece that ends here begins, -1: nothing ends here */
} path;

struct unigram_room {
    path *path;
    int32_t *back; /* ends of the pieces of the best path, last first */
    size_t capacity;
};

moe_err unigram_open(unigram **out, const bpe *vocabulary)
{
    *out = calloc(1, sizeof **out);
    if (!*out)
        return moe_fail(MOE_E_OS, "no memory for a vocabulary");
    (*out)->vocabulary = vocabulary;
    return MOE_OK;
}

void unigram_close(unigram *u)
{
    if (!u)
        return;
    free(u->score);
    free(u->edges);
    free(u->piece);
    free(u);
}

moe_err unigram_add(unigram *u, int32_t id, double score)
{
    if (u->ids == u->capacity) {
        const int32_t capacity = u->capacity * 2 + 1024;
        double *grown = realloc(u->score, (size_t)capacity * sizeof *grown);
        if (!grown)
            return moe_fail(MOE_E_OS, "no memory for %d scores", capacity);
        u->score = grown;
        u->capacity = capacity;
    }
    if (id != u->ids)
        return moe_fail(MOE_E_DATA, "vocabulary: id %d where %d is expected", id, u->ids);
    u->min_score = id == 0 || score < u->min_score ? score : u->min_score;
    u->score[u->ids++] = score;
    return MOE_OK;
}

static edge *find_edge(const unigram *u, int32_t node, unsigned char byte)
{
    const uint64_t key = (uint64_t)(uint32_t)node << 8 | byte, h = key * UINT64_C(0x9E3779B97F4A7C15);
    size_t i = (h ^ h >> 32) & (u->slots - 1);
    while (u->edges[i].key != key && u->edges[i].key != NO_EDGE)
        i = (i + 1) & (u->slots - 1);
    return u->edges + i;
}

static moe_err grow_edges(unigram *u)
{
    const size_t old_slots = u->slots;
    edge *old = u->edges, *edges = malloc((old_slots ? old_slots * 2 : 4096) * sizeof *edges);
    if (!edges)
        return moe_fail(MOE_E_OS, "no memory for a vocabulary of %d pieces", u->ids);
    u->slots = old_slots ? old_slots * 2 : 4096;
    u->edges = edges;
    for (size_t i = 0; i < u->slots; i++)
        edges[i].key = NO_EDGE;
    for (size_t i = 0; i < old_slots; i++)
        if (old[i].key != NO_EDGE)
            *find_edge(u, (int32_t)(old[i].key >> 8), (unsigned char)old[i].key) = old[i];
    free(old);
    return MOE_OK;
}

static moe_err new_node(unigram *u, int32_t *node)
{
    if (u->nodes == u->node_capacity) {
        const int32_t capacity = u->node_capacity * 2 + 4096;
        int32_t *piece = u->node_capacity < INT32_MAX / 4 ? realloc(u->piece, (size_t)capacity * sizeof *piece) : NULL;
        if (!piece)
            return moe_fail(MOE_E_OS, "no memory for a vocabulary of %d pieces", u->ids);
        u->piece = piece;
        u->node_capacity = capacity;
    }
    u->piece[u->nodes] = -1;
    *node = u->nodes++;
    return MOE_OK;
}

static moe_err add_to_trie(unigram *u, int32_t id, const char *text, size_t n)
{
    int32_t node = 0;
    for (size_t i = 0; i < n; i++) {
        if (u->count * 2 >= u->slots)
            TRY(grow_edges(u));
        edge *e = find_edge(u, node, (unsigned char)text[i]);
        if (e->key == NO_EDGE) {
            int32_t to;
            TRY(new_node(u, &to));
            *e = (edge){(uint64_t)(uint32_t)node << 8 | (unsigned char)text[i], to};
            u->count++;
        }
        node = e->to;
    }
    u->piece[node] = id;
    return MOE_OK;
}

moe_err unigram_finish(unigram *u, int32_t unk, bool byte_fallback)
{
    int32_t root;
    if (unk >= u->ids)
        return moe_fail(MOE_E_DATA, "unk_id is %d; the vocabulary has %d pieces", unk, u->ids);
    TRY(grow_edges(u));
    TRY(new_node(u, &root));
    for (int32_t id = 0; id < u->ids; id++) {
        const char *text;
        size_t n;
        if (bpe_piece(u->vocabulary, id, &text, &n) && n > 0)
            TRY(add_to_trie(u, id, text, n));
    }
    u->unk = unk;
    u->byte_fallback = byte_fallback;
    for (int c = 0; c < 256; c++)
        u->byte_id[c] = bpe_find_byte(u->vocabulary, (unsigned char)c);
    return MOE_OK;
}

moe_err unigram_room_open(unigram_room **out)
{
    *out = calloc(1, sizeof **out);
    return *out ? MOE_OK : moe_fail(MOE_E_OS, "no memory for encoding");
}

void unigram_room_close(unigram_room *r)
{
    if (!r)
        return;
    free(r->path);
    free(r->back);
    free(r);
}

static moe_err reserve(unigram_room *r, size_t n)
{
    if (n > INT32_MAX - 1)
        return moe_fail(MOE_E_DATA, "a word of %zu bytes (no place to cut it)", n);
    if (n + 1 > r->capacity) {
        free(r->path);
        free(r->back);
        r->path = malloc((n + 1) * sizeof *r->path);
        r->back = malloc((n + 1) * sizeof *r->back);
        r->capacity = r->path && r->back ? n + 1 : 0;
        if (r->capacity == 0)
            return moe_fail(MOE_E_OS, "no memory for a word of %zu bytes", n);
    }
    for (size_t i = 0; i <= n; i++)
        r->path[i] = (path){.score = 0, .first = -1};
    return MOE_OK;
}

static void offer(path *p, double score, size_t first, int32_t id)
{
    if (p->first < 0 || score > p->score)
        *p = (path){score, (int32_t)first, id};
}

/* The best way to reach every position. */
static moe_err find_paths(const unigram *u, path *best, const char *word, size_t n)
{
    for (size_t at = 0, k; at < n; at += k) {
        uint32_t cp;
        bool single = false;
        k = utf8_decode(word + at, n - at, &cp);
        for (size_t i = at, node = 0; i < n; i++) {
            const edge *e = find_edge(u, (int32_t)node, (unsigned char)word[i]);
            if (e->key == NO_EDGE)
                break;
            node = (size_t)e->to;
            const int32_t id = u->piece[node];
            if (id < 0)
                continue;
            offer(best + i + 1, u->score[id] + best[at].score, at, id);
            single = single || i + 1 == at + k;
        }
        if (single)
            continue;
        if (u->unk < 0)
            return moe_fail(MOE_E_DATA, "U+%04X is in no piece of the vocabulary, which has no unk_id", (unsigned)cp);
        offer(best + at + k, u->min_score - UNK_PENALTY + best[at].score, at, u->unk);
    }
    return MOE_OK;
}

/* The ids of a piece of the path: in the vocabulary, as bytes, or unknown. */
static moe_err append(const unigram *u, const char *text, size_t n, token_ids *out)
{
    const int32_t id = bpe_find(u->vocabulary, text, n);
    bool bytes = id < 0 && u->byte_fallback;
    TRY(token_ids_reserve(out, n));
    for (size_t i = 0; i < n && bytes; i++)
        bytes = u->byte_id[(unsigned char)text[i]] >= 0;
    for (size_t i = 0; i < n && bytes; i++)
        out->id[out->n++] = u->byte_id[(unsigned char)text[i]];
    if (bytes)
        return MOE_OK;
    if (id < 0 && u->unk < 0)
        return moe_fail(MOE_E_DATA, "\"%.*s\" is no piece of the vocabulary, which has no unk_id", (int)(n < 60 ? n : 60), text);
    out->id[out->n++] = id >= 0 ? id : u->unk;
    return MOE_OK;
}

moe_err unigram_word(const unigram *u, unigram_room *r, const char *word, size_t n, token_ids *out)
{
    size_t pieces = 0;
    TRY(reserve(r, n));
    TRY(find_paths(u, r->path, word, n));
    for (int32_t end = (int32_t)n; end > 0; end = r->path[end].first)
        r->back[pieces++] = end;
    for (size_t first = 0; pieces > 0;) {
        int32_t end = r->back[--pieces];
        if (u->unk >= 0 && r->path[end].id == u->unk)
            while (pieces > 0 && r->path[r->back[pieces - 1]].id == u->unk)
                end = r->back[--pieces];
        TRY(append(u, word + first, (size_t)end - first, out));
        first = (size_t)end;
    }
    return MOE_OK;
}
