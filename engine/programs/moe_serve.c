/* moe-serve: the table of commands and options. What a command does lives in engine/serve. */
#include "engine/base/cli.h"
#include "engine/serve/replay.h"

#define COUNT(a) (int)(sizeof(a) / sizeof *(a))

typedef struct replay_cli {
    const char *policy;
    int64_t slots;
    bool json;
} replay_cli;

static const cli_option replay_options[] = {
    {.name = "slots", .kind = CLI_INT, .offset = offsetof(replay_cli, slots), .value = "N", .min = 0, .max = 1e9, .group = "Cache",
     .help = "experts that have room; one slot holds one expert of one layer"},
    {.name = "policy", .kind = CLI_STRING, .offset = offsetof(replay_cli, policy), .value = "P",
     .help = "one policy, with lru and the optimum beside it (default: all of them)"},
    {.name = "json", .kind = CLI_FLAG, .offset = offsetof(replay_cli, json), .group = "Output", .help = "one JSON object"},
};

static moe_err run_replay(const void *args, const cli_words *words)
{
    const replay_cli *a = args;
    if (a->slots < 1)
        return moe_fail(MOE_E_USAGE, "replay: --slots N is missing; expected at least 1");
    return command_replay(words->word[0], a->slots, a->policy, a->json, stdout);
}

static const cli_command commands[] = {
    {.name = "replay", .synopsis = "TRACE --slots N [--policy P] [--json]",
     .summary = "what cache policies, and the optimum, would have hit on a recorded routing", .options = replay_options,
     .noptions = COUNT(replay_options), .args_bytes = sizeof(replay_cli), .min_words = 1, .max_words = 1, .run = run_replay},
};

int main(int argc, char **argv)
{
    static const cli_program program = {
        .name = "moe-serve", .version = MOE_VERSION, .summary = "generate text with Mixture-of-Experts models larger than memory",
        .commands = commands, .ncommands = COUNT(commands),
        .epilog = "Exit status: 0 done, 64 usage, 65 bad data or checksum, 66 missing input, 70 numbers that are none, 71 out of memory,\n"
                  "74 I/O error, 75 stopped by a signal, 78 configuration or does not fit.\n",
    };
    return cli_main(&program, argc, argv);
}
