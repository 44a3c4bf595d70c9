/* A device that is simulated on the CPU: the same ring, cache and schedules run on it without a GPU, and what a GPU would punish now and then it
 * finds every time. Its memory is ordinary memory; copies arrive piece by piece and kernels take their time, delayed at random by a seed.
 *
 *   steps     One thread. Whatever the caller does, the streams move on by a random number of steps; waiting moves them until the event is
 *             done, and a wait that nothing can end is over at once: time is virtual. The same seed gives the same run.
 *   threads   Each stream is a thread with random pauses, deadlines are real. For the thread sanitizer.
 *
 * It holds every copy and launch to an order that events establish (vector clocks, one a stream and one for the caller, as in FastTrack, Flanagan
 * and Freund, PLDI 2009; one cell for each DEVICE_ALIGN bytes), so that a missing event is found whatever the delays were:
 *   - reading what has not arrived for certain, or was never written, or has been forgotten (such bytes are poisoned with 0xa5 too),
 *   - overwriting what may still be in use, - touching memory outside of an allocation.
 * A finding is MOE_E_NUMERIC, the first one ends the device. */
#ifndef MOE_MEMORY_DEVICE_SIM_H
#define MOE_MEMORY_DEVICE_SIM_H

#include "memory/device.h"

enum { DEVICE_SIM_POISON = 0xa5 };

typedef struct device_sim_config {
    uint64_t seed;
    bool threads;
    size_t memory_bytes; /* of the device */
} device_sim_config;

moe_err device_sim_open(device **out, const device_sim_config *c) MOE_MUST_CHECK;

typedef enum device_sim_fault {
    DEVICE_SIM_FAIL, /* the copy or kernel fails with MOE_E_IO           */
    DEVICE_SIM_HANG, /* it never comes back                              */
    DEVICE_SIM_LOSE, /* the whole device is gone, everything on it fails */
} device_sim_fault;
/* Strikes the nth copy or launch of the stream from now on (0: the next one queued). One at a time. */
void device_sim_strike(device *d, device_stream s, uint64_t nth, device_sim_fault what);

typedef struct device_sim_stats {
    uint64_t done[DEVICE_STREAMS]; /* copies and launches            */
    uint64_t copied_bytes[DEVICE_STREAMS];
    uint64_t free_bytes;
    int events, allocations;       /* open                           */
} device_sim_stats;
void device_sim_get_stats(device *d, device_sim_stats *out);

#endif
