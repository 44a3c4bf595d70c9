/* The device tier when whole layers pass (training forward and backward, prefill, large batches): slots that are filled in the order of a plan through
 * the copy-in stream and freed as the computation passes, as in the ring memory of SE-MoE (arXiv 2205.10034). Nothing here waits for
 * a copy that the computation can wait for itself: order is made by events between the streams.
 *
 * The plan is a list of groups (the sections of a layer that tokens chose). Groups follow one another; within one the sections come as they are found:
 * first those that a slot still holds (backward begins with what forward ended with), then those that are in host memory, then as they
 * are read. What is made from a section (its gradient) can be copied out; its slot is not used again before.
 *
 *   ring_plan(layer l)  ring_plan(layer l + 1)  ...  { ring_next; launch on lease.slot; ring_release } until ring_left is 0  ...  ring_drain
 *
 * Threads: one. Rule: what reads a slot is launched before its release; what lies in host memory is not changed behind the ring's back: ring_expire. */
#ifndef MOE_MEMORY_RING_H
#define MOE_MEMORY_RING_H

#include "memory/device_source.h"

typedef struct ring_config {
    device *device;
    device_source source; /* choose is not called: the reads of what is planned are started by who plans */
    int layers, experts;
    size_t slot_bytes;       /* of a section, as it lies in host memory                                 */
    size_t result_bytes;     /* of what is made from a section on the device; 0: nothing is             */
    size_t device_bytes;     /* for the slots                                                           */
    int held;                /* leases that the computation holds at once, at most                      */
    size_t planned;          /* sections planned and not yet leased, at most; 0: two layers             */
    double deadline_seconds; /* of a copy or a kernel; 0: DEVICE_DEADLINE_SECONDS                       */
} ring_config;

typedef struct ring ring;

/* Bytes for held + 1 slots, so that one is filled while the others are used: below this open refuses (MOE_E_CONFIG with slots and bytes). */
size_t ring_least_bytes(const ring_config *c);
moe_err ring_open(ring **out, const ring_config *c) MOE_MUST_CHECK;
/* Waits for what is queued, unless the device is broken: then host memory that was lent may be touched until device_close. NULL: no-op. */
void ring_close(ring *r);

/* Another group, each section once: MOE_E_DATA. MOE_E_FULL: more than `planned`. */
moe_err ring_plan(ring *r, const expert_id *id, int n) MOE_MUST_CHECK;
size_t ring_left(const ring *r); /* sections planned and not yet leased */

/* The next section in a slot, for the compute stream as soon as it has arrived. *out is zeroed when the plan is over, or when `wait` is false and
 * none is in host memory or on its way. MOE_E_FULL: every slot is leased. MOE_E_IO, MOE_E_DATA of the tier below: out->id says
 * whose read failed, all others that could be had have been; the same call tries it again, ring_skip gives it up. The device's own
 * failures name section and stream, and every later call repeats them. */
moe_err ring_next(ring *r, bool wait, device_lease *out) MOE_MUST_CHECK;
void ring_skip(ring *r, expert_id id);
/* The computation has passed: all that reads the slot is launched. `result` (NULL: none) is copied out. Ends the lease, also when it fails. */
moe_err ring_release(ring *r, device_lease *l, const device_result *result) MOE_MUST_CHECK;

/* Takes in what is done and fills what is free, without waiting. The calls above do it too; for long stretches without any. */
moe_err ring_poll(ring *r) MOE_MUST_CHECK;
/* Everything queued is done, all results have landed. */
moe_err ring_drain(ring *r) MOE_MUST_CHECK;
/* The sections in host memory have changed: what slots hold is filled no plan with. Nothing may be planned or leased. */
moe_err ring_expire(ring *r) MOE_MUST_CHECK;

typedef struct ring_stats {
    int slots;
    uint64_t leases, hits; /* hits: still in a slot                    */
    uint64_t copied_bytes, result_bytes;
    double stall_seconds;  /* the host waited for the device           */
} ring_stats;
void ring_get_stats(const ring *r, ring_stats *out);

/* All invariants; for tests. MOE_E_DATA says which one is broken. */
moe_err ring_check(const ring *r) MOE_MUST_CHECK;

#endif
