/* A run folder of moe-train as a model, in place and read only: its latest whole checkpoint. The dense part lies in the checkpoint's file as the engine
 * wants it; an expert is made on its way into memory: the weights as they stand in the store, with what is pending on them applied (a gradient, the
 * steps that it took no part in), or the initial ones where it was never written. The numbers are those of `moe-train export`, bit by bit.
 * While the model is open nobody can train in the folder: its slots would be written over. Damage is MOE_E_DATA: the dense part's checksum is
 * looked at here, an expert's whenever it is read.
 * Threads: as models/model.h. */
#ifndef MOE_ENGINE_TRAIN_RUN_MODEL_H
#define MOE_ENGINE_TRAIN_RUN_MODEL_H

#include "models/model.h"

/* A MODEL of any kind: a run folder, or what model_open knows. MOE_E_NOINPUT: a run without a checkpoint; MOE_E_TEMP: a process works in it. */
moe_err run_model_open(model **out, const char *path) MOE_MUST_CHECK;

/* What tokenizer_open and chat_open are given for a MODEL; malloc'ed. A run's texts are in the folder of its data. Nothing is locked. */
moe_err run_model_texts(char **out, const char *path) MOE_MUST_CHECK;

#endif
