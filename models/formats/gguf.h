/* GGUF files, versions 2 and 3, little-endian: metadata by key, and where each tensor lies. Split files (NAME-00001-of-0000N.gguf) are one. Reads
 * only the metadata; the data is the caller's to read. Files are hostile until checked: every length is checked against the file
 * before it is used, no key and no tensor twice, every tensor aligned, inside its file and overlapping no other.
 * Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Read-only once open, any thread. */
#ifndef MOE_MODELS_FORMATS_GGUF_H
#define MOE_MODELS_FORMATS_GGUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/error.h"
#include "kernels/numfmt.h"

enum {
    GGUF_DIMS = 4,
    GGUF_MAX_HEADER = 512 << 20, /* bytes of metadata in one file: vocabularies with their merges are about 20 MB */
    GGUF_MAX_NAME = 1024,        /* bytes of a key or of a tensor's name */
    GGUF_MAX_FILES = 1024,       /* of one split model */
};

/* Numbers as in the file. */
typedef enum gguf_type {
    GGUF_U8, GGUF_I8, GGUF_U16, GGUF_I16, GGUF_U32, GGUF_I32, GGUF_F32, GGUF_BOOL, GGUF_STRING, GGUF_ARRAY, GGUF_U64, GGUF_I64, GGUF_F64, GGUF_TYPES
} gguf_type;

typedef struct gguf_value {
    const char *key;     /* NUL-terminated                                                */
    gguf_type type;      /* of the value; of the items when `array`                       */
    bool array;
    uint64_t n;          /* items; 1 when it is no array                                  */
    const uint8_t *data; /* the items as in the file (strings: 8 bytes length, the bytes) */
    size_t bytes;
} gguf_value;

typedef struct gguf_tensor {
    const char *name;        /* NUL-terminated                                             */
    int dims;                /* 1 .. GGUF_DIMS                                             */
    int64_t shape[GGUF_DIMS]; /* innermost (a row's length) first; 1 behind dims            */
    numfmt format;
    int file;
    uint64_t begin, bytes;   /* in its file, absolute                                      */
} gguf_tensor;

typedef struct gguf gguf;

/* MOE_E_NOINPUT when a file cannot be opened, MOE_E_DATA when it is damaged or holds a type we do not read (the sentence names the tensor and the
 * type). A split model is opened by its first file. */
moe_err gguf_open(gguf **out, const char *path) MOE_MUST_CHECK;
void gguf_close(gguf *g);
/* Does the file begin like a GGUF file? false also when it cannot be read. */
bool gguf_is(const char *path);
int gguf_files(const gguf *g);
const char *gguf_path(const gguf *g, int file);
uint64_t gguf_file_bytes(const gguf *g, int file);

/* Tensors in the order of their names. */
int64_t gguf_count(const gguf *g);
const gguf_tensor *gguf_at(const gguf *g, int64_t i);
const gguf_tensor *gguf_tensor_find(const gguf *g, const char *name); /* NULL: not there */

/* Metadata of the first file, in the order of the keys. */
int64_t gguf_keys(const gguf *g);
const gguf_value *gguf_key(const gguf *g, int64_t i);
const gguf_value *gguf_find(const gguf *g, const char *key); /* NULL: not there */
/* MOE_E_DATA names file and key when it is missing, of another kind, or out of range. Integers of any width, floats of both. */
moe_err gguf_get_int(const gguf *g, const char *key, int64_t low, int64_t high, int64_t *out) MOE_MUST_CHECK;
moe_err gguf_get_number(const gguf *g, const char *key, double *out) MOE_MUST_CHECK; /* finite */
moe_err gguf_get_bool(const gguf *g, const char *key, bool *out) MOE_MUST_CHECK;
moe_err gguf_get_string(const gguf *g, const char *key, const char **s, size_t *n) MOE_MUST_CHECK; /* lives as long as g; no NUL behind it */
/* An array of `type`; MOE_E_DATA otherwise. */
moe_err gguf_get_array(const gguf *g, const char *key, gguf_type type, const gguf_value **out) MOE_MUST_CHECK;
/* Item i of an array of integers of any width. */
int64_t gguf_item_int(const gguf_value *v, uint64_t i);
double gguf_item_number(const gguf_value *v, uint64_t i); /* F32, F64 */
/* Walks an array of strings: *at 0 first, true while there is one more. */
bool gguf_next_string(const gguf_value *v, size_t *at, const char **s, size_t *n);


#endif
