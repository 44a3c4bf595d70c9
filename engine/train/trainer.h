/* A training run in memory: everything opened, sized by the plan, at a finished step. Training, evaluation, sampling and export all
 * begin by opening one.
 * Threads: one compute thread; the pool and the store have their own. */
#ifndef MOE_ENGINE_TRAIN_TRAINER_H
#define MOE_ENGINE_TRAIN_TRAINER_H

#include <stdatomic.h>

#include "comm/comm.h"
#include "engine/data/dataset.h"
#include "engine/plan/plan.h"
#include "engine/report/report.h"
#include "engine/train/run_folder.h"
#include "memory/checkpoint.h"

/* Bytes moved and time stalled since the run was opened; a step reports what came since the step before, evaluation and checkpoint
 * included. */
typedef struct trainer_counters {
    uint64_t read, write, wasted, hits, misses, spilled;
    double stall, busy;
} trainer_counters;

typedef enum trainer_mode {
    TRAINER_RUN,     /* train: reads and writes the store                                    */
    TRAINER_READ,    /* evaluate, sample, export: pending updates are applied in memory only */
} trainer_mode;

typedef struct trainer_options {
    trainer_mode mode;
    bool fresh;                 /* refuse a folder that has a checkpoint (--resume never)    */
    const atomic_int *stop;     /* becomes non-zero when a signal asks for a stop, or NULL   */
    io *io;                     /* every byte of store and checkpoints goes here; NULL: opened as memory.io says */
} trainer_options;

typedef struct trainer {
    const train_config *config;
    trainer_mode mode;
    train_plan plan;
    run_folder *folder;
    moe_pool *pool;
    moe_stream stream;
    const moe_backend *be;
    comm *comm;                 /* the ranks */
    io *io;
    bool borrowed_io;           /* of the caller: not closed here */
    char io_note[512];          /* why io_uring is not used, "" */
    store *store;
    checkpoint *checkpoint;
    char checkpoint_note[1024]; /* a damaged manifest was skipped, "" */
    tier *tier;
    stash *stash;
    balance balance;
    step_log log;
    dense_part dense;
    decoder decoder;
    hf_reader *from;
    float *wide;                /* an expert's fp32 weights where they lie in halves, else NULL */
    dataset *train, *val;       /* val NULL: no held-out windows */
    char val_note[1024];        /* why not, "" */
    uint64_t finished;          /* steps */
    bool resumed;

    int32_t *tokens, *targets;  /* [tokens_per_step] */
    int32_t *window;            /* [seq_len + 1]     */
    double *dense_squares;      /* [L + 2]           */
    int64_t *expert_rows;       /* [layers * E]      */
    const atomic_int *stop;     /* set by signals; NULL: none */
    uint64_t dense_written;     /* bytes of dense parts in checkpoints */
    trainer_counters counted;   /* when the last step was reported */
} trainer;

/* Opens everything. With a checkpoint in the folder the run continues from it (its configuration must agree: MOE_E_CONFIG names the
 * first key that does not); without one it begins at step 0. On an error nothing is left open. */
moe_err trainer_open(trainer *t, const train_config *c, run_folder *folder, trainer_options o) MOE_MUST_CHECK;
void trainer_close(trainer *t);

/* One optimizer step. On MOE_E_TEMP (a signal) the trainer is back at the last finished step. */
moe_err trainer_step(trainer *t, step_metrics *out) MOE_MUST_CHECK;
/* The same on the tokens and targets that lie in t->tokens and t->targets. */
moe_err trainer_step_tokens(trainer *t, step_metrics *out) MOE_MUST_CHECK;
/* The fp32 weights of a leased section, in panels: its part W, or a copy in t->wide made of W and R; rounded: of W alone, as the products
 * see them. Valid until the next call. */
const float *trainer_expert_weights(trainer *t, const tier_lease *l, bool rounded);
/* Writes a checkpoint of the last finished step. */
moe_err trainer_checkpoint(trainer *t) MOE_MUST_CHECK;
/* Mean loss over `windows` held-out windows, spread evenly; *used says how many there were. NAN when there are none. */
moe_err trainer_evaluate(trainer *t, int64_t windows, double *loss, int64_t *used) MOE_MUST_CHECK;
void trainer_count(trainer *t, trainer_counters *out);

#endif
