/* Seconds of a clock that only runs forward. */
#ifndef MOE_ENGINE_BASE_CLOCK_H
#define MOE_ENGINE_BASE_CLOCK_H

#include <time.h>

static inline double moe_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

#endif
