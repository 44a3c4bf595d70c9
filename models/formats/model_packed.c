/* Owns the reading of a packed folder: packed.json -> spec, extents, records. Does not read the data.
 * Threads: one.
 * Rule: the manifest is hostile: order, sizes, alignment and ranges are what packed_writer.c writes, or an error. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/qmatmul.h"
#include "models/formats/hf_private.h"
#include "models/formats/json_reader.h"
#include "models/formats/model_private.h"
#include "models/formats/packed.h"

enum { DENSE_FILE, EXPERTS_FILE, MAX_MANIFEST = 256 << 20 /* bytes; a sum is 16 of them, an expert one sum */ };

typedef struct manifest {
    json_reader config, dense, experts; /* at the value; text NULL: absent */
    int64_t version;
} manifest;

static moe_err find_sections(json_reader *r, manifest *s)
{
    TRY(json_expect(r, JSON_OBJECT));
    for (json_event e;;) {
        TRY(json_next(r, &e));
        if (e == JSON_OBJECT_END)
            break;
        json_reader *const where = json_is(r, "config") ? &s->config : json_is(r, "dense") ? &s->dense : json_is(r, "experts") ? &s->experts : NULL;
        if (where != NULL && where->text != NULL)
            return json_fail(r, MOE_E_DATA, "\"%.*s\" occurs twice", (int)r->raw_bytes, r->raw);
        if (json_is(r, "version")) {
            TRY(json_get_int(r, 0, INT32_MAX, &s->version));
            continue;
        }
        if (where != NULL)
            *where = *r;
        TRY(json_skip(r));
    }
    TRY(json_expect(r, JSON_END));
    if (s->version != PACKED_VERSION)
        return moe_fail(MOE_E_DATA, "%s: version %lld: expected %d", r->name, (long long)s->version, (int)PACKED_VERSION);
    if (s->config.text == NULL || s->dense.text == NULL || s->experts.text == NULL)
        return moe_fail(MOE_E_DATA, "%s: no \"%s\"", r->name, s->config.text == NULL ? "config" : s->dense.text == NULL ? "dense" : "experts");
    return MOE_OK;
}

static moe_err read_config(model *m, json_reader r)
{
    TRY(json_expect(&r, JSON_OBJECT));
    const size_t first = r.where;
    TRY(json_skip_rest(&r));
    m->config = strndup(r.text + first, r.at - first);
    if (m->config == NULL)
        return moe_fail(MOE_E_OS, "out of memory");
    return hf_config_parse(&m->spec, m->config, r.at - first, r.name);
}

static moe_err read_format(json_reader *r, numfmt *out)
{
    char name[16] = "";
    TRY(json_expect(r, JSON_STRING));
    if (r->raw_bytes < sizeof name)
        memcpy(name, r->raw, r->raw_bytes);
    const int f = numfmt_find(name);
    *out = f < 0 ? NUM_F32 : (numfmt)f;
    return f >= 0 ? MOE_OK : json_fail(r, MOE_E_DATA, "\"%.*s\" is no format of numbers", (int)(r->raw_bytes < 32 ? r->raw_bytes : 32), r->raw);
}

/* 16 hexadecimal digits. */
static bool parse_sum(const char *text, uint64_t *out)
{
    *out = 0;
    for (int i = 0; i < 16; i++) {
        const char c = text[i];
        const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
        if (digit < 0)
            return false;
        *out = *out << 4 | (uint64_t)digit;
    }
    return true;
}

/* The next key of the open object must be `key`: the manifest's objects have one order. */
static moe_err expect_key(json_reader *r, const char *key)
{
    TRY(json_expect(r, JSON_KEY));
    return json_is(r, key) ? MOE_OK : json_fail(r, MOE_E_DATA, "expected \"%s\", found \"%.*s\"", key, (int)(r->raw_bytes < 64 ? r->raw_bytes : 64), r->raw);
}

/* A range inside the file, behind everything before it. */
static moe_err read_range(json_reader *r, const model_file *f, uint64_t *end, uint64_t expected, uint64_t *offset)
{
    uint64_t bytes;
    TRY(expect_key(r, "offset"));
    TRY(json_get_uint(r, UINT64_MAX, offset));
    if (*offset % PACKED_ALIGN != 0 || *offset < *end)
        return json_fail(r, MOE_E_DATA, "offset %llu: expected a multiple of %d, from %llu on", (unsigned long long)*offset, (int)PACKED_ALIGN,
                         (unsigned long long)*end);
    TRY(expect_key(r, "bytes"));
    TRY(json_get_uint(r, UINT64_MAX, &bytes));
    if (bytes != expected)
        return json_fail(r, MOE_E_DATA, "%llu bytes: expected %llu", (unsigned long long)bytes, (unsigned long long)expected);
    if (*offset > f->bytes || bytes > f->bytes - *offset)
        return json_fail(r, MOE_E_DATA, "%llu bytes at %llu, but %s ends at %llu", (unsigned long long)bytes, (unsigned long long)*offset, f->path,
                         (unsigned long long)f->bytes);
    *end = *offset + bytes;
    return MOE_OK;
}

static moe_err read_tensor(json_reader *r, model *m, const tensor_info *info, uint64_t *end)
{
    model_extent *e = &m->extent[info->id];
    numfmt format;
    TRY(json_expect(r, JSON_OBJECT));
    TRY(expect_key(r, "name"));
    TRY(json_expect(r, JSON_STRING));
    if (!json_is(r, info->name))
        return json_fail(r, MOE_E_DATA, "tensor \"%.*s\": expected %s", (int)(r->raw_bytes < 100 ? r->raw_bytes : 100), r->raw, info->name);
    TRY(expect_key(r, "format"));
    TRY(read_format(r, &format));
    e->file = DENSE_FILE;
    TRY(model_rows_extent(e, r->name, info, format));
    e->panels = info->layout == TENSOR_PANELS || info->layout == TENSOR_HEADS;
    if (e->panels) {
        const int64_t parts = info->layout == TENSOR_HEADS ? m->spec.H : 1;
        e->row_bytes = 0;
        e->bytes = (uint64_t)parts * qpanel_bytes(format, info->rows / parts, info->cols);
    }
    TRY(read_range(r, &m->file[DENSE_FILE], end, e->bytes, &e->offset));
    TRY(expect_key(r, "sum"));
    TRY(json_expect(r, JSON_STRING));
    if (r->raw_bytes != 16 || !parse_sum(r->raw, &e->sum))
        return json_fail(r, MOE_E_DATA, "sum of %s: expected 16 hexadecimal digits", info->name);
    e->summed = true;
    return json_expect(r, JSON_OBJECT_END);
}

static moe_err read_dense(json_reader r, model *m, const tensor_info *table, int64_t n)
{
    uint64_t end = 0;
    TRY(json_expect(&r, JSON_ARRAY));
    for (int64_t i = 0; i < n; i++)
        if (table[i].kind != SECTION_EXPERT)
            TRY(read_tensor(&r, m, &table[i], &end));
    return json_expect(&r, JSON_ARRAY_END);
}

/* The records of one layer; first: the three tensors of its first expert. */
static moe_err read_layer(json_reader *r, model *m, int layer, const tensor_info *first, uint64_t *end)
{
    const int E = m->spec.E;
    model_extent part[3] = {0};
    int64_t number;
    uint64_t offset, used = 0, record;
    TRY(json_expect(r, JSON_OBJECT));
    TRY(expect_key(r, "layer"));
    TRY(json_get_int(r, layer, layer, &number));
    TRY(expect_key(r, "formats"));
    TRY(json_expect(r, JSON_ARRAY));
    for (int i = 0; i < 3; i++) {
        TRY(read_format(r, &part[i].format));
        TRY(model_rows_extent(&part[i], r->name, &first[i], part[i].format));
        part[i].file = EXPERTS_FILE;
        part[i].panels = true;
        part[i].row_bytes = 0;
        part[i].bytes = qpanel_bytes(part[i].format, first[i].rows, first[i].cols);
        used += part[i].bytes;
    }
    TRY(json_expect(r, JSON_ARRAY_END));
    record = (used + PACKED_ALIGN - 1) / PACKED_ALIGN * PACKED_ALIGN;
    TRY(read_range(r, &m->file[EXPERTS_FILE], end, record * (uint64_t)E, &offset));
    TRY(expect_key(r, "sums"));
    TRY(json_expect(r, JSON_STRING));
    if (r->raw_bytes != 16 * (size_t)E)
        return json_fail(r, MOE_E_DATA, "sums of layer %d: expected %d times 16 hexadecimal digits, found %zu characters", layer, E, r->raw_bytes);
    for (int e = 0; e < E; e++) {
        model_record *x = &m->record[(int64_t)spec_moe_index(&m->spec, layer) * E + e];
        *x = (model_record){.file = EXPERTS_FILE, .offset = offset + (uint64_t)e * record, .bytes = record, .used = used};
        if (!parse_sum(r->raw + 16 * (size_t)e, &x->sum))
            return json_fail(r, MOE_E_DATA, "sum of expert %d of layer %d: expected 16 hexadecimal digits", e, layer);
        uint64_t at = x->offset;
        for (int i = 0; i < 3; i++) {
            part[i].offset = at;
            at += part[i].bytes;
            m->extent[first[3 * (int64_t)e + i].id] = part[i];
        }
    }
    return json_expect(r, JSON_OBJECT_END);
}

static moe_err read_experts(json_reader r, model *m, const tensor_info *table, int64_t n)
{
    uint64_t end = 0;
    TRY(json_expect(&r, JSON_ARRAY));
    if (spec_moe_layers(&m->spec) > 0) {
        m->record = calloc((size_t)spec_moe_layers(&m->spec) * (size_t)m->spec.E, sizeof *m->record);
        if (m->record == NULL)
            return moe_fail(MOE_E_OS, "out of memory");
    }
    for (int64_t i = 0; i < n; i++)
        if (table[i].kind == SECTION_EXPERT && table[i].expert == 0 && table[i].role == ROLE_GATE)
            TRY(read_layer(&r, m, table[i].layer, &table[i], &end));
    return json_expect(&r, JSON_ARRAY_END);
}

static moe_err add_data_file(model *m, const char *dir, const char *name)
{
    char *path = NULL;
    TRY(hf_path(&path, dir, name));
    const moe_err rc = model_add_file(m, path);
    free(path);
    return rc;
}

moe_err model_open_packed(model *m, const char *dir)
{
    char *path = NULL, *text = NULL;
    tensor_info *table = NULL;
    manifest s = {0};
    json_reader r;
    size_t bytes;
    int64_t n;
    moe_err rc;
    TRY(hf_path(&path, dir, PACKED_MANIFEST));
    TRY_GOTO(hf_read_text(path, MAX_MANIFEST, &text, &bytes), rc, out);
    json_open(&r, path, text, bytes);
    TRY_GOTO(find_sections(&r, &s), rc, out);
    TRY_GOTO(read_config(m, s.config), rc, out);
    TRY_GOTO(add_data_file(m, dir, "dense.bin"), rc, out);
    if (spec_moe_layers(&m->spec) > 0)
        TRY_GOTO(add_data_file(m, dir, "experts.bin"), rc, out);
    TRY_GOTO(spec_tensors(&m->spec, &table, &n), rc, out);
    TRY_GOTO(model_make_extents(m, n), rc, out);
    TRY_GOTO(read_dense(s.dense, m, table, n), rc, out);
    TRY_GOTO(read_experts(s.experts, m, table, n), rc, out);
    rc = model_folder_tokenizer(m, dir);
out:
    free(table);
    free(text);
    free(path);
    return rc;
}
