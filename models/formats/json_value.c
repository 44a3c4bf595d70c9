/* Values out of the pull reader: copies of strings, numbers in range, and "the next one must be".
 * Numbers are at most 63 characters, the point is '.' in every locale. One reader, one thread. */
#include <errno.h>
#include <locale.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "models/formats/json_reader.h"

moe_err json_copy(const json_reader *r, char **out)
{
    *out = NULL;
    char *s = malloc(r->raw_bytes + 1);
    if (!s)
        return json_fail(r, MOE_E_OS, "no memory for a string of %zu bytes", r->raw_bytes);
    const size_t n = json_decode(r, s);
    s[n] = '\0';
    if (strlen(s) != n) {
        free(s);
        return json_fail(r, MOE_E_DATA, "string holds a NUL character");
    }
    *out = s;
    return MOE_OK;
}

/* The number as a C string in text[64]; false when it is longer than any number we take. */
static bool number_text(const json_reader *r, char text[64])
{
    if (r->raw_bytes >= 64)
        return false;
    memcpy(text, r->raw, r->raw_bytes);
    text[r->raw_bytes] = '\0';
    return true;
}

static bool is_integer(const json_reader *r)
{
    for (size_t i = 0; i < r->raw_bytes; i++)
        if (r->raw[i] == '.' || r->raw[i] == 'e' || r->raw[i] == 'E')
            return false;
    return true;
}

moe_err json_int(const json_reader *r, int64_t low, int64_t high, int64_t *out)
{
    char text[64];
    *out = low;
    errno = 0;
    if (is_integer(r) && number_text(r, text)) {
        const long long v = strtoll(text, NULL, 10);
        if (errno == 0 && v >= low && v <= high) {
            *out = v;
            return MOE_OK;
        }
    }
    return json_fail(r, MOE_E_DATA, "expected a whole number from %lld to %lld, found %.*s", (long long)low, (long long)high,
                     (int)(r->raw_bytes < 40 ? r->raw_bytes : 40), r->raw);
}

moe_err json_uint(const json_reader *r, uint64_t high, uint64_t *out)
{
    char text[64];
    *out = 0;
    errno = 0;
    if (is_integer(r) && number_text(r, text) && text[0] != '-') {
        const unsigned long long v = strtoull(text, NULL, 10);
        if (errno == 0 && v <= high) {
            *out = v;
            return MOE_OK;
        }
    }
    return json_fail(r, MOE_E_DATA, "expected a whole number from 0 to %llu, found %.*s", (unsigned long long)high,
                     (int)(r->raw_bytes < 40 ? r->raw_bytes : 40), r->raw);
}

moe_err json_double(const json_reader *r, double *out)
{
    char text[64];
    *out = 0;
    if (number_text(r, text)) {
        const locale_t c = newlocale(LC_ALL_MASK, "C", (locale_t)0); /* the decimal point is '.' in every locale */
        if (c == (locale_t)0)
            return json_fail(r, MOE_E_OS, "no memory for the C locale");
        const double v = strtod_l(text, NULL, c);
        freelocale(c);
        if (isfinite(v)) {
            *out = v;
            return MOE_OK;
        }
    }
    return json_fail(r, MOE_E_DATA, "expected a number in the range of a double, found %.*s",
                     (int)(r->raw_bytes < 40 ? r->raw_bytes : 40), r->raw);
}

moe_err json_get_int(json_reader *r, int64_t low, int64_t high, int64_t *out)
{
    *out = low;
    TRY(json_expect(r, JSON_NUMBER));
    return json_int(r, low, high, out);
}

moe_err json_get_uint(json_reader *r, uint64_t high, uint64_t *out)
{
    *out = 0;
    TRY(json_expect(r, JSON_NUMBER));
    return json_uint(r, high, out);
}

moe_err json_get_double(json_reader *r, double *out)
{
    *out = 0;
    TRY(json_expect(r, JSON_NUMBER));
    return json_double(r, out);
}

moe_err json_get_string(json_reader *r, char **out)
{
    *out = NULL;
    TRY(json_expect(r, JSON_STRING));
    return json_copy(r, out);
}

moe_err json_get_bool(json_reader *r, bool *out)
{
    json_event e;
    *out = false;
    TRY(json_next(r, &e));
    if (e != JSON_TRUE && e != JSON_FALSE)
        return json_fail(r, MOE_E_DATA, "JSON: expected true or false, found %s", json_event_name(e));
    *out = e == JSON_TRUE;
    return MOE_OK;
}
