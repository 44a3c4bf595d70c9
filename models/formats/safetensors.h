/* safetensors files: 8 bytes little-endian length, a JSON header, the data. Reads ranges of tensors, never whole files; writes in one pass,
 * because all sizes are declared first. Files are hostile until checked: header at most 100,000,000 bytes, every size checked before it is
 * multiplied, no overlap, no hole, nothing outside the file, no name twice.
 * Format: https://huggingface.co/docs/safetensors. A file belongs to one owner; reading is thread-safe. */
#ifndef MOE_MODELS_FORMATS_SAFETENSORS_H
#define MOE_MODELS_FORMATS_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "engine/base/error.h"

enum { ST_MAX_HEADER = 100000000, /* bytes; the format's own limit  */
       ST_MAX_NAME = 4096,        /* bytes of a tensor's name       */
       ST_MAX_DIMS = 8 };

typedef enum st_dtype {
    ST_BOOL, ST_U8, ST_I8, ST_F8_E4M3, ST_F8_E5M2, ST_F8_E8M0, ST_I16, ST_U16, ST_F16, ST_BF16, ST_I32, ST_U32, ST_F32, ST_I64, ST_U64, ST_F64, ST_DTYPES
} st_dtype;

const char *st_dtype_name(st_dtype d); /* "BF16" */
size_t st_dtype_bytes(st_dtype d);

typedef struct st_tensor {
    const char *name;      /* NUL-terminated                              */
    const int64_t *shape;  /* [dims]                                      */
    uint64_t begin, bytes; /* in the file, absolute                       */
    int64_t elements;
    uint8_t dtype, dims;
} st_tensor;

typedef struct safetensors safetensors;

/* MOE_E_NOINPUT when it cannot be opened, MOE_E_DATA when it is damaged. *out is NULL on error. */
moe_err safetensors_open(safetensors **out, const char *path) MOE_MUST_CHECK;
void safetensors_close(safetensors *s);
const char *safetensors_path(const safetensors *s);
/* Tensors in the order of their names. */
int64_t safetensors_count(const safetensors *s);
const st_tensor *safetensors_at(const safetensors *s, int64_t i);
const st_tensor *safetensors_find(const safetensors *s, const char *name); /* NULL: not there */

/* The bytes [offset, offset + n) of a tensor as they are; MOE_E_DATA beyond its end, MOE_E_IO when the file cannot be read. */
moe_err safetensors_read(const safetensors *s, const st_tensor *t, uint64_t offset, void *out, size_t n) MOE_MUST_CHECK;
/* Elements [first, first + n) as fp32, exactly: F32, F16, BF16 (MOE_E_DATA for other types). */
moe_err safetensors_read_f32(const safetensors *s, const st_tensor *t, int64_t first, int64_t n, float *out) MOE_MUST_CHECK;

/* The parser alone, for tests and the fuzzer. data_bytes: length of the file behind the header. *tensors (sorted by name, names and
 * shapes included) is one malloc'ed block. `name` is the file's, for messages. */
moe_err safetensors_parse(st_tensor **tensors, int64_t *n, const char *header, size_t bytes, uint64_t data_bytes, const char *name) MOE_MUST_CHECK;

typedef struct st_declare {
    const char *name;
    st_dtype dtype;
    int dims;
    int64_t shape[ST_MAX_DIMS];
} st_declare;

typedef struct st_writer st_writer;
/* Creates the file (it may not exist: MOE_E_CREATE) and writes the header for the tensors in this order. */
moe_err safetensors_create(st_writer **out, const char *path, const st_declare *tensors, int64_t n) MOE_MUST_CHECK;
/* The next bytes of the data, tensor after tensor. More than declared is MOE_E_DATA. */
moe_err safetensors_append(st_writer *w, const void *data, size_t bytes) MOE_MUST_CHECK;
/* All declared bytes must be there; syncs. */
moe_err safetensors_finish(st_writer *w) MOE_MUST_CHECK;
void safetensors_abandon(st_writer *w); /* closes; removes the file unless finished. NULL: no-op */

/* One value; nearest, ties to even; NaN stays NaN. */
uint16_t st_bf16_from_f32(float x);
float st_f32_from_bf16(uint16_t x);
float st_f32_from_f16(uint16_t x);

#endif
