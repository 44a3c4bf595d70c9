#include "memory/budget.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "memory/io.h"

enum { HUGE_PAGE = 2 << 20 }; /* bytes: what MADV_HUGEPAGE can join on x86-64 */

/* One mapping. Blocks are few and large, so a list is enough. */
typedef struct block {
    void *p;
    size_t bytes;
    struct block *next;
} block;

static struct {
    pthread_mutex_t lock;
    uint64_t limit, used; /* limit 0: none set */
    block *blocks;
} book = {.lock = PTHREAD_MUTEX_INITIALIZER};

void budget_set_limit(uint64_t bytes)
{
    pthread_mutex_lock(&book.lock);
    book.limit = bytes;
    pthread_mutex_unlock(&book.lock);
}

uint64_t budget_used(void)
{
    pthread_mutex_lock(&book.lock);
    const uint64_t used = book.used;
    pthread_mutex_unlock(&book.lock);
    return used;
}

/* Maps `bytes` with the start on a multiple of `align`: maps more and gives the ends back. NULL when the kernel refuses. */
static void *map_aligned(size_t bytes, size_t align)
{
    const size_t extra = align > IO_ALIGN ? align : 0;
    char *p = mmap(NULL, bytes + extra, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    if (extra == 0)
        return p;
    const size_t head = (align - (uintptr_t)p % align) % align;
    if (head > 0)
        munmap(p, head);
    if (extra - head > 0)
        munmap(p + head + bytes, extra - head);
    return p + head;
}

/* Counts the bytes before they are mapped, so that two threads cannot both take the last of the budget. */
static moe_err reserve(size_t bytes, const char *name)
{
    moe_err rc = MOE_OK;
    pthread_mutex_lock(&book.lock);
    if (book.limit > 0 && (book.used > book.limit || bytes > book.limit - book.used)) {
        const uint64_t left = book.used < book.limit ? book.limit - book.used : 0;
        rc = moe_fail(
            MOE_E_CONFIG,
            "%s needs %.1f MiB, %.1f of %.1f MiB are left in the memory budget; raise memory.host or make the sizes smaller",
            name, (double)bytes / 1048576.0, (double)left / 1048576.0, (double)book.limit / 1048576.0);
    } else {
        book.used += bytes;
    }
    pthread_mutex_unlock(&book.lock);
    return rc;
}

static void unreserve(size_t bytes)
{
    pthread_mutex_lock(&book.lock);
    book.used -= bytes;
    pthread_mutex_unlock(&book.lock);
}

moe_err budget_alloc(void **out, size_t bytes, const char *name)
{
    *out = NULL;
    if (bytes > SIZE_MAX - 2 * (size_t)HUGE_PAGE)
        return moe_fail(MOE_E_CONFIG, "%s: a block of %zu bytes cannot exist", name, bytes);
    bytes = bytes == 0 ? IO_ALIGN : (bytes + IO_ALIGN - 1) / IO_ALIGN * IO_ALIGN;
    TRY(reserve(bytes, name));
    block *b = malloc(sizeof *b);
    void *p = b == NULL ? NULL : map_aligned(bytes, bytes >= HUGE_PAGE ? HUGE_PAGE : IO_ALIGN);
    if (p == NULL) {
        free(b);
        unreserve(bytes);
        return moe_fail(MOE_E_OS, "%s: the system gave no block of %zu bytes", name, bytes);
    }
    if (bytes >= HUGE_PAGE)
        (void)madvise(p, bytes, MADV_HUGEPAGE); /* a wish: kernels without huge pages refuse it */
    *b = (block){.p = p, .bytes = bytes};
    pthread_mutex_lock(&book.lock);
    b->next = book.blocks;
    book.blocks = b;
    pthread_mutex_unlock(&book.lock);
    *out = p;
    return MOE_OK;
}

void budget_free(void *p)
{
    if (p == NULL)
        return;
    pthread_mutex_lock(&book.lock);
    block **link = &book.blocks;
    while (*link != NULL && (*link)->p != p)
        link = &(*link)->next;
    block *b = *link;
    if (b != NULL) {
        *link = b->next;
        book.used -= b->bytes;
    }
    pthread_mutex_unlock(&book.lock);
    if (b == NULL)
        return;
    munmap(b->p, b->bytes);
    free(b);
}
