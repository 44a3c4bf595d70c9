/* Any bytes as a tokenizer.json: no crash, no leak; one that is accepted encodes texts into ids that it can decode, the same ids
 * twice; decoded texts are UTF-8. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "models/text/tokenizer.h"
#include "models/text/utf8.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void expect(int good, const char *what)
{
    if (!good) {
        fprintf(stderr, "%s\n", what);
        abort();
    }
}

/* With what stands around a text, and back to a text, at once and piece by piece. */
static void check_whole(const tokenizer *t, const char *text, size_t n, token_ids *ids)
{
    text_buffer back = {0};
    ids->n = 0;
    if (tokenizer_encode_whole(t, text, n, true, ids) != MOE_OK)
        expect(ids->n == 0 && moe_error_text()[0] != '\0', "an error has a sentence and leaves nothing");
    for (int skip = 0; skip < 2; skip++) {
        back.n = 0;
        if (tokenizer_decode(t, ids->id, ids->n, skip, &back) != MOE_OK)
            expect(back.n == 0 && moe_error_text()[0] != '\0', "an error has a sentence and leaves nothing");
        else
            expect(tokenizer_is_bytes(t) || utf8_valid_prefix(back.data ? back.data : "", back.n) == back.n, "a decoded text is UTF-8");
    }
    for (size_t i = 0; i < ids->n; i++) {
        const char *bytes;
        size_t k;
        expect(tokenizer_first_piece(t, ids->id[i], &bytes, &k) == MOE_OK, "an id has a first piece");
    }
    text_buffer_free(&back);
}

static void check_text(const tokenizer *t, const char *text, size_t n)
{
    token_ids ids = {0}, again = {0};
    for (int specials = 0; specials < 2; specials++) {
        ids.n = again.n = 0;
        if (tokenizer_encode(t, text, n, specials, &ids) != MOE_OK) {
            expect(ids.n == 0 && moe_error_text()[0] != '\0', "an error has a sentence and leaves nothing");
            continue;
        }
        for (size_t i = 0; i < ids.n; i++) {
            const char *bytes;
            size_t k;
            expect(ids.id[i] >= 0 && ids.id[i] < tokenizer_vocab(t), "an id lies in the vocabulary");
            expect(tokenizer_piece(t, ids.id[i], &bytes, &k) == MOE_OK, "an id has a piece");
        }
        expect(tokenizer_encode(t, text, n, specials, &again) == MOE_OK && again.n == ids.n &&
                   (ids.n == 0 || memcmp(ids.id, again.id, ids.n * sizeof *ids.id) == 0),
               "the same text gives the same ids");
    }
    check_whole(t, text, n, &ids);
    free(ids.id);
    free(again.id);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char text[] = "Hello, w\xC3\xB6rld! don't 12345\n\n  <|x|> e\xCC\x81\xCC\x96 "
                               "\xE4\xB8\xAD\xE6\x96\x87\xF0\x9F\x99\x82 aaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    static int fd = -1;
    char path[64];
    if (fd < 0)
        fd = memfd_create("tokenizer.json", 0);
    if (ftruncate(fd, 0) != 0 || pwrite(fd, data, size, 0) != (ssize_t)size)
        return 0;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    tokenizer *t;
    if (tokenizer_open(&t, path) == MOE_OK) {
        check_text(t, text, sizeof text - 1);
        check_text(t, (const char *)data, size < 512 ? size : 512);
    } else {
        expect(t == NULL && moe_error_text()[0] != '\0', "an error has a sentence and leaves nothing");
    }
    tokenizer_close(t);
    return 0;
}
