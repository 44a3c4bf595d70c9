/* Any bytes as a manifest, as they are and with a right checksum behind them (else the fuzzer would never pass the first gate):
 * no crash, no leak; what is accepted keeps its own rules and is written back as the same bytes. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "memory/manifest.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void read_one(const void *data, size_t size)
{
    manifest *m;
    if (manifest_parse(&m, data, size, "fuzz") != MOE_OK) {
        if (m != NULL || *moe_error_text() == '\0')
            abort();
        return;
    }
    void *again;
    size_t n;
    if (manifest_check(m, "fuzz") != MOE_OK || manifest_format(m, &again, &n) != MOE_OK || n != size ||
        memcmp(again, data, n) != 0)
        abort();
    free(again);
    free(m);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    read_one(data, size);
    const uint64_t sum = XXH3_64bits(data, size), bytes = size + sizeof sum;
    uint8_t *signed_ = malloc(bytes);
    if (size > 0)
        memcpy(signed_, data, size);
    memcpy(signed_ + size, &sum, sizeof sum);
    read_one(signed_, bytes);
    if (size >= sizeof(manifest_header)) { /* and with the length it claims corrected too */
        memcpy(signed_ + offsetof(manifest_header, file_bytes), &bytes, sizeof bytes);
        const uint64_t corrected = XXH3_64bits(signed_, size);
        memcpy(signed_ + size, &corrected, sizeof corrected);
        read_one(signed_, bytes);
    }
    free(signed_);
    return 0;
}
