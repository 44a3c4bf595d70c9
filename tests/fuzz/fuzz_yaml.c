/* Any bytes as a configuration, with the example of the README around them or alone: no crash, no leak, and what loads prints as
 * text that loads to the same. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/config/train_config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char *echo_of(const train_config *c)
{
    char *text;
    if (train_config_echo(c, &text) != MOE_OK)
        abort();
    return text;
}

static void expect_round_trip(const train_config *c)
{
    char *text;
    train_config *again;
    if (train_config_print(c, &text) != MOE_OK)
        abort();
    if (train_config_parse(&again, text, strlen(text), "/printed.yaml", NULL, 0) != MOE_OK) {
        fprintf(stderr, "%s\n%s\n", moe_error_text(), text);
        abort();
    }
    char *a = echo_of(c), *b = echo_of(again);
    if (train_config_compare_echo(a, b) != MOE_OK) {
        fprintf(stderr, "%s\n%s\n", moe_error_text(), text);
        abort();
    }
    free(a);
    free(b);
    free(text);
    train_config_free(again);
}

/* model.from opens folders: that is another reader's test, and the input must not choose which files are touched. */
static bool names_a_folder(const uint8_t *data, size_t size)
{
    return memmem(data, size, "from", 4) != NULL || memmem(data, size, "\\", 1) != NULL;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    train_config *c;
    if (size > 1 << 14 || names_a_folder(data, size))
        return 0;
    if (train_config_parse(&c, (const char *)data, size, "/fuzz.yaml", NULL, 0) == MOE_OK)
        expect_round_trip(c);
    else if (*moe_error_text() == '\0')
        abort();
    train_config_free(c);

    /* As the value of an override on a configuration that is fine. */
    static const char base[] = "{model: {model_type: qwen3_moe, num_experts_per_tok: 2}, data: {path: d}, train: {steps: 9, "
                               "seq_len: 4, tokens_per_step: 8}}";
    char *set = strndup((const char *)data, size);
    const char *sets[] = {set};
    if (set && train_config_parse(&c, base, sizeof base - 1, "/fuzz.yaml", sets, 1) == MOE_OK)
        expect_round_trip(c);
    train_config_free(c);
    free(set);
    return 0;
}
