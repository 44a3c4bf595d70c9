/* What the host tier may hold. Host memory is everything the kernel charges to the process: heap, stacks, libraries, rings,
 * page cache of its files. The engine plans for 95 % of the limit; everything large that allocates comes through budget_alloc, so
 * that the sum is known and a plan that does not fit is refused before anything is allocated. */
#ifndef MOE_MEMORY_BUDGET_H
#define MOE_MEMORY_BUDGET_H

#include <stddef.h>
#include <stdint.h>

#include "engine/base/error.h"

/* The smallest of: the cgroup's limit (v1 or v2, every level up), what /proc/meminfo calls available plus what the process has,
 * RLIMIT_DATA and RLIMIT_AS. `source` (>= 64 bytes) says which one. */
uint64_t budget_detect_host(char *source);
/* Resident set and its peak, in bytes, from /proc/self/status. */
uint64_t budget_rss(void);
uint64_t budget_peak_rss(void);
/* Anonymous memory only (RssAnon). */
uint64_t budget_anonymous(void);

/* Large blocks straight from the kernel, IO_ALIGN-aligned (huge pages where they help), zeroed, counted under `name`.
 * MOE_E_CONFIG when the total would pass the limit set: names the block, what it needs and what is left. */
void budget_set_limit(uint64_t bytes);
moe_err budget_alloc(void **out, size_t bytes, const char *name) MOE_MUST_CHECK;
void budget_free(void *p); /* NULL: no-op */
uint64_t budget_used(void);

#endif
