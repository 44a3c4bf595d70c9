#include "engine/base/cli.h"

#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "engine/base/cli_help.h"
#include "engine/base/text.h"

/* --- one value ------------------------------------------------------------------------------------------------------------ */

static bool in_choices(const char *choices, const char *word)
{
    const size_t n = strlen(word);
    for (const char *p = choices; *p; p += strcspn(p, "|"), p += *p == '|')
        if (strcspn(p, "|") == n && strncmp(p, word, n) == 0)
            return true;
    return false;
}

static moe_err store_number(const cli_option *o, const char *value, void *at)
{
    char lo[TEXT_NUMBER], hi[TEXT_NUMBER];
    const bool whole = o->kind != CLI_NUMBER, any = o->min == o->max;
    double x = 0;
    int64_t integer = 0;
    uint64_t natural = 0;
    bool ok = false;
    if (o->kind == CLI_INT) {
        ok = text_parse_int(value, &integer);
        x = (double)integer;
        memcpy(at, &integer, sizeof integer);
    } else if (o->kind == CLI_UINT) {
        ok = text_parse_uint(value, &natural);
        x = (double)natural;
        memcpy(at, &natural, sizeof natural);
    } else {
        ok = text_parse_double(value, &x);
        memcpy(at, &x, sizeof x);
    }
    if (ok && (any || (x >= o->min && x <= o->max)))
        return MOE_OK;
    if (any)
        return moe_fail(MOE_E_USAGE, "--%s: expected %s, got '%s'", o->name, whole ? "a whole number" : "a number", value);
    return moe_fail(MOE_E_USAGE, "--%s: expected %s from %s to %s, got '%s'", o->name, whole ? "a whole number" : "a number",
                    text_double(lo, o->min), text_double(hi, o->max), value);
}

static moe_err store_value(const cli_option *o, const char *value, void *args)
{
    void *at = (char *)args + o->offset;
    switch (o->kind) {
    case CLI_FLAG:
        *(bool *)at = true;
        return MOE_OK;
    case CLI_CHOICE:
        if (!in_choices(o->choices, value))
            return moe_fail(MOE_E_USAGE, "--%s: expected %s, got '%s'", o->name, o->choices, value);
        *(const char **)at = value;
        return MOE_OK;
    case CLI_STRING:
        *(const char **)at = value;
        return MOE_OK;
    case CLI_LIST: {
        cli_list *l = at;
        const char **item = realloc(l->item, ((size_t)l->n + 1) * sizeof *item);
        if (!item)
            return moe_fail(MOE_E_OS, "out of memory while reading the command line");
        item[l->n] = value;
        *l = (cli_list){item, l->n + 1};
        return MOE_OK;
    }
    default:
        return store_number(o, value, at);
    }
}

/* --- which option --------------------------------------------------------------------------------------------------------- */

static const cli_option *option_at(const cli_command *c, int i)
{
    if (i < c->noptions)
        return &c->options[i];
    return i - c->noptions < cli_ncommon ? &cli_common[i - c->noptions] : NULL;
}

static const char *option_name_at(const void *ctx, int i)
{
    const cli_option *o = option_at(ctx, i);
    return o ? o->name : NULL;
}

/* The whole name, or the only one that begins so. */
static moe_err find_long(const cli_command *c, const char *name, size_t n, const cli_option **out)
{
    const cli_option *o, *found = NULL;
    int matches = 0;
    for (int i = 0; (o = option_at(c, i)) != NULL; i++) {
        if (strncmp(o->name, name, n) != 0)
            continue;
        found = o;
        matches++;
        if (o->name[n] == '\0') {
            matches = 1;
            break;
        }
    }
    *out = found;
    if (matches == 1)
        return MOE_OK;
    if (matches > 1)
        return moe_fail(MOE_E_USAGE, "option --%.*s is ambiguous", (int)n, name);
    char word[128];
    snprintf(word, sizeof word, "%.*s", (int)n, name);
    const char *near = text_nearest(word, option_name_at, c);
    return near ? moe_fail(MOE_E_USAGE, "unknown option --%s; did you mean --%s?", word, near)
                : moe_fail(MOE_E_USAGE, "unknown option --%s", word);
}

typedef struct scan {
    const cli_command *c;
    int argc, at;
    char **argv;
    void *args;
    cli_common_args *common;
} scan;

static void *target(const scan *s, const cli_option *o)
{
    return o >= cli_common && o < cli_common + cli_ncommon ? (void *)s->common : s->args;
}

static moe_err take_long(scan *s, const char *arg)
{
    const size_t n = strcspn(arg, "=");
    const cli_option *o;
    TRY(find_long(s->c, arg, n, &o));
    const char *value = arg[n] == '=' ? arg + n + 1 : NULL;
    if (o->kind == CLI_FLAG && value)
        return moe_fail(MOE_E_USAGE, "option --%s takes no value, got '%s'", o->name, value);
    if (o->kind != CLI_FLAG && !value) {
        if (s->at + 1 >= s->argc)
            return moe_fail(MOE_E_USAGE, "option --%s needs a value (%s)", o->name, o->value ? o->value : "VALUE");
        value = s->argv[++s->at];
    }
    return store_value(o, value, target(s, o));
}

/* -abc is -a -b -c; the rest of the word is the value of a letter that takes one. */
static moe_err take_letters(scan *s, const char *arg)
{
    for (const char *p = arg; *p; p++) {
        const cli_option *o = NULL;
        for (int i = 0; (o = option_at(s->c, i)) != NULL && o->letter != *p; i++)
            ;
        if (!o)
            return moe_fail(MOE_E_USAGE, "unknown option -%c", *p);
        if (o->kind == CLI_FLAG) {
            TRY(store_value(o, NULL, target(s, o)));
            continue;
        }
        if (!p[1] && s->at + 1 >= s->argc)
            return moe_fail(MOE_E_USAGE, "option -%c needs a value (%s)", *p, o->value ? o->value : "VALUE");
        return store_value(o, p[1] ? p + 1 : s->argv[++s->at], target(s, o));
    }
    return MOE_OK;
}

static moe_err parse(const cli_command *c, int argc, char **argv, void *args, const char **words_buf, cli_words *words,
                     cli_common_args *common)
{
    scan s = {c, argc, 0, argv, args, common};
    *words = (cli_words){words_buf, 0};
    for (int i = 0; i < c->noptions; i++)
        if (c->options[i].fallback && c->options[i].kind != CLI_LIST && c->options[i].kind != CLI_FLAG)
            TRY(store_value(&c->options[i], c->options[i].fallback, args));
    bool only_words = false;
    for (; s.at < argc; s.at++) {
        const char *a = argv[s.at];
        if (!only_words && strcmp(a, "--") == 0)
            only_words = true;
        else if (!only_words && a[0] == '-' && a[1] == '-')
            TRY(take_long(&s, a + 2));
        else if (!only_words && a[0] == '-' && a[1])
            TRY(take_letters(&s, a + 1));
        else
            words_buf[words->n++] = a;
    }
    if (common->help || common->version)
        return MOE_OK;
    if (words->n < c->min_words)
        return moe_fail(MOE_E_USAGE, "too few arguments: expected %s", c->synopsis);
    if (c->max_words >= 0 && words->n > c->max_words)
        return moe_fail(MOE_E_USAGE, "unexpected argument '%s'", words_buf[c->max_words]);
    return MOE_OK;
}

moe_err cli_parse(const cli_command *c, int argc, char **argv, void *args, const char **words_buf, cli_words *words)
{
    cli_common_args common = {0};
    return parse(c, argc, argv, args, words_buf, words, &common);
}

void cli_args_free(const cli_command *c, void *args)
{
    for (int i = 0; i < c->noptions; i++) {
        if (c->options[i].kind != CLI_LIST)
            continue;
        cli_list *l = (cli_list *)((char *)args + c->options[i].offset);
        free(l->item);
        *l = (cli_list){0};
    }
}

/* --- main ----------------------------------------------------------------------------------------------------------------- */

static const char *command_name_at(const void *ctx, int i)
{
    const cli_program *p = ctx;
    return i < p->ncommands ? p->commands[i].name : NULL;
}

static int usage_error(const cli_program *p, const cli_command *c)
{
    const bool sub = c && c->name;
    fprintf(stderr, "%s: %s\nTry '%s%s%s --help'.\n", p->name, moe_error_text(), p->name, sub ? " " : "", sub ? c->name : "");
    return MOE_E_USAGE;
}

static int close_stdout(const cli_program *p, int status)
{
    const bool failed = ferror(stdout) != 0;
    if (fflush(stdout) == 0 && !failed)
        return status;
    fprintf(stderr, "%s: cannot write to standard output: %s\n", p->name, strerror(errno));
    return status ? status : MOE_E_IO;
}

static int run_command(const cli_program *p, const cli_command *c, int argc, char **argv)
{
    cli_common_args common = {0};
    cli_words words = {0};
    const char **buf = malloc(((size_t)argc + 1) * sizeof *buf);
    void *args = calloc(1, c->args_bytes + 1);
    moe_err rc = buf && args ? parse(c, argc, argv, args, buf, &words, &common) : moe_fail(MOE_E_OS, "out of memory");
    int status;
    if (rc == MOE_E_USAGE && !common.help) {
        status = usage_error(p, c);
    } else if (common.help) {
        cli_print_command_help(stdout, p, c);
        status = 0;
    } else if (common.version) {
        printf("%s (Paternoster) %s\n", p->name, p->version);
        status = 0;
    } else {
        if (rc == MOE_OK)
            rc = c->run(args, &words);
        status = rc == MOE_OK ? 0 : rc >= MOE_E_USAGE ? (int)rc : (int)MOE_E_OS;
        if (rc == MOE_E_USAGE)
            usage_error(p, c);
        else if (rc != MOE_OK)
            fprintf(stderr, "%s: %s\n", p->name, moe_error_text());
        if (rc != MOE_OK && common.trace)
            fputs(moe_error_traces(), stderr);
    }
    if (args)
        cli_args_free(c, args);
    free(args);
    free(buf);
    return status;
}

int cli_main(const cli_program *p, int argc, char **argv)
{
    signal(SIGXFSZ, SIG_IGN); /* a write past the file-size limit is an error, as on a full disk: what was begun is removed */
    if (p->ncommands == 1 && !p->commands[0].name)
        return close_stdout(p, run_command(p, &p->commands[0], argc - 1, argv + 1));
    const char *word = argc > 1 ? argv[1] : NULL;
    if (!word) {
        cli_print_program_help(stderr, p);
        return MOE_E_USAGE;
    }
    for (int i = 0; i < p->ncommands; i++)
        if (strcmp(p->commands[i].name, word) == 0)
            return close_stdout(p, run_command(p, &p->commands[i], argc - 2, argv + 2));
    if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0 || strcmp(word, "help") == 0) {
        cli_print_program_help(stdout, p);
        return close_stdout(p, 0);
    }
    if (strcmp(word, "--version") == 0 || strcmp(word, "-V") == 0) {
        printf("%s (Paternoster) %s\n", p->name, p->version);
        return close_stdout(p, 0);
    }
    if (word[0] == '-') {
        (void)moe_fail(MOE_E_USAGE, "expected a command, got option %s", word);
        return usage_error(p, NULL);
    }
    const char *near = text_nearest(word, command_name_at, p);
    (void)(near ? moe_fail(MOE_E_USAGE, "unknown command '%s'; did you mean '%s'?", word, near)
                : moe_fail(MOE_E_USAGE, "unknown command '%s'", word));
    return usage_error(p, NULL);
}

bool cli_is_terminal(int fd)
{
    const char *term = getenv("TERM");
    return isatty(fd) && term && *term && strcmp(term, "dumb") != 0;
}

bool cli_has_color(int fd)
{
    const char *no = getenv("NO_COLOR"); /* no-color.org: set and not empty */
    return !(no && *no) && cli_is_terminal(fd);
}

int cli_width(int fd)
{
    struct winsize w = {0};
    return ioctl(fd, TIOCGWINSZ, &w) == 0 && w.ws_col > 0 ? w.ws_col : 80;
}
