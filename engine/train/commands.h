/* What the subcommands of moe-train do once their arguments are parsed. */
#ifndef MOE_ENGINE_TRAIN_COMMANDS_H
#define MOE_ENGINE_TRAIN_COMMANDS_H

#include <stdio.h>

#include "engine/train/trainer.h"

typedef struct run_options {
    const char *run_dir;   /* NULL: runs/<config name>                                 */
    bool fresh;            /* --resume never                                           */
    bool quiet;
} run_options;

/* Trains to config.train.steps; MOE_OK also when the run was finished before. MOE_E_TEMP after a signal, with a checkpoint written. */
moe_err command_run(train_config *c, const run_options *o) MOE_MUST_CHECK;

/* The plan, for people: sizes per tier, bytes and flops per phase, which limit binds, wear. measure: also time this machine. */
moe_err command_check(const train_config *c, const char *run_dir, bool measure, FILE *out) MOE_MUST_CHECK;

/* Opens a run folder with the configuration it was started with, at its last checkpoint, to be read. *c is owned by the caller. */
moe_err command_open(trainer *t, train_config **c, run_folder *f, const char *run_dir, const char *const *sets, int nsets) MOE_MUST_CHECK;

typedef struct sample_options {
    const char *prompt;
    int64_t tokens;
    uint64_t seed;
    double temperature;    /* 0: greedy */
    int top_k;             /* 0: all    */
} sample_options;
/* Writes the prompt and what follows it to `out` as it is made. sets: "a.b=v" over the run's configuration. The weights are those that export writes. */
moe_err command_sample(const char *run_dir, const char *const *sets, int nsets, const sample_options *o, FILE *out) MOE_MUST_CHECK;

moe_err command_export(trainer *t, const char *out, hf_dtype dtype) MOE_MUST_CHECK;

#endif
