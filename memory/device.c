/* What every device gets for free: the names of its streams, closing. Owns nothing. Threads: any. */
#include "memory/device.h"

const char *device_stream_name(device_stream s)
{
    static const char *const names[DEVICE_STREAMS] = {"compute", "copy-in", "copy-out"};
    return names[s];
}

void device_close(device *d)
{
    if (d != NULL)
        d->ops->close(d);
}
