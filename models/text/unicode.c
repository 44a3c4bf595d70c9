/* NFC (Unicode Standard Annex 15): only the stretch from the last safe character before a suspicious one to the next safe one is
 * decomposed, ordered and composed; the rest is copied. A character is safe when NFC never changes it and nothing before it can
 * absorb it. Two bitmaps answer "suspicious?" and "shadowed?"; rare questions go to the sorted tables.
 * Read-only once open. Sorting marks by class is a counting sort: a megabyte of marks must not be quadratic. */
#include "models/text/unicode.h"

#include <stdbool.h>
#include <stdint.h>

#include "models/text/utf8.h"

typedef struct unicode_range {
    uint32_t first, last, value;
} unicode_range;

typedef struct unicode_triple {
    uint32_t a, b, c;
} unicode_triple;

#include "models/text/unicode_tables.inc"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

enum {
    MAP_POINTS = 0x33000, /* the tables name nothing above */
    S_BASE = 0xAC00,
    L_BASE = 0x1100,
    V_BASE = 0x1161,
    T_BASE = 0x11A7, /* Hangul syllables are computed */
    L_COUNT = 19,
    V_COUNT = 21,
    T_COUNT = 28,
    S_COUNT = L_COUNT * V_COUNT * T_COUNT,
};

struct unicode_maps {
    uint64_t checked[MAP_POINTS / 64], shadowed[MAP_POINTS / 64];
};

static bool has(const uint64_t *map, uint32_t cp) { return cp < MAP_POINTS && (map[cp / 64] >> (cp % 64) & 1); }

static void mark(uint64_t *map, const unicode_range *r, size_t n)
{
    for (size_t i = 0; i < n; i++)
        for (uint32_t c = r[i].first; c <= r[i].last; c++)
            map[c / 64] |= UINT64_C(1) << (c % 64);
}

moe_err unicode_open(unicode_maps **out)
{
    *out = calloc(1, sizeof **out);
    if (!*out)
        return moe_fail(MOE_E_OS, "no memory for %zu bytes of Unicode tables", sizeof **out);
    mark((*out)->checked, nfc_checked, COUNT(nfc_checked));
    mark((*out)->shadowed, shadow_ranges, COUNT(shadow_ranges));
    return MOE_OK;
}

void unicode_close(unicode_maps *m) { free(m); }

/* The range with cp in it, or NULL. */
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

/* The first row not below (a, b) in a table sorted by its first two columns; n when there is none. */
static size_t lower_row(const unicode_triple *t, size_t n, uint32_t a, uint32_t b)
{
    size_t low = 0;
    while (low < n) {
        const size_t mid = low + (n - low) / 2;
        if (t[mid].a < a || (t[mid].a == a && t[mid].b < b))
            low = mid + 1;
        else
            n = mid;
    }
    return low;
}

static unsigned combining_class(uint32_t cp)
{
    if (cp < 0x300)
        return 0;
    const unicode_range *r = find_range(nfc_classes, COUNT(nfc_classes), cp);
    return r ? r->value : 0;
}

/* The primary composite of a and b, or 0. */
static uint32_t compose(uint32_t a, uint32_t b)
{
    if (a >= L_BASE && a < L_BASE + L_COUNT && b >= V_BASE && b < V_BASE + V_COUNT)
        return S_BASE + ((a - L_BASE) * V_COUNT + (b - V_BASE)) * T_COUNT;
    if (a >= S_BASE && a < S_BASE + S_COUNT && (a - S_BASE) % T_COUNT == 0 && b > T_BASE && b < T_BASE + T_COUNT)
        return a + (b - T_BASE);
    const size_t i = lower_row(nfc_compositions, COUNT(nfc_compositions), a, b);
    return i < COUNT(nfc_compositions) && nfc_compositions[i].a == a && nfc_compositions[i].b == b ? nfc_compositions[i].c : 0;
}

/* Code points with their classes; a growing list. */
typedef struct mark_list {
    struct {
        uint32_t cp, ccc;
    } * at;
    size_t n, capacity;
} mark_list;

static moe_err mark_push(mark_list *l, uint32_t cp)
{
    if (l->n == l->capacity) {
        const size_t capacity = l->capacity ? l->capacity * 2 : 64;
        void *at = realloc(l->at, capacity * sizeof *l->at);
        if (!at)
            return moe_fail(MOE_E_OS, "no memory for %zu characters", capacity);
        l->at = at;
        l->capacity = capacity;
    }
    l->at[l->n].cp = cp;
    l->at[l->n++].ccc = combining_class(cp);
    return MOE_OK;
}

/* Appends the canonical decomposition of cp (the tables nest at most four deep), or the compatible one. */
static moe_err decompose(mark_list *l, uint32_t cp, bool compatible)
{
    size_t n;
    const char *text = compatible ? unicode_compatible(cp, &n) : NULL;
    if (text) {
        for (uint32_t part; n > 0;) {
            const size_t k = utf8_decode(text, n, &part);
            TRY(mark_push(l, part));
            text += k;
            n -= k;
        }
        return MOE_OK;
    }
    if (cp >= S_BASE && cp < S_BASE + S_COUNT) {
        const uint32_t s = cp - S_BASE;
        TRY(mark_push(l, L_BASE + s / (V_COUNT * T_COUNT)));
        TRY(mark_push(l, V_BASE + s / T_COUNT % V_COUNT));
        return s % T_COUNT ? mark_push(l, T_BASE + s % T_COUNT) : MOE_OK;
    }
    const size_t i = lower_row(nfc_decompositions, COUNT(nfc_decompositions), cp, 0);
    if (cp < 0xC0 || i == COUNT(nfc_decompositions) || nfc_decompositions[i].a != cp)
        return mark_push(l, cp);
    TRY(decompose(l, nfc_decompositions[i].b, false));
    return nfc_decompositions[i].c ? decompose(l, nfc_decompositions[i].c, false) : MOE_OK;
}

/* Canonical order: stable by class inside each run of marks (class > 0). */
static moe_err order_marks(mark_list *l, mark_list *room)
{
    for (size_t i = 0; i < l->n;) {
        if (l->at[i].ccc == 0) {
            i++;
            continue;
        }
        size_t start[257] = {0}, end = i;
        bool sorted = true;
        for (; end < l->n && l->at[end].ccc != 0; end++) {
            start[l->at[end].ccc + 1]++;
            sorted = sorted && (end == i || l->at[end - 1].ccc <= l->at[end].ccc);
        }
        if (!sorted) {
            room->n = 0;
            for (size_t k = i; k < end; k++)
                TRY(mark_push(room, l->at[k].cp));
            for (int c = 1; c < 257; c++)
                start[c] += start[c - 1];
            for (size_t k = 0; k < room->n; k++)
                l->at[i + start[room->at[k].ccc]++] = room->at[k];
        }
        i = end;
    }
    return MOE_OK;
}

/* Composes in place. A mark is blocked from its starter by a character of class 0 or of the same or a higher class between them.
 */
static void compose_marks(mark_list *l)
{
    size_t n = 0, starter = SIZE_MAX;
    for (size_t i = 0; i < l->n; i++) {
        const uint32_t ccc = l->at[i].ccc;
        const bool reaches = starter != SIZE_MAX && (n - 1 == starter || l->at[n - 1].ccc < ccc);
        const uint32_t composite = reaches ? compose(l->at[starter].cp, l->at[i].cp) : 0;
        if (composite) {
            l->at[starter].cp = composite;
            continue;
        }
        if (ccc == 0)
            starter = n;
        l->at[n++] = l->at[i];
    }
    l->n = n;
}

static moe_err normalize_stretch(unicode_form form, const char *text, size_t bytes, mark_list *l, mark_list *room, text_buffer *out)
{
    const bool compatible = form == UNICODE_NFKC || form == UNICODE_NFKD;
    l->n = 0;
    for (size_t i = 0; i < bytes;) {
        uint32_t cp;
        i += utf8_decode(text + i, bytes - i, &cp);
        TRY(decompose(l, cp, compatible));
    }
    TRY(order_marks(l, room));
    if (form == UNICODE_NFC || form == UNICODE_NFKC)
        compose_marks(l);
    TRY(text_buffer_reserve(out, l->n * 4));
    for (size_t i = 0; i < l->n; i++)
        out->n += utf8_encode(out->data + out->n, l->at[i].cp);
    return MOE_OK;
}

/* The first suspicious character at or after i (bytes when there is none); *safe is the last safe one before it, SIZE_MAX if
 * none. */
static size_t next_checked(const unicode_maps *m, const char *text, size_t bytes, size_t i, size_t *safe)
{
    *safe = SIZE_MAX;
    while (i < bytes) {
        const size_t ascii = utf8_ascii_prefix(text + i, bytes - i);
        if (ascii > 0) {
            i += ascii;
            *safe = i - 1;
            continue;
        }
        uint32_t cp;
        const size_t k = utf8_decode(text + i, bytes - i, &cp);
        if (has(m->checked, cp))
            return i;
        *safe = i;
        i += k;
    }
    return bytes;
}

static size_t skip_checked(const unicode_maps *m, const char *text, size_t bytes, size_t i)
{
    while (i < bytes) {
        uint32_t cp;
        const size_t k = utf8_decode(text + i, bytes - i, &cp);
        if (!has(m->checked, cp))
            break;
        i += k;
    }
    return i;
}

moe_err unicode_nfc(const unicode_maps *m, const char *text, size_t bytes, text_buffer *room, const char **out, size_t *n)
{
    *out = text;
    *n = bytes;
    size_t safe, at = next_checked(m, text, bytes, 0, &safe);
    if (at == bytes)
        return MOE_OK;
    mark_list l = {0}, spare = {0};
    moe_err rc = MOE_OK;
    room->n = 0;
    for (size_t copied = 0; copied < bytes && rc == MOE_OK;) {
        const size_t first = at == bytes ? bytes : safe == SIZE_MAX ? at : safe;
        TRY_GOTO(text_buffer_append(room, text + copied, first - copied), rc, done);
        const size_t last = skip_checked(m, text, bytes, at);
        TRY_GOTO(normalize_stretch(UNICODE_NFC, text + first, last - first, &l, &spare, room), rc, done);
        copied = last;
        at = next_checked(m, text, bytes, last, &safe);
    }
    *out = room->data;
    *n = room->n;
done:
    free(l.at);
    free(spare.at);
    return rc;
}

moe_err unicode_normalize(const unicode_maps *m, unicode_form form, const char *text, size_t bytes, text_buffer *room, const char **out, size_t *n)
{
    *out = text;
    *n = bytes;
    if (form == UNICODE_NFC)
        return unicode_nfc(m, text, bytes, room, out, n);
    if (utf8_ascii_prefix(text, bytes) == bytes)
        return MOE_OK;
    mark_list l = {0}, spare = {0};
    moe_err rc;
    room->n = 0;
    TRY_GOTO(normalize_stretch(form, text, bytes, &l, &spare, room), rc, done);
    *out = room->data;
    *n = room->n;
done:
    free(l.at);
    free(spare.at);
    return rc;
}

moe_err unicode_shadow(const unicode_maps *m, const char *text, size_t bytes, text_buffer *room, const char **out)
{
    *out = text;
    for (size_t i = 0; (i += utf8_ascii_prefix(text + i, bytes - i)) < bytes;) {
        uint32_t cp;
        const size_t k = utf8_decode(text + i, bytes - i, &cp);
        if (has(m->shadowed, cp)) {
            if (*out == text) {
                room->n = 0;
                TRY(text_buffer_append(room, text, bytes));
                *out = room->data;
            }
            utf8_encode(room->data + i, find_range(shadow_ranges, COUNT(shadow_ranges), cp)->value);
        }
        i += k;
    }
    return MOE_OK;
}
