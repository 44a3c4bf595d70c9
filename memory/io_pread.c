/* The backend for places where io_uring is forbidden: a few threads that each do one pread or pwrite at a time. Owns the threads
 * of a queue; files come from io_posix.c. Threads: submit and wait from the queue's thread, wake from any. Rule: a queue whose
 * disk hangs is abandoned on close, because a thread inside pread cannot be stopped. */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "memory/io_posix.h"

enum {
    PREAD_THREADS = 16,      /* enough to reach the rate of a virtio or NVMe drive with 1 MiB transfers */
    PREAD_STACK = 256 << 10, /* bytes, thread-local error texts included */
    PREAD_RETRIES = 1000,    /* of EAGAIN */
    PREAD_CLOSE_SECONDS = 5, /* patience with a hung disk */
};

struct io_queue {
    pthread_mutex_t lock;
    pthread_cond_t work, back;
    io_transfer *waiting, **waiting_end, *finished;
    int busy; /* submitted and not yet handed back by queue_wait */
    bool woken, quit;
    int threads, alive;
    pthread_t thread[PREAD_THREADS];
};

static void deadline_in(struct timespec *t, int seconds)
{
    clock_gettime(CLOCK_MONOTONIC, t);
    t->tv_sec += seconds;
}

static void transfer_run(io_transfer *t)
{
    int retries = 0;
    t->rc = MOE_OK;
    t->text[0] = '\0';
    while (t->done < t->bytes) {
        char *p = (char *)t->buf + t->done;
        const size_t left = t->bytes - t->done;
        const size_t n = left < IO_REQUEST_MAX ? left : IO_REQUEST_MAX;
        const off_t at = (off_t)(t->offset + t->done);
        const ssize_t r = t->write ? pwrite(t->file->fd, p, n, at) : pread(t->file->fd, p, n, at);
        if (r > 0) {
            posix_drop_behind(t->file, (uint64_t)at, (size_t)r, t->write);
            t->done += (size_t)r;
            continue;
        }
        if (r < 0 && (errno == EINTR || (errno == EAGAIN && retries++ < PREAD_RETRIES)))
            continue;
        posix_transfer_failed(t, r == 0 ? 0 : errno);
        return;
    }
}

static void *pread_main(void *arg)
{
    io_queue *q = arg;
    pthread_mutex_lock(&q->lock);
    for (;;) {
        while (q->waiting == NULL && !q->quit)
            pthread_cond_wait(&q->work, &q->lock);
        if (q->waiting == NULL)
            break;
        io_transfer *t = q->waiting;
        q->waiting = t->next;
        if (q->waiting == NULL)
            q->waiting_end = &q->waiting;
        pthread_mutex_unlock(&q->lock);
        transfer_run(t);
        pthread_mutex_lock(&q->lock);
        t->next = q->finished;
        q->finished = t;
        pthread_cond_signal(&q->back);
    }
    q->alive--;
    pthread_cond_broadcast(&q->back);
    pthread_mutex_unlock(&q->lock);
    return NULL;
}

static void pread_queue_close(io *self, io_queue *q)
{
    (void)self;
    if (q == NULL)
        return;
    struct timespec until;
    deadline_in(&until, PREAD_CLOSE_SECONDS);
    pthread_mutex_lock(&q->lock);
    q->quit = true;
    pthread_cond_broadcast(&q->work);
    int rc = 0;
    while (q->alive > 0 && rc == 0)
        rc = pthread_cond_timedwait(&q->back, &q->lock, &until);
    const bool hung = q->alive > 0;
    pthread_mutex_unlock(&q->lock);
    for (int i = 0; i < q->threads; i++)
        hung ? pthread_detach(q->thread[i]) : pthread_join(q->thread[i], NULL);
    if (hung)
        return;
    pthread_cond_destroy(&q->work);
    pthread_cond_destroy(&q->back);
    pthread_mutex_destroy(&q->lock);
    free(q);
}

static moe_err pread_queue_open(io *self, io_queue **out, int depth)
{
    *out = NULL;
    io_queue *q = calloc(1, sizeof *q);
    if (q == NULL)
        return moe_fail(MOE_E_OS, "pread queue: out of memory");
    q->waiting_end = &q->waiting;
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&q->lock, NULL);
    pthread_cond_init(&q->work, NULL);
    pthread_cond_init(&q->back, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, PREAD_STACK);
    const int threads = depth < 1 ? 1 : depth < PREAD_THREADS ? depth : PREAD_THREADS;
    pthread_mutex_lock(&q->lock);
    for (; q->threads < threads; q->threads++) {
        if (pthread_create(&q->thread[q->threads], &attr, pread_main, q) != 0)
            break;
        q->alive++;
    }
    pthread_mutex_unlock(&q->lock);
    pthread_attr_destroy(&attr);
    if (q->threads == 0) {
        pread_queue_close(self, q);
        return moe_fail(MOE_E_OS, "pread queue: cannot start a thread");
    }
    *out = q;
    return MOE_OK;
}

static moe_err pread_queue_submit(io_queue *q, io_transfer *list)
{
    pthread_mutex_lock(&q->lock);
    for (io_transfer *t = list, *next; t != NULL; t = next) {
        next = t->next;
        t->next = NULL;
        t->done = 0;
        *q->waiting_end = t;
        q->waiting_end = &t->next;
        q->busy++;
        pthread_cond_signal(&q->work);
    }
    pthread_mutex_unlock(&q->lock);
    return MOE_OK;
}

static moe_err pread_queue_wait(io_queue *q, io_transfer **done)
{
    struct timespec until;
    deadline_in(&until, 1);
    pthread_mutex_lock(&q->lock);
    int rc = 0;
    while (q->finished == NULL && !q->woken && rc == 0)
        rc = q->busy > 0 ? pthread_cond_timedwait(&q->back, &q->lock, &until) : pthread_cond_wait(&q->back, &q->lock);
    *done = q->finished;
    q->finished = NULL;
    q->woken = false;
    for (const io_transfer *t = *done; t != NULL; t = t->next)
        q->busy--;
    pthread_mutex_unlock(&q->lock);
    return MOE_OK;
}

static void pread_queue_wake(io_queue *q)
{
    pthread_mutex_lock(&q->lock);
    q->woken = true;
    pthread_cond_signal(&q->back);
    pthread_mutex_unlock(&q->lock);
}

static void pread_destroy(io *self) { free(self); }

static const io_ops pread_ops = {
    .name = "pread",
    .open = posix_open,
    .close = posix_close,
    .size = posix_size,
    .allocate = posix_allocate,
    .sync = posix_sync,
    .make_dir = posix_make_dir,
    .rename = posix_rename,
    .remove = posix_remove,
    .sync_dir = posix_sync_dir,
    .exists = posix_exists,
    .space = posix_space,
    .list = posix_list,
    .queue_open = pread_queue_open,
    .queue_close = pread_queue_close,
    .queue_submit = pread_queue_submit,
    .queue_wait = pread_queue_wait,
    .queue_wake = pread_queue_wake,
    .destroy = pread_destroy,
};

moe_err io_pread_open(io **out)
{
    *out = malloc(sizeof **out);
    if (*out == NULL)
        return moe_fail(MOE_E_OS, "pread backend: out of memory");
    (*out)->ops = &pread_ops;
    return MOE_OK;
}
