/* Owns the sizes of a record's parts: which there are and how wide their numbers, by the kinds of weights and moments. Does not know where they lie.
 * Threads: pure.
 * Rule: the plan (and through it the trainer) and whoever opens a run take them from here; they are part of the format of runs. */
#include "engine/plan/record.h"

static size_t pad(size_t bytes) { return (bytes + IO_ALIGN - 1) / IO_ALIGN * IO_ALIGN; }

void record_part_bytes(const train_config *c, size_t bytes[STORE_PARTS])
{
    expert_layout e;
    spec_expert_layout(&c->model, &e);
    const size_t whole = pad(e.floats * sizeof(float)), half = c->expert_weights == WEIGHTS_BF16 ? pad(e.floats * sizeof(uint16_t)) : 0;
    bytes[STORE_W] = half > 0 ? half : whole;
    bytes[STORE_R] = half;
    bytes[STORE_M] = bytes[STORE_G] = whole;
    bytes[STORE_V] = c->moments == MOMENTS_F32 ? whole : 0; /* bf16: both in m */
}
