/* The tables of a vocabulary, shared by bpe.c, which builds them, and bpe_words.c, which reads them.
 * Hashing of bytes is XXH3. */
#ifndef MOE_MODELS_TEXT_BPE_PRIVATE_H
#define MOE_MODELS_TEXT_BPE_PRIVATE_H

#include "models/text/bpe.h"

enum { BPE_MAX_AFFIX = 256 /* bytes */ };

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

static inline size_t merge_slot(const bpe *b, uint64_t pair)
{
    uint64_t h = pair * UINT64_C(0x9E3779B97F4A7C15); /* Fibonacci hashing; the high bits are the good ones */
    size_t i = (h ^ h >> 32) & (b->merge_slots - 1);
    while (b->merges[i].pair != pair && b->merges[i].pair != EMPTY_PAIR)
        i = (i + 1) & (b->merge_slots - 1);
    return i;
}

#endif
