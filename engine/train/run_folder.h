/* The run folder: lock, identity, and the configuration it was started with.
 *   lock          held while a process works here (flock): a second process is refused
 *   uuid          of the run, written before anything else; each store folder carries it too
 *   config.yaml   every value as it was resolved at the last start
 *   checkpoint/   manifests and dense parts        metrics.jsonl, events.out.tfevents.*, plots/ */
#ifndef MOE_ENGINE_TRAIN_RUN_FOLDER_H
#define MOE_ENGINE_TRAIN_RUN_FOLDER_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/base/error.h"

typedef struct run_folder {
    char *path;          /* absolute */
    uint8_t uuid[16];
    int lock;            /* file descriptor, -1: not held */
} run_folder;

/* create: make the folder and a new uuid when absent. MOE_E_TEMP: locked by another process; MOE_E_CREATE: cannot be made;
 * MOE_E_NOINPUT: absent and not to be created. */
moe_err run_folder_open(run_folder *f, const char *path, bool create) MOE_MUST_CHECK;
/* To read only: nothing is made or written, and several may look at once, but nobody while a process works here (MOE_E_TEMP), and nobody can begin to. */
moe_err run_folder_look(run_folder *f, const char *path) MOE_MUST_CHECK;
void run_folder_close(run_folder *f);

/* path/name, malloc'ed; an absolute name stays as it is. */
moe_err run_folder_path(const run_folder *f, const char *name, char **out) MOE_MUST_CHECK;

#endif
