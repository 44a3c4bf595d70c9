/* The pull reader: a state machine over one text. A level of nesting is one bit, so depth costs nothing and cannot overflow a
 * stack. Strings are checked completely (UTF-8, escapes, surrogates) when they are passed, so that decoding cannot fail. One
 * reader, one thread. `at` never passes `bytes`. */
#include "models/formats/json_reader.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "models/text/utf8.h"

enum { AT_VALUE, AT_FIRST_KEY, AT_KEY, AT_FIRST_ITEM, AT_SEPARATOR, AT_END };

static const char *const event_names[] = {
    [JSON_OBJECT] = "an object", [JSON_OBJECT_END] = "'}'",  [JSON_ARRAY] = "an array",  [JSON_ARRAY_END] = "']'",
    [JSON_KEY] = "a key",        [JSON_STRING] = "a string", [JSON_NUMBER] = "a number", [JSON_TRUE] = "true",
    [JSON_FALSE] = "false",      [JSON_NULL] = "null",       [JSON_END] = "the end",
};

const char *json_event_name(json_event e) { return event_names[e]; }

void json_open(json_reader *r, const char *name, const void *text, size_t bytes)
{
    *r = (json_reader){.name = name,
                       .text = text,
                       .bytes = bytes,
                       .max_depth = JSON_DEPTH,
                       .max_string = SIZE_MAX,
                       .event = JSON_NULL,
                       .raw = "",
                       .state = AT_VALUE};
}

moe_err json_fail(const json_reader *r, moe_err code, const char *fmt, ...)
{
    char text[1024];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return moe_fail(code, "%s: byte %zu: %s", r->name, r->where, text);
}

static moe_err expected(json_reader *r, const char *what)
{
    r->where = r->at;
    if (r->at >= r->bytes)
        return json_fail(r, MOE_E_DATA, "JSON ends early; expected %s", what);
    const unsigned char c = (unsigned char)r->text[r->at];
    if (c > 0x20 && c < 0x7F)
        return json_fail(r, MOE_E_DATA, "JSON: expected %s, found '%c'", what, c);
    return json_fail(r, MOE_E_DATA, "JSON: expected %s, found byte 0x%02x", what, c);
}

static void skip_space(json_reader *r)
{
    while (r->at < r->bytes) {
        const char c = r->text[r->at];
        if (c != ' ' && c != '\n' && c != '\r' && c != '\t')
            return;
        r->at++;
    }
}

static int hex4(const char *s)
{
    int v = 0;
    for (int i = 0; i < 4; i++) {
        const char c = s[i];
        const int d = c >= '0' && c <= '9'   ? c - '0'
                      : c >= 'a' && c <= 'f' ? c - 'a' + 10
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                             : -1;
        if (d < 0)
            return -1;
        v = v << 4 | d;
    }
    return v;
}

/* text[at] is a backslash. A \u escape of the upper half must be followed by one of the lower half. */
static moe_err scan_escape(json_reader *r)
{
    const size_t left = r->bytes - r->at;
    const char c = left > 1 ? r->text[r->at + 1] : '\0';
    if (c != '\0' && strchr("\"\\/bfnrt", c)) {
        r->at += 2;
        return MOE_OK;
    }
    if (c != 'u')
        return expected(r, "an escape (\\\" \\\\ \\/ \\b \\f \\n \\r \\t \\uXXXX)");
    const int high = left >= 6 ? hex4(r->text + r->at + 2) : -1;
    if (high < 0)
        return expected(r, "four hexadecimal digits after \\u");
    if (high >= 0xDC00 && high <= 0xDFFF)
        return expected(r, "a character (\\u escape is a lone low surrogate)");
    if (high >= 0xD800 && high <= 0xDBFF) {
        const int low = left >= 12 && r->text[r->at + 6] == '\\' && r->text[r->at + 7] == 'u' ? hex4(r->text + r->at + 8) : -1;
        if (low < 0xDC00 || low > 0xDFFF)
            return expected(r, "a low surrogate after the high one");
        r->at += 6;
    }
    r->at += 6;
    return MOE_OK;
}

static moe_err scan_string(json_reader *r)
{
    r->where = r->at;
    const size_t start = ++r->at;
    r->escaped = false;
    while (r->at < r->bytes) {
        const unsigned char c = (unsigned char)r->text[r->at];
        if (c == '"') {
            r->raw = r->text + start;
            r->raw_bytes = r->at++ - start;
            if (r->raw_bytes > r->max_string)
                return json_fail(r, MOE_E_DATA, "JSON string of %zu bytes; at most %zu are allowed", r->raw_bytes, r->max_string);
            return MOE_OK;
        }
        if (c == '\\') {
            r->escaped = true;
            TRY(scan_escape(r));
        } else if (c < 0x20) {
            return expected(r, "an escape for a control character in a string");
        } else if (c < 0x80) {
            r->at++;
        } else {
            uint32_t cp;
            const size_t k = utf8_decode(r->text + r->at, r->bytes - r->at, &cp);
            if (k == 0)
                return expected(r, "valid UTF-8 in a string");
            r->at += k;
        }
    }
    return expected(r, "the closing '\"' of a string");
}

static size_t scan_digits(json_reader *r)
{
    const size_t start = r->at;
    while (r->at < r->bytes && r->text[r->at] >= '0' && r->text[r->at] <= '9')
        r->at++;
    return r->at - start;
}

static moe_err scan_number(json_reader *r)
{
    const size_t start = r->where = r->at;
    if (r->text[r->at] == '-')
        r->at++;
    if (r->at < r->bytes && r->text[r->at] == '0')
        r->at++;
    else if (scan_digits(r) == 0)
        return expected(r, "a digit");
    if (r->at < r->bytes && r->text[r->at] == '.') {
        r->at++;
        if (scan_digits(r) == 0)
            return expected(r, "a digit after '.'");
    }
    if (r->at < r->bytes && (r->text[r->at] == 'e' || r->text[r->at] == 'E')) {
        r->at++;
        if (r->at < r->bytes && (r->text[r->at] == '+' || r->text[r->at] == '-'))
            r->at++;
        if (scan_digits(r) == 0)
            return expected(r, "a digit in the exponent");
    }
    r->raw = r->text + start;
    r->raw_bytes = r->at - start;
    if (r->raw_bytes > r->max_string)
        return json_fail(r, MOE_E_DATA, "JSON number of %zu characters; at most %zu are allowed", r->raw_bytes, r->max_string);
    return MOE_OK;
}

static moe_err scan_word(json_reader *r, const char *word)
{
    const size_t n = strlen(word);
    if (r->bytes - r->at < n || memcmp(r->text + r->at, word, n) != 0)
        return expected(r, "a value");
    r->where = r->at;
    r->at += n;
    return MOE_OK;
}

static void after_value(json_reader *r) { r->state = r->depth > 0 ? AT_SEPARATOR : AT_END; }

static moe_err begin_container(json_reader *r, json_event *e)
{
    const bool object = r->text[r->at] == '{';
    if (r->depth >= r->max_depth || r->depth >= JSON_DEPTH) {
        r->where = r->at;
        return json_fail(r, MOE_E_DATA, "JSON is nested deeper than %d levels", r->depth);
    }
    r->where = r->at++;
    const uint64_t bit = UINT64_C(1) << r->depth++;
    r->kinds = object ? r->kinds | bit : r->kinds & ~bit;
    r->state = object ? AT_FIRST_KEY : AT_FIRST_ITEM;
    *e = object ? JSON_OBJECT : JSON_ARRAY;
    return MOE_OK;
}

static void end_container(json_reader *r, json_event *e)
{
    *e = r->text[r->at] == '}' ? JSON_OBJECT_END : JSON_ARRAY_END;
    r->where = r->at++;
    r->depth--;
    after_value(r);
}

static moe_err read_value(json_reader *r, json_event *e)
{
    const char c = r->at < r->bytes ? r->text[r->at] : '\0';
    switch (c) {
    case '{':
    case '[':
        return begin_container(r, e);
    case '"':
        TRY(scan_string(r));
        *e = JSON_STRING;
        break;
    case 't':
        TRY(scan_word(r, "true"));
        *e = JSON_TRUE;
        break;
    case 'f':
        TRY(scan_word(r, "false"));
        *e = JSON_FALSE;
        break;
    case 'n':
        TRY(scan_word(r, "null"));
        *e = JSON_NULL;
        break;
    default:
        if (c != '-' && (c < '0' || c > '9'))
            return expected(r, "a value");
        TRY(scan_number(r));
        *e = JSON_NUMBER;
    }
    after_value(r);
    return MOE_OK;
}

static moe_err read_key(json_reader *r, json_event *e)
{
    if (r->at >= r->bytes || r->text[r->at] != '"')
        return expected(r, r->state == AT_FIRST_KEY ? "a key or '}'" : "a key");
    TRY(scan_string(r));
    skip_space(r);
    if (r->at >= r->bytes || r->text[r->at] != ':')
        return expected(r, "':'");
    r->at++;
    r->state = AT_VALUE;
    *e = JSON_KEY;
    return MOE_OK;
}

/* After a value: at the end, a closing bracket, or a comma and what follows it. */
static moe_err read_separator(json_reader *r, json_event *e)
{
    const bool object = r->kinds >> (r->depth - 1) & 1;
    const char c = r->at < r->bytes ? r->text[r->at] : '\0';
    if (c == (object ? '}' : ']')) {
        end_container(r, e);
        return MOE_OK;
    }
    if (c != ',')
        return expected(r, object ? "',' or '}'" : "',' or ']'");
    r->at++;
    skip_space(r);
    r->state = object ? AT_KEY : AT_VALUE;
    return object ? read_key(r, e) : read_value(r, e);
}

static moe_err next_event(json_reader *r, json_event *e)
{
    skip_space(r);
    const char c = r->at < r->bytes ? r->text[r->at] : '\0';
    switch (r->state) {
    case AT_VALUE:
        return read_value(r, e);
    case AT_KEY:
        return read_key(r, e);
    case AT_SEPARATOR:
        return read_separator(r, e);
    case AT_FIRST_KEY:
        if (c != '}')
            return read_key(r, e);
        end_container(r, e);
        return MOE_OK;
    case AT_FIRST_ITEM:
        if (c != ']')
            return read_value(r, e);
        end_container(r, e);
        return MOE_OK;
    default:
        if (r->at < r->bytes)
            return expected(r, "nothing after the value");
        r->where = r->at;
        *e = JSON_END;
        return MOE_OK;
    }
}

moe_err json_next(json_reader *r, json_event *e)
{
    *e = JSON_END;
    TRY(next_event(r, e));
    r->event = *e;
    return MOE_OK;
}

moe_err json_expect(json_reader *r, json_event e)
{
    json_event got;
    TRY(json_next(r, &got));
    if (got != e)
        return json_fail(r, MOE_E_DATA, "JSON: expected %s, found %s", json_event_name(e), json_event_name(got));
    return MOE_OK;
}

moe_err json_skip_rest(json_reader *r)
{
    if (r->event != JSON_OBJECT && r->event != JSON_ARRAY)
        return MOE_OK;
    for (const int outside = r->depth - 1; r->depth > outside;) {
        json_event e;
        TRY(json_next(r, &e));
    }
    return MOE_OK;
}

moe_err json_skip(json_reader *r)
{
    json_event e;
    TRY(json_next(r, &e));
    return json_skip_rest(r);
}

size_t json_decode(const json_reader *r, char *out)
{
    if (!r->escaped) {
        memcpy(out, r->raw, r->raw_bytes);
        return r->raw_bytes;
    }
    size_t n = 0;
    for (size_t i = 0; i < r->raw_bytes;) {
        if (r->raw[i] != '\\') {
            out[n++] = r->raw[i++];
            continue;
        }
        const char c = r->raw[i + 1];
        if (c != 'u') {
            static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
            out[n++] = to[strchr(from, c) - from];
            i += 2;
            continue;
        }
        uint32_t cp = (uint32_t)hex4(r->raw + i + 2);
        i += 6;
        if (cp >= 0xD800 && cp <= 0xDBFF) {
            cp = 0x10000 + ((cp - 0xD800) << 10) + ((uint32_t)hex4(r->raw + i + 2) - 0xDC00);
            i += 6;
        }
        n += utf8_encode(out + n, cp);
    }
    return n;
}

bool json_is(const json_reader *r, const char *s)
{
    const size_t n = strlen(s);
    if (!r->escaped)
        return n == r->raw_bytes && memcmp(s, r->raw, n) == 0;
    char text[1024]; /* six bytes of an escape for one decoded: names of up to 170 bytes */
    if (r->raw_bytes > sizeof text || r->raw_bytes > 6 * n)
        return false;
    return json_decode(r, text) == n && memcmp(s, text, n) == 0;
}
