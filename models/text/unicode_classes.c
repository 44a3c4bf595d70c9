/* Classes as sorted spans; Compatibility texts are lines of one string, found by the run of code
 * points that they belong to (make_unicode_classes.py keeps runs short). Owns nothing.
 * Threads: pure. Rule: the tables are what the parts of Hugging Face's tokenizers do, not one version of Unicode. */
#include <string.h>

#include "models/text/unicode.h"
#include "models/text/utf8.h"

typedef struct unicode_range {
    uint32_t first, last, value;
} unicode_range;

typedef struct unicode_span {
    uint32_t first, last;
} unicode_span;

#include "models/text/unicode_classes.inc"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))
#define CLASS(name) {name, COUNT(name)}

enum { JOINER = 0x200D, HANGUL_L = 0x1100, HANGUL_V = 0x1160, HANGUL_T = 0x11A8, HANGUL_END = 0x1200, SYLLABLES = 0xAC00, SYLLABLES_END = 0xD7A4 };

static const struct {
    const unicode_span *at;
    size_t n;
} classes[UNICODE_CLASSES] = {
    [UNICODE_CONTROL] = CLASS(control_spans),   [UNICODE_NONSPACING] = CLASS(nonspacing_spans),   [UNICODE_MARK] = CLASS(mark_spans),
    [UNICODE_PUNCTUATION] = CLASS(punctuation_spans), [UNICODE_WORD] = CLASS(word_spans),         [UNICODE_NUMERIC] = CLASS(numeric_spans),
    [UNICODE_EXTEND] = CLASS(extend_spans),     [UNICODE_PREPEND] = CLASS(prepend_spans),         [UNICODE_PICTOGRAPH] = CLASS(pictograph_spans),
};

bool unicode_is(unicode_class class, uint32_t cp)
{
    const unicode_span *s = classes[class].at;
    size_t low = 0, n = classes[class].n;
    while (low < n) {
        const size_t mid = low + (n - low) / 2;
        if (cp > s[mid].last)
            low = mid + 1;
        else if (cp < s[mid].first)
            n = mid;
        else
            return true;
    }
    return false;
}

static const unicode_range *find_range(const unicode_range *r, size_t n, uint32_t cp)
{
    size_t low = 0;
    while (low < n) {
        const size_t mid = low + (n - low) / 2;
        if (cp > r[mid].last)
            low = mid + 1;
        else if (cp < r[mid].first)
            n = mid;
        else
            return r + mid;
    }
    return NULL;
}

uint32_t unicode_lower(uint32_t cp)
{
    if (cp < 0x80)
        return cp >= 'A' && cp <= 'Z' ? cp + 32 : cp;
    if (cp == 0x130)
        return 'i';
    const unicode_range *r = find_range(lower_ranges, COUNT(lower_ranges), cp);
    if (!r || (r->value >> 31 && (cp - r->first) % 2 != 0))
        return cp;
    const uint32_t add = r->value & 0x7FFFFFFF; /* 31 bits, signed */
    return cp + (add >> 30 ? add | 0x80000000 : add);
}

const char *unicode_compatible(uint32_t cp, size_t *n)
{
    const unicode_range *r = cp < 0xA0 ? NULL : find_range(compat_ranges, COUNT(compat_ranges), cp);
    *n = 0;
    if (!r)
        return NULL;
    const char *text = compat_texts + r->value;
    for (uint32_t c = r->first; c < cp; c++)
        text = strchr(text, '\n') + 1;
    *n = (size_t)(strchr(text, '\n') - text);
    return text;
}

typedef enum hangul { NO_HANGUL, SYLLABLE_L, SYLLABLE_V, SYLLABLE_T, SYLLABLE_LV, SYLLABLE_LVT } hangul;

static hangul hangul_of(uint32_t cp)
{
    if (cp >= HANGUL_L && cp < HANGUL_END)
        return cp < HANGUL_V ? SYLLABLE_L : cp < HANGUL_T ? SYLLABLE_V : SYLLABLE_T;
    if (cp >= SYLLABLES && cp < SYLLABLES_END)
        return (cp - SYLLABLES) % 28 == 0 ? SYLLABLE_LV : SYLLABLE_LVT;
    if (cp >= 0xA960 && cp <= 0xA97C)
        return SYLLABLE_L;
    return cp >= 0xD7B0 && cp <= 0xD7C6 ? SYLLABLE_V : cp >= 0xD7CB && cp <= 0xD7FB ? SYLLABLE_T : NO_HANGUL;
}

static bool hangul_joins(hangul a, hangul b)
{
    switch (a) {
    case SYLLABLE_L: return b == SYLLABLE_L || b == SYLLABLE_V || b == SYLLABLE_LV || b == SYLLABLE_LVT;
    case SYLLABLE_V:
    case SYLLABLE_LV: return b == SYLLABLE_V || b == SYLLABLE_T;
    case SYLLABLE_T:
    case SYLLABLE_LVT: return b == SYLLABLE_T;
    default: return false;
    }
}

/* Control characters of the clusters: nothing joins them. (Format characters too, but those that join are in the tables.) */
static bool stands_alone(uint32_t cp)
{
    return cp < 0x20 || (cp >= 0x7F && cp < 0xA0) || cp == 0xAD || cp == 0x61C || cp == 0x180E || cp == 0x200B || cp == 0x200E || cp == 0x200F ||
           (cp >= 0x2028 && cp <= 0x202E) || (cp >= 0x2060 && cp <= 0x206F) || cp == 0xFEFF || (cp >= 0xFFF0 && cp <= 0xFFFB) ||
           (cp >= 0x13430 && cp <= 0x1343F) || (cp >= 0x1BCA0 && cp <= 0x1BCA3) || (cp >= 0x1D173 && cp <= 0x1D17A) ||
           (cp >= 0xE0000 && cp <= 0xE0FFF && !unicode_is(UNICODE_EXTEND, cp));
}

static bool is_flag(uint32_t cp) { return cp >= 0x1F1E6 && cp <= 0x1F1FF; }

size_t unicode_cluster(const char *text, size_t bytes)
{
    uint32_t a, b;
    size_t at = utf8_decode(text, bytes, &a);
    if (a == '\r' && at < bytes && text[at] == '\n')
        return 2;
    if (stands_alone(a))
        return at;
    bool pictograph = unicode_is(UNICODE_PICTOGRAPH, a), joined = false, flag = is_flag(a);
    while (at < bytes) {
        const size_t k = utf8_decode(text + at, bytes - at, &b);
        if (b < 0x80 && !unicode_is(UNICODE_PREPEND, a))
            break;
        const bool extends = unicode_is(UNICODE_EXTEND, b);
        if (!extends && stands_alone(b))
            break;
        const bool joins = extends || unicode_is(UNICODE_PREPEND, a) || hangul_joins(hangul_of(a), hangul_of(b)) || (flag && is_flag(b)) ||
                           (joined && unicode_is(UNICODE_PICTOGRAPH, b));
        if (!joins)
            break;
        joined = pictograph && b == JOINER;
        pictograph = extends ? pictograph : unicode_is(UNICODE_PICTOGRAPH, b);
        flag = !flag && is_flag(b);
        a = b;
        at += k;
    }
    return at;
}
