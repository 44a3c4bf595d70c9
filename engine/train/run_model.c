/* Opening a run folder as a model: lock, configuration, the latest whole checkpoint, where its dense tensors and the stores' slots lie.
 * Owns the source that makes its experts (run_experts.c).
 * Rule: nothing is written, not even a time stamp of ours. */
#include "engine/train/run_model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "engine/decoder/dense.h"
#include "engine/plan/record.h"
#include "engine/train/run_private.h"

enum { SUM_CHUNK = 4 << 20 /* bytes */ };

static void close_source(void *user)
{
    run_source *s = user;
    if (s == NULL)
        return;
    for (int i = 0; s->store.dirs != NULL && i < s->store.ndirs; i++)
        free((char *)(uintptr_t)s->store.dirs[i]);
    free((void *)(uintptr_t)s->store.dirs);
    checkpoint_close(s->checkpoint);
    io_close(s->store.io);
    hf_reader_close(s->from);
    moe_pool_close(s->pool);
    free(s->file);
    train_config_free(s->config);
    run_folder_close(&s->folder);
    free(s);
}

static moe_err open_config(run_source *s)
{
    char *path;
    TRY(run_folder_path(&s->folder, "config.yaml", &path));
    const moe_err rc = train_config_load(&s->config, path, NULL, 0);
    free(path);
    return rc;
}

/* The checkpoint says what it was trained with: a configuration that was changed since is not its. */
static moe_err check_echo(const run_source *s)
{
    char *saved = strndup(s->manifest->state, s->manifest->state_bytes), *now = NULL;
    moe_err rc = saved != NULL ? train_config_echo(s->config, &now) : moe_fail(MOE_E_OS, "out of memory");
    if (rc == MOE_OK)
        rc = train_config_compare_echo(saved, now);
    if (rc == MOE_E_CONFIG) { /* its last line is for a run that goes on */
        char text[2048];
        moe_error_take(text, sizeof text);
        char *const last = strrchr(text, '\n');
        if (last != NULL)
            *last = '\0';
        rc = moe_fail(rc, "%s/config.yaml is not what the checkpoint was trained with: %s", s->folder.path, text);
    }
    free(saved);
    free(now);
    return rc;
}

static moe_err open_checkpoint(run_source *s)
{
    char *dir;
    const int64_t sections = (int64_t)spec_moe_layers(&s->config->model) * s->config->model.E;
    TRY(run_folder_path(&s->folder, "checkpoint", &dir));
    moe_err rc = MOE_OK;
    if (access(dir, F_OK) == 0)
        rc = checkpoint_open(&s->checkpoint, s->store.io, dir, s->config->checkpoint_keep, false, &s->manifest, s->note);
    free(dir);
    TRY(rc);
    if (s->manifest == NULL)
        return moe_fail(MOE_E_NOINPUT, "%s: no checkpoint in this run folder", s->folder.path);
    if (memcmp(s->manifest->uuid, s->folder.uuid, sizeof s->folder.uuid) != 0)
        return moe_fail(MOE_E_CONFIG, "%s: the checkpoint belongs to another run (its uuid differs from the folder's)", s->folder.path);
    TRY(check_echo(s));
    if (s->manifest->sections != sections)
        return moe_fail(MOE_E_DATA, "%s: the checkpoint has %d expert sections, the model has %lld", s->folder.path, s->manifest->sections,
                        (long long)sections);
    return MOE_OK;
}

static moe_err look_at_store(run_source *s)
{
    const train_config *c = s->config;
    store_config *t = &s->store;
    const char **dirs = calloc((size_t)c->ssd_count + 1, sizeof *dirs);
    if (dirs == NULL)
        return moe_fail(MOE_E_OS, "out of memory for %d store folders", c->ssd_count);
    t->dirs = dirs;
    for (; t->ndirs < c->ssd_count; t->ndirs++) {
        char *dir;
        TRY(run_folder_path(&s->folder, c->ssd[t->ndirs], &dir));
        dirs[t->ndirs] = dir;
    }
    t->sections = s->manifest->sections;
    t->slots = 1;
    memcpy(t->uuid, s->folder.uuid, sizeof t->uuid);
    record_part_bytes(c, t->part_bytes);
    return store_look(t, &s->slots);
}

/* The file of a slot, opened the first time it is named; it must reach behind the section's record. */
static moe_err add_slot(run_source *s, model *m, section_id section, int slot)
{
    char *path = NULL;
    uint64_t begin, last;
    int dir;
    if (slot < 0)
        return MOE_OK;
    store_where(&s->store, section, STORE_W, &dir, &begin);
    store_where(&s->store, section, STORE_G, &dir, &last);
    if (slot >= s->slots)
        return moe_fail(MOE_E_DATA, "%s: the checkpoint names slot %d, the store has %d", s->folder.path, slot, s->slots);
    int *file = &s->file[dir * s->slots + slot];
    if (*file < 0) {
        if (asprintf(&path, "%s/slot-%d.bin", s->store.dirs[dir], slot) < 0)
            return moe_fail(MOE_E_OS, "out of memory");
        *file = model_files(m);
        const moe_err rc = model_add_file(m, path);
        free(path);
        TRY(rc);
    }
    if (model_file_bytes(m, *file) >= last + s->store.part_bytes[STORE_G])
        return MOE_OK;
    return moe_fail(MOE_E_DATA, "%s: %llu bytes, but the record of expert section %d is %llu bytes at %llu", model_path(m, *file),
                    (unsigned long long)model_file_bytes(m, *file), section, (unsigned long long)(last + s->store.part_bytes[STORE_G] - begin),
                    (unsigned long long)begin);
}

static moe_err add_slots(run_source *s, model *m)
{
    const size_t n = (size_t)s->store.ndirs * (size_t)s->slots;
    bool initial = false;
    s->file = malloc(n * sizeof *s->file);
    if (s->file == NULL)
        return moe_fail(MOE_E_OS, "out of memory");
    memset(s->file, 0xFF, n * sizeof *s->file);
    for (section_id i = 0; i < s->manifest->sections; i++) {
        const record *r = &s->manifest->records[i];
        TRY(add_slot(s, m, i, r->slot));
        TRY(add_slot(s, m, i, r->grad_slot));
        initial |= r->slot < 0;
    }
    if (initial && s->config->model_from != NULL)
        TRY(hf_reader_open(&s->from, s->config->model_from, &s->config->model));
    return MOE_OK;
}

/* All of the dense part, with the moments that a model does not need: only together they have a checksum. */
static moe_err check_dense(const run_source *s, const model *m)
{
    const uint64_t bytes = s->manifest->dense_bytes;
    moe_err rc = MOE_OK;
    char *buffer = malloc(SUM_CHUNK);
    XXH3_state_t *state = XXH3_createState();
    if (buffer == NULL || state == NULL)
        rc = moe_fail(MOE_E_OS, "out of memory");
    else
        (void)XXH3_64bits_reset(state);
    for (uint64_t at = 0, n; rc == MOE_OK && at < bytes; at += n) {
        n = bytes - at < SUM_CHUNK ? bytes - at : SUM_CHUNK;
        rc = model_read(m, 0, at, buffer, n);
        if (rc == MOE_OK)
            (void)XXH3_64bits_update(state, buffer, n);
    }
    const uint64_t found = rc == MOE_OK ? XXH3_64bits_digest(state) : 0;
    if (rc == MOE_OK && found != s->manifest->dense_sum)
        rc = moe_fail(MOE_E_DATA, "%s: damaged: its checksum is %016llx, the checkpoint of step %llu says %016llx", model_path(m, 0), (unsigned long long)found,
                      (unsigned long long)s->manifest->step, (unsigned long long)s->manifest->dense_sum);
    free(buffer);
    (void)XXH3_freeState(state);
    return rc;
}

static moe_err add_dense_file(const run_source *s, model *m)
{
    char name[64], *path;
    snprintf(name, sizeof name, "checkpoint/dense-%d.bin", s->manifest->dense_slot);
    TRY(run_folder_path(&s->folder, name, &path));
    const moe_err rc = model_add_file(m, path);
    free(path);
    return rc;
}

/* Dense tensors lie in the checkpoint as the engine wants them. Of an expert's the extent says only the format. */
static model_extent extent_of(const dense_part *d, const tensor_info *t)
{
    const bool panels = t->layout == TENSOR_PANELS, expert = t->kind == SECTION_EXPERT;
    return (model_extent){
        .offset = expert ? 0 : dense_tensor_at(d, t) * sizeof(float), .format = NUM_F32, .row_step = 1, .panels = panels,
        .row_bytes = panels ? 0 : (size_t)t->cols * sizeof(float),
        .bytes = panels ? qpanel_bytes(NUM_F32, t->rows, t->cols) : (uint64_t)t->rows * (uint64_t)t->cols * sizeof(float),
    };
}

static moe_err place_tensors(const run_source *s, model *m)
{
    dense_part d = {0};
    tensor_info *table;
    int64_t n;
    moe_err rc;
    TRY(spec_tensors(&s->config->model, &table, &n));
    TRY_GOTO(dense_place(&d, &s->config->model), rc, done);
    if (s->manifest->dense_bytes != dense_state_bytes(&d))
        TRY_GOTO(moe_fail(MOE_E_DATA, "%s: the checkpoint's dense part has %llu bytes, the model has %zu", s->folder.path,
                          (unsigned long long)s->manifest->dense_bytes, dense_state_bytes(&d)), rc, done);
    TRY_GOTO(model_make_extents(m, n), rc, done);
    for (int64_t i = 0; i < n; i++) {
        const model_extent e = extent_of(&d, &table[i]);
        TRY_GOTO(model_set_extent(m, &table[i], &e), rc, done);
    }
done:
    dense_close(&d);
    free(table);
    return rc;
}

static moe_err open_source(run_source *s, const char *path)
{
    char note[512];
    TRY(run_folder_look(&s->folder, path));
    TRY(open_config(s));
    TRY(io_open(&s->store.io, "pread", note));
    TRY(open_checkpoint(s));
    TRY(look_at_store(s));
    spec_expert_layout(&s->config->model, &s->layout);
    TRY(moe_backend_find(&s->be, s->config->backend));
    TRY(moe_pool_open(&s->pool, 1, KERNEL_SCRATCH_BYTES));
    s->stream = (moe_stream){.pool = s->pool};
    return MOE_OK;
}

static moe_err open_run(model **out, const char *path)
{
    moe_err rc;
    model *m = NULL;
    run_source *s = calloc(1, sizeof *s);
    if (s == NULL)
        return moe_fail(MOE_E_OS, "out of memory");
    s->folder.lock = -1;
    TRY_GOTO(open_source(s, path), rc, fail);
    TRY_GOTO(model_new(&m, path, MODEL_RUN, &s->config->model), rc, fail);
    model_set_note(m, s->note);
    model_set_experts(m, &(model_experts){.ranges = run_expert_ranges, .land = run_expert_land, .close = close_source, .user = s});
    TRY_GOTO(add_dense_file(s, m), rc, fail);
    TRY_GOTO(check_dense(s, m), rc, fail);
    TRY_GOTO(place_tensors(s, m), rc, fail);
    TRY_GOTO(add_slots(s, m), rc, fail);
    TRY_GOTO(model_folder_tokenizer(m, s->config->data_path), rc, fail);
    *out = m;
    return MOE_OK;
fail:
    if (m != NULL)
        model_close(m); /* with the source */
    else
        close_source(s);
    return rc;
}

static bool has(const char *dir, const char *name)
{
    char path[4096];
    const int n = snprintf(path, sizeof path, "%s/%s", dir, name);
    return n > 0 && (size_t)n < sizeof path && access(path, F_OK) == 0;
}

static bool is_run(const char *path) { return has(path, "config.yaml") && has(path, "uuid") && !has(path, "config.json"); }

moe_err run_model_open(model **out, const char *path)
{
    *out = NULL;
    return is_run(path) ? open_run(out, path) : model_open(out, path);
}

moe_err run_model_texts(char **out, const char *path)
{
    char yaml[4096];
    train_config *c = NULL;
    *out = NULL;
    if (is_run(path)) {
        snprintf(yaml, sizeof yaml, "%s/config.yaml", path); /* it fits: is_run has found it */
        TRY(train_config_load(&c, yaml, NULL, 0));
    }
    *out = strdup(c != NULL ? c->data_path : path);
    train_config_free(c);
    return *out != NULL ? MOE_OK : moe_fail(MOE_E_OS, "out of memory");
}
