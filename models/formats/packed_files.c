/* Owns the files of a packed folder in the making: a full disk, an old attempt, the rename at the end.
 * Threads: one. */
#include "models/formats/packed_files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "engine/base/text.h"
#include "models/formats/hf_private.h"
#include "models/text/tokenizer_gguf.h"

/* Made first and removed last: a folder with it is an attempt of ours that was cut short. */
#define MARK "moe-model-writes-here"

enum { MAX_TOKENIZER = 512 << 20, SLACK = 1 << 20 /* bytes, for the manifest and the tokenizer */ };

static moe_err write_whole(const char *folder, const char *name, const void *data, size_t bytes);

static bool is_empty_folder(const char *path)
{
    DIR *d = opendir(path);
    bool empty = d != NULL;
    for (struct dirent *e; d != NULL && (e = readdir(d)) != NULL;)
        empty = empty && (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0);
    if (d != NULL)
        closedir(d);
    return empty;
}

void packed_folder_remove(const char *partial)
{
    DIR *d = opendir(partial);
    char path[4096];
    for (struct dirent *e; d != NULL && (e = readdir(d)) != NULL;)
        if (snprintf(path, sizeof path, "%s/%s", partial, e->d_name) < (int)sizeof path)
            unlink(path); /* "." and ".." stay */
    if (d != NULL)
        closedir(d);
    rmdir(partial);
}

/* What an earlier attempt left; what somebody else put there stays. */
static void remove_attempt(const char *partial)
{
    char path[4096];
    const int n = snprintf(path, sizeof path, "%s/" MARK, partial);
    if (n > 0 && (size_t)n < sizeof path && access(path, F_OK) == 0)
        packed_folder_remove(partial);
}

moe_err packed_folder_begin(const char *dir, char **partial)
{
    size_t n = strlen(dir);
    *partial = NULL;
    while (n > 1 && dir[n - 1] == '/')
        n--;
    if (access(dir, F_OK) == 0 && !is_empty_folder(dir))
        return moe_fail(MOE_E_CREATE, "%s exists and is no empty folder: name a new one", dir);
    char *path = NULL;
    if (asprintf(&path, "%.*s.partial", (int)n, dir) < 0)
        return moe_fail(MOE_E_OS, "out of memory");
    remove_attempt(path);
    moe_err rc = MOE_OK;
    if (mkdir(path, 0777) != 0)
        rc = errno == EEXIST ? moe_fail(MOE_E_CREATE, "%s is in the way: the folder is written under that name first, and what is there was not made by moe-model", path)
                             : moe_fail(MOE_E_CREATE, "cannot create %s: %s", path, strerror(errno));
    else if ((rc = write_whole(path, MARK, "", 0)) != MOE_OK)
        rmdir(path);
    if (rc == MOE_OK)
        *partial = path;
    else
        free(path);
    return rc;
}

static moe_err sync_folder(const char *path)
{
    const int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    const bool synced = fd >= 0 && fsync(fd) == 0;
    const int error = errno;
    if (fd >= 0)
        close(fd);
    return synced ? MOE_OK : moe_fail(MOE_E_IO, "cannot sync %s: %s", path, strerror(error));
}

moe_err packed_folder_commit(const char *partial, const char *dir)
{
    char mark[4096];
    if (snprintf(mark, sizeof mark, "%s/" MARK, partial) < (int)sizeof mark)
        unlink(mark);
    TRY(sync_folder(partial));
    if (rename(partial, dir) != 0)
        return moe_fail(MOE_E_CREATE, "cannot rename %s to %s: %s", partial, dir, strerror(errno));
    char *copy = strdup(dir);
    if (copy == NULL)
        return moe_fail(MOE_E_OS, "out of memory");
    const moe_err rc = sync_folder(dirname(copy));
    free(copy);
    return rc;
}

moe_err packed_space(const char *partial, uint64_t bytes)
{
    struct statvfs s;
    char need[TEXT_NUMBER], have[TEXT_NUMBER];
    if (statvfs(partial, &s) != 0)
        return moe_fail(MOE_E_IO, "%s: %s", partial, strerror(errno));
    const uint64_t room = (uint64_t)s.f_bavail * s.f_frsize;
    if (room < SLACK || room - SLACK < bytes)
        return moe_fail(MOE_E_IO, "%s: the disk has %s free, the packed model needs %s", partial, text_bytes(have, (double)room),
                        text_bytes(need, (double)bytes));
    return MOE_OK;
}

moe_err packed_file_create(packed_file *f, const char *folder, const char *name)
{
    *f = (packed_file){.fd = -1};
    if (snprintf(f->path, sizeof f->path, "%s/%s", folder, name) >= (int)sizeof f->path)
        return moe_fail(MOE_E_CREATE, "%s: a path of more than %zu bytes", folder, sizeof f->path);
    f->fd = open(f->path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    return f->fd >= 0 ? MOE_OK : moe_fail(MOE_E_CREATE, "cannot create %s: %s", f->path, strerror(errno));
}

moe_err packed_file_write(packed_file *f, const void *data, size_t bytes)
{
    for (size_t done = 0; done < bytes;) {
        const ssize_t got = write(f->fd, (const char *)data + done, bytes - done);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return moe_fail(MOE_E_IO, "cannot write %s: %s", f->path, errno == ENOSPC || errno == EDQUOT ? "the disk is full" : strerror(errno));
        done += (size_t)got;
    }
    f->bytes += bytes;
    return MOE_OK;
}

moe_err packed_file_finish(packed_file *f)
{
    if (f->fd < 0)
        return MOE_OK;
    const bool synced = fsync(f->fd) == 0;
    const int error = errno;
    const bool closed = close(f->fd) == 0;
    f->fd = -1;
    return synced && closed ? MOE_OK : moe_fail(MOE_E_IO, "cannot write %s: %s", f->path, strerror(synced ? errno : error));
}

void packed_file_abandon(packed_file *f)
{
    if (f->fd >= 0)
        close(f->fd);
    f->fd = -1;
}

static moe_err write_whole(const char *folder, const char *name, const void *data, size_t bytes)
{
    packed_file f;
    TRY(packed_file_create(&f, folder, name));
    moe_err rc = packed_file_write(&f, data, bytes);
    if (rc == MOE_OK)
        rc = packed_file_finish(&f);
    packed_file_abandon(&f);
    return rc;
}

static moe_err copy_file(const char *from, const char *folder, const char *name)
{
    char *path = NULL, *text = NULL;
    size_t bytes;
    moe_err rc;
    TRY(hf_path(&path, from, name));
    if (access(path, F_OK) != 0) {
        free(path);
        return MOE_OK;
    }
    TRY_GOTO(hf_read_text(path, MAX_TOKENIZER, &text, &bytes), rc, out);
    TRY_GOTO(write_whole(folder, name, text, bytes), rc, out);
out:
    free(text);
    free(path);
    return rc;
}

static moe_err write_metadata(const char *path, const char *folder)
{
    text_buf t = {0};
    moe_err rc = tokenizer_gguf_text(path, &t);
    if (rc == MOE_OK)
        rc = write_whole(folder, TOKENIZER_GGUF, t.data, t.used);
    text_free(&t);
    return rc;
}

moe_err packed_copy_tokenizer(const model *m, const char *folder)
{
    static const char *const names[] = {"tokenizer.json",       "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
                                        "generation_config.json", TOKENIZER_GGUF};
    const bool folders = model_kind_of(m) == MODEL_HF || model_kind_of(m) == MODEL_PACKED;
    const char *from = model_tokenizer(m) != NULL ? model_tokenizer(m) : folders ? model_name(m) : NULL; /* generation_config.json may stand alone */
    if (from == NULL)
        return MOE_OK;
    if (model_kind_of(m) == MODEL_GGUF)
        return write_metadata(from, folder);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        TRY(copy_file(from, folder, names[i]));
    return MOE_OK;
}
