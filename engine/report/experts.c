/* experts.bin. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/report/files.h"

static size_t record_bytes(uint32_t layers, uint32_t experts)
{
    return sizeof(uint64_t) + (size_t)layers * experts * sizeof(uint32_t);
}

/* Keeps the records whose steps rise up to `last`. */
static moe_err cut_after(experts_log *l, int64_t last)
{
    const int fd = l->file.fd;
    experts_header h;
    struct stat st;
    if (fstat(fd, &st) != 0)
        return moe_fail(MOE_E_IO, "cannot read %s: %s", l->file.path, strerror(errno));
    off_t keep = 0;
    if (st.st_size >= (off_t)sizeof h) {
        if (pread(fd, &h, sizeof h, 0) != (ssize_t)sizeof h)
            return moe_fail(MOE_E_IO, "cannot read %s: %s", l->file.path, strerror(errno));
        if (memcmp(h.magic, EXPERTS_MAGIC, sizeof h.magic) != 0 || h.layers == 0 || h.experts == 0 || h.layers > 1 << 16 ||
            h.experts > 1 << 20)
            return moe_fail(MOE_E_DATA, "%s: expected a file that begins with %s; move it away to go on without its history",
                            l->file.path, EXPERTS_MAGIC);
        l->layers = h.layers;
        l->experts = h.experts;
        const size_t record = record_bytes(h.layers, h.experts);
        uint64_t step, before = 0;
        keep = sizeof h;
        while (keep + (off_t)record <= st.st_size && pread(fd, &step, sizeof step, keep) == (ssize_t)sizeof step &&
               step > before && step <= (uint64_t)last) {
            before = step;
            keep += (off_t)record;
        }
    }
    if (keep != st.st_size && ftruncate(fd, keep) != 0)
        return moe_fail(MOE_E_IO, "cannot cut %s: %s", l->file.path, strerror(errno));
    return MOE_OK;
}

moe_err experts_open(experts_log *l, const char *run_dir, int64_t resume_step)
{
    text_buf t = {0};
    *l = (experts_log){.file = {.fd = -1}};
    text_printf(&t, "%s/experts.bin", run_dir);
    TRY(text_take(&t, &l->file.path));
    l->file.fd = open(l->file.path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | (resume_step < 0 ? O_TRUNC : 0), 0666);
    if (l->file.fd < 0)
        return moe_fail(MOE_E_CREATE, "cannot create %s: %s", l->file.path, strerror(errno));
    return resume_step < 0 ? MOE_OK : cut_after(l, resume_step);
}

static moe_err write_header(experts_log *l, const step_metrics *m)
{
    experts_header h = {.layers = (uint32_t)m->layers, .experts = (uint32_t)m->experts};
    memcpy(h.magic, EXPERTS_MAGIC, sizeof h.magic);
    TRY(log_append(&l->file, &h, sizeof h));
    l->layers = h.layers;
    l->experts = h.experts;
    return MOE_OK;
}

moe_err experts_step(experts_log *l, const step_metrics *m)
{
    if (!m->expert_rows || m->layers <= 0 || m->experts <= 0)
        return MOE_OK;
    if (l->layers == 0)
        TRY(write_header(l, m));
    if (l->layers != (uint32_t)m->layers || l->experts != (uint32_t)m->experts)
        return moe_fail(MOE_E_DATA, "%s: holds %u layers of %u experts, the model has %d of %d", l->file.path, l->layers,
                        l->experts, m->layers, m->experts);
    const size_t bytes = record_bytes(l->layers, l->experts), n = (size_t)m->layers * (size_t)m->experts;
    char *record = malloc(bytes);
    if (!record)
        return moe_fail(MOE_E_OS, "out of memory for a record of %s", l->file.path);
    const uint64_t step = (uint64_t)m->step;
    memcpy(record, &step, sizeof step);
    for (size_t i = 0; i < n; i++) {
        const uint32_t rows = m->expert_rows[i] > UINT32_MAX ? UINT32_MAX : (uint32_t)m->expert_rows[i];
        memcpy(record + sizeof step + i * sizeof rows, &rows, sizeof rows);
    }
    const moe_err rc = log_append(&l->file, record, bytes);
    free(record);
    return rc;
}
