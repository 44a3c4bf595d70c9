/* Prints docs/config.md. Built for the `docs` target only. */
#include <stdio.h>
#include <stdlib.h>

#include "engine/config/train_config.h"

int main(void)
{
    char *text;
    if (train_config_document(&text) != MOE_OK) {
        fprintf(stderr, "%s\n", moe_error_text());
        return 1;
    }
    const int failed = fputs(text, stdout) == EOF || fflush(stdout) == EOF;
    free(text);
    return failed;
}
