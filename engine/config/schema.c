#include "engine/config/schema.h"

#include <stdlib.h>
#include <string.h>

#define AT(field) offsetof(train_config, field)

const config_section config_sections[] = {
    {"model", "What is trained: `model_type` with sizes under their Hugging Face names, or `from`."},
    {"data", "What it is trained on."},
    {"train", "How long, and how many tokens at a time."},
    {"optimizer", "AdamW as `torch.optim.AdamW`, gradient clipping, learning-rate schedule."},
    {"balance", "What keeps the experts evenly loaded. A coefficient of 0 adds nothing."},
    {"memory", "Where experts and optimizer states live. Changes the speed, never the numbers."},
    {"checkpoint", "What survives a crash."},
    {"eval", "Held-out loss while training."},
    {"run", "The machine. Changes the speed, never the numbers."},
    {NULL, NULL},
};

/* clang-format off: one knob, two or three lines */
const knob config_knobs[] = {
    {.name = "model.from", .kind = KNOB_PATH, .offset = AT(model_from), .fallback = "null",
     .help = "Hugging Face folder to go on from, relative to this file; takes the place of all other `model` keys"},
    {.name = "data.path", .kind = KNOB_PATH, .offset = AT(data_path),
     .help = "folder made by `moe-train prepare`, or .bin shards of another project; relative to this file"},
    {.name = "train.steps", .kind = KNOB_INT64, .offset = AT(steps), .min = 1, .max = 1e9, .unit = "optimizer steps",
     .resume = true, .help = "length of the run"},
    {.name = "train.seq_len", .kind = KNOB_INT, .offset = AT(seq_len), .min = 1, .max = 1 << 24, .unit = "tokens",
     .help = "length of a training window"},
    {.name = "train.tokens_per_step", .kind = KNOB_INT64, .offset = AT(tokens_per_step), .min = 1, .max = 1 << 30,
     .unit = "tokens", .help = "batch of one optimizer step; a multiple of seq_len"},
    {.name = "train.micro_batch_tokens", .kind = KNOB_INT64, .offset = AT(micro_batch_tokens),
     .derived = "train.tokens_per_step", .min = 1, .max = 1 << 30, .unit = "tokens",
     .help = "tokens computed at a time; a multiple of seq_len that divides tokens_per_step"},
    {.name = "train.seed", .kind = KNOB_UINT64, .offset = AT(seed), .fallback = "1", .min = 0, .max = 18446744073709551615.0,
     .help = "of initial weights and the order of the data"},
    {.name = "optimizer.lr", .kind = KNOB_NUMBER, .offset = AT(lr), .fallback = "1.0e-3", .min = 0, .above_min = true,
     .max = 1e6, .resume = true, .help = "peak learning rate"},
    {.name = "optimizer.betas", .kind = KNOB_PAIR, .offset = AT(beta1), .offset2 = AT(beta2), .fallback = "[0.9, 0.999]",
     .min = 0, .max = 1, .below_max = true, .help = "decay of the two moments"},
    {.name = "optimizer.eps", .kind = KNOB_NUMBER, .offset = AT(eps), .fallback = "1.0e-8", .min = 0, .above_min = true,
     .max = 1, .help = "added to the root of the second moment"},
    {.name = "optimizer.weight_decay", .kind = KNOB_NUMBER, .offset = AT(weight_decay), .fallback = "0.01", .min = 0, .max = 1e3,
     .help = "decoupled decay of everything but norm gains, biases and the correction bias"},
    {.name = "optimizer.clip_norm", .kind = KNOB_NUMBER, .offset = AT(clip_norm), .fallback = "1.0", .min = 0, .max = 1e30,
     .help = "largest global gradient norm; 0: no clipping"},
    {.name = "optimizer.schedule.kind", .kind = KNOB_CHOICE, .offset = AT(schedule), .fallback = "constant",
     .choices = "cosine|linear|constant|wsd", .resume = true,
     .help = "shape after the warmup; wsd stays at the peak, then falls in a straight line over the last `decay_steps`"},
    {.name = "optimizer.schedule.warmup_steps", .kind = KNOB_INT64, .offset = AT(warmup_steps), .fallback = "0", .min = 0,
     .max = 1e9, .unit = "steps", .resume = true, .help = "lr rises as peak * step / warmup_steps"},
    {.name = "optimizer.schedule.decay_steps", .kind = KNOB_INT64, .offset = AT(decay_steps), .fallback = "0", .min = 0,
     .max = 1e9, .unit = "steps", .resume = true, .help = "wsd: length of the decay (required there, not used elsewhere)"},
    {.name = "optimizer.schedule.min_lr", .kind = KNOB_NUMBER, .offset = AT(min_lr), .fallback = "0.0", .min = 0, .max = 1e6,
     .resume = true, .help = "lr at the last step (not used by constant)"},
    {.name = "optimizer.moments", .kind = KNOB_CHOICE, .offset = AT(moments), .fallback = "f32", .choices = "f32|bf16",
     .help = "how the experts' moments are stored; bf16 (rounded stochastically) halves their disk space and traffic; the dense part keeps f32"},
    {.name = "optimizer.expert_weights", .kind = KNOB_CHOICE, .offset = AT(expert_weights), .fallback = "f32", .choices = "f32|bf16",
     .help = "what the experts' products read; bf16: the nearest bf16 of each weight, half the bytes, while AdamW keeps the f32 weight"},
    {.name = "optimizer.update", .kind = KNOB_CHOICE, .offset = AT(update), .fallback = "auto",
     .choices = "auto|deferred|speculative",
     .help = "when experts on the SSD are updated: in the next forward, or at once in backward; the same bits, other traffic"},
    {.name = "balance.aux_loss_coef", .kind = KNOB_NUMBER, .offset = AT(aux_coef), .derived = "model.router_aux_loss_coef",
     .min = 0, .max = 1e6, .help = "weight of the load-balancing loss E * sum f_e * P_e"},
    {.name = "balance.z_loss_coef", .kind = KNOB_NUMBER, .offset = AT(z_coef), .fallback = "0.0", .min = 0, .max = 1e6,
     .help = "weight of the router z-loss"},
    {.name = "balance.bias_update_rate", .kind = KNOB_NUMBER, .offset = AT(bias_update_rate), .fallback = "0.0", .min = 0,
     .max = 1e3, .help = "step of the router's correction bias (balancing without a loss); needs a model with that bias"},
    {.name = "balance.capacity_factor", .kind = KNOB_NUMBER, .offset = AT(capacity_factor), .fallback = "0.0", .min = 0, .max = 1e6,
     .help = "training only: an expert takes at most this factor times the mean rows of each micro-batch and drops the rest; 0 drops nothing"},
    {.name = "balance.scope", .kind = KNOB_CHOICE, .offset = AT(scope), .fallback = "micro", .choices = "micro|sequence|global",
     .help = "tokens over which the load is averaged: a micro-batch (as transformers), one sequence, the whole step"},
    {.name = "balance.per_layer", .kind = KNOB_BOOL, .offset = AT(per_layer), .fallback = "false",
     .help = "average one loss per layer, instead of one loss over all layers together"},
    {.name = "memory.host", .kind = KNOB_SIZE, .offset = AT(host_bytes), .fallback = "null", .min = 1 << 20, .max = 1e18,
     .unit = "bytes", .resume = true, .help = "RAM of the whole process; null: what the cgroup and the machine allow"},
    {.name = "memory.ssd", .kind = KNOB_PATHS, .offset = AT(ssd), .offset2 = AT(ssd_count), .fallback = "[store]", .resume = true,
     .help = "store folders, one for each drive, relative to the run folder"},
    {.name = "memory.buffered", .kind = KNOB_BOOL, .offset = AT(buffered), .fallback = "false", .resume = true,
     .help = "use the page cache, for file systems without O_DIRECT"},
    {.name = "memory.policy", .kind = KNOB_WORD, .offset = AT(policy), .fallback = "schedule", .choices = "schedule|lru|lfu",
     .resume = true,
     .help = "which expert leaves RAM: the one needed last, the longest unused, or by hit counts (arXiv 2205.10034)"},
    {.name = "memory.lfu_threshold", .kind = KNOB_NUMBER, .offset = AT(lfu_threshold), .fallback = "2.0", .min = 0, .max = 1e9,
     .resume = true, .help = "lfu: hits from which an expert is kept"},
    {.name = "memory.lfu_decay", .kind = KNOB_NUMBER, .offset = AT(lfu_decay), .fallback = "0.9", .min = 0, .max = 1,
     .resume = true, .help = "lfu: what is left of a hit count after each step"},
    {.name = "memory.prefetch", .kind = KNOB_INT, .offset = AT(prefetch_depth), .fallback = "-1", .min = -1, .max = 1024,
     .unit = "reads", .resume = true, .help = "reads in flight ahead of the computation; 0: none; -1: as many as make 16 MiB, 8 to 64"},
    {.name = "memory.io", .kind = KNOB_WORD, .offset = AT(io), .fallback = "auto", .choices = "auto|io_uring|pread",
     .resume = true, .help = "how bytes reach the drive; auto: io_uring, or pread threads where it is forbidden"},
    {.name = "memory.io_depth", .kind = KNOB_INT, .offset = AT(io_depth), .fallback = "16", .min = 1, .max = 1024,
     .unit = "transfers", .resume = true, .help = "in flight per drive"},
    {.name = "checkpoint.every", .kind = KNOB_INT64, .offset = AT(checkpoint_every), .fallback = "0", .min = 0, .max = 1e9,
     .unit = "steps", .resume = true, .help = "0: only at the end and on SIGTERM"},
    {.name = "checkpoint.keep", .kind = KNOB_INT, .offset = AT(checkpoint_keep), .fallback = "1", .min = 1, .max = 62,
     .resume = true, .help = "checkpoints kept; each needs its own place for every expert it names"},
    {.name = "eval.every", .kind = KNOB_INT64, .offset = AT(eval_every), .fallback = "0", .min = 0, .max = 1e9, .unit = "steps",
     .resume = true, .help = "0: only at the end"},
    {.name = "eval.windows", .kind = KNOB_INT64, .offset = AT(eval_windows), .fallback = "64", .min = 1, .max = 1e9,
     .unit = "windows", .resume = true, .help = "held-out windows of one evaluation, evenly spread; all when there are fewer"},
    {.name = "run.threads", .kind = KNOB_INT, .offset = AT(threads), .fallback = "0", .min = 0, .max = 4096, .resume = true,
     .help = "compute threads; 0: one for each core the process may use"},
    {.name = "run.kernels", .kind = KNOB_WORD, .offset = AT(backend), .fallback = "auto", .choices = "auto|ref|avx2|avx512",
     .resume = true, .help = "instruction set; all give the same bits"},
};
/* clang-format on */

const int config_nknobs = sizeof config_knobs / sizeof config_knobs[0];
_Static_assert(sizeof config_knobs / sizeof config_knobs[0] <= KNOBS_MAX, "KNOBS_MAX");
_Static_assert(sizeof(schedule_kind) == sizeof(int) && sizeof(update_mode) == sizeof(int) && sizeof(balance_scope) == sizeof(int) &&
                   sizeof(moments_kind) == sizeof(int) && sizeof(weights_kind) == sizeof(int),
               "KNOB_CHOICE writes an int");

int knob_find(const char *name)
{
    for (int i = 0; i < config_nknobs; i++)
        if (strcmp(config_knobs[i].name, name) == 0)
            return i;
    return -1;
}

bool knob_is_section(const char *path)
{
    const size_t n = strlen(path);
    for (int i = 0; i < config_nknobs; i++)
        if (strncmp(config_knobs[i].name, path, n) == 0 && config_knobs[i].name[n] == '.')
            return true;
    return false;
}
