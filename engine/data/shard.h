/* One file of token ids on disk, of any of the formats people have. Private to engine/data.
 * Owns a file descriptor, nothing else: reads are pread, and the page cache is dropped behind them.
 * Read-only once open, any thread. Sizes are checked against the file before anything is read by them. */
#ifndef MOE_ENGINE_DATA_SHARD_H
#define MOE_ENGINE_DATA_SHARD_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/base/error.h"

/* How one id lies in the file (little-endian). */
typedef enum token_type { TOKEN_U8, TOKEN_I8, TOKEN_I16, TOKEN_U16, TOKEN_I32, TOKEN_U32, TOKEN_I64 } token_type;

int token_type_bytes(token_type t);

typedef struct shard {
    char *path;
    int fd;
    token_type type;
    int64_t offset; /* bytes before the first token */
    int64_t tokens;
} shard;

/* MOE_E_NOINPUT: missing; MOE_E_DATA: what is wrong with it. On error *out is zeroed but for fd = -1. */
moe_err shard_open(shard *out, const char *path) MOE_MUST_CHECK;
void shard_close(shard *s);

/* ids: [n] tokens from position `first`. An id outside [0, vocab) is MOE_E_DATA naming file, position, id and vocab. */
moe_err shard_read(const shard *s, int64_t first, int64_t n, int vocab, int32_t *ids) MOE_MUST_CHECK;

/* The Megatron index `path`.idx beside a `path`.bin of bin_bytes: checks it whole (sizes, pointers, documents), in chunks. */
moe_err megatron_index_check(const char *path, int64_t bin_bytes, token_type *type, int64_t *tokens) MOE_MUST_CHECK;

enum { MEGATRON_MAGIC_BYTES = 9, MEGATRON_HEADER_BYTES = 34 };
extern const char megatron_magic[MEGATRON_MAGIC_BYTES]; /* "MMIDIDX\0\0" */

#endif
