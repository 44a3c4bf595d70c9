/* The inside of the simulated disk, shared by sim_disk.c (state, damage, reboot) and sim_ops.c (the io table).
 * Threads: everything in struct sim_disk under its lock. Rule: a change is in the list until a sync makes it durable. */
#ifndef MOE_TESTS_MEMORY_SIM_PRIVATE_H
#define MOE_TESTS_MEMORY_SIM_PRIVATE_H

#include <pthread.h>

#include "tests/memory/sim_disk.h"

enum { MAX_NAMES = 64, MAX_INODES = 256, MAX_CHANGES = 1024, NAME_BYTES = 128, SECTOR = 512 };

typedef struct bytes {
    uint8_t *p;
    size_t n;
} bytes;

typedef struct inode {
    bool used;
    bytes durable, now;
} inode;

typedef struct name {
    char path[NAME_BYTES];
    int inode; /* -1: a folder */
} name;

typedef struct name_table {
    name name[MAX_NAMES];
    int n;
} name_table;

typedef enum change_kind { CHANGE_WRITE, CHANGE_SIZE, CHANGE_LINK, CHANGE_RENAME, CHANGE_UNLINK } change_kind;

typedef struct change {
    change_kind kind;
    int inode;
    uint64_t offset;
    bytes data;                                             /* write: contents; size: n */
    char dir[NAME_BYTES], from[NAME_BYTES], to[NAME_BYTES]; /* of names */
} change;

typedef struct fault {
    char part[NAME_BYTES], reason[64];
    int count;
    moe_err rc;
} fault;

struct sim_disk {
    io base;
    pthread_mutex_t lock;
    inode inode[MAX_INODES];
    name_table durable, now;
    change change[MAX_CHANGES];
    int changes;
    uint64_t operations, stop_at, fail_at, free_bytes, random;
    moe_err fail_rc;
    char fail_reason[64];
    bool stopped, in_memory, no_direct, answer_late;
    fault fault[SIM_HANG + 1];
};

struct io_file {
    int inode;
    char path[NAME_BYTES];
};

struct io_queue {
    sim_disk *d;
    pthread_cond_t changed;
    io_transfer *submitted, *hung;
    bool woken;
};

extern const io_ops sim_ops;

uint64_t sim_random(uint64_t *x);
void bytes_resize(bytes *b, size_t n);
void bytes_write(bytes *b, uint64_t offset, const uint8_t *p, size_t n);
void name_copy(char to[NAME_BYTES], const char *from);
name *name_find(const name_table *t, const char *path);
void table_link(name_table *t, const char *path, int node);
void table_unlink(name_table *t, const char *path);
change *change_add(sim_disk *d, change_kind kind, int node);
void change_add_name(sim_disk *d, change_kind kind, int node, const char *from, const char *to);
void change_apply_name(name_table *t, const change *c);
void change_apply_bytes(bytes *b, const change *c);
void change_drop(sim_disk *d, int i);

#endif
