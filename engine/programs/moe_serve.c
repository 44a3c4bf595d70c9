/* moe-serve: the table of commands and options. What a command does lives in engine/serve (generate.h, commands.h, replay.h). */
#include <stdlib.h>
#include <string.h>

#include "engine/base/cli.h"
#include "engine/base/text.h"
#include "engine/config/train_config.h"
#include "engine/serve/commands.h"
#include "engine/serve/generate.h"
#include "engine/serve/replay.h"

#define COUNT(a) (int)(sizeof(a) / sizeof *(a))

/* --- what every command that runs a model understands ------------------------------------------------------------------------- */

typedef struct machine_cli {
    const char *host_memory, *kv, *policy, *backend;
    int64_t threads;
} machine_cli;

#define MACHINE_OPTIONS(type)                                                                                                             \
    {.name = "host-memory", .kind = CLI_STRING, .offset = offsetof(type, machine.host_memory), .value = "SIZE", .group = "Machine",       \
     .help = "what the process may use, e.g. 1536MiB or 8G (default: what the machine or its cgroup has)"},                               \
    {.name = "kv", .kind = CLI_CHOICE, .offset = offsetof(type, machine.kv), .value = "f32|bf16|q8_0", .choices = "f32|bf16|q8_0",        \
     .fallback = "bf16", .help = "format of cached keys and values"},                                                                     \
    {.name = "policy", .kind = CLI_STRING, .offset = offsetof(type, machine.policy), .value = "P",                                        \
     .help = "which expert leaves the cache: learned (the default), lru, lfu; the text is the same"},                                     \
    {.name = "threads", .kind = CLI_INT, .offset = offsetof(type, machine.threads), .value = "N", .fallback = "0", .min = 0, .max = 1024, \
     .help = "compute threads; 0: one for each processor"},                                                                               \
    {.name = "backend", .kind = CLI_STRING, .offset = offsetof(type, machine.backend), .value = "NAME", .fallback = "auto",               \
     .help = "kernels; all give the same bits"}

static moe_err machine_options(session_options *o, const char *path, const machine_cli *a)
{
    *o = (session_options){.path = path, .threads = (int)a->threads, .backend = a->backend, .policy = a->policy, .kv = a->kv};
    return size_parse_option("host-memory", a->host_memory, &o->host_bytes);
}

/* --- generate ----------------------------------------------------------------------------------------------------------------- */

typedef struct generate_cli {
    machine_cli machine;
    cli_list prompt, stop, bias, breaker;
    const char *prompt_tokens, *tokenizer;
    int64_t max_tokens, streams, parallel, chunk, top_k, penalty_window, dry_allowed, dry_window, logprobs;
    double temperature, top_p, min_p, typical_p, repeat, presence, frequency, dry_multiplier, dry_base, xtc_probability, xtc_threshold;
    uint64_t seed;
    bool specials, show_specials, ignore_eos, no_hot, json, quiet;
} generate_cli;

#define GENERATE(kind_, name_, field, value_) .name = name_, .kind = kind_, .offset = offsetof(generate_cli, field), .value = value_

static const cli_option generate_cli_options[] = {
    {GENERATE(CLI_LIST, "prompt", prompt, "TEXT|-"), .group = "Text", .help = "what the text begins with, - reads it from stdin; may be repeated"},
    {GENERATE(CLI_STRING, "prompt-tokens", prompt_tokens, "IDS"), .help = "the prompt as token ids, e.g. 1,2,3"},
    {GENERATE(CLI_INT, "max-tokens", max_tokens, "N"), .fallback = "128", .min = 1, .max = 1e6, .help = "of each text at most"},
    {GENERATE(CLI_INT, "streams", streams, "N"), .fallback = "1", .min = 1, .max = 4096, .help = "texts from each prompt, each with its own random numbers"},
    {GENERATE(CLI_LIST, "stop", stop, "TEXT"), .help = "end a text before this; may be repeated"},
    {GENERATE(CLI_FLAG, "ignore-eos", ignore_eos, NULL), .help = "go on behind the model's end tokens"},
    {GENERATE(CLI_FLAG, "special-tokens", specials, NULL), .help = "special tokens may be written in the prompt (else they are plain text)"},
    {GENERATE(CLI_FLAG, "show-special", show_specials, NULL), .help = "print special tokens"},
    {GENERATE(CLI_STRING, "tokenizer", tokenizer, "FILE|bytes"), .help = "instead of the model's"},
    {GENERATE(CLI_NUMBER, "temperature", temperature, "T"), .fallback = "0.8", .min = 0, .max = 100, .group = "Sampling",
     .help = "of the softmax; 0 takes the most likely token"},
    {GENERATE(CLI_UINT, "seed", seed, "N"), .fallback = "1", .help = "of the random choice; the same seed gives the same texts"},
    {GENERATE(CLI_INT, "top-k", top_k, "K"), .fallback = "40", .min = 0, .max = 1e9, .help = "draw among the K most likely; 0: all"},
    {GENERATE(CLI_NUMBER, "top-p", top_p, "P"), .fallback = "0.95", .min = 0, .max = 1, .help = "... the most likely that reach P; 1: all"},
    {GENERATE(CLI_NUMBER, "min-p", min_p, "P"), .fallback = "0.05", .min = 0, .max = 1, .help = "... those with P of the most likely one's; 0: all"},
    {GENERATE(CLI_NUMBER, "typical-p", typical_p, "P"), .fallback = "1", .min = 0, .max = 1, .help = "... the most typical that reach P; 1: all"},
    {GENERATE(CLI_NUMBER, "repeat-penalty", repeat, "R"), .fallback = "1", .min = 0.01, .max = 100, .help = "divides logits of tokens in the window; 1: off"},
    {GENERATE(CLI_NUMBER, "presence-penalty", presence, "R"), .fallback = "0", .min = -1000, .max = 1000, .help = "taken from logits of tokens in the window"},
    {GENERATE(CLI_NUMBER, "frequency-penalty", frequency, "R"), .fallback = "0", .min = -1000, .max = 1000, .help = "... once for each time they are there"},
    {GENERATE(CLI_INT, "penalty-window", penalty_window, "N"), .fallback = "64", .min = -1, .max = 1e15, .help = "tokens; -1: the whole sequence"},
    {GENERATE(CLI_NUMBER, "dry-multiplier", dry_multiplier, "R"), .fallback = "0", .min = 0, .max = 1000, .help = "penalty of longer repetitions; 0: off"},
    {GENERATE(CLI_NUMBER, "dry-base", dry_base, "R"), .fallback = "1.75", .min = 1, .max = 1000, .help = "... grows by this with each token"},
    {GENERATE(CLI_INT, "dry-allowed", dry_allowed, "N"), .fallback = "2", .min = 1, .max = 1e9, .help = "... from this length on"},
    {GENERATE(CLI_INT, "dry-window", dry_window, "N"), .fallback = "-1", .min = -1, .max = 1e15, .help = "tokens; -1: the whole sequence"},
    {GENERATE(CLI_LIST, "dry-breaker", breaker, "TEXT"), .help = "no repetition reaches over a token with this; may be repeated\n(default: newline : \" *)"},
    {GENERATE(CLI_NUMBER, "xtc-probability", xtc_probability, "P"), .fallback = "0", .min = 0, .max = 1, .help = "how often the likely tokens but one are left out"},
    {GENERATE(CLI_NUMBER, "xtc-threshold", xtc_threshold, "P"), .fallback = "0.1", .min = 0, .max = 1, .help = "... likely: at least P"},
    {GENERATE(CLI_LIST, "logit-bias", bias, "ID=B"), .help = "added to a token's logit, -inf forbids it; may be repeated"},
    MACHINE_OPTIONS(generate_cli),
    {GENERATE(CLI_FLAG, "no-hot", no_hot, NULL),
     .help = "do not remember, in the user's cache folder, which experts were in memory\n(else they are read first the next time)"},
    {GENERATE(CLI_INT, "parallel", parallel, "N"), .fallback = "16", .min = 1, .max = 4096, .help = "texts at once at most; the others follow"},
    {GENERATE(CLI_INT, "chunk", chunk, "N"), .fallback = "0", .min = 0, .max = 1e6, .help = "tokens of a step at most; 0: 512, or the prompts"},
    {GENERATE(CLI_FLAG, "json", json, NULL), .group = "Output", .help = "one JSON object: texts, token ids, why they ended, timings"},
    {GENERATE(CLI_INT, "logprobs", logprobs, "N"), .fallback = "0", .min = 0, .max = SAMPLER_MAX_LOGPROBS, .help = "with --json: the N most likely tokens at each place"},
    {GENERATE(CLI_FLAG, "quiet", quiet, NULL), .letter = 'q', .help = "no figures on stderr"},
};

static moe_err run_generate(const void *args, const cli_words *words)
{
    static const char *const breakers[] = {"\n", ":", "\"", "*"};
    const generate_cli *a = args;
    generate_options o = {
        .tokenizer = a->tokenizer, .prompt = a->prompt.item, .nprompts = a->prompt.n, .prompt_tokens = a->prompt_tokens,
        .prompt_specials = a->specials, .streams = (int)a->streams, .parallel = (int)a->parallel, .max_tokens = a->max_tokens, .bias = a->bias.item,
        .nbias = a->bias.n, .breaker = a->breaker.n > 0 ? a->breaker.item : breakers, .nbreakers = a->breaker.n > 0 ? a->breaker.n : COUNT(breakers),
        .stop = a->stop.item, .nstop = a->stop.n, .ignore_eos = a->ignore_eos, .show_specials = a->show_specials, .json = a->json, .quiet = a->quiet,
    };
    if (a->logprobs > 0 && !a->json)
        return moe_fail(MOE_E_USAGE, "generate: --logprobs are printed with --json");
    o.sampling = (sampler_options){
        .temperature = a->temperature, .top_k = a->top_k, .top_p = a->top_p, .min_p = a->min_p, .typical_p = a->typical_p, .repeat = a->repeat,
        .presence = a->presence, .frequency = a->frequency, .penalty_window = a->penalty_window, .dry_multiplier = a->dry_multiplier,
        .dry_base = a->dry_base, .dry_allowed = a->dry_allowed, .dry_window = a->dry_window, .xtc_probability = a->xtc_probability,
        .xtc_threshold = a->xtc_threshold, .seed = a->seed, .logprobs = (int)a->logprobs,
    };
    TRY(machine_options(&o.session, words->word[0], &a->machine));
    o.session.chunk = (int)a->chunk;
    o.session.hot = !a->no_hot;
    return command_generate(&o, stdout, stderr);
}

/* --- bench, logits ------------------------------------------------------------------------------------------------------------ */

typedef struct bench_cli {
    machine_cli machine;
    const char *streams;
    int64_t warmup, prefill, decode, seed;
    bool json;
} bench_cli;

static const cli_option bench_cli_options[] = {
    {.name = "prefill", .kind = CLI_INT, .offset = offsetof(bench_cli, prefill), .value = "N", .fallback = "512", .min = 0, .max = 1e6,
     .group = "Work", .help = "tokens of the prompt that is computed; 0: none"},
    {.name = "decode", .kind = CLI_INT, .offset = offsetof(bench_cli, decode), .value = "N", .fallback = "64", .min = 0, .max = 1e6,
     .help = "tokens that each stream generates; 0: none"},
    {.name = "streams", .kind = CLI_STRING, .offset = offsetof(bench_cli, streams), .value = "N,N...", .fallback = "1,8",
     .help = "how many streams together"},
    {.name = "warmup", .kind = CLI_INT, .offset = offsetof(bench_cli, warmup), .value = "N", .fallback = "0", .min = 0, .max = 1e6,
     .help = "tokens of another prompt that is computed first and not measured; 0: the first figure is cold"},
    {.name = "seed", .kind = CLI_INT, .offset = offsetof(bench_cli, seed), .value = "N", .fallback = "0", .min = 0, .max = 65535,
     .help = "which pseudo-random prompts"},
    MACHINE_OPTIONS(bench_cli),
    {.name = "json", .kind = CLI_FLAG, .offset = offsetof(bench_cli, json), .group = "Output", .help = "one JSON object"},
};

static moe_err parse_streams(bench_options *o, const char *text)
{
    for (const char *p = text;;) {
        char *end;
        const long n = strtol(p, &end, 10);
        if (end == p || n < 1 || n > BENCH_CHUNK || (*end != ',' && *end != '\0') || o->nstreams == BENCH_STREAMS)
            return moe_fail(MOE_E_USAGE, "bench: --streams %s: expected up to %d numbers from 1 to %d between commas", text, BENCH_STREAMS,
                            BENCH_CHUNK);
        o->streams[o->nstreams++] = (int)n;
        if (*end == '\0')
            return MOE_OK;
        p = end + 1;
    }
}

static moe_err run_bench(const void *args, const cli_words *words)
{
    const bench_cli *a = args;
    bench_options o = {.warmup = a->warmup, .prefill = a->prefill, .decode = a->decode, .seed = (uint64_t)a->seed, .json = a->json};
    TRY(machine_options(&o.session, words->word[0], &a->machine));
    TRY(parse_streams(&o, a->streams));
    return command_bench(&o, stdout);
}

typedef struct logits_cli {
    machine_cli machine;
    const char *tokens, *out;
} logits_cli;

static const cli_option logits_cli_options[] = {
    {.name = "tokens", .kind = CLI_STRING, .offset = offsetof(logits_cli, tokens), .value = "IDS|FILE", .group = "Tokens",
     .help = "token ids as 1,2,3, or a file of ids between commas or blanks"},
    MACHINE_OPTIONS(logits_cli),
    {.name = "out", .kind = CLI_STRING, .offset = offsetof(logits_cli, out), .value = "FILE.npy", .group = "Output",
     .help = "[tokens, vocabulary] fp32"},
};

static moe_err run_logits(const void *args, const cli_words *words)
{
    const logits_cli *a = args;
    session_options o;
    if (a->tokens == NULL || a->out == NULL)
        return moe_fail(MOE_E_USAGE, "logits: --%s is missing", a->tokens == NULL ? "tokens IDS|FILE" : "out FILE.npy");
    TRY(machine_options(&o, words->word[0], &a->machine));
    return command_logits(&o, a->tokens, a->out);
}

/* --- replay ------------------------------------------------------------------------------------------------------------------- */

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
    {.name = "generate", .synopsis = "MODEL --prompt TEXT|- [--max-tokens N] [--temperature T] [--seed N] [--host-memory SIZE] [--streams N] [--json]",
     .summary = "text from a model that may be larger than memory", .options = generate_cli_options, .noptions = COUNT(generate_cli_options),
     .args_bytes = sizeof(generate_cli), .min_words = 1, .max_words = 1, .run = run_generate},
    {.name = "bench", .synopsis = "MODEL [--prefill N] [--decode N] [--streams 1,8] [--host-memory SIZE] [--json]",
     .summary = "how fast it is ready, reads prompts and generates", .options = bench_cli_options, .noptions = COUNT(bench_cli_options),
     .args_bytes = sizeof(bench_cli), .min_words = 1, .max_words = 1, .run = run_bench},
    {.name = "logits", .synopsis = "MODEL --tokens IDS|FILE --out FILE.npy", .summary = "the logits of every token, for comparisons",
     .options = logits_cli_options, .noptions = COUNT(logits_cli_options), .args_bytes = sizeof(logits_cli), .min_words = 1, .max_words = 1,
     .run = run_logits},
    {.name = "replay", .synopsis = "TRACE --slots N [--policy P] [--json]",
     .summary = "what cache policies, and the optimum, would have hit on a recorded routing", .options = replay_options,
     .noptions = COUNT(replay_options), .args_bytes = sizeof(replay_cli), .min_words = 1, .max_words = 1, .run = run_replay},
};

int main(int argc, char **argv)
{
    static const cli_program program = {
        .name = "moe-serve", .version = MOE_VERSION, .summary = "generate text with Mixture-of-Experts models larger than memory",
        .commands = commands, .ncommands = COUNT(commands),
        .epilog = "MODEL is a Hugging Face folder, a GGUF file (the first of a split one), a packed folder or a run folder of moe-train.\n"
                  "Exit status: 0 done, 64 usage, 65 bad data or checksum, 66 missing input, 70 numbers that are none, 71 out of memory,\n"
                  "73 cannot create, 74 I/O error, 75 stopped by a signal or the run is at work, 78 configuration or does not fit.\n",
    };
    return cli_main(&program, argc, argv);
}
