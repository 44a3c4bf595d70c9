/* Owns the making of a packed folder: every matrix is read once, converted where that was asked for, laid out in panels, summed and
 * written; the manifest comes last, then the folder gets its name.
 * Threads: one.
 * Rule: until the rename nothing of the folder is visible under its name; after an error nothing is left. */
#include "models/formats/packed.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "engine/base/text.h"
#include "kernels/qmatmul.h"
#include "models/formats/model_private.h"
#include "models/formats/packed_files.h"
#include "models/formats/packed_matrix.h"

typedef struct packer {
    const model *m;
    const packed_options *o;
    tensor_info *table;
    int64_t n;
    char *partial; /* the folder while it is written */
    packed_file file;
    packed_matrix matrix;
    uint8_t *buffer; /* one tensor, or one record */
    size_t capacity;
    text_buf manifest;
    uint64_t done, total;
} packer;

static uint64_t align(uint64_t x) { return (x + PACKED_ALIGN - 1) / PACKED_ALIGN * PACKED_ALIGN; }

static bool is_convertible(const tensor_info *t) { return t->layout != TENSOR_VECTOR && t->role != ROLE_ROUTER && t->role != ROLE_SHARED_SWITCH; }

/* The format a tensor gets. */
static moe_err target(const model *m, const packed_options *o, const tensor_info *t, numfmt *out)
{
    model_extent e;
    model_find(m, t, &e);
    const int wish = t->kind == SECTION_EXPERT ? o->experts : is_convertible(t) ? o->dense : PACKED_AS_IS;
    *out = t->layout == TENSOR_VECTOR ? NUM_F32 : wish == PACKED_AS_IS ? e.format : (numfmt)wish;
    if (*out != e.format && !numfmt_about(*out)->writable)
        return moe_fail(MOE_E_CONFIG, "%s: %s cannot become %s: that format is only read", model_name(m), t->name, numfmt_about(*out)->name);
    if (t->cols % numfmt_about(*out)->block != 0)
        return moe_fail(MOE_E_CONFIG, "%s: %s has rows of %lld: %s needs a multiple of %d", model_name(m), t->name, (long long)t->cols,
                        numfmt_about(*out)->name, numfmt_about(*out)->block);
    return MOE_OK;
}

static uint64_t tensor_bytes(const model *m, const tensor_info *t, numfmt f)
{
    if (t->layout == TENSOR_HEADS)
        return (uint64_t)model_spec_of(m)->H * qpanel_bytes(f, t->rows / model_spec_of(m)->H, t->cols);
    return t->layout == TENSOR_PANELS ? qpanel_bytes(f, t->rows, t->cols) : (uint64_t)t->rows * numfmt_row_bytes(f, t->cols);
}

/* The three formats of a layer's experts, which all of them share; `first` is the first expert's first tensor. */
static moe_err layer_formats(const model *m, const packed_options *o, const tensor_info *first, numfmt f[3], uint64_t *used)
{
    *used = 0;
    for (int i = 0; i < 3; i++) {
        TRY(target(m, o, &first[i], &f[i]));
        *used += tensor_bytes(m, &first[i], f[i]);
    }
    for (int64_t i = 3; i < 3 * (int64_t)model_spec_of(m)->E; i++) {
        numfmt other;
        TRY(target(m, o, &first[i], &other));
        if (other != f[i % 3])
            return moe_fail(MOE_E_CONFIG, "%s: %s is %s but %s is %s: experts of one layer are packed in one format, choose one with quantize --experts",
                            model_name(m), first[i].name, numfmt_about(other)->name, first[i % 3].name, numfmt_about(f[i % 3])->name);
    }
    return MOE_OK;
}

static bool begins_layer(const tensor_info *t) { return t->kind == SECTION_EXPERT && t->expert == 0 && t->role == ROLE_GATE; }

static moe_err add_sizes(const model *m, const packed_options *o, const tensor_info *table, int64_t n, uint64_t *dense, uint64_t *experts)
{
    *dense = *experts = 0;
    for (int64_t i = 0; i < n; i++) {
        numfmt f[3];
        uint64_t used;
        if (begins_layer(&table[i])) {
            TRY(layer_formats(m, o, &table[i], f, &used));
            *experts += align(used) * (uint64_t)model_spec_of(m)->E;
        } else if (table[i].kind != SECTION_EXPERT) {
            TRY(target(m, o, &table[i], &f[0]));
            *dense += align(tensor_bytes(m, &table[i], f[0]));
        }
    }
    return MOE_OK;
}

moe_err packed_size(const model *m, const packed_options *o, uint64_t *dense, uint64_t *experts)
{
    tensor_info *table;
    int64_t n;
    *dense = *experts = 0;
    TRY(spec_tensors(model_spec_of(m), &table, &n));
    const moe_err rc = add_sizes(m, o, table, n, dense, experts);
    free(table);
    return rc;
}

static moe_err reserve(packer *p, uint64_t bytes)
{
    if (bytes <= p->capacity)
        return MOE_OK;
    free(p->buffer);
    p->capacity = 0;
    p->buffer = aligned_alloc(PACKED_ALIGN, align(bytes));
    if (p->buffer == NULL)
        return moe_fail(MOE_E_OS, "out of memory for a matrix of %llu bytes", (unsigned long long)bytes);
    p->capacity = align(bytes);
    return MOE_OK;
}

/* Writes buffer[0, bytes) and zeros up to the next multiple of PACKED_ALIGN; *offset: where it went. */
static moe_err put(packer *p, uint64_t bytes, uint64_t *offset)
{
    memset(p->buffer + bytes, 0, align(bytes) - bytes);
    *offset = p->file.bytes;
    TRY(packed_file_write(&p->file, p->buffer, align(bytes)));
    p->done += align(bytes);
    if (p->o->progress != NULL)
        p->o->progress(p->o->user, p->done, p->total);
    return MOE_OK;
}

static moe_err write_tensor(packer *p, const tensor_info *t, bool first)
{
    numfmt f;
    uint64_t offset;
    TRY(target(p->m, p->o, t, &f));
    const uint64_t bytes = tensor_bytes(p->m, t, f);
    TRY(reserve(p, bytes));
    TRY(packed_matrix_load(&p->matrix, p->m, t, f, p->buffer));
    TRY(put(p, bytes, &offset));
    text_printf(&p->manifest, "%s\n    {\"name\": \"%s\", \"format\": \"%s\", \"offset\": %llu, \"bytes\": %llu, \"sum\": \"%016llx\"}", first ? "" : ",",
                t->name, numfmt_about(f)->name, (unsigned long long)offset, (unsigned long long)bytes,
                (unsigned long long)XXH3_64bits(p->buffer, bytes));
    return MOE_OK;
}

static moe_err write_dense(packer *p)
{
    bool first = true;
    TRY(packed_file_create(&p->file, p->partial, "dense.bin"));
    text_add(&p->manifest, ",\n  \"dense\": [");
    for (int64_t i = 0; i < p->n; i++)
        if (p->table[i].kind != SECTION_EXPERT) {
            TRY(write_tensor(p, &p->table[i], first));
            first = false;
        }
    text_add(&p->manifest, "\n  ]");
    return packed_file_finish(&p->file);
}

/* All records of a layer; t: its experts' tensors, three by three. */
static moe_err write_layer(packer *p, const tensor_info *t, bool first)
{
    const int E = model_spec_of(p->m)->E;
    numfmt f[3];
    uint64_t used, offset;
    TRY(layer_formats(p->m, p->o, t, f, &used));
    TRY(reserve(p, used));
    text_printf(&p->manifest, "%s\n    {\"layer\": %d, \"formats\": [\"%s\", \"%s\", \"%s\"], \"offset\": %llu, \"bytes\": %llu, \"sums\": \"",
                first ? "" : ",", t->layer, numfmt_about(f[0])->name, numfmt_about(f[1])->name, numfmt_about(f[2])->name,
                (unsigned long long)p->file.bytes, (unsigned long long)(align(used) * (uint64_t)E));
    for (int e = 0; e < E; e++) {
        uint8_t *at = p->buffer;
        for (int i = 0; i < 3; i++) {
            TRY(packed_matrix_load(&p->matrix, p->m, &t[3 * (int64_t)e + i], f[i], at));
            at += tensor_bytes(p->m, &t[i], f[i]);
        }
        TRY(put(p, used, &offset));
        text_printf(&p->manifest, "%016llx", (unsigned long long)XXH3_64bits(p->buffer, used));
    }
    text_add(&p->manifest, "\"}");
    return MOE_OK;
}

static moe_err write_experts(packer *p)
{
    bool first = true;
    text_add(&p->manifest, ",\n  \"experts\": [");
    if (spec_moe_layers(model_spec_of(p->m)) > 0)
        TRY(packed_file_create(&p->file, p->partial, "experts.bin"));
    for (int64_t i = 0; i < p->n; i++)
        if (begins_layer(&p->table[i])) {
            TRY(write_layer(p, &p->table[i], first));
            first = false;
        }
    text_add(&p->manifest, "\n  ]\n}\n");
    return packed_file_finish(&p->file);
}

static moe_err write_manifest(packer *p)
{
    if (p->manifest.failed)
        return moe_fail(MOE_E_OS, "out of memory for a manifest");
    TRY(packed_file_create(&p->file, p->partial, PACKED_MANIFEST));
    TRY(packed_file_write(&p->file, p->manifest.data, p->manifest.used));
    return packed_file_finish(&p->file);
}

static moe_err write_all(packer *p)
{
    uint64_t dense, experts;
    TRY(spec_tensors(model_spec_of(p->m), &p->table, &p->n));
    TRY(add_sizes(p->m, p->o, p->table, p->n, &dense, &experts));
    p->total = dense + experts;
    TRY(packed_space(p->partial, p->total));
    text_printf(&p->manifest, "{\n  \"format\": \"paternoster packed model\",\n  \"version\": %d,\n  \"config\": ", (int)PACKED_VERSION);
    text_add(&p->manifest, model_config(p->m));
    TRY(write_dense(p));
    TRY(write_experts(p));
    TRY(packed_copy_tokenizer(p->m, p->partial));
    return write_manifest(p);
}

moe_err packed_write(const model *m, const char *dir, const packed_options *o)
{
    packer p = {.m = m, .o = o, .file = {.fd = -1}};
    moe_err rc;
    TRY(packed_folder_begin(dir, &p.partial));
    TRY_GOTO(write_all(&p), rc, out);
    rc = packed_folder_commit(p.partial, dir);
out:
    packed_file_abandon(&p.file);
    if (rc != MOE_OK)
        packed_folder_remove(p.partial);
    packed_matrix_free(&p.matrix);
    text_free(&p.manifest);
    free(p.partial);
    free(p.table);
    free(p.buffer);
    return rc;
}
