/* Sizes as people write them. */
#include <stdlib.h>
#include <string.h>

#include "engine/base/text.h"
#include "engine/config/train_config.h"

/* "", "K", "KiB" -> 1024-based; "KB" -> 1000-based; case does not matter. 0: not a unit. */
static uint64_t unit_of(const char *s)
{
    static const char letters[] = "kmgtp";
    if (!*s || strcasecmp(s, "b") == 0)
        return 1;
    const char *letter = strchr(letters, *s | 32);
    if (!letter)
        return 0;
    const bool decimal = strcasecmp(s + 1, "b") == 0;
    if (s[1] && !decimal && strcasecmp(s + 1, "ib") != 0)
        return 0;
    uint64_t unit = 1;
    for (const char *p = letters; p <= letter; p++)
        unit *= decimal ? 1000 : 1024;
    return unit;
}

moe_err size_parse(const char *text, uint64_t *bytes)
{
    static const char expected[] = "expected a size like 1536MiB, 8G, 10GB or a number of bytes";
    char number[32];
    const size_t digits = strspn(text, "0123456789."), blank = text[digits] == ' ' && text[digits + 1];
    const uint64_t unit = unit_of(text + digits + blank);
    uint64_t whole;
    double x;
    *bytes = 0;
    if (digits == 0 || digits >= sizeof number || unit == 0)
        return moe_fail(MOE_E_CONFIG, "%s, got \"%s\"", expected, text);
    memcpy(number, text, digits);
    number[digits] = '\0';
    if (text_parse_uint(number, &whole)) {
        if (whole > UINT64_MAX / unit)
            return moe_fail(MOE_E_CONFIG, "%s, got \"%s\", which is more than 16 EiB", expected, text);
        *bytes = whole * unit;
        return MOE_OK;
    }
    if (!text_parse_double(number, &x) || unit == 1 || x * (double)unit >= 0x1p63)
        return moe_fail(MOE_E_CONFIG, "%s, got \"%s\"", expected, text);
    *bytes = (uint64_t)(x * (double)unit);
    return MOE_OK;
}

moe_err size_parse_option(const char *option, const char *text, uint64_t *bytes)
{
    char sentence[256];
    if (text == NULL || size_parse(text, bytes) == MOE_OK)
        return MOE_OK;
    moe_error_take(sentence, sizeof sentence);
    return moe_fail(MOE_E_USAGE, "--%s: %s", option, sentence);
}
