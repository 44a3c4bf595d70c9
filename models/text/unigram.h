/* The Unigram model (Kudo, arXiv 1804.10959): of all ways to cut a word into pieces, the one with the highest sum of scores.
 * Owns scores and a trie; borrows the vocabulary. Built once, read-only after that, any thread; each thread needs its own room.
 * The order of additions and comparisons is Hugging Face's, so that ties and roundings fall the same way. */
#ifndef MOE_MODELS_TEXT_UNIGRAM_H
#define MOE_MODELS_TEXT_UNIGRAM_H

#include "models/text/bpe.h"

typedef struct unigram unigram;
typedef struct unigram_room unigram_room;

moe_err unigram_open(unigram **out, const bpe *vocabulary) MOE_MUST_CHECK;
void unigram_close(unigram *u);
/* Ids come in order, from 0; the piece is in the vocabulary. */
moe_err unigram_add(unigram *u, int32_t id, double score) MOE_MUST_CHECK;
/* unk: id of the piece for what is no piece, -1: such text is an error. byte_fallback: its bytes as "<0xNN>" where all are there. */
moe_err unigram_finish(unigram *u, int32_t unk, bool byte_fallback) MOE_MUST_CHECK;

moe_err unigram_room_open(unigram_room **out) MOE_MUST_CHECK;
void unigram_room_close(unigram_room *r);
/* Appends the ids of one word of n > 0 bytes. */
moe_err unigram_word(const unigram *u, unigram_room *r, const char *word, size_t n, token_ids *out) MOE_MUST_CHECK;

#endif
