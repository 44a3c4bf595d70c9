/* Owns an open safetensors file and the exact conversion of its numbers to fp32. The header's rules are in safetensors_header.c.
 * Threads: reading is thread-safe (pread).
 * Rule: every range is checked against its tensor before it is read. */
#include "models/formats/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct safetensors {
    char *path;
    int fd;
    st_tensor *t; /* [n] by name; one block with names and shapes */
    int64_t n;
};

static moe_err read_fully(const safetensors *s, uint64_t at, void *out, size_t n)
{
    for (size_t done = 0; done < n;) {
        const ssize_t got = pread(s->fd, (char *)out + done, n - done, (off_t)(at + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return moe_fail(MOE_E_IO, "%s: cannot read %zu bytes at %llu: %s", s->path, n, (unsigned long long)at,
                            strerror(errno));
        if (got == 0)
            return moe_fail(MOE_E_DATA, "%s: the file ends before byte %llu", s->path, (unsigned long long)(at + n));
        done += (size_t)got;
    }
    return MOE_OK;
}

static moe_err read_header(safetensors *s)
{
    struct stat st;
    uint8_t length[8];
    if (fstat(s->fd, &st) != 0)
        return moe_fail(MOE_E_IO, "%s: %s", s->path, strerror(errno));
    if (!S_ISREG(st.st_mode))
        return moe_fail(MOE_E_DATA, "%s is not a file", s->path);
    const uint64_t size = (uint64_t)st.st_size;
    if (size < 8)
        return moe_fail(MOE_E_DATA, "%s: %llu bytes are no safetensors file", s->path, (unsigned long long)size);
    TRY(read_fully(s, 0, length, sizeof length));
    uint64_t bytes = 0;
    for (int i = 7; i >= 0; i--)
        bytes = bytes << 8 | length[i];
    if (bytes > ST_MAX_HEADER || bytes > size - 8)
        return moe_fail(MOE_E_DATA, "%s: a header of %llu bytes in a file of %llu: expected at most %d, and inside the file",
                        s->path, (unsigned long long)bytes, (unsigned long long)size, (int)ST_MAX_HEADER);
    char *text = malloc(bytes + 1);
    if (text == NULL)
        return moe_fail(MOE_E_OS, "%s: out of memory for a header of %llu bytes", s->path, (unsigned long long)bytes);
    moe_err rc;
    TRY_GOTO(read_fully(s, 8, text, bytes), rc, out);
    TRY_GOTO(safetensors_parse(&s->t, &s->n, text, bytes, size - 8 - bytes, s->path), rc, out);
    for (int64_t i = 0; i < s->n; i++)
        s->t[i].begin += 8 + bytes;
out:
    free(text);
    return rc;
}

moe_err safetensors_open(safetensors **out, const char *path)
{
    moe_err rc;
    *out = NULL;
    safetensors *s = calloc(1, sizeof *s);
    if (s == NULL || (s->path = strdup(path)) == NULL) {
        free(s);
        return moe_fail(MOE_E_OS, "out of memory");
    }
    s->fd = open(path, O_RDONLY | O_CLOEXEC);
    if (s->fd < 0) {
        rc = moe_fail(errno == EMFILE || errno == ENFILE ? MOE_E_OS : MOE_E_NOINPUT, "cannot open %s: %s", path, strerror(errno));
        goto fail;
    }
    TRY_GOTO(read_header(s), rc, fail);
    *out = s;
    return MOE_OK;
fail:
    safetensors_close(s);
    return rc;
}

void safetensors_close(safetensors *s)
{
    if (s == NULL)
        return;
    if (s->fd >= 0)
        close(s->fd);
    free(s->t);
    free(s->path);
    free(s);
}

const char *safetensors_path(const safetensors *s) { return s->path; }

int64_t safetensors_count(const safetensors *s) { return s->n; }

const st_tensor *safetensors_at(const safetensors *s, int64_t i) { return &s->t[i]; }

static int name_order(const void *key, const void *t) { return strcmp(key, ((const st_tensor *)t)->name); }

const st_tensor *safetensors_find(const safetensors *s, const char *name)
{
    return s->n == 0 ? NULL : bsearch(name, s->t, (size_t)s->n, sizeof *s->t, name_order);
}

moe_err safetensors_read(const safetensors *s, const st_tensor *t, uint64_t offset, void *out, size_t n)
{
    if (offset > t->bytes || n > t->bytes - offset)
        return moe_fail(MOE_E_DATA, "%s: %s has %llu bytes: asked for %zu at %llu", s->path, t->name,
                        (unsigned long long)t->bytes, n, (unsigned long long)offset);
    return read_fully(s, t->begin + offset, out, n);
}

moe_err safetensors_read_f32(const safetensors *s, const st_tensor *t, int64_t first, int64_t n, float *out)
{
    if (first < 0 || n < 0 || first > t->elements || n > t->elements - first)
        return moe_fail(MOE_E_DATA, "%s: %s has %lld elements: asked for %lld at %lld", s->path, t->name, (long long)t->elements,
                        (long long)n, (long long)first);
    if (t->dtype == ST_F32)
        return safetensors_read(s, t, (uint64_t)first * 4, out, (size_t)n * 4);
    if (t->dtype != ST_F16 && t->dtype != ST_BF16)
        return moe_fail(MOE_E_DATA, "%s: %s has dtype %s: expected F32, F16 or BF16", s->path, t->name, st_dtype_name(t->dtype));
    /* The 16-bit values land in the upper half of out and are widened from the front: value i is read before out[i] covers it. */
    const char *half = (const char *)out + (size_t)n * 2;
    TRY(safetensors_read(s, t, (uint64_t)first * 2, (char *)out + (size_t)n * 2, (size_t)n * 2));
    for (int64_t i = 0; i < n; i++) {
        uint16_t x;
        memcpy(&x, half + 2 * i, sizeof x);
        out[i] = t->dtype == ST_BF16 ? st_f32_from_bf16(x) : st_f32_from_f16(x);
    }
    return MOE_OK;
}

float st_f32_from_bf16(uint16_t x)
{
    const uint32_t bits = (uint32_t)x << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* In integers, so that no rounding mode or flush-to-zero setting matters: every half, subnormals too, is a normal fp32 number. */
float st_f32_from_f16(uint16_t x)
{
    const uint32_t sign = (uint32_t)(x & 0x8000) << 16;
    uint32_t exponent = x >> 10 & 31, mantissa = x & 1023, bits;
    if (exponent == 31) {
        bits = sign | 0x7F800000 | mantissa << 13;
    } else if (exponent != 0) {
        bits = sign | (exponent + 112) << 23 | mantissa << 13;
    } else if (mantissa == 0) {
        bits = sign;
    } else {
        const int shift = __builtin_clz(mantissa) - 21; /* brings the leading one to bit 10 */
        bits = sign | (uint32_t)(113 - shift) << 23 | (mantissa << shift & 1023) << 13;
    }
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

uint16_t st_bf16_from_f32(float f)
{
    uint32_t x;
    memcpy(&x, &f, sizeof x);
    if ((x & 0x7FFFFFFF) > 0x7F800000)
        return (uint16_t)(x >> 16 | 0x40); /* NaN stays NaN */
    return (uint16_t)((x + 0x7FFF + (x >> 16 & 1)) >> 16);
}
