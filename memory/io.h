/* The one table through which every byte reaches a disk: files, folders, and queues of asynchronous transfers.
 * Backends: io_uring, pread threads (where io_uring is forbidden), and in the tests a simulated disk that can stop at the n-th
 * operation and drop, tear (512 B) or reorder any write that was not synced.
 * All calls return moe_err with the path in the sentence. Transfers are the only asynchronous calls. */
#ifndef MOE_MEMORY_IO_H
#define MOE_MEMORY_IO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/error.h"

enum { IO_ALIGN = 4096 }; /* bytes: O_DIRECT alignment of buffers, offsets and lengths */

typedef struct io io;           /* a backend with its state          */
typedef struct io_file io_file; /* an open file                      */
typedef struct io_queue io_queue;

typedef enum io_mode {
    IO_READ,           /* existing file, read only                                         */
    IO_WRITE,          /* existing file, read and write                                    */
    IO_CREATE,         /* new file, read and write; MOE_E_CREATE when it exists            */
    IO_DIRECT = 8,     /* flag: O_DIRECT; MOE_E_CONFIG where the file system has none      */
    IO_DROP = 16,      /* flag: page cache is written out and dropped behind each transfer */
} io_mode;

/* One transfer. The caller fills the first part and keeps it alive until it comes back from io_queue_wait. */
typedef struct io_transfer {
    io_file *file;
    bool write;
    void *buf;
    size_t bytes;
    uint64_t offset;
    void *user;

    moe_err rc; /* out; short transfers are continued inside, an end of file inside the range is MOE_E_IO */
    char text[256];
    struct io_transfer *next; /* private */
    size_t done;              /* private */
} io_transfer;

/* The file system a folder lives on. */
typedef struct io_space {
    uint64_t free_bytes; /* for this user */
    uint64_t device;     /* equal for folders of one file system */
    bool in_memory;      /* tmpfs, ramfs */
} io_space;

typedef void (*io_name_fn)(void *user, const char *name);

typedef struct io_ops {
    const char *name;
    moe_err (*open)(io *self, io_file **out, const char *path, int mode);
    void (*close)(io *self, io_file *f);
    moe_err (*size)(io *self, io_file *f, uint64_t *bytes);
    moe_err (*allocate)(io *self, io_file *f, uint64_t bytes); /* reserves blocks; MOE_E_IO when the disk is full */
    moe_err (*sync)(io *self, io_file *f);                     /* fdatasync */
    moe_err (*make_dir)(io *self, const char *path);           /* MOE_OK when it is there */
    moe_err (*rename)(io *self, const char *from, const char *to);
    moe_err (*remove)(io *self, const char *path);             /* MOE_OK when it is absent */
    moe_err (*sync_dir)(io *self, const char *path);
    bool (*exists)(io *self, const char *path);
    moe_err (*space)(io *self, const char *dir, io_space *out);
    moe_err (*list)(io *self, const char *dir, io_name_fn each, void *user); /* names without "." and "..", in no order */
    /* A queue belongs to one thread, except io_queue_wake. */
    moe_err (*queue_open)(io *self, io_queue **out, int depth);
    void (*queue_close)(io *self, io_queue *q);
    moe_err (*queue_submit)(io_queue *q, io_transfer *list);   /* linked by next */
    /* Waits for at least one completion or a wake, with transfers in flight at most about a second, so that the caller can look at its
     * deadlines; *done is a list linked by next, NULL when nothing came back. */
    moe_err (*queue_wait)(io_queue *q, io_transfer **done);
    void (*queue_wake)(io_queue *q); /* from any thread */
    /* Optional (NULL): pins [base, base + bytes) for faster transfers until the queue closes. Only speed: false where it is not allowed. */
    bool (*queue_register)(io_queue *q, void *base, size_t bytes);
    void (*destroy)(io *self);
} io_ops;

struct io {
    const io_ops *ops;
};

/* kind "auto" (io_uring, else pread with the reason in *note), "io_uring" or "pread". `note`: at least 256 bytes, "" when nothing
 * is to be said. */
moe_err io_open(io **out, const char *kind, char *note) MOE_MUST_CHECK;
void io_close(io *self);

/* Whole small files (manifests, JSON), through the same table. read: *data is malloc'ed, refuses more than `limit` bytes. */
moe_err io_read_file(io *self, const char *path, size_t limit, void **data, size_t *bytes) MOE_MUST_CHECK;
/* Makes path anew (an old one is removed) and syncs it; its name is durable after sync_dir. */
moe_err io_write_file(io *self, const char *path, const void *data, size_t bytes) MOE_MUST_CHECK;
/* Writes path.tmp, syncs it, renames it over path, syncs the folder. */
moe_err io_replace_file(io *self, const char *path, const void *data, size_t bytes) MOE_MUST_CHECK;
/* Makes the folder (one level) and syncs its parent. */
moe_err io_make_dir(io *self, const char *path) MOE_MUST_CHECK;
/* Syncs the folder that holds `path`. */
moe_err io_sync_parent(io *self, const char *path) MOE_MUST_CHECK;

/* One long transfer, cut into chunks of IO_CHUNK with several in flight; blocks. `sum`, when not NULL, receives the XXH3-64 of the first
 * sum_bytes, computed while the disk works. */
typedef struct io_range {
    io_file *file;
    bool write;
    void *buf;
    size_t bytes;
    uint64_t offset;
    uint64_t *sum;
    size_t sum_bytes;
} io_range;
moe_err io_transfer_range(io *self, const io_range *r) MOE_MUST_CHECK;

enum {
    IO_CHUNK = 1 << 20,        /* bytes of one transfer where a longer one is cut (sweep: bench/store) */
    IO_REQUEST_MAX = 4 << 20,  /* bytes of one request to the kernel */
    IO_DEADLINE_SECONDS = 120, /* a transfer that takes longer is an error */
};

#endif
