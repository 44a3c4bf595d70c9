/* Files that only grow. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/report/files.h"

moe_err log_append(log_file *f, const void *bytes, size_t n)
{
    struct stat before;
    if (fstat(f->fd, &before) != 0)
        return moe_fail(MOE_E_IO, "cannot write %s: %s", f->path, strerror(errno));
    size_t done = 0;
    while (done < n) {
        const ssize_t w = write(f->fd, (const char *)bytes + done, n - done);
        if (w < 0 && errno == EINTR)
            continue;
        if (w <= 0) {
            const int error = w < 0 ? errno : ENOSPC;
            if (ftruncate(f->fd, before.st_size) != 0) /* nothing torn stays behind, where that can be helped */
                errno = error;
            return moe_fail(MOE_E_IO, "cannot write %s: %s", f->path, strerror(error));
        }
        done += (size_t)w;
    }
    return MOE_OK;
}

moe_err log_sync(log_file *f)
{
    if (f->fd >= 0 && fdatasync(f->fd) != 0)
        return moe_fail(MOE_E_IO, "cannot sync %s: %s", f->path, strerror(errno));
    return MOE_OK;
}

void log_close(log_file *f)
{
    if (f->fd >= 0)
        close(f->fd);
    free(f->path);
    *f = (log_file){.fd = -1};
}
