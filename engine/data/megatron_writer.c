/* A sequence holds fewer than 2^31 tokens; a longer document is several sequences (the index knows documents apart from
 * sequences). In the file of sizes the top bit says "goes on the document of the sequence before". One thread. Every write is
 * checked; the disk may be full at any of them. */
#include "engine/data/megatron_writer.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    BUFFER = 1 << 20,         /* bytes of stdio buffer */
    MOST_TOKENS = 0x7FFFFFFF, /* of one sequence: an int32 in the index */
    CHUNK = 4096,
};
#define CONTINUES UINT32_C(0x80000000)

static moe_err write_failed(const char *path) { return moe_fail(MOE_E_IO, "%s: cannot write: %s", path, strerror(errno)); }

static moe_err open_output(FILE **out, char **path, const char *dir, const char *split, const char *suffix, const char *mode)
{
    if (asprintf(path, "%s/%s.%s.tmp", dir, split, suffix) < 0) {
        *path = NULL;
        return moe_fail(MOE_E_OS, "no memory for a path");
    }
    *out = fopen(*path, mode);
    if (!*out)
        return moe_fail(MOE_E_CREATE, "%s: cannot create: %s", *path, strerror(errno));
    setvbuf(*out, NULL, _IOFBF, BUFFER);
    return MOE_OK;
}

moe_err megatron_writer_open(megatron_writer *w, const char *dir, const char *split, int vocab)
{
    *w = (megatron_writer){.type = vocab < 65500 ? TOKEN_U16 : TOKEN_I32};
    moe_err rc;
    TRY_GOTO(open_output(&w->bin, &w->bin_path, dir, split, "bin", "we"), rc, fail);
    TRY_GOTO(open_output(&w->sizes, &w->sizes_path, dir, split, "sizes", "w+e"), rc, fail);
    if (asprintf(&w->idx_path, "%s/%s.idx.tmp", dir, split) >= 0)
        return MOE_OK;
    w->idx_path = NULL;
    rc = moe_fail(MOE_E_OS, "no memory for a path");
fail:
    megatron_writer_close(w);
    return rc;
}

static moe_err end_sequence(megatron_writer *w)
{
    const uint32_t size = (uint32_t)w->sequence | (w->continued ? CONTINUES : 0);
    if (fwrite(&size, sizeof size, 1, w->sizes) != 1)
        return write_failed(w->sizes_path);
    w->continued = true;
    w->sequence = 0;
    w->sequences++;
    return MOE_OK;
}

static moe_err write_tokens(megatron_writer *w, const int32_t *ids, size_t n)
{
    if (w->type == TOKEN_I32)
        return fwrite(ids, sizeof *ids, n, w->bin) == n ? MOE_OK : write_failed(w->bin_path);
    uint16_t half[CHUNK];
    for (size_t i = 0; i < n; i++)
        half[i] = (uint16_t)ids[i];
    return fwrite(half, sizeof *half, n, w->bin) == n ? MOE_OK : write_failed(w->bin_path);
}

moe_err megatron_writer_tokens(megatron_writer *w, const int32_t *ids, int64_t n)
{
    while (n > 0) {
        if (w->sequence == MOST_TOKENS)
            TRY(end_sequence(w));
        int64_t k = n < CHUNK ? n : CHUNK;
        if (k > MOST_TOKENS - w->sequence)
            k = MOST_TOKENS - w->sequence;
        TRY(write_tokens(w, ids, (size_t)k));
        w->sequence += k;
        w->tokens += k;
        ids += k;
        n -= k;
    }
    return MOE_OK;
}

moe_err megatron_writer_end_document(megatron_writer *w)
{
    if (w->sequence > 0)
        TRY(end_sequence(w));
    w->documents += w->continued;
    w->continued = false;
    return MOE_OK;
}

/* Reads the sizes from the start and writes one column of the index for each: 0 sizes, 1 pointers, 2 documents. */
static moe_err write_column(megatron_writer *w, FILE *idx, int column)
{
    uint32_t sizes[CHUNK];
    int64_t at = 0, sequence = 0;
    bool ok = true;
    rewind(w->sizes);
    for (size_t n; ok && (n = fread(sizes, sizeof *sizes, CHUNK, w->sizes)) > 0;)
        for (size_t i = 0; ok && i < n; i++, sequence++) {
            const uint32_t size = sizes[i] & ~CONTINUES;
            if (column == 0)
                ok = fwrite(&size, 4, 1, idx) == 1;
            else if (column == 1)
                ok = fwrite(&at, 8, 1, idx) == 1;
            else if (!(sizes[i] & CONTINUES))
                ok = fwrite(&sequence, 8, 1, idx) == 1;
            at += (int64_t)size * token_type_bytes(w->type);
        }
    if (ferror(w->sizes) || sequence != w->sequences)
        return moe_fail(MOE_E_IO, "%s: cannot read back", w->sizes_path);
    if (ok && column == 2)
        ok = fwrite(&sequence, 8, 1, idx) == 1;
    return ok ? MOE_OK : write_failed(w->idx_path);
}

static moe_err write_index(megatron_writer *w, FILE *idx)
{
    const uint64_t version = 1, sequences = (uint64_t)w->sequences, marks = (uint64_t)w->documents + 1;
    const unsigned char code = w->type == TOKEN_U16 ? 8 : 4;
    const bool ok = fwrite(megatron_magic, MEGATRON_MAGIC_BYTES, 1, idx) == 1 && fwrite(&version, 8, 1, idx) == 1 &&
                    fwrite(&code, 1, 1, idx) == 1 && fwrite(&sequences, 8, 1, idx) == 1 && fwrite(&marks, 8, 1, idx) == 1;
    if (!ok)
        return write_failed(w->idx_path);
    for (int column = 0; column < 3; column++)
        TRY(write_column(w, idx, column));
    return fflush(idx) == 0 && fsync(fileno(idx)) == 0 ? MOE_OK : write_failed(w->idx_path);
}

moe_err megatron_writer_finish(megatron_writer *w)
{
    TRY(megatron_writer_end_document(w));
    if (fflush(w->bin) != 0 || fsync(fileno(w->bin)) != 0)
        return write_failed(w->bin_path);
    if (fflush(w->sizes) != 0)
        return write_failed(w->sizes_path);
    FILE *idx = fopen(w->idx_path, "we");
    if (!idx)
        return moe_fail(MOE_E_CREATE, "%s: cannot create: %s", w->idx_path, strerror(errno));
    setvbuf(idx, NULL, _IOFBF, BUFFER);
    const moe_err rc = write_index(w, idx);
    if (fclose(idx) != 0 && rc == MOE_OK)
        return write_failed(w->idx_path);
    return rc;
}

void megatron_writer_close(megatron_writer *w)
{
    if (w->bin)
        fclose(w->bin);
    if (w->sizes) {
        fclose(w->sizes);
        unlink(w->sizes_path);
    }
    free(w->bin_path);
    free(w->idx_path);
    free(w->sizes_path);
    *w = (megatron_writer){0};
}
