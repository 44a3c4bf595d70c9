/* What run_model.c (opening) and run_experts.c (making an expert of its parts) share.
 * Read-only once open, but for the thread and the reader of initial weights: one user at a time. */
#ifndef MOE_ENGINE_TRAIN_RUN_PRIVATE_H
#define MOE_ENGINE_TRAIN_RUN_PRIVATE_H

#include "engine/config/train_config.h"
#include "engine/train/run_folder.h"
#include "kernels/backend.h"
#include "memory/checkpoint.h"
#include "models/formats/hf.h"
#include "models/model_build.h"

typedef struct run_source {
    run_folder folder; /* with its shared lock */
    train_config *config;
    checkpoint *checkpoint;
    const manifest *manifest; /* of the checkpoint */
    store_config store;       /* where things lie; nothing of it is open */
    int slots;
    int *file;                /* [ndirs * slots] index in the model, -1: not named by the checkpoint */
    expert_layout layout;
    const moe_backend *be;
    moe_pool *pool;           /* one thread, for callers without */
    moe_stream stream;
    hf_reader *from;          /* initial weights; NULL: random */
    char note[512];           /* of the checkpoint: which manifest could not be read, "" */
} run_source;

/* Expert sections count the MoE layers. */
static inline section_id run_section(const run_source *s, int layer, int expert)
{
    return (section_id)(spec_moe_index(&s->config->model, layer) * s->config->model.E + expert);
}

int run_expert_ranges(void *user, int layer, int expert, model_range range[MODEL_RANGES]);
moe_err run_expert_land(void *user, moe_stream *stream, int layer, int expert, void *const raw[MODEL_RANGES], float *panels) MOE_MUST_CHECK;

#endif
