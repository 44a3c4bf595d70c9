/* The io table over real files, both backends: long, short and failing transfers, files and folders, and the places where
 * io_uring or locked memory is forbidden. Cases that change the process (seccomp filter, limits, user) run in a child. */
#include <criterion/criterion.h>
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "memory/io.h"
#include "memory/store.h"
#include "tests/memory/disk_fill.h"
#include "tests/memory/scratch.h"

#define OK(call) cr_assert_eq((call), MOE_OK, "%s", moe_error_text())

static const char *const backends[] = {"io_uring", "pread"};

static io *open_or_skip(const char *kind)
{
    char note[256];
    io *d = NULL;
    if (io_open(&d, kind, note) != MOE_OK)
        fprintf(stderr, "skip: %s: %s\n", kind, moe_error_text());
    return d;
}

/* One transfer through a queue of its own. */
static moe_err one(io *d, io_file *f, bool write, void *buf, size_t n, uint64_t at)
{
    io_queue *q = NULL;
    TRY(d->ops->queue_open(d, &q, 2));
    io_transfer t = {.file = f, .write = write, .buf = buf, .bytes = n, .offset = at}, *done = NULL;
    moe_err rc = d->ops->queue_submit(q, &t);
    while (rc == MOE_OK && done == NULL)
        rc = d->ops->queue_wait(q, &done);
    d->ops->queue_close(d, q);
    if (rc == MOE_OK && t.rc != MOE_OK)
        rc = moe_error_set(t.rc, t.text);
    return rc;
}

static void each_backend(void (*body)(io *d, const scratch *s))
{
    for (int i = 0; i < 2; i++) {
        scratch s;
        scratch_make(&s);
        io *d = open_or_skip(backends[i]);
        if (d != NULL)
            body(d, &s);
        io_close(d);
        scratch_remove(&s);
    }
}

static void long_transfers(io *d, const scratch *s)
{
    enum { N = 2 * IO_REQUEST_MAX + 3 * IO_ALIGN };
    char path[SCRATCH_PATH];
    scratch_path(s, path, "long");
    const int modes[] = {scratch_has_direct(s) ? IO_DIRECT : 0, 0, IO_DROP};
    char *buf = fill_alloc(N);
    for (int m = 0; m < 3; m++) {
        io_file *f;
        uint64_t size, sum_out, sum_in;
        OK(d->ops->open(d, &f, path, IO_CREATE | modes[m]));
        OK(d->ops->allocate(d, f, N + IO_ALIGN));
        OK(d->ops->size(d, f, &size));
        cr_assert_eq(size, N + IO_ALIGN);
        fill_bytes(buf, N, 1);
        OK(one(d, f, true, buf, N, IO_ALIGN)); /* longer than one request */
        memset(buf, 0, N);
        OK(one(d, f, false, buf, N, IO_ALIGN));
        cr_assert_eq(fill_differs(buf, N, 1), N);
        fill_bytes(buf, N, 2);
        OK(io_transfer_range(
            d, &(io_range){.file = f, .write = true, .buf = buf, .bytes = N, .sum = &sum_out, .sum_bytes = N - 100}));
        memset(buf, 0, N);
        OK(io_transfer_range(d, &(io_range){.file = f, .buf = buf, .bytes = N, .sum = &sum_in, .sum_bytes = N - 100}));
        cr_assert_eq(fill_differs(buf, N, 2), N);
        cr_assert_eq(sum_in, sum_out);
        OK(d->ops->sync(d, f));
        cr_assert_eq(one(d, f, false, buf, IO_REQUEST_MAX, N), MOE_E_IO); /* past the end */
        cr_assert(strstr(moe_error_text(), path) && strstr(moe_error_text(), "the file ends there"), "%s", moe_error_text());
        d->ops->close(d, f);
        OK(d->ops->remove(d, path));
        OK(d->ops->remove(d, path)); /* absent is fine */
    }
    free(buf);
}

Test(io, long_transfers) { each_backend(long_transfers); }

typedef struct names {
    int n;
    bool a, b;
} names;

static void see_name(void *user, const char *name)
{
    names *seen = user;
    seen->n++;
    seen->a |= strcmp(name, "a") == 0;
    seen->b |= strcmp(name, "b") == 0;
}

static void files_and_folders(io *d, const scratch *s)
{
    char dir[SCRATCH_PATH], a[SCRATCH_PATH + 8], b[SCRATCH_PATH + 8];
    scratch_path(s, dir, "folder");
    snprintf(a, sizeof a, "%s/a", dir);
    snprintf(b, sizeof b, "%s/b", dir);
    cr_assert_not(d->ops->exists(d, dir));
    OK(io_make_dir(d, dir));
    OK(io_make_dir(d, dir));
    OK(io_replace_file(d, a, "one", 3));
    OK(io_replace_file(d, a, "three", 5));
    OK(io_write_file(d, b, "", 0));
    void *data;
    size_t n;
    OK(io_read_file(d, a, 5, &data, &n));
    cr_assert(n == 5 && memcmp(data, "three", 5) == 0);
    free(data);
    cr_assert_eq(io_read_file(d, a, 4, &data, &n), MOE_E_DATA);
    cr_assert_null(data);
    OK(io_read_file(d, b, 4, &data, &n));
    cr_assert_eq(n, 0);
    free(data);
    names seen = {0};
    OK(d->ops->list(d, dir, see_name, &seen));
    cr_assert(seen.n == 2 && seen.a && seen.b);
    io_space space;
    OK(d->ops->space(d, dir, &space));
    cr_assert_gt(space.free_bytes, 0);
    OK(d->ops->remove(d, b));
    cr_assert_eq(io_read_file(d, b, 4, &data, &n), MOE_E_NOINPUT);
    cr_assert(strstr(moe_error_text(), b));
    io_file *f = NULL;
    cr_assert_eq(d->ops->open(d, &f, a, IO_CREATE), MOE_E_CREATE);
    cr_assert_null(f);
    cr_assert_eq(io_make_dir(d, a), MOE_E_CREATE);
    cr_assert(strstr(moe_error_text(), "a file of this name"), "%s", moe_error_text());
    snprintf(b, sizeof b, "%s/no/b", dir);
    cr_assert_eq(io_write_file(d, b, "x", 1), MOE_E_CREATE);
}

Test(io, files_and_folders) { each_backend(files_and_folders); }

static void *wake_later(void *arg)
{
    void **both = arg;
    usleep(20000);
    ((io *)both[0])->ops->queue_wake(both[1]);
    return NULL;
}

static void wakes(io *d, const scratch *s)
{
    (void)s;
    io_queue *q;
    OK(d->ops->queue_open(d, &q, 4));
    d->ops->queue_wake(q); /* before the wait */
    io_transfer *done;
    OK(d->ops->queue_wait(q, &done));
    cr_assert_null(done);
    for (int i = 0; i < 3; i++) {
        pthread_t t;
        void *both[] = {d, q};
        pthread_create(&t, NULL, wake_later, both);
        OK(d->ops->queue_wait(q, &done));
        cr_assert_null(done);
        pthread_join(t, NULL);
    }
    d->ops->queue_close(d, q);
}

Test(io, wakes, .timeout = 20) { each_backend(wakes); }

/* More transfers than the depth, handed over as one list. */
static void many_at_once(io *d, const scratch *s)
{
    enum { N = 100 };
    char path[SCRATCH_PATH];
    scratch_path(s, path, "many");
    io_file *f;
    io_queue *q;
    OK(d->ops->open(d, &f, path, IO_CREATE));
    OK(d->ops->queue_open(d, &q, 3));
    static io_transfer t[N];
    char *buf = fill_alloc(N * IO_ALIGN);
    for (int pass = 0; pass < 2; pass++) {
        for (int i = 0; i < N; i++) {
            t[i] = (io_transfer){.file = f,
                                 .write = pass == 0,
                                 .buf = buf + (size_t)i * IO_ALIGN,
                                 .bytes = IO_ALIGN,
                                 .offset = (uint64_t)i * IO_ALIGN,
                                 .next = i + 1 < N ? &t[i + 1] : NULL};
            if (pass == 0)
                fill_bytes(t[i].buf, IO_ALIGN, (uint64_t)i);
            else
                memset(t[i].buf, 0, IO_ALIGN);
        }
        OK(d->ops->queue_submit(q, t));
        int back = 0;
        while (back < N) {
            io_transfer *done;
            OK(d->ops->queue_wait(q, &done));
            for (; done != NULL; done = done->next, back++)
                cr_assert_eq(done->rc, MOE_OK, "%s", done->text);
        }
        for (int i = 0; i < N; i++)
            cr_assert_eq(fill_differs(buf + (size_t)i * IO_ALIGN, IO_ALIGN, (uint64_t)i), IO_ALIGN);
    }
    d->ops->queue_close(d, q);
    d->ops->close(d, f);
    free(buf);
}

Test(io, many_at_once, .timeout = 20) { each_backend(many_at_once); }

Test(io, unknown_backend)
{
    char note[256];
    io *d = NULL;
    cr_assert_eq(io_open(&d, "aio", note), MOE_E_CONFIG);
    cr_assert_null(d);
    cr_assert(strstr(moe_error_text(), "auto, io_uring or pread"));
}

/* --- in a child --------------------------------------------------------------------------------------------------------------
 */

/* 0, or the line of the check that failed in the child. */
static int in_child(int (*body)(const scratch *s), const scratch *s)
{
    fflush(NULL);
    const pid_t pid = fork();
    if (pid == 0)
        _exit(body(s));
    int status = 0;
    cr_assert_eq(waitpid(pid, &status, 0), pid);
    cr_assert(WIFEXITED(status), "the child died of signal %d", WTERMSIG(status));
    return WEXITSTATUS(status);
}

#define CHILD(cond)                                                                                                              \
    do {                                                                                                                         \
        if (!(cond)) {                                                                                                           \
            fprintf(stderr, "child: %s:%d: %s (%s)\n", __FILE__, __LINE__, #cond, moe_error_text());                             \
            return 1;                                                                                                            \
        }                                                                                                                        \
    } while (0)

static int store_round_trip(io *d, const char *dir, bool buffered)
{
    const char *dirs[] = {dir};
    const store_config c = {.io = d,
                            .dirs = dirs,
                            .ndirs = 1,
                            .sections = 1,
                            .part_bytes = {IO_CHUNK + 1, 1, 1, 1, 1},
                            .slots = 1,
                            .create = true,
                            .buffered = buffered};
    store *s;
    CHILD(store_open(&s, &c) == MOE_OK);
    char *buf = fill_alloc(2 * IO_CHUNK);
    store_register(s, buf, 2 * IO_CHUNK); /* may be refused: only speed */
    latch l = LATCH_INIT;
    fill_bytes(buf, IO_CHUNK + 1, 5);
    store_op op = {.write = true, .buf = buf};
    latch_submit(s, &op, &l);
    latch_wait(&l);
    CHILD(op.rc == MOE_OK);
    memset(buf, 0, IO_CHUNK + 1);
    op.write = false;
    latch_submit(s, &op, &l);
    latch_wait(&l);
    CHILD(op.rc == MOE_OK && fill_differs(buf, IO_CHUNK + 1, 5) == IO_CHUNK + 1);
    CHILD(store_sync(s) == MOE_OK);
    store_close(s);
    free(buf);
    return 0;
}

static int seccomp_body(const scratch *s)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_io_uring_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    const struct sock_fprog program = {sizeof code / sizeof code[0], code};
    CHILD(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    CHILD(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
    char note[256];
    io *d = NULL;
    CHILD(io_open(&d, "io_uring", note) == MOE_E_OS);
    CHILD(io_open(&d, "auto", note) == MOE_OK);
    CHILD(strcmp(d->ops->name, "pread") == 0);
    CHILD(strstr(note, "Operation not permitted") != NULL && strstr(note, "pread threads") != NULL);
    char dir[SCRATCH_PATH];
    scratch_path(s, dir, "store");
    const int rc = store_round_trip(d, dir, !scratch_has_direct(s));
    io_close(d);
    return rc;
}

Test(io, io_uring_forbidden_by_seccomp)
{
    scratch s;
    scratch_make(&s);
    cr_assert_eq(in_child(seccomp_body, &s), 0);
    scratch_remove(&s);
}

/* An ordinary user (root may lock what it likes) with 64 KiB of lockable memory: nothing can be registered, everything works. */
static int memlock_body(const scratch *s)
{
    const struct rlimit small = {64 << 10, 64 << 10};
    CHILD(chmod(s->path, 0777) == 0);
    CHILD(setrlimit(RLIMIT_MEMLOCK, &small) == 0);
    if (geteuid() == 0)
        CHILD(setgid(65534) == 0 && setuid(65534) == 0);
    char note[256];
    io *d = NULL;
    CHILD(io_open(&d, "auto", note) == MOE_OK);
    char dir[SCRATCH_PATH];
    scratch_path(s, dir, "store");
    const int rc = store_round_trip(d, dir, !scratch_has_direct(s));
    io_close(d);
    return rc;
}

Test(io, memlock_64_kib)
{
    scratch s;
    scratch_make(&s);
    cr_assert_eq(in_child(memlock_body, &s), 0);
    scratch_remove(&s);
}

/* The file-size limit cuts a write short: it is continued, and then fails with the place where it stopped. */
static int short_write_body(const scratch *s)
{
    const struct rlimit limit = {IO_CHUNK + 8192, IO_CHUNK + 8192};
    signal(SIGXFSZ, SIG_IGN);
    CHILD(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    char path[SCRATCH_PATH];
    scratch_path(s, path, "short");
    char *buf = fill_alloc(2 * IO_CHUNK);
    for (int i = 0; i < 2; i++) {
        char note[256];
        io *d = NULL;
        if (io_open(&d, backends[i], note) != MOE_OK)
            continue;
        io_file *f;
        CHILD(d->ops->open(d, &f, path, IO_CREATE) == MOE_OK);
        CHILD(one(d, f, true, buf, 2 * IO_CHUNK, 0) == MOE_E_IO);
        CHILD(strstr(moe_error_text(), "at offset 1056768: File too large") != NULL);
        CHILD(d->ops->allocate(d, f, 2 * IO_CHUNK) == MOE_E_IO);
        uint64_t size;
        CHILD(d->ops->size(d, f, &size) == MOE_OK && size == IO_CHUNK + 8192);
        d->ops->close(d, f);
        CHILD(d->ops->remove(d, path) == MOE_OK);
        io_close(d);
    }
    free(buf);
    return 0;
}

Test(io, short_write)
{
    scratch s;
    scratch_make(&s);
    cr_assert_eq(in_child(short_write_body, &s), 0);
    scratch_remove(&s);
}
