/* The folder and the files of a packed model while they are written: whole or not at all. Private to models/formats. One thread. */
#ifndef MOE_MODELS_FORMATS_PACKED_FILES_H
#define MOE_MODELS_FORMATS_PACKED_FILES_H

#include "models/model.h"

/* dir may not exist, or must be an empty folder (MOE_E_CREATE). Makes dir.partial, without what an earlier attempt left there (MOE_E_CREATE when
 * something else is there); its path is malloc'ed. */
moe_err packed_folder_begin(const char *dir, char **partial) MOE_MUST_CHECK;
/* Syncs the folder and gives it its name. */
moe_err packed_folder_commit(const char *partial, const char *dir) MOE_MUST_CHECK;
void packed_folder_remove(const char *partial); /* with its files */
/* MOE_E_IO when its disk has less room than this. */
moe_err packed_space(const char *partial, uint64_t bytes) MOE_MUST_CHECK;

typedef struct packed_file { /* {.fd = -1} is closed */
    char path[4096];
    int fd;
    uint64_t bytes;
} packed_file;

moe_err packed_file_create(packed_file *f, const char *folder, const char *name) MOE_MUST_CHECK;
moe_err packed_file_write(packed_file *f, const void *data, size_t bytes) MOE_MUST_CHECK;
moe_err packed_file_finish(packed_file *f) MOE_MUST_CHECK; /* syncs and closes; closed: no-op */
void packed_file_abandon(packed_file *f);

/* The files of the model's tokenizer, tokenizer.json and its companions or the metadata of a GGUF file, and generation_config.json. None: nothing to do. */
moe_err packed_copy_tokenizer(const model *m, const char *folder) MOE_MUST_CHECK;

#endif
