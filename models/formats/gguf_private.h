/* What gguf.c and gguf_parse.c share. Private to models/formats, their tests and the fuzzer. */
#ifndef MOE_MODELS_FORMATS_GGUF_PRIVATE_H
#define MOE_MODELS_FORMATS_GGUF_PRIVATE_H

#include "models/formats/gguf.h"

#define GGUF_MAGIC "GGUF"
enum { GGUF_ALIGNMENT = 32 }; /* bytes, unless general.alignment says otherwise */

/* One file's metadata. Values point into the text that was parsed. */
typedef struct gguf_header {
    gguf_value *key;     /* [keys] by key     */
    gguf_tensor *tensor; /* [tensors] by name */
    int64_t keys, tensors;
    char *names;         /* of keys and tensors */
} gguf_header;

/* data: the first `bytes` of a file of file_bytes. *more: data ends inside the metadata and the file does not, come back with more (MOE_OK
 * then, and *out is empty). `name` is the file's, for messages. */
moe_err gguf_parse(gguf_header *out, const void *data, size_t bytes, uint64_t file_bytes, const char *name, bool *more) MOE_MUST_CHECK;
void gguf_header_free(gguf_header *h);

/* A file in memory, copied; one part. */
moe_err gguf_from_memory(gguf **out, const void *data, size_t bytes, const char *name) MOE_MUST_CHECK;

const char *gguf_type_name(gguf_type t);

#endif
