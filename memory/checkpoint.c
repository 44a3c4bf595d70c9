/* Checkpoints: the commit protocol and the folder of kept manifests. The bytes of a manifest are manifest.c.
 *
 * Order of a commit, each step durable before the next: dense part into a file no kept manifest names; store_sync; manifest.tmp;
 * rename; the folder. A crash before the rename is durable leaves the old manifests and everything they name; after it the new
 * one is complete. Only then are older manifests removed, and it does not matter whether a removal survives a crash: the newest
 * wins. Owns the kept manifests in memory. Threads: one at a time. Rule: a slot is free only when checkpoint_names_slot says so.
 */
#include "memory/checkpoint.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "memory/manifest.h"

enum { KEEP_MAX = 62, PATH_MAX_BYTES = 4096, NOTE_BYTES = 512, STEPS_MAX = 1 << 20 };

struct checkpoint {
    io *io;
    char *dir;
    int keep;
    bool direct;
    bool unsettled;               /* the newest was renamed, but its folder could not be synced */
    manifest *kept[KEEP_MAX + 1]; /* newest first; one more than `keep` while unsettled */
    int n;
    manifest *opened; /* latest when opened: callers may hold it until close */
};

static moe_err make_path(const checkpoint *c, char path[PATH_MAX_BYTES], const char *kind, uint64_t number, const char *suffix)
{
    if (snprintf(path, PATH_MAX_BYTES, "%s/%s-%llu.bin%s", c->dir, kind, (unsigned long long)number, suffix) >= PATH_MAX_BYTES)
        return moe_fail(MOE_E_CONFIG, "%.200s...: the path is too long", c->dir);
    return MOE_OK;
}

static uint64_t padded(uint64_t bytes) { return (bytes + IO_ALIGN - 1) & ~(uint64_t)(IO_ALIGN - 1); }

/* --- which manifests are there -----------------------------------------------------------------------------------------------
 */

typedef struct step_list {
    uint64_t *step;
    size_t n, room;
    bool failed;
} step_list;

static bool parse_name(const char *name, uint64_t *step)
{
    static const char prefix[] = "manifest-";
    if (strncmp(name, prefix, sizeof prefix - 1) != 0)
        return false;
    const char *digits = name + sizeof prefix - 1;
    const size_t n = strspn(digits, "0123456789");
    if (n == 0 || n > 18 || strcmp(digits + n, ".bin") != 0 || (digits[0] == '0' && n > 1))
        return false;
    *step = strtoull(digits, NULL, 10);
    return true;
}

static void collect(void *user, const char *name)
{
    step_list *l = user;
    uint64_t step;
    if (!parse_name(name, &step) || l->failed)
        return;
    if (l->n == l->room) {
        const size_t room = l->room ? 2 * l->room : 16;
        uint64_t *grown = room <= STEPS_MAX ? realloc(l->step, room * sizeof *grown) : NULL;
        if (grown == NULL) {
            l->failed = true;
            return;
        }
        l->step = grown;
        l->room = room;
    }
    l->step[l->n++] = step;
}

static int newest_first(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

static moe_err list_manifests(const checkpoint *c, step_list *l)
{
    *l = (step_list){0};
    TRY(c->io->ops->list(c->io, c->dir, collect, l));
    if (l->failed)
        return moe_fail(MOE_E_OS, "%s: out of memory for the names of the manifests", c->dir);
    if (l->n > 0)
        qsort(l->step, l->n, sizeof *l->step, newest_first);
    return MOE_OK;
}

static moe_err load_manifest(const checkpoint *c, uint64_t step, manifest **out)
{
    *out = NULL;
    char path[PATH_MAX_BYTES];
    TRY(make_path(c, path, "manifest", step, ""));
    void *data = NULL;
    size_t bytes = 0;
    TRY(io_read_file(c->io, path, MANIFEST_MAX, &data, &bytes));
    moe_err rc = manifest_parse(out, data, bytes, path);
    free(data);
    if (rc == MOE_OK && (*out)->step != step) {
        rc = moe_fail(MOE_E_DATA, "%s: holds step %llu", path, (unsigned long long)(*out)->step);
        free(*out);
        *out = NULL;
    }
    return rc;
}

/* Loads the `keep` newest whole manifests. A read error is not a broken manifest: going on from an older one is the user's
 * choice. */
static moe_err load_kept(checkpoint *c, const step_list *l, char *note)
{
    char broken[NOTE_BYTES / 2] = "";
    for (size_t i = 0; i < l->n && c->n < c->keep; i++) {
        manifest *m = NULL;
        const moe_err rc = load_manifest(c, l->step[i], &m);
        if (rc == MOE_OK) {
            c->kept[c->n++] = m;
        } else if (rc == MOE_E_DATA) {
            if (broken[0] == '\0' && c->n == 0)
                snprintf(broken, sizeof broken, "%.250s", moe_error_text());
        } else {
            return rc;
        }
    }
    if (c->n == 0 && l->n > 0)
        return moe_fail(MOE_E_DATA, "%s: no checkpoint is whole: %s", c->dir, broken);
    if (broken[0] != '\0')
        snprintf(note, NOTE_BYTES, "%s; going on from the checkpoint of step %llu", broken, (unsigned long long)c->kept[0]->step);
    return MOE_OK;
}

moe_err checkpoint_open(checkpoint **out, io *disk, const char *dir, int keep, bool direct, const manifest **latest, char *note)
{
    *out = NULL;
    *latest = NULL;
    note[0] = '\0';
    if (keep < 1 || keep > KEEP_MAX)
        return moe_fail(MOE_E_CONFIG, "checkpoint.keep: expected 1 to %d, got %d", KEEP_MAX, keep);
    step_list l = {0};
    checkpoint *c = calloc(1, sizeof *c);
    if (c == NULL || (c->dir = strdup(dir)) == NULL) {
        free(c);
        return moe_fail(MOE_E_OS, "%s: out of memory", dir);
    }
    c->io = disk;
    c->keep = keep;
    c->direct = direct;
    moe_err rc = MOE_OK;
    if (!disk->ops->exists(disk, dir))
        TRY_GOTO(io_make_dir(disk, dir), rc, fail);
    TRY_GOTO(list_manifests(c, &l), rc, fail);
    TRY_GOTO(load_kept(c, &l, note), rc, fail);
    c->opened = c->n > 0 ? c->kept[0] : NULL;
    *latest = c->opened;
    *out = c;
    free(l.step);
    return MOE_OK;
fail:
    free(l.step);
    checkpoint_close(c);
    return rc;
}

static void drop_manifest(checkpoint *c, manifest *m)
{
    if (m != c->opened)
        free(m);
}

void checkpoint_close(checkpoint *c)
{
    if (c == NULL)
        return;
    for (int i = 0; i < c->n; i++)
        drop_manifest(c, c->kept[i]);
    free(c->opened);
    free(c->dir);
    free(c);
}

bool checkpoint_names_slot(const checkpoint *c, section_id s, int slot, bool grad)
{
    for (int i = 0; i < c->n; i++) {
        const manifest *m = c->kept[i];
        if (s >= 0 && s < m->sections && (grad ? m->records[s].grad_slot : m->records[s].slot) == slot)
            return true;
    }
    return false;
}

/* --- dense part --------------------------------------------------------------------------------------------------------------
 */

moe_err checkpoint_read_dense(checkpoint *c, void *buf, uint64_t bytes)
{
    const manifest *m = c->n > 0 ? c->kept[0] : NULL;
    if (m == NULL)
        return moe_fail(MOE_E_NOINPUT, "%s: no checkpoint to read the dense part from", c->dir);
    if (m->dense_bytes != bytes)
        return moe_fail(MOE_E_DATA, "%s: the dense part of step %llu has %llu bytes, expected %llu", c->dir,
                        (unsigned long long)m->step, (unsigned long long)m->dense_bytes, (unsigned long long)bytes);
    if (bytes == 0)
        return MOE_OK;
    char path[PATH_MAX_BYTES];
    TRY(make_path(c, path, "dense", (uint64_t)m->dense_slot, ""));
    io_file *f = NULL;
    TRY(c->io->ops->open(c->io, &f, path, IO_READ | (c->direct ? IO_DIRECT : IO_DROP)));
    uint64_t size = 0, sum = 0;
    const io_range r = {.file = f, .buf = buf, .bytes = padded(bytes), .sum = &sum, .sum_bytes = bytes};
    moe_err rc;
    TRY_GOTO(c->io->ops->size(c->io, f, &size), rc, out);
    if (size < padded(bytes)) {
        rc = moe_fail(MOE_E_DATA, "%s: %llu bytes, expected %llu", path, (unsigned long long)size,
                      (unsigned long long)padded(bytes));
        goto out;
    }
    TRY_GOTO(io_transfer_range(c->io, &r), rc, out);
    if (sum != m->dense_sum)
        rc = moe_fail(MOE_E_DATA, "%s: checksum mismatch: expected %016llx, found %016llx", path,
                      (unsigned long long)m->dense_sum, (unsigned long long)sum);
out:
    c->io->ops->close(c->io, f);
    return rc;
}

static int32_t free_dense_slot(const checkpoint *c)
{
    for (int32_t k = 0;; k++) { /* at most as many are named as manifests are kept */
        bool named = false;
        for (int i = 0; i < c->n; i++)
            named |= c->kept[i]->dense_slot == k;
        if (!named)
            return k;
    }
}

static moe_err write_dense(checkpoint *c, manifest *m, const void *dense)
{
    m->dense_slot = -1;
    m->dense_sum = 0;
    if (m->dense_bytes == 0)
        return MOE_OK;
    m->dense_slot = free_dense_slot(c);
    char path[PATH_MAX_BYTES];
    TRY(make_path(c, path, "dense", (uint64_t)m->dense_slot, ""));
    const bool there = c->io->ops->exists(c->io, path);
    io_file *f = NULL;
    TRY(c->io->ops->open(c->io, &f, path, (there ? IO_WRITE : IO_CREATE) | (c->direct ? IO_DIRECT : IO_DROP)));
    union {
        const void *in;
        void *out;
    } buf = {dense}; /* a write does not touch it */
    const io_range r = {.file = f,
                        .write = true,
                        .buf = buf.out,
                        .bytes = padded(m->dense_bytes),
                        .sum = &m->dense_sum,
                        .sum_bytes = m->dense_bytes};
    moe_err rc;
    TRY_GOTO(c->io->ops->allocate(c->io, f, r.bytes), rc, out);
    TRY_GOTO(io_transfer_range(c->io, &r), rc, out);
    TRY_GOTO(c->io->ops->sync(c->io, f), rc, out);
out:
    c->io->ops->close(c->io, f);
    return rc; /* its name becomes durable with the manifest's: one sync of the folder */
}

/* --- commit ------------------------------------------------------------------------------------------------------------------
 */

/* The newest manifest is durable: forget what is beyond `keep`, and a kept one of the same step whose file it replaced. */
static void settle(checkpoint *c)
{
    int n = 1;
    for (int i = 1; i < c->n; i++) {
        if (n < c->keep && c->kept[i]->step != c->kept[0]->step)
            c->kept[n++] = c->kept[i];
        else
            drop_manifest(c, c->kept[i]);
    }
    c->n = n;
    c->unsettled = false;
}

static bool is_kept(const checkpoint *c, uint64_t step)
{
    for (int i = 0; i < c->n; i++)
        if (c->kept[i]->step == step)
            return true;
    return false;
}

/* Removes manifests that are not kept. The commit is done: what cannot be removed now is removed by the next one. */
static void remove_old(checkpoint *c)
{
    step_list l;
    if (list_manifests(c, &l) == MOE_OK)
        for (size_t i = 0; i < l.n; i++) {
            char path[PATH_MAX_BYTES];
            if (is_kept(c, l.step[i]) || make_path(c, path, "manifest", l.step[i], "") != MOE_OK)
                continue;
            if (c->io->ops->remove(c->io, path) != MOE_OK)
                break;
        }
    free(l.step);
}

static moe_err write_manifest(checkpoint *c, manifest *m)
{
    char path[PATH_MAX_BYTES], tmp[PATH_MAX_BYTES];
    TRY(make_path(c, path, "manifest", m->step, ""));
    TRY(make_path(c, tmp, "manifest", m->step, ".tmp"));
    void *data = NULL;
    size_t bytes = 0;
    TRY(manifest_format(m, &data, &bytes));
    moe_err rc = c->io->ops->sync_dir(c->io, c->dir); /* the dense file's name before the manifest that names it */
    if (rc == MOE_OK)
        rc = io_write_file(c->io, tmp, data, bytes);
    free(data);
    if (rc == MOE_OK)
        rc = c->io->ops->rename(c->io, tmp, path);
    if (rc != MOE_OK) {
        char text[MOE_ERROR_TEXT];
        moe_error_take(text, sizeof text);
        (void)!c->io->ops->remove(c->io, tmp); /* gives a full disk its bytes back */
        return moe_error_set(rc, text);
    }
    return MOE_OK;
}

moe_err checkpoint_commit(checkpoint *c, store *st, const manifest *m, const void *dense)
{
    TRY(manifest_check(m, "checkpoint"));
    if (c->unsettled) {
        TRY(c->io->ops->sync_dir(c->io, c->dir));
        settle(c);
    }
    manifest *copy = NULL;
    TRY(manifest_copy(&copy, m));
    moe_err rc;
    TRY_GOTO(write_dense(c, copy, dense), rc, fail);
    if (st != NULL)
        TRY_GOTO(store_sync(st), rc, fail);
    TRY_GOTO(write_manifest(c, copy), rc, fail);
    memmove(c->kept + 1, c->kept, (size_t)c->n * sizeof c->kept[0]);
    c->kept[0] = copy; /* from here both the new and the old ones may be what a crash leaves */
    c->n++;
    c->unsettled = true;
    TRY(c->io->ops->sync_dir(c->io, c->dir));
    settle(c);
    remove_old(c);
    return MOE_OK;
fail:
    free(copy);
    return rc;
}
