/* The limits of this process as the system states them; the readable half of budget.h. Private to memory/ and its tests, which
 * point it at a folder of their own instead of the real /proc.
 * `root` is put before every absolute path that is opened ("" on a real system): /proc/self/cgroup, /proc/self/mountinfo,
 * /proc/self/status, /proc/meminfo and the mount points that mountinfo names. No state, any thread. */
#ifndef MOE_MEMORY_BUDGET_DETECT_H
#define MOE_MEMORY_BUDGET_DETECT_H

#include <stddef.h>
#include <stdint.h>

#define BUDGET_NONE UINT64_MAX /* "no limit here" */
enum { BUDGET_SOURCE = 64 };   /* bytes of the word that says where a limit comes from */

/* The least limit of the memory cgroups of this process, v1 and v2, its own and every one above it. */
uint64_t budget_cgroup_limit(const char *root, char *source);
/* MemAvailable plus what this process holds already. */
uint64_t budget_meminfo_limit(const char *root);
/* A line "key: N kB" of a file such as /proc/self/status; BUDGET_NONE when there is none. In bytes. */
uint64_t budget_proc_value(const char *root, const char *path, const char *key);
/* All of them, with the two resource limits (BUDGET_NONE: unlimited). */
uint64_t budget_detect_under(const char *root, uint64_t rlimit_data, uint64_t rlimit_as, char *source);

#endif
