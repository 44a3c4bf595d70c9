/* Bytes of an input file in order, decompressed on the way when it is zstd (known by its first bytes). Private to engine/data.
 * Owns a descriptor and the decoder's window (at most 128 MiB, usually 8).
 * One thread. */
#ifndef MOE_ENGINE_DATA_SOURCE_H
#define MOE_ENGINE_DATA_SOURCE_H

#include <stddef.h>
#include <stdint.h>

#include "engine/base/error.h"

typedef struct source source;

/* MOE_E_NOINPUT: missing, unreadable or not a regular file. MOE_E_DATA: named .zst but it is not. */
moe_err source_open(source **out, const char *path) MOE_MUST_CHECK;
void source_close(source *s);
/* Fills up to `room` bytes; *n is 0 only at the end. MOE_E_DATA: damaged or cut off zstd data. */
moe_err source_read(source *s, char *buf, size_t room, size_t *n) MOE_MUST_CHECK;
int64_t source_position(const source *s); /* bytes of the file taken so far, for progress */
/* Bytes of content: the size of a plain file, a whole pass over a compressed one. Leaves the source at its beginning. */
moe_err source_length(source *s, int64_t *bytes) MOE_MUST_CHECK;

#endif
