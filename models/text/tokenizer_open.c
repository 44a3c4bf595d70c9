/* A tokenizer's files: which one a path means, reading it, its EOS, and copies of it.
 * EOS: eos_token of tokenizer_config.json, else the first of the well-known names that is an added token; a GGUF file says it.
 * Owns what is mapped until it is parsed. One thread. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "models/formats/gguf.h"
#include "models/text/tokenizer_private.h"

enum { FILE_LIMIT = 512 << 20 }; /* bytes: the largest real one is 33 MB */

/* Maps a file; an empty one is MOE_E_DATA. */
static moe_err map_file(const char *path, const char **text, size_t *bytes)
{
    struct stat st;
    *text = NULL;
    *bytes = 0;
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return moe_fail(MOE_E_NOINPUT, "%s: %s", path, strerror(errno));
    moe_err rc = MOE_OK;
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode))
        rc = moe_fail(MOE_E_NOINPUT, "%s: not a file", path);
    else if (st.st_size == 0 || st.st_size > FILE_LIMIT)
        rc = moe_fail(MOE_E_DATA, "%s: %lld bytes; expected 1 to %d", path, (long long)st.st_size, FILE_LIMIT);
    if (rc == MOE_OK) {
        void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED)
            rc = moe_fail(MOE_E_OS, "%s: cannot map: %s", path, strerror(errno));
        else {
            *text = p;
            *bytes = (size_t)st.st_size;
        }
    }
    close(fd);
    return rc;
}

static char *join(const char *dir, const char *name)
{
    char *s = NULL;
    return asprintf(&s, "%s/%s", dir, name) < 0 ? NULL : s;
}

/* path and dir of the file; a folder means its tokenizer.json, or else its tokenizer.gguf. */
static moe_err find_file(tokenizer *t, const char *path)
{
    struct stat st;
    if (stat(path, &st) != 0)
        return moe_fail(MOE_E_NOINPUT, "%s: %s (expected a tokenizer.json, a folder with one, a GGUF file, or \"bytes\")", path,
                        strerror(errno));
    if (S_ISDIR(st.st_mode)) {
        t->dir = strdup(path);
        t->path = join(path, "tokenizer.json");
        if (t->path && access(t->path, F_OK) != 0) {
            char *other = join(path, TOKENIZER_GGUF);
            if (other && access(other, F_OK) == 0) {
                free(t->path);
                t->path = other;
            } else {
                free(other);
            }
        }
    } else {
        const char *slash = strrchr(path, '/');
        t->dir = slash ? strndup(path, slash == path ? 1 : (size_t)(slash - path)) : strdup(".");
        t->path = strdup(path);
    }
    return t->dir && t->path ? MOE_OK : moe_fail(MOE_E_OS, "no memory for a path");
}

/* The id of a text that is one token; -1: none. */
static int32_t id_of(const tokenizer *t, const char *text)
{
    const size_t n = strlen(text);
    const added_set *const sets[] = {t->parts.added, t->parts.added_normalized};
    for (int i = 0; i < 2; i++) {
        size_t first, last;
        int32_t id;
        if (added_find(sets[i], text, n, 0, true, &first, &last, &id) && first == 0 && last == n)
            return id;
    }
    return bpe_find(t->parts.model, text, n);
}

static moe_err find_eos(tokenizer *t)
{
    static const char *const known[] = {"<|endoftext|>", "<|end_of_text|>",
                                        ("<\xEF\xBD\x9C"
                                         "end\xE2\x96\x81of\xE2\x96\x81sentence\xEF\xBD\x9C>"),
                                        "</s>", "<eos>"};
    char *path = join(t->dir, "tokenizer_config.json"), *eos = NULL;
    const char *text = NULL;
    size_t bytes = 0;
    moe_err rc = MOE_OK;
    t->ends.eos = -1;
    if (!path)
        return moe_fail(MOE_E_OS, "no memory for a path");
    if (access(path, F_OK) == 0) {
        TRY_GOTO(map_file(path, &text, &bytes), rc, done);
        TRY_GOTO(tokenizer_config_eos(path, text, bytes, &eos), rc, done);
    }
    if (eos) {
        t->ends.eos = id_of(t, eos);
        if (t->ends.eos < 0)
            rc = moe_fail(MOE_E_DATA, "%s: eos_token \"%s\" is no token of %s", path, eos, t->path);
        goto done;
    }
    for (size_t i = 0; t->ends.eos < 0 && i < sizeof known / sizeof known[0]; i++)
        t->ends.eos = id_of(t, known[i]);
done:
    if (text)
        munmap((void *)text, bytes);
    free(eos);
    free(path);
    return rc;
}

static moe_err load_gguf(tokenizer *t)
{
    gguf *g;
    TRY(gguf_open(&g, t->path));
    const moe_err rc = tokenizer_gguf_parse(&t->parts, &t->ends, g);
    gguf_close(g);
    return rc;
}

static moe_err load(tokenizer *t, const char *path)
{
    const char *text;
    size_t bytes;
    TRY(find_file(t, path));
    t->gguf = gguf_is(t->path);
    if (t->gguf)
        return load_gguf(t);
    TRY(map_file(t->path, &text, &bytes));
    const moe_err rc = tokenizer_file_parse(&t->parts, t->path, text, bytes);
    munmap((void *)text, bytes);
    TRY(rc);
    if (t->parts.before.n == 1)
        t->ends.bos = t->parts.before.id[0];
    return t->parts.bytes ? MOE_OK : find_eos(t);
}

moe_err tokenizer_open(tokenizer **out, const char *path)
{
    tokenizer *t = *out = calloc(1, sizeof *t);
    if (!t)
        return moe_fail(MOE_E_OS, "no memory for a tokenizer");
    pthread_mutex_init(&t->lock, NULL);
    t->ends = (tokenizer_ends){-1, -1};
    for (int c = 0; c < 256; c++)
        t->byte[c] = (char)c;
    t->parts.bytes = strcmp(path, "bytes") == 0;
    const moe_err rc = t->parts.bytes ? MOE_OK : load(t, path);
    if (rc == MOE_OK)
        return MOE_OK;
    tokenizer_close(t);
    *out = NULL;
    return moe_error_trace(rc, "tokenizer_open", __FILE__, __LINE__);
}

static moe_err write_file(const char *path, const char *text, size_t bytes)
{
    FILE *f = fopen(path, "we");
    if (!f)
        return moe_fail(MOE_E_CREATE, "%s: cannot create: %s", path, strerror(errno));
    const bool written = fwrite(text, 1, bytes, f) == bytes && fflush(f) == 0 && fsync(fileno(f)) == 0;
    const int error = errno;
    if (fclose(f) == 0 && written)
        return MOE_OK;
    return moe_fail(MOE_E_IO, "%s: cannot write: %s", path, strerror(error));
}

static moe_err copy_file(const char *from, const char *dir, const char *name)
{
    const char *text = NULL;
    size_t bytes = 0;
    char *to = join(dir, name);
    moe_err rc;
    if (!to)
        return moe_fail(MOE_E_OS, "no memory for a path");
    TRY_GOTO(map_file(from, &text, &bytes), rc, done);
    TRY_GOTO(write_file(to, text, bytes), rc, done);
done:
    if (text)
        munmap((void *)text, bytes);
    free(to);
    return rc;
}

static moe_err save_gguf(const tokenizer *t, const char *dir)
{
    text_buf text = {0};
    char *path = join(dir, TOKENIZER_GGUF);
    moe_err rc = path ? tokenizer_gguf_text(t->path, &text) : moe_fail(MOE_E_OS, "no memory for a path");
    if (rc == MOE_OK)
        rc = write_file(path, text.data, text.used);
    text_free(&text);
    free(path);
    return rc;
}

moe_err tokenizer_save(const tokenizer *t, const char *dir)
{
    static const char *const beside[] = {"tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"};
    if (t->parts.bytes) {
        static const char text[] = "{\"type\": \"bytes\"}\n";
        char *path = join(dir, "tokenizer.json");
        const moe_err rc = path ? write_file(path, text, sizeof text - 1) : moe_fail(MOE_E_OS, "no memory for a path");
        free(path);
        return rc;
    }
    if (t->gguf)
        return save_gguf(t, dir);
    TRY(copy_file(t->path, dir, "tokenizer.json"));
    for (size_t i = 0; i < sizeof beside / sizeof beside[0]; i++) {
        char *path = join(t->dir, beside[i]);
        if (!path)
            return moe_fail(MOE_E_OS, "no memory for a path");
        const moe_err rc = access(path, F_OK) == 0 ? copy_file(path, dir, beside[i]) : MOE_OK;
        free(path);
        TRY(rc);
    }
    return MOE_OK;
}
