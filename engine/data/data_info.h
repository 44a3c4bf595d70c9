/* data.json: what `moe-train prepare` says about the folder it made.
 * Plain values, no files kept open. Written last, so that a folder with it is complete.
 * Entropies are in nats per token. */
#ifndef MOE_ENGINE_DATA_DATA_INFO_H
#define MOE_ENGINE_DATA_DATA_INFO_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/base/error.h"

typedef struct data_split_info {
    int64_t tokens, documents, bytes; /* documents: pieces; a document cut for validation counts in both; bytes of text */
    double entropy; /* mean -ln p of its tokens, p = (count in train + 1) / (tokens of train + vocabulary); 0 without tokens */
} data_split_info;

typedef struct data_info {
    char tokenizer[16]; /* "bytes" or "bpe"       */
    int vocab;
    int32_t eos; /* -1: none               */
    double val_fraction;
    bool largest_cut; /* no document was long enough for validation: the largest one was cut */
    data_split_info train, val;
} data_info;

/* MOE_E_NOINPUT: dir/data.json is missing; MOE_E_DATA: it is not what prepare writes. */
moe_err data_info_read(data_info *out, const char *dir) MOE_MUST_CHECK;
/* Writes dir/name and syncs it. */
moe_err data_info_write(const data_info *i, const char *dir, const char *name, const char *dtype, const char *const *files,
                        int nfiles) MOE_MUST_CHECK;

#endif
