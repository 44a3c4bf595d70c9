/* What lies beneath the device's slots: the host tier, as leases on whole experts in host memory; the calls are those
 * of memory/expert_cache.h, but anything that can lend bytes will do. One thread, the computing one. */
#ifndef MOE_MEMORY_DEVICE_SOURCE_H
#define MOE_MEMORY_DEVICE_SOURCE_H

#include "memory/device.h"
#include "memory/expert_cache.h"

/* Calls mean what they mean in expert_cache.h: take_any leases one of the n wanted that is resident, waits for one when told to, reports the failure
 * of wanted[*which] when no other is there or under way, and MOE_E_FULL when everything is leased. The slots give a lease back
 * when the copy that reads it has come to its end. */
typedef struct device_source {
    moe_err (*choose)(void *user, int layer, const int32_t *experts, int n); /* the device's misses of a layer; NULL: nobody asks */
    moe_err (*take_any)(void *user, const expert_id *wanted, int n, bool wait, int *which, expert_lease *out);
    void (*give_back)(void *user, expert_lease *l);
    void *user;
} device_source;

/* The right to use a section on the device, from acquire to release. */
typedef struct device_lease {
    expert_id id;
    void *slot;   /* device memory; what is launched may read it. NULL: no lease */
    void *result; /* device memory for what is made from it; NULL: no room was asked for */
    int index;    /* private */
} device_lease;

/* What is to be copied out of a lease's `result` before its slot is used again. `landed` is called from a later call of the ring, when the bytes are in
 * host memory; never after a failure. `to` stays the device's until then, or until device_close. */
typedef struct device_result {
    void *to;
    size_t bytes;
    void (*landed)(void *user, expert_id id, void *to);
    void *user;
} device_result;

#endif
