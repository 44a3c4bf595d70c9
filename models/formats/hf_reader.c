/* Finds each tensor of a spec in the files of a Hugging Face folder (hf_files.h), with its scales, and reads it as fp32. Does not know the layouts'
 * reasons (spec.h), nor how rows are put together (rows.h).
 * Threads: hf_reader_read is thread-safe.
 * Rule: after open every tensor of the spec is there with the right shape, and nothing else is. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/matmul.h"
#include "models/formats/hf_files.h"
#include "models/formats/hf_private.h"
#include "models/formats/model_private.h"

enum { CHUNK_FLOATS = 1 << 18 /* 1 MiB of fp32 in flight per tensor */ };

struct hf_reader {
    hf_files f;
    model_spec spec;
    uint8_t **used; /* [shards][count]: the tensor belongs to the spec; only during open */
};

/* Where a tensor's numbers are: all of a file's tensor, or a part of a fused one; and their scales, where those are another tensor. */
typedef struct source {
    int shard, scale_shard;
    const st_tensor *t, *scales; /* scales NULL: none */
    hf_place place;
} source;

static moe_err check_shape(const char *path, const st_tensor *t, int dims, const int64_t *shape)
{
    bool same = t->dims == dims;
    char found[256] = "", expected[256] = "";
    for (int i = 0; same && i < dims; i++)
        same = t->shape[i] == shape[i];
    if (same)
        return MOE_OK;
    for (int i = 0; i < t->dims; i++)
        snprintf(found + strlen(found), sizeof found - strlen(found), "%s%lld", i ? ", " : "", (long long)t->shape[i]);
    for (int i = 0; i < dims; i++)
        snprintf(expected + strlen(expected), sizeof expected - strlen(expected), "%s%lld", i ? ", " : "", (long long)shape[i]);
    return moe_fail(MOE_E_DATA, "%s: %s has shape [%s]: expected [%s]", path, t->name, found, expected);
}

static moe_err check_dtype(const char *path, const st_tensor *t, const char *expected, bool good)
{
    return good ? MOE_OK
                : moe_fail(MOE_E_DATA, "%s: %s has dtype %s: expected %s", path, t->name, st_dtype_name((st_dtype)t->dtype), expected);
}

static bool is_plain(st_dtype d) { return d == ST_F32 || d == ST_F16 || d == ST_BF16; }

/* The matrix of scales that belongs to the codes in s->t. */
static moe_err find_scales(const hf_reader *h, source *s, const char *name, int dims, const int64_t *shape)
{
    s->scales = hf_files_find(&h->f, name, &s->scale_shard);
    if (s->scales == NULL)
        return moe_fail(MOE_E_DATA, "%s: %s is there but %s, its scales, is missing", h->f.dir, s->t->name, name);
    return check_shape(safetensors_path(h->f.shard[s->scale_shard]), s->scales, dims, shape);
}

static moe_err resolve_mxfp4(const hf_reader *h, source *s)
{
    const hf_place *p = &s->place;
    char name[sizeof p->name];
    TRY(check_dtype(safetensors_path(h->f.shard[s->shard]), s->t, "U8", s->t->dtype == ST_U8));
    snprintf(name, sizeof name, "%.*s_scales", (int)(strlen(p->name) - strlen("_blocks")), p->name);
    TRY(find_scales(h, s, name, p->dims - 1, p->shape));
    const st_dtype d = (st_dtype)s->scales->dtype;
    return check_dtype(safetensors_path(h->f.shard[s->scale_shard]), s->scales, "U8", d == ST_U8 || d == ST_F8_E8M0);
}

/* X.weight in E4M3 has X.weight_scale_inv, a scale for each 128 x 128 of its numbers (experts.gate_up_proj: experts.gate_up_proj_scale_inv). */
static moe_err resolve_fp8(const hf_reader *h, source *s)
{
    hf_place *p = &s->place;
    char name[sizeof p->name + 16];
    int64_t shape[4];
    p->stored = STORED_FP8;
    for (int i = 0; i < p->dims; i++)
        shape[i] = i < p->dims - 2 ? p->shape[i] : (p->shape[i] + 127) / 128;
    snprintf(name, sizeof name, "%s_scale_inv", p->name);
    TRY(find_scales(h, s, name, p->dims, shape));
    return check_dtype(safetensors_path(h->f.shard[s->scale_shard]), s->scales, "F32", s->scales->dtype == ST_F32);
}

static moe_err resolve(const hf_reader *h, const tensor_info *info, source *out)
{
    hf_place place[HF_PLACES];
    const int n = hf_places(&h->spec, info, place);
    int i = 0;
    *out = (source){0};
    while (i < n && (out->t = hf_files_find(&h->f, place[i].name, &out->shard)) == NULL)
        i++;
    if (i == n && n == 1)
        return moe_fail(MOE_E_DATA, "%s: tensor %s is missing", h->f.dir, place[0].name);
    if (i == n)
        return moe_fail(MOE_E_DATA, "%s: neither %s nor %s is there", h->f.dir, info->name, place[n - 1].name);
    out->place = place[i];
    const char *path = safetensors_path(h->f.shard[out->shard]);
    TRY(check_shape(path, out->t, place[i].dims, place[i].shape));
    if (place[i].stored == STORED_MXFP4)
        return resolve_mxfp4(h, out);
    const bool rows = place[i].stored == STORED_ROWS || place[i].stored == STORED_HEADS || place[i].stored == STORED_HEAD_COLUMNS;
    if (rows && info->layout != TENSOR_VECTOR && out->t->dtype == ST_F8_E4M3)
        return resolve_fp8(h, out);
    return check_dtype(path, out->t, info->layout == TENSOR_VECTOR ? "F32, F16 or BF16" : "F32, F16, BF16 or F8_E4M3", is_plain((st_dtype)out->t->dtype));
}

/* A tied model may carry its output projection once more: it must be the embedding. */
static moe_err check_tied(const hf_reader *h, const source *head)
{
    source embed;
    float *a = malloc(2 * CHUNK_FLOATS * sizeof *a);
    moe_err rc = MOE_OK;
    if (a == NULL)
        return moe_fail(MOE_E_OS, "out of memory");
    embed.t = hf_files_find(&h->f, "model.embed_tokens.weight", &embed.shard);
    const bool same_size = embed.t != NULL && embed.t->elements == head->t->elements;
    bool same = same_size;
    for (int64_t at = 0; same && at < head->t->elements; at += CHUNK_FLOATS) {
        const int64_t n = head->t->elements - at < CHUNK_FLOATS ? head->t->elements - at : CHUNK_FLOATS;
        TRY_GOTO(safetensors_read_f32(h->f.shard[head->shard], head->t, at, n, a), rc, out);
        TRY_GOTO(safetensors_read_f32(h->f.shard[embed.shard], embed.t, at, n, a + CHUNK_FLOATS), rc, out);
        same = memcmp(a, a + CHUNK_FLOATS, (size_t)n * sizeof *a) == 0;
    }
    if (!same)
        rc = moe_fail(MOE_E_DATA, "%s: tie_word_embeddings is true, but lm_head.weight is not model.embed_tokens.weight", h->f.dir);
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
    for (int s = 0; s < h->f.shards; s++)
        for (int64_t i = 0; i < safetensors_count(h->f.shard[s]); i++) {
            const st_tensor *t = safetensors_at(h->f.shard[s], i);
            const size_t n = strlen(t->name), suffix = strlen(".rotary_emb.inv_freq");
            if (h->used[s][i] || (n > suffix && strcmp(t->name + n - suffix, ".rotary_emb.inv_freq") == 0) || is_beyond(h, t->name))
                continue;
            if (!h->spec.tied || strcmp(t->name, "lm_head.weight") != 0)
                return moe_fail(MOE_E_DATA, "%s: %.200s is not a tensor of this %s model as config.json describes it",
                                safetensors_path(h->f.shard[s]), t->name, h->spec.model_type);
            const source head = {.shard = s, .t = t};
            TRY(check_tied(h, &head));
        }
    return MOE_OK;
}

static void mark_used(hf_reader *h, int shard, const st_tensor *t) { h->used[shard][t - safetensors_at(h->f.shard[shard], 0)] = 1; }

static moe_err make_marks(hf_reader *h)
{
    h->used = calloc((size_t)h->f.shards, sizeof *h->used);
    if (h->used == NULL)
        return moe_fail(MOE_E_OS, "out of memory");
    for (int i = 0; i < h->f.shards; i++) {
        h->used[i] = calloc((size_t)safetensors_count(h->f.shard[i]) + 1, 1);
        if (h->used[i] == NULL)
            return moe_fail(MOE_E_OS, "out of memory");
    }
    return MOE_OK;
}

static moe_err check_tensors(hf_reader *h)
{
    tensor_info *table;
    int64_t n;
    moe_err rc = MOE_OK;
    TRY(make_marks(h));
    TRY(spec_tensors(&h->spec, &table, &n));
    for (int64_t i = 0; i < n; i++) {
        source s;
        TRY_GOTO(resolve(h, &table[i], &s), rc, out);
        mark_used(h, s.shard, s.t);
        if (s.scales != NULL)
            mark_used(h, s.scale_shard, s.scales);
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
    TRY_GOTO(hf_files_open(&h->f, dir), rc, fail);
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
    for (int i = 0; h->used != NULL && i < h->f.shards; i++)
        free(h->used[i]);
    free(h->used);
    hf_files_close(&h->f);
    free(h);
}

/* Of a matrix on its own, or of the expert's part of a fused one. */
static moe_err locate_fp8(const hf_reader *h, const source *s, const tensor_info *info, model_extent *e)
{
    const hf_place *p = &s->place;
    const int64_t R = p->shape[p->dims - 2], row = p->first / info->cols % R, blocks = (info->cols + 127) / 128;
    if (row % 128 != 0) /* up behind gate */
        return moe_fail(MOE_E_DATA, "%s: %s: its rows from %lld on are a matrix of their own: expected a multiple of 128, or some share their scales with others",
                        safetensors_path(h->f.shard[s->shard]), s->t->name, (long long)row);
    e->row_bytes = (size_t)info->cols;
    e->bytes = (uint64_t)info->rows * e->row_bytes;
    e->scale_file = s->scale_shard;
    e->scale_row_bytes = (size_t)blocks * sizeof(float);
    e->scale_offset = s->scales->begin + (uint64_t)(p->first / info->cols / R * ((R + 127) / 128) + row / 128) * e->scale_row_bytes;
    e->scale_bytes = (uint64_t)(info->rows + 127) / 128 * e->scale_row_bytes;
    return MOE_OK;
}

/* In kv_b_proj, plain or E4M3. */
static moe_err locate_heads(const hf_reader *h, const source *s, const tensor_info *info, model_extent *e)
{
    const model_spec *m = &h->spec;
    const st_dtype d = (st_dtype)s->t->dtype;
    *e = (model_extent){.file = s->shard, .offset = s->t->begin,
                        .format = d == ST_F8_E4M3 ? NUM_F8_E4M3 : d == ST_F32 ? NUM_F32 : d == ST_F16 ? NUM_F16 : NUM_BF16};
    if (s->scales != NULL) {
        if (m->kv_lora_rank % 128 != 0)
            return moe_fail(MOE_E_DATA, "%s: %s has rows of %d: expected a multiple of 128 in F8_E4M3", safetensors_path(h->f.shard[s->shard]), s->t->name,
                            m->kv_lora_rank);
        e->scale_file = s->scale_shard;
        e->scale_offset = s->scales->begin;
        e->scale_row_bytes = (size_t)m->kv_lora_rank / 128 * sizeof(float);
        e->scale_bytes = (uint64_t)(s->place.shape[0] + 127) / 128 * e->scale_row_bytes;
    }
    return model_rows_in_kv_b(e, safetensors_path(h->f.shard[s->shard]), info->role == ROLE_K_B, m);
}

/* row_bytes, bytes and scales of what is put together from halves of bytes, or stored across. */
static void locate_apart(const source *s, const tensor_info *info, model_extent *e)
{
    if (e->stored == STORED_COLUMNS) {
        e->row_bytes = (size_t)(e->row_step * info->rows) * st_dtype_bytes((st_dtype)s->t->dtype);
        e->bytes = (uint64_t)info->cols * e->row_bytes;
        return;
    }
    e->row_bytes = (size_t)info->cols / 2;
    e->bytes = (uint64_t)(e->row_step * info->rows) * e->row_bytes;
    e->scale_row_bytes = (size_t)info->cols / 32;
    e->scale_file = s->scale_shard;
    e->scale_offset = s->scales->begin + (uint64_t)(info->expert * e->row_step * info->rows) * e->scale_row_bytes;
    e->scale_bytes = (uint64_t)(e->row_step * info->rows) * e->scale_row_bytes;
}

moe_err hf_reader_locate(const hf_reader *h, const tensor_info *info, model_extent *out)
{
    source s;
    *out = (model_extent){0};
    TRY(resolve(h, info, &s));
    if (info->layout == TENSOR_HEADS)
        return locate_heads(h, &s, info, out);
    const st_dtype d = (st_dtype)s.t->dtype; /* resolve allows these only */
    const numfmt format = s.place.stored == STORED_MXFP4 ? NUM_MXFP4 : s.place.stored == STORED_FP8 ? NUM_F8_E4M3 : d == ST_F32 ? NUM_F32 : d == ST_F16 ? NUM_F16 : NUM_BF16;
    TRY(model_rows_extent(out, safetensors_path(h->f.shard[s.shard]), info, format));
    out->file = s.shard;
    out->offset = s.t->begin + (uint64_t)s.place.first * st_dtype_bytes(d);
    out->stored = s.place.stored;
    out->row_step = s.place.row_step;
    out->row_first = s.place.row_first;
    if (out->stored == STORED_FP8)
        return locate_fp8(h, &s, info, out);
    if (!model_rows_plain(out))
        locate_apart(&s, info, out);
    return MOE_OK;
}

int hf_reader_files(const hf_reader *h) { return h->f.shards; }

const char *hf_reader_path(const hf_reader *h, int file) { return safetensors_path(h->f.shard[file]); }

static moe_err read_span(const hf_reader *h, int shard, const st_tensor *t, uint64_t extent_offset, model_span span, uint8_t **out)
{
    *out = malloc(span.bytes + 1);
    if (*out == NULL)
        return moe_fail(MOE_E_OS, "out of memory for %zu bytes of %s", span.bytes, t->name);
    return safetensors_read(h->f.shard[shard], t, extent_offset - t->begin + span.at, *out, span.bytes);
}

/* Rows that must be put together (models/rows.h). */
static moe_err read_apart(const hf_reader *h, const source *s, const tensor_info *info, const model_extent *e, int64_t first, int64_t n, float *out)
{
    uint8_t *stored = NULL, *scales = NULL;
    const size_t bytes = numfmt_row_bytes(e->format, info->cols);
    uint8_t *rows = malloc((size_t)n * bytes);
    moe_err rc = MOE_OK;
    if (rows == NULL)
        TRY_GOTO(moe_fail(MOE_E_OS, "out of memory for %lld rows of %s", (long long)n, info->name), rc, out);
    TRY_GOTO(read_span(h, s->shard, s->t, e->offset, model_rows_span(e, first, n), &stored), rc, out);
    if (s->scales != NULL)
        TRY_GOTO(read_span(h, s->scale_shard, s->scales, e->scale_offset, model_scales_span(e, first, n), &scales), rc, out);
    const model_source from = {.at = e, .path = hf_reader_path(h, s->shard), .name = info->name, .cols = info->cols, .first = first,
                               .stored = stored, .scales = scales};
    TRY_GOTO(model_rows(&from, first, n, rows), rc, out);
    for (int64_t r = 0; r < n; r++)
        numfmt_to_f32(out + r * info->cols, rows + (size_t)r * bytes, e->format, info->cols);
out:
    free(rows);
    free(stored);
    free(scales);
    return rc;
}

/* Rows [first, first + n) as fp32, one after the other. */
static moe_err read_rows(const hf_reader *h, const tensor_info *info, int64_t first, int64_t n, float *out)
{
    source s;
    model_extent e;
    TRY(resolve(h, info, &s));
    TRY(hf_reader_locate(h, info, &e));
    if (model_rows_plain(&e))
        return safetensors_read_f32(h->f.shard[s.shard], s.t, s.place.first + first * info->cols, n * info->cols, out);
    return read_apart(h, &s, info, &e, first, n, out);
}

static moe_err read_panels(const hf_reader *h, const tensor_info *info, float *at)
{
    const int64_t K = info->cols;
    model_extent e;
    TRY(hf_reader_locate(h, info, &e));
    int64_t rows = CHUNK_FLOATS / K / PANEL * PANEL;
    if (rows < PANEL)
        rows = PANEL;
    if (rows > info->rows || e.stored == STORED_COLUMNS) /* every one of its rows needs all of it */
        rows = info->rows;
    float *chunk = malloc((size_t)rows * (size_t)K * sizeof *chunk);
    moe_err rc = MOE_OK;
    if (chunk == NULL)
        return moe_fail(MOE_E_OS, "out of memory for %lld rows of %s", (long long)rows, info->name);
    for (int64_t r = 0; r < info->rows; r += rows) {
        const int64_t n = info->rows - r < rows ? info->rows - r : rows;
        TRY_GOTO(read_rows(h, info, r, n, chunk), rc, out);
        panel_pack(at + r * K, chunk, n, K); /* r is a multiple of PANEL */
    }
out:
    free(chunk);
    return rc;
}

moe_err hf_reader_read(hf_reader *h, const tensor_info *info, float *section)
{
    float *at = section + info->offset;
    if (info->layout == TENSOR_PANELS)
        return read_panels(h, info, at);
    const size_t n = (size_t)(info->rows * info->cols);
    TRY(read_rows(h, info, 0, info->rows, at));
    memset(at + n, 0, (info->floats - n) * sizeof *at);
    return MOE_OK;
}
