/* What the io_uring and pread backends share: files and folders by plain POSIX calls. Private to memory/io_*.c.
 * Rule: an io_file's `fixed_queue` and `fixed` belong to the thread of the queue that uses it. */
#ifndef MOE_MEMORY_IO_POSIX_H
#define MOE_MEMORY_IO_POSIX_H

#include <pthread.h>

#include "memory/io.h"

enum { DROP_RANGES = 8 }; /* written ranges that may wait for their write-out before they are dropped */

typedef struct drop_range {
    uint64_t offset;
    size_t bytes;
} drop_range;

struct io_file {
    int fd, mode;
    char *path;
    uint64_t fixed_queue; /* io_uring: number of the queue whose table holds fd as `fixed`, 0: none */
    int fixed;
    pthread_mutex_t lock; /* guards drop, drops */
    drop_range drop[DROP_RANGES];
    int drops;
};

moe_err posix_open(io *self, io_file **out, const char *path, int mode);
void posix_close(io *self, io_file *f);
moe_err posix_size(io *self, io_file *f, uint64_t *bytes);
moe_err posix_allocate(io *self, io_file *f, uint64_t bytes);
moe_err posix_sync(io *self, io_file *f);
moe_err posix_make_dir(io *self, const char *path);
moe_err posix_rename(io *self, const char *from, const char *to);
moe_err posix_remove(io *self, const char *path);
moe_err posix_sync_dir(io *self, const char *path);
bool posix_exists(io *self, const char *path);
moe_err posix_space(io *self, const char *dir, io_space *out);
moe_err posix_list(io *self, const char *dir, io_name_fn each, void *user);

/* After a transfer of a file opened with IO_DROP: starts write-out and drops what is clean. */
void posix_drop_behind(io_file *f, uint64_t offset, size_t bytes, bool written);

/* Fills rc and text of a transfer that failed with errno `err` (0: the file ended) at t->done. */
void posix_transfer_failed(io_transfer *t, int err);

moe_err io_pread_open(io **out) MOE_MUST_CHECK;
/* MOE_E_OS with *unavailable set when the kernel does not let this process have a ring. */
moe_err io_uring_backend_open(io **out, bool *unavailable) MOE_MUST_CHECK;

#endif
