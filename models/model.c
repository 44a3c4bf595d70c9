/* Owns an open model: what it is, its files, the table of where each tensor lies. How the table is filled is each kind's own (formats/model_*.c).
 * Threads: read-only once open; model_read is pread.
 * Rule: after model_open every tensor of the spec has an extent inside its file. */
#include "models/model.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "models/formats/gguf.h"
#include "models/formats/hf_private.h"
#include "models/formats/model_private.h"
#include "models/text/tokenizer_gguf.h"

moe_err model_add_file(model *m, const char *path)
{
    struct stat st;
    model_file *more = realloc(m->file, ((size_t)m->files + 1) * sizeof *more);
    if (more == NULL)
        return moe_fail(MOE_E_OS, "out of memory");
    m->file = more;
    model_file *f = &m->file[m->files];
    *f = (model_file){.path = strdup(path), .fd = open(path, O_RDONLY | O_CLOEXEC)};
    m->files++;
    if (f->path == NULL)
        return moe_fail(MOE_E_OS, "out of memory");
    if (f->fd < 0)
        return moe_fail(errno == EMFILE || errno == ENFILE ? MOE_E_OS : MOE_E_NOINPUT, "cannot open %s: %s", path, strerror(errno));
    if (fstat(f->fd, &st) != 0 || !S_ISREG(st.st_mode))
        return moe_fail(MOE_E_DATA, "%s is not a file", path);
    f->bytes = (uint64_t)st.st_size;
    return MOE_OK;
}

moe_err model_make_extents(model *m, int64_t n)
{
    m->extent = calloc((size_t)n, sizeof *m->extent);
    if (m->extent == NULL)
        return moe_fail(MOE_E_OS, "out of memory for %lld tensors", (long long)n);
    m->tensors = n;
    return MOE_OK;
}

moe_err model_folder_tokenizer(model *m, const char *dir)
{
    static const char *const names[] = {"tokenizer.json", TOKENIZER_GGUF};
    for (int i = 0; i < 2 && m->tokenizer == NULL; i++) {
        char *path = NULL;
        if (asprintf(&path, "%s/%s", dir, names[i]) < 0)
            return moe_fail(MOE_E_OS, "out of memory");
        const bool there = access(path, F_OK) == 0;
        free(path);
        if (there && (m->tokenizer = strdup(dir)) == NULL)
            return moe_fail(MOE_E_OS, "out of memory");
    }
    return MOE_OK;
}

moe_err model_rows_extent(model_extent *e, const char *path, const tensor_info *info, numfmt format)
{
    const numfmt_info *f = numfmt_about(format);
    if (info->cols % f->block != 0)
        return moe_fail(MOE_E_DATA, "%s: %s has rows of %lld: expected a multiple of %d, a block of %s", path, info->name,
                        (long long)info->cols, f->block, f->name);
    e->format = format;
    e->row_step = 1;
    e->row_bytes = numfmt_row_bytes(format, info->cols);
    e->bytes = (uint64_t)info->rows * e->row_bytes; /* spec_validate keeps rows * cols far below 2^60 */
    return MOE_OK;
}

static bool has(const char *dir, const char *file)
{
    char path[4096];
    const int n = snprintf(path, sizeof path, "%s/%s", dir, file);
    return n > 0 && (size_t)n < sizeof path && access(path, F_OK) == 0;
}

/* A file that cannot be read is not called a wrong one. */
static moe_err check_readable(const char *path)
{
    char first;
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    const bool read = fd >= 0 && pread(fd, &first, 1, 0) >= 0;
    const int error = errno;
    if (fd >= 0)
        close(fd);
    return read ? MOE_OK : moe_fail(MOE_E_NOINPUT, "cannot read %s: %s", path, strerror(error));
}

/* What a path is; its opener. */
static moe_err find_kind(const char *path, model_kind *kind)
{
    static const char expected[] = "expected a Hugging Face folder (config.json, *.safetensors), a GGUF file, a packed folder (" PACKED_MANIFEST
                                   ") or a run folder of moe-train";
    struct stat st;
    *kind = MODEL_HF;
    if (stat(path, &st) != 0)
        return moe_fail(MOE_E_NOINPUT, "%s: %s (%s)", path, strerror(errno), expected);
    if (!S_ISDIR(st.st_mode)) {
        *kind = MODEL_GGUF;
        if (S_ISREG(st.st_mode))
            TRY(check_readable(path));
        return gguf_is(path) ? MOE_OK : moe_fail(MOE_E_DATA, "%s is no GGUF file: %s", path, expected);
    }
    if (has(path, PACKED_MANIFEST))
        *kind = MODEL_PACKED;
    else if (has(path, "config.json"))
        *kind = MODEL_HF;
    else if (has(path, "config.yaml") && has(path, "uuid"))
        return moe_fail(MOE_E_NOINPUT, "%s is a run folder of moe-train, which is not a model here; moe-train export %s --out DIR makes one of its last checkpoint",
                        path, path);
    else
        return moe_fail(MOE_E_NOINPUT, "%s holds no model: %s", path, expected);
    return MOE_OK;
}

moe_err model_open(model **out, const char *path)
{
    static moe_err (*const openers[])(model *, const char *) = {
        [MODEL_HF] = model_open_hf, [MODEL_GGUF] = model_open_gguf, [MODEL_PACKED] = model_open_packed};
    moe_err rc;
    model_kind kind;
    *out = NULL;
    TRY(find_kind(path, &kind));
    model *m = calloc(1, sizeof *m);
    if (m == NULL || (m->name = strdup(path)) == NULL) {
        free(m);
        return moe_fail(MOE_E_OS, "out of memory");
    }
    m->kind = kind;
    TRY_GOTO(openers[kind](m, path), rc, fail);
    *out = m;
    return MOE_OK;
fail:
    model_close(m);
    return rc;
}

moe_err model_new(model **out, const char *name, model_kind kind, const model_spec *spec)
{
    text_buf config = {0};
    model *m = *out = calloc(1, sizeof *m);
    if (m == NULL || (m->name = strdup(name)) == NULL) {
        free(m);
        *out = NULL;
        return moe_fail(MOE_E_OS, "out of memory");
    }
    m->kind = kind;
    m->spec = *spec;
    moe_err rc = hf_config_text(&config, spec, HF_F32);
    if (rc == MOE_OK && config.failed)
        rc = moe_fail(MOE_E_OS, "out of memory");
    m->config = config.data;
    if (rc == MOE_OK)
        return MOE_OK;
    model_close(m);
    *out = NULL;
    return rc;
}

moe_err model_set_extent(model *m, const tensor_info *info, const model_extent *e)
{
    const model_file *f = &m->file[e->file];
    const bool made = info->kind == SECTION_EXPERT && m->experts.ranges != NULL;
    if (!made && (e->offset > f->bytes || e->bytes > f->bytes - e->offset))
        return moe_fail(MOE_E_DATA, "%s: %s is %llu bytes at %llu, but the file ends at %llu", f->path, info->name, (unsigned long long)e->bytes,
                        (unsigned long long)e->offset, (unsigned long long)f->bytes);
    m->extent[info->id] = *e;
    return MOE_OK;
}

void model_set_note(model *m, const char *note) { snprintf(m->note, sizeof m->note, "%s", note); }
void model_set_experts(model *m, const model_experts *source) { m->experts = *source; }

void model_close(model *m)
{
    if (m == NULL)
        return;
    if (m->experts.close != NULL)
        m->experts.close(m->experts.user);
    for (int i = 0; i < m->files; i++) {
        if (m->file[i].fd >= 0)
            close(m->file[i].fd);
        free(m->file[i].path);
    }
    free(m->file);
    free(m->extent);
    free(m->record);
    free(m->tokenizer);
    free(m->config);
    free(m->name);
    free(m);
}

model_kind model_kind_of(const model *m) { return m->kind; }
const char *model_name(const model *m) { return m->name; }
const char *model_note(const model *m) { return m->note; }
const model_spec *model_spec_of(const model *m) { return &m->spec; }
const model_experts *model_expert_source(const model *m) { return m->experts.ranges != NULL ? &m->experts : NULL; }
const char *model_config(const model *m) { return m->config; }
int model_files(const model *m) { return m->files; }
const char *model_path(const model *m, int file) { return m->file[file].path; }
uint64_t model_file_bytes(const model *m, int file) { return m->file[file].bytes; }
const char *model_tokenizer(const model *m) { return m->tokenizer; }
void model_find(const model *m, const tensor_info *info, model_extent *out) { *out = m->extent[info->id]; }

bool model_find_record(const model *m, int layer, int expert, model_record *out)
{
    *out = (model_record){0};
    if (m->record == NULL)
        return false;
    *out = m->record[(int64_t)spec_moe_index(&m->spec, layer) * m->spec.E + expert];
    return true;
}

moe_err model_read(const model *m, int file, uint64_t offset, void *out, size_t n)
{
    const model_file *f = &m->file[file];
    for (size_t done = 0; done < n;) {
        const ssize_t got = pread(f->fd, (char *)out + done, n - done, (off_t)(offset + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return moe_fail(MOE_E_IO, "%s: cannot read %zu bytes at %llu: %s", f->path, n, (unsigned long long)offset, strerror(errno));
        if (got == 0)
            return moe_fail(MOE_E_DATA, "%s: the file ends before byte %llu", f->path, (unsigned long long)(offset + n));
        done += (size_t)got;
    }
    return MOE_OK;
}
