/* Owns the reading of a GGUF file's metadata: bytes -> checked keys and tensors, sorted by name. Knows no file, only its first bytes and its
 * length.
 * Threads: pure.
 * Rule: whatever the bytes say, time is n log n in their length and memory a small multiple of it. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "models/formats/gguf_private.h"

/* The least a key and a tensor take in the file: a count that does not fit is refused before anything is allocated. */
enum { LEAST_KEY = 8 + 1 + 4 + 1, LEAST_TENSOR = 8 + 1 + 4 + 8 + 4 + 8, MAX_ALIGNMENT = 1 << 20 };

static const struct {
    const char *name;
    int bytes; /* of one item; 0: it has a length of its own */
} TYPES[GGUF_TYPES] = {
    [GGUF_U8] = {"uint8", 1},   [GGUF_I8] = {"int8", 1},     [GGUF_U16] = {"uint16", 2}, [GGUF_I16] = {"int16", 2},
    [GGUF_U32] = {"uint32", 4}, [GGUF_I32] = {"int32", 4},   [GGUF_F32] = {"float32", 4}, [GGUF_BOOL] = {"bool", 1},
    [GGUF_STRING] = {"string", 0}, [GGUF_ARRAY] = {"array", 0}, [GGUF_U64] = {"uint64", 8}, [GGUF_I64] = {"int64", 8},
    [GGUF_F64] = {"float64", 8},
};

const char *gguf_type_name(gguf_type t) { return TYPES[t].name; }

/* ggml's tensor types by number; format -1: not read here. */
static const struct {
    const char *name;
    int format;
} TENSOR_TYPES[] = {
    [0] = {"F32", NUM_F32},  [1] = {"F16", NUM_F16},  [2] = {"Q4_0", NUM_Q4_0}, [3] = {"Q4_1", NUM_Q4_1}, [6] = {"Q5_0", NUM_Q5_0},
    [7] = {"Q5_1", NUM_Q5_1},      [8] = {"Q8_0", NUM_Q8_0}, [9] = {"Q8_1", -1},      [10] = {"Q2_K", -1},      [11] = {"Q3_K", -1},
    [12] = {"Q4_K", NUM_Q4_K},     [13] = {"Q5_K", NUM_Q5_K},     [14] = {"Q6_K", NUM_Q6_K},      [15] = {"Q8_K", -1},      [16] = {"IQ2_XXS", -1},
    [17] = {"IQ2_XS", -1},   [18] = {"IQ3_XXS", -1},  [19] = {"IQ1_S", -1},     [20] = {"IQ4_NL", NUM_IQ4_NL},    [21] = {"IQ3_S", -1},
    [22] = {"IQ2_S", -1},    [23] = {"IQ4_XS", -1},   [24] = {"I8", -1},        [25] = {"I16", -1},       [26] = {"I32", -1},
    [27] = {"I64", -1},      [28] = {"F64", -1},      [29] = {"IQ1_M", -1},     [30] = {"BF16", NUM_BF16}, [34] = {"TQ1_0", -1},
    [35] = {"TQ2_0", -1},    [39] = {"MXFP4", NUM_MXFP4},
};

enum { NTENSOR_TYPES = sizeof TENSOR_TYPES / sizeof *TENSOR_TYPES };

/* Pass 1 counts, pass 2 fills: both walk the same code, `out` == NULL in the first. */
typedef struct walker {
    const uint8_t *data;
    size_t bytes, at;
    uint64_t file_bytes;
    const char *name;
    gguf_header *out;
    char *names; /* next free */
    int64_t keys, tensors;
    size_t name_bytes;
    const char *last; /* name of the key or tensor at hand, in the text */
    int last_bytes;   /* at most 200: for messages                       */
    bool more;
} walker;

static moe_err fail(const walker *w, const char *fmt, ...) MOE_PRINTF(2, 3);

static moe_err fail(const walker *w, const char *fmt, ...)
{
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return moe_fail(MOE_E_DATA, "%s: byte %zu of the metadata: %s", w->name, w->at, text);
}

/* The next n bytes. Where the file has them but the text has not, `more` is set and MOE_E_FULL returned. */
static moe_err take(walker *w, uint64_t n, const uint8_t **out)
{
    *out = w->data;
    if (n > w->file_bytes - w->at)
        return fail(w, "%llu bytes expected, but the file ends after %llu", (unsigned long long)n,
                    (unsigned long long)(w->file_bytes - w->at));
    if (n > w->bytes - w->at) {
        w->more = true;
        return MOE_E_FULL;
    }
    *out = w->data + w->at;
    w->at += n;
    return MOE_OK;
}

static moe_err take_u32(walker *w, uint32_t *out)
{
    const uint8_t *p;
    *out = 0;
    TRY(take(w, sizeof *out, &p));
    memcpy(out, p, sizeof *out);
    return MOE_OK;
}

static moe_err take_u64(walker *w, uint64_t *out)
{
    const uint8_t *p;
    *out = 0;
    TRY(take(w, sizeof *out, &p));
    memcpy(out, p, sizeof *out);
    return MOE_OK;
}

/* A key or a tensor's name. */
static moe_err take_name(walker *w, const char *what, const char **out)
{
    uint64_t n;
    const uint8_t *p;
    *out = "";
    TRY(take_u64(w, &n));
    if (n == 0 || n > GGUF_MAX_NAME)
        return fail(w, "%s of %llu bytes: expected 1 to %d", what, (unsigned long long)n, (int)GGUF_MAX_NAME);
    TRY(take(w, n, &p));
    if (memchr(p, '\0', n) != NULL)
        return fail(w, "%s holds a NUL character", what);
    w->last = (const char *)p;
    w->last_bytes = n < 200 ? (int)n : 200;
    w->name_bytes += n + 1;
    if (w->out != NULL) {
        memcpy(w->names, p, n);
        w->names[n] = '\0';
        *out = w->names;
        w->names += n + 1;
    }
    return MOE_OK;
}

static moe_err take_items(walker *w, gguf_value *v)
{
    const uint8_t *p;
    const size_t from = w->at;
    if (v->type == GGUF_STRING) {
        if (v->n > (w->file_bytes - w->at) / 8)
            return fail(w, "key %.*s: %llu strings in a file of %llu bytes", w->last_bytes, w->last, (unsigned long long)v->n, (unsigned long long)w->file_bytes);
        for (uint64_t i = 0; i < v->n; i++) {
            uint64_t n;
            TRY(take_u64(w, &n));
            TRY(take(w, n, &p));
        }
    } else {
        uint64_t bytes;
        if (__builtin_mul_overflow(v->n, (uint64_t)TYPES[v->type].bytes, &bytes))
            return fail(w, "key %.*s: %llu %s in a file of %llu bytes", w->last_bytes, w->last, (unsigned long long)v->n, TYPES[v->type].name,
                        (unsigned long long)w->file_bytes);
        TRY(take(w, bytes, &p));
        for (uint64_t i = 0; v->type == GGUF_BOOL && i < v->n; i++)
            if (p[i] > 1)
                return fail(w, "key %.*s: a bool is %d: expected 0 or 1", w->last_bytes, w->last, p[i]);
    }
    v->data = w->data + from;
    v->bytes = w->at - from;
    return MOE_OK;
}

static moe_err take_type(walker *w, gguf_type *out)
{
    uint32_t t;
    *out = GGUF_U8;
    TRY(take_u32(w, &t));
    if (t >= GGUF_TYPES)
        return fail(w, "key %.*s has value type %u: expected 0 to %d", w->last_bytes, w->last, t, (int)GGUF_TYPES - 1);
    *out = (gguf_type)t;
    return MOE_OK;
}

static moe_err take_key(walker *w)
{
    gguf_value v = {.n = 1};
    TRY(take_name(w, "a key", &v.key));
    TRY(take_type(w, &v.type));
    if (v.type == GGUF_ARRAY) {
        v.array = true;
        TRY(take_type(w, &v.type));
        if (v.type == GGUF_ARRAY)
            return fail(w, "key %.*s: an array of arrays, which is not read", w->last_bytes, w->last);
        TRY(take_u64(w, &v.n));
    }
    TRY(take_items(w, &v));
    if (w->out != NULL)
        w->out->key[w->keys] = v;
    w->keys++;
    return MOE_OK;
}

/* Elements and bytes from shape and type. */
static moe_err size_tensor(walker *w, gguf_tensor *t, uint32_t type)
{
    uint64_t elements = 1, bytes;
    for (int i = 0; i < GGUF_DIMS; i++)
        if (t->shape[i] < 1 || __builtin_mul_overflow(elements, (uint64_t)t->shape[i], &elements) || elements > INT64_MAX)
            return fail(w, "%.*s: dimension %d is %lld: expected a number >= 1 and a product below 2^63", w->last_bytes, w->last, i, (long long)t->shape[i]);
    if (type >= NTENSOR_TYPES || TENSOR_TYPES[type].name == NULL)
        return fail(w, "%.*s has type %u: ggml has no such type", w->last_bytes, w->last, type);
    if (TENSOR_TYPES[type].format < 0)
        return fail(w, "%.*s has type %s: F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K, IQ4_NL and MXFP4 are read", w->last_bytes, w->last, TENSOR_TYPES[type].name);
    t->format = (numfmt)TENSOR_TYPES[type].format;
    const numfmt_info *f = numfmt_about(t->format);
    if (t->shape[0] % f->block != 0)
        return fail(w, "%.*s has rows of %lld: expected a multiple of %d, a block of %s", w->last_bytes, w->last, (long long)t->shape[0], f->block,
                    TENSOR_TYPES[type].name);
    if (__builtin_mul_overflow(elements / (uint64_t)f->block, (uint64_t)f->bytes, &bytes) || bytes > w->file_bytes)
        return fail(w, "%.*s has %llu numbers of type %s, more than a file of %llu bytes holds", w->last_bytes, w->last, (unsigned long long)elements,
                    TENSOR_TYPES[type].name, (unsigned long long)w->file_bytes);
    t->bytes = bytes;
    return MOE_OK;
}

static moe_err take_tensor(walker *w)
{
    gguf_tensor t = {.shape = {1, 1, 1, 1}};
    uint32_t dims, type;
    TRY(take_name(w, "a tensor's name", &t.name));
    TRY(take_u32(w, &dims));
    if (dims < 1 || dims > GGUF_DIMS)
        return fail(w, "%.*s has %u dimensions: expected 1 to %d", w->last_bytes, w->last, dims, (int)GGUF_DIMS);
    t.dims = (int)dims;
    for (uint32_t i = 0; i < dims; i++) {
        uint64_t n;
        TRY(take_u64(w, &n));
        t.shape[i] = n > INT64_MAX ? -1 : (int64_t)n;
    }
    TRY(take_u32(w, &type));
    TRY(take_u64(w, &t.begin)); /* in the data, until settle_tensors */
    TRY(size_tensor(w, &t, type));
    if (w->out != NULL)
        w->out->tensor[w->tensors] = t;
    w->tensors++;
    return MOE_OK;
}

static moe_err walk(walker *w)
{
    const uint8_t *magic;
    uint32_t version;
    uint64_t tensors, keys;
    w->keys = w->tensors = 0;
    w->at = w->name_bytes = 0;
    TRY(take(w, 4, &magic));
    if (memcmp(magic, GGUF_MAGIC, 4) != 0)
        return moe_fail(MOE_E_DATA, "%s is no GGUF file: it does not begin with \"GGUF\"", w->name);
    TRY(take_u32(w, &version));
    if (version != 2 && version != 3)
        return fail(w, version == 0x03000000 || version == 0x02000000 ? "GGUF in big-endian order (version 0x%08x): expected little-endian"
                                                                      : "GGUF version %u: expected 2 or 3", version);
    TRY(take_u64(w, &tensors));
    TRY(take_u64(w, &keys));
    if (keys > w->file_bytes / LEAST_KEY || tensors > w->file_bytes / LEAST_TENSOR)
        return fail(w, "%llu keys and %llu tensors in a file of %llu bytes", (unsigned long long)keys, (unsigned long long)tensors,
                    (unsigned long long)w->file_bytes);
    for (uint64_t i = 0; i < keys; i++)
        TRY(take_key(w));
    for (uint64_t i = 0; i < tensors; i++)
        TRY(take_tensor(w));
    return MOE_OK;
}

static int key_order(const void *a, const void *b) { return strcmp(((const gguf_value *)a)->key, ((const gguf_value *)b)->key); }

static int name_order(const void *a, const void *b) { return strcmp(((const gguf_tensor *)a)->name, ((const gguf_tensor *)b)->name); }

static int begin_order(const void *a, const void *b)
{
    const gguf_tensor *x = a, *y = b;
    return (x->begin > y->begin) - (x->begin < y->begin);
}

static moe_err find_alignment(const walker *w, uint64_t *out)
{
    *out = GGUF_ALIGNMENT;
    for (int64_t i = 0; i < w->keys; i++) {
        const gguf_value *v = &w->out->key[i];
        uint32_t a = 0;
        if (strcmp(v->key, "general.alignment") != 0)
            continue;
        if (v->type == GGUF_U32 && !v->array)
            memcpy(&a, v->data, sizeof a);
        if (a == 0 || a > MAX_ALIGNMENT || (a & (a - 1)) != 0)
            return fail(w, "general.alignment is %u: expected a uint32, a power of two up to %d", a, (int)MAX_ALIGNMENT);
        *out = a;
    }
    return MOE_OK;
}

/* Offsets become absolute; no tensor lies outside the file or on another. */
static moe_err settle_tensors(walker *w)
{
    gguf_tensor *t = w->out->tensor;
    uint64_t alignment;
    TRY(find_alignment(w, &alignment));
    const uint64_t data = (w->at + alignment - 1) / alignment * alignment; /* at < 2^30: no overflow */
    for (int64_t i = 0; i < w->tensors; i++) {
        if (t[i].begin % alignment != 0)
            return fail(w, "%.200s begins at %llu of the data: expected a multiple of %llu", t[i].name, (unsigned long long)t[i].begin,
                        (unsigned long long)alignment);
        if (data > w->file_bytes || t[i].begin > w->file_bytes - data || t[i].bytes > w->file_bytes - data - t[i].begin)
            return fail(w, "%.200s has %llu bytes at %llu of the data, which begins at %llu: the file ends at %llu", t[i].name,
                        (unsigned long long)t[i].bytes, (unsigned long long)t[i].begin, (unsigned long long)data,
                        (unsigned long long)w->file_bytes);
        t[i].begin += data;
    }
    qsort(t, (size_t)w->tensors, sizeof *t, begin_order);
    for (int64_t i = 1; i < w->tensors; i++)
        if (t[i].begin < t[i - 1].begin + t[i - 1].bytes)
            return fail(w, "%.200s and %.200s overlap in the data", t[i - 1].name, t[i].name);
    return MOE_OK;
}

static moe_err check_names(const walker *w)
{
    const gguf_header *h = w->out;
    qsort(h->key, (size_t)w->keys, sizeof *h->key, key_order);
    for (int64_t i = 1; i < w->keys; i++)
        if (strcmp(h->key[i - 1].key, h->key[i].key) == 0)
            return fail(w, "key %.200s occurs twice", h->key[i].key);
    qsort(h->tensor, (size_t)w->tensors, sizeof *h->tensor, name_order);
    for (int64_t i = 1; i < w->tensors; i++)
        if (strcmp(h->tensor[i - 1].name, h->tensor[i].name) == 0)
            return fail(w, "two tensors are named %.200s", h->tensor[i].name);
    return MOE_OK;
}

moe_err gguf_parse(gguf_header *out, const void *data, size_t bytes, uint64_t file_bytes, const char *name, bool *more)
{
    walker w = {.data = data, .bytes = bytes < file_bytes ? bytes : (size_t)file_bytes, .file_bytes = file_bytes, .name = name};
    *out = (gguf_header){0};
    *more = false;
    moe_err rc = walk(&w);
    if (rc == MOE_E_FULL && w.more) {
        *more = true;
        return MOE_OK;
    }
    if (rc != MOE_OK)
        return rc;
    /* Counts are bounded by the bytes that were walked, so these sizes are far from overflow. */
    out->key = calloc((size_t)w.keys + 1, sizeof *out->key);
    out->tensor = calloc((size_t)w.tensors + 1, sizeof *out->tensor);
    out->names = w.names = malloc(w.name_bytes + 1);
    if (out->key == NULL || out->tensor == NULL || out->names == NULL) {
        rc = moe_fail(MOE_E_OS, "%s: out of memory for %lld tensors", name, (long long)w.tensors);
        goto fail;
    }
    w.out = out;
    TRY_GOTO(walk(&w), rc, fail);
    TRY_GOTO(settle_tensors(&w), rc, fail);
    TRY_GOTO(check_names(&w), rc, fail);
    out->keys = w.keys;
    out->tensors = w.tensors;
    return MOE_OK;
fail:
    gguf_header_free(out);
    return rc;
}

void gguf_header_free(gguf_header *h)
{
    free(h->key);
    free(h->tensor);
    free(h->names);
    *h = (gguf_header){0};
}
