/* The manifest's bytes. Private to memory/checkpoint.c and memory/manifest.c (the reader is public: memory/checkpoint.h).
 * Rule: what manifest_format writes, manifest_parse accepts, and nothing else is accepted. */
#ifndef MOE_MEMORY_MANIFEST_H
#define MOE_MEMORY_MANIFEST_H

#include "memory/checkpoint.h"

#define MANIFEST_MAGIC "PNMANIF"
enum {
    MANIFEST_VERSION = 2,
    MANIFEST_STATE_MAX = 64 << 20, /* bytes */
    MANIFEST_MAX = 1 << 30,        /* bytes of a whole file */
    MANIFEST_SLOT_MAX = 1 << 10,
};

/* Little-endian, as every machine this runs on. After it: records, log, state, XXH3-64 of all before. */
typedef struct manifest_header {
    char magic[8];
    uint32_t version, header_bytes;
    uint64_t file_bytes; /* the sum included */
    uint8_t uuid[16];
    uint64_t step;
    int32_t sections, dense_slot;
    uint32_t record_bytes, log_entry_bytes;
    uint64_t log_steps, state_bytes, dense_bytes, dense_sum;
    uint64_t reserved[2]; /* 0 */
} manifest_header;
_Static_assert(sizeof(manifest_header) == 112, "the manifest header is a file format");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the manifest is little-endian");

/* The rules both sides share: ranges, order of steps, coverage of the log. */
moe_err manifest_check(const manifest *m, const char *what) MOE_MUST_CHECK;
/* malloc'ed file image. */
moe_err manifest_format(const manifest *m, void **data, size_t *bytes) MOE_MUST_CHECK;
/* A deep copy as one block; free() it. */
moe_err manifest_copy(manifest **out, const manifest *m) MOE_MUST_CHECK;

#endif
