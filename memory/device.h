/* The one table through which the engine reaches a device's memory and work: allocations, three streams (compute, copy-in, copy-out), events
 * between them, asynchronous copies and launches. Implementations: a simulated device on the CPU (memory/device_sim.h).
 *
 * A stream does its work in the order it was queued; streams wait for each other only through events. Waiting for an event means its last
 * record before the wait was queued; an event that was never recorded is done. What was queued after a failure is not done any more:
 * the first failure is what query and sync say from then on, of every event that was not done before it.
 * Threads: all calls from one thread (the computing one). Rule: memory that a copy or launch touches stays alive until an event behind it is done. */
#ifndef MOE_MEMORY_DEVICE_H
#define MOE_MEMORY_DEVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/error.h"

enum {
    DEVICE_ALIGN = 256,           /* bytes: of allocations and slots                                 */
    DEVICE_ARGS = 512,            /* bytes of a launch's arguments at most                           */
    DEVICE_TOUCH = 8,             /* ranges that a launch names at most                              */
    DEVICE_DEADLINE_SECONDS = 60, /* a copy or kernel that takes longer is an error                  */
};

typedef enum device_stream { DEVICE_COMPUTE, DEVICE_COPY_IN, DEVICE_COPY_OUT, DEVICE_STREAMS } device_stream;
/* "compute", "copy-in", "copy-out" */
const char *device_stream_name(device_stream s);

typedef struct device device;
typedef struct device_event device_event;

typedef struct device_range {
    const void *at;
    size_t bytes;
    bool write; /* changed as well as read */
} device_range;

/* Work of the compute stream. fn gets the implementation's own stream (NULL where it has none) and a copy of the arguments, and may follow
 * pointers in them only into device memory: it may be called at once, to queue kernels, or later on another thread, to do the work. What
 * it returns ends the stream. `touch` names the device memory it reads or changes; a simulated device holds it to that. */
typedef struct device_work {
    moe_err (*fn)(void *native, const void *args);
    const void *args;
    size_t args_bytes;
    const device_range *touch; /* [ntouch] */
    int ntouch;
} device_work;

typedef struct device_ops {
    /* Device memory, DEVICE_ALIGN-aligned. MOE_E_CONFIG: there is not so much, with the number. */
    moe_err (*alloc)(device *d, void **out, size_t bytes, const char *what);
    void (*free)(device *d, void *p); /* everything queued that touches it must be done, or the device broken; NULL: no-op */
    moe_err (*event_open)(device *d, device_event **out);
    void (*event_close)(device *d, device_event *e); /* NULL: no-op */
    /* Between host and device, either way. */
    moe_err (*copy)(device *d, device_stream s, void *dst, const void *src, size_t bytes);
    moe_err (*launch)(device *d, const device_work *w);
    moe_err (*record)(device *d, device_stream s, device_event *e);
    moe_err (*wait)(device *d, device_stream s, device_event *e);
    moe_err (*query)(device *d, device_event *e, bool *done);
    /* The host waits, so many seconds at most: *done false when they are over. */
    moe_err (*sync)(device *d, device_event *e, double seconds, bool *done);
    /* Optional (NULL): the stream that the first failure is of; false: none has failed, or it is not known. */
    bool (*failed)(device *d, device_stream *s);
    /* Optional (NULL): these bytes mean nothing from this point of the stream on. For finding mistakes. */
    moe_err (*forget)(device *d, device_stream s, void *p, size_t bytes);
    void (*close)(device *d); /* not waiting for what is queued */
} device_ops;

struct device {
    const device_ops *ops;
    const char *name; /* "sim" */
};

void device_close(device *d); /* NULL: no-op */

#endif
