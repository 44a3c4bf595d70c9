/* Writes one split as Megatron's .bin and .idx (MMapIndexedDataset, version 1). Private to engine/data.
 * Streams: holds one buffer of tokens; the length of every sequence waits in a file of its own until the index is written.
 * One thread. Writes only *.tmp names; the caller renames them. */
#ifndef MOE_ENGINE_DATA_MEGATRON_WRITER_H
#define MOE_ENGINE_DATA_MEGATRON_WRITER_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "engine/base/error.h"
#include "engine/data/shard.h"

typedef struct megatron_writer {
    char *bin_path, *idx_path, *sizes_path;
    FILE *bin, *sizes;
    token_type type;
    int64_t tokens, sequence; /* all; of the open sequence */
    int64_t sequences, documents;
    bool continued; /* the open document has complete sequences already */
} megatron_writer;

/* dir/split.bin.tmp, .idx.tmp, .sizes.tmp. Megatron's rule: uint16 below 65,500 ids, else int32. MOE_E_CREATE. */
moe_err megatron_writer_open(megatron_writer *w, const char *dir, const char *split, int vocab) MOE_MUST_CHECK;
moe_err megatron_writer_tokens(megatron_writer *w, const int32_t *ids, int64_t n) MOE_MUST_CHECK;
/* The document that the tokens since the last call belong to is complete (nothing without tokens). */
moe_err megatron_writer_end_document(megatron_writer *w) MOE_MUST_CHECK;
/* Writes the index and syncs both files. */
moe_err megatron_writer_finish(megatron_writer *w) MOE_MUST_CHECK;
void megatron_writer_close(megatron_writer *w); /* a zeroed or half-open one too; removes the file of sizes */

#endif
