/* Byte-pair encoding: the vocabulary as bytes, the merges as a table of pairs, and the merging of one word. The vocabulary also serves
 * the other models. A word begins as bytes (byte-level) or as characters (bpe_use_chars).
 * Owns its tables. Built once (add pieces, then merges, then finish), read-only after that, any thread; each thread has its own
 * bpe_room, which keeps a cache of words.
 * Sources: Sennrich et al., arXiv 1508.07909; byte-level form of GPT-2. */
#ifndef MOE_MODELS_TEXT_BPE_H
#define MOE_MODELS_TEXT_BPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/error.h"
#include "models/text/tokenizer.h"

enum { BPE_MAX_IDS = 1 << 24 };

typedef struct bpe bpe;
typedef struct bpe_room bpe_room;

moe_err bpe_open(bpe **out) MOE_MUST_CHECK;
void bpe_close(bpe *b);

/* Words are made of characters, not bytes. To be called before the merges, which leave the prefix of their right part out. */
typedef struct bpe_chars {
    const char *prefix, *suffix; /* of all characters but the first, of the last; NULL or "": none */
    const char *unk;             /* the piece for what is no piece, NULL: left out                 */
    bool fuse_unk;               /* one for a run of them                                          */
    bool byte_fallback;          /* "<0x0A>": the bytes of what is no piece, where all are there   */
} bpe_chars;
moe_err bpe_use_chars(bpe *b, const bpe_chars *chars) MOE_MUST_CHECK;
/* In place of chars.unk: the id that stands for what is no piece. After bpe_use_chars. */
void bpe_set_unknown(bpe *b, int32_t id);

/* The bytes of id. `plain`: a piece that merges and words can name (otherwise it is only there to be decoded).
 * MOE_E_DATA: the id or the bytes are taken. */
moe_err bpe_add_piece(bpe *b, int32_t id, const char *bytes, size_t n, bool plain) MOE_MUST_CHECK;
/* Merge number `rank` joins two plain pieces into a third; all three must be there. */
moe_err bpe_add_merge(bpe *b, int64_t rank, const char *left, size_t nleft, const char *right, size_t nright) MOE_MUST_CHECK;
/* whole_words: a word that is a piece needs no merges ("ignore_merges"). all_bytes: MOE_E_DATA when one of the 256 bytes is no piece; otherwise
 * such bytes are left out of every word. */
moe_err bpe_finish(bpe *b, bool whole_words, bool all_bytes) MOE_MUST_CHECK;

/* The id of the piece "<0xNN>", -1: none. */
int32_t bpe_find_byte(const bpe *b, unsigned char byte);
int32_t bpe_ids(const bpe *b);                                           /* highest id + 1                 */
int32_t bpe_find(const bpe *b, const char *bytes, size_t n);             /* id of a plain piece, -1: none  */
bool bpe_piece(const bpe *b, int32_t id, const char **bytes, size_t *n); /* false: no such id    */

moe_err bpe_room_open(bpe_room **out) MOE_MUST_CHECK;
void bpe_room_close(bpe_room *r);
/* Appends the ids of one word of n > 0 bytes. */
moe_err bpe_word(const bpe *b, bpe_room *r, const char *word, size_t n, token_ids *out) MOE_MUST_CHECK;

moe_err token_ids_reserve(token_ids *ids, size_t more) MOE_MUST_CHECK;

#endif
