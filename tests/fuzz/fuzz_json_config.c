/* Whatever another JSON reader takes for a configuration object, ours reads too: it never calls JSON "not YAML". */
#include <jansson.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/config/train_config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What our limits and YAML itself refuse in JSON: keys over 1024 bytes, a colon on another line than its key, deep nesting, and control
 * or special characters as they stand. */
static bool is_plain(const uint8_t *data, size_t size)
{
    int depth = 0;
    bool fresh_line = false; /* only white space since the last end of line */
    for (size_t i = 0; i < size; i++) {
        if (fresh_line && data[i] == ':')
            return false;
        fresh_line = data[i] == '\n' || (fresh_line && data[i] == ' ');
        depth += data[i] == '{' || data[i] == '[';
        if (data[i] >= 0x7f || (data[i] < 0x20 && data[i] != '\n') || data[i] == '\\')
            return false;
    }
    return depth < 12;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size > 1000 || size == 0 || data[0] != '{' || memmem(data, size, "not YAML", 8) || memmem(data, size, "from", 4) ||
        memmem(data, size, "\\", 1))
        return 0;
    train_config *c;
    json_t *o = json_loadb((const char *)data, size, JSON_REJECT_DUPLICATES, NULL);
    const moe_err rc = train_config_parse(&c, (const char *)data, size, "/fuzz.json", NULL, 0);
    if (o && is_plain(data, size) && rc != MOE_OK && strstr(moe_error_text(), "not YAML")) {
        fprintf(stderr, "%s\n%.*s\n", moe_error_text(), (int)size, (const char *)data);
        abort();
    }
    json_decref(o);
    train_config_free(c);
    return 0;
}
