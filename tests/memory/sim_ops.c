/* The io table over the simulated disk: counts, fails or stops, changes the current state and notes what is not durable yet.
 * Owns files and queues. Threads: any, one lock. Rule: every operation that changes the disk passes begin(). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tests/memory/sim_private.h"

/* --- counting, faults --------------------------------------------------------------------------------------------------------
 */

/* Begins an operation that changes the disk. MOE_OK: go on. *begun: have the effect although an error is returned. */
static moe_err begin(sim_disk *d, const char *path, bool *begun)
{
    *begun = false;
    if (d->stopped)
        return moe_fail(MOE_E_IO, "%s: the disk is stopped", path);
    const uint64_t n = d->operations++;
    if (n == d->stop_at) {
        d->stopped = true;
        *begun = true;
        return moe_fail(MOE_E_IO, "%s: the disk stops", path);
    }
    if (n == d->fail_at)
        return moe_fail(d->fail_rc, "%s: %s", path, d->fail_reason);
    return MOE_OK;
}

static moe_err injected(sim_disk *d, sim_what what, const char *path)
{
    fault *f = &d->fault[what];
    if (d->stopped)
        return moe_fail(MOE_E_IO, "%s: the disk is stopped", path);
    if (f->count == 0 || strstr(path, f->part) == NULL)
        return MOE_OK;
    f->count--;
    return moe_fail(f->rc, "%s: %s", path, f->reason);
}

/* --- the table ---------------------------------------------------------------------------------------------------------------
 */

#define SIM(self) ((sim_disk *)(self))

static moe_err sim_open_locked(sim_disk *d, io_file *f, const char *path, int mode)
{
    const name *e = name_find(&d->now, path);
    if (d->stopped)
        return moe_fail(MOE_E_IO, "%s: the disk is stopped", path);
    if ((mode & IO_DIRECT) && d->no_direct)
        return moe_fail(MOE_E_CONFIG, "%s: no O_DIRECT", path);
    if ((mode & 7) != IO_CREATE) {
        if (e == NULL || e->inode < 0)
            return moe_fail(MOE_E_NOINPUT, "%s: missing", path);
        f->inode = e->inode;
        return MOE_OK;
    }
    if (e != NULL)
        return moe_fail(MOE_E_CREATE, "%s: exists", path);
    TRY(injected(d, SIM_CREATE, path));
    bool begun;
    const moe_err rc = begin(d, path, &begun);
    if (rc != MOE_OK && !begun)
        return rc;
    int i = 0;
    while (i < MAX_INODES && d->inode[i].used)
        i++;
    if (i == MAX_INODES)
        abort();
    d->inode[i].used = true;
    table_link(&d->now, path, i);
    change_add_name(d, CHANGE_LINK, i, path, "");
    f->inode = i;
    return rc;
}

static moe_err sim_open(io *self, io_file **out, const char *path, int mode)
{
    sim_disk *d = SIM(self);
    *out = NULL;
    io_file *f = calloc(1, sizeof *f);
    name_copy(f->path, path);
    pthread_mutex_lock(&d->lock);
    const moe_err rc = sim_open_locked(d, f, path, mode);
    pthread_mutex_unlock(&d->lock);
    if (rc == MOE_OK)
        *out = f;
    else
        free(f);
    return rc;
}

static void sim_close(io *self, io_file *f)
{
    (void)self;
    free(f);
}

static moe_err sim_size(io *self, io_file *f, uint64_t *n)
{
    pthread_mutex_lock(&SIM(self)->lock);
    *n = SIM(self)->inode[f->inode].now.n;
    pthread_mutex_unlock(&SIM(self)->lock);
    return MOE_OK;
}

/* With the lock held. */
static moe_err grow(sim_disk *d, io_file *f, uint64_t n)
{
    bytes *now = &d->inode[f->inode].now;
    if (n <= now->n)
        return MOE_OK;
    if (n - now->n > d->free_bytes)
        return moe_fail(MOE_E_IO, "%s: disk full", f->path);
    d->free_bytes -= n - now->n;
    bytes_resize(now, n);
    return MOE_OK;
}

static moe_err sim_allocate(io *self, io_file *f, uint64_t n)
{
    sim_disk *d = SIM(self);
    pthread_mutex_lock(&d->lock);
    bool begun;
    moe_err rc = begin(d, f->path, &begun);
    if (rc == MOE_OK)
        rc = grow(d, f, n);
    if (rc == MOE_OK || begun)
        change_add(d, CHANGE_SIZE, f->inode)->offset = n;
    pthread_mutex_unlock(&d->lock);
    return rc;
}

static moe_err sim_sync(io *self, io_file *f)
{
    sim_disk *d = SIM(self);
    pthread_mutex_lock(&d->lock);
    bool begun;
    moe_err rc = injected(d, SIM_SYNC, f->path);
    if (rc == MOE_OK)
        rc = begin(d, f->path, &begun);
    for (int i = 0; rc == MOE_OK && i < d->changes;) {
        const change *c = &d->change[i];
        if (c->inode != f->inode || c->kind > CHANGE_SIZE) {
            i++;
            continue;
        }
        change_apply_bytes(&d->inode[f->inode].durable, c);
        change_drop(d, i);
    }
    pthread_mutex_unlock(&d->lock);
    return rc;
}

static moe_err sim_make_dir(io *self, const char *path)
{
    sim_disk *d = SIM(self);
    pthread_mutex_lock(&d->lock);
    moe_err rc = MOE_OK;
    bool begun = false;
    const name *e = name_find(&d->now, path);
    if (e != NULL && e->inode >= 0)
        rc = moe_fail(MOE_E_CREATE, "%s: a file is there", path);
    if (e == NULL) {
        rc = begin(d, path, &begun);
        if (rc == MOE_OK || begun) {
            table_link(&d->now, path, -1);
            change_add_name(d, CHANGE_LINK, -1, path, "");
        }
    }
    pthread_mutex_unlock(&d->lock);
    return rc;
}

static moe_err sim_rename(io *self, const char *from, const char *to)
{
    sim_disk *d = SIM(self);
    pthread_mutex_lock(&d->lock);
    bool begun;
    moe_err rc = begin(d, from, &begun);
    const name *e = name_find(&d->now, from);
    if (e == NULL && rc == MOE_OK)
        rc = moe_fail(MOE_E_IO, "%s: missing", from);
    if (e != NULL && (rc == MOE_OK || begun)) {
        change_add_name(d, CHANGE_RENAME, e->inode, from, to);
        change_apply_name(&d->now, &d->change[d->changes - 1]);
    }
    pthread_mutex_unlock(&d->lock);
    return rc;
}

static moe_err sim_remove(io *self, const char *path)
{
    sim_disk *d = SIM(self);
    pthread_mutex_lock(&d->lock);
    moe_err rc = d->stopped ? moe_fail(MOE_E_IO, "%s: the disk is stopped", path) : MOE_OK;
    const name *e = name_find(&d->now, path);
    if (e != NULL && rc == MOE_OK) {
        bool begun;
        rc = begin(d, path, &begun);
        if (rc == MOE_OK || begun) {
            d->free_bytes += d->inode[e->inode].now.n;
            change_add_name(d, CHANGE_UNLINK, e->inode, path, "");
            table_unlink(&d->now, path);
        }
    }
    pthread_mutex_unlock(&d->lock);
    return rc;
}

static moe_err sim_sync_dir(io *self, const char *path)
{
    sim_disk *d = SIM(self);
    pthread_mutex_lock(&d->lock);
    bool begun;
    moe_err rc = injected(d, SIM_SYNC_DIR, path);
    if (rc == MOE_OK)
        rc = begin(d, path, &begun);
    for (int i = 0; rc == MOE_OK && i < d->changes;) {
        const change *c = &d->change[i];
        if (c->kind <= CHANGE_SIZE || strcmp(c->dir, path) != 0) {
            i++;
            continue;
        }
        change_apply_name(&d->durable, c);
        change_drop(d, i);
    }
    pthread_mutex_unlock(&d->lock);
    return rc;
}

static bool sim_exists(io *self, const char *path)
{
    pthread_mutex_lock(&SIM(self)->lock);
    const bool yes = name_find(&SIM(self)->now, path) != NULL;
    pthread_mutex_unlock(&SIM(self)->lock);
    return yes;
}

static moe_err sim_space(io *self, const char *dir, io_space *out)
{
    (void)dir;
    *out = (io_space){.free_bytes = SIM(self)->free_bytes, .device = 1, .in_memory = SIM(self)->in_memory};
    return MOE_OK;
}

static moe_err sim_list(io *self, const char *dir, io_name_fn each, void *user)
{
    sim_disk *d = SIM(self);
    pthread_mutex_lock(&d->lock);
    const moe_err rc = d->stopped ? moe_fail(MOE_E_IO, "%s: the disk is stopped", dir) : MOE_OK;
    const size_t n = strlen(dir);
    for (int i = 0; rc == MOE_OK && i < d->now.n; i++)
        if (strncmp(d->now.name[i].path, dir, n) == 0 && d->now.name[i].path[n] == '/')
            each(user, d->now.name[i].path + n + 1);
    pthread_mutex_unlock(&d->lock);
    return rc;
}

/* --- queues ------------------------------------------------------------------------------------------------------------------
 */

static moe_err sim_queue_open(io *self, io_queue **out, int depth)
{
    (void)depth;
    *out = calloc(1, sizeof **out);
    (*out)->d = SIM(self);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&(*out)->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    return MOE_OK;
}

static void sim_queue_close(io *self, io_queue *q)
{
    (void)self;
    if (q == NULL)
        return;
    pthread_cond_destroy(&q->changed);
    free(q);
}

/* With the lock held. */
static moe_err run_transfer(sim_disk *d, io_transfer *t)
{
    bytes *now = &d->inode[t->file->inode].now;
    TRY(injected(d, t->write ? SIM_WRITE : SIM_READ, t->file->path));
    if (!t->write) {
        if (t->offset + t->bytes > now->n)
            return moe_fail(MOE_E_IO, "%s: the file ends inside the range", t->file->path);
        memcpy(t->buf, now->p + t->offset, t->bytes);
        return MOE_OK;
    }
    bool begun;
    moe_err rc = begin(d, t->file->path, &begun);
    if (rc == MOE_OK)
        rc = grow(d, t->file, t->offset + t->bytes);
    if (rc == MOE_OK || begun) {
        change *c = change_add(d, CHANGE_WRITE, t->file->inode);
        c->offset = t->offset;
        bytes_write(&c->data, 0, t->buf, t->bytes);
    }
    if (rc == MOE_OK)
        bytes_write(now, t->offset, t->buf, t->bytes);
    return rc;
}

static moe_err sim_queue_submit(io_queue *q, io_transfer *list)
{
    sim_disk *d = q->d;
    pthread_mutex_lock(&d->lock);
    for (io_transfer *t = list, *next; t != NULL; t = next) {
        next = t->next;
        fault *hang = &d->fault[SIM_HANG];
        if (hang->count > 0 && strstr(t->file->path, hang->part) != NULL) {
            hang->count--;
            t->next = q->hung;
            q->hung = t;
            continue;
        }
        t->text[0] = '\0';
        t->rc = run_transfer(d, t);
        if (t->rc != MOE_OK)
            moe_error_take(t->text, sizeof t->text);
        t->next = q->submitted;
        q->submitted = t;
    }
    pthread_cond_signal(&q->changed);
    pthread_mutex_unlock(&d->lock);
    return MOE_OK;
}

/* Hands back some of what was submitted, in an order of chance. */
static moe_err sim_queue_wait(io_queue *q, io_transfer **done)
{
    sim_disk *d = q->d;
    *done = NULL;
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += 20 * 1000 * 1000;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_mutex_lock(&d->lock);
    int rc = 0;
    while (q->submitted == NULL && !q->woken && rc == 0)
        rc = q->hung != NULL ? pthread_cond_timedwait(&q->changed, &d->lock, &until) : pthread_cond_wait(&q->changed, &d->lock);
    if (d->answer_late && q->hung != NULL) {
        io_transfer *hung = q->hung;
        q->hung = NULL;
        for (io_transfer *next; hung != NULL; hung = next) {
            next = hung->next;
            hung->rc = MOE_E_IO; /* its buffer may be gone */
            hung->next = q->submitted;
            q->submitted = hung;
        }
    }
    io_transfer *kept = NULL;
    for (io_transfer *t = q->submitted, *next; t != NULL; t = next) {
        next = t->next;
        const bool out = *done == NULL || (sim_random(&d->random) & 1);
        t->next = out ? *done : kept;
        *(out ? done : &kept) = t;
    }
    q->submitted = kept;
    q->woken = false;
    pthread_mutex_unlock(&d->lock);
    return MOE_OK;
}

static void sim_queue_wake(io_queue *q)
{
    pthread_mutex_lock(&q->d->lock);
    q->woken = true;
    pthread_cond_signal(&q->changed);
    pthread_mutex_unlock(&q->d->lock);
}

static void sim_destroy(io *self) { (void)self; }

const io_ops sim_ops = {
    .name = "sim",
    .open = sim_open,
    .close = sim_close,
    .size = sim_size,
    .allocate = sim_allocate,
    .sync = sim_sync,
    .make_dir = sim_make_dir,
    .rename = sim_rename,
    .remove = sim_remove,
    .sync_dir = sim_sync_dir,
    .exists = sim_exists,
    .space = sim_space,
    .list = sim_list,
    .queue_open = sim_queue_open,
    .queue_close = sim_queue_close,
    .queue_submit = sim_queue_submit,
    .queue_wait = sim_queue_wait,
    .queue_wake = sim_queue_wake,
    .destroy = sim_destroy,
};
