/* Files and folders by POSIX calls, for both real backends. Owns the translation of errno into sentences and the drop-behind of
 * buffered files; knows nothing of queues. Threads: any; one file's transfers come from one queue. */
#include "memory/io_posix.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#define FS_TMPFS     0x01021994UL /* f_type values of statfs(2) */
#define FS_RAMFS     0x858458f6UL
#define FS_HUGETLBFS 0x958458f6UL

static bool disk_full(int err) { return err == ENOSPC || err == EDQUOT; }

static moe_err open_failed(const char *path, int mode, int err)
{
    const bool create = (mode & 7) == IO_CREATE;
    if (err == EINVAL && (mode & IO_DIRECT))
        return moe_fail(MOE_E_CONFIG, "%s: this file system has no O_DIRECT; use another disk or set memory.buffered: true",
                        path);
    if (disk_full(err))
        return moe_fail(MOE_E_IO, "%s: cannot create: disk full", path);
    if (create)
        return moe_fail(MOE_E_CREATE, "%s: cannot create: %s", path, strerror(err));
    if (err == ENOENT || err == ENOTDIR)
        return moe_fail(MOE_E_NOINPUT, "%s: missing", path);
    return moe_fail(MOE_E_IO, "%s: cannot open: %s", path, strerror(err));
}

moe_err posix_open(io *self, io_file **out, const char *path, int mode)
{
    (void)self;
    *out = NULL;
    const int kind = mode & 7;
    int flags = O_CLOEXEC | (kind == IO_READ ? O_RDONLY : O_RDWR);
    if (kind == IO_CREATE)
        flags |= O_CREAT | O_EXCL;
    if (mode & IO_DIRECT)
        flags |= O_DIRECT;
    io_file *f = calloc(1, sizeof *f);
    char *copy = strdup(path);
    if (f == NULL || copy == NULL) {
        free(f);
        free(copy);
        return moe_fail(MOE_E_OS, "%s: out of memory", path);
    }
    int fd;
    do
        fd = open(path, flags, 0666);
    while (fd < 0 && errno == EINTR);
    if (fd < 0) {
        const int err = errno;
        free(f);
        free(copy);
        if (err == EINVAL && kind == IO_CREATE)
            unlink(path); /* some file systems refuse O_DIRECT only after they made the file */
        return open_failed(path, mode, err);
    }
    *f = (io_file){.fd = fd, .mode = mode, .path = copy, .fixed = -1};
    pthread_mutex_init(&f->lock, NULL);
    *out = f;
    return MOE_OK;
}

static void wait_and_drop(io_file *f, drop_range r)
{
    sync_file_range(f->fd, (off_t)r.offset, (off_t)r.bytes,
                    SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
    posix_fadvise(f->fd, (off_t)r.offset, (off_t)r.bytes, POSIX_FADV_DONTNEED);
}

static void drop_all(io_file *f)
{
    pthread_mutex_lock(&f->lock);
    for (int i = 0; i < f->drops; i++)
        wait_and_drop(f, f->drop[i]);
    f->drops = 0;
    pthread_mutex_unlock(&f->lock);
}

void posix_drop_behind(io_file *f, uint64_t offset, size_t bytes, bool written)
{
    if (!(f->mode & IO_DROP))
        return;
    if (!written) {
        posix_fadvise(f->fd, (off_t)offset, (off_t)bytes, POSIX_FADV_DONTNEED);
        return;
    }
    sync_file_range(f->fd, (off_t)offset, (off_t)bytes, SYNC_FILE_RANGE_WRITE);
    pthread_mutex_lock(&f->lock);
    if (f->drops == DROP_RANGES) {
        wait_and_drop(f, f->drop[0]);
        memmove(f->drop, f->drop + 1, sizeof f->drop - sizeof f->drop[0]);
        f->drops--;
    }
    f->drop[f->drops++] = (drop_range){offset, bytes};
    pthread_mutex_unlock(&f->lock);
}

void posix_close(io *self, io_file *f)
{
    (void)self;
    if (f == NULL)
        return;
    drop_all(f);
    close(f->fd);
    pthread_mutex_destroy(&f->lock);
    free(f->path);
    free(f);
}

moe_err posix_size(io *self, io_file *f, uint64_t *bytes)
{
    (void)self;
    *bytes = 0;
    struct stat st;
    if (fstat(f->fd, &st) != 0)
        return moe_fail(MOE_E_IO, "%s: cannot stat: %s", f->path, strerror(errno));
    *bytes = (uint64_t)st.st_size;
    return MOE_OK;
}

moe_err posix_allocate(io *self, io_file *f, uint64_t bytes)
{
    (void)self;
    if (bytes == 0)
        return MOE_OK;
    if (bytes > INT64_MAX)
        return moe_fail(MOE_E_CONFIG, "%s: %llu bytes is more than a file can hold", f->path, (unsigned long long)bytes);
    int err;
    do
        err = fallocate(f->fd, 0, 0, (off_t)bytes) == 0 ? 0 : errno;
    while (err == EINTR);
    if (err == EOPNOTSUPP)
        err = posix_fallocate(f->fd, 0, (off_t)bytes); /* writes a byte per block */
    if (disk_full(err))
        return moe_fail(MOE_E_IO, "%s: disk full: cannot reserve %llu bytes", f->path, (unsigned long long)bytes);
    if (err == EFBIG)
        return moe_fail(MOE_E_IO, "%s: %llu bytes is more than this file system or the file-size limit allows", f->path,
                        (unsigned long long)bytes);
    if (err != 0)
        return moe_fail(MOE_E_IO, "%s: cannot reserve %llu bytes: %s", f->path, (unsigned long long)bytes, strerror(err));
    return MOE_OK;
}

/* fsync has no deadline of its own, so it runs in a thread that can be left behind. */
typedef struct sync_job {
    pthread_mutex_t lock;
    pthread_cond_t ended;
    int fd; /* a duplicate: the file may be closed when nobody waits any more */
    bool data_only, done, abandoned;
    int err;
} sync_job;

static int sync_fd(int fd, bool data_only)
{
    int err;
    do
        err = (data_only ? fdatasync(fd) : fsync(fd)) == 0 ? 0 : errno;
    while (err == EINTR);
    return err;
}

static void sync_job_free(sync_job *j)
{
    close(j->fd);
    pthread_cond_destroy(&j->ended);
    pthread_mutex_destroy(&j->lock);
    free(j);
}

static void *sync_main(void *arg)
{
    sync_job *j = arg;
    const int err = sync_fd(j->fd, j->data_only);
    pthread_mutex_lock(&j->lock);
    j->err = err;
    j->done = true;
    const bool abandoned = j->abandoned;
    pthread_cond_signal(&j->ended);
    pthread_mutex_unlock(&j->lock);
    if (abandoned)
        sync_job_free(j);
    return NULL;
}

/* 0, an errno, or ETIMEDOUT after IO_DEADLINE_SECONDS. */
static int sync_in_time(int fd, bool data_only)
{
    sync_job *j = calloc(1, sizeof *j);
    const int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (j == NULL || copy < 0) {
        free(j);
        if (copy >= 0)
            close(copy);
        return sync_fd(fd, data_only);
    }
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&j->lock, NULL);
    pthread_cond_init(&j->ended, &monotonic);
    pthread_condattr_destroy(&monotonic);
    j->fd = copy;
    j->data_only = data_only;
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += IO_DEADLINE_SECONDS;
    pthread_t thread;
    if (pthread_create(&thread, NULL, sync_main, j) != 0) {
        sync_job_free(j);
        return sync_fd(fd, data_only);
    }
    pthread_mutex_lock(&j->lock);
    int late = 0;
    while (!j->done && late == 0)
        late = pthread_cond_timedwait(&j->ended, &j->lock, &until);
    const bool done = j->done;
    const int err = j->err;
    j->abandoned = !done;
    pthread_mutex_unlock(&j->lock);
    if (!done) {
        pthread_detach(thread);
        return ETIMEDOUT;
    }
    pthread_join(thread, NULL);
    sync_job_free(j);
    return err;
}

static moe_err sync_failed(const char *path, const char *what, int err)
{
    if (err == ETIMEDOUT)
        return moe_fail(MOE_E_IO, "%s: waited %d s for the disk to sync %s: it does not answer", path, IO_DEADLINE_SECONDS, what);
    return moe_fail(MOE_E_IO, "%s: sync of %s failed: %s", path, what, disk_full(err) ? "disk full" : strerror(err));
}

moe_err posix_sync(io *self, io_file *f)
{
    (void)self;
    const int err = sync_in_time(f->fd, true);
    if (err != 0)
        return sync_failed(f->path, "the file", err);
    if (f->mode & IO_DROP)
        drop_all(f);
    return MOE_OK;
}

moe_err posix_make_dir(io *self, const char *path)
{
    (void)self;
    struct stat st;
    if (mkdir(path, 0777) == 0 || (errno == EEXIST && stat(path, &st) == 0 && S_ISDIR(st.st_mode)))
        return MOE_OK;
    const int err = errno;
    return moe_fail(disk_full(err) ? MOE_E_IO : MOE_E_CREATE, "%s: cannot create the folder: %s", path,
                    disk_full(err)  ? "disk full"
                    : err == EEXIST ? "a file of this name is there"
                                    : strerror(err));
}

moe_err posix_rename(io *self, const char *from, const char *to)
{
    (void)self;
    if (rename(from, to) != 0)
        return moe_fail(MOE_E_IO, "%s: cannot rename to %s: %s", from, to, disk_full(errno) ? "disk full" : strerror(errno));
    return MOE_OK;
}

moe_err posix_remove(io *self, const char *path)
{
    (void)self;
    if (unlink(path) != 0 && errno != ENOENT)
        return moe_fail(MOE_E_IO, "%s: cannot remove: %s", path, strerror(errno));
    return MOE_OK;
}

moe_err posix_sync_dir(io *self, const char *path)
{
    (void)self;
    const int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return moe_fail(MOE_E_IO, "%s: cannot open the folder: %s", path, strerror(errno));
    const int err = sync_in_time(fd, false);
    close(fd);
    if (err != 0 && err != EINVAL) /* EINVAL: this file system needs no sync of folders */
        return sync_failed(path, "the folder", err);
    return MOE_OK;
}

bool posix_exists(io *self, const char *path)
{
    (void)self;
    struct stat st;
    return stat(path, &st) == 0;
}

moe_err posix_space(io *self, const char *dir, io_space *out)
{
    (void)self;
    *out = (io_space){0};
    struct statvfs v;
    struct statfs fs;
    struct stat st;
    if (statvfs(dir, &v) != 0 || statfs(dir, &fs) != 0 || stat(dir, &st) != 0)
        return moe_fail(MOE_E_IO, "%s: cannot stat the file system: %s", dir, strerror(errno));
    const unsigned long type = (unsigned long)fs.f_type & 0xffffffffUL;
    out->free_bytes = (uint64_t)v.f_bavail * v.f_frsize;
    out->device = (uint64_t)st.st_dev;
    out->in_memory = type == FS_TMPFS || type == FS_RAMFS || type == FS_HUGETLBFS;
    return MOE_OK;
}

moe_err posix_list(io *self, const char *dir, io_name_fn each, void *user)
{
    (void)self;
    DIR *d = opendir(dir);
    if (d == NULL)
        return moe_fail(MOE_E_IO, "%s: cannot read the folder: %s", dir, strerror(errno));
    struct dirent *e;
    for (errno = 0; (e = readdir(d)) != NULL; errno = 0)
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
            each(user, e->d_name);
    const int err = errno;
    closedir(d);
    if (err != 0)
        return moe_fail(MOE_E_IO, "%s: cannot read the folder: %s", dir, strerror(err));
    return MOE_OK;
}

void posix_transfer_failed(io_transfer *t, int err)
{
    const char *what = t->write ? "write" : "read";
    const unsigned long long at = t->offset + t->done;
    if (err == 0)
        t->rc = moe_fail(MOE_E_IO, "%s: %s at offset %llu: the file ends there, %zu of %zu bytes done", t->file->path, what, at,
                         t->done, t->bytes);
    else
        t->rc = moe_fail(MOE_E_IO, "%s: %s of %zu bytes at offset %llu: %s", t->file->path, what, t->bytes - t->done, at,
                         disk_full(err) ? "disk full" : strerror(err));
    moe_error_take(t->text, sizeof t->text);
}
