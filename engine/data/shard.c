/* Which format a .bin has:
 *   1. an .idx of the same name beside it: Megatron (MMapIndexedDataset version 1); the index says type and count;
 *   2. 1024 bytes of header that begin with 20240520, 1 or 20240801, 7: llm.c with uint16 (GPT-2) or uint32 (Llama 3) tokens; the
 *      third number is their count;
 *   3. otherwise nanoGPT: uint16 from the first byte to the last.
 * A file without a header that begins like a zip, gzip, zstd, NumPy, Parquet or llm.c evaluation file is refused by that name. */
#include "engine/data/shard.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    LLMC_HEADER_BYTES = 1024,
    LLMC_EVAL = 20240522,
    CHUNK = 16384, /* bytes on the stack per pread */
    PAGE = 4096,
};

static const struct {
    int32_t magic, version;
    token_type type;
} llmc_formats[] = {{20240520, 1, TOKEN_U16}, {20240801, 7, TOKEN_U32}};

static const struct {
    const char *magic;
    size_t bytes;
    const char *name;
} foreign[] = {
    {"PK\3\4", 4, "a zip (or .npz) archive"}, {"\x1f\x8b", 2, "gzip data"},  {"\x28\xb5\x2f\xfd", 4, "zstd data"},
    {"\x93NUMPY", 6, "a NumPy array"},        {"PAR1", 4, "a Parquet file"}, {"MMIDIDX", 7, "a Megatron index (.idx)"},
};

int token_type_bytes(token_type t)
{
    static const int bytes[] = {
        [TOKEN_U8] = 1, [TOKEN_I8] = 1, [TOKEN_I16] = 2, [TOKEN_U16] = 2, [TOKEN_I32] = 4, [TOKEN_U32] = 4, [TOKEN_I64] = 8};
    return bytes[t];
}

/* Reads exactly [offset, offset + bytes). */
static moe_err read_at(int fd, const char *path, void *out, size_t bytes, int64_t offset)
{
    for (size_t done = 0; done < bytes;) {
        const ssize_t k = pread(fd, (char *)out + done, bytes - done, offset + (int64_t)done);
        if (k < 0 && errno == EINTR)
            continue;
        if (k < 0)
            return moe_fail(MOE_E_IO, "%s: cannot read at byte %lld: %s", path, (long long)offset + (long long)done,
                            strerror(errno));
        if (k == 0)
            return moe_fail(MOE_E_DATA, "%s: ends at byte %lld; it was longer when it was opened", path,
                            (long long)offset + (long long)done);
        done += (size_t)k;
    }
    return MOE_OK;
}

static moe_err open_regular(const char *path, int *fd, int64_t *bytes)
{
    struct stat st;
    *bytes = 0;
    *fd = open(path, O_RDONLY | O_CLOEXEC);
    if (*fd < 0)
        return moe_fail(MOE_E_NOINPUT, "%s: %s", path, strerror(errno));
    if (fstat(*fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        close(*fd);
        *fd = -1;
        return moe_fail(MOE_E_NOINPUT, "%s: not a regular file", path);
    }
    *bytes = st.st_size;
    return MOE_OK;
}

/* --- Megatron index -----------------------------------------------------------------------------------------------------------
 */

const char megatron_magic[MEGATRON_MAGIC_BYTES] = {'M', 'M', 'I', 'D', 'I', 'D', 'X', 0, 0};

typedef struct index_header {
    token_type type;
    int64_t sequences, documents;
} index_header;

static moe_err parse_index_header(const char *path, const unsigned char *h, int64_t bytes, index_header *out)
{
    static const struct {
        int code;
        token_type type;
    } types[] = {{1, TOKEN_U8}, {2, TOKEN_I8}, {3, TOKEN_I16}, {4, TOKEN_I32}, {5, TOKEN_I64}, {8, TOKEN_U16}};
    uint64_t version, sequences, documents;
    if (memcmp(h, megatron_magic, MEGATRON_MAGIC_BYTES) != 0)
        return moe_fail(MOE_E_DATA, "%s: not a Megatron index (it does not begin with MMIDIDX)", path);
    memcpy(&version, h + 9, 8);
    memcpy(&sequences, h + 18, 8);
    memcpy(&documents, h + 26, 8);
    if (version != 1)
        return moe_fail(MOE_E_DATA, "%s: version %llu; expected 1", path, (unsigned long long)version);
    size_t i = 0;
    while (i < sizeof types / sizeof types[0] && types[i].code != h[17])
        i++;
    if (i == sizeof types / sizeof types[0])
        return moe_fail(MOE_E_DATA, "%s: data type code %d; expected one of 1, 2, 3, 4, 5, 8 (whole numbers)", path, h[17]);
    const uint64_t room = (uint64_t)(bytes - MEGATRON_HEADER_BYTES);
    if (sequences > room / 12 || documents > room / 8)
        return moe_fail(MOE_E_DATA, "%s: %llu sequences and %llu document marks do not fit in %lld bytes", path,
                        (unsigned long long)sequences, (unsigned long long)documents, (long long)bytes);
    const uint64_t need = sequences * 12 + documents * 8;
    if (room != need && room != need + sequences) /* with one mode byte a sequence: multimodal */
        return moe_fail(MOE_E_DATA, "%s: %lld bytes; %llu sequences and %llu document marks make %llu", path, (long long)bytes,
                        (unsigned long long)sequences, (unsigned long long)documents,
                        (unsigned long long)need + MEGATRON_HEADER_BYTES);
    *out = (index_header){types[i].type, (int64_t)sequences, (int64_t)documents};
    return MOE_OK;
}

/* Sizes add up to the file, pointers follow from sizes: then the stream of tokens is simply the .bin. */
static moe_err check_sequences(int fd, const char *path, const index_header *h, int64_t bin_bytes, int64_t *tokens)
{
    enum { STEP = CHUNK / 8 };
    const int64_t width = token_type_bytes(h->type), pointers = MEGATRON_HEADER_BYTES + h->sequences * 4;
    int32_t sizes[STEP];
    int64_t starts[STEP], at = 0;
    for (int64_t i = 0; i < h->sequences; i += STEP) {
        const int64_t n = h->sequences - i < STEP ? h->sequences - i : STEP;
        TRY(read_at(fd, path, sizes, (size_t)n * 4, MEGATRON_HEADER_BYTES + i * 4));
        TRY(read_at(fd, path, starts, (size_t)n * 8, pointers + i * 8));
        for (int64_t k = 0; k < n; k++) {
            if (sizes[k] < 0 || starts[k] != at)
                return moe_fail(
                    MOE_E_DATA,
                    "%s: sequence %lld has %d tokens at byte %lld; expected byte %lld (sequences in order, without gaps)", path,
                    (long long)(i + k), sizes[k], (long long)starts[k], (long long)at);
            at += sizes[k] * width;
            if (at > bin_bytes)
                return moe_fail(MOE_E_DATA, "%s: sequence %lld ends at byte %lld, but the .bin has %lld", path,
                                (long long)(i + k), (long long)at, (long long)bin_bytes);
        }
    }
    if (at != bin_bytes)
        return moe_fail(MOE_E_DATA, "%s: sequences make %lld bytes, but the .bin has %lld", path, (long long)at,
                        (long long)bin_bytes);
    *tokens = at / width;
    return MOE_OK;
}

static moe_err check_documents(int fd, const char *path, const index_header *h)
{
    enum { STEP = CHUNK / 8 };
    int64_t marks[STEP], last = 0;
    for (int64_t i = 0; i < h->documents; i += STEP) {
        const int64_t n = h->documents - i < STEP ? h->documents - i : STEP;
        TRY(read_at(fd, path, marks, (size_t)n * 8, MEGATRON_HEADER_BYTES + h->sequences * 12 + i * 8));
        for (int64_t k = 0; k < n; k++) {
            if (marks[k] < last || marks[k] > h->sequences)
                return moe_fail(MOE_E_DATA, "%s: document mark %lld is %lld; expected %lld to %lld", path, (long long)(i + k),
                                (long long)marks[k], (long long)last, (long long)h->sequences);
            last = marks[k];
        }
    }
    return MOE_OK;
}

moe_err megatron_index_check(const char *path, int64_t bin_bytes, token_type *type, int64_t *tokens)
{
    unsigned char header[MEGATRON_HEADER_BYTES];
    index_header h = {0};
    int64_t bytes;
    int fd;
    moe_err rc;
    *tokens = 0;
    TRY(open_regular(path, &fd, &bytes));
    if (bytes < MEGATRON_HEADER_BYTES) {
        rc = moe_fail(MOE_E_DATA, "%s: %lld bytes; a Megatron index has at least %d", path, (long long)bytes,
                      MEGATRON_HEADER_BYTES);
        goto done;
    }
    TRY_GOTO(read_at(fd, path, header, sizeof header, 0), rc, done);
    TRY_GOTO(parse_index_header(path, header, bytes, &h), rc, done);
    TRY_GOTO(check_sequences(fd, path, &h, bin_bytes, tokens), rc, done);
    TRY_GOTO(check_documents(fd, path, &h), rc, done);
    *type = h.type;
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
done:
    close(fd);
    return rc;
}

/* --- llm.c and nanoGPT --------------------------------------------------------------------------------------------------------
 */

static moe_err find_headerless(shard *s, int64_t bytes)
{
    if (bytes % 2 != 0)
        return moe_fail(MOE_E_DATA,
                        "%s: %lld bytes; a file of uint16 tokens (nanoGPT) has an even number. Other formats need a header "
                        "(llm.c) or an .idx (Megatron)",
                        s->path, (long long)bytes);
    s->type = TOKEN_U16;
    s->tokens = bytes / 2;
    return MOE_OK;
}

static moe_err find_format(shard *s, int64_t bytes)
{
    char head[16] = {0};
    int32_t word[4];
    TRY(read_at(s->fd, s->path, head, bytes < 16 ? (size_t)bytes : 16, 0));
    memcpy(word, head, sizeof word);
    for (size_t i = 0; i < sizeof foreign / sizeof foreign[0]; i++)
        if (memcmp(head, foreign[i].magic, foreign[i].bytes) == 0)
            return moe_fail(MOE_E_DATA, "%s: this is %s, not token ids", s->path, foreign[i].name);
    if (word[0] == LLMC_EVAL && bytes >= LLMC_HEADER_BYTES)
        return moe_fail(MOE_E_DATA, "%s: this is an llm.c evaluation file (multiple choice), not a token stream", s->path);
    for (size_t i = 0; i < sizeof llmc_formats / sizeof llmc_formats[0]; i++) {
        if (word[0] != llmc_formats[i].magic || bytes < LLMC_HEADER_BYTES)
            continue;
        s->type = llmc_formats[i].type;
        s->offset = LLMC_HEADER_BYTES;
        s->tokens = (uint32_t)word[2]; /* llm.c keeps it below 2^31 */
        const int64_t need = LLMC_HEADER_BYTES + s->tokens * token_type_bytes(s->type);
        if (word[1] != llmc_formats[i].version || need != bytes)
            return moe_fail(MOE_E_DATA,
                            "%s: llm.c shard of version %d with %lld tokens in %lld bytes; expected version %d and %lld bytes",
                            s->path, word[1], (long long)s->tokens, (long long)bytes, llmc_formats[i].version, (long long)need);
        return MOE_OK;
    }
    return find_headerless(s, bytes);
}

/* "x.bin" -> "x.idx"; NULL without memory. */
static char *index_path(const char *path)
{
    char *s = strdup(path);
    if (s)
        memcpy(s + strlen(s) - 4, ".idx", 4);
    return s;
}

static moe_err open_format(shard *s, const char *path)
{
    int64_t bytes;
    const size_t n = strlen(path);
    s->path = strdup(path);
    char *idx = n > 4 && strcmp(path + n - 4, ".bin") == 0 ? index_path(path) : NULL;
    moe_err rc;
    TRY_GOTO(s->path ? MOE_OK : moe_fail(MOE_E_OS, "no memory for a path"), rc, done);
    TRY_GOTO(open_regular(path, &s->fd, &bytes), rc, done);
    if (bytes == 0) {
        rc = moe_fail(MOE_E_DATA, "%s: the file is empty", path);
        goto done;
    }
    if (idx && access(idx, F_OK) == 0) {
        TRY_GOTO(megatron_index_check(idx, bytes, &s->type, &s->tokens), rc, done);
    } else {
        TRY_GOTO(find_format(s, bytes), rc, done);
    }
    posix_fadvise(s->fd, 0, 0, POSIX_FADV_RANDOM); /* windows are shuffled: no read-ahead */
done:
    free(idx);
    return rc;
}

moe_err shard_open(shard *out, const char *path)
{
    *out = (shard){.fd = -1};
    const moe_err rc = open_format(out, path);
    if (rc != MOE_OK)
        shard_close(out);
    return rc;
}

void shard_close(shard *s)
{
    if (s->fd >= 0)
        close(s->fd);
    free(s->path);
    *s = (shard){.fd = -1};
}

static int64_t token_at(token_type type, const char *p)
{
    switch (type) {
    case TOKEN_U8:
        return (unsigned char)*p;
    case TOKEN_I8:
        return (signed char)*p;
    case TOKEN_I16: {
        int16_t v;
        memcpy(&v, p, 2);
        return v;
    }
    case TOKEN_U16: {
        uint16_t v;
        memcpy(&v, p, 2);
        return v;
    }
    case TOKEN_I32: {
        int32_t v;
        memcpy(&v, p, 4);
        return v;
    }
    case TOKEN_U32: {
        uint32_t v;
        memcpy(&v, p, 4);
        return v;
    }
    default: {
        int64_t v;
        memcpy(&v, p, 8);
        return v;
    }
    }
}

moe_err shard_read(const shard *s, int64_t first, int64_t n, int vocab, int32_t *ids)
{
    char chunk[CHUNK];
    const int64_t width = token_type_bytes(s->type), step = CHUNK / width;
    for (int64_t i = 0; i < n; i += step) {
        const int64_t k = n - i < step ? n - i : step;
        TRY(read_at(s->fd, s->path, chunk, (size_t)(k * width), s->offset + (first + i) * width));
        for (int64_t j = 0; j < k; j++) {
            const int64_t id = token_at(s->type, chunk + j * width);
            if (id < 0 || id >= vocab)
                return moe_fail(MOE_E_DATA, "%s: token %lld is id %lld, but the model's vocabulary has %d", s->path,
                                (long long)(first + i + j), (long long)id, vocab);
            ids[i + j] = (int32_t)id;
        }
    }
    const int64_t from = (s->offset + first * width) / PAGE * PAGE,
                  to = (s->offset + (first + n) * width + PAGE - 1) / PAGE * PAGE;
    posix_fadvise(s->fd, from, to - from, POSIX_FADV_DONTNEED); /* the page cache counts against the process's limit */
    return MOE_OK;
}
