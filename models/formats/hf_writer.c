/* Owns a Hugging Face folder while it is written: config.json, shards of at most 5 GB, the index. Sizes come from the spec, so
 * every header is right before the first number arrives.
 * Threads: one writer, one thread.
 * Rule: a folder that was not finished does not stay. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kernels/matmul.h"
#include "models/formats/hf_private.h"
#include "models/formats/safetensors.h"

enum { CHUNK_FLOATS = 1 << 18 }; /* 1 MiB of fp32 in flight */

struct hf_writer {
    char *dir;
    hf_dtype dtype;
    uint64_t shard_bytes;
    bool made_dir, finished;
    tensor_info *table; /* [n] */
    int64_t n, next;    /* next: tensor to be written */
    int *shard_of;      /* [n] */
    int shards, shard;  /* shard: the open one */
    st_writer *file;
    float *chunk; /* [CHUNK_FLOATS or one panel of rows] */
    int64_t chunk_floats;
};

static void shard_name(const hf_writer *w, int shard, char out[64])
{
    if (w->shards == 1)
        snprintf(out, 64, "%s", HF_SINGLE);
    else
        snprintf(out, 64, "model-%05d-of-%05d.safetensors", shard + 1, w->shards);
}

static uint64_t tensor_bytes(const hf_writer *w, const tensor_info *t)
{
    return (uint64_t)t->rows * (uint64_t)t->cols * (w->dtype == HF_BF16 ? 2 : 4);
}

static moe_err plan_shards(hf_writer *w)
{
    uint64_t used = 0;
    w->shard_of = calloc((size_t)w->n, sizeof *w->shard_of);
    if (w->shard_of == NULL)
        return moe_fail(MOE_E_OS, "out of memory");
    w->shards = 1;
    for (int64_t i = 0; i < w->n; i++) {
        const uint64_t bytes = tensor_bytes(w, &w->table[i]);
        if (used > 0 && used + bytes > w->shard_bytes) {
            w->shards++;
            used = 0;
        }
        used += bytes;
        w->shard_of[i] = w->shards - 1;
        const int64_t least = w->table[i].layout == TENSOR_PANELS ? PANEL * w->table[i].cols : 1;
        w->chunk_floats = w->chunk_floats > least ? w->chunk_floats : least;
    }
    w->chunk_floats = w->chunk_floats > CHUNK_FLOATS ? w->chunk_floats : CHUNK_FLOATS;
    w->chunk = malloc((size_t)w->chunk_floats * sizeof *w->chunk);
    return w->chunk != NULL ? MOE_OK : moe_fail(MOE_E_OS, "out of memory");
}

/* Writes a small file, synced. */
static moe_err write_text(const hf_writer *w, const char *name, const char *text, size_t bytes)
{
    char *path = NULL;
    moe_err rc;
    TRY(hf_path(&path, w->dir, name));
    const int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0) {
        rc = moe_fail(MOE_E_CREATE, "cannot create %s: %s", path, strerror(errno));
        goto out;
    }
    rc = MOE_OK;
    for (size_t done = 0; done < bytes && rc == MOE_OK;) {
        const ssize_t put = write(fd, text + done, bytes - done);
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            rc = moe_fail(MOE_E_IO, "cannot write %s: %s", path, put < 0 ? strerror(errno) : "nothing was written");
        else
            done += (size_t)put;
    }
    if (rc == MOE_OK && fsync(fd) != 0)
        rc = moe_fail(MOE_E_IO, "cannot sync %s: %s", path, strerror(errno));
    close(fd);
out:
    free(path);
    return rc;
}

static moe_err make_folder(hf_writer *w)
{
    if (mkdir(w->dir, 0777) == 0) {
        w->made_dir = true;
        return MOE_OK;
    }
    if (errno != EEXIST)
        return moe_fail(MOE_E_CREATE, "cannot create the folder %s: %s", w->dir, strerror(errno));
    DIR *d = opendir(w->dir);
    if (d == NULL)
        return moe_fail(MOE_E_CREATE, "cannot open the folder %s: %s", w->dir, strerror(errno));
    bool empty = true;
    for (struct dirent *e; empty && (e = readdir(d)) != NULL;)
        empty = strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0;
    closedir(d);
    return empty ? MOE_OK : moe_fail(MOE_E_CREATE, "the folder %s is not empty: expected a new or an empty one", w->dir);
}

static moe_err write_config(const hf_writer *w, const model_spec *spec)
{
    text_buf t = {0};
    char *text = NULL;
    moe_err rc;
    TRY_GOTO(hf_config_text(&t, spec, w->dtype), rc, out);
    const size_t bytes = t.used;
    TRY_GOTO(text_take(&t, &text), rc, out);
    rc = write_text(w, HF_CONFIG, text, bytes);
out:
    text_free(&t);
    free(text);
    return rc;
}

moe_err hf_writer_open(hf_writer **out, const char *dir, const model_spec *spec, hf_dtype dtype)
{
    return hf_writer_open_sharded(out, dir, spec, dtype, HF_SHARD_BYTES);
}

moe_err hf_writer_open_sharded(hf_writer **out, const char *dir, const model_spec *spec, hf_dtype dtype, uint64_t shard_bytes)
{
    text_buf probe = {0};
    moe_err rc;
    *out = NULL;
    rc = hf_config_text(&probe, spec, dtype); /* refuses before anything is made */
    text_free(&probe);
    TRY(rc);
    hf_writer *w = calloc(1, sizeof *w);
    if (w == NULL)
        return moe_fail(MOE_E_OS, "out of memory");
    w->dtype = dtype;
    w->shard = -1;
    w->shard_bytes = shard_bytes;
    w->dir = strdup(dir);
    if (w->dir == NULL) {
        free(w);
        return moe_fail(MOE_E_OS, "out of memory");
    }
    w->finished = true; /* nothing to remove yet */
    TRY_GOTO(make_folder(w), rc, fail);
    w->finished = false;
    TRY_GOTO(spec_tensors(spec, &w->table, &w->n), rc, fail);
    TRY_GOTO(plan_shards(w), rc, fail);
    TRY_GOTO(write_config(w, spec), rc, fail);
    *out = w;
    return MOE_OK;
fail:
    hf_writer_close(w);
    return rc;
}

static moe_err close_shard(hf_writer *w)
{
    moe_err rc = MOE_OK;
    if (w->file != NULL)
        rc = safetensors_finish(w->file);
    safetensors_abandon(w->file);
    w->file = NULL;
    return rc;
}

/* Opens the shard that the next tensor belongs to. */
static moe_err open_shard(hf_writer *w)
{
    char name[64], *path = NULL;
    int64_t end = w->next;
    moe_err rc;
    TRY(close_shard(w));
    w->shard = w->shard_of[w->next];
    while (end < w->n && w->shard_of[end] == w->shard)
        end++;
    st_declare *d = calloc((size_t)(end - w->next), sizeof *d);
    shard_name(w, w->shard, name);
    if (d == NULL)
        return moe_fail(MOE_E_OS, "out of memory");
    TRY_GOTO(hf_path(&path, w->dir, name), rc, out);
    for (int64_t i = w->next; i < end; i++) {
        const tensor_info *t = &w->table[i];
        st_declare *x = &d[i - w->next];
        *x = (st_declare){
            .name = t->name, .dtype = w->dtype == HF_BF16 ? ST_BF16 : ST_F32, .dims = t->layout == TENSOR_VECTOR ? 1 : 2};
        x->shape[0] = t->layout == TENSOR_VECTOR ? t->cols : t->rows;
        x->shape[1] = t->cols;
    }
    TRY_GOTO(safetensors_create(&w->file, path, d, end - w->next), rc, out);
out:
    free(path);
    free(d);
    return rc;
}

/* Appends n floats, which may be overwritten on the way. */
static moe_err append(hf_writer *w, float *x, int64_t n)
{
    if (w->dtype == HF_F32)
        return safetensors_append(w->file, x, (size_t)n * sizeof *x);
    uint16_t *half = (uint16_t *)(void *)x;
    for (int64_t i = 0; i < n; i++) {
        float f;
        memcpy(&f, x + i, sizeof f);
        const uint16_t b = st_bf16_from_f32(f); /* lands at or before the float it came from */
        memcpy(half + i, &b, sizeof b);
    }
    return safetensors_append(w->file, half, (size_t)n * sizeof *half);
}

moe_err hf_writer_write(hf_writer *w, const tensor_info *info, const float *section)
{
    if (w->next >= w->n || w->table[w->next].id != info->id)
        return moe_fail(MOE_E_DATA, "%s: tensor %s out of order: expected %s", w->dir, info->name,
                        w->next < w->n ? w->table[w->next].name : "no more");
    if (w->shard != w->shard_of[w->next])
        TRY(open_shard(w));
    const float *at = section + info->offset;
    const int64_t K = info->cols, total = info->rows * K;
    const bool panels = info->layout == TENSOR_PANELS;
    const int64_t step = panels ? w->chunk_floats / K / PANEL * PANEL * K : w->chunk_floats;
    for (int64_t i = 0; i < total; i += step) {
        const int64_t n = total - i < step ? total - i : step;
        if (panels)
            panel_unpack(w->chunk, at, i / K, n / K, K);
        else
            memcpy(w->chunk, at + i, (size_t)n * sizeof *at);
        TRY(append(w, w->chunk, n));
    }
    w->next++;
    return MOE_OK;
}

static moe_err write_index(const hf_writer *w)
{
    text_buf t = {0};
    char *text = NULL, name[64];
    uint64_t bytes = 0;
    moe_err rc;
    for (int64_t i = 0; i < w->n; i++)
        bytes += tensor_bytes(w, &w->table[i]);
    text_printf(&t, "{\n  \"metadata\": {\"total_size\": %llu},\n  \"weight_map\": {", (unsigned long long)bytes);
    for (int64_t i = 0; i < w->n; i++) {
        shard_name(w, w->shard_of[i], name);
        text_printf(&t, "%s\n    \"%s\": \"%s\"", i > 0 ? "," : "", w->table[i].name, name);
    }
    text_add(&t, "\n  }\n}\n");
    const size_t length = t.used;
    TRY_GOTO(text_take(&t, &text), rc, out);
    rc = write_text(w, HF_INDEX, text, length);
out:
    text_free(&t);
    free(text);
    return rc;
}

moe_err hf_writer_finish(hf_writer *w)
{
    if (w->next != w->n)
        return moe_fail(MOE_E_DATA, "%s: %lld of %lld tensors were written", w->dir, (long long)w->next, (long long)w->n);
    TRY(close_shard(w));
    if (w->shards > 1)
        TRY(write_index(w));
    const int fd = open(w->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    const bool synced = fd >= 0 && fsync(fd) == 0;
    const int error = errno;
    if (fd >= 0)
        close(fd);
    if (!synced)
        return moe_fail(MOE_E_IO, "cannot sync the folder %s: %s", w->dir, strerror(error));
    w->finished = true;
    return MOE_OK;
}

static void remove_file(const hf_writer *w, const char *name)
{
    char *path;
    if (hf_path(&path, w->dir, name) == MOE_OK)
        unlink(path);
    free(path);
}

void hf_writer_close(hf_writer *w)
{
    char name[64];
    if (w == NULL)
        return;
    safetensors_abandon(w->file);
    if (!w->finished) {
        remove_file(w, HF_CONFIG);
        remove_file(w, HF_INDEX);
        for (int s = 0; s <= w->shard; s++) {
            shard_name(w, s, name);
            remove_file(w, name);
        }
        if (w->made_dir)
            rmdir(w->dir);
    }
    free(w->table);
    free(w->shard_of);
    free(w->chunk);
    free(w->dir);
    free(w);
}
