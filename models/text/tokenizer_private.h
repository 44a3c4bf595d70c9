/* What an open tokenizer is: shared by tokenizer_open.c (files in and out) and tokenizer.c (text and ids).
 * Read-only once open, but for the list of rooms under its lock. */
#ifndef MOE_MODELS_TEXT_TOKENIZER_PRIVATE_H
#define MOE_MODELS_TEXT_TOKENIZER_PRIVATE_H

#include <pthread.h>

#include "models/text/tokenizer_file.h"
#include "models/text/tokenizer_gguf.h"

/* What a thread that encodes borrows. */
typedef struct workroom {
    struct workroom *next;
    bpe_room *bpe;
    unigram_room *unigram;
    split_room *split;
    normal_room *normal;
    text_buffer shadow;
} workroom;

struct tokenizer {
    tokenizer_parts parts;
    tokenizer_ends ends;
    bool gguf;
    char *path, *dir; /* of tokenizer.json or of the GGUF file; NULL for plain bytes */
    char byte[256];
    pthread_mutex_t lock; /* guards rooms */
    workroom *rooms;
};

#endif
