/* Lays out GGUF files for tests. Single-threaded. */
#include "tests/models/gguf_build.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void add_u32(text_buf *t, uint32_t x) { text_add_bytes(t, &x, sizeof x); }

static void add_u64(text_buf *t, uint64_t x) { text_add_bytes(t, &x, sizeof x); }

static void add_string(text_buf *t, const char *s)
{
    add_u64(t, strlen(s));
    text_add(t, s);
}

void gguf_build_free(gguf_build *b)
{
    text_free(&b->keys);
    text_free(&b->infos);
    text_free(&b->data);
}

void gguf_build_key(gguf_build *b, const char *key, uint32_t type, const void *value, size_t bytes)
{
    add_string(&b->keys, key);
    add_u32(&b->keys, type);
    text_add_bytes(&b->keys, value, bytes);
    b->nkeys++;
}

void gguf_build_u32(gguf_build *b, const char *key, uint32_t x) { gguf_build_key(b, key, GGUF_U32, &x, sizeof x); }

void gguf_build_f32(gguf_build *b, const char *key, float x) { gguf_build_key(b, key, GGUF_F32, &x, sizeof x); }

void gguf_build_bool(gguf_build *b, const char *key, bool x) { gguf_build_key(b, key, GGUF_BOOL, &(char){x}, 1); }

void gguf_build_string(gguf_build *b, const char *key, const char *s)
{
    gguf_build_key(b, key, GGUF_STRING, NULL, 0);
    add_string(&b->keys, s);
}

void gguf_build_array(gguf_build *b, const char *key, uint32_t type, const void *items, uint64_t n, size_t bytes)
{
    gguf_build_key(b, key, GGUF_ARRAY, NULL, 0);
    add_u32(&b->keys, type);
    add_u64(&b->keys, n);
    text_add_bytes(&b->keys, items, bytes);
}

void gguf_build_strings(gguf_build *b, const char *key, const char *const *s, size_t n)
{
    gguf_build_array(b, key, GGUF_STRING, NULL, n, 0);
    for (size_t i = 0; i < n; i++)
        add_string(&b->keys, s[i]);
}

static void pad(text_buf *t, uint64_t alignment)
{
    while (t->used % alignment != 0)
        text_add_bytes(t, "", 1);
}

void gguf_build_info(gguf_build *b, const char *name, uint32_t type, uint32_t dims, const uint64_t *shape, uint64_t offset)
{
    add_string(&b->infos, name);
    add_u32(&b->infos, dims);
    for (uint32_t i = 0; i < dims; i++)
        add_u64(&b->infos, shape[i]);
    add_u32(&b->infos, type);
    add_u64(&b->infos, offset);
    b->ntensors++;
}

void gguf_build_tensor(gguf_build *b, const char *name, uint32_t type, int dims, const uint64_t *shape, const void *data, size_t bytes)
{
    pad(&b->data, b->alignment);
    gguf_build_info(b, name, type, (uint32_t)dims, shape, b->data.used);
    text_add_bytes(&b->data, data, bytes);
}

void gguf_build_bytes(const gguf_build *b, text_buf *out)
{
    text_add(out, "GGUF");
    add_u32(out, b->version);
    add_u64(out, b->ntensors);
    add_u64(out, b->nkeys);
    text_add_bytes(out, b->keys.data, b->keys.used);
    text_add_bytes(out, b->infos.data, b->infos.used);
    pad(out, b->alignment);
    text_add_bytes(out, b->data.data, b->data.used);
}

void gguf_build_write(const gguf_build *b, const char *path)
{
    text_buf t = {0};
    gguf_build_bytes(b, &t);
    FILE *f = fopen(path, "we");
    if (t.failed || f == NULL || fwrite(t.data, 1, t.used, f) != t.used || fclose(f) != 0)
        abort();
    text_free(&t);
}
