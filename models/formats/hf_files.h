/* The open safetensors files of a Hugging Face folder, and where a tensor is among them. Private to models/formats. */
#ifndef MOE_MODELS_FORMATS_HF_FILES_H
#define MOE_MODELS_FORMATS_HF_FILES_H

#include "models/formats/safetensors.h"

typedef struct hf_index_entry {
    const char *name, *file;
    int shard;
} hf_index_entry;

typedef struct hf_files { /* {0} is closed */
    char *dir;
    safetensors **shard; /* [shards] */
    int shards;
    hf_index_entry *index; /* [entries] by name; NULL for a single file */
    int64_t entries;
    char *names; /* of the index */
} hf_files;

/* On an error too the caller owes a close. */
moe_err hf_files_open(hf_files *h, const char *dir) MOE_MUST_CHECK;
void hf_files_close(hf_files *h);
/* NULL: not there. */
const st_tensor *hf_files_find(const hf_files *h, const char *name, int *shard);

#endif
