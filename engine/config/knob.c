/* One knob: from a YAML node to a typed value, and back to text. */
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/config/schema.h"

static void *field(const knob *k, const train_config *c) { return (char *)c + k->offset; }

static void print_bound(text_buf *t, double x)
{
    char s[TEXT_NUMBER];
    if (x >= 18446744073709551615.0)
        text_add(t, "18446744073709551615");
    else
        text_add(t, text_double(s, x));
}

static void print_range(const knob *k, text_buf *t)
{
    const bool open_end = k->max >= 1e6 && k->kind == KNOB_NUMBER;
    if (k->above_min || open_end || k->below_max) {
        text_add(t, k->above_min ? " > " : " >= ");
        print_bound(t, k->min);
        if (!open_end) {
            text_add(t, k->below_max ? " and < " : " and <= ");
            print_bound(t, k->max);
        }
    } else {
        text_add(t, " from ");
        print_bound(t, k->min);
        text_add(t, " to ");
        print_bound(t, k->max);
    }
}

void knob_expected(const knob *k, text_buf *t)
{
    switch (k->kind) {
    case KNOB_INT:
    case KNOB_INT64:
    case KNOB_UINT64:
        text_add(t, "a whole number");
        print_range(k, t);
        break;
    case KNOB_NUMBER:
        text_add(t, "a number");
        print_range(k, t);
        break;
    case KNOB_PAIR:
        text_add(t, "a list of two numbers");
        print_range(k, t);
        break;
    case KNOB_BOOL:
        text_add(t, "true or false");
        return;
    case KNOB_CHOICE:
    case KNOB_WORD:
        for (const char *p = k->choices; *p; p++)
            *p == '|' ? text_add(t, strchr(p + 1, '|') ? ", " : " or ") : text_add_bytes(t, p, 1);
        return;
    case KNOB_SIZE:
        text_add(t, "a size of at least 1MiB, like 1536MiB, 8G or a number of bytes");
        return;
    case KNOB_PATH:
        text_add(t, "a path");
        return;
    case KNOB_PATHS:
        text_add(t, "a list of paths");
        return;
    }
    if (k->unit)
        text_printf(t, " (%s)", k->unit);
}

static bool refuse(const knob *k, const tree_node *n, problems *p)
{
    char got[160];
    text_buf t = {0};
    knob_expected(k, &t);
    problems_add(p, n->at, k->name, "expected %s, got %s", t.data ? t.data : "another value", tree_describe(n, got, sizeof got));
    text_free(&t);
    return false;
}

static bool in_range(const knob *k, double x)
{
    return (k->above_min ? x > k->min : x >= k->min) && (k->below_max ? x < k->max : x <= k->max);
}

static bool is_plain(const tree_node *n) { return n->kind == TREE_SCALAR && !n->quoted; }

static bool assign_integer(const knob *k, void *at, const tree_node *n)
{
    int64_t x;
    uint64_t u;
    if (!is_plain(n))
        return false;
    if (k->kind == KNOB_UINT64) {
        if (!text_parse_uint(n->text, &u) || !in_range(k, (double)u))
            return false;
        *(uint64_t *)at = u;
        return true;
    }
    if (!text_parse_int(n->text, &x) || !in_range(k, (double)x))
        return false;
    if (k->kind == KNOB_INT && (x < INT_MIN || x > INT_MAX))
        return false;
    if (k->kind == KNOB_INT)
        *(int *)at = (int)x;
    else
        *(int64_t *)at = x;
    return true;
}

static bool assign_number(const knob *k, double *at, const tree_node *n)
{
    double x;
    if (!is_plain(n) || !text_parse_double(n->text, &x) || !in_range(k, x))
        return false;
    *at = x;
    return true;
}

static bool assign_bool(bool *at, const tree_node *n)
{
    static const char *const word[] = {"false", "False", "FALSE", "true", "True", "TRUE"};
    for (int i = 0; i < 6 && is_plain(n); i++)
        if (strcmp(n->text, word[i]) == 0) {
            *at = i >= 3;
            return true;
        }
    return false;
}

/* The number of the choice, -1 when it is none. */
static int choice_of(const char *choices, const char *word)
{
    const size_t n = strlen(word);
    int i = 0;
    for (const char *p = choices; *p; p += strcspn(p, "|"), p += *p == '|', i++)
        if (strcspn(p, "|") == n && strncmp(p, word, n) == 0)
            return i;
    return -1;
}

static bool replace_string(char **at, const char *s)
{
    char *copy = strdup(s);
    if (!copy)
        return false;
    free(*at);
    *at = copy;
    return true;
}

/* An empty size is "not given": 0. */
static bool assign_size(const knob *k, uint64_t *at, const tree_node *n)
{
    uint64_t bytes;
    if (tree_is_null(n)) {
        *at = 0;
        return true;
    }
    if (n->kind != TREE_SCALAR || size_parse(n->text, &bytes) != MOE_OK || !in_range(k, (double)bytes))
        return false;
    *at = bytes;
    return true;
}

static bool is_path(const tree_node *n) { return n->kind == TREE_SCALAR && !tree_is_null(n) && *n->text; }

static bool assign_paths(const knob *k, train_config *c, const tree_node *n)
{
    const tree_node *item = n->kind == TREE_LIST ? n->child : n; /* one path alone is a list of one */
    const int count = n->kind == TREE_LIST ? n->n : 1;
    for (int i = 0; i < count; i++)
        if (!is_path(&item[i]))
            return false;
    knob_free(k, c);
    char **paths = calloc((size_t)count + 1, sizeof *paths);
    *(char ***)field(k, c) = paths;
    *(int *)((char *)c + k->offset2) = paths ? count : 0;
    for (int i = 0; paths && i < count; i++)
        if (!replace_string(&paths[i], item[i].text))
            return false;
    return paths != NULL;
}

bool knob_assign(const knob *k, train_config *c, const tree_node *n, problems *p)
{
    void *at = field(k, c);
    bool ok = false;
    switch (k->kind) {
    case KNOB_INT:
    case KNOB_INT64:
    case KNOB_UINT64:
        ok = assign_integer(k, at, n);
        break;
    case KNOB_NUMBER:
        ok = assign_number(k, at, n);
        break;
    case KNOB_PAIR:
        ok = n->kind == TREE_LIST && n->n == 2 && assign_number(k, at, &n->child[0]) &&
             assign_number(k, (double *)((char *)c + k->offset2), &n->child[1]);
        break;
    case KNOB_BOOL:
        ok = assign_bool(at, n);
        break;
    case KNOB_CHOICE: {
        const int i = n->kind == TREE_SCALAR ? choice_of(k->choices, n->text) : -1;
        if ((ok = i >= 0))
            *(int *)at = i;
        break;
    }
    case KNOB_WORD:
        ok = n->kind == TREE_SCALAR && choice_of(k->choices, n->text) >= 0 && replace_string(at, n->text);
        break;
    case KNOB_SIZE:
        ok = assign_size(k, at, n);
        break;
    case KNOB_PATH:
        if (tree_is_null(n) && k->fallback) {
            knob_free(k, c);
            ok = true;
        } else {
            ok = is_path(n) && replace_string(at, n->text);
        }
        break;
    case KNOB_PATHS:
        ok = assign_paths(k, c, n);
        break;
    }
    return ok || refuse(k, n, p);
}

void knob_free(const knob *k, train_config *c)
{
    if (k->kind == KNOB_PATH || k->kind == KNOB_WORD) {
        char **s = field(k, c);
        free(*s);
        *s = NULL;
    } else if (k->kind == KNOB_PATHS) {
        char ***list = field(k, c);
        int *count = (int *)((char *)c + k->offset2);
        for (int i = 0; i < *count; i++)
            free((*list)[i]);
        free(*list);
        *list = NULL;
        *count = 0;
    }
}

/* --- back to text --------------------------------------------------------------------------------------------------------- */

/* Plain scalars that are words or paths and nothing else in any YAML version. */
static bool needs_quotes(const char *s)
{
    static const char *const words[] = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"};
    int64_t i;
    double d;
    for (size_t k = 0; k < sizeof words / sizeof words[0]; k++)
        if (strcasecmp(s, words[k]) == 0)
            return true;
    if (!*s || text_parse_int(s, &i) || text_parse_double(s, &d) || strspn(s, "0123456789") > 0 || s[0] == '-')
        return true;
    for (; *s; s++)
        if (!(*s >= 'a' && *s <= 'z') && !(*s >= 'A' && *s <= 'Z') && !(*s >= '0' && *s <= '9') && !strchr("/._-+", *s))
            return true;
    return false;
}

/* Of UTF-8; a byte that is none stands for itself. */
static uint32_t code_point(const char *s, int *bytes)
{
    const unsigned char *u = (const unsigned char *)s;
    const int n = u[0] < 0x80 ? 1 : u[0] < 0xe0 ? 2 : u[0] < 0xf0 ? 3 : 4;
    uint32_t c = n == 1 ? u[0] : u[0] & (0x7fu >> n);
    for (*bytes = 1; *bytes < n && (u[*bytes] & 0xc0) == 0x80; ++*bytes)
        c = c << 6 | (u[*bytes] & 0x3fu);
    return c;
}

void tree_print_string(text_buf *t, const char *s)
{
    if (!needs_quotes(s)) {
        text_add(t, s);
        return;
    }
    text_add(t, "\"");
    while (*s) {
        int bytes;
        const uint32_t c = code_point(s, &bytes);
        if (c == '"' || c == '\\')
            text_printf(t, "\\%c", (int)c);
        else if (c < 0x20 || (c >= 0x7f && c <= 0xa0) || (c >= 0x2000 && c < 0x2030) || c == 0xfeff)
            text_printf(t, "\\u%04x", c); /* what YAML takes for a line break or refuses as it stands */
        else
            text_add_bytes(t, s, (size_t)bytes);
        s += bytes;
    }
    text_add(t, "\"");
}

void tree_print_number(text_buf *t, double x)
{
    char s[TEXT_NUMBER];
    text_double(s, x);
    const size_t mantissa = strcspn(s, "e");
    text_add_bytes(t, s, mantissa);
    if (!memchr(s, '.', mantissa))
        text_add(t, ".0");
    text_add(t, s + mantissa);
}

static void print_size(text_buf *t, uint64_t bytes)
{
    static const char *const unit[] = {"", "KiB", "MiB", "GiB", "TiB"};
    int u = 0;
    while (u < 4 && bytes && bytes % 1024 == 0) {
        bytes /= 1024;
        u++;
    }
    text_printf(t, "%llu%s", (unsigned long long)bytes, unit[u]);
}

static void print_paths(text_buf *t, char *const *path, int n)
{
    text_add(t, "[");
    for (int i = 0; i < n; i++) {
        text_add(t, i ? ", " : "");
        tree_print_string(t, path[i]);
    }
    text_add(t, "]");
}

static void print_choice(const knob *k, int i, text_buf *t)
{
    const char *p = k->choices;
    for (; i > 0; i--)
        p += strcspn(p, "|") + 1;
    text_add_bytes(t, p, strcspn(p, "|"));
}

void knob_print(const knob *k, const train_config *c, text_buf *t)
{
    const void *at = field(k, c);
    const void *second = (const char *)c + k->offset2;
    switch (k->kind) {
    case KNOB_INT:
        text_printf(t, "%d", *(const int *)at);
        break;
    case KNOB_INT64:
        text_printf(t, "%lld", (long long)*(const int64_t *)at);
        break;
    case KNOB_UINT64:
        text_printf(t, "%llu", (unsigned long long)*(const uint64_t *)at);
        break;
    case KNOB_NUMBER:
        tree_print_number(t, *(const double *)at);
        break;
    case KNOB_PAIR:
        text_add(t, "[");
        tree_print_number(t, *(const double *)at);
        text_add(t, ", ");
        tree_print_number(t, *(const double *)second);
        text_add(t, "]");
        break;
    case KNOB_BOOL:
        text_add(t, *(const bool *)at ? "true" : "false");
        break;
    case KNOB_CHOICE:
        print_choice(k, *(const int *)at, t);
        break;
    case KNOB_WORD:
        text_add(t, *(char *const *)at);
        break;
    case KNOB_SIZE:
        *(const uint64_t *)at ? print_size(t, *(const uint64_t *)at) : text_add(t, "null");
        break;
    case KNOB_PATH:
        *(char *const *)at ? tree_print_string(t, *(char *const *)at) : text_add(t, "null");
        break;
    case KNOB_PATHS:
        print_paths(t, *(char **const *)at, *(const int *)second);
        break;
    }
}
