/* The simulated disk: inodes with durable and current bytes, names, the list of changes that are not durable, damage, reboot.
 * Owns struct sim_disk; the io table over it is sim_ops.c. Threads: the test's calls come while no transfer is under way. */
#include "tests/memory/sim_private.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

uint64_t sim_random(uint64_t *x)
{
    *x += 0x9e3779b97f4a7c15ULL; /* splitmix64 */
    uint64_t z = *x;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
}

/* --- bytes and names ---------------------------------------------------------------------------------------------------------
 */

void bytes_resize(bytes *b, size_t n)
{
    if (n > b->n) {
        b->p = realloc(b->p, n);
        memset(b->p + b->n, 0, n - b->n);
    }
    b->n = n;
}

void bytes_write(bytes *b, uint64_t offset, const uint8_t *p, size_t n)
{
    if (offset + n > b->n)
        bytes_resize(b, offset + n);
    memcpy(b->p + offset, p, n);
}

static void bytes_set(bytes *b, const bytes *from)
{
    bytes_resize(b, from->n);
    if (from->n > 0)
        memcpy(b->p, from->p, from->n);
}

void name_copy(char to[NAME_BYTES], const char *from) { snprintf(to, NAME_BYTES, "%s", from); }

static void parent_of(const char *path, char dir[NAME_BYTES])
{
    name_copy(dir, path);
    char *slash = strrchr(dir, '/');
    if (slash != NULL)
        *slash = '\0';
    else
        name_copy(dir, ".");
}

name *name_find(const name_table *t, const char *path)
{
    for (int i = 0; i < t->n; i++)
        if (strcmp(t->name[i].path, path) == 0)
            return (name *)&t->name[i];
    return NULL;
}

void table_link(name_table *t, const char *path, int node)
{
    name *e = name_find(t, path);
    if (e == NULL) {
        if (t->n == MAX_NAMES)
            abort();
        e = &t->name[t->n++];
        name_copy(e->path, path);
    }
    e->inode = node;
}

void table_unlink(name_table *t, const char *path)
{
    name *e = name_find(t, path);
    if (e != NULL)
        memmove(e, e + 1, (size_t)(&t->name[t->n--] - (e + 1)) * sizeof *e);
}

change *change_add(sim_disk *d, change_kind kind, int node)
{
    if (d->changes == MAX_CHANGES)
        abort();
    change *c = &d->change[d->changes++];
    *c = (change){.kind = kind, .inode = node};
    return c;
}

void change_add_name(sim_disk *d, change_kind kind, int node, const char *from, const char *to)
{
    change *c = change_add(d, kind, node);
    parent_of(from, c->dir);
    name_copy(c->from, from);
    name_copy(c->to, to);
}

void change_apply_name(name_table *t, const change *c)
{
    if (c->kind == CHANGE_LINK)
        table_link(t, c->from, c->inode);
    if (c->kind == CHANGE_UNLINK || c->kind == CHANGE_RENAME)
        table_unlink(t, c->from);
    if (c->kind == CHANGE_RENAME)
        table_link(t, c->to, c->inode);
}

void change_drop(sim_disk *d, int i)
{
    free(d->change[i].data.p);
    memmove(&d->change[i], &d->change[i + 1], (size_t)(--d->changes - i) * sizeof d->change[0]);
}

void change_apply_bytes(bytes *b, const change *c)
{
    if (c->kind == CHANGE_WRITE)
        bytes_write(b, c->offset, c->data.p, c->data.n);
    if (c->kind == CHANGE_SIZE && c->offset > b->n)
        bytes_resize(b, c->offset);
}

/* --- the test's side ---------------------------------------------------------------------------------------------------------
 */

sim_disk *sim_disk_new(uint64_t seed)
{
    sim_disk *d = calloc(1, sizeof *d);
    d->base.ops = &sim_ops;
    d->stop_at = d->fail_at = UINT64_MAX;
    d->free_bytes = 1ULL << 30;
    d->random = seed;
    pthread_mutex_init(&d->lock, NULL);
    return d;
}

void sim_disk_free(sim_disk *d)
{
    if (d == NULL)
        return;
    for (int i = 0; i < MAX_INODES; i++) {
        free(d->inode[i].durable.p);
        free(d->inode[i].now.p);
    }
    while (d->changes > 0)
        change_drop(d, d->changes - 1);
    pthread_mutex_destroy(&d->lock);
    free(d);
}

io *sim_disk_io(sim_disk *d) { return &d->base; }

uint64_t sim_disk_operations(const sim_disk *d) { return d->operations; }

void sim_disk_stop_at(sim_disk *d, uint64_t n) { d->stop_at = n; }

void sim_disk_fail_at(sim_disk *d, uint64_t n, moe_err rc, const char *reason)
{
    d->fail_at = n;
    d->fail_rc = rc;
    snprintf(d->fail_reason, sizeof d->fail_reason, "%s", reason);
}

void sim_disk_fail(sim_disk *d, sim_what what, const char *part, int count, moe_err rc, const char *reason)
{
    pthread_mutex_lock(&d->lock);
    fault *f = &d->fault[what];
    name_copy(f->part, part);
    snprintf(f->reason, sizeof f->reason, "%s", reason);
    f->count = count;
    f->rc = rc;
    d->answer_late = what == SIM_HANG && count == 0;
    pthread_mutex_unlock(&d->lock);
}

void sim_disk_set_free_bytes(sim_disk *d, uint64_t n) { d->free_bytes = n; }

void sim_disk_set_in_memory(sim_disk *d, bool yes) { d->in_memory = yes; }

void sim_disk_set_no_direct(sim_disk *d, bool yes) { d->no_direct = yes; }

bool sim_disk_flip(sim_disk *d, const char *path, uint64_t offset)
{
    const name *e = name_find(&d->now, path);
    if (e == NULL || offset >= d->inode[e->inode].now.n)
        return false;
    d->inode[e->inode].now.p[offset] ^= 0x10;
    return true;
}

bool sim_disk_truncate(sim_disk *d, const char *path, uint64_t n)
{
    const name *e = name_find(&d->now, path);
    if (e == NULL || n > d->inode[e->inode].now.n)
        return false;
    bytes_resize(&d->inode[e->inode].now, n);
    return true;
}

bool sim_disk_remove(sim_disk *d, const char *path)
{
    const bool there = name_find(&d->now, path) != NULL;
    table_unlink(&d->now, path);
    return there;
}

int sim_disk_unsynced(const sim_disk *d) { return d->changes; }

static void apply_torn(bytes *b, const change *c, uint64_t *random)
{
    for (size_t at = 0; at < c->data.n; at += SECTOR) {
        const size_t n = c->data.n - at < SECTOR ? c->data.n - at : SECTOR;
        if (sim_random(random) & 1)
            bytes_write(b, c->offset + at, c->data.p + at, n);
    }
}

/* What lies in a folder whose own name was lost is lost. */
static void drop_orphans(name_table *t)
{
    for (int i = 0; i < t->n;) {
        char dir[NAME_BYTES];
        parent_of(t->name[i].path, dir);
        const name *e = name_find(t, dir);
        if (strcmp(dir, ".") == 0 || (e != NULL && e->inode < 0)) {
            i++;
        } else {
            table_unlink(t, t->name[i].path);
            i = 0;
        }
    }
}

sim_disk *sim_disk_reboot(const sim_disk *d, uint64_t kept, uint64_t seed)
{
    sim_disk *r = sim_disk_new(seed + 1);
    r->free_bytes = d->free_bytes;
    r->now = r->durable = d->durable;
    for (int i = 0; i < MAX_INODES; i++)
        if (d->inode[i].used) {
            r->inode[i].used = true;
            bytes_set(&r->inode[i].now, &d->inode[i].durable);
        }
    int order[MAX_CHANGES];
    for (int i = 0; i < d->changes; i++)
        order[i] = i;
    uint64_t random = seed;
    for (int i = d->changes - 1; i > 0 && seed != 0; i--) {
        const int j = (int)(sim_random(&random) % (uint64_t)(i + 1));
        const int t = order[i];
        order[i] = order[j];
        order[j] = t;
    }
    for (int i = 0; i < d->changes; i++) { /* contents in any order */
        const change *c = &d->change[order[i]];
        if (c->kind > CHANGE_SIZE || !(kept >> (order[i] < 63 ? order[i] : 63) & 1))
            continue;
        if (c->kind == CHANGE_WRITE && seed != 0 && (sim_random(&random) & 1))
            apply_torn(&r->inode[c->inode].now, c, &random);
        else
            change_apply_bytes(&r->inode[c->inode].now, c);
    }
    for (int i = 0; i < d->changes; i++) /* names in their order, with gaps: a journal may lose any of them, not swap two */
        if (d->change[i].kind > CHANGE_SIZE && (kept >> (i < 63 ? i : 63) & 1))
            change_apply_name(&r->now, &d->change[i]);
    drop_orphans(&r->now);
    r->durable = r->now;
    for (int i = 0; i < MAX_INODES; i++)
        if (r->inode[i].used)
            bytes_set(&r->inode[i].durable, &r->inode[i].now);
    return r;
}
