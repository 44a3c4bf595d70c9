/* Any bytes as a Megatron index (of a .bin of any size) or as a .bin: no crash, no leak; what is accepted can be read to its
 * ends, and nothing behind them. The first byte chooses; for an index eight bytes of size follow. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/data/shard.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void expect(int good, const char *what)
{
    if (!good) {
        fprintf(stderr, "%s\n", what);
        abort();
    }
}

static void check_index(const char *path, int64_t bin_bytes)
{
    token_type type = TOKEN_U8;
    int64_t tokens;
    if (megatron_index_check(path, bin_bytes, &type, &tokens) == MOE_OK)
        expect(tokens >= 0 && tokens == bin_bytes / token_type_bytes(type), "the tokens are the whole .bin");
    else
        expect(moe_error_text()[0] != '\0', "an error has a sentence");
}

static void check_bin(const char *path, int64_t bytes)
{
    shard s;
    int32_t ids[64];
    if (shard_open(&s, path) != MOE_OK) {
        expect(s.path == NULL && s.fd == -1 && moe_error_text()[0] != '\0', "an error has a sentence and leaves nothing");
        return;
    }
    expect(s.tokens >= 0 && s.offset + s.tokens * token_type_bytes(s.type) == bytes, "the tokens are the rest of the file");
    const int64_t n = s.tokens < 64 ? s.tokens : 64;
    for (int end = 0; end < 2; end++)
        if (shard_read(&s, end ? s.tokens - n : 0, n, INT32_MAX, ids) == MOE_OK)
            for (int64_t i = 0; i < n; i++)
                expect(ids[i] >= 0, "an id is not negative");
    expect(shard_read(&s, s.tokens, 1, INT32_MAX, ids) != MOE_OK, "nothing behind the end");
    shard_close(&s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int fd = -1;
    char path[64];
    int64_t bin_bytes = 0;
    const size_t skip = size > 0 && data[0] % 2 == 0 ? 9 : 1;
    if (size < skip)
        return 0;
    if (fd < 0)
        fd = memfd_create("shard", 0);
    if (ftruncate(fd, 0) != 0 || pwrite(fd, data + skip, size - skip, 0) != (ssize_t)(size - skip))
        return 0;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (skip == 9) {
        memcpy(&bin_bytes, data + 1, 8);
        check_index(path, bin_bytes & INT64_MAX);
    } else {
        check_bin(path, (int64_t)(size - skip));
    }
    return 0;
}
