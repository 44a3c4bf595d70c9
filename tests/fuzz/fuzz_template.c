/* Any bytes as a template, over variables with values of every kind and small budgets: no crash, no leak, the same text twice, segments that
 * cover it. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "models/text/template.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void expect(int good, const char *what)
{
    if (!good) {
        fprintf(stderr, "%s\n", what);
        abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char variables[] =
        "{\"messages\": [{\"role\": \"user\", \"content\": \"h\xC3\xA9llo <x>\"}, {\"role\": \"assistant\", \"content\": null}], \"n\": 3, \"f\": -2.5, "
        "\"t\": true, \"l\": [3, 1, 2], \"m\": {\"b\": [1, {\"c\": \"\"}], \"a\": 0}, \"s\": \" Some text, a,b \"}";
    const template_input in = {
        .variables = variables, .variables_bytes = sizeof variables - 1, .trusted = "{\"bos_token\": \"<s>\"}", .trusted_bytes = 20,
        .max_steps = 50000, .max_output = 1 << 16, .max_memory = 16 << 20,
    };
    chat_template *t;
    template_output a, b;
    if (template_open(&t, "fuzz", (const char *)data, size) != MOE_OK) {
        expect(moe_error_text()[0] != '\0', "an error has a sentence");
        return 0;
    }
    const moe_err first = template_render(t, &in, &a), second = template_render(t, &in, &b);
    expect(first == second && a.n == b.n && (a.n == 0 || memcmp(a.text, b.text, a.n) == 0), "the same text twice");
    for (size_t i = 0; i < a.segments; i++)
        expect(a.segment[i].begin == 0 ? i == 0 : i > 0 && a.segment[i].begin > a.segment[i - 1].begin && a.segment[i].begin < a.n, "segments in order");
    template_output_free(&a);
    template_output_free(&b);
    template_close(t);
    return 0;
}
