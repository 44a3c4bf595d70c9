/* How a training run is laid out in memory and on disk: decided from sizes alone, before anything is allocated. `moe-train check`
 * prints it and `moe-train run` follows it. */
#ifndef MOE_ENGINE_PLAN_PLAN_H
#define MOE_ENGINE_PLAN_PLAN_H

#include "engine/config/train_config.h"
#include "engine/decoder/decoder.h"

typedef struct train_plan {
    uint64_t limit;            /* bytes the process may use                                  */
    char limit_source[64];
    int threads;
    int layers;                /* MoE layers */
    int64_t sections;          /* layers * experts                                           */
    size_t part_bytes;         /* one part of a record: fp32 numbers of all its weights      */
    size_t half_bytes;         /* w and r with bf16 expert weights; 0: w is a whole part     */
    size_t slot_bytes;         /* a slot holds a part, or w and r                            */
    size_t record_bytes;       /* all parts, on disk                                         */
    int record_parts;          /* slots of a record: w, m, v, g; 3 with bf16 moments, which share m */
    bool has_v;

    int64_t group_tokens;      /* tokens that pass a layer together                          */
    int groups;                /* per step                                                   */
    int64_t piece_tokens;      /* dense work                                                 */
    int64_t expert_rows;
    int64_t logits_bytes;      /* of one chunk of logits                                     */

    uint64_t overhead;         /* program, libraries, stacks, catalogs, tokens               */
    uint64_t dense, scratch;   /* weights with states / working buffers                      */
    uint64_t stash_full, stash, stash_largest; /* activations of a group: all / in RAM / biggest block */
    uint64_t tier_full, tier;  /* expert slots: everything / in RAM                          */
    uint64_t total;            /* sum of what is in RAM                                      */
    uint64_t smallest;         /* the least limit that would do, with one micro-batch a group */

    bool spills;               /* activations go to disk                                     */
    bool resident;             /* every part of every expert fits                            */
    bool can_speculate;        /* slots for the speculative update are reserved              */
    int store_slots;
    uint64_t store_bytes, spill_bytes, dense_file_bytes; /* on disk                          */

    double flops_forward, flops_backward; /* of one step                                     */
} train_plan;

/* MOE_E_CONFIG when it does not fit: says what is needed and what would fit. memory.host null: detect. training false: forward only
 * (evaluation, sampling, export). */
moe_err train_plan_make(train_plan *p, const train_config *c, bool training) MOE_MUST_CHECK;

/* Bytes of a part of each record, 0 where records do not have it. */
static inline size_t plan_part_bytes(const train_plan *p, store_part part)
{
    if (part == STORE_R || (part == STORE_W && p->half_bytes > 0))
        return p->half_bytes;
    return part == STORE_V && !p->has_v ? 0 : p->part_bytes;
}

/* The token sets of the load-balance losses, and the capacity of an expert. */
balance_config train_plan_balance(const train_plan *p, const train_config *c);

/* Human-readable size, e.g. "1.50 GiB". Returns buf. */
char *size_text(char *buf, size_t size, uint64_t bytes);

#endif
