/* WordPiece (Schuster and Nakajima 2012, as in BERT): the longest piece that begins the word, then the longest that goes on, and so forth;
 * a word that cannot be cut so is unknown as a whole. WordLevel is the case without going on: the word or unknown.
 * Borrows the vocabulary; a value, read-only, any thread. */
#ifndef MOE_MODELS_TEXT_WORDPIECE_H
#define MOE_MODELS_TEXT_WORDPIECE_H

#include "models/text/bpe.h"

enum { WORDPIECE_PREFIX = 64 }; /* bytes */

typedef struct wordpiece {
    const bpe *vocabulary;
    char prefix[WORDPIECE_PREFIX]; /* of pieces that go on: "##" */
    size_t prefix_n;
    size_t max_chars;  /* longer words are unknown          */
    size_t max_piece;  /* bytes of the longest piece        */
    int32_t unk;       /* -1: an unknown word is an error   */
    bool whole;        /* WordLevel                         */
} wordpiece;

/* Appends the ids of one word of n > 0 bytes. */
moe_err wordpiece_word(const wordpiece *w, const char *word, size_t n, token_ids *out) MOE_MUST_CHECK;

#endif
