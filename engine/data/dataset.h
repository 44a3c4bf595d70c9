/* Token data on disk and the windows cut from it. Reads Megatron .bin/.idx (as `moe-train prepare` writes them), nanoGPT .bin and
 * llm.c .bin shards through the page cache (dropped behind itself). Files are hostile until checked.
 * Window i holds tokens i*S .. i*S + S-1, its targets are tokens i*S+1 .. i*S+S; the window after the last full one is dropped.
 * Attention does not stop at documents: the documents of a file are one stream. */
#ifndef MOE_ENGINE_DATA_DATASET_H
#define MOE_ENGINE_DATA_DATASET_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/base/error.h"

typedef struct dataset dataset;

/* path: the folder `prepare` made (split "train" or "val"), or a .bin file / a folder of .bin shards of another project.
 * MOE_E_NOINPUT: missing. MOE_E_DATA: empty, damaged, fewer than one window. *out is NULL on error. */
moe_err dataset_open(dataset **out, const char *path, const char *split, int seq_len) MOE_MUST_CHECK;
void dataset_close(dataset *d);
int64_t dataset_windows(const dataset *d);
int64_t dataset_tokens(const dataset *d);

/* tokens: [S + 1]. A token id >= vocab is MOE_E_DATA naming file, position and id. */
moe_err dataset_read(dataset *d, int64_t window, int vocab, int32_t *tokens) MOE_MUST_CHECK;

/* The n-th window of training (n counts from 0 over all epochs): a permutation of the windows for each epoch, keyed by seed. */
int64_t dataset_shuffled(int64_t windows, uint64_t seed, int64_t n);

/* moe-train prepare. */
typedef struct prepare_args {
    const char *tokenizer;      /* path of a tokenizer.json or a folder with one, or "bytes" */
    const char *out;
    double val_fraction;        /* default 0.01 */
    const char *const *files;   /* text, .jsonl ("text"), .zst of both */
    int nfiles;
    bool quiet;                 /* no progress on stderr */
} prepare_args;
moe_err data_prepare(const prepare_args *a) MOE_MUST_CHECK;

#endif
