/* Compiled patterns (PCRE2, JIT where the system allows it). A pattern is checked before it is compiled: the escapes, properties and class
 * operators that Oniguruma and PCRE2 read differently are errors, not surprises.
 * Read-only once open. A pattern that would match for ever is stopped by the match limit, an error. */
#include "models/text/pattern.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

enum {
    JIT_STACK_FIRST = 32 << 10, /* bytes */
    JIT_STACK_MOST = 64 << 20,  /* bytes: one long run of letters under a pattern that backtracks into it */
    MATCH_LIMIT = 200000000,    /* steps: four megabytes of one class still pass, an exponential pattern ends in seconds */
};

struct pattern {
    pcre2_code *code; /* NULL: a literal text */
    bool jit, spelt; /* spelt: every character is named, no class of Unicode */
    char *literal;
    size_t bytes;
};

struct pattern_room {
    pcre2_match_data *data;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
};

/* p is behind "\p" or "\P": {L}, {^Lu}, ... Only general categories mean the same in both libraries. Returns its length, 0:
 * refused. */
static size_t category_length(const char *p, size_t n)
{
    static const char *const names[] = {"L",  "Lu", "Ll", "Lt", "Lm", "Lo", "M",  "Mn", "Mc", "Me", "N",  "Nd", "Nl",
                                        "No", "P",  "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "S",  "Sm", "Sc", "Sk",
                                        "So", "Z",  "Zs", "Zl", "Zp", "C",  "Cc", "Cf", "Co", "Cn", "Cs"};
    const char *end = n ? memchr(p, '}', n < 16 ? n : 16) : NULL;
    if (!end || p[0] != '{')
        return 0;
    const char *name = p + 1 + (p[1] == '^');
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if ((size_t)(end - name) == strlen(names[i]) && memcmp(name, names[i], strlen(names[i])) == 0)
            return (size_t)(end - p) + 1;
    return 0;
}

static moe_err refuse(const char *text, size_t bytes, const char *part, size_t part_bytes)
{
    return moe_fail(MOE_E_DATA, "pattern \"%.*s\": '%.*s' is not supported (Oniguruma and PCRE2 read it differently)",
                    (int)(bytes < 200 ? bytes : 200), text, (int)part_bytes, part);
}

/* Everything that both libraries read alike passes. */
static moe_err check_pattern(const char *p, size_t bytes)
{
    bool in_class = false;
    for (size_t i = 0; i < bytes; i++) {
        const size_t left = bytes - i;
        if (p[i] == '\\') {
            const char c = left > 1 ? p[i + 1] : '\0';
            if (c == 'p' || c == 'P') {
                const size_t k = category_length(p + i + 2, left - 2);
                if (k == 0)
                    return refuse(p, bytes, p + i, left < 12 ? left : 12);
                i += 1 + k;
                continue;
            }
            const bool word = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '\0';
            if (word && (c == '\0' || !strchr("sSdDrntfeax", c)))
                return refuse(p, bytes, p + i, left < 2 ? left : 2);
            i++;
        } else if (in_class) {
            if (p[i] == '[' || (p[i] == '&' && left > 1 && p[i + 1] == '&'))
                return refuse(p, bytes, p + i, left < 2 ? left : 2);
            if (p[i] == ']')
                in_class = false;
        } else if (p[i] == '[') {
            in_class = true;
            if (left > 1 && p[i + 1] == '^')
                i++;
            if (i + 1 < bytes && p[i + 1] == ']')
                return refuse(p, bytes, p + i, 2);
        } else if (p[i] == '(' && left > 2 && p[i + 1] == '?' && !strchr(":=!<>i#-", p[i + 2])) {
            return refuse(p, bytes, p + i, 3);
        } else if (p[i] == '(' && left > 1 && p[i + 1] == '*') {
            return refuse(p, bytes, p + i, 2);
        }
    }
    return MOE_OK;
}

/* Does it ask for a class that depends on Unicode's tables? */
static bool has_class(const char *p, size_t bytes)
{
    for (size_t i = 0; i + 1 < bytes; i++)
        if (p[i] == '\\' && strchr("pPsSdD", p[++i]))
            return true;
    return false;
}

static moe_err compile(pattern *p, const char *text, size_t bytes)
{
    TRY(check_pattern(text, bytes));
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    if (!context)
        return moe_fail(MOE_E_OS, "no memory for a pattern");
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    int code = 0;
    size_t where = 0;
    const uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C | PCRE2_NO_AUTO_CAPTURE;
    p->code = pcre2_compile((PCRE2_SPTR)text, bytes, options, &code, &where, context);
    pcre2_compile_context_free(context);
    if (!p->code) {
        char message[160] = "";
        pcre2_get_error_message(code, (PCRE2_UCHAR *)message, sizeof message);
        return moe_fail(MOE_E_DATA, "pattern \"%.*s\": %s at byte %zu", (int)(bytes < 200 ? bytes : 200), text, message, where);
    }
    p->spelt = !has_class(text, bytes);
    p->jit = pcre2_jit_compile(p->code, PCRE2_JIT_COMPLETE) == 0; /* refused under W^X: interpreted, the same matches */
    return MOE_OK;
}

moe_err pattern_open(pattern **out, const char *text, size_t bytes, bool literal)
{
    pattern *p = *out = calloc(1, sizeof *p);
    moe_err rc = p ? MOE_OK : moe_fail(MOE_E_OS, "no memory for a pattern");
    if (rc == MOE_OK && bytes == 0)
        rc = moe_fail(MOE_E_DATA, "an empty pattern is not supported");
    if (rc == MOE_OK && !literal)
        rc = compile(p, text, bytes);
    if (rc == MOE_OK && literal) {
        p->literal = malloc(bytes);
        p->bytes = bytes;
        rc = p->literal ? MOE_OK : moe_fail(MOE_E_OS, "no memory for a pattern");
        if (p->literal)
            memcpy(p->literal, text, bytes);
    }
    if (rc == MOE_OK)
        return MOE_OK;
    pattern_close(p);
    *out = NULL;
    return rc;
}

void pattern_close(pattern *p)
{
    if (!p)
        return;
    pcre2_code_free(p->code);
    free(p->literal);
    free(p);
}

moe_err pattern_room_open(pattern_room **out)
{
    pattern_room *r = *out = calloc(1, sizeof *r);
    if (!r)
        return moe_fail(MOE_E_OS, "no memory for matching");
    r->data = pcre2_match_data_create(1, NULL);
    r->context = pcre2_match_context_create(NULL);
    r->stack = pcre2_jit_stack_create(JIT_STACK_FIRST, JIT_STACK_MOST, NULL); /* NULL without JIT: not needed then */
    if (!r->data || !r->context) {
        pattern_room_close(r);
        *out = NULL;
        return moe_fail(MOE_E_OS, "no memory for matching");
    }
    pcre2_set_match_limit(r->context, MATCH_LIMIT);
    if (r->stack)
        pcre2_jit_stack_assign(r->context, NULL, r->stack);
    return MOE_OK;
}

void pattern_room_close(pattern_room *r)
{
    if (!r)
        return;
    pcre2_match_data_free(r->data);
    pcre2_match_context_free(r->context);
    pcre2_jit_stack_free(r->stack);
    free(r);
}

moe_err pattern_next(const pattern *p, pattern_room *room, const char *text, const char *shadow, size_t bytes, size_t from, bool *found,
                     size_t *first, size_t *last)
{
    *first = *last = 0;
    if (!p->code) {
        const char *at = memmem(text + from, bytes - from, p->literal, p->bytes);
        *found = at != NULL;
        if (at) {
            *first = (size_t)(at - text);
            *last = *first + p->bytes;
        }
        return MOE_OK;
    }
    const PCRE2_SPTR subject = (PCRE2_SPTR)(p->spelt ? text : shadow);
    const int rc = p->jit ? pcre2_jit_match(p->code, subject, bytes, from, 0, room->data, room->context)
                          : pcre2_match(p->code, subject, bytes, from, PCRE2_NO_UTF_CHECK, room->data, room->context);
    *found = rc >= 0;
    if (rc >= 0) {
        const size_t *span = pcre2_get_ovector_pointer(room->data);
        *first = span[0];
        *last = span[1];
    }
    if (rc >= 0 || rc == PCRE2_ERROR_NOMATCH)
        return MOE_OK;
    char message[160] = "";
    pcre2_get_error_message(rc, (PCRE2_UCHAR *)message, sizeof message);
    return moe_fail(MOE_E_DATA, "matching a pattern: %s after %zu bytes of a piece of %zu (a very long run of one kind?)", message, from, bytes);
}
