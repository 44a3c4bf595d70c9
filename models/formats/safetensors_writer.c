/* Owns a safetensors file while it is written: the header from the declared sizes, then the data in one stream.
 * Does not know what the bytes mean.
 * Threads: one writer, one thread.
 * Rule: a file that was not finished does not stay. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/base/text.h"
#include "models/formats/safetensors.h"

struct st_writer {
    char *path;
    int fd;
    uint64_t expected, written; /* bytes of data */
    bool finished;
};

static moe_err write_fully(st_writer *w, const void *data, size_t n)
{
    for (size_t done = 0; done < n;) {
        const ssize_t put = write(w->fd, (const char *)data + done, n - done);
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return moe_fail(MOE_E_IO, "cannot write %s: %s", w->path, put < 0 ? strerror(errno) : "nothing was written");
        done += (size_t)put;
    }
    return MOE_OK;
}

/* Names are ours, but a quote in one would break the file for every reader. */
static void add_name(text_buf *t, const char *name)
{
    text_add(t, "\"");
    for (const char *c = name; *c != '\0'; c++) {
        if ((unsigned char)*c < 0x20)
            text_printf(t, "\\u%04x", *c);
        else
            text_printf(t, *c == '"' || *c == '\\' ? "\\%c" : "%c", *c);
    }
    text_add(t, "\"");
}

static moe_err declare(text_buf *t, const st_declare *d, uint64_t *at)
{
    uint64_t bytes = st_dtype_bytes(d->dtype);
    text_add(t, ",");
    add_name(t, d->name);
    text_printf(t, ":{\"dtype\":\"%s\",\"shape\":[", st_dtype_name(d->dtype));
    for (int i = 0; i < d->dims; i++) {
        if (d->shape[i] < 0 || __builtin_mul_overflow(bytes, (uint64_t)d->shape[i], &bytes))
            return moe_fail(MOE_E_DATA, "the shape of %s is too large", d->name);
        text_printf(t, "%s%lld", i > 0 ? "," : "", (long long)d->shape[i]);
    }
    text_printf(t, "],\"data_offsets\":[%llu,", (unsigned long long)*at);
    if (__builtin_add_overflow(*at, bytes, at))
        return moe_fail(MOE_E_DATA, "the tensors up to %s are too large for one file", d->name);
    text_printf(t, "%llu]}", (unsigned long long)*at);
    return MOE_OK;
}

static moe_err write_header(st_writer *w, const st_declare *tensors, int64_t n)
{
    text_buf t = {0};
    char *text = NULL;
    moe_err rc;
    text_add(&t, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (int64_t i = 0; i < n; i++)
        TRY_GOTO(declare(&t, &tensors[i], &w->expected), rc, out);
    text_add(&t, "}");
    while (t.used % 8 != 0 && !t.failed) /* the data begins 8-byte aligned */
        text_add(&t, " ");
    const size_t bytes = t.used;
    TRY_GOTO(text_take(&t, &text), rc, out);
    if (bytes > ST_MAX_HEADER) {
        rc = moe_fail(MOE_E_DATA, "%s: %lld tensors need a header of %zu bytes: expected at most %d", w->path, (long long)n,
                      bytes, (int)ST_MAX_HEADER);
        goto out;
    }
    uint8_t length[8];
    for (int i = 0; i < 8; i++)
        length[i] = (uint8_t)((uint64_t)bytes >> 8 * i);
    TRY_GOTO(write_fully(w, length, sizeof length), rc, out);
    TRY_GOTO(write_fully(w, text, bytes), rc, out);
out:
    text_free(&t);
    free(text);
    return rc;
}

moe_err safetensors_create(st_writer **out, const char *path, const st_declare *tensors, int64_t n)
{
    moe_err rc;
    *out = NULL;
    st_writer *w = calloc(1, sizeof *w);
    if (w == NULL || (w->path = strdup(path)) == NULL) {
        free(w);
        return moe_fail(MOE_E_OS, "out of memory");
    }
    w->fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (w->fd < 0) {
        rc = moe_fail(MOE_E_CREATE, "cannot create %s: %s", path, strerror(errno));
        w->finished = true; /* whatever is there is not ours to remove */
        goto fail;
    }
    TRY_GOTO(write_header(w, tensors, n), rc, fail);
    *out = w;
    return MOE_OK;
fail:
    safetensors_abandon(w);
    return rc;
}

moe_err safetensors_append(st_writer *w, const void *data, size_t bytes)
{
    if (bytes > w->expected - w->written)
        return moe_fail(MOE_E_DATA, "%s: %llu bytes of data: expected %llu", w->path, (unsigned long long)(w->written + bytes),
                        (unsigned long long)w->expected);
    TRY(write_fully(w, data, bytes));
    w->written += bytes;
    return MOE_OK;
}

moe_err safetensors_finish(st_writer *w)
{
    if (w->written != w->expected)
        return moe_fail(MOE_E_DATA, "%s: %llu bytes of data: expected %llu", w->path, (unsigned long long)w->written,
                        (unsigned long long)w->expected);
    if (fsync(w->fd) != 0)
        return moe_fail(MOE_E_IO, "cannot sync %s: %s", w->path, strerror(errno));
    w->finished = true;
    return MOE_OK;
}

void safetensors_abandon(st_writer *w)
{
    if (w == NULL)
        return;
    if (w->fd >= 0)
        close(w->fd);
    if (!w->finished)
        unlink(w->path);
    free(w->path);
    free(w);
}
