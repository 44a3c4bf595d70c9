#include "tests/memory/fake_store.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct checkpoint {
    store *st;
    int sections, keep, kept;
    record *named[8]; /* newest first */
};

struct store {
    fake_config c;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t work;
    bool quit, closed;
    int fail_reads, fail_writes;
    store_op **waiting; /* grows */
    int nwaiting, room;
    store_op **held; /* transferred behind the gate, not ended */
    int nheld;
    store_op *running;
    unsigned char **place; /* [sections][parts][slots] */
    unsigned char *spill;
    checkpoint *names;
    uint64_t random, reads, writes;
    char problem[256];
};

static uint64_t next_random(store *s)
{
    s->random ^= s->random << 13;
    s->random ^= s->random >> 7;
    s->random ^= s->random << 17;
    return s->random;
}

static uint64_t sum_of(const void *data, size_t bytes)
{
    const unsigned char *p = data;
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < bytes; i++)
        h = (h ^ p[i]) * 0x100000001b3u;
    return h;
}

static void complain(store *s, const char *what, const store_op *op)
{
    if (s->problem[0] == '\0')
        snprintf(s->problem, sizeof s->problem, "%s: %s of section %d part %d slot %d", what, op->write ? "write" : "read",
                 op->section, (int)op->part, op->slot);
}

static size_t place_index(const store *s, section_id section, store_part part, int slot)
{
    return ((size_t)section * STORE_PARTS + part) * (size_t)s->c.slots + (size_t)slot;
}

static bool same_place(const store_op *a, const store_op *b)
{
    if (a->spill != b->spill)
        return false;
    if (a->spill)
        return a->offset < b->offset + b->bytes && b->offset < a->offset + a->bytes;
    return a->section == b->section && a->part == b->part && a->slot == b->slot;
}

static bool is_named(const checkpoint *c, section_id s, int slot, bool grad)
{
    for (int i = 0; c != NULL && i < c->kept; i++) {
        const record *r = &c->named[i][s];
        if (slot == (grad ? r->grad_slot : r->slot) && (!grad || r->grad_step != 0))
            return true;
    }
    return false;
}

static void compare_places(store *s, const store_op *op, const store_op *other)
{
    if (other != NULL && other != op && (other->write || op->write) && same_place(op, other))
        complain(s, "two operations on one place", op);
    if (other == op)
        complain(s, "submitted twice", op);
}

static void watch(store *s, const store_op *op)
{
    if (op->spill) {
        if (op->offset % IO_ALIGN != 0 || op->offset + op->bytes > s->c.spill_bytes)
            complain(s, "outside of the spill file", op);
    } else {
        if (op->section < 0 || op->section >= s->c.sections || op->slot < 0 || op->slot >= s->c.slots) {
            complain(s, "no such place", op);
            return;
        }
        if (op->write && is_named(s->names, op->section, op->slot, op->part == STORE_G))
            complain(s, "a checkpoint names the place", op);
    }
    if ((uintptr_t)op->buf % IO_ALIGN != 0)
        complain(s, "unaligned buffer", op);
    compare_places(s, op, s->running);
    for (int i = 0; i < s->nwaiting; i++)
        compare_places(s, op, s->waiting[i]);
    for (int i = 0; i < s->nheld; i++)
        compare_places(s, op, s->held[i]);
}

static size_t op_bytes(const store *s, const store_op *op)
{
    const bool half = s->c.half_bytes > 0 && op->part <= STORE_R;
    return op->spill ? op->bytes : half ? s->c.half_bytes : s->c.part_bytes;
}

/* The sum of a buffer at submission, kept where the real store keeps its own things. */
static void remember(store *s, store_op *op)
{
    const uint64_t sum = op->write && !s->c.lax ? sum_of(op->buf, op_bytes(s, op)) : 0;
    memcpy(op->private_, &sum, sizeof sum);
}

static bool unchanged(const store *s, const store_op *op)
{
    uint64_t sum;
    memcpy(&sum, op->private_, sizeof sum);
    return !op->write || s->c.lax || sum == sum_of(op->buf, op_bytes(s, op));
}

void store_submit(store *s, store_op *op)
{
    pthread_mutex_lock(&s->lock);
    watch(s, op);
    remember(s, op);
    if (s->nwaiting + s->nheld >= s->room) {
        s->room = s->room * 2 + 16;
        s->waiting = realloc(s->waiting, (size_t)s->room * sizeof *s->waiting);
        s->held = realloc(s->held, (size_t)s->room * sizeof *s->held);
    }
    s->waiting[s->nwaiting++] = op;
    pthread_cond_signal(&s->work);
    pthread_mutex_unlock(&s->lock);
}

void store_promote(store *s, store_op *op)
{
    pthread_mutex_lock(&s->lock);
    op->priority = STORE_DEMAND;
    pthread_mutex_unlock(&s->lock);
}

moe_err store_sync(store *s)
{
    (void)s;
    return MOE_OK;
}

static void transfer_record(store *s, store_op *op)
{
    unsigned char **place = &s->place[place_index(s, op->section, op->part, op->slot)];
    const size_t bytes = op_bytes(s, op), padded = (bytes + IO_ALIGN - 1) / IO_ALIGN * IO_ALIGN;
    if (op->write) {
        if (*place == NULL)
            *place = malloc(padded);
        memcpy(*place, op->buf, padded);
        op->sum = sum_of(*place, bytes);
    } else if (*place == NULL) {
        op->rc = MOE_E_IO;
        snprintf(op->text, sizeof op->text, "section %d part %d slot %d was never written", op->section, (int)op->part, op->slot);
    } else {
        memcpy(op->buf, *place, padded);
        if (sum_of(op->buf, bytes) != op->sum) {
            op->rc = MOE_E_DATA;
            snprintf(op->text, sizeof op->text, "section %d part %d slot %d: checksum", op->section, (int)op->part, op->slot);
        }
    }
}

static void transfer(store *s, store_op *op, bool fails)
{
    op->rc = MOE_OK;
    if (fails) {
        op->rc = MOE_E_IO;
        snprintf(op->text, sizeof op->text, "injected failure of a %s of section %d part %d", op->write ? "write" : "read",
                 op->section, (int)op->part);
        if (!op->write)
            memset(op->buf, 0xee, op_bytes(s, op));
        return;
    }
    if (!op->spill)
        transfer_record(s, op);
    else if (op->write)
        memcpy(s->spill + op->offset, op->buf, op->bytes);
    else
        memcpy(op->buf, s->spill + op->offset, op->bytes);
}

/* With the lock; picks one of the waiting, moves its bytes and ends it, unless the gate is closed. */
static void run_one(store *s)
{
    const int i = (int)(next_random(s) % (uint64_t)s->nwaiting);
    store_op *op = s->waiting[i];
    s->waiting[i] = s->waiting[--s->nwaiting];
    s->running = op;
    const int chance = (int)(next_random(s) % 1000);
    const bool fails = chance < (op->write ? s->fail_writes : s->fail_reads) || s->problem[0] != '\0';
    const int delay = s->c.delay_us > 0 ? (int)(next_random(s) % (uint64_t)s->c.delay_us) : 0;
    pthread_mutex_unlock(&s->lock);
    if (delay > 20)
        usleep((useconds_t)delay);
    transfer(s, op, fails);
    const bool same = unchanged(s, op);
    pthread_mutex_lock(&s->lock);
    if (!same)
        complain(s, "the buffer changed", op);
    *(op->write ? &s->writes : &s->reads) += 1;
    s->running = NULL;
    if (s->closed) {
        s->held[s->nheld++] = op;
        return;
    }
    pthread_mutex_unlock(&s->lock);
    op->done(op);
    pthread_mutex_lock(&s->lock);
}

static void *run(void *user)
{
    store *s = user;
    pthread_mutex_lock(&s->lock);
    while (s->nwaiting > 0 || s->nheld > 0 || !s->quit) {
        if (s->nheld > 0 && !s->closed) {
            store_op *op = s->held[--s->nheld];
            pthread_mutex_unlock(&s->lock);
            op->done(op);
            pthread_mutex_lock(&s->lock);
        } else if (s->nwaiting > 0) {
            run_one(s);
        } else {
            pthread_cond_wait(&s->work, &s->lock);
        }
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

store *fake_store_open(const fake_config *c)
{
    store *s = calloc(1, sizeof *s);
    s->c = *c;
    s->random = c->seed * 2654435761u + 88172645463325252u;
    s->place = calloc((size_t)c->sections * STORE_PARTS * (size_t)c->slots + 1, sizeof *s->place);
    s->spill = c->spill_bytes > 0 ? malloc(c->spill_bytes) : NULL;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->work, NULL);
    pthread_create(&s->thread, NULL, run, s);
    return s;
}

void fake_store_close(store *s)
{
    pthread_mutex_lock(&s->lock);
    s->quit = true;
    pthread_cond_signal(&s->work);
    pthread_mutex_unlock(&s->lock);
    pthread_join(s->thread, NULL);
    for (size_t i = 0; i < (size_t)s->c.sections * STORE_PARTS * (size_t)s->c.slots; i++)
        free(s->place[i]);
    free(s->place);
    free(s->spill);
    free(s->waiting);
    free(s->held);
    free(s);
}

const char *fake_store_problem(store *s)
{
    pthread_mutex_lock(&s->lock);
    const char *p = s->problem;
    pthread_mutex_unlock(&s->lock);
    return p;
}

void fake_store_fail(store *s, int reads, int writes)
{
    pthread_mutex_lock(&s->lock);
    s->fail_reads = reads;
    s->fail_writes = writes;
    pthread_mutex_unlock(&s->lock);
}

void fake_store_gate(store *s, bool closed)
{
    pthread_mutex_lock(&s->lock);
    s->closed = closed;
    pthread_cond_signal(&s->work);
    pthread_mutex_unlock(&s->lock);
}

const void *fake_store_place(store *s, section_id section, store_part part, int slot)
{
    return slot < 0 || slot >= s->c.slots ? NULL : s->place[place_index(s, section, part, slot)];
}

static uint64_t counter(store *s, const uint64_t *n)
{
    pthread_mutex_lock(&s->lock);
    const uint64_t v = *n;
    pthread_mutex_unlock(&s->lock);
    return v;
}

uint64_t fake_store_writes(store *s) { return counter(s, &s->writes); }
uint64_t fake_store_reads(store *s) { return counter(s, &s->reads); }

checkpoint *fake_checkpoint_open(store *s, int sections, int keep)
{
    checkpoint *c = calloc(1, sizeof *c);
    c->st = s;
    c->sections = sections;
    c->keep = keep;
    pthread_mutex_lock(&s->lock);
    s->names = c;
    pthread_mutex_unlock(&s->lock);
    return c;
}

void fake_checkpoint_close(checkpoint *c)
{
    pthread_mutex_lock(&c->st->lock);
    c->st->names = NULL;
    pthread_mutex_unlock(&c->st->lock);
    for (int i = 0; i < c->kept; i++)
        free(c->named[i]);
    free(c);
}

void fake_checkpoint_commit(checkpoint *c, const record *records)
{
    record *copy = malloc((size_t)c->sections * sizeof *copy);
    memcpy(copy, records, (size_t)c->sections * sizeof *copy);
    pthread_mutex_lock(&c->st->lock);
    if (c->kept == c->keep)
        free(c->named[--c->kept]);
    memmove(&c->named[1], &c->named[0], (size_t)c->kept * sizeof c->named[0]);
    c->named[0] = copy;
    c->kept++;
    pthread_mutex_unlock(&c->st->lock);
}

bool checkpoint_names_slot(const checkpoint *c, section_id s, int slot, bool grad)
{
    pthread_mutex_lock(&c->st->lock);
    const bool named = is_named(c, s, slot, grad);
    pthread_mutex_unlock(&c->st->lock);
    return named;
}

void store_register(store *s, void *base, size_t bytes) { (void)s, (void)base, (void)bytes; }
