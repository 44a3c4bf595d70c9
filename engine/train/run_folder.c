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

/* A name is durable once its folder is synced. */
static moe_err sync_folder(const char *path)
{
    const int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    const bool ok = fd >= 0 && fsync(fd) == 0;
    const int error = errno;
    if (fd >= 0)
        close(fd);
    return ok ? MOE_OK : moe_fail(MOE_E_IO, "%s: cannot sync the folder: %s", path, strerror(error));
}

/* mkdir, and a sync of the folder that holds it. MOE_OK when it is there. */
static moe_err make_folder(char *path)
{
    if (mkdir(path, 0777) != 0)
        return errno == EEXIST ? MOE_OK : moe_fail(MOE_E_CREATE, "%s: cannot make the run folder: %s", path, strerror(errno));
    char *slash = strrchr(path, '/');
    if (slash == NULL || slash == path)
        return sync_folder(slash == NULL ? "." : "/");
    *slash = '\0';
    const moe_err rc = sync_folder(path);
    *slash = '/';
    return rc;
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
        rc = make_folder(copy);
        *p = c;
        if (c == '\0')
            break;
    }
    free(copy);
    return rc;
}

static moe_err take_lock(run_folder *f, bool shared)
{
    char *path;
    TRY(run_folder_path(f, "lock", &path));
    moe_err rc = MOE_OK;
    f->lock = shared ? open(path, O_RDONLY | O_CLOEXEC) : open(path, O_CREAT | O_RDWR | O_CLOEXEC, 0666);
    if (f->lock < 0)
        rc = moe_fail(shared ? MOE_E_NOINPUT : MOE_E_CREATE, "%s: cannot open: %s", path, strerror(errno));
    else if (flock(f->lock, (shared ? LOCK_SH : LOCK_EX) | LOCK_NB) != 0)
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
    char text[34] = {0};
    const size_t n = fread(text, 1, 33, in);
    const bool failed = ferror(in) != 0;
    fclose(in);
    if (failed)
        return moe_fail(MOE_E_IO, "%s: cannot read", path);
    if (n != 33 || text[32] != '\n' || strspn(text, "0123456789abcdef") != 32)
        return moe_fail(MOE_E_DATA, "%s: expected 32 hexadecimal digits and a newline", path);
    for (int i = 0; i < 16; i++) {
        const char byte[3] = {text[2 * i], text[2 * i + 1], '\0'};
        f->uuid[i] = (uint8_t)strtoul(byte, NULL, 16);
    }
    return MOE_OK;
}

static moe_err write_text(const char *path, const char *text, size_t bytes)
{
    const int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0666);
    if (fd < 0)
        return moe_fail(MOE_E_CREATE, "%s: cannot create: %s", path, strerror(errno));
    errno = ENOSPC; /* of a short write */
    const bool ok = write(fd, text, bytes) == (ssize_t)bytes && fsync(fd) == 0;
    const int error = errno;
    close(fd);
    return ok ? MOE_OK : moe_fail(MOE_E_IO, "%s: cannot write: %s", path, strerror(error));
}

static moe_err write_uuid(run_folder *f, const char *path)
{
    if (getrandom(f->uuid, sizeof f->uuid, 0) != (ssize_t)sizeof f->uuid)
        return moe_fail(MOE_E_OS, "no random numbers for a new run: %s", strerror(errno));
    char *tmp, text[34];
    if (asprintf(&tmp, "%s.tmp", path) < 0)
        return moe_fail(MOE_E_OS, "out of memory");
    for (int i = 0; i < 16; i++)
        snprintf(text + 2 * i, 3, "%02x", f->uuid[i]);
    text[32] = '\n';
    moe_err rc = write_text(tmp, text, 33);
    if (rc == MOE_OK && rename(tmp, path) != 0)
        rc = moe_fail(MOE_E_IO, "%s: cannot rename: %s", tmp, strerror(errno));
    free(tmp);
    TRY(rc);
    return sync_folder(f->path);
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
    TRY_GOTO(run_folder_path(f, "uuid", &file), rc, fail);
    if (!create && access(file, F_OK) != 0) /* nothing is left behind in a folder that is not ours */
        TRY_GOTO(moe_fail(MOE_E_NOINPUT, "%s: not a run folder (no file uuid in it)", f->path), rc, fail);
    TRY_GOTO(take_lock(f, false), rc, fail);
    TRY_GOTO(read_uuid(f, file, &found), rc, fail);
    if (!found)
        TRY_GOTO(write_uuid(f, file), rc, fail);
    free(file);
    return MOE_OK;
fail:
    free(file);
    run_folder_close(f);
    return rc;
}

moe_err run_folder_look(run_folder *f, const char *path)
{
    char *file = NULL;
    bool found = false;
    moe_err rc;
    *f = (run_folder){.lock = -1};
    f->path = realpath(path, NULL);
    if (f->path == NULL)
        return moe_fail(MOE_E_NOINPUT, "%s: %s", path, strerror(errno));
    TRY_GOTO(run_folder_path(f, "uuid", &file), rc, done);
    TRY_GOTO(take_lock(f, true), rc, done);
    TRY_GOTO(read_uuid(f, file, &found), rc, done);
    if (!found)
        rc = moe_fail(MOE_E_NOINPUT, "%s: not a run folder (no file uuid in it)", f->path);
done:
    free(file);
    if (rc != MOE_OK)
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
