/* The io_uring backend. Owns the rings; files come from io_posix.c. No kernel polling threads (they burn a core) and no polled
 * completions (virtio has none). Registered files and buffers, and the newer task-work flags, are used where the kernel allows
 * them and silently left out where not: they change the speed only. Threads: a queue is opened, used and closed by one thread;
 * queue_wake from any. */
#include <errno.h>
#include <liburing.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "memory/io_posix.h"

enum {
    FIXED_FILES = 64,
    RETRIES_MAX = 4096, /* of EAGAIN in a row */
};
#define FIXED_BUFFER ((size_t)1 << 30) /* bytes: the kernel's limit for one registered buffer */

typedef struct uring {
    io base;
    atomic_uint_fast64_t queues; /* opened so far: their numbers */
} uring;

struct io_queue {
    struct io_uring ring;
    uint64_t number;
    int depth, in_flight;          /* in_flight: requests with the kernel */
    int submitted;                 /* transfers not yet handed back       */
    io_transfer *waiting, **waiting_end; /* beyond the depth                    */
    io_transfer *finished;
    int event_fd;
    bool event_armed, woken;
    uint64_t event_value;
    bool files_registered;
    int files;
    char *fixed_base; /* registered memory, NULL: none */
    size_t fixed_bytes;
    int retries;
};

/* The kernels offer these one after the other; each step down costs some microseconds per request. */
static const unsigned ring_flags[] = {
    IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN, /* 6.1 */
    IORING_SETUP_COOP_TASKRUN,                               /* 5.19 */
    0,
};

static int ring_open(struct io_uring *ring, unsigned entries)
{
    int rc = -EINVAL;
    for (size_t i = 0; i < sizeof ring_flags / sizeof ring_flags[0] && rc == -EINVAL; i++)
        rc = io_uring_queue_init(entries, ring, ring_flags[i]);
    return rc;
}

/* --- requests ----------------------------------------------------------------------------------------------------------------
 */

static struct io_uring_sqe *next_sqe(io_queue *q)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&q->ring);
    if (sqe == NULL) { /* full: hand over what is there */
        io_uring_submit(&q->ring);
        sqe = io_uring_get_sqe(&q->ring);
    }
    return sqe;
}

static bool arm_event(io_queue *q)
{
    if (q->event_armed)
        return true;
    struct io_uring_sqe *sqe = next_sqe(q);
    if (sqe == NULL)
        return false;
    io_uring_prep_read(sqe, q->event_fd, &q->event_value, sizeof q->event_value, 0);
    io_uring_sqe_set_data(sqe, q);
    q->event_armed = true;
    return true;
}

/* The file's index in this queue's table, -1 when it is not in it. */
static int fixed_file(io_queue *q, io_file *f)
{
    if (f->fixed_queue == q->number)
        return f->fixed;
    f->fixed_queue = q->number;
    f->fixed = -1;
    if (q->files_registered && q->files < FIXED_FILES &&
        io_uring_register_files_update(&q->ring, (unsigned)q->files, &f->fd, 1) == 1)
        f->fixed = q->files++;
    return f->fixed;
}

/* Index of the registered buffer that holds all of [p, p + n), -1: none. */
static int fixed_buffer(const io_queue *q, const char *p, size_t n)
{
    if (q->fixed_base == NULL || p < q->fixed_base || p + n > q->fixed_base + q->fixed_bytes)
        return -1;
    const size_t first = (size_t)(p - q->fixed_base) / FIXED_BUFFER, last = (size_t)(p + n - 1 - q->fixed_base) / FIXED_BUFFER;
    return first == last ? (int)first : -1;
}

/* Queues the next request of a transfer; false when the ring takes no more now. */
static bool start_request(io_queue *q, io_transfer *t)
{
    struct io_uring_sqe *sqe = next_sqe(q);
    if (sqe == NULL)
        return false;
    char *p = (char *)t->buf + t->done;
    const size_t left = t->bytes - t->done;
    const unsigned n = (unsigned)(left < IO_REQUEST_MAX ? left : IO_REQUEST_MAX);
    const int file = fixed_file(q, t->file), buffer = fixed_buffer(q, p, n);
    const int fd = file >= 0 ? file : t->file->fd;
    const uint64_t at = t->offset + t->done;
    if (buffer >= 0 && t->write)
        io_uring_prep_write_fixed(sqe, fd, p, n, at, buffer);
    else if (buffer >= 0)
        io_uring_prep_read_fixed(sqe, fd, p, n, at, buffer);
    else if (t->write)
        io_uring_prep_write(sqe, fd, p, n, at);
    else
        io_uring_prep_read(sqe, fd, p, n, at);
    if (file >= 0)
        io_uring_sqe_set_flags(sqe, IOSQE_FIXED_FILE);
    io_uring_sqe_set_data(sqe, t);
    q->in_flight++;
    return true;
}

static void finish(io_queue *q, io_transfer *t)
{
    t->next = q->finished;
    q->finished = t;
}

static void start_waiting(io_queue *q)
{
    while (q->waiting != NULL && q->in_flight < q->depth) {
        io_transfer *t = q->waiting;
        if (t->done < t->bytes && !start_request(q, t))
            return;
        q->waiting = t->next;
        if (q->waiting == NULL)
            q->waiting_end = &q->waiting;
        if (t->done == t->bytes)
            finish(q, t);
    }
}

static void put_back(io_queue *q, io_transfer *t)
{
    t->next = q->waiting;
    q->waiting = t;
    if (t->next == NULL)
        q->waiting_end = &t->next;
}

/* What the kernel says about the current request of t. */
static void request_done(io_queue *q, io_transfer *t, int res)
{
    q->in_flight--;
    if (res > 0) {
        posix_drop_behind(t->file, t->offset + t->done, (size_t)res, t->write);
        t->done += (size_t)res;
        q->retries = 0;
        if (t->done == t->bytes)
            finish(q, t);
        else
            put_back(q, t); /* short: go on where it ended */
        return;
    }
    if (res == -EINTR || (res == -EAGAIN && q->retries++ < RETRIES_MAX)) {
        put_back(q, t);
        return;
    }
    posix_transfer_failed(t, -res);
    finish(q, t);
}

/* --- the table ---------------------------------------------------------------------------------------------------------------
 */

static void uring_queue_close(io *self, io_queue *q)
{
    (void)self;
    if (q == NULL)
        return;
    io_uring_queue_exit(&q->ring);
    close(q->event_fd);
    free(q);
}

static moe_err uring_queue_open(io *self, io_queue **out, int depth)
{
    *out = NULL;
    uring *u = (uring *)self;
    io_queue *q = calloc(1, sizeof *q);
    if (q == NULL)
        return moe_fail(MOE_E_OS, "io_uring: out of memory");
    q->depth = depth < 1 ? 1 : depth;
    q->waiting_end = &q->waiting;
    q->number = 1 + (uint64_t)atomic_fetch_add(&u->queues, 1);
    q->event_fd = eventfd(0, EFD_CLOEXEC);
    const int rc = q->event_fd < 0 ? -errno : ring_open(&q->ring, (unsigned)q->depth + 8);
    if (rc < 0) {
        if (q->event_fd >= 0)
            close(q->event_fd);
        free(q);
        return moe_fail(MOE_E_OS, "io_uring: cannot open a ring of %d requests: %s", depth, strerror(-rc));
    }
    q->files_registered = io_uring_register_files_sparse(&q->ring, FIXED_FILES) == 0;
    *out = q;
    return MOE_OK;
}

static moe_err hand_over(io_queue *q)
{
    const int rc = io_uring_submit(&q->ring);
    if (rc < 0 && rc != -EINTR && rc != -EAGAIN && rc != -EBUSY) /* these three: the next wait hands them over */
        return moe_fail(MOE_E_IO, "io_uring: submit failed: %s", strerror(-rc));
    return MOE_OK;
}

static moe_err uring_queue_submit(io_queue *q, io_transfer *list)
{
    for (io_transfer *t = list, *next; t != NULL; t = next) {
        next = t->next;
        t->next = NULL;
        t->done = 0;
        t->rc = MOE_OK;
        t->text[0] = '\0';
        *q->waiting_end = t;
        q->waiting_end = &t->next;
        q->submitted++;
    }
    start_waiting(q);
    return hand_over(q);
}

static void reap(io_queue *q)
{
    struct io_uring_cqe *cqe;
    unsigned head, n = 0;
    io_uring_for_each_cqe(&q->ring, head, cqe)
    {
        n++;
        void *data = io_uring_cqe_get_data(cqe);
        if (data == q) {
            q->event_armed = false;
            q->woken = true;
        } else {
            request_done(q, data, cqe->res);
        }
    }
    io_uring_cq_advance(&q->ring, n);
    start_waiting(q);
}

static moe_err uring_queue_wait(io_queue *q, io_transfer **done)
{
    *done = NULL;
    struct __kernel_timespec second = {.tv_sec = 1};
    for (;;) {
        struct io_uring_cqe *cqe = NULL;
        if (!arm_event(q))
            return moe_fail(MOE_E_IO, "io_uring: the ring takes no requests");
        const int rc = q->finished != NULL
                           ? io_uring_submit(&q->ring)
                           : io_uring_submit_and_wait_timeout(&q->ring, &cqe, 1, q->submitted > 0 ? &second : NULL, NULL);
        if (rc < 0 && rc != -ETIME && rc != -EINTR && rc != -EAGAIN && rc != -EBUSY)
            return moe_fail(MOE_E_IO, "io_uring: wait failed: %s", strerror(-rc));
        reap(q);
        if (q->finished != NULL || q->woken || rc == -ETIME)
            break;
    }
    q->woken = false;
    *done = q->finished;
    q->finished = NULL;
    for (const io_transfer *t = *done; t != NULL; t = t->next)
        q->submitted--;
    return hand_over(q); /* what was continued */
}

static void uring_queue_wake(io_queue *q)
{
    const uint64_t one = 1;
    ssize_t n;
    do
        n = write(q->event_fd, &one, sizeof one);
    while (n < 0 && errno == EINTR);
}

static bool uring_queue_register(io_queue *q, void *base, size_t bytes)
{
    if (q->fixed_base != NULL || bytes == 0)
        return false;
    const unsigned n = (unsigned)((bytes + FIXED_BUFFER - 1) / FIXED_BUFFER);
    struct iovec *v = calloc(n, sizeof *v);
    if (v == NULL)
        return false;
    for (unsigned i = 0; i < n; i++) {
        const size_t from = i * FIXED_BUFFER;
        v[i] = (struct iovec){(char *)base + from, bytes - from < FIXED_BUFFER ? bytes - from : FIXED_BUFFER};
    }
    const bool ok = io_uring_register_buffers(&q->ring, v, n) == 0;
    free(v);
    if (ok) {
        q->fixed_base = base;
        q->fixed_bytes = bytes;
    }
    return ok;
}

static void uring_destroy(io *self) { free(self); }

static const io_ops uring_ops = {
    .name = "io_uring",
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
    .queue_open = uring_queue_open,
    .queue_close = uring_queue_close,
    .queue_submit = uring_queue_submit,
    .queue_wait = uring_queue_wait,
    .queue_wake = uring_queue_wake,
    .queue_register = uring_queue_register,
    .destroy = uring_destroy,
};

moe_err io_uring_backend_open(io **out, bool *unavailable)
{
    *out = NULL;
    *unavailable = false;
    struct io_uring ring;
    const int rc = ring_open(&ring, 8);
    if (rc < 0) {
        *unavailable = true;
        return moe_fail(MOE_E_OS, "io_uring is not available (%s)", strerror(-rc));
    }
    const bool recent = (ring.features & IORING_FEAT_EXT_ARG) != 0; /* 5.11: a wait with a deadline of its own */
    io_uring_queue_exit(&ring);
    if (!recent) {
        *unavailable = true;
        return moe_fail(MOE_E_OS, "io_uring of this kernel is too old (before 5.11)");
    }
    uring *u = calloc(1, sizeof *u);
    if (u == NULL)
        return moe_fail(MOE_E_OS, "io_uring backend: out of memory");
    u->base.ops = &uring_ops;
    *out = &u->base;
    return MOE_OK;
}
