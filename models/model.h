/* A model at rest, whatever it is made of: a Hugging Face folder, a GGUF file (or the first of a split one), a packed folder; a run folder of moe-train
 * is one more kind, which engine/train/run_model.h opens. Opened in place: nothing is converted, nothing large is
 * read. Says what the model is (spec) and where each matrix lies, in which format; the reader of the bytes (engine/serve, moe-model)
 * does its own I/O through memory/io.h or model_read.
 * Files are hostile until checked: when model_open returns, every tensor of the spec exists once, has the right shape, lies inside
 * its file and has a format of numfmt.h. Thread-safe once open. */
#ifndef MOE_MODELS_MODEL_H
#define MOE_MODELS_MODEL_H

#include "kernels/stream.h"
#include "models/rows.h"
#include "models/spec.h"

typedef enum model_kind { MODEL_HF, MODEL_GGUF, MODEL_PACKED, MODEL_RUN } model_kind;

/* Packed folders: one expert is one record, panels of gate, up, down one after the other. offset and bytes are multiples of 4 KiB (O_DIRECT); the
 * first `used` bytes are the panels, XXH3-64 `sum` is theirs, zeros follow. */
typedef struct model_record {
    int file;
    uint64_t offset;
    size_t bytes, used;
    uint64_t sum;
} model_record;

/* Experts that are made of what lies in several places (run folders: weights, moments, a pending gradient, a log of steps). */
enum { MODEL_RANGES = 2 };
typedef struct model_range {
    int file;
    uint64_t offset; /* a multiple of 4 KiB, as bytes */
    size_t bytes;
} model_range;

typedef struct model_experts {
    /* Where an expert lies: fills range[], returns how many (1 .. MODEL_RANGES). */
    int (*ranges)(void *user, int layer, int expert, model_range range[MODEL_RANGES]);
    /* The ranges as read (aligned for floats; overwritten) -> fp32 panels of gate, up, down, one after the other. One thread at a time.
     * stream NULL: the source's own thread. MOE_E_DATA: damaged. */
    moe_err (*land)(void *user, moe_stream *stream, int layer, int expert, void *const raw[MODEL_RANGES], float *panels);
    void (*close)(void *user);
    void *user;
} model_experts;

typedef struct model model;

/* MOE_E_NOINPUT, MOE_E_DATA, MOE_E_CONFIG name the file and the tensor or key, what was found and what was expected. */
moe_err model_open(model **out, const char *path) MOE_MUST_CHECK;
void model_close(model *m);
model_kind model_kind_of(const model *m);
const char *model_name(const model *m); /* as the user typed it */
const char *model_note(const model *m); /* what the user should know of how it was opened: an older checkpoint than the newest; "" */
const model_spec *model_spec_of(const model *m);
int model_files(const model *m);
const char *model_path(const model *m, int file);
uint64_t model_file_bytes(const model *m, int file);
/* Where the tensor of spec_tensors / spec_expert_tensors lies. Always found after model_open. */
void model_find(const model *m, const tensor_info *info, model_extent *out);
/* false: not a packed folder (an expert is then three extents). */
bool model_find_record(const model *m, int layer, int expert, model_record *out);
/* NULL: the experts' extents or records say where they lie. Otherwise an extent says only the format (F32, panels). */
const model_experts *model_expert_source(const model *m);
/* The configuration as the text of a config.json (from GGUF: its metadata under Hugging Face's names). */
const char *model_config(const model *m);
/* Where its tokenizer is: a path for tokenizer_open (a folder with tokenizer.json or tokenizer.gguf, or the GGUF file itself), NULL: none. */
const char *model_tokenizer(const model *m);
/* Bytes [offset, offset + n) of a file, buffered; for what is read once. */
moe_err model_read(const model *m, int file, uint64_t offset, void *out, size_t n) MOE_MUST_CHECK;

#endif
