/* What a model is made of and what it needs: parameters, formats, bytes at rest and in memory, and how much of it fits the memory of this machine.
 * Sizes only: reads no weights. One thread. */
#ifndef MOE_ENGINE_SERVE_INSPECT_H
#define MOE_ENGINE_SERVE_INSPECT_H

#include "engine/base/text.h"
#include "models/model.h"

enum { INSPECT_ROWS = 96, INSPECT_CONTEXT = 4096 /* tokens the sizes of the KV cache are given for */ };

typedef enum inspect_part { PART_EMBEDDING, PART_ATTENTION, PART_NORMS, PART_ROUTER, PART_FFN, PART_SHARED, PART_EXPERTS, PART_OUTPUT, INSPECT_PARTS } inspect_part;

/* Tensors of one part in one format. */
typedef struct inspect_row {
    inspect_part part;
    numfmt format;
    int64_t tensors, parameters;
    uint64_t bytes; /* at rest */
} inspect_row;

typedef struct inspect_report {
    const model *m;
    inspect_row row[INSPECT_ROWS];
    int rows;
    uint64_t file_bytes;
    uint64_t dense_bytes;             /* in memory: all but the experts                    */
    uint64_t expert_bytes;            /* in memory: all experts                            */
    uint64_t slot_bytes;              /* in memory: the largest expert                     */
    uint64_t kv_bytes;                /* of INSPECT_CONTEXT tokens of one sequence in bf16 */
    uint64_t token_expert_bytes;      /* of the experts one token uses                     */
    uint64_t host_bytes;              /* what the process may use                          */
    char host_source[64];
    uint64_t least_bytes;             /* dense part, KV, two experts                       */
    int64_t experts, experts_fit;     /* of all layers; how many find room beside the rest in 95 % of host_bytes, -1: not even the least fits */
} inspect_report;

/* host_bytes 0: what the system allows this process. */
moe_err inspect_model(inspect_report *out, const model *m, uint64_t host_bytes) MOE_MUST_CHECK;
/* For people / one JSON object. */
void inspect_print(const inspect_report *r, text_buf *out);
void inspect_json(const inspect_report *r, text_buf *out);

#endif
