/* The way of a text: added tokens -> normalizer -> added tokens of normalized text -> words -> model.
 * Each thread that encodes borrows a workroom (match data, word cache, buffers) from a list under a lock, so that encoding itself
 * shares nothing. Everything else is read-only once open.
 * EOS: eos_token of tokenizer_config.json, else the first of the well-known names that is an added token; a GGUF file says it. */
#include "models/text/tokenizer.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "models/formats/gguf.h"
#include "models/text/tokenizer_file.h"
#include "models/text/tokenizer_gguf.h"
#include "models/text/utf8.h"

enum { FILE_LIMIT = 512 << 20 }; /* bytes: the largest real one is 33 MB */

typedef struct workroom {
    struct workroom *next;
    bpe_room *bpe;
    unigram_room *unigram;
    split_room *split;
    normal_room *normal;
    text_buffer shadow;
} workroom;

struct tokenizer {
    tokenizer_parts parts;
    tokenizer_ends ends;
    bool gguf;
    char *path, *dir; /* of tokenizer.json or of the GGUF file; NULL for plain bytes */
    char byte[256];
    pthread_mutex_t lock; /* guards rooms */
    workroom *rooms;
};

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

static void close_room(workroom *w)
{
    bpe_room_close(w->bpe);
    unigram_room_close(w->unigram);
    split_room_close(w->split);
    normal_room_close(w->normal);
    text_buffer_free(&w->shadow);
    free(w);
}

void tokenizer_close(tokenizer *t)
{
    if (!t)
        return;
    for (workroom *w = t->rooms, *next; w; w = next) {
        next = w->next;
        close_room(w);
    }
    tokenizer_parts_free(&t->parts);
    pthread_mutex_destroy(&t->lock);
    free(t->path);
    free(t->dir);
    free(t);
}

bool tokenizer_is_bytes(const tokenizer *t) { return t->parts.bytes; }

int tokenizer_vocab(const tokenizer *t) { return t->parts.bytes ? 256 : bpe_ids(t->parts.model); }

int32_t tokenizer_eos(const tokenizer *t) { return t->ends.eos; }

int32_t tokenizer_bos(const tokenizer *t) { return t->ends.bos; }

bool tokenizer_is_special(const tokenizer *t, int32_t id)
{
    const char *text;
    size_t n, first, last;
    int32_t found;
    if (t->parts.bytes || !bpe_piece(t->parts.model, id, &text, &n))
        return false;
    if (!t->gguf)
        return (size_t)id < t->parts.special.n && t->parts.special.data[id];
    const added_set *const sets[] = {t->parts.added, t->parts.added_normalized};
    for (int i = 0; i < 2; i++) /* one that does not count without specials is special */
        if (added_find(sets[i], text, n, 0, true, &first, &last, &found) && found == id)
            return !added_find(sets[i], text, n, 0, false, &first, &last, &found) || found != id;
    return false;
}

bool tokenizer_next_special(const tokenizer *t, const char *text, size_t bytes, size_t from, size_t *first, size_t *last, int32_t *id)
{
    bool any = false;
    if (t->parts.bytes)
        return false;
    const added_set *const sets[] = {t->parts.added, t->parts.added_normalized};
    for (int i = 0; i < 2; i++) {
        size_t begin, end;
        int32_t found;
        for (size_t at = from; added_find(sets[i], text, bytes, at, true, &begin, &end, &found); at = end) {
            if (!tokenizer_is_special(t, found))
                continue;
            if (!any || begin < *first) {
                *first = begin;
                *last = end;
                *id = found;
            }
            any = true;
            break;
        }
    }
    return any;
}

static moe_err borrow_room(tokenizer *t, workroom **out)
{
    pthread_mutex_lock(&t->lock);
    workroom *w = *out = t->rooms;
    if (w)
        t->rooms = w->next;
    pthread_mutex_unlock(&t->lock);
    if (w)
        return MOE_OK;
    w = calloc(1, sizeof *w);
    if (!w)
        return moe_fail(MOE_E_OS, "no memory for encoding");
    moe_err rc;
    TRY_GOTO(bpe_room_open(&w->bpe), rc, fail);
    TRY_GOTO(unigram_room_open(&w->unigram), rc, fail);
    TRY_GOTO(split_room_open(&w->split), rc, fail);
    TRY_GOTO(normal_room_open(&w->normal), rc, fail);
    *out = w;
    return MOE_OK;
fail:
    close_room(w);
    return rc;
}

static void return_room(tokenizer *t, workroom *w)
{
    pthread_mutex_lock(&t->lock);
    w->next = t->rooms;
    t->rooms = w;
    pthread_mutex_unlock(&t->lock);
}

typedef struct encode_job {
    const tokenizer *t;
    workroom *room;
    bool specials;
    token_ids *out;
} encode_job;

static moe_err encode_word(void *arg, const char *word, size_t bytes)
{
    const encode_job *j = arg;
    const tokenizer_parts *p = &j->t->parts;
    switch (p->kind) {
    case MODEL_BPE: return bpe_word(p->model, j->room->bpe, word, bytes, j->out);
    case MODEL_UNIGRAM: return unigram_word(p->unigram, j->room->unigram, word, bytes, j->out);
    case MODEL_WORDPIECE: return wordpiece_word(&p->wordpiece, word, bytes, j->out);
    }
    return MOE_OK;
}

/* Text without added tokens. begins: the whole text begins with it. */
static moe_err encode_plain(encode_job *j, const char *text, size_t bytes, bool begins)
{
    const char *shadow;
    TRY(unicode_shadow(j->t->parts.unicode, text, bytes, &j->room->shadow, &shadow));
    return split_run(j->t->parts.words, j->room->split, text, shadow, bytes, begins, encode_word, j);
}

/* Cuts the added tokens of a set out of the text and hands what is between them to `rest`. */
static moe_err encode_between(encode_job *j, const added_set *set, const char *text, size_t bytes, bool begins,
                              moe_err (*rest)(encode_job *, const char *, size_t, bool))
{
    size_t from = 0, first, last;
    int32_t id;
    while (added_find(set, text, bytes, from, j->specials, &first, &last, &id)) {
        if (first > from)
            TRY(rest(j, text + from, first - from, begins && from == 0));
        TRY(token_ids_reserve(j->out, 1));
        j->out->id[j->out->n++] = id;
        from = last;
    }
    return from < bytes ? rest(j, text + from, bytes - from, begins && from == 0) : MOE_OK;
}

static moe_err encode_normalized(encode_job *j, const char *text, size_t bytes, bool begins)
{
    const char *normal;
    size_t n;
    TRY(normal_run(j->t->parts.normal, j->room->normal, text, bytes, &normal, &n, &begins));
    return encode_between(j, j->t->parts.added_normalized, normal, n, begins, encode_plain);
}

static moe_err encode_bytes(const char *text, size_t bytes, token_ids *out)
{
    TRY(token_ids_reserve(out, bytes));
    for (size_t i = 0; i < bytes; i++)
        out->id[out->n + i] = (unsigned char)text[i];
    out->n += bytes;
    return MOE_OK;
}

moe_err tokenizer_encode(const tokenizer *t, const char *text, size_t bytes, bool specials, token_ids *out)
{
    if (t->parts.bytes)
        return encode_bytes(text, bytes, out);
    const size_t valid = utf8_valid_prefix(text, bytes);
    if (valid < bytes)
        return moe_fail(MOE_E_DATA, "text is not valid UTF-8: byte 0x%02x at offset %zu", (unsigned char)text[valid], valid);
    encode_job j = {.t = t, .specials = specials, .out = out};
    const size_t before = out->n;
    TRY(borrow_room((tokenizer *)t, &j.room)); /* the list of rooms is the only thing that changes, under its lock */
    const moe_err rc = encode_between(&j, t->parts.added, text, bytes, true, encode_normalized);
    return_room((tokenizer *)t, j.room);
    if (rc != MOE_OK)
        out->n = before;
    return rc;
}

moe_err tokenizer_encode_whole(const tokenizer *t, const char *text, size_t bytes, bool specials, token_ids *out)
{
    const token_ids *const sides[] = {&t->parts.before, &t->parts.after};
    const size_t before = out->n;
    for (int i = 0; i < 2; i++) {
        moe_err rc = token_ids_reserve(out, sides[i]->n);
        for (size_t k = 0; rc == MOE_OK && k < sides[i]->n; k++)
            out->id[out->n++] = sides[i]->id[k];
        if (rc == MOE_OK && i == 0)
            rc = tokenizer_encode(t, text, bytes, specials, out);
        if (rc != MOE_OK) {
            out->n = before;
            return rc;
        }
    }
    return MOE_OK;
}

/* The piece of an id in a table of texts. */
static void find_text(const piece_texts *p, int32_t id, const char **bytes, size_t *n)
{
    const size_t first = id > 0 ? p->end[id - 1] : 0;
    *n = p->end[id] - first;
    *bytes = *n > 0 ? p->text + first : "";
}

moe_err tokenizer_first_piece(const tokenizer *t, int32_t id, const char **bytes, size_t *n)
{
    TRY(tokenizer_piece(t, id, bytes, n));
    if (t->parts.decoder)
        find_text(&t->parts.first, id, bytes, n);
    return MOE_OK;
}

static moe_err decode_pieces(const tokenizer *t, const int32_t *ids, size_t count, bool skip_special, text_list *l)
{
    for (size_t i = 0; i < count; i++) {
        const char *bytes;
        size_t n;
        if ((skip_special && tokenizer_is_special(t, ids[i])) || (!t->parts.bytes && !bpe_piece(t->parts.model, ids[i], &bytes, &n)))
            continue;
        if (t->parts.bytes)
            TRY(tokenizer_piece(t, ids[i], &bytes, &n));
        TRY(text_list_push(l, bytes, n));
    }
    return MOE_OK;
}

moe_err tokenizer_decode(const tokenizer *t, const int32_t *ids, size_t count, bool skip_special, text_buffer *out)
{
    text_list l = {0};
    const size_t before = out->n;
    moe_err rc = decode_pieces(t, ids, count, skip_special, &l);
    if (rc == MOE_OK && t->parts.decoder)
        rc = text_decoder_run(t->parts.decoder, &l, out);
    else if (rc == MOE_OK)
        rc = t->parts.bytes ? text_buffer_append(out, l.bytes.data, l.bytes.n) : decode_append_lossy(out, l.bytes.data, l.bytes.n);
    text_list_free(&l);
    if (rc != MOE_OK)
        out->n = before;
    return rc;
}

moe_err tokenizer_piece(const tokenizer *t, int32_t id, const char **bytes, size_t *n)
{
    if (t->parts.bytes) {
        *bytes = id >= 0 && id < 256 ? t->byte + id : "";
        *n = id >= 0 && id < 256;
        return *n ? MOE_OK : moe_fail(MOE_E_DATA, "token id %d is not a byte", id);
    }
    if (bpe_piece(t->parts.model, id, bytes, n)) {
        if (t->parts.decoder)
            find_text(&t->parts.middle, id, bytes, n);
        return MOE_OK;
    }
    return moe_fail(MOE_E_DATA, "token id %d is not in the vocabulary of %d", id, bpe_ids(t->parts.model));
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
