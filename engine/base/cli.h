/* The command line of every program: GNU long options, subcommands, --help, --version, all from one table. Owns the printing of
 * help (stdout) and of the final error (stderr); knows nothing of what a command does. One thread.
 * Data goes to stdout, messages and progress to stderr. Rule: options and commands exist only as rows of the table. */
#ifndef MOE_ENGINE_BASE_CLI_H
#define MOE_ENGINE_BASE_CLI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

#include "engine/base/error.h"

typedef enum cli_kind {
    CLI_FLAG,   /* bool: --name                                                              */
    CLI_STRING, /* const char *                                                              */
    CLI_CHOICE, /* const char *, one of `choices` ("auto|never")                             */
    CLI_INT,    /* int64_t in [min, max] (min == max: any)                                   */
    CLI_UINT,   /* uint64_t                                                                  */
    CLI_NUMBER, /* double in [min, max] (min == max: any finite number)                      */
    CLI_LIST,   /* cli_list: every use appends                                               */
} cli_kind;

typedef struct cli_list {
    const char **item; /* freed by cli_main after the command has run */
    int n;
} cli_list;

typedef struct cli_option {
    const char *name;     /* "host-memory"                                                    */
    char letter;          /* 'q' for -q, 0: none                                              */
    cli_kind kind;
    size_t offset;        /* where it goes in the command's struct                            */
    const char *value;    /* the word in the help: "SIZE"; NULL for flags                     */
    const char *fallback; /* default as text, parsed as if typed; NULL: zero                  */
    const char *choices;  /* CLI_CHOICE                                                       */
    double min, max;      /* CLI_INT, CLI_NUMBER                                              */
    const char *group;    /* heading in --help; NULL: that of the option before               */
    const char *help;     /* one or more lines, without the default (it is added)             */
} cli_option;

typedef struct cli_words { /* what is not an option */
    const char *const *word;
    int n;
} cli_words;

typedef struct cli_command {
    const char *name;     /* NULL: the program has no subcommands, this is all it does        */
    const char *synopsis; /* "CONFIG.yaml [--set a.b=v]..."                                   */
    const char *summary;  /* one line, small first letter                                     */
    const char *details;  /* more text for --help of the command, or NULL                     */
    const cli_option *options;
    int noptions;
    size_t args_bytes;    /* of the struct the options fill; zeroed, then defaults            */
    int min_words, max_words; /* max -1: any number                                           */
    moe_err (*run)(const void *args, const cli_words *words);
} cli_command;

typedef struct cli_program {
    const char *name, *version, *summary;
    const cli_command *commands;
    int ncommands;
    const char *epilog;   /* examples, exit codes; or NULL                                    */
} cli_program;

/* All of main(): finds the command, fills its struct, runs it, prints "program: sentence" on failure. Returns the exit status.
 * --help, --version and --trace (where an error came from) are understood everywhere. A write error on stdout is exit 74. */
int cli_main(const cli_program *p, int argc, char **argv);

/* Fills `args` from argv[0, argc) (without program and command); words point into argv and into `words_buf` [argc].
 * MOE_E_USAGE names the option and what was expected. For tests; cli_main calls it. */
moe_err cli_parse(const cli_command *c, int argc, char **argv, void *args, const char **words_buf, cli_words *words) MOE_MUST_CHECK;
void cli_args_free(const cli_command *c, void *args); /* the lists, not the struct */

/* Terminal: a tty that can move the cursor. Color: a terminal, and NO_COLOR is not set. Width in columns, 80 when unknown. */
bool cli_is_terminal(int fd);
bool cli_has_color(int fd);
int cli_width(int fd);

#endif
