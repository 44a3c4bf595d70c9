#include "engine/train/run_folder.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

moe_err run_folder_path(const run_folder *f, const char *name, char **out)
{
    const int n = name[0] == '/' ? asprintf(out, "%s", name) : asprintf(out, "%s/%s", f->path, name);
    if (n < 0) {
        *out = NULL;
        return moe_fail(MOE_E_OS, "out of memory");
    }
    return MOE_OK;
}

/* Makes every missing folder of the path. */
static moe_err make_folders(const char *path)
{
    char *copy = strdup(path);
    if (copy == NULL)
        return moe_fail(MOE_E_OS, "out of memory");
    moe_err rc = MOE_OK;
    for (char *p = copy + 1; rc == MOE_OK; p++) {
        const char c = *p;
        if (c != '/' && c != '\0')
            continue;
        *p = '\0';
        if (mkdir(copy, 0777) != 0 && errno != EEXIST)
            rc = moe_fail(MOE_E_CREATE, "%s: cannot make the run folder: %s", copy, strerror(errno));
        *p = c;
        if (c == '\0')
            break;
    }
    free(copy);
    return rc;
}

static moe_err take_lock(run_folder *f)
{
    char *path;
    TRY(run_folder_path(f, "lock", &path));
    moe_err rc = MOE_OK;
    f->lock = open(path, O_CREAT | O_RDWR | O_CLOEXEC, 0666);
    if (f->lock < 0)
        rc = moe_fail(MOE_E_CREATE, "%s: cannot open: %s", path, strerror(errno));
    else if (flock(f->lock, LOCK_EX | LOCK_NB) != 0)
        rc = errno == EWOULDBLOCK ? moe_fail(MOE_E_TEMP, "%s: another process works in this run folder", f->path)
                                  : moe_fail(MOE_E_OS, "%s: cannot lock: %s", path, strerror(errno));
    free(path);
    return rc;
}

static moe_err read_uuid(run_folder *f, const char *path, bool *found)
{
    FILE *in = fopen(path, "rb");
    *found = in != NULL;
    if (in == NULL)
        return errno == ENOENT ? MOE_OK : moe_fail(MOE_E_IO, "%s: cannot read: %s", path, strerror(errno));
    char text[33] = {0};
    const size_t n = fread(text, 1, 32, in);
    fclose(in);
    for (int i = 0; i < 16; i++) {
        unsigned byte;
        if (n != 32 || sscanf(text + 2 * i, "%2x", &byte) != 1)
            return moe_fail(MOE_E_DATA, "%s: expected 32 hexadecimal digits", path);
        f->uuid[i] = (uint8_t)byte;
    }
    return MOE_OK;
}

static moe_err write_uuid(run_folder *f, const char *path)
{
    if (getrandom(f->uuid, sizeof f->uuid, 0) != (ssize_t)sizeof f->uuid)
        return moe_fail(MOE_E_OS, "no random numbers for a new run: %s", strerror(errno));
    char tmp[4096], text[34];
    for (int i = 0; i < 16; i++)
        snprintf(text + 2 * i, 3, "%02x", f->uuid[i]);
    text[32] = '\n';
    snprintf(tmp, sizeof tmp, "%s.tmp", path);
    const int fd = open(tmp, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0666);
    if (fd < 0)
        return moe_fail(MOE_E_CREATE, "%s: cannot create: %s", tmp, strerror(errno));
    const bool ok = write(fd, text, 33) == 33 && fsync(fd) == 0;
    const int error = errno;
    close(fd);
    if (!ok || rename(tmp, path) != 0)
        return moe_fail(MOE_E_IO, "%s: cannot write: %s", path, strerror(ok ? errno : error));
    return MOE_OK;
}

moe_err run_folder_open(run_folder *f, const char *path, bool create)
{
    *f = (run_folder){.lock = -1};
    struct stat st;
    if (create)
        TRY(make_folders(path));
    else if (stat(path, &st) != 0)
        return moe_fail(MOE_E_NOINPUT, "%s: no such run folder", path);
    f->path = realpath(path, NULL);
    if (f->path == NULL)
        return moe_fail(MOE_E_OS, "%s: %s", path, strerror(errno));
    moe_err rc;
    char *file = NULL;
    bool found = false;
    TRY_GOTO(take_lock(f), rc, fail);
    TRY_GOTO(run_folder_path(f, "uuid", &file), rc, fail);
    TRY_GOTO(read_uuid(f, file, &found), rc, fail);
    if (!found && !create)
        TRY_GOTO(moe_fail(MOE_E_NOINPUT, "%s: not a run folder (no file uuid in it)", f->path), rc, fail);
    if (!found)
        TRY_GOTO(write_uuid(f, file), rc, fail);
    free(file);
    return MOE_OK;
fail:
    free(file);
    run_folder_close(f);
    return rc;
}

void run_folder_close(run_folder *f)
{
    if (f->lock >= 0)
        close(f->lock);
    free(f->path);
    *f = (run_folder){.lock = -1};
}
