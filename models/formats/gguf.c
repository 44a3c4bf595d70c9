/* Owns the open files of a GGUF model: finds all parts of a split one, reads their metadata, answers by name. The rules of the metadata
 * are in gguf_parse.c.
 * Threads: read-only once open.
 * Rule: what the caller gets was checked against its file. */
#include "models/formats/gguf.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "models/formats/gguf_private.h"

enum { FIRST_READ = 1 << 20 }; /* bytes; four times as many when that was not enough */

typedef struct part {
    char *path;
    uint64_t bytes;
    uint8_t *text; /* the metadata, what its keys point into */
    gguf_header h;
} part;

struct gguf {
    part *part; /* [parts] */
    int parts;
    gguf_tensor *tensor; /* [tensors] of all parts, by name */
    int64_t tensors;
};

static moe_err read_more(const part *p, int fd, uint8_t *text, size_t from, size_t to)
{
    while (from < to) {
        const ssize_t got = pread(fd, text + from, to - from, (off_t)from);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return moe_fail(MOE_E_IO, "cannot read %s: %s", p->path, got < 0 ? strerror(errno) : "it became shorter");
        from += (size_t)got;
    }
    return MOE_OK;
}

/* Reads from the front until the metadata is whole. */
static moe_err read_header(part *p, int fd)
{
    size_t have = 0;
    for (size_t want = FIRST_READ;; want *= 4) {
        bool more;
        if (want > GGUF_MAX_HEADER)
            want = GGUF_MAX_HEADER;
        if (want > p->bytes)
            want = (size_t)p->bytes;
        uint8_t *text = realloc(p->text, want + 1);
        if (text == NULL)
            return moe_fail(MOE_E_OS, "%s: out of memory for %zu bytes of metadata", p->path, want);
        p->text = text;
        TRY(read_more(p, fd, text, have, want));
        have = want;
        TRY(gguf_parse(&p->h, text, have, p->bytes, p->path, &more));
        if (!more)
            return MOE_OK;
        if (have == GGUF_MAX_HEADER)
            return moe_fail(MOE_E_DATA, "%s: more than %d bytes of metadata", p->path, (int)GGUF_MAX_HEADER);
    }
}

/* Opens one file; *p keeps what it got also on failure. */
static moe_err open_part(part *p, const char *path)
{
    struct stat st;
    p->path = strdup(path);
    if (p->path == NULL)
        return moe_fail(MOE_E_OS, "out of memory");
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return moe_fail(errno == EMFILE || errno == ENFILE ? MOE_E_OS : MOE_E_NOINPUT, "cannot open %s: %s", path, strerror(errno));
    moe_err rc;
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        rc = moe_fail(MOE_E_DATA, "%s is not a file", path);
    } else {
        p->bytes = (uint64_t)st.st_size;
        rc = read_header(p, fd);
    }
    close(fd);
    return rc;
}

bool gguf_is(const char *path)
{
    char magic[4];
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return false;
    const bool is = pread(fd, magic, sizeof magic, 0) == sizeof magic && memcmp(magic, GGUF_MAGIC, sizeof magic) == 0;
    close(fd);
    return is;
}

static const gguf_value *find_key(const gguf_header *h, const char *key)
{
    for (int64_t low = 0, high = h->keys; low < high;) {
        const int64_t i = low + (high - low) / 2;
        const int order = strcmp(key, h->key[i].key);
        if (order == 0)
            return &h->key[i];
        if (order < 0)
            high = i;
        else
            low = i + 1;
    }
    return NULL;
}

static moe_err int_of(const gguf_header *h, const char *path, const char *key, int64_t low, int64_t high, int64_t *out)
{
    const gguf_value *v = find_key(h, key);
    *out = low;
    if (v == NULL)
        return moe_fail(MOE_E_DATA, "%s: key %s is missing", path, key);
    const bool whole = !v->array && v->type != GGUF_F32 && v->type != GGUF_F64 && v->type != GGUF_BOOL && v->type != GGUF_STRING;
    if (!whole)
        return moe_fail(MOE_E_DATA, "%s: key %s is %s%s: expected an integer", path, key, v->array ? "an array of " : "",
                        gguf_type_name(v->type));
    const int64_t x = gguf_item_int(v, 0);
    if (x < low || x > high || (v->type == GGUF_U64 && x < 0))
        return moe_fail(MOE_E_DATA, "%s: key %s is %lld: expected %lld to %lld", path, key, (long long)x, (long long)low, (long long)high);
    *out = x;
    return MOE_OK;
}

/* The name of part i (from 0): the digits in front of "-of-" replaced. */
static char *part_path(const char *first, int i)
{
    const size_t n = strlen(first), tail = strlen("00001-of-00000.gguf");
    char *path = strdup(first);
    for (int at = 5, left = i + 1; path != NULL && at-- > 0; left /= 10)
        path[n - tail + (size_t)at] = (char)('0' + left % 10);
    return path;
}

/* NAME-00001-of-00003.gguf? */
static bool is_split_name(const char *path, int i, int count)
{
    char tail[32];
    const size_t n = strlen(path), m = (size_t)snprintf(tail, sizeof tail, "-%05d-of-%05d.gguf", i + 1, count);
    return n > m && strcmp(path + n - m, tail) == 0;
}

/* The other files of a split model, when the first says that there are. */
static moe_err open_others(gguf *g)
{
    const part *first = &g->part[0];
    int64_t no = 0, count;
    if (find_key(&first->h, "split.count") == NULL)
        return MOE_OK;
    TRY(int_of(&first->h, first->path, "split.count", 0, GGUF_MAX_FILES, &count));
    if (count <= 1)
        return MOE_OK;
    TRY(int_of(&first->h, first->path, "split.no", 0, count - 1, &no));
    if (!is_split_name(first->path, (int)no, (int)count))
        return moe_fail(MOE_E_DATA, "%s is part %lld of %lld: expected a name that ends with -%05lld-of-%05lld.gguf", first->path,
                        (long long)no + 1, (long long)count, (long long)no + 1, (long long)count);
    if (no != 0)
        return moe_fail(MOE_E_NOINPUT, "%s is part %lld of a split model: name its first file, which ends with -00001-of-%05lld.gguf",
                        first->path, (long long)no + 1, (long long)count);
    for (int i = 1; i < count; i++) {
        char *path = part_path(g->part[0].path, i);
        if (path == NULL)
            return moe_fail(MOE_E_OS, "out of memory");
        g->parts = i + 1;
        const moe_err rc = open_part(&g->part[i], path);
        free(path);
        TRY(rc);
        TRY(int_of(&g->part[i].h, g->part[i].path, "split.no", i, i, &no));
        TRY(int_of(&g->part[i].h, g->part[i].path, "split.count", count, count, &no));
    }
    return MOE_OK;
}

static int name_order(const void *a, const void *b) { return strcmp(((const gguf_tensor *)a)->name, ((const gguf_tensor *)b)->name); }

/* One table of the tensors of all parts. */
static moe_err join_parts(gguf *g)
{
    int64_t said;
    for (int i = 0; i < g->parts; i++)
        g->tensors += g->part[i].h.tensors;
    if (find_key(&g->part[0].h, "split.tensors.count") != NULL)
        TRY(int_of(&g->part[0].h, g->part[0].path, "split.tensors.count", g->tensors, g->tensors, &said));
    gguf_tensor *t = g->tensor = calloc((size_t)g->tensors + 1, sizeof *t);
    if (t == NULL)
        return moe_fail(MOE_E_OS, "%s: out of memory for %lld tensors", g->part[0].path, (long long)g->tensors);
    for (int i = 0; i < g->parts; i++)
        for (int64_t k = 0; k < g->part[i].h.tensors; k++) {
            *t = g->part[i].h.tensor[k];
            t++->file = i;
        }
    qsort(g->tensor, (size_t)g->tensors, sizeof *t, name_order);
    for (int64_t i = 1; i < g->tensors; i++)
        if (strcmp(g->tensor[i - 1].name, g->tensor[i].name) == 0)
            return moe_fail(MOE_E_DATA, "%s and %s both hold a tensor %.200s", g->part[g->tensor[i - 1].file].path,
                            g->part[g->tensor[i].file].path, g->tensor[i].name);
    return MOE_OK;
}

moe_err gguf_open(gguf **out, const char *path)
{
    moe_err rc;
    *out = NULL;
    gguf *g = calloc(1, sizeof *g);
    if (g == NULL || (g->part = calloc(GGUF_MAX_FILES, sizeof *g->part)) == NULL) {
        free(g);
        return moe_fail(MOE_E_OS, "out of memory");
    }
    g->parts = 1;
    TRY_GOTO(open_part(&g->part[0], path), rc, fail);
    TRY_GOTO(open_others(g), rc, fail);
    TRY_GOTO(join_parts(g), rc, fail);
    *out = g;
    return MOE_OK;
fail:
    gguf_close(g);
    return rc;
}

moe_err gguf_from_memory(gguf **out, const void *data, size_t bytes, const char *name)
{
    bool more;
    moe_err rc;
    *out = NULL;
    gguf *g = calloc(1, sizeof *g);
    if (g == NULL || (g->part = calloc(1, sizeof *g->part)) == NULL) {
        free(g);
        return moe_fail(MOE_E_OS, "out of memory");
    }
    part *p = &g->part[0];
    g->parts = 1;
    *p = (part){.path = strdup(name), .bytes = bytes, .text = malloc(bytes + 1)};
    if (p->path == NULL || p->text == NULL) {
        rc = moe_fail(MOE_E_OS, "out of memory");
        goto fail;
    }
    memcpy(p->text, data, bytes);
    TRY_GOTO(gguf_parse(&p->h, p->text, bytes, bytes, p->path, &more), rc, fail);
    TRY_GOTO(join_parts(g), rc, fail);
    *out = g;
    return MOE_OK;
fail:
    gguf_close(g);
    return rc;
}

void gguf_close(gguf *g)
{
    if (g == NULL)
        return;
    for (int i = 0; i < g->parts; i++) {
        gguf_header_free(&g->part[i].h);
        free(g->part[i].text);
        free(g->part[i].path);
    }
    free(g->tensor);
    free(g->part);
    free(g);
}

int gguf_files(const gguf *g) { return g->parts; }
const char *gguf_path(const gguf *g, int file) { return g->part[file].path; }
uint64_t gguf_file_bytes(const gguf *g, int file) { return g->part[file].bytes; }
int64_t gguf_count(const gguf *g) { return g->tensors; }
const gguf_tensor *gguf_at(const gguf *g, int64_t i) { return &g->tensor[i]; }

static int name_of(const void *key, const void *t) { return strcmp(key, ((const gguf_tensor *)t)->name); }

const gguf_tensor *gguf_tensor_find(const gguf *g, const char *name)
{
    return bsearch(name, g->tensor, (size_t)g->tensors, sizeof *g->tensor, name_of);
}

int64_t gguf_keys(const gguf *g) { return g->part[0].h.keys; }
const gguf_value *gguf_key(const gguf *g, int64_t i) { return &g->part[0].h.key[i]; }
const gguf_value *gguf_find(const gguf *g, const char *key) { return find_key(&g->part[0].h, key); }

moe_err gguf_get_int(const gguf *g, const char *key, int64_t low, int64_t high, int64_t *out)
{
    return int_of(&g->part[0].h, g->part[0].path, key, low, high, out);
}

/* A single value of one of two types. */
static moe_err expect(const gguf *g, const char *key, gguf_type a, gguf_type b, const char *what, const gguf_value **out)
{
    const gguf_value *v = *out = gguf_find(g, key);
    if (v == NULL)
        return moe_fail(MOE_E_DATA, "%s: key %s is missing", g->part[0].path, key);
    if (v->array || (v->type != a && v->type != b))
        return moe_fail(MOE_E_DATA, "%s: key %s is %s%s: expected %s", g->part[0].path, key, v->array ? "an array of " : "",
                        gguf_type_name(v->type), what);
    return MOE_OK;
}

moe_err gguf_get_number(const gguf *g, const char *key, double *out)
{
    const gguf_value *v;
    *out = 0;
    TRY(expect(g, key, GGUF_F32, GGUF_F64, "a number", &v));
    *out = gguf_item_number(v, 0);
    if (!isfinite(*out))
        return moe_fail(MOE_E_DATA, "%s: key %s is %g: expected a finite number", g->part[0].path, key, *out);
    return MOE_OK;
}

moe_err gguf_get_bool(const gguf *g, const char *key, bool *out)
{
    const gguf_value *v;
    *out = false;
    TRY(expect(g, key, GGUF_BOOL, GGUF_BOOL, "true or false", &v));
    *out = v->data[0] != 0;
    return MOE_OK;
}

moe_err gguf_get_string(const gguf *g, const char *key, const char **s, size_t *n)
{
    const gguf_value *v;
    *s = "";
    *n = 0;
    TRY(expect(g, key, GGUF_STRING, GGUF_STRING, "a string", &v));
    *s = (const char *)v->data + 8;
    *n = v->bytes - 8;
    return MOE_OK;
}

moe_err gguf_get_array(const gguf *g, const char *key, gguf_type type, const gguf_value **out)
{
    const gguf_value *v = *out = gguf_find(g, key);
    if (v == NULL)
        return moe_fail(MOE_E_DATA, "%s: key %s is missing", g->part[0].path, key);
    if (!v->array || v->type != type)
        return moe_fail(MOE_E_DATA, "%s: key %s is %s%s: expected an array of %s", g->part[0].path, key, v->array ? "an array of " : "",
                        gguf_type_name(v->type), gguf_type_name(type));
    return MOE_OK;
}

int64_t gguf_item_int(const gguf_value *v, uint64_t i)
{
    int64_t x = 0;
    int32_t s;
    switch (v->type) {
    case GGUF_U8:
        return v->data[i];
    case GGUF_I8:
        return (int8_t)v->data[i];
    case GGUF_U16:
        return v->data[2 * i] | v->data[2 * i + 1] << 8;
    case GGUF_I16:
        return (int16_t)(v->data[2 * i] | v->data[2 * i + 1] << 8);
    case GGUF_U32:
        memcpy(&x, v->data + 4 * i, 4);
        return x;
    case GGUF_I32:
        memcpy(&s, v->data + 4 * i, 4);
        return s;
    default: /* U64, I64 */
        memcpy(&x, v->data + 8 * i, 8);
        return x;
    }
}

double gguf_item_number(const gguf_value *v, uint64_t i)
{
    float f;
    double d;
    if (v->type == GGUF_F64) {
        memcpy(&d, v->data + 8 * i, sizeof d);
        return d;
    }
    memcpy(&f, v->data + 4 * i, sizeof f);
    return f;
}

bool gguf_next_string(const gguf_value *v, size_t *at, const char **s, size_t *n)
{
    uint64_t length;
    if (*at >= v->bytes)
        return false;
    memcpy(&length, v->data + *at, sizeof length);
    *s = (const char *)v->data + *at + sizeof length;
    *n = (size_t)length;
    *at += sizeof length + (size_t)length;
    return true;
}
