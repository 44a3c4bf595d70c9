/* Slots in device memory and the way of a section through one, shared by the ring (memory/ring.h) and the device cache (memory/device_cache.h), which
 * decide who comes and who goes. Private to both.
 *
 *   fill     copy-in waits until the last tenant was passed and its result copied out, then copies from the host lease; `arrived` is recorded.
 *            The host lease is given back when the caller learns that it has arrived.
 *   use      compute waits for `arrived`; from here the computation may launch what reads the slot.
 *   passed   compute records `passed`; a result is copied out behind it, `emptied` is recorded.
 *
 * A mark is an event with what it stands for. The marks that are not done, in the order in which they were recorded, begin with the work that holds
 * everything up, for what is queued waits only for what was queued before it: a deadline names that section and stream. A failure names the oldest of the
 * stream that the device says has failed.
 * Threads: one. Rule: a mark of one section is not recorded over one of another that is not done. */
#ifndef MOE_MEMORY_DEVICE_SLOTS_H
#define MOE_MEMORY_DEVICE_SLOTS_H

#include "memory/device_source.h"

enum { SLOTS_MAX = 1 << 16, SLOTS_TEXT = 512, MARK_ARRIVED = 0, MARK_PASSED, MARK_EMPTIED, MARKS };

typedef struct device_mark {
    device_event *event;
    bool pending, queued; /* queued: its record is; else the device failed on the way to it */
    uint64_t number;      /* of the oldest record that is not done */
    expert_id id;
} device_mark;

typedef struct device_slot {
    bool full;   /* holds `id`, or will once it has arrived */
    expert_id id;
    int leases;
    uint64_t used; /* number of the first use of the leases there are */
    device_mark mark[MARKS];
    expert_lease from;    /* the copy-in's, slot NULL: given back */
    device_result result; /* the copy-out's, `to` NULL: none      */
} device_slot;

typedef struct device_slots_config {
    const char *owner; /* "ring" */
    device *device;
    device_source source;
    int layers, experts;
    size_t slot_bytes, result_bytes; /* of a section as it lies in host memory; of what is made from it */
    size_t device_bytes;
    int least; /* slots */
    double deadline_seconds;
} device_slots_config;

typedef struct device_slots {
    device_slots_config c;
    size_t ids, stride, result_at;
    int n;
    char *base;
    device_slot *slot; /* [n]   */
    int32_t *slot_of;  /* [ids] NO_DEVICE_SLOT */
    uint64_t numbers;
    moe_err broken; /* nothing goes any more */
    char text[SLOTS_TEXT];
    uint64_t copies, copied_bytes, out_bytes;
    double stall_seconds;
} device_slots;

enum { NO_DEVICE_SLOT = -1 };

/* Bytes of device memory for c->least slots; SIZE_MAX when no memory can hold them. */
size_t slots_least_bytes(const device_slots_config *c);
moe_err slots_open(device_slots *x, const device_slots_config *c) MOE_MUST_CHECK;
/* Gives back what is lent, waiting for what is queued unless the device is broken. x may be zeroed or half built. */
void slots_close(device_slots *x);

static inline bool slot_copying(const device_slot *s) { return s->from.slot != NULL; }
/* Another section may come: nobody uses it, its copy-in and its result have come to their end or there are none. */
static inline bool slot_ready(const device_slot *s) { return s->leases == 0 && !slot_copying(s) && s->result.to == NULL; }
static inline void *slot_memory(const device_slots *x, int slot) { return x->base + (size_t)slot * x->stride; }

/* slot_ready(slot). Takes *from over, also when it fails. */
moe_err slots_fill(device_slots *x, int slot, expert_lease *from) MOE_MUST_CHECK;
moe_err slots_use(device_slots *x, int slot, device_lease *out) MOE_MUST_CHECK;
/* r NULL: no result. Ends the lease, also when it fails. */
moe_err slots_passed(device_slots *x, device_lease *l, const device_result *r) MOE_MUST_CHECK;
/* What has arrived is given back, what has landed is told. Without waiting. */
moe_err slots_reap(device_slots *x) MOE_MUST_CHECK;
/* Waits for the oldest mark of this kind that is not done; *any false: there was none. */
moe_err slots_await(device_slots *x, int kind, bool *any) MOE_MUST_CHECK;
moe_err slots_drain(device_slots *x) MOE_MUST_CHECK;
/* The slot's contents mean nothing any more (it is not leased). */
void slots_vacate(device_slots *x, int slot);
/* The first failure again, MOE_OK when there was none. */
moe_err slots_broken(const device_slots *x) MOE_MUST_CHECK;
moe_err slots_check(const device_slots *x) MOE_MUST_CHECK;

#endif
