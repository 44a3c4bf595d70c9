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
    /* A queue belongs to one thread, except io_queue_wake. */
    moe_err (*queue_open)(io *self, io_queue **out, int depth);
    void (*queue_close)(io *self, io_queue *q);
    moe_err (*queue_submit)(io_queue *q, io_transfer *list);   /* linked by next */
    /* Waits for at least one completion or a wake; *done is a list linked by next, NULL when only woken. */
    moe_err (*queue_wait)(io_queue *q, io_transfer **done);
    void (*queue_wake)(io_queue *q); /* from any thread */
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
/* Writes path.tmp, syncs it, renames it over path, syncs the folder. */
moe_err io_replace_file(io *self, const char *path, const void *data, size_t bytes) MOE_MUST_CHECK;

#endif
