/* The choice of a backend, and what every backend gets for free: small files, folders, long blocking transfers. Owns no state.
 * Everything here goes through the table, so that the simulated disk of the tests sees each operation. Threads: any. */
#include "memory/io.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <xxh_x86dispatch.h>

#include "memory/io_posix.h"

enum { RANGE_DEPTH = 8 }; /* chunks in flight of one long transfer */

moe_err io_open(io **out, const char *kind, char *note)
{
    *out = NULL;
    note[0] = '\0';
    bool unavailable = false;
    if (strcmp(kind, "pread") == 0)
        return io_pread_open(out);
    if (strcmp(kind, "io_uring") == 0)
        return io_uring_backend_open(out, &unavailable);
    if (strcmp(kind, "auto") != 0)
        return moe_fail(MOE_E_CONFIG, "memory.io: expected auto, io_uring or pread, got \"%s\"", kind);
    const moe_err rc = io_uring_backend_open(out, &unavailable);
    if (rc == MOE_OK || !unavailable)
        return rc;
    snprintf(note, 256, "%.200s; reading and writing with pread threads", moe_error_text());
    return io_pread_open(out);
}

void io_close(io *self)
{
    if (self != NULL)
        self->ops->destroy(self);
}

/* --- long blocking transfers ------------------------------------------------------------------------------------------------ */

typedef struct range_state {
    const io_range *r;
    io_queue *q;
    io_transfer chunk[RANGE_DEPTH];
    double started[RANGE_DEPTH]; /* 0: free */
    size_t issued;
    int in_flight;
    bool hung; /* given up with chunks in flight: the kernel may still write into this struct */
    XXH3_state_t *hash;
    moe_err rc;
    char text[256];
} range_state;

static double now_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void range_fail(range_state *s, moe_err rc, const char *text)
{
    if (s->rc != MOE_OK)
        return;
    s->rc = rc;
    snprintf(s->text, sizeof s->text, "%s", text);
}

/* Adds [from, to) of the buffer to the sum, as far as it counts. */
static void range_sum(range_state *s, size_t from, size_t to)
{
    const size_t end = to < s->r->sum_bytes ? to : s->r->sum_bytes;
    if (s->hash != NULL && from < end)
        XXH3_64bits_update(s->hash, (const char *)s->r->buf + from, end - from);
}

static void range_issue(range_state *s, io *self)
{
    for (int i = 0; i < RANGE_DEPTH && s->issued < s->r->bytes && s->rc == MOE_OK; i++) {
        if (s->started[i] != 0)
            continue;
        const size_t left = s->r->bytes - s->issued;
        const size_t n = left < IO_CHUNK ? left : IO_CHUNK;
        s->chunk[i] = (io_transfer){.file = s->r->file,
                                    .write = s->r->write,
                                    .buf = (char *)s->r->buf + s->issued,
                                    .bytes = n,
                                    .offset = s->r->offset + s->issued,
                                    .user = &s->started[i]};
        s->started[i] = now_seconds();
        const moe_err rc = self->ops->queue_submit(s->q, &s->chunk[i]);
        if (rc != MOE_OK) {
            s->started[i] = 0;
            range_fail(s, rc, moe_error_text());
            return;
        }
        s->in_flight++;
        if (s->r->write)
            range_sum(s, s->issued, s->issued + n);
        s->issued += n;
    }
}

static void range_wait(range_state *s, io *self)
{
    io_transfer *done = NULL;
    const moe_err rc = self->ops->queue_wait(s->q, &done);
    if (rc != MOE_OK) {
        range_fail(s, rc, moe_error_text());
        s->hung = s->in_flight > 0;
        s->in_flight = 0;
        return;
    }
    for (; done != NULL; done = done->next) {
        *(double *)done->user = 0;
        s->in_flight--;
        if (done->rc != MOE_OK)
            range_fail(s, done->rc, done->text);
    }
    const double now = now_seconds();
    for (int i = 0; i < RANGE_DEPTH; i++)
        if (s->started[i] != 0 && now - s->started[i] > IO_DEADLINE_SECONDS) {
            char text[256];
            snprintf(text, sizeof text, "waited %d s for the disk to %s %zu bytes at offset %llu: it does not answer",
                     IO_DEADLINE_SECONDS, s->r->write ? "write" : "read", s->chunk[i].bytes,
                     (unsigned long long)s->chunk[i].offset);
            range_fail(s, MOE_E_IO, text);
            s->hung = true;
            s->in_flight = 0;
        }
}

moe_err io_transfer_range(io *self, const io_range *r)
{
    range_state *s = calloc(1, sizeof *s);
    if (s == NULL)
        return moe_fail(MOE_E_OS, "long transfer: out of memory");
    s->r = r;
    moe_err rc = MOE_OK;
    if (r->sum != NULL) {
        *r->sum = 0;
        s->hash = XXH3_createState();
        if (s->hash == NULL) {
            rc = moe_fail(MOE_E_OS, "long transfer: out of memory");
            goto out;
        }
        XXH3_64bits_reset(s->hash);
    }
    TRY_GOTO(self->ops->queue_open(self, &s->q, RANGE_DEPTH), rc, out);
    while ((s->issued < r->bytes && s->rc == MOE_OK) || s->in_flight > 0) {
        range_issue(s, self);
        if (s->in_flight > 0)
            range_wait(s, self);
    }
    if (s->rc != MOE_OK) {
        rc = moe_error_set(s->rc, s->text);
        goto out;
    }
    if (s->hash != NULL) {
        if (!r->write)
            range_sum(s, 0, r->bytes);
        *r->sum = XXH3_64bits_digest(s->hash);
    }
out:
    self->ops->queue_close(self, s->q);
    XXH3_freeState(s->hash);
    if (!s->hung)
        free(s);
    return rc;
}

/* --- small files and folders -------------------------------------------------------------------------------------------------
 */

moe_err io_read_file(io *self, const char *path, size_t limit, void **data, size_t *bytes)
{
    *data = NULL;
    *bytes = 0;
    io_file *f = NULL;
    uint64_t size = 0;
    void *buf = NULL;
    moe_err rc;
    TRY_GOTO(self->ops->open(self, &f, path, IO_READ), rc, out);
    TRY_GOTO(self->ops->size(self, f, &size), rc, out);
    if (size > limit) {
        rc = moe_fail(MOE_E_DATA, "%s: %llu bytes; expected at most %zu", path, (unsigned long long)size, limit);
        goto out;
    }
    buf = malloc(size ? (size_t)size : 1);
    if (buf == NULL) {
        rc = moe_fail(MOE_E_OS, "%s: out of memory (%llu bytes)", path, (unsigned long long)size);
        goto out;
    }
    const io_range r = {.file = f, .buf = buf, .bytes = (size_t)size};
    TRY_GOTO(io_transfer_range(self, &r), rc, out);
    *data = buf;
    *bytes = (size_t)size;
    buf = NULL;
out:
    free(buf);
    self->ops->close(self, f);
    return rc;
}

moe_err io_write_file(io *self, const char *path, const void *data, size_t bytes)
{
    TRY(self->ops->remove(self, path));
    io_file *f = NULL;
    TRY(self->ops->open(self, &f, path, IO_CREATE));
    union {
        const void *in;
        void *out;
    } buf = {data}; /* a transfer's buffer is not const; a write does not touch it */
    const io_range r = {.file = f, .write = true, .buf = buf.out, .bytes = bytes};
    moe_err rc;
    TRY_GOTO(io_transfer_range(self, &r), rc, out);
    TRY_GOTO(self->ops->sync(self, f), rc, out);
out:
    self->ops->close(self, f);
    return rc;
}

moe_err io_sync_parent(io *self, const char *path)
{
    char *dir = strdup(path);
    if (dir == NULL)
        return moe_fail(MOE_E_OS, "%s: out of memory", path);
    size_t n = strlen(dir);
    while (n > 1 && dir[n - 1] == '/')
        dir[--n] = '\0';
    char *slash = strrchr(dir, '/');
    if (slash == dir)
        slash++;
    if (slash != NULL)
        *slash = '\0';
    const moe_err rc = self->ops->sync_dir(self, slash != NULL ? dir : ".");
    free(dir);
    return rc;
}

moe_err io_make_dir(io *self, const char *path)
{
    TRY(self->ops->make_dir(self, path));
    return io_sync_parent(self, path);
}

moe_err io_replace_file(io *self, const char *path, const void *data, size_t bytes)
{
    const size_t n = strlen(path) + sizeof ".tmp";
    char *tmp = malloc(n);
    if (tmp == NULL)
        return moe_fail(MOE_E_OS, "%s: out of memory", path);
    snprintf(tmp, n, "%s.tmp", path);
    moe_err rc;
    TRY_GOTO(io_write_file(self, tmp, data, bytes), rc, out);
    TRY_GOTO(self->ops->rename(self, tmp, path), rc, out);
    TRY_GOTO(io_sync_parent(self, path), rc, out);
out:
    free(tmp);
    return rc;
}
