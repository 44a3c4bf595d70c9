/* Owns the open safetensors files of a Hugging Face folder: the only one, or the shards that its index names.
 * Threads: one opens, any find and read.
 * Rule: the index is hostile: it names plain files of this folder, each tensor once. */
#include "models/formats/hf_files.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "models/formats/hf_private.h"

enum { MAX_SHARDS = 4096 };

static int entry_by_name(const void *a, const void *b)
{
    return strcmp(((const hf_index_entry *)a)->name, ((const hf_index_entry *)b)->name);
}

static int entry_by_file(const void *a, const void *b)
{
    return strcmp(((const hf_index_entry *)a)->file, ((const hf_index_entry *)b)->file);
}

/* A file's name, not a path: it stays inside the folder. */
static bool is_plain_name(const char *file)
{
    const size_t n = strlen(file), suffix = strlen(".safetensors");
    return n > suffix && n < 256 && file[0] != '.' && strchr(file, '/') == NULL && strcmp(file + n - suffix, ".safetensors") == 0;
}

static char *keep(const json_reader *r, char **free_names)
{
    char *at = *free_names;
    const size_t n = json_decode(r, at);
    at[n] = '\0';
    *free_names += n + 1;
    return at;
}

/* weight_map: {"tensor": "file", ...}. Names are kept in one block as long as the text (quotes and colon leave room for the
 * NULs). */
static moe_err read_weight_map(hf_files *h, json_reader *r, char **free_names)
{
    int64_t capacity = 0;
    TRY(json_expect(r, JSON_OBJECT));
    for (json_event e;;) {
        TRY(json_next(r, &e));
        if (e == JSON_OBJECT_END)
            return MOE_OK;
        if (h->entries == capacity) {
            capacity = capacity == 0 ? 256 : 2 * capacity;
            hf_index_entry *more = realloc(h->index, (size_t)capacity * sizeof *more);
            if (more == NULL)
                return moe_fail(MOE_E_OS, "out of memory for an index of %lld tensors", (long long)capacity);
            h->index = more;
        }
        hf_index_entry *x = &h->index[h->entries];
        x->name = keep(r, free_names);
        TRY(json_expect(r, JSON_STRING));
        x->file = keep(r, free_names);
        x->shard = -1;
        if (!is_plain_name(x->file))
            return json_fail(r, MOE_E_DATA, "\"%.100s\" is not the name of a .safetensors file in this folder", x->file);
        h->entries++;
    }
}

static moe_err read_index(hf_files *h, const char *path)
{
    char *text = NULL;
    size_t bytes;
    bool seen = false;
    json_reader r;
    moe_err rc;
    TRY(hf_read_text(path, ST_MAX_HEADER, &text, &bytes));
    h->names = malloc(bytes + 2);
    char *free_names = h->names;
    if (h->names == NULL) {
        rc = moe_fail(MOE_E_OS, "out of memory for %s", path);
        goto out;
    }
    json_open(&r, path, text, bytes);
    TRY_GOTO(json_expect(&r, JSON_OBJECT), rc, out);
    for (json_event e;;) {
        TRY_GOTO(json_next(&r, &e), rc, out);
        if (e == JSON_OBJECT_END)
            break;
        if (!json_is(&r, "weight_map")) {
            TRY_GOTO(json_skip(&r), rc, out);
            continue;
        }
        if (seen) {
            rc = json_fail(&r, MOE_E_DATA, "weight_map occurs twice");
            goto out;
        }
        seen = true;
        TRY_GOTO(read_weight_map(h, &r, &free_names), rc, out);
    }
    TRY_GOTO(json_expect(&r, JSON_END), rc, out);
    if (h->entries == 0)
        rc = moe_fail(MOE_E_DATA, "%s: no weight_map, or nothing in it", path);
out:
    free(text);
    return rc;
}

static moe_err open_shard(hf_files *h, const char *file)
{
    char *path = NULL;
    moe_err rc;
    if (h->shards == MAX_SHARDS)
        return moe_fail(MOE_E_DATA, "%s: more than %d files", h->dir, (int)MAX_SHARDS);
    TRY(hf_path(&path, h->dir, file));
    TRY_GOTO(safetensors_open(&h->shard[h->shards], path), rc, out);
    h->shards++;
out:
    free(path);
    return rc;
}

/* Numbers the files of the index, opens each once, and leaves the index sorted by name. */
static moe_err open_indexed(hf_files *h, const char *path)
{
    TRY(read_index(h, path));
    qsort(h->index, (size_t)h->entries, sizeof *h->index, entry_by_file);
    for (int64_t i = 0; i < h->entries; i++) {
        if (i == 0 || strcmp(h->index[i - 1].file, h->index[i].file) != 0)
            TRY(open_shard(h, h->index[i].file));
        h->index[i].shard = h->shards - 1;
    }
    qsort(h->index, (size_t)h->entries, sizeof *h->index, entry_by_name);
    for (int64_t i = 1; i < h->entries; i++)
        if (strcmp(h->index[i - 1].name, h->index[i].name) == 0)
            return moe_fail(MOE_E_DATA, "%s: weight_map names %.200s twice", path, h->index[i].name);
    return MOE_OK;
}

static moe_err open_files(hf_files *h)
{
    char *single = NULL, *index = NULL;
    moe_err rc;
    TRY_GOTO(hf_path(&single, h->dir, HF_SINGLE), rc, out);
    TRY_GOTO(hf_path(&index, h->dir, HF_INDEX), rc, out);
    if (access(single, F_OK) == 0)
        rc = open_shard(h, HF_SINGLE);
    else if (access(index, F_OK) == 0)
        rc = open_indexed(h, index);
    else
        rc = moe_fail(MOE_E_NOINPUT, "%s holds neither %s nor %s", h->dir, HF_SINGLE, HF_INDEX);
out:
    free(single);
    free(index);
    return rc;
}

moe_err hf_files_open(hf_files *h, const char *dir)
{
    *h = (hf_files){.dir = strdup(dir), .shard = calloc(MAX_SHARDS, sizeof *h->shard)};
    if (h->dir == NULL || h->shard == NULL)
        return moe_fail(MOE_E_OS, "out of memory");
    return open_files(h);
}

void hf_files_close(hf_files *h)
{
    for (int i = 0; h->shard != NULL && i < h->shards; i++)
        safetensors_close(h->shard[i]);
    free(h->shard);
    free(h->index);
    free(h->names);
    free(h->dir);
    *h = (hf_files){0};
}

const st_tensor *hf_files_find(const hf_files *h, const char *name, int *shard)
{
    *shard = 0;
    if (h->index != NULL) {
        const hf_index_entry key = {name, NULL, 0};
        const hf_index_entry *x = bsearch(&key, h->index, (size_t)h->entries, sizeof *x, entry_by_name);
        if (x == NULL)
            return NULL;
        *shard = x->shard;
    }
    return safetensors_find(h->shard[*shard], name);
}
