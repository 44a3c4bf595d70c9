/* encode_records TOKENIZER SPECIALS(0|1) < records > records: for tests/fixtures/text/compare_tokenizers.py.
 * In: uint32 bytes, then the text. Out: uint32 count, then the ids as int32. Rate on stderr. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "models/text/tokenizer.h"

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int encode_all(const tokenizer *tok, bool specials)
{
    token_ids ids = {0};
    double spent = 0, bytes = 0;
    int status = 0;
    for (uint32_t n; status == 0 && fread(&n, sizeof n, 1, stdin) == 1;) {
        char *text = malloc((size_t)n + 1);
        if (!text || fread(text, 1, n, stdin) != n)
            status = 2;
        const double start = seconds();
        ids.n = 0;
        if (status == 0 && tokenizer_encode(tok, text, n, specials, &ids) != MOE_OK)
            status = 1;
        spent += seconds() - start;
        bytes += n;
        const uint32_t count = (uint32_t)ids.n;
        if (status == 0 &&
            (fwrite(&count, sizeof count, 1, stdout) != 1 || fwrite(ids.id, sizeof *ids.id, ids.n, stdout) != ids.n))
            status = 2;
        free(text);
    }
    free(ids.id);
    fprintf(stderr, "%.0f bytes, %.1f MB/s%s%s\n", bytes, bytes / spent / 1e6, status == 1 ? ": " : "",
            status == 1 ? moe_error_text() : "");
    return status;
}

int main(int argc, char **argv)
{
    tokenizer *tok;
    if (argc != 3) {
        fprintf(stderr, "usage: %s TOKENIZER SPECIALS\n", argv[0]);
        return 64;
    }
    if (tokenizer_open(&tok, argv[1]) != MOE_OK) {
        fprintf(stderr, "%s\n", moe_error_text());
        return 1;
    }
    const int status = encode_all(tok, argv[2][0] == '1');
    tokenizer_close(tok);
    return status;
}
