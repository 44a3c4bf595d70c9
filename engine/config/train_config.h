/* The configuration of a training run: YAML (or JSON) text -> typed values, each with its origin. One table of knobs (schema.c)
 * makes the parser, --print-config, --set, the docs and the resume rules. Owns its strings. */
#ifndef MOE_ENGINE_CONFIG_TRAIN_CONFIG_H
#define MOE_ENGINE_CONFIG_TRAIN_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/base/error.h"
#include "models/spec.h"

typedef enum balance_scope { BALANCE_MICRO, BALANCE_SEQUENCE, BALANCE_GLOBAL } balance_scope;
typedef enum schedule_kind { SCHEDULE_COSINE, SCHEDULE_LINEAR, SCHEDULE_CONSTANT, SCHEDULE_WSD } schedule_kind;
typedef enum moments_kind { MOMENTS_F32, MOMENTS_BF16 } moments_kind;
typedef enum weights_kind { WEIGHTS_F32, WEIGHTS_BF16 } weights_kind;
typedef enum update_mode { UPDATE_AUTO, UPDATE_DEFERRED, UPDATE_SPECULATIVE } update_mode;

typedef struct train_config {
    char *source;                 /* path of the YAML file                                   */
    char *name;                   /* its name without folder and suffix                      */

    char *model_from;             /* model.from: Hugging Face folder (absolute), or NULL     */
    model_spec model;             /* filled from model.* (or from the folder)                */

    char *data_path;              /* absolute                                                */
    int64_t steps;
    int seq_len;
    int64_t tokens_per_step, micro_batch_tokens; /* multiples of seq_len; the second divides the first */
    uint64_t seed;

    double lr, beta1, beta2, eps, weight_decay, clip_norm; /* clip_norm 0: no clipping       */
    schedule_kind schedule;
    int64_t warmup_steps, decay_steps; /* decay_steps: wsd                                   */
    double min_lr;
    moments_kind moments;         /* optimizer.moments: of the experts; dense ones are f32   */
    weights_kind expert_weights;  /* optimizer.expert_weights: as multiplied; the master is f32 */
    update_mode update;           /* optimizer.update: auto | deferred | speculative         */

    double aux_coef, z_coef, bias_update_rate; /* balance.aux_loss_coef, z_loss_coef, bias_update_rate */
    double capacity_factor;       /* balance.capacity_factor; 0: dropless                    */
    balance_scope scope;          /* balance.scope                                           */
    bool per_layer;               /* balance.per_layer                                       */

    uint64_t host_bytes;          /* memory.host; 0: detect                                  */
    char **ssd;                   /* memory.ssd: folders (relative to the run folder), at least one */
    int ssd_count;
    bool buffered;                /* memory.buffered                                         */
    char *policy;                 /* memory.policy: schedule | lru | lfu                     */
    double lfu_threshold, lfu_decay;
    int prefetch_depth;           /* memory.prefetch; -1: chosen from the record size        */
    char *io;                     /* memory.io: auto | io_uring | pread                      */
    int io_depth;                 /* memory.io_depth                                         */

    int64_t checkpoint_every;     /* 0: only at the end                                      */
    int checkpoint_keep;
    int64_t eval_every, eval_windows;

    int threads;                  /* run.threads; 0: one per core of the affinity mask       */
    char *backend;                /* run.kernels: auto | ref | avx2 | avx512                 */

    struct config_detail *detail; /* private: origin of every value, model keys as given     */
} train_config;

/* Reads `path`, applies `sets` ("a.b=v") in order, fills defaults. All problems at once in one MOE_E_CONFIG sentence, each
 * "file:line:col: key: expected ..., got ..." with the nearest key for an unknown one. *out is NULL on error. */
moe_err train_config_load(train_config **out, const char *path, const char *const *sets, int nsets) MOE_MUST_CHECK;
/* The same from text in memory; `source` names it in sentences and is what relative paths start from. */
moe_err train_config_parse(train_config **out, const char *text, size_t bytes, const char *source, const char *const *sets, int nsets) MOE_MUST_CHECK;
void train_config_free(train_config *c); /* NULL: no-op */

/* --print-config: YAML of every value with "# default", "# file:line" or "# --set" behind it; malloc'ed text. */
moe_err train_config_print(const train_config *c, char **text) MOE_MUST_CHECK;

/* The echo kept in a checkpoint: "key = value" lines of the keys that may not change on resume; compare names the first key that
 * differs with both values (MOE_E_CONFIG). */
moe_err train_config_echo(const train_config *c, char **text) MOE_MUST_CHECK;
moe_err train_config_compare_echo(const char *saved, const char *now) MOE_MUST_CHECK;

/* docs/config.md: every knob and every model key, from the tables. */
moe_err train_config_document(char **text) MOE_MUST_CHECK;

/* lr of step s (from 1). Warmup: lr * s / warmup_steps; then from lr at s = warmup_steps to min_lr at s = steps (and after): half a cosine,
 * a straight line, or flat and a straight line over the last decay_steps (wsd); constant stays at lr. The same bits on every machine. */
double train_config_lr(const train_config *c, int64_t s);

/* "1536MiB", "8G", "100000": K M G T and KiB.. are 1024-based, KB.. 1000-based, a bare number bytes. */
moe_err size_parse(const char *text, uint64_t *bytes) MOE_MUST_CHECK;
/* Of a command line: text NULL (not given) leaves *bytes; MOE_E_USAGE names the option. */
moe_err size_parse_option(const char *option, const char *text, uint64_t *bytes) MOE_MUST_CHECK;

#endif
