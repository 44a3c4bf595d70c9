#include "engine/base/text.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool reserve(text_buf *t, size_t more)
{
    if (t->failed || more > SIZE_MAX / 4 - t->used)
        t->failed = true;
    if (t->failed)
        return false;
    const size_t need = t->used + more + 1;
    if (need <= t->capacity)
        return true;
    const size_t capacity = need < 128 ? 256 : need * 2;
    char *data = realloc(t->data, capacity);
    if (!data) {
        t->failed = true;
        return false;
    }
    t->data = data;
    t->capacity = capacity;
    return true;
}

void text_add_bytes(text_buf *t, const void *bytes, size_t n)
{
    if (!reserve(t, n))
        return;
    if (n > 0) /* nothing may come from NULL */
        memcpy(t->data + t->used, bytes, n);
    t->used += n;
    t->data[t->used] = '\0';
}

void text_add(text_buf *t, const char *s) { text_add_bytes(t, s, strlen(s)); }

void text_vprintf(text_buf *t, const char *fmt, va_list ap)
{
    va_list again;
    va_copy(again, ap);
    const int n = vsnprintf(NULL, 0, fmt, ap);
    if (n >= 0 && reserve(t, (size_t)n)) {
        vsnprintf(t->data + t->used, (size_t)n + 1, fmt, again);
        t->used += (size_t)n;
    }
    va_end(again);
}

void text_printf(text_buf *t, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    text_vprintf(t, fmt, ap);
    va_end(ap);
}

void text_pad(text_buf *t, size_t column)
{
    size_t begin = t->used;
    while (begin > 0 && t->data[begin - 1] != '\n')
        begin--;
    while (!t->failed && t->used - begin < column)
        text_add_bytes(t, " ", 1);
}

void text_free(text_buf *t)
{
    free(t->data);
    *t = (text_buf){0};
}

moe_err text_take(text_buf *t, char **out)
{
    *out = NULL;
    text_add_bytes(t, "", 0);
    if (t->failed) {
        text_free(t);
        return moe_fail(MOE_E_OS, "out of memory while writing a text");
    }
    *out = t->data;
    *t = (text_buf){0};
    return MOE_OK;
}

const char *text_double(char out[TEXT_NUMBER], double x)
{
    if (isnan(x))
        return strcpy(out, "nan");
    if (isinf(x))
        return strcpy(out, x < 0 ? "-inf" : "inf");
    if (x == (double)(int64_t)(fabs(x) < 1e15 ? x : 0) && x != 0) { /* %g would write 1000 as 1e+03 */
        snprintf(out, TEXT_NUMBER, "%.0f", x);
        return out;
    }
    for (int digits = 1; digits <= 17; digits++) { /* 17: enough for every double */
        snprintf(out, TEXT_NUMBER, "%.*g", digits, x);
        if (strtod(out, NULL) == x)
            break;
    }
    return out;
}

const char *text_count(char out[TEXT_NUMBER], int64_t n)
{
    char digits[TEXT_NUMBER];
    snprintf(digits, sizeof digits, "%" PRId64, n);
    size_t to = 0;
    const size_t length = strlen(digits), sign = digits[0] == '-';
    for (size_t i = 0; i < length; i++) {
        if (i > sign && (length - i) % 3 == 0)
            out[to++] = ',';
        out[to++] = digits[i];
    }
    out[to] = '\0';
    return out;
}

const char *text_bytes(char out[TEXT_NUMBER], double bytes)
{
    static const char *const unit[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    int u = 0;
    while (bytes >= 1023.95 && u < 5) { /* 1023.95: what would print as 1024.0 */
        bytes /= 1024;
        u++;
    }
    snprintf(out, TEXT_NUMBER, u == 0 ? "%.0f %s" : "%.1f %s", bytes, unit[u]);
    return out;
}

const char *text_seconds(char out[TEXT_NUMBER], double seconds)
{
    if (!(seconds < 1e15))
        return strcpy(out, "-");
    const int64_t s = (int64_t)(seconds + 0.5);
    if (seconds < 0.9995)
        snprintf(out, TEXT_NUMBER, "%.0f ms", seconds * 1000);
    else if (seconds < 59.95)
        snprintf(out, TEXT_NUMBER, "%.1f s", seconds);
    else if (s < 3600)
        snprintf(out, TEXT_NUMBER, "%" PRId64 ":%02" PRId64, s / 60, s % 60);
    else if (s < 86400)
        snprintf(out, TEXT_NUMBER, "%" PRId64 ":%02" PRId64 ":%02" PRId64, s / 3600, s / 60 % 60, s % 60);
    else
        snprintf(out, TEXT_NUMBER, "%" PRId64 "d %02" PRId64 ":%02" PRId64, s / 86400, s / 3600 % 24, s / 60 % 60);
    return out;
}

static bool digits_of_base(const char *s, int base)
{
    for (; *s; s++) {
        const int d = *s >= '0' && *s <= '9' ? *s - '0' : (*s | 32) >= 'a' && (*s | 32) <= 'f' ? (*s | 32) - 'a' + 10 : 99;
        if (d >= base)
            return false;
    }
    return true;
}

/* Sign and magnitude of a YAML 1.2 core integer. A sign before 0x or 0o is not part of that schema. */
static bool parse_magnitude(const char *s, bool *negative, uint64_t *magnitude)
{
    int base = 10;
    *negative = *s == '-';
    if (s[0] == '0' && (s[1] == 'x' || s[1] == 'o')) {
        base = s[1] == 'x' ? 16 : 8;
        s += 2;
    } else if (*s == '-' || *s == '+') {
        s++;
    }
    if (!*s || !digits_of_base(s, base))
        return false;
    errno = 0;
    *magnitude = strtoull(s, NULL, base);
    return errno == 0;
}

bool text_parse_uint(const char *s, uint64_t *out)
{
    bool negative;
    return parse_magnitude(s, &negative, out) && !(negative && *out != 0);
}

bool text_parse_int(const char *s, int64_t *out)
{
    bool negative;
    uint64_t magnitude;
    if (!parse_magnitude(s, &negative, &magnitude) || magnitude > (uint64_t)INT64_MAX + negative)
        return false;
    *out = negative ? (int64_t)(0 - magnitude) : (int64_t)magnitude;
    return true;
}

bool text_parse_double(const char *s, double *out)
{
    const char *p = s;
    int digits = 0;
    p += *p == '-' || *p == '+';
    for (; *p >= '0' && *p <= '9'; p++)
        digits++;
    if (*p == '.')
        for (p++; *p >= '0' && *p <= '9'; p++)
            digits++;
    if (digits == 0)
        return false;
    if (*p == 'e' || *p == 'E') {
        p++;
        p += *p == '-' || *p == '+';
        if (*p < '0' || *p > '9')
            return false;
        while (*p >= '0' && *p <= '9')
            p++;
    }
    if (*p)
        return false;
    *out = strtod(s, NULL);
    return isfinite(*out);
}

enum { NEAREST_LENGTH = 64 }; /* longer words are nobody's slip of the finger */

static char folded(char c)
{
    if (c >= 'A' && c <= 'Z')
        return (char)(c | 32);
    return c == '-' ? '_' : c;
}

int text_distance(const char *a, const char *b)
{
    const size_t na = strlen(a), nb = strlen(b);
    if (na > NEAREST_LENGTH || nb > NEAREST_LENGTH)
        return NEAREST_LENGTH + 1;
    int row[3][NEAREST_LENGTH + 1]; /* distances of a[0, i-2], a[0, i-1], a[0, i] to every prefix of b */
    for (size_t j = 0; j <= nb; j++)
        row[0][j] = (int)j;
    for (size_t i = 1; i <= na; i++) {
        int *now = row[i % 3], *last = row[(i + 2) % 3], *older = row[(i + 1) % 3];
        now[0] = (int)i;
        for (size_t j = 1; j <= nb; j++) {
            int best = last[j - 1] + (folded(a[i - 1]) != folded(b[j - 1]));
            if (last[j] + 1 < best)
                best = last[j] + 1;
            if (now[j - 1] + 1 < best)
                best = now[j - 1] + 1;
            if (i > 1 && j > 1 && folded(a[i - 1]) == folded(b[j - 2]) && folded(a[i - 2]) == folded(b[j - 1]) &&
                older[j - 2] + 1 < best)
                best = older[j - 2] + 1;
            now[j] = best;
        }
    }
    return row[na % 3][nb];
}

const char *text_nearest(const char *word, text_candidate_fn next, const void *ctx)
{
    const char *found = NULL;
    int best = (int)(strlen(word) / 3) + 1; /* up to a third of the letters wrong */
    const char *candidate;
    for (int i = 0; (candidate = next(ctx, i)) != NULL; i++) {
        const int d = text_distance(word, candidate);
        const size_t shared = strlen(word) < strlen(candidate) ? strlen(word) : strlen(candidate);
        /* "warmup" for "warmup_steps": a whole word left out is as common as a wrong letter */
        const bool begins = shared >= 3 && strncasecmp(word, candidate, shared) == 0;
        if (d <= best && d < (int)strlen(candidate)) {
            if (d < best || !found)
                found = candidate;
            best = d;
        } else if (begins && !found) {
            found = candidate;
        }
    }
    return found;
}
