/* Plain files are read straight into the caller's buffer; zstd goes through a buffer of the size its library likes.
 * One thread. The end of the file inside a zstd frame is an error, never a shorter text. */
#include "engine/data/source.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>

struct source {
    char *path;
    int fd;
    int64_t bytes, position; /* of the file */
    ZSTD_DStream *zstd;      /* NULL: plain */
    char *raw;               /* [raw_room] compressed bytes; in.pos of in.size are taken */
    size_t raw_room;
    ZSTD_inBuffer in;
    bool inside; /* a frame */
};

static moe_err read_some(source *s, char *buf, size_t room, size_t *n)
{
    ssize_t k;
    do
        k = read(s->fd, buf, room);
    while (k < 0 && errno == EINTR);
    *n = k > 0 ? (size_t)k : 0;
    if (k < 0)
        return moe_fail(MOE_E_IO, "%s: cannot read: %s", s->path, strerror(errno));
    s->position += k;
    return MOE_OK;
}

static moe_err start(source *s)
{
    if (lseek(s->fd, 0, SEEK_SET) != 0)
        return moe_fail(MOE_E_IO, "%s: cannot seek: %s", s->path, strerror(errno));
    s->position = 0;
    s->in = (ZSTD_inBuffer){.src = s->raw};
    s->inside = false;
    if (s->zstd)
        ZSTD_initDStream(s->zstd);
    return MOE_OK;
}

static moe_err open_zstd(source *s)
{
    s->raw_room = ZSTD_DStreamInSize();
    s->raw = malloc(s->raw_room);
    s->zstd = ZSTD_createDStream();
    return s->raw && s->zstd ? MOE_OK : moe_fail(MOE_E_OS, "%s: no memory for decompression", s->path);
}

static moe_err open_file(source *s, const char *path)
{
    struct stat st;
    unsigned char magic[4] = {0};
    const size_t n = strlen(path);
    s->path = strdup(path);
    if (!s->path)
        return moe_fail(MOE_E_OS, "no memory for a path");
    s->fd = open(path, O_RDONLY | O_CLOEXEC);
    if (s->fd < 0)
        return moe_fail(MOE_E_NOINPUT, "%s: %s", path, strerror(errno));
    if (fstat(s->fd, &st) != 0 || !S_ISREG(st.st_mode))
        return moe_fail(MOE_E_NOINPUT, "%s: not a regular file", path);
    s->bytes = st.st_size;
    const ssize_t k = pread(s->fd, magic, 4, 0);
    const bool zstd = k == 4 && memcmp(magic, "\x28\xb5\x2f\xfd", 4) == 0;
    if (!zstd && s->bytes > 0 && n > 4 && strcmp(path + n - 4, ".zst") == 0)
        return moe_fail(MOE_E_DATA, "%s: not zstd data", path);
    if (zstd)
        TRY(open_zstd(s));
    posix_fadvise(s->fd, 0, 0, POSIX_FADV_SEQUENTIAL);
    return start(s);
}

moe_err source_open(source **out, const char *path)
{
    source *s = *out = calloc(1, sizeof *s);
    if (!s)
        return moe_fail(MOE_E_OS, "no memory for an input file");
    s->fd = -1;
    const moe_err rc = open_file(s, path);
    if (rc == MOE_OK)
        return MOE_OK;
    source_close(s);
    *out = NULL;
    return rc;
}

void source_close(source *s)
{
    if (!s)
        return;
    if (s->fd >= 0)
        close(s->fd);
    ZSTD_freeDStream(s->zstd);
    free(s->raw);
    free(s->path);
    free(s);
}

moe_err source_read(source *s, char *buf, size_t room, size_t *n)
{
    if (!s->zstd)
        return read_some(s, buf, room, n);
    ZSTD_outBuffer out = {buf, room, 0};
    while (out.pos == 0 && room > 0) {
        if (s->in.pos == s->in.size) {
            size_t got;
            TRY(read_some(s, s->raw, s->raw_room, &got));
            if (got == 0 && !s->inside)
                break;
            if (got == 0)
                return moe_fail(MOE_E_DATA, "%s: zstd data ends early, at byte %lld", s->path, (long long)s->position);
            s->in = (ZSTD_inBuffer){s->raw, got, 0};
        }
        const size_t rc = ZSTD_decompressStream(s->zstd, &out, &s->in);
        if (ZSTD_isError(rc))
            return moe_fail(MOE_E_DATA, "%s: damaged zstd data near byte %lld: %s", s->path,
                            (long long)(s->position - (int64_t)(s->in.size - s->in.pos)), ZSTD_getErrorName(rc));
        s->inside = rc != 0;
    }
    *n = out.pos;
    return MOE_OK;
}

int64_t source_position(const source *s) { return s->position; }

moe_err source_length(source *s, int64_t *bytes)
{
    *bytes = s->bytes;
    if (!s->zstd)
        return MOE_OK;
    char buf[1 << 16];
    *bytes = 0;
    for (size_t n = 1; n > 0; *bytes += (int64_t)n)
        TRY(source_read(s, buf, sizeof buf, &n));
    return start(s);
}
