/* For those who open a kind of model: an empty model that they fill. What model.h promises after model_open, they keep: every tensor of the spec has
 * an extent that lies inside its file and has the right size. model_close gives back what is there.
 * One thread. */
#ifndef MOE_MODELS_MODEL_BUILD_H
#define MOE_MODELS_MODEL_BUILD_H

#include "models/model.h"

/* A model of this kind with nothing but its configuration; config.json is made from the spec. */
moe_err model_new(model **out, const char *name, model_kind kind, const model_spec *spec) MOE_MUST_CHECK;
/* Opens a file and appends it. */
moe_err model_add_file(model *m, const char *path) MOE_MUST_CHECK;
/* Room for the extents of a table of n tensors. */
moe_err model_make_extents(model *m, int64_t n) MOE_MUST_CHECK;
/* MOE_E_DATA when it does not lie inside its file; an expert's of a source says only the format. */
moe_err model_set_extent(model *m, const tensor_info *info, const model_extent *e) MOE_MUST_CHECK;
/* The folder as the tokenizer when it holds one, as tokenizer.json or tokenizer.gguf. */
moe_err model_folder_tokenizer(model *m, const char *dir) MOE_MUST_CHECK;
/* What model_note says; cut where it is too long. */
void model_set_note(model *m, const char *note);
/* The model owns the source from here on. Before the extents. */
void model_set_experts(model *m, const model_experts *source);

#endif
