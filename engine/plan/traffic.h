/* The least bytes a training step must move between SSD and RAM, per phase: what `check` prints and the benchmarks compare with.
 *
 * Every expert is touched once a phase. A cycle is forward of layer 0 .. L-1, then backward of L-1 .. 0; a part that is needed and not
 * in RAM is read, a changed part that leaves RAM is written. RAM holds `capacity` bytes of parts, and what is needed farthest in the future
 * leaves first (Belady on the cycle, whole layers divided at will), so no policy moves less with this order of work. */
#ifndef MOE_ENGINE_PLAN_TRAFFIC_H
#define MOE_ENGINE_PLAN_TRAFFIC_H

#include "engine/plan/plan.h"

typedef struct phase_traffic {
    double read, write;         /* bytes of records         */
    double spill;               /* bytes of activations     */
    double flops;
} phase_traffic;

typedef struct step_traffic {
    phase_traffic forward, backward;
} step_traffic;

/* speculative: the update is made in backward (DESIGN.md section 4). */
moe_err traffic_of(step_traffic *out, const train_plan *p, bool speculative) MOE_MUST_CHECK;

static inline double phase_bytes(const phase_traffic *p) { return p->read + p->write + p->spill; }

#endif
