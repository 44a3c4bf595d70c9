/* The pull reader against a table of texts: what JSON is, what it is not, and where the fault lies.
 * Every prefix of a good text must be an error and never a crash (run under ASan in the debug preset). */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "models/formats/json_reader.h"

/* Reads to the end; returns the events as one letter each, or NULL on error. */
static const char *events_of(const void *text, size_t bytes, char *out, size_t size)
{
    static const char letters[] = "{}[]ksntf0.";
    json_reader r;
    json_open(&r, "t.json", text, bytes);
    for (size_t n = 0; n + 1 < size;) {
        json_event e;
        if (json_next(&r, &e) != MOE_OK)
            return NULL;
        if (e == JSON_END) {
            out[n] = '\0';
            return out;
        }
        out[n++] = letters[e];
    }
    return NULL;
}

Test(json_reader, events)
{
    static const struct {
        const char *text, *events;
    } cases[] = {
        {"1", "n"},
        {" \t\r\n-0.5e+10 ", "n"},
        {"\"\"", "s"},
        {"true", "t"},
        {"false", "f"},
        {"null", "0"},
        {"{}", "{}"},
        {"[]", "[]"},
        {"[[],{},[1,2]]", "[[]{}[nn]]"},
        {"{\"a\":1,\"a\":{\"b\":[null]}}", "{knk{k[0]}}"},
        {"[\"\\u00e9\\ud83d\\ude00\", \"\xC3\xA9\"]", "[ss]"},
        {"{ \"a\" : 1 , \"b\" : 2 }", "{knkn}"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char out[64];
        const char *got = events_of(cases[i].text, strlen(cases[i].text), out, sizeof out);
        cr_assert(got && strcmp(got, cases[i].events) == 0, "%s: %s", cases[i].text, got ? got : moe_error_text());
    }
}

Test(json_reader, faults_name_the_byte)
{
    static const struct {
        const char *text;
        const char *sentence;
    } cases[] = {
        {"", "t.json: byte 0: JSON ends early; expected a value"},
        {"{\"a\":1,}", "t.json: byte 7: JSON: expected a key, found '}'"},
        {"[1,]", "t.json: byte 3: JSON: expected a value, found ']'"},
        {"[1 2]", "byte 3: JSON: expected ',' or ']', found '2'"},
        {"{\"a\" 1}", "byte 5: JSON: expected ':'"},
        {"{\"a\":1]", "byte 6: JSON: expected ',' or '}', found ']'"},
        {"1 1", "byte 2: JSON: expected nothing after the value"},
        {"01", "byte 1: JSON: expected nothing after the value"},
        {"-", "byte 1: JSON ends early; expected a digit"},
        {"1.", "expected a digit after '.'"},
        {"1e", "expected a digit in the exponent"},
        {"+1", "expected a value"},
        {"NaN", "expected a value"},
        {"tru", "expected a value"},
        {"'a'", "expected a value"},
        {"\"a\nb\"", "byte 2: JSON: expected an escape for a control character in a string, found byte 0x0a"},
        {"\"\\x\"", "expected an escape"},
        {"\"\\u12g4\"", "four hexadecimal digits"},
        {"\"\\udc00\"", "lone low surrogate"},
        {"\"\\ud800x\"", "a low surrogate after the high one"},
        {"\"\xC3(\"", "byte 1: JSON: expected valid UTF-8"},
        {"\"\xED\xA0\x80\"", "valid UTF-8"},
        {"\"\xC0\x80\"", "valid UTF-8"},
        {"\"\xF4\x90\x80\x80\"", "valid UTF-8"},
        {"\"abc", "closing '\"'"},
        {"\xEF\xBB\xBF{}", "expected a value, found byte 0xef"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char out[64];
        cr_assert_null(events_of(cases[i].text, strlen(cases[i].text), out, sizeof out), "accepted: %s", cases[i].text);
        cr_assert_not_null(strstr(moe_error_text(), cases[i].sentence), "%s: got \"%s\"", cases[i].text, moe_error_text());
    }
}

Test(json_reader, every_prefix_of_an_object_is_an_error)
{
    static const char text[] = "{\"a\\n\\u0041\":[1.5e-3,true,null,\"\\ud83d\\ude00\xF0\x9F\x98\x80\"],\"b\":{\"c\":false}}";
    char out[64];
    for (size_t n = 0; n < sizeof text - 1; n++) {
        char *copy = malloc(n ? n : 1); /* exact size: a read past the end is seen */
        memcpy(copy, text, n);
        cr_assert_null(events_of(copy, n, out, sizeof out), "prefix of %zu bytes", n);
        free(copy);
    }
    cr_assert_not_null(events_of(text, sizeof text - 1, out, sizeof out));
}

Test(json_reader, depth_is_limited)
{
    char text[2 * (JSON_DEPTH + 1) + 1], out[2 * JSON_DEPTH + 8];
    for (int depth = JSON_DEPTH; depth <= JSON_DEPTH + 1; depth++) {
        memset(text, '[', (size_t)depth);
        memset(text + depth, ']', (size_t)depth);
        const char *got = events_of(text, 2 * (size_t)depth, out, sizeof out);
        cr_assert_eq(got != NULL, depth == JSON_DEPTH);
    }
    cr_assert_not_null(strstr(moe_error_text(), "nested deeper than 64"));
}

Test(json_reader, strings_decode)
{
    static const char text[] = "\"a\\\"\\\\\\/\\b\\f\\n\\r\\t\\u00e9\\u20ac\\ud83d\\ude00\xE2\x82\xAC\"";
    static const char want[] = "a\"\\/\b\f\n\r\t\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80\xE2\x82\xAC";
    json_reader r;
    json_open(&r, "t", text, sizeof text - 1);
    cr_assert_eq(json_expect(&r, JSON_STRING), MOE_OK);
    char *s;
    cr_assert_eq(json_copy(&r, &s), MOE_OK);
    cr_assert_str_eq(s, want);
    free(s);
    cr_assert(json_is(&r, want));
    cr_assert_not(json_is(&r, "a"));
    json_open(&r, "t", "\"a\\u0000b\"", 10);
    cr_assert_eq(json_expect(&r, JSON_STRING), MOE_OK);
    cr_assert_eq(json_copy(&r, &s), MOE_E_DATA);
    cr_assert_null(s);
}

Test(json_reader, numbers)
{
    static const struct {
        const char *text;
        int64_t low, high;
        bool ok;
        int64_t v;
    } ints[] = {
        {"0", 0, 0, true, 0},
        {"-1", 0, 5, false, 0},
        {"9223372036854775807", 0, INT64_MAX, true, INT64_MAX},
        {"9223372036854775808", INT64_MIN, INT64_MAX, false, 0},
        {"-9223372036854775808", INT64_MIN, 0, true, INT64_MIN},
        {"1.0", 0, 5, false, 0},
        {"1e2", 0, 500, false, 0},
        {"\"1\"", 0, 5, false, 0},
    };
    for (size_t i = 0; i < sizeof ints / sizeof ints[0]; i++) {
        json_reader r;
        int64_t v;
        json_open(&r, "t", ints[i].text, strlen(ints[i].text));
        cr_assert_eq(json_get_int(&r, ints[i].low, ints[i].high, &v) == MOE_OK, ints[i].ok, "%s", ints[i].text);
        if (ints[i].ok)
            cr_assert_eq(v, ints[i].v);
    }
    json_reader r;
    uint64_t u;
    double d;
    json_open(&r, "t", "[18446744073709551615, -1, 18446744073709551616, 2.5e-3, 1e400]", 63);
    cr_assert_eq(json_expect(&r, JSON_ARRAY), MOE_OK);
    cr_assert_eq(json_get_uint(&r, UINT64_MAX, &u), MOE_OK);
    cr_assert_eq(u, UINT64_MAX);
    cr_assert_eq(json_get_uint(&r, UINT64_MAX, &u), MOE_E_DATA);
    cr_assert_eq(json_get_uint(&r, UINT64_MAX, &u), MOE_E_DATA);
    cr_assert_eq(json_get_double(&r, &d), MOE_OK);
    cr_assert_eq(d, 2.5e-3);
    cr_assert_eq(json_get_double(&r, &d), MOE_E_DATA);
    cr_assert_not_null(strstr(moe_error_text(), "t: byte 57: expected a number in the range of a double, found 1e400"), "%s",
                       moe_error_text());
}

Test(json_reader, skip_and_sizes)
{
    static const char text[] = "{\"skip\":{\"a\":[1,{\"b\":2}]},\"long\":\"0123456789\",\"on\":true}";
    json_reader r;
    bool on = false;
    json_open(&r, "t", text, sizeof text - 1);
    cr_assert_eq(json_expect(&r, JSON_OBJECT), MOE_OK);
    cr_assert_eq(json_expect(&r, JSON_KEY), MOE_OK);
    cr_assert_eq(json_skip(&r), MOE_OK);
    cr_assert_eq(r.depth, 1);
    cr_assert_eq(json_expect(&r, JSON_KEY), MOE_OK);
    cr_assert(json_is(&r, "long"));
    cr_assert_eq(json_skip(&r), MOE_OK);
    cr_assert_eq(json_expect(&r, JSON_KEY), MOE_OK);
    cr_assert_eq(json_get_bool(&r, &on), MOE_OK);
    cr_assert(on);
    cr_assert_eq(json_expect(&r, JSON_OBJECT_END), MOE_OK);
    cr_assert_eq(json_expect(&r, JSON_END), MOE_OK);
    cr_assert_eq(json_expect(&r, JSON_END), MOE_OK);

    json_open(&r, "t", text, sizeof text - 1);
    r.max_string = 9;
    cr_assert_eq(json_skip(&r), MOE_E_DATA);
    cr_assert_not_null(strstr(moe_error_text(), "string of 10 bytes; at most 9"), "%s", moe_error_text());
}
