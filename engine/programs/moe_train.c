/* moe-train: the table of commands and options. What a command does lives in engine/train (commands.h) and engine/data. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/base/cli.h"
#include "engine/base/text.h"
#include "engine/train/commands.h"
#include "models/text/tokenizer.h"

#define COUNT(a) (int)(sizeof(a) / sizeof *(a))

typedef struct prepare_cli {
    const char *tokenizer, *out;
    double val_fraction;
    bool quiet;
} prepare_cli;

static const cli_option prepare_options[] = {
    {.name = "tokenizer", .kind = CLI_STRING, .offset = offsetof(prepare_cli, tokenizer), .value = "FILE|bytes", .fallback = "bytes",
     .group = "Input", .help = "a tokenizer.json (or a folder that holds one), or bytes"},
    {.name = "val-fraction", .kind = CLI_NUMBER, .offset = offsetof(prepare_cli, val_fraction), .value = "F", .fallback = "0.01", .min = 0,
     .max = 0.5, .help = "held-out part: the last F of each document of 1 MiB or more, else whole documents by hash"},
    {.name = "out", .kind = CLI_STRING, .offset = offsetof(prepare_cli, out), .value = "DIR", .group = "Output",
     .help = "folder for train.{bin,idx}, val.{bin,idx}, data.json and the tokenizer's files"},
    {.name = "quiet", .letter = 'q', .kind = CLI_FLAG, .offset = offsetof(prepare_cli, quiet), .help = "no progress"},
};

static moe_err run_prepare(const void *args, const cli_words *words)
{
    const prepare_cli *a = args;
    if (a->out == NULL)
        return moe_fail(MOE_E_USAGE, "prepare: --out DIR is missing");
    const prepare_args p = {
        .tokenizer = a->tokenizer, .out = a->out, .val_fraction = a->val_fraction, .files = words->word, .nfiles = words->n,
        .quiet = a->quiet || !cli_is_terminal(STDERR_FILENO),
    };
    return data_prepare(&p);
}

typedef struct config_cli {
    cli_list set;
    const char *run_dir, *resume, *host_memory;
    bool print_config, dry_run, quiet, no_measure;
} config_cli;

#define SET_OPTION                                                                                                                        \
    {.name = "set", .kind = CLI_LIST, .offset = offsetof(config_cli, set), .value = "a.b=v", .group = "Configuration",                    \
     .help = "override one value; may be repeated"},                                                                                      \
    {.name = "host-memory", .kind = CLI_STRING, .offset = offsetof(config_cli, host_memory), .value = "SIZE",                             \
     .help = "memory.host: what the process may use, e.g. 1536MiB or 8G"},                                                                \
    {.name = "print-config", .kind = CLI_FLAG, .offset = offsetof(config_cli, print_config),                                              \
     .help = "print every value and where it comes from, and leave"}

static const cli_option run_options_table[] = {
    SET_OPTION,
    {.name = "run-dir", .kind = CLI_STRING, .offset = offsetof(config_cli, run_dir), .value = "DIR", .group = "Run",
     .help = "run folder (default: runs/<name of the configuration>)"},
    {.name = "resume", .kind = CLI_CHOICE, .offset = offsetof(config_cli, resume), .value = "auto|never", .fallback = "auto",
     .choices = "auto|never", .help = "continue from the folder's checkpoint, or refuse a folder that has one"},
    {.name = "dry-run", .kind = CLI_FLAG, .offset = offsetof(config_cli, dry_run), .help = "check that everything fits, and leave"},
    {.name = "quiet", .letter = 'q', .kind = CLI_FLAG, .offset = offsetof(config_cli, quiet), .help = "nothing on the terminal but errors"},
};

static const cli_option check_options[] = {
    SET_OPTION,
    {.name = "run-dir", .kind = CLI_STRING, .offset = offsetof(config_cli, run_dir), .value = "DIR", .group = "Run",
     .help = "where the run would live: its disk is the one that is asked (default: runs/<name of the configuration>)"},
    {.name = "no-measure", .kind = CLI_FLAG, .offset = offsetof(config_cli, no_measure),
     .help = "sizes only: do not time this machine (a few seconds)"},
};

/* --host-memory is --set memory.host=SIZE, behind the other ones. */
static moe_err load_config(train_config **c, const char *path, const config_cli *a)
{
    char host[256];
    const char **sets = malloc(((size_t)a->set.n + 1) * sizeof *sets);
    if (sets == NULL)
        return moe_fail(MOE_E_OS, "out of memory");
    int n = 0;
    for (; n < a->set.n; n++)
        sets[n] = a->set.item[n];
    if (a->host_memory != NULL) {
        snprintf(host, sizeof host, "memory.host=%s", a->host_memory);
        sets[n++] = host;
    }
    const moe_err rc = train_config_load(c, path, sets, n);
    free(sets);
    return rc;
}

static moe_err print_config(const train_config *c)
{
    char *text;
    TRY(train_config_print(c, &text));
    fputs(text, stdout);
    free(text);
    return MOE_OK;
}

static moe_err run_run(const void *args, const cli_words *words)
{
    const config_cli *a = args;
    train_config *c;
    TRY(load_config(&c, words->word[0], a));
    moe_err rc;
    if (a->print_config)
        rc = print_config(c);
    else if (a->dry_run)
        rc = command_check(c, a->run_dir, false, stdout);
    else
        rc = command_run(c, &(run_options){.run_dir = a->run_dir, .fresh = strcmp(a->resume, "never") == 0, .quiet = a->quiet});
    train_config_free(c);
    return rc;
}

static moe_err run_check(const void *args, const cli_words *words)
{
    const config_cli *a = args;
    train_config *c;
    TRY(load_config(&c, words->word[0], a));
    const moe_err rc = a->print_config ? print_config(c) : command_check(c, a->run_dir, !a->no_measure, stdout);
    train_config_free(c);
    return rc;
}

typedef struct read_cli {
    cli_list set;
    const char *host_memory, *prompt, *out, *dtype;
    int64_t tokens, top_k, windows;
    uint64_t seed;
    double temperature;
} read_cli;

#define READ_OPTIONS                                                                                                                      \
    {.name = "host-memory", .kind = CLI_STRING, .offset = offsetof(read_cli, host_memory), .value = "SIZE", .group = "Memory",            \
     .help = "what the process may use (default: as the run was configured)"}

static const cli_option eval_options[] = {
    {.name = "windows", .kind = CLI_INT, .offset = offsetof(read_cli, windows), .value = "N", .fallback = "0", .min = 0, .max = 1e15,
     .group = "Evaluation", .help = "held-out windows; 0: as the run was configured"},
    READ_OPTIONS,
};

static const cli_option sample_options_table[] = {
    {.name = "prompt", .kind = CLI_STRING, .offset = offsetof(read_cli, prompt), .value = "TEXT", .group = "Text",
     .help = "what the text begins with"},
    {.name = "tokens", .kind = CLI_INT, .offset = offsetof(read_cli, tokens), .value = "N", .fallback = "128", .min = 1, .max = 1e6,
     .help = "tokens to generate"},
    {.name = "seed", .kind = CLI_UINT, .offset = offsetof(read_cli, seed), .value = "N", .fallback = "1", .help = "of the random choice"},
    {.name = "temperature", .kind = CLI_NUMBER, .offset = offsetof(read_cli, temperature), .value = "T", .fallback = "0.8", .min = 0,
     .max = 100, .help = "of the softmax; 0 takes the most likely token"},
    {.name = "top-k", .kind = CLI_INT, .offset = offsetof(read_cli, top_k), .value = "K", .fallback = "40", .min = 0, .max = 1e9,
     .help = "draw among the K most likely; 0: all"},
    READ_OPTIONS,
};

static const cli_option export_options[] = {
    {.name = "out", .kind = CLI_STRING, .offset = offsetof(read_cli, out), .value = "DIR", .group = "Output",
     .help = "folder to make: config.json, model.safetensors, the tokenizer's files"},
    {.name = "dtype", .kind = CLI_CHOICE, .offset = offsetof(read_cli, dtype), .value = "f32|bf16", .fallback = "f32", .choices = "f32|bf16",
     .help = "of the tensors"},
    READ_OPTIONS,
};

typedef struct opened {
    trainer t;
    train_config *c;
    run_folder f;
} opened;

/* --host-memory as a setting; how many there are. */
static int host_memory_set(char *host, size_t size, const read_cli *a)
{
    if (a->host_memory != NULL)
        snprintf(host, size, "memory.host=%s", a->host_memory);
    return a->host_memory != NULL;
}

static moe_err open_run(opened *o, const char *run_dir, const read_cli *a)
{
    char host[256];
    const char *sets[1] = {host};
    return command_open(&o->t, &o->c, &o->f, run_dir, sets, host_memory_set(host, sizeof host, a));
}

static void close_run(opened *o)
{
    trainer_close(&o->t);
    train_config_free(o->c);
    run_folder_close(&o->f);
}

static void print_loss(const opened *o, int64_t windows, double loss)
{
    char exact[TEXT_NUMBER];
    printf("{\"step\": %llu, \"windows\": %lld, \"val_loss\": %s, \"perplexity\": %.6g}\n", (unsigned long long)o->t.finished,
           (long long)windows, text_double(exact, loss), exp(loss));
}

static moe_err run_eval(const void *args, const cli_words *words)
{
    const read_cli *a = args;
    opened o;
    TRY(open_run(&o, words->word[0], a));
    double loss;
    int64_t used;
    moe_err rc = trainer_evaluate(&o.t, a->windows > 0 ? a->windows : o.c->eval_windows, &loss, &used);
    if (rc == MOE_OK && used == 0)
        rc = moe_fail(MOE_E_DATA, "%s: no held-out window of %d tokens", o.c->data_path, o.c->seq_len);
    if (rc == MOE_OK)
        print_loss(&o, used, loss);
    close_run(&o);
    return rc;
}

static moe_err run_sample(const void *args, const cli_words *words)
{
    const read_cli *a = args;
    if (a->prompt == NULL)
        return moe_fail(MOE_E_USAGE, "sample: --prompt TEXT is missing");
    char host[256];
    const char *sets[1] = {host};
    const sample_options s = {.prompt = a->prompt, .tokens = a->tokens, .seed = a->seed, .temperature = a->temperature, .top_k = (int)a->top_k};
    return command_sample(words->word[0], sets, host_memory_set(host, sizeof host, a), &s, stdout);
}

/* The tokenizer's files beside the weights. Plain bytes have none, nor have shards that other programs made. */
static moe_err export_tokenizer(const train_config *c, const char *dir)
{
    tokenizer *tok;
    const moe_err rc = tokenizer_open(&tok, c->data_path);
    if (rc == MOE_E_NOINPUT || rc == MOE_E_DATA)
        return MOE_OK;
    TRY(rc);
    const moe_err saved = tokenizer_is_bytes(tok) ? MOE_OK : tokenizer_save(tok, dir);
    tokenizer_close(tok);
    return saved;
}

static moe_err run_export(const void *args, const cli_words *words)
{
    const read_cli *a = args;
    if (a->out == NULL)
        return moe_fail(MOE_E_USAGE, "export: --out DIR is missing");
    opened o;
    TRY(open_run(&o, words->word[0], a));
    moe_err rc = command_export(&o.t, a->out, strcmp(a->dtype, "bf16") == 0 ? HF_BF16 : HF_F32);
    if (rc == MOE_OK)
        rc = export_tokenizer(o.c, a->out);
    close_run(&o);
    return rc;
}

static const cli_command commands[] = {
    {.name = "prepare", .synopsis = "--tokenizer FILE|bytes --out DIR [--val-fraction F] FILE...",
     .summary = "turn text, .jsonl (\"text\") and .zst of both into token files", .options = prepare_options, .noptions = COUNT(prepare_options),
     .args_bytes = sizeof(prepare_cli), .min_words = 1, .max_words = -1, .run = run_prepare},
    {.name = "check", .synopsis = "CONFIG.yaml [--set a.b=v]...", .summary = "will it fit, in which tier, how fast, what binds",
     .options = check_options, .noptions = COUNT(check_options), .args_bytes = sizeof(config_cli), .min_words = 1, .max_words = 1, .run = run_check},
    {.name = "run", .synopsis = "CONFIG.yaml [--set a.b=v]... [--run-dir DIR] [--resume auto|never] [--host-memory SIZE]",
     .summary = "train, or continue a run", .options = run_options_table, .noptions = COUNT(run_options_table),
     .args_bytes = sizeof(config_cli), .min_words = 1, .max_words = 1, .run = run_run},
    {.name = "eval", .synopsis = "RUN_DIR", .summary = "held-out loss of a run's last checkpoint", .options = eval_options,
     .noptions = COUNT(eval_options), .args_bytes = sizeof(read_cli), .min_words = 1, .max_words = 1, .run = run_eval},
    {.name = "sample", .synopsis = "RUN_DIR --prompt TEXT [--tokens N] [--seed N]", .summary = "text from a run's last checkpoint",
     .options = sample_options_table, .noptions = COUNT(sample_options_table), .args_bytes = sizeof(read_cli), .min_words = 1, .max_words = 1,
     .run = run_sample},
    {.name = "export", .synopsis = "RUN_DIR --out DIR [--dtype f32|bf16]", .summary = "a Hugging Face folder that transformers loads",
     .options = export_options, .noptions = COUNT(export_options), .args_bytes = sizeof(read_cli), .min_words = 1, .max_words = 1,
     .run = run_export},
};

int main(int argc, char **argv)
{
    static const cli_program program = {
        .name = "moe-train", .version = MOE_VERSION, .summary = "train Mixture-of-Experts models larger than memory",
        .commands = commands, .ncommands = COUNT(commands),
        .epilog = "Exit status: 0 done, 64 usage, 65 bad data or checksum, 66 missing input, 70 non-finite loss or norm, 73 cannot create,\n"
                  "74 disk full or I/O error, 75 stopped by a signal or run locked, 78 configuration or does not fit.\n",
    };
    return cli_main(&program, argc, argv);
}
