/* A template's text as tokens: data between {{ }}, {% %} and {# #}, with the white space that jinja2 takes away (trim_blocks,
 * lstrip_blocks, "-" and "+"), and what stands inside. Owns nothing; everything lies in the room. One thread.
 * The rules are those of jinja2's lexer: newlines become \n, one at the very end is dropped, a block takes the newline behind it. */
#include <stdlib.h>
#include <string.h>

#include "engine/base/text.h"
#include "models/text/template_private.h"
#include "models/text/utf8.h"

typedef struct lexer {
    room *m;
    const char *p, *end;
    token_list *out;
    bool line_starting;
    int line;
} lexer;

static void add(lexer *x, token t)
{
    token_list *l = x->out;
    if (l->n == l->capacity) {
        const size_t capacity = l->capacity ? 2 * l->capacity : 256;
        token *grown = room_array(x->m, capacity, sizeof *grown);
        if (l->n > 0)
            memcpy(grown, l->t, l->n * sizeof *grown);
        l->t = grown;
        l->capacity = capacity;
    }
    t.line = x->line;
    l->t[l->n++] = t;
}

static bool starts(const lexer *x, const char *text)
{
    const size_t n = strlen(text);
    return (size_t)(x->end - x->p) >= n && memcmp(x->p, text, n) == 0;
}

static void advance(lexer *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x->line += x->p[i] == '\n';
    x->p += n;
}

static size_t space_at(const char *p, const char *end)
{
    uint32_t cp;
    const size_t n = utf8_decode(p, (size_t)(end - p), &cp);
    return n > 0 && text_is_space(cp) ? n : 0;
}

static void skip_space(lexer *x)
{
    for (size_t n; x->p < x->end && (n = space_at(x->p, x->end)) > 0;)
        advance(x, n);
}

/* Data up to a tag that is no variable loses the blanks of its last line; with "-" all white space at its end. */
static void add_data(lexer *x, const char *from, const char *to, char sign, bool variable)
{
    if (sign == '-') {
        const char *last = from;
        for (const char *q = from; q < to;) {
            uint32_t cp;
            const size_t n = utf8_decode(q, (size_t)(to - q), &cp);
            q += n;
            if (!text_is_space(cp))
                last = q;
        }
        to = last;
    } else if (sign != '+' && !variable) {
        const char *line = to;
        while (line > from && line[-1] != '\n')
            line--;
        if (line > from || x->line_starting) {
            const char *q = line;
            for (size_t n; q < to && (n = space_at(q, to)) > 0;)
                q += n;
            to = q == to ? line : to;
        }
    }
    if (to > from)
        add(x, (token){.kind = K_DATA, .s = str_new(x->m, from, (size_t)(to - from), false)});
}

/* Behind a tag: "-" takes all white space, a block or comment otherwise the one newline. */
static void after_tag(lexer *x, char sign, bool variable)
{
    const char *from = x->p;
    if (sign == '-')
        skip_space(x);
    else if (!variable && sign != '+' && x->p < x->end && *x->p == '\n')
        advance(x, 1);
    x->line_starting = x->p > from && x->p[-1] == '\n';
}

static unsigned digits(lexer *x, const char *p, const char *end, int n, int base)
{
    unsigned v = 0;
    for (int i = 0; i < n; i++) {
        const char c = p + i < end ? p[i] : 0;
        const int d = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : 99;
        if (d >= base)
            template_fail(x->m, MOE_E_DATA, "a damaged escape in a string");
        v = v * (unsigned)base + (unsigned)d;
    }
    return v;
}

static void add_code_point(lexer *x, buffer *b, uint32_t cp)
{
    char utf8[4];
    if (cp > 0x10FFFF || (cp >= 0xD800 && cp < 0xE000))
        template_fail(x->m, MOE_E_DATA, "an escape in a string is no character: U+%04X", cp);
    buffer_add(b, utf8, utf8_encode(utf8, cp), false);
}

/* Python's escapes; an unknown one keeps its backslash. */
static const char *add_escape(lexer *x, buffer *b, const char *p, const char *end)
{
    static const char names[] = "\\'\"abfnrtv", codes[] = "\\'\"\a\b\f\n\r\t\v";
    const char c = *p++;
    const char *at = strchr(names, c);
    if (c == '\n')
        return p;
    if (at != NULL && c != '\0') {
        buffer_add(b, &codes[at - names], 1, false);
    } else if (c == 'x' || c == 'u' || c == 'U') {
        const int n = c == 'x' ? 2 : c == 'u' ? 4 : 8;
        add_code_point(x, b, digits(x, p, end, n, 16));
        p += n;
    } else if (c >= '0' && c <= '7') {
        int n = 1;
        while (n < 3 && p + n - 1 < end && p[n - 1] >= '0' && p[n - 1] <= '7')
            n++;
        add_code_point(x, b, digits(x, p - 1, end, n, 8));
        p += n - 1;
    } else if (c == 'N') {
        template_fail(x->m, MOE_E_DATA, "\\N{...} in a string is not supported");
    } else {
        buffer_add(b, p - 2, 2, false);
    }
    return p;
}

static void lex_string(lexer *x)
{
    const char quote = *x->p, *p = x->p + 1;
    buffer b = {.m = x->m};
    while (p < x->end && *p != quote) {
        const char *from = p;
        while (p < x->end && *p != quote && *p != '\\')
            p++;
        buffer_add(&b, from, (size_t)(p - from), false);
        if (p + 1 < x->end && *p == '\\')
            p = add_escape(x, &b, p + 1, x->end);
        else if (p < x->end && *p == '\\')
            p++;
    }
    if (p >= x->end)
        template_fail(x->m, MOE_E_DATA, "a string is not closed");
    add(x, (token){.kind = K_STRING, .s = buffer_take(&b)});
    advance(x, (size_t)(p + 1 - x->p));
}

static bool is_digit(char c) { return c >= '0' && c <= '9'; }
static bool is_name(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || is_digit(c); }

/* Decimal digits with single underscores between them. */
static const char *pass_digits(const char *p, const char *end)
{
    while (p < end && (is_digit(*p) || (*p == '_' && p + 1 < end && is_digit(p[1]) && is_digit(p[-1]))))
        p++;
    return p;
}

static void lex_number(lexer *x)
{
    const bool after_dot = x->out->n > 0 && x->out->t[x->out->n - 1].kind == K_OP && str_is(x->out->t[x->out->n - 1].s, ".");
    const char *p = pass_digits(x->p, x->end);
    bool is_float = false;
    char text[64];
    size_t n = 0;
    if (p == x->p + 1 && *x->p == '0' && p < x->end && strchr("xXoObB", *p) != NULL)
        template_fail(x->m, MOE_E_DATA, "numbers with a base are not supported");
    if (!after_dot && p + 1 < x->end && *p == '.' && is_digit(p[1])) {
        is_float = true;
        p = pass_digits(p + 1, x->end);
    }
    if (!after_dot && p < x->end && (*p == 'e' || *p == 'E')) {
        const char *q = p + 1 + (p + 1 < x->end && (p[1] == '+' || p[1] == '-'));
        if (q < x->end && is_digit(*q)) {
            is_float = true;
            p = pass_digits(q, x->end);
        }
    }
    for (const char *q = x->p; q < p && n + 1 < sizeof text; q++)
        if (*q != '_')
            text[n++] = *q;
    text[n] = '\0';
    token t = {.kind = is_float ? K_FLOAT : K_INT};
    if (!(is_float ? text_parse_double(text, &t.f) : text_parse_int(text, &t.i)) || n + 1 == sizeof text)
        template_fail(x->m, MOE_E_DATA, "the number %s is out of range", text);
    add(x, t);
    advance(x, (size_t)(p - x->p));
}

static void lex_operator(lexer *x)
{
    static const char *const two[] = {"//", "**", "==", "!=", ">=", "<="};
    static const char one[] = "+-/*%~[](){}<>=.:|,;";
    size_t n = strchr(one, *x->p) != NULL && *x->p != '\0';
    for (size_t i = 0; i < sizeof two / sizeof *two; i++)
        if (starts(x, two[i]))
            n = 2;
    if (n == 0)
        template_fail(x->m, MOE_E_DATA, "unexpected character 0x%02x", (unsigned char)*x->p);
    add(x, (token){.kind = K_OP, .s = str_new(x->m, x->p, n, false)});
    advance(x, n);
}

/* What stands inside a tag, up to its end. */
static void lex_inside(lexer *x, bool variable)
{
    const char *close = variable ? "}}" : "%}";
    char open[256];
    int depth = 0;
    for (;;) {
        skip_space(x);
        x->m->line = x->line;
        if (x->p >= x->end)
            template_fail(x->m, MOE_E_DATA, "a tag is not closed; expected \"%s\"", close);
        const bool signed_end = (*x->p == '-' || (*x->p == '+' && !variable)) && (size_t)(x->end - x->p) > 2 && memcmp(x->p + 1, close, 2) == 0;
        if (depth == 0 && (signed_end || starts(x, close))) {
            const char sign = signed_end ? *x->p : 0;
            add(x, (token){.kind = variable ? K_VAR_END : K_BLOCK_END});
            x->p += 2 + signed_end;
            after_tag(x, sign, variable);
            return;
        }
        if (*x->p == '"' || *x->p == '\'') {
            lex_string(x);
        } else if (is_digit(*x->p)) {
            lex_number(x);
        } else if (is_name(*x->p)) {
            size_t n = 0;
            while (x->p + n < x->end && is_name(x->p[n]))
                n++;
            add(x, (token){.kind = K_NAME, .s = str_new(x->m, x->p, n, false)});
            advance(x, n);
        } else {
            const char c = *x->p;
            if (c == '(' || c == '[' || c == '{') {
                if (depth == (int)sizeof open)
                    template_fail(x->m, MOE_E_DATA, "brackets nest deeper than %d", (int)sizeof open);
                open[depth++] = c == '(' ? ')' : c == '[' ? ']' : '}';
            } else if ((c == ')' || c == ']' || c == '}') && (depth == 0 || open[--depth] != c)) {
                template_fail(x->m, MOE_E_DATA, "unexpected \"%c\"", c);
            }
            lex_operator(x);
        }
    }
}

/* The text at q, behind "{%": an optional sign, white space, the word, white space, an optional sign and "%}". Its length, 0: no such tag. */
static size_t plain_tag(const lexer *x, const char *q, const char *word, bool plus, char *sign)
{
    const char *from = q;
    if (q < x->end && (*q == '-' || *q == '+'))
        q++;
    for (size_t n; q < x->end && (n = space_at(q, x->end)) > 0;)
        q += n;
    if ((size_t)(x->end - q) < strlen(word) || memcmp(q, word, strlen(word)) != 0)
        return 0;
    q += strlen(word);
    for (size_t n; q < x->end && (n = space_at(q, x->end)) > 0;)
        q += n;
    *sign = q < x->end && (*q == '-' || (plus && *q == '+')) ? *q++ : '\0';
    return (size_t)(x->end - q) >= 2 && q[0] == '%' && q[1] == '}' ? (size_t)(q + 2 - from) : 0;
}

/* Behind {% raw %}: data up to {% endraw %}. */
static void lex_raw(lexer *x)
{
    const char *from = x->p;
    for (; x->p < x->end; advance(x, 1)) {
        char sign = 0;
        size_t n;
        if (!starts(x, "{%") || (n = plain_tag(x, x->p + 2, "endraw", true, &sign)) == 0)
            continue;
        add_data(x, from, x->p, x->p[2] == '-' || x->p[2] == '+' ? x->p[2] : 0, false);
        advance(x, n + 2);
        after_tag(x, sign, false);
        return;
    }
    template_fail(x->m, MOE_E_DATA, "{%% raw %%} is not closed");
}

static void lex_tag(lexer *x)
{
    const char kind = x->p[1];
    char sign;
    const size_t raw = kind == '%' ? plain_tag(x, x->p + 2, "raw", false, &sign) : 0;
    if (raw > 0) {
        advance(x, raw + 2);
        x->line_starting = false;
        if (sign == '-') {
            skip_space(x);
            x->line_starting = x->p[-1] == '\n';
        }
        lex_raw(x);
        return;
    }
    advance(x, 2);
    if (x->p < x->end && (*x->p == '-' || *x->p == '+'))
        advance(x, 1);
    if (kind != '#') {
        add(x, (token){.kind = kind == '{' ? K_VAR_BEGIN : K_BLOCK_BEGIN});
        lex_inside(x, kind == '{');
        return;
    }
    while (x->p < x->end && !starts(x, "#}"))
        advance(x, 1);
    if (x->p >= x->end)
        template_fail(x->m, MOE_E_DATA, "a comment is not closed");
    sign = x->p[-1] == '-' || x->p[-1] == '+' ? x->p[-1] : 0;
    x->p += 2;
    after_tag(x, sign, false);
}

void template_lex(room *m, const char *text, size_t n, token_list *out)
{
    char *clean = room_get(m, n + 1);
    size_t k = 0;
    for (size_t i = 0; i < n; i++) {
        if (text[i] == '\r' && i + 1 < n && text[i + 1] == '\n')
            continue;
        clean[k++] = text[i] == '\r' ? '\n' : text[i];
    }
    k -= k > 0 && clean[k - 1] == '\n';
    lexer x = {.m = m, .p = clean, .end = clean + k, .out = out, .line_starting = true, .line = 1};
    while (x.p < x.end) {
        const char *from = x.p;
        m->line = x.line;
        const char *q = x.p;
        while (q < x.end && !(q[0] == '{' && q + 1 < x.end && (q[1] == '{' || q[1] == '%' || q[1] == '#')))
            q++;
        if (q == x.end) {
            add(&x, (token){.kind = K_DATA, .s = str_new(m, from, (size_t)(q - from), false)});
            break;
        }
        add_data(&x, from, q, q + 2 < x.end && (q[2] == '-' || q[2] == '+') ? q[2] : 0, q[1] == '{');
        advance(&x, (size_t)(q - from));
        m->line = x.line;
        lex_tag(&x);
    }
    add(&x, (token){.kind = K_END});
}
