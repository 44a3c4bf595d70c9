/* Private to cli: the pages that --help prints, from the same tables that parse. */
#ifndef MOE_ENGINE_BASE_CLI_HELP_H
#define MOE_ENGINE_BASE_CLI_HELP_H

#include "engine/base/cli.h"

/* Understood by every command of every program. */
extern const cli_option cli_common[];
extern const int cli_ncommon;

typedef struct cli_common_args {
    bool help, version, trace;
} cli_common_args;

void cli_print_program_help(FILE *f, const cli_program *p);
void cli_print_command_help(FILE *f, const cli_program *p, const cli_command *c);

#endif
