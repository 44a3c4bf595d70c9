/* The map: uint32 bytes of the array, the array of uint32 units, then replacements that end with a zero byte. A unit: bits 0-7 and 31 the
 * label, bit 8 "has a value", the rest the way to its children; a value has bit 31 set. Indices are checked at every step, values when they
 * are used. */
#include "models/text/charsmap.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "models/text/unicode.h"
#include "models/text/utf8.h"

enum { CLUSTER_BYTES = 6 }; /* clusters shorter than this are looked up whole */

struct charsmap {
    uint32_t *unit;
    size_t units;
    char *texts;
    size_t bytes;
};

static int base64_digit(char c)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *at = c ? strchr(digits, c) : NULL;
    return at ? (int)(at - digits) : -1;
}

/* Decodes into out (3/4 of bytes); the length, SIZE_MAX when it is not base64. */
static size_t base64_decode(const char *text, size_t bytes, unsigned char *out)
{
    size_t n = 0;
    if (bytes % 4 != 0)
        return SIZE_MAX;
    for (size_t i = 0; i < bytes; i += 4) {
        uint32_t word = 0;
        const size_t pad = i + 4 < bytes ? 0 : (size_t)(text[i + 3] == '=') + (text[i + 3] == '=' && text[i + 2] == '=');
        for (size_t k = 0; k < 4; k++) {
            const int digit = k < 4 - pad ? base64_digit(text[i + k]) : 0;
            if (digit < 0)
                return SIZE_MAX;
            word = word << 6 | (uint32_t)digit;
        }
        for (size_t k = 0; k < 3 - pad; k++)
            out[n++] = (unsigned char)(word >> (16 - 8 * k));
    }
    return n;
}

static uint32_t read_u32(const unsigned char *p) { return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24; }

static moe_err unpack(charsmap *m, const unsigned char *blob, size_t n)
{
    const size_t array = n >= 4 ? read_u32(blob) : 0;
    if (n < 4 || array < 4 || array > n - 4)
        return moe_fail(MOE_E_DATA, "Precompiled: an array of %zu bytes in a map of %zu", array, n);
    m->units = array / 4;
    m->bytes = n - 4 - m->units * 4;
    m->unit = malloc(m->units * sizeof *m->unit);
    m->texts = malloc(m->bytes + 1);
    if (!m->unit || !m->texts)
        return moe_fail(MOE_E_OS, "no memory for a character map");
    for (size_t i = 0; i < m->units; i++)
        m->unit[i] = read_u32(blob + 4 + 4 * i);
    memcpy(m->texts, blob + 4 + 4 * m->units, m->bytes);
    m->texts[m->bytes] = '\0';
    if (utf8_valid_prefix(m->texts, m->bytes) < m->bytes)
        return moe_fail(MOE_E_DATA, "Precompiled: the replacements are not valid UTF-8");
    return MOE_OK;
}

moe_err charsmap_open(charsmap **out, const char *text, size_t bytes)
{
    charsmap *m = *out = calloc(1, sizeof *m);
    unsigned char *blob = malloc(bytes / 4 * 3 + 1);
    moe_err rc = MOE_OK;
    if (!m || !blob)
        rc = moe_fail(MOE_E_OS, "no memory for a character map");
    const size_t n = rc == MOE_OK ? base64_decode(text, bytes, blob) : 0;
    if (rc == MOE_OK)
        rc = n == SIZE_MAX ? moe_fail(MOE_E_DATA, "Precompiled: the map is not base64") : unpack(m, blob, n);
    free(blob);
    if (rc == MOE_OK)
        return MOE_OK;
    charsmap_close(m);
    *out = NULL;
    return rc;
}

void charsmap_close(charsmap *m)
{
    if (!m)
        return;
    free(m->unit);
    free(m->texts);
    free(m);
}

static size_t offset_of(uint32_t unit) { return (size_t)(unit >> 10) << ((unit & 0x200) >> 6); }

/* The replacement of the shortest beginning of text[0, bytes) that has one; *text NULL: none. */
static moe_err look_up(const charsmap *m, const char *key, size_t bytes, const char **text, size_t *n)
{
    size_t at = offset_of(m->unit[0]);
    *text = NULL;
    *n = 0;
    for (size_t i = 0; i < bytes && key[i] != '\0'; i++) {
        const unsigned char c = (unsigned char)key[i];
        at ^= c;
        if (at >= m->units)
            return moe_fail(MOE_E_DATA, "Precompiled: the map points outside of its %zu units", m->units);
        const uint32_t unit = m->unit[at];
        if ((unit & 0x800000FF) != c)
            return MOE_OK;
        at ^= offset_of(unit);
        if (!(unit >> 8 & 1))
            continue;
        const size_t value = at < m->units ? m->unit[at] & 0x7FFFFFFF : SIZE_MAX;
        if (value >= m->bytes || utf8_is_continuation(m->texts[value]))
            return moe_fail(MOE_E_DATA, "Precompiled: the map points outside of its %zu bytes of replacements", m->bytes);
        *text = m->texts + value;
        *n = strlen(*text);
        return MOE_OK;
    }
    return MOE_OK;
}

moe_err charsmap_apply(const charsmap *m, const char *text, size_t bytes, text_buffer *out)
{
    for (size_t at = 0, end; at < bytes; at = end) {
        const char *other = NULL;
        size_t n = 0;
        end = at + unicode_cluster(text + at, bytes - at);
        if (end - at < CLUSTER_BYTES)
            TRY(look_up(m, text + at, end - at, &other, &n));
        if (other) {
            TRY(text_buffer_append(out, other, n));
            continue;
        }
        for (size_t k; at < end; at += k) {
            uint32_t cp;
            k = utf8_decode(text + at, end - at, &cp);
            TRY(look_up(m, text + at, k, &other, &n));
            TRY(other ? text_buffer_append(out, other, n) : text_buffer_append(out, text + at, k));
        }
    }
    return MOE_OK;
}
