/* Token data on disk and the windows cut from it. Reads Megatron .bin/.idx (as `moe-train prepare` writes them), nanoGPT .bin and
 * llm.c .bin shards through the page cache (dropped behind itself). Files are hostile until checked.
 * Window i holds tokens i*S .. i*S + S-1, its targets are tokens i*S+1 .. i*S+S; the window after the last full one is dropped.
 * Attention does not stop at documents nor at the ends of files: the files of a split, in the order of their names, are one
 * stream.
 *
 * Which format a .bin has: an .idx of the same name beside it makes it Megatron's; else a header of llm.c (20240520 version 1:
 * uint16 tokens, 20240801 version 7: uint32) says so; else it is nanoGPT's: uint16 from the first byte to the last.
 * Which files of a folder belong to a split: those with the word train (training), val (valid, validation) or test in their names
 * ("train.bin", "fineweb_val_000000.bin"); when no name has such a word, all of them are training data. A single file, given as
 * path or as Megatron's prefix (path without .bin), is training data. */
#ifndef MOE_ENGINE_DATA_DATASET_H
#define MOE_ENGINE_DATA_DATASET_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/base/error.h"

typedef struct dataset dataset;

/* path: the folder `prepare` made (split "train" or "val"), or a .bin file / a folder of .bin shards of another project.
 * MOE_E_NOINPUT: missing, or nothing of this split. MOE_E_DATA: empty, damaged, fewer than one window, or not what data.json of
 * that folder counts. *out is NULL on error. Reading changes nothing: any number of threads. */
moe_err dataset_open(dataset **out, const char *path, const char *split, int seq_len) MOE_MUST_CHECK;
void dataset_close(dataset *d);
int64_t dataset_windows(const dataset *d);
int64_t dataset_tokens(const dataset *d);

/* tokens: [S + 1]. A token id >= vocab is MOE_E_DATA naming file, position and id. */
moe_err dataset_read(dataset *d, int64_t window, int vocab, int32_t *tokens) MOE_MUST_CHECK;

/* The n-th window of training (n counts from 0 over all epochs): a permutation of the windows for each epoch, keyed by seed.
 * Needs no state, so that a run continues inside an epoch by its number alone. windows >= 1, n >= 0. */
int64_t dataset_shuffled(int64_t windows, uint64_t seed, int64_t n);

/* moe-train prepare (prepare.c says how documents are split). Text files may hold anything but NUL bytes for the tokenizer
 * "bytes", valid UTF-8 for the others. MOE_E_USAGE: fraction outside [0, 1), no files. MOE_E_NOINPUT: a missing file. MOE_E_DATA:
 * empty or binary file, invalid UTF-8, a bad JSONL line (file:line). MOE_E_CREATE: out is not empty and not ours. MOE_E_TEMP:
 * locked by another prepare. */
typedef struct prepare_args {
    const char *tokenizer; /* path of a tokenizer.json or a folder with one, or "bytes" */
    const char *out;
    double val_fraction;      /* default 0.01 */
    const char *const *files; /* text, .jsonl ("text"), .zst of both */
    int nfiles;
    bool quiet; /* no progress on stderr */
} prepare_args;
moe_err data_prepare(const prepare_args *a) MOE_MUST_CHECK;

#endif
