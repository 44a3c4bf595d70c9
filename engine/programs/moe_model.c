/* moe-model: the table of commands and options. What a command does lives in engine/serve (model_commands.h). */
#include <string.h>

#include "engine/base/cli.h"
#include "engine/config/train_config.h"
#include "engine/serve/model_commands.h"

#define COUNT(a) (int)(sizeof(a) / sizeof *(a))
#define FORMATS "q8_0|f8_e4m3|q5_1|q5_0|q4_k|q4_1|q4_0|mxfp4|bf16|f16|f32"

typedef struct model_cli {
    const char *host_memory, *out, *experts, *dense;
    bool json, specials;
} model_cli;

typedef struct upcycle_cli {
    const char *out, *dtype;
    int64_t experts, top_k;
    double noise;
    uint64_t seed;
} upcycle_cli;

#define JSON_OPTION {.name = "json", .kind = CLI_FLAG, .offset = offsetof(model_cli, json), .group = "Output", .help = "one JSON object"}
#define OUT_OPTION                                                                                                                        \
    {.name = "out", .kind = CLI_STRING, .offset = offsetof(model_cli, out), .value = "DIR", .group = "Output",                            \
     .help = "folder to make: packed.json, dense.bin, experts.bin, the tokenizer's files"}

static const cli_option inspect_options[] = {
    {.name = "host-memory", .kind = CLI_STRING, .offset = offsetof(model_cli, host_memory), .value = "SIZE", .group = "Memory",
     .help = "what a process may use, e.g. 1536MiB or 8G (default: what the system allows)"},
    JSON_OPTION,
};

static const cli_option tokenize_options[] = {
    {.name = "specials", .kind = CLI_FLAG, .offset = offsetof(model_cli, specials), .group = "Text",
     .help = "text of special tokens becomes those tokens; otherwise it is plain text"},
    JSON_OPTION,
};

static const cli_option detokenize_options[] = {JSON_OPTION};

static const cli_option pack_options[] = {OUT_OPTION};

static const cli_option quantize_options[] = {
    {.name = "experts", .kind = CLI_CHOICE, .offset = offsetof(model_cli, experts), .value = FORMATS, .choices = FORMATS, .group = "Formats",
     .help = "of the experts' matrices"},
    {.name = "dense", .kind = CLI_CHOICE, .offset = offsetof(model_cli, dense), .value = FORMATS, .choices = FORMATS,
     .help = "of attention, dense and shared feed-forward, embedding and output\n(without it: as they are; the router and the norms always stay)"},
    OUT_OPTION,
};

static const cli_option upcycle_options_table[] = {
    {.name = "experts", .kind = CLI_INT, .offset = offsetof(upcycle_cli, experts), .value = "N", .min = 1, .max = 65536, .fallback = "8", .group = "Experts",
     .help = "experts a layer, each a copy of the dense feed-forward"},
    {.name = "top-k", .kind = CLI_INT, .offset = offsetof(upcycle_cli, top_k), .value = "K", .min = 1, .max = 65536, .fallback = "2",
     .help = "experts a token is routed to"},
    {.name = "noise", .kind = CLI_NUMBER, .offset = offsetof(upcycle_cli, noise), .value = "F", .min = 0, .max = 10, .fallback = "0",
     .help = "random noise on each copy, in parts of the root mean square of its matrix"},
    {.name = "seed", .kind = CLI_UINT, .offset = offsetof(upcycle_cli, seed), .value = "N", .fallback = "0", .help = "of the router and the noise"},
    {.name = "dtype", .kind = CLI_CHOICE, .offset = offsetof(upcycle_cli, dtype), .value = "f32|bf16", .choices = "f32|bf16", .fallback = "bf16",
     .group = "Output", .help = "of the folder's tensors"},
    {.name = "out", .kind = CLI_STRING, .offset = offsetof(upcycle_cli, out), .value = "DIR",
     .help = "Hugging Face folder to make: config.json, *.safetensors, the tokenizer's files"},
};

static moe_err run_inspect(const void *args, const cli_words *words)
{
    const model_cli *a = args;
    uint64_t host = 0;
    TRY(size_parse_option("host-memory", a->host_memory, &host));
    return command_inspect(words->word[0], host, a->json, stdout);
}

static moe_err run_tokenize(const void *args, const cli_words *words)
{
    const model_cli *a = args;
    return command_tokenize(words->word[0], words->word[1], a->specials, a->json, stdout);
}

static moe_err run_detokenize(const void *args, const cli_words *words)
{
    const model_cli *a = args;
    return command_detokenize(words->word[0], words->word[1], a->json, stdout);
}

static moe_err run_template(const void *args, const cli_words *words)
{
    const model_cli *a = args;
    return command_template(words->word[0], words->word[1], a->json, stdout);
}

static moe_err run_pack(const void *args, const cli_words *words)
{
    const model_cli *a = args;
    if (a->out == NULL)
        return moe_fail(MOE_E_USAGE, "pack: --out DIR is missing");
    const packed_options o = {.experts = PACKED_AS_IS, .dense = PACKED_AS_IS};
    return command_pack(words->word[0], a->out, &o, stdout);
}

static moe_err run_quantize(const void *args, const cli_words *words)
{
    const model_cli *a = args;
    if (a->out == NULL)
        return moe_fail(MOE_E_USAGE, "quantize: --out DIR is missing");
    if (a->experts == NULL && a->dense == NULL)
        return moe_fail(MOE_E_USAGE, "quantize: --experts FORMAT or --dense FORMAT is missing; pack keeps all formats");
    const packed_options o = {.experts = a->experts != NULL ? numfmt_find(a->experts) : PACKED_AS_IS,
                              .dense = a->dense != NULL ? numfmt_find(a->dense) : PACKED_AS_IS};
    return command_pack(words->word[0], a->out, &o, stdout);
}

static moe_err run_upcycle(const void *args, const cli_words *words)
{
    const upcycle_cli *a = args;
    if (a->out == NULL)
        return moe_fail(MOE_E_USAGE, "upcycle: --out DIR is missing");
    const upcycle_options o = {.experts = (int)a->experts, .top_k = (int)a->top_k, .noise = a->noise, .seed = a->seed,
                               .dtype = strcmp(a->dtype, "bf16") == 0 ? HF_BF16 : HF_F32};
    return command_upcycle(words->word[0], a->out, &o, stdout);
}

static const cli_command commands[] = {
    {.name = "inspect", .synopsis = "MODEL [--host-memory SIZE] [--json]", .summary = "family, parameters, formats, bytes, and what fits where",
     .options = inspect_options, .noptions = COUNT(inspect_options), .args_bytes = sizeof(model_cli), .min_words = 1, .max_words = 1, .run = run_inspect},
    {.name = "pack", .synopsis = "MODEL --out DIR", .summary = "experts as aligned records in the order of memory, one read each",
     .options = pack_options, .noptions = COUNT(pack_options), .args_bytes = sizeof(model_cli), .min_words = 1, .max_words = 1, .run = run_pack},
    {.name = "quantize", .synopsis = "MODEL --out DIR --experts FORMAT [--dense FORMAT]", .summary = "pack with other number formats",
     .options = quantize_options, .noptions = COUNT(quantize_options), .args_bytes = sizeof(model_cli), .min_words = 1, .max_words = 1, .run = run_quantize},
    {.name = "upcycle", .synopsis = "DENSE --out DIR [--experts N] [--top-k K] [--noise F]", .summary = "a dense model becomes a Mixture-of-Experts",
     .details = "Every expert begins as a copy of the dense feed-forward, behind a new router (arXiv 2212.05055). llama becomes mixtral, qwen3\n"
                "becomes qwen3_moe. The folder opens in transformers, and `model: {from: DIR}` of moe-train trains it on.\n",
     .options = upcycle_options_table, .noptions = COUNT(upcycle_options_table), .args_bytes = sizeof(upcycle_cli), .min_words = 1, .max_words = 1,
     .run = run_upcycle},
    {.name = "tokenize", .synopsis = "MODEL TEXT|- [--specials] [--json]", .summary = "token ids of a text", .options = tokenize_options,
     .noptions = COUNT(tokenize_options), .args_bytes = sizeof(model_cli), .min_words = 2, .max_words = 2, .run = run_tokenize},
    {.name = "detokenize", .synopsis = "MODEL IDS|- [--json]", .summary = "the text of token ids (1,2,3)", .options = detokenize_options,
     .noptions = COUNT(detokenize_options), .args_bytes = sizeof(model_cli), .min_words = 2, .max_words = 2, .run = run_detokenize},
    {.name = "template", .synopsis = "MODEL MESSAGES.json|- [--json]", .summary = "the text that the model's chat template makes of messages",
     .details = "MESSAGES.json is a list of {\"role\": ..., \"content\": ...}, or an object of the template's variables: messages, tools,\n"
                "add_generation_prompt, ... With --json the token ids too; special tokens only where the template itself wrote them.\n",
     .options = detokenize_options, .noptions = COUNT(detokenize_options), .args_bytes = sizeof(model_cli), .min_words = 2, .max_words = 2,
     .run = run_template},
};

int main(int argc, char **argv)
{
    static const cli_program program = {
        .name = "moe-model", .version = MOE_VERSION, .summary = "look into models, pack, quantise and upcycle them, turn text into tokens and back",
        .commands = commands, .ncommands = COUNT(commands),
        .epilog = "MODEL is a Hugging Face folder, a GGUF file (the first of a split one), a packed folder or a run folder of moe-train.\n"
                  "Exit status: 0 done, 64 usage, 65 bad data or checksum, 66 missing input, 71 out of memory, 73 cannot create,\n"
                  "74 disk full or I/O error, 75 the run is at work, 78 configuration or does not fit.\n",
    };
    return cli_main(&program, argc, argv);
}
