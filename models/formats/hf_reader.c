/* Owns the open files of a Hugging Face folder and finds each tensor of a spec in them. Does not know the layouts' reasons
 * (spec.h) nor the file format (safetensors.h).
 * Threads: hf_reader_read is thread-safe.
 * Rule: after open every tensor of the spec is there with the right shape, and nothing else is. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/matmul.h"
#include "models/formats/hf_private.h"
#include "models/formats/json_reader.h"
#include "models/formats/safetensors.h"

enum {
    CHUNK_FLOATS = 1 << 18, /* 1 MiB of fp32 in flight per tensor */
    MAX_SHARDS = 4096
};

typedef struct index_entry {
    const char *name, *file;
    int shard;
} index_entry;

struct hf_reader {
    char *dir;
    model_spec spec;
    safetensors **shard; /* [shards] */
    uint8_t **used;      /* [shards][count]: the tensor belongs to the spec; only during open */
    int shards;
    index_entry *index; /* [entries] by name; NULL for a single file */
    int64_t entries;
    char *names; /* of the index */
};

/* Where a tensor's numbers are: all of a file's tensor, or a part of a fused one. */
typedef struct source {
    int shard;
    const st_tensor *t;
    int64_t first; /* element */
} source;

static int entry_by_name(const void *a, const void *b)
{
    return strcmp(((const index_entry *)a)->name, ((const index_entry *)b)->name);
}

static int entry_by_file(const void *a, const void *b)
{
    return strcmp(((const index_entry *)a)->file, ((const index_entry *)b)->file);
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
static moe_err read_weight_map(hf_reader *h, json_reader *r, char **free_names)
{
    int64_t capacity = 0;
    TRY(json_expect(r, JSON_OBJECT));
    for (json_event e;;) {
        TRY(json_next(r, &e));
        if (e == JSON_OBJECT_END)
            return MOE_OK;
        if (h->entries == capacity) {
            capacity = capacity == 0 ? 256 : 2 * capacity;
            index_entry *more = realloc(h->index, (size_t)capacity * sizeof *more);
            if (more == NULL)
                return moe_fail(MOE_E_OS, "out of memory for an index of %lld tensors", (long long)capacity);
            h->index = more;
        }
        index_entry *x = &h->index[h->entries];
        x->name = keep(r, free_names);
        TRY(json_expect(r, JSON_STRING));
        x->file = keep(r, free_names);
        x->shard = -1;
        if (!is_plain_name(x->file))
            return json_fail(r, MOE_E_DATA, "\"%.100s\" is not the name of a .safetensors file in this folder", x->file);
        h->entries++;
    }
}

static moe_err read_index(hf_reader *h, const char *path)
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

static moe_err open_shard(hf_reader *h, const char *file)
{
    char *path = NULL;
    moe_err rc;
    if (h->shards == MAX_SHARDS)
        return moe_fail(MOE_E_DATA, "%s: more than %d files", h->dir, (int)MAX_SHARDS);
    TRY(hf_path(&path, h->dir, file));
    TRY_GOTO(safetensors_open(&h->shard[h->shards], path), rc, out);
    h->shards++;
    h->used[h->shards - 1] = calloc((size_t)safetensors_count(h->shard[h->shards - 1]) + 1, 1);
    if (h->used[h->shards - 1] == NULL)
        rc = moe_fail(MOE_E_OS, "out of memory");
out:
    free(path);
    return rc;
}

/* Numbers the files of the index, opens each once, and leaves the index sorted by name. */
static moe_err open_indexed(hf_reader *h, const char *path)
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

static moe_err open_files(hf_reader *h)
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

static bool find(const hf_reader *h, const char *name, source *out)
{
    *out = (source){0};
    if (h->index != NULL) {
        const index_entry key = {name, NULL, 0};
        const index_entry *x = bsearch(&key, h->index, (size_t)h->entries, sizeof *x, entry_by_name);
        if (x == NULL)
            return false;
        out->shard = x->shard;
    }
    out->t = safetensors_find(h->shard[out->shard], name);
    return out->t != NULL;
}

static moe_err check_shape(const hf_reader *h, const source *s, int dims, const int64_t *shape)
{
    bool same = s->t->dims == dims;
    char found[256] = "", expected[256] = "";
    for (int i = 0; same && i < dims; i++)
        same = s->t->shape[i] == shape[i];
    if (!same) {
        for (int i = 0; i < s->t->dims; i++)
            snprintf(found + strlen(found), sizeof found - strlen(found), "%s%lld", i ? ", " : "", (long long)s->t->shape[i]);
        for (int i = 0; i < dims; i++)
            snprintf(expected + strlen(expected), sizeof expected - strlen(expected), "%s%lld", i ? ", " : "",
                     (long long)shape[i]);
        return moe_fail(MOE_E_DATA, "%s: %s has shape [%s]: expected [%s]", safetensors_path(h->shard[s->shard]), s->t->name,
                        found, expected);
    }
    if (s->t->dtype != ST_F32 && s->t->dtype != ST_F16 && s->t->dtype != ST_BF16)
        return moe_fail(MOE_E_DATA, "%s: %s has dtype %s: expected F32, F16 or BF16", safetensors_path(h->shard[s->shard]),
                        s->t->name, st_dtype_name((st_dtype)s->t->dtype));
    return MOE_OK;
}

static moe_err resolve(const hf_reader *h, const tensor_info *info, source *out)
{
    hf_place place[HF_PLACES];
    const int n = hf_places(&h->spec, info, place);
    int i = 0;
    while (i < n && !find(h, place[i].name, out))
        i++;
    if (i == n && n == 1)
        return moe_fail(MOE_E_DATA, "%s: tensor %s is missing", h->dir, info->name);
    if (i == n)
        return moe_fail(MOE_E_DATA, "%s: neither %s nor %s is there", h->dir, info->name, place[n - 1].name);
    out->first = place[i].first;
    return check_shape(h, out, place[i].dims, place[i].shape);
}

/* A tied model may carry its output projection once more: it must be the embedding. */
static moe_err check_tied(const hf_reader *h, const source *head)
{
    source embed;
    float *a = malloc(2 * CHUNK_FLOATS * sizeof *a);
    moe_err rc = MOE_OK;
    if (a == NULL)
        return moe_fail(MOE_E_OS, "out of memory");
    const bool same_size = find(h, "model.embed_tokens.weight", &embed) && embed.t->elements == head->t->elements;
    bool same = same_size;
    for (int64_t at = 0; same && at < head->t->elements; at += CHUNK_FLOATS) {
        const int64_t n = head->t->elements - at < CHUNK_FLOATS ? head->t->elements - at : CHUNK_FLOATS;
        TRY_GOTO(safetensors_read_f32(h->shard[head->shard], head->t, at, n, a), rc, out);
        TRY_GOTO(safetensors_read_f32(h->shard[embed.shard], embed.t, at, n, a + CHUNK_FLOATS), rc, out);
        same = memcmp(a, a + CHUNK_FLOATS, (size_t)n * sizeof *a) == 0;
    }
    if (!same)
        rc = moe_fail(MOE_E_DATA, "%s: tie_word_embeddings is true, but lm_head.weight is not model.embed_tokens.weight", h->dir);
out:
    free(a);
    return rc;
}

/* Of a layer behind the last one, where the family keeps what predicts further tokens. */
static bool is_beyond(const hf_reader *h, const char *name)
{
    int layer;
    return h->spec.names == NAMES_DEEPSEEK && sscanf(name, "model.layers.%9d.", &layer) == 1 && layer >= h->spec.L;
}

static moe_err check_unused(const hf_reader *h)
{
    for (int s = 0; s < h->shards; s++)
        for (int64_t i = 0; i < safetensors_count(h->shard[s]); i++) {
            const st_tensor *t = safetensors_at(h->shard[s], i);
            const size_t n = strlen(t->name), suffix = strlen(".rotary_emb.inv_freq");
            if (h->used[s][i] || (n > suffix && strcmp(t->name + n - suffix, ".rotary_emb.inv_freq") == 0) || is_beyond(h, t->name))
                continue;
            if (!h->spec.tied || strcmp(t->name, "lm_head.weight") != 0)
                return moe_fail(MOE_E_DATA, "%s: %.200s is not a tensor of this %s model as config.json describes it",
                                safetensors_path(h->shard[s]), t->name, h->spec.model_type);
            const source head = {s, t, 0};
            TRY(check_tied(h, &head));
        }
    return MOE_OK;
}

static moe_err check_tensors(hf_reader *h)
{
    tensor_info *table;
    int64_t n;
    moe_err rc = MOE_OK;
    TRY(spec_tensors(&h->spec, &table, &n));
    for (int64_t i = 0; i < n; i++) {
        source s;
        TRY_GOTO(resolve(h, &table[i], &s), rc, out);
        h->used[s.shard][s.t - safetensors_at(h->shard[s.shard], 0)] = 1;
    }
    rc = check_unused(h);
out:
    free(table);
    return rc;
}

moe_err hf_reader_open(hf_reader **out, const char *dir, const model_spec *spec)
{
    moe_err rc;
    *out = NULL;
    hf_reader *h = calloc(1, sizeof *h);
    if (h == NULL)
        return moe_fail(MOE_E_OS, "out of memory");
    h->spec = *spec;
    h->dir = strdup(dir);
    h->shard = calloc(MAX_SHARDS, sizeof *h->shard);
    h->used = calloc(MAX_SHARDS, sizeof *h->used);
    if (h->dir == NULL || h->shard == NULL || h->used == NULL) {
        rc = moe_fail(MOE_E_OS, "out of memory");
        goto fail;
    }
    TRY_GOTO(open_files(h), rc, fail);
    TRY_GOTO(check_tensors(h), rc, fail);
    *out = h;
    return MOE_OK;
fail:
    hf_reader_close(h);
    return rc;
}

void hf_reader_close(hf_reader *h)
{
    if (h == NULL)
        return;
    for (int i = 0; h->shard != NULL && i < h->shards; i++)
        safetensors_close(h->shard[i]);
    for (int i = 0; h->used != NULL && i < h->shards; i++)
        free(h->used[i]);
    free(h->used);
    free(h->shard);
    free(h->index);
    free(h->names);
    free(h->dir);
    free(h);
}

moe_err hf_reader_locate(const hf_reader *h, const tensor_info *info, hf_extent *out)
{
    source s;
    *out = (hf_extent){0};
    TRY(resolve(h, info, &s));
    const st_dtype d = (st_dtype)s.t->dtype; /* resolve allows these three only */
    *out = (hf_extent){.file = s.shard,
                      .offset = s.t->begin + (uint64_t)s.first * st_dtype_bytes(d),
                      .format = d == ST_F32 ? NUM_F32 : d == ST_F16 ? NUM_F16 : NUM_BF16};
    return MOE_OK;
}

int hf_reader_files(const hf_reader *h) { return h->shards; }

const char *hf_reader_path(const hf_reader *h, int file) { return safetensors_path(h->shard[file]); }

static moe_err read_panels(const hf_reader *h, const source *s, const tensor_info *info, float *at)
{
    const int64_t K = info->cols;
    int64_t rows = CHUNK_FLOATS / K / PANEL * PANEL;
    if (rows < PANEL)
        rows = PANEL;
    if (rows > info->rows)
        rows = info->rows;
    float *chunk = malloc((size_t)rows * (size_t)K * sizeof *chunk);
    moe_err rc = MOE_OK;
    if (chunk == NULL)
        return moe_fail(MOE_E_OS, "out of memory for %lld rows of %s", (long long)rows, info->name);
    for (int64_t r = 0; r < info->rows; r += rows) {
        const int64_t n = info->rows - r < rows ? info->rows - r : rows;
        TRY_GOTO(safetensors_read_f32(h->shard[s->shard], s->t, s->first + r * K, n * K, chunk), rc, out);
        panel_pack(at + r * K, chunk, n, K); /* r is a multiple of PANEL */
    }
out:
    free(chunk);
    return rc;
}

moe_err hf_reader_read(hf_reader *h, const tensor_info *info, float *section)
{
    source s;
    float *at = section + info->offset;
    TRY(resolve(h, info, &s));
    if (info->layout == TENSOR_PANELS)
        return read_panels(h, &s, info, at);
    const size_t n = (size_t)(info->rows * info->cols);
    TRY(safetensors_read_f32(h->shard[s.shard], s.t, s.first, (int64_t)n, at));
    memset(at + n, 0, (info->floats - n) * sizeof *at);
    return MOE_OK;
}
