/* A folder of its own for tests over real files: under $TMPDIR or /var/tmp (a disk; /tmp may be tmpfs). */
#ifndef MOE_TESTS_MEMORY_SCRATCH_H
#define MOE_TESTS_MEMORY_SCRATCH_H

#include <fcntl.h>
#include <ftw.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/vfs.h>
#include <unistd.h>

enum { SCRATCH_PATH = 256 };

typedef struct scratch {
    char path[SCRATCH_PATH - 32];
} scratch;

static inline void scratch_make(scratch *s)
{
    const char *base = getenv("TMPDIR");
    snprintf(s->path, sizeof s->path, "%s/moe-test-XXXXXX", base != NULL ? base : "/var/tmp");
    if (mkdtemp(s->path) == NULL) {
        perror(s->path);
        abort();
    }
}

static inline void scratch_path(const scratch *s, char path[SCRATCH_PATH], const char *name)
{
    const scratch copy = *s;
    snprintf(path, SCRATCH_PATH, "%s/%.24s", copy.path, name);
}

static inline int scratch_unlink(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    (void)st;
    (void)flag;
    (void)ftw;
    return remove(path);
}

static inline void scratch_remove(scratch *s) { nftw(s->path, scratch_unlink, 8, FTW_DEPTH | FTW_PHYS); }

/* Some build machines have only overlay or tmpfs: tests then run buffered. */
static inline bool scratch_has_direct(const scratch *s)
{
    char path[SCRATCH_PATH];
    snprintf(path, sizeof path, "%s/probe", s->path);
    const int fd = open(path, O_CREAT | O_RDWR | O_DIRECT, 0600);
    if (fd >= 0)
        close(fd);
    unlink(path);
    struct statfs fs;
    return fd >= 0 && statfs(s->path, &fs) == 0 && fs.f_type != 0x01021994; /* tmpfs */
}

static inline void scratch_flip(const char *path, long at)
{
    const int fd = open(path, O_RDWR);
    char c = 0;
    if (fd < 0 || pread(fd, &c, 1, at) != 1)
        abort();
    c ^= 4;
    if (pwrite(fd, &c, 1, at) != 1 || fsync(fd) != 0)
        abort();
    close(fd);
}

#endif
