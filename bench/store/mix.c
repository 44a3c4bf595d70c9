#include "bench/store/mix.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

typedef struct visit {
    store_op op[STORE_PARTS];
    char *buf[STORE_PARTS];
    int left;     /* ops under way */
    bool writing; /* the second half of the visit */
    section_id section;
    struct mix *owner;
} visit;

struct mix {
    store *store;
    int32_t sections;
    int under_way;
    visit *visits;
    char *block;
    size_t block_bytes;
    uint64_t *sum; /* [sections, STORE_PARTS] of what `slot` holds        */
    uint8_t *slot; /* [sections, STORE_PARTS] where the part was last written */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    moe_err rc;
    char text[256];
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static size_t pad(size_t n) { return (n + IO_ALIGN - 1) & ~(size_t)(IO_ALIGN - 1); }

static void visit_done(store_op *op)
{
    visit *v = op->user;
    mix *m = v->owner;
    pthread_mutex_lock(&m->lock);
    if (op->rc != MOE_OK && m->rc == MOE_OK) {
        m->rc = op->rc;
        memcpy(m->text, op->text, sizeof m->text);
    }
    if (op->write) {
        m->sum[(size_t)v->section * STORE_PARTS + op->part] = op->sum;
        m->slot[(size_t)v->section * STORE_PARTS + op->part] = (uint8_t)op->slot;
    }
    if (--v->left == 0)
        pthread_cond_signal(&m->changed);
    pthread_mutex_unlock(&m->lock);
}

/* With the lock held: the parts of one direction of a visit. */
static void start_ops(mix *m, visit *v, bool write, unsigned parts)
{
    v->writing = write;
    for (int p = 0; p < STORE_PARTS; p++)
        v->left += parts >> p & 1;
    pthread_mutex_unlock(&m->lock);
    for (int p = 0; p < STORE_PARTS; p++) {
        if (!(parts >> p & 1))
            continue;
        const size_t at = (size_t)v->section * STORE_PARTS + (size_t)p;
        v->op[p] = (store_op){.write = write,
                              .priority = write ? STORE_WRITE : STORE_PREFETCH,
                              .section = v->section,
                              .part = (store_part)p,
                              .slot = m->slot[at] ^ (write ? 1 : 0),
                              .buf = v->buf[p],
                              .sum = m->sum[at],
                              .done = visit_done,
                              .user = v};
        store_submit(m->store, &v->op[p]);
    }
    pthread_mutex_lock(&m->lock);
}

enum { W = 1 << STORE_W, M = 1 << STORE_M, V = 1 << STORE_V, G = 1 << STORE_G };

static unsigned reads_of(mix_kind k) { return k == MIX_BACKWARD ? W : k == MIX_FILL ? 0 : W | M | V | G; }

static unsigned writes_of(mix_kind k)
{
    return k == MIX_FORWARD ? W | M | V : k == MIX_BACKWARD ? G : k == MIX_FILL ? W | M | V | G : 0;
}

/* With the lock held. */
static void start_visit(mix *m, visit *v, mix_kind kind, section_id s)
{
    v->section = s;
    const bool fill = reads_of(kind) == 0;
    start_ops(m, v, fill, fill ? writes_of(kind) : reads_of(kind));
}

moe_err mix_run(mix *m, mix_kind kind, double seconds, int64_t sections)
{
    const double until = now() + seconds;
    int64_t started = 0;
    int busy = 0;
    pthread_mutex_lock(&m->lock);
    for (;;) {
        for (int i = 0; i < m->under_way; i++) {
            visit *v = &m->visits[i];
            if (v->left > 0)
                continue;
            if (v->section >= 0 && !v->writing && writes_of(kind) != 0 && m->rc == MOE_OK) {
                start_ops(m, v, true, writes_of(kind));
                continue;
            }
            if (v->section >= 0) {
                v->section = -1;
                busy--;
            }
            if ((started < sections || now() < until) && m->rc == MOE_OK) {
                start_visit(m, v, kind, (section_id)(started++ % m->sections));
                busy++;
            }
        }
        if (busy == 0)
            break;
        bool any = false;
        for (int i = 0; i < m->under_way; i++)
            any |= m->visits[i].section >= 0 && m->visits[i].left == 0;
        if (!any)
            pthread_cond_wait(&m->changed, &m->lock);
    }
    pthread_mutex_unlock(&m->lock);
    return m->rc == MOE_OK ? MOE_OK : moe_error_set(m->rc, m->text);
}

moe_err mix_open(mix **out, store *st, const store_config *c, int under_way, bool registered)
{
    *out = NULL;
    mix *m = calloc(1, sizeof *m);
    if (m == NULL)
        return moe_fail(MOE_E_OS, "bench: out of memory");
    pthread_mutex_init(&m->lock, NULL);
    pthread_cond_init(&m->changed, NULL);
    m->store = st;
    m->sections = c->sections;
    m->under_way = under_way;
    size_t record = 0;
    for (int p = 0; p < STORE_PARTS; p++)
        record += pad(c->part_bytes[p]);
    m->block_bytes = record * (size_t)under_way;
    m->visits = calloc((size_t)under_way, sizeof *m->visits);
    m->sum = calloc((size_t)c->sections * STORE_PARTS, sizeof *m->sum);
    m->slot = calloc((size_t)c->sections, STORE_PARTS);
    m->block = mmap(NULL, m->block_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (m->visits == NULL || m->sum == NULL || m->slot == NULL || m->block == MAP_FAILED) {
        mix_close(m);
        return moe_fail(MOE_E_OS, "bench: out of memory");
    }
    madvise(m->block, m->block_bytes, MADV_HUGEPAGE);
    for (size_t i = 0; i < m->block_bytes / 8; i++)
        ((uint64_t *)(void *)m->block)[i] = i * 0x9e3779b97f4a7c15ULL;
    char *p = m->block;
    for (int i = 0; i < under_way; i++) {
        m->visits[i].owner = m;
        m->visits[i].section = -1;
        for (int k = 0; k < STORE_PARTS; k++) {
            m->visits[i].buf[k] = p;
            p += pad(c->part_bytes[k]);
        }
    }
    if (registered)
        store_register(st, m->block, m->block_bytes);
    *out = m;
    return MOE_OK;
}

void mix_close(mix *m)
{
    if (m == NULL)
        return;
    if (m->block != NULL && m->block != MAP_FAILED)
        munmap(m->block, m->block_bytes);
    free(m->visits);
    free(m->sum);
    free(m->slot);
    pthread_cond_destroy(&m->changed);
    pthread_mutex_destroy(&m->lock);
    free(m);
}
