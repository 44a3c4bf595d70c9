/* A disk in memory behind the io table, for tests of crashes and faults. Owns its files; every call is counted.
 *
 * What a crash may do: a write, an allocation or a change of a folder that was not synced survives or not, in any combination;
 * writes survive in any order and torn at 512 bytes. A file's contents are durable after its sync, a name after the sync of its
 * folder. Threads: any; one lock. Rule: a stopped disk fails every call; sim_disk_reboot makes the disk that the next boot finds.
 */
#ifndef MOE_TESTS_MEMORY_SIM_DISK_H
#define MOE_TESTS_MEMORY_SIM_DISK_H

#include "memory/io.h"

typedef struct sim_disk sim_disk;

sim_disk *sim_disk_new(uint64_t seed);
void sim_disk_free(sim_disk *d); /* all files must be closed */
io *sim_disk_io(sim_disk *d);    /* io_close on it does nothing */

/* Operations that change the disk so far: create, write, allocate, sync, folder made, rename, remove, folder synced. */
uint64_t sim_disk_operations(const sim_disk *d);
/* The n-th operation (from 0) is begun, never acknowledged, and is the last. */
void sim_disk_stop_at(sim_disk *d, uint64_t n);
/* The n-th operation fails without effect with this code and reason; the disk goes on. */
void sim_disk_fail_at(sim_disk *d, uint64_t n, moe_err rc, const char *reason);

typedef enum sim_what {
    SIM_READ,
    SIM_WRITE,
    SIM_SYNC,
    SIM_CREATE,
    SIM_SYNC_DIR,
    SIM_HANG /* transfers never come back */
} sim_what;
/* From now on `count` such calls on paths that contain `part` fail. count 0: none any more, and hung ones come back. */
void sim_disk_fail(sim_disk *d, sim_what what, const char *part, int count, moe_err rc, const char *reason);

void sim_disk_set_free_bytes(sim_disk *d, uint64_t bytes); /* allocations and growing writes beyond fail */
void sim_disk_set_in_memory(sim_disk *d, bool yes);        /* claims to be tmpfs */
void sim_disk_set_no_direct(sim_disk *d, bool yes);        /* refuses O_DIRECT */

/* Damage at rest. true when the file is there. */
bool sim_disk_flip(sim_disk *d, const char *path, uint64_t offset);
bool sim_disk_truncate(sim_disk *d, const char *path, uint64_t bytes);
bool sim_disk_remove(sim_disk *d, const char *path);

/* Changes that are not durable. */
int sim_disk_unsynced(const sim_disk *d);
/* The disk after the power failed: bit i of `kept` says whether unsynced change i survived (those past 63: bit 63); with `seed`
 * not 0 the order of writes is shuffled and each surviving write is torn with one half chance. */
sim_disk *sim_disk_reboot(const sim_disk *d, uint64_t kept, uint64_t seed);

#endif
