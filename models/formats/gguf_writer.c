/* Owns the layout of a GGUF file that is written. Bytes of values are taken over as they were read.
 * Threads: pure. */
#include "models/formats/gguf_writer.h"

#include <string.h>

static void add_u32(text_buf *t, uint32_t x) { text_add_bytes(t, &x, sizeof x); }

static void add_u64(text_buf *t, uint64_t x) { text_add_bytes(t, &x, sizeof x); }

static bool is_wanted(const char *key, const char *const *prefixes)
{
    if (strcmp(key, "general.architecture") == 0)
        return true;
    for (; *prefixes != NULL; prefixes++)
        if (strncmp(key, *prefixes, strlen(*prefixes)) == 0)
            return true;
    return false;
}

static void add_key(text_buf *t, const gguf_value *v)
{
    add_u64(t, strlen(v->key));
    text_add(t, v->key);
    if (v->array)
        add_u32(t, GGUF_ARRAY);
    add_u32(t, v->type);
    if (v->array)
        add_u64(t, v->n);
    text_add_bytes(t, v->data, v->bytes);
}

moe_err gguf_subset(const gguf *g, const char *const *prefixes, text_buf *out)
{
    uint64_t n = 0;
    for (int64_t i = 0; i < gguf_keys(g); i++)
        n += is_wanted(gguf_key(g, i)->key, prefixes);
    text_add(out, "GGUF");
    add_u32(out, 3);
    add_u64(out, 0);
    add_u64(out, n);
    for (int64_t i = 0; i < gguf_keys(g); i++)
        if (is_wanted(gguf_key(g, i)->key, prefixes))
            add_key(out, gguf_key(g, i));
    if (out->failed)
        return moe_fail(MOE_E_OS, "out of memory for the metadata of %s", gguf_path(g, 0));
    return MOE_OK;
}
