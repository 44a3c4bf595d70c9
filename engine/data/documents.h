/* Input files -> documents -> the two splits. Private to engine/data.
 * A document is a text file or the "text" of one JSONL line (.jsonl, .ndjson, also with .zst). What goes to validation:
 * prepare.c. One thread. Memory: one JSONL line, or one megabyte of a text file. */
#ifndef MOE_ENGINE_DATA_DOCUMENTS_H
#define MOE_ENGINE_DATA_DOCUMENTS_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/data/split_output.h"

enum { CUT_BYTES = 1 << 20 }; /* documents from here on give their last part to validation */

typedef struct documents {
    double val_fraction;
    int64_t cut_number; /* this document is cut whatever its size; -1: none */
    split_output train, val;
    int64_t number;                                  /* documents with text so far */
    int64_t largest, largest_bytes;                  /* number and size of the largest */
    void (*progress)(void *arg, int64_t file_bytes); /* bytes of the current file taken; NULL: none */
    void *progress_arg;
} documents;

/* Reads one file to its end. MOE_E_DATA names file and byte, or file and line. */
moe_err documents_read(documents *d, const char *path) MOE_MUST_CHECK;

/* The "text" of the object in one JSONL line, decoded into *text (overwritten). `where` ("file:line") is for messages. */
moe_err jsonl_text(const char *where, const char *line, size_t n, text_buffer *text) MOE_MUST_CHECK;

#endif
