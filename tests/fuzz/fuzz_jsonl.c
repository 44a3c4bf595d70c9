/* Any bytes as a line of JSONL: no crash, no leak; a text that comes out is valid UTF-8 and no longer than the line. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "engine/data/documents.h"
#include "models/text/utf8.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    text_buffer text = {0};
    const bool good = jsonl_text("fuzz:1", (const char *)data, size, &text) == MOE_OK
                          ? text.n <= size && utf8_valid_prefix(text.data, text.n) == text.n
                          : moe_error_text()[0] != '\0';
    text_buffer_free(&text);
    if (!good) {
        fprintf(stderr, "the text is longer than its line or not UTF-8, or an error has no sentence\n");
        abort();
    }
    return 0;
}
