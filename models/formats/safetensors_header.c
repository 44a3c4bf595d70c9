/* Owns the reading of a safetensors header: JSON -> checked, sorted tensors. Knows no file, only text and the length of the data.
 * Threads: pure.
 * Rule: whatever the text says, time is n log n in its length and memory a small multiple of it. */
#include <stdlib.h>
#include <string.h>

#include "models/formats/json_reader.h"
#include "models/formats/safetensors.h"

static const struct {
    const char *name;
    size_t bytes;
} DTYPES[ST_DTYPES] = {
    [ST_BOOL] = {"BOOL", 1},       [ST_U8] = {"U8", 1},   [ST_I8] = {"I8", 1},   [ST_F8_E4M3] = {"F8_E4M3", 1},
    [ST_F8_E5M2] = {"F8_E5M2", 1}, [ST_F8_E8M0] = {"F8_E8M0", 1}, [ST_I16] = {"I16", 2}, [ST_U16] = {"U16", 2}, [ST_F16] = {"F16", 2},
    [ST_BF16] = {"BF16", 2},       [ST_I32] = {"I32", 4}, [ST_U32] = {"U32", 4}, [ST_F32] = {"F32", 4},
    [ST_I64] = {"I64", 8},         [ST_U64] = {"U64", 8}, [ST_F64] = {"F64", 8},
};

const char *st_dtype_name(st_dtype d) { return DTYPES[d].name; }

size_t st_dtype_bytes(st_dtype d) { return DTYPES[d].bytes; }

/* Pass 1 counts, pass 2 fills: both walk the same code, `t` == NULL in the first. Names and shapes follow the tensors in the same
 * block. */
typedef struct header {
    json_reader r;
    uint64_t data_bytes;
    st_tensor *t;
    int64_t n;
    int64_t *shapes; /* next free */
    char *names;     /* next free */
    size_t shape_count, name_bytes;
} header;

static moe_err read_dtype(header *h, st_tensor *t)
{
    json_reader *r = &h->r;
    TRY(json_expect(r, JSON_STRING));
    for (int d = 0; d < ST_DTYPES; d++)
        if (json_is(r, DTYPES[d].name)) {
            t->dtype = (uint8_t)d;
            return MOE_OK;
        }
    return json_fail(r, MOE_E_DATA, "dtype \"%.*s\" is not one we know", (int)(r->raw_bytes < 32 ? r->raw_bytes : 32), r->raw);
}

static moe_err read_shape(header *h, st_tensor *t)
{
    json_reader *r = &h->r;
    uint64_t elements = 1;
    int dims = 0;
    t->shape = h->shapes;
    TRY(json_expect(r, JSON_ARRAY));
    for (json_event e;; dims++) {
        uint64_t n;
        TRY(json_next(r, &e));
        if (e == JSON_ARRAY_END)
            break;
        if (e != JSON_NUMBER)
            return json_fail(r, MOE_E_DATA, "expected a size in the shape, found %s", json_event_name(e));
        if (dims == ST_MAX_DIMS)
            return json_fail(r, MOE_E_DATA, "the shape has more than %d dimensions", (int)ST_MAX_DIMS);
        TRY(json_uint(r, INT64_MAX, &n));
        if (__builtin_mul_overflow(elements, n, &elements) || elements > INT64_MAX)
            return json_fail(r, MOE_E_DATA, "the sizes of the shape multiply to more than 2^63");
        if (h->t != NULL)
            h->shapes[dims] = (int64_t)n;
    }
    t->dims = (uint8_t)dims;
    t->elements = (int64_t)elements;
    return MOE_OK;
}

static moe_err read_offsets(header *h, st_tensor *t)
{
    json_reader *r = &h->r;
    uint64_t end;
    TRY(json_expect(r, JSON_ARRAY));
    TRY(json_get_uint(r, UINT64_MAX, &t->begin));
    TRY(json_get_uint(r, UINT64_MAX, &end));
    if (end < t->begin || end > h->data_bytes)
        return json_fail(r, MOE_E_DATA, "data_offsets [%llu, %llu]: expected a range inside the %llu bytes of data",
                         (unsigned long long)t->begin, (unsigned long long)end, (unsigned long long)h->data_bytes);
    t->bytes = end - t->begin;
    return json_expect(r, JSON_ARRAY_END);
}

/* The object behind a tensor's name: exactly dtype, shape and data_offsets. */
static moe_err read_tensor(header *h, st_tensor *t)
{
    json_reader *r = &h->r;
    unsigned seen = 0;
    TRY(json_expect(r, JSON_OBJECT));
    for (json_event e;;) {
        TRY(json_next(r, &e));
        if (e == JSON_OBJECT_END)
            break;
        const unsigned field = json_is(r, "dtype") ? 1 : json_is(r, "shape") ? 2 : json_is(r, "data_offsets") ? 4 : 0;
        if (field == 0 || (seen & field) != 0)
            return json_fail(r, MOE_E_DATA, "a tensor has dtype, shape and data_offsets, each once; found %s\"%.*s\"",
                             field ? "a second " : "", (int)(r->raw_bytes < 64 ? r->raw_bytes : 64), r->raw);
        seen |= field;
        if (field == 1)
            TRY(read_dtype(h, t));
        else if (field == 2)
            TRY(read_shape(h, t));
        else
            TRY(read_offsets(h, t));
    }
    if (seen != 7)
        return json_fail(r, MOE_E_DATA, "a tensor lacks %s", !(seen & 1) ? "dtype" : !(seen & 2) ? "shape" : "data_offsets");
    uint64_t bytes;
    if (__builtin_mul_overflow((uint64_t)t->elements, (uint64_t)DTYPES[t->dtype].bytes, &bytes) || bytes != t->bytes)
        return json_fail(r, MOE_E_DATA, "a tensor of %lld %s occupies %llu bytes according to data_offsets",
                         (long long)t->elements, DTYPES[t->dtype].name, (unsigned long long)t->bytes);
    return MOE_OK;
}

/* __metadata__: an object of strings, which we do not need. */
static moe_err skip_metadata(json_reader *r)
{
    TRY(json_expect(r, JSON_OBJECT));
    for (json_event e;;) {
        TRY(json_next(r, &e));
        if (e == JSON_OBJECT_END)
            return MOE_OK;
        TRY(json_expect(r, JSON_STRING));
    }
}

static moe_err walk(header *h)
{
    json_reader *r = &h->r;
    h->n = 0;
    h->shape_count = h->name_bytes = 0;
    TRY(json_expect(r, JSON_OBJECT));
    for (json_event e;;) {
        st_tensor t = {0};
        TRY(json_next(r, &e));
        if (e == JSON_OBJECT_END)
            break;
        if (json_is(r, "__metadata__")) {
            TRY(skip_metadata(r));
            continue;
        }
        if (r->raw_bytes > ST_MAX_NAME || r->raw_bytes == 0)
            return json_fail(r, MOE_E_DATA, "a tensor's name has %zu bytes: expected 1 to %d", r->raw_bytes, (int)ST_MAX_NAME);
        size_t length = r->raw_bytes;
        if (h->t != NULL) {
            length = json_decode(r, h->names);
            if (memchr(h->names, '\0', length) != NULL)
                return json_fail(r, MOE_E_DATA, "a tensor's name holds a NUL character");
            h->names[length] = '\0';
            t.name = h->names;
            h->names += length + 1;
        }
        h->name_bytes += length + 1;
        TRY(read_tensor(h, &t));
        h->shape_count += t.dims;
        if (h->t != NULL) {
            h->shapes += t.dims;
            h->t[h->n] = t;
        }
        h->n++;
    }
    return json_expect(r, JSON_END);
}

static int by_offset(const void *a, const void *b)
{
    const st_tensor *x = a, *y = b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

static int by_name(const void *a, const void *b) { return strcmp(((const st_tensor *)a)->name, ((const st_tensor *)b)->name); }

/* In order of offset every tensor begins where the one before ended, and the last ends where the file ends. */
static moe_err check_cover(st_tensor *t, int64_t n, uint64_t data_bytes, const char *name)
{
    uint64_t at = 0;
    qsort(t, (size_t)n, sizeof *t, by_offset);
    for (int64_t i = 0; i < n; i++) {
        if (t[i].begin != at)
            return moe_fail(MOE_E_DATA,
                            "%s: tensor %.200s begins at byte %llu of the data: expected %llu, where the one before ends (%s)",
                            name, t[i].name, (unsigned long long)t[i].begin, (unsigned long long)at,
                            t[i].begin < at ? "they overlap" : "a hole");
        at += t[i].bytes;
    }
    if (at != data_bytes)
        return moe_fail(MOE_E_DATA, "%s: the tensors end at byte %llu of the data: expected %llu, where the file ends", name,
                        (unsigned long long)at, (unsigned long long)data_bytes);
    qsort(t, (size_t)n, sizeof *t, by_name);
    for (int64_t i = 1; i < n; i++)
        if (strcmp(t[i - 1].name, t[i].name) == 0)
            return moe_fail(MOE_E_DATA, "%s: two tensors are named %.200s", name, t[i].name);
    return MOE_OK;
}

moe_err safetensors_parse(st_tensor **tensors, int64_t *n, const char *text, size_t bytes, uint64_t data_bytes, const char *name)
{
    header h = {.data_bytes = data_bytes};
    moe_err rc;
    *tensors = NULL;
    *n = 0;
    if (bytes > ST_MAX_HEADER)
        return moe_fail(MOE_E_DATA, "%s: a header of %zu bytes: expected at most %d", name, bytes, (int)ST_MAX_HEADER);
    if (bytes == 0 || text[0] != '{')
        return moe_fail(MOE_E_DATA, "%s: the header does not begin with '{'", name);
    json_open(&h.r, name, text, bytes);
    TRY(walk(&h));
    /* Counts are bounded by the header's 10^8 bytes, so these sums are far from overflow. */
    const size_t tensor_bytes = (size_t)h.n * sizeof(st_tensor), shape_bytes = h.shape_count * sizeof(int64_t);
    char *block = malloc(tensor_bytes + shape_bytes + h.name_bytes + 1);
    if (block == NULL)
        return moe_fail(MOE_E_OS, "%s: out of memory for %lld tensors", name, (long long)h.n);
    h.t = (st_tensor *)block;
    h.shapes = (int64_t *)(block + tensor_bytes);
    h.names = block + tensor_bytes + shape_bytes;
    json_open(&h.r, name, text, bytes);
    TRY_GOTO(walk(&h), rc, fail);
    TRY_GOTO(check_cover(h.t, h.n, data_bytes, name), rc, fail);
    *tensors = h.t;
    *n = h.n;
    return MOE_OK;
fail:
    free(block);
    return rc;
}
