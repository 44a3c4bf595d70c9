/* GGUF files for tests, made key by key and tensor by tensor; wrong on purpose where a test says so. {.version = 3, .alignment = 32} is an empty one.
 * Owns its buffers (gguf_build_free). */
#ifndef MOE_TESTS_MODELS_GGUF_BUILD_H
#define MOE_TESTS_MODELS_GGUF_BUILD_H

#include "engine/base/text.h"
#include "models/formats/gguf.h"

/* ggml's numbers */
enum { GGML_F32 = 0, GGML_F16 = 1, GGML_Q4_0 = 2, GGML_Q4_1 = 3, GGML_Q8_0 = 8, GGML_Q6_K = 14, GGML_BF16 = 30 };

typedef struct gguf_build {
    uint32_t version;
    uint64_t alignment; /* of the data; the key general.alignment is the test's own */
    text_buf keys, infos, data;
    uint64_t nkeys, ntensors;
} gguf_build;

#define GGUF_BUILD {.version = 3, .alignment = 32}

void gguf_build_free(gguf_build *b);
/* A key with its type and raw value. */
void gguf_build_key(gguf_build *b, const char *key, uint32_t type, const void *value, size_t bytes);
void gguf_build_u32(gguf_build *b, const char *key, uint32_t x);
void gguf_build_f32(gguf_build *b, const char *key, float x);
void gguf_build_bool(gguf_build *b, const char *key, bool x);
void gguf_build_string(gguf_build *b, const char *key, const char *s);
void gguf_build_strings(gguf_build *b, const char *key, const char *const *s, size_t n);
void gguf_build_array(gguf_build *b, const char *key, uint32_t type, const void *items, uint64_t n, size_t bytes);
/* shape: a row's length first. The data goes behind what is there, aligned. */
void gguf_build_tensor(gguf_build *b, const char *name, uint32_t type, int dims, const uint64_t *shape, const void *data, size_t bytes);
/* As above, but only the info, with this offset. */
void gguf_build_info(gguf_build *b, const char *name, uint32_t type, uint32_t dims, const uint64_t *shape, uint64_t offset);
/* The whole file; out is appended to. */
void gguf_build_bytes(const gguf_build *b, text_buf *out);
void gguf_build_write(const gguf_build *b, const char *path);

#endif
