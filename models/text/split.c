/* Levels of compiled patterns (PCRE2, JIT where the system allows it). A pattern is checked before it is compiled: the escapes,
 * properties and class operators that Oniguruma and PCRE2 read differently are errors, not surprises.
 * Read-only once built. A pattern that would match for ever is stopped by the match limit, an error. */
#include "models/text/split.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "models/text/utf8.h"

enum {
    JIT_STACK_FIRST = 32 << 10, /* bytes */
    JIT_STACK_MOST = 64 << 20,  /* bytes: one long run of letters under a pattern that backtracks into it */
    MATCH_LIMIT = 200000000,    /* steps: four megabytes of one class still pass, an exponential pattern ends in seconds */
};

struct split {
    int levels;
    struct {
        pcre2_code *code;
        bool jit, keep_matches, keep_gaps;
    } level[SPLIT_LEVELS];
};

struct split_room {
    pcre2_match_data *data;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
};

moe_err split_open(split **out)
{
    *out = calloc(1, sizeof **out);
    return *out ? MOE_OK : moe_fail(MOE_E_OS, "no memory for the word splitter");
}

void split_close(split *s)
{
    if (!s)
        return;
    for (int i = 0; i < s->levels; i++)
        pcre2_code_free(s->level[i].code);
    free(s);
}

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

static moe_err refuse(const char *pattern, size_t bytes, const char *part, size_t part_bytes)
{
    return moe_fail(MOE_E_DATA, "pattern \"%.*s\": '%.*s' is not supported (Oniguruma and PCRE2 read it differently)",
                    (int)(bytes < 200 ? bytes : 200), pattern, (int)part_bytes, part);
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

moe_err split_add(split *s, const char *pattern, size_t bytes, bool keep_matches, bool keep_gaps)
{
    if (s->levels == SPLIT_LEVELS)
        return moe_fail(MOE_E_DATA, "more than %d steps of pre-tokenization", SPLIT_LEVELS);
    TRY(check_pattern(pattern, bytes));
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    if (!context)
        return moe_fail(MOE_E_OS, "no memory for a pattern");
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    int code = 0;
    size_t where = 0;
    const uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C | PCRE2_NO_AUTO_CAPTURE;
    pcre2_code *re = pcre2_compile((PCRE2_SPTR)pattern, bytes, options, &code, &where, context);
    pcre2_compile_context_free(context);
    if (!re) {
        char text[160] = "";
        pcre2_get_error_message(code, (PCRE2_UCHAR *)text, sizeof text);
        return moe_fail(MOE_E_DATA, "pattern \"%.*s\": %s at byte %zu", (int)(bytes < 200 ? bytes : 200), pattern, text, where);
    }
    s->level[s->levels].jit =
        pcre2_jit_compile(re, PCRE2_JIT_COMPLETE) == 0; /* refused under W^X: interpreted, the same matches */
    s->level[s->levels].code = re;
    s->level[s->levels].keep_matches = keep_matches;
    s->level[s->levels++].keep_gaps = keep_gaps;
    return MOE_OK;
}

moe_err split_room_open(split_room **out)
{
    split_room *r = *out = calloc(1, sizeof *r);
    if (!r)
        return moe_fail(MOE_E_OS, "no memory for matching");
    r->data = pcre2_match_data_create(1, NULL);
    r->context = pcre2_match_context_create(NULL);
    r->stack = pcre2_jit_stack_create(JIT_STACK_FIRST, JIT_STACK_MOST, NULL); /* NULL without JIT: not needed then */
    if (!r->data || !r->context) {
        split_room_close(r);
        *out = NULL;
        return moe_fail(MOE_E_OS, "no memory for matching");
    }
    pcre2_set_match_limit(r->context, MATCH_LIMIT);
    if (r->stack)
        pcre2_jit_stack_assign(r->context, NULL, r->stack);
    return MOE_OK;
}

void split_room_close(split_room *r)
{
    if (!r)
        return;
    pcre2_match_data_free(r->data);
    pcre2_match_context_free(r->context);
    pcre2_jit_stack_free(r->stack);
    free(r);
}

typedef struct split_job {
    const split *s;
    split_room *room;
    split_word_fn word;
    void *arg;
} split_job;

/* The next match at or after `from`; *found false when there is none. */
static moe_err next_match(const split_job *j, int level, const char *shadow, size_t bytes, size_t from, bool *found)
{
    const pcre2_code *re = j->s->level[level].code;
    const PCRE2_SPTR subject = (PCRE2_SPTR)shadow;
    const int rc = j->s->level[level].jit
                       ? pcre2_jit_match(re, subject, bytes, from, 0, j->room->data, j->room->context)
                       : pcre2_match(re, subject, bytes, from, PCRE2_NO_UTF_CHECK, j->room->data, j->room->context);
    *found = rc >= 0;
    if (rc >= 0 || rc == PCRE2_ERROR_NOMATCH)
        return MOE_OK;
    char text[160] = "";
    pcre2_get_error_message(rc, (PCRE2_UCHAR *)text, sizeof text);
    return moe_fail(MOE_E_DATA, "splitting text into words: %s after %zu bytes of a piece of %zu (a very long run of one kind?)",
                    text, from, bytes);
}

/* Depth is the number of levels (at most SPLIT_LEVELS). */
static moe_err run_level(const split_job *j, int level, const char *text, const char *shadow, size_t bytes)
{
    if (bytes == 0)
        return MOE_OK;
    if (level == j->s->levels)
        return j->word(j->arg, text, bytes);
    const bool gaps = j->s->level[level].keep_gaps, matches = j->s->level[level].keep_matches;
    size_t done = 0, from = 0;
    while (from < bytes) {
        bool found;
        TRY(next_match(j, level, shadow, bytes, from, &found));
        if (!found)
            break;
        const size_t *span = pcre2_get_ovector_pointer(j->room->data);
        const size_t first = span[0], last = span[1];
        if (gaps)
            TRY(run_level(j, level + 1, text + done, shadow + done, first - done));
        if (matches)
            TRY(run_level(j, level + 1, text + first, shadow + first, last - first));
        done = from = last;
        if (first == last) /* an empty match cuts; the search goes on behind the next character */
            for (from++; from < bytes && utf8_is_continuation(shadow[from]);)
                from++;
    }
    return gaps ? run_level(j, level + 1, text + done, shadow + done, bytes - done) : MOE_OK;
}

moe_err split_run(const split *s, split_room *room, const char *text, const char *shadow, size_t bytes, split_word_fn word,
                  void *arg)
{
    const split_job job = {s, room, word, arg};
    return run_level(&job, 0, text, shadow, bytes);
}
