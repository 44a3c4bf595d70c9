#include "engine/base/cli_help.h"

#include <string.h>

enum { HELP_COLUMN = 30, HELP_WIDTH = 100 }; /* columns: where explanations begin, where lines end */

const cli_option cli_common[] = {
    {.name = "help", .letter = 'h', .kind = CLI_FLAG, .offset = offsetof(cli_common_args, help), .help = "print this page"},
    {.name = "version",
     .letter = 'V',
     .kind = CLI_FLAG,
     .offset = offsetof(cli_common_args, version),
     .help = "print the version"},
    {.name = "trace",
     .kind = CLI_FLAG,
     .offset = offsetof(cli_common_args, trace),
     .help = "after an error, print the calls that led to it"},
};
const int cli_ncommon = sizeof cli_common / sizeof cli_common[0];

/* Words of `s` from column `at`, wrapped; a newline in `s` begins a new line. */
static void print_wrapped(FILE *f, const char *s, int at, int column)
{
    while (*s) {
        const size_t word = strcspn(s, " \n");
        if (at + (int)word > HELP_WIDTH && at > column) {
            fprintf(f, "\n%*s", column, "");
            at = column;
        }
        fprintf(f, "%.*s", (int)word, s);
        at += (int)word;
        s += word;
        if (*s == '\n') {
            fprintf(f, "\n%*s", column, "");
            at = column;
        } else if (*s == ' ' && at < HELP_WIDTH) {
            fputc(' ', f);
            at++;
        }
        s += *s != '\0';
    }
    fputc('\n', f);
}

static void print_row(FILE *f, const char *left, const char *right)
{
    int at = fprintf(f, "  %s", left);
    if (at >= HELP_COLUMN - 1) {
        fputc('\n', f);
        at = 0;
    }
    fprintf(f, "%*s", HELP_COLUMN - at, "");
    print_wrapped(f, right, HELP_COLUMN, HELP_COLUMN);
}

static void print_option(FILE *f, const cli_option *o)
{
    char left[128], right[1024];
    const char *value = o->kind == CLI_CHOICE ? o->choices : o->value ? o->value : "VALUE";
    int n = o->letter ? snprintf(left, sizeof left, "-%c, --%s", o->letter, o->name)
                      : snprintf(left, sizeof left, "    --%s", o->name);
    if (o->kind != CLI_FLAG)
        snprintf(left + n, sizeof left - (size_t)n, " %s%s", value, o->kind == CLI_LIST ? "..." : "");
    if (o->fallback && *o->fallback)
        snprintf(right, sizeof right, "%s (default: %s)", o->help, o->fallback);
    else
        snprintf(right, sizeof right, "%s", o->help);
    print_row(f, left, right);
}

static void print_common(FILE *f)
{
    fprintf(f, "\nCommon options:\n");
    for (int i = 0; i < cli_ncommon; i++)
        print_option(f, &cli_common[i]);
}

void cli_print_program_help(FILE *f, const cli_program *p)
{
    fprintf(f, "Usage: %s COMMAND [ARGUMENT]...\n", p->name);
    print_wrapped(f, p->summary, 0, 0);
    fprintf(f, "\nCommands:\n");
    for (int i = 0; i < p->ncommands; i++)
        print_row(f, p->commands[i].name, p->commands[i].summary);
    print_common(f);
    fprintf(f, "\n'%s COMMAND --help' explains one command.\n", p->name);
    if (p->epilog)
        fprintf(f, "\n%s\n", p->epilog);
}

void cli_print_command_help(FILE *f, const cli_program *p, const cli_command *c)
{
    fprintf(f, "Usage: %s%s%s %s\n", p->name, c->name ? " " : "", c->name ? c->name : "", c->synopsis);
    print_wrapped(f, c->summary, 0, 0);
    for (int i = 0; i < c->noptions; i++) {
        if (i == 0 || c->options[i].group)
            fprintf(f, "\n%s:\n", c->options[i].group ? c->options[i].group : "Options");
        print_option(f, &c->options[i]);
    }
    print_common(f);
    if (c->details)
        fprintf(f, "\n%s\n", c->details);
    if (!c->name && p->epilog)
        fprintf(f, "\n%s\n", p->epilog);
}
