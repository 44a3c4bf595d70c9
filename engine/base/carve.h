/* Arrays cut from one block. The same lines measure (base NULL) and point, so size and layout cannot disagree.
 * Owns nothing. Every array begins on a cache line. */
#ifndef MOE_ENGINE_BASE_CARVE_H
#define MOE_ENGINE_BASE_CARVE_H

#include <stddef.h>

enum { CARVE_ALIGN = 64 }; /* bytes: a cache line, and one vector of 16 floats */

typedef struct carve {
    char *base;  /* NULL: only measures */
    size_t used; /* bytes so far        */
} carve;

/* NULL while measuring. */
static inline void *carve_bytes(carve *c, size_t bytes)
{
    void *p = c->base == NULL ? NULL : c->base + c->used;
    c->used += (bytes + CARVE_ALIGN - 1) & ~(size_t)(CARVE_ALIGN - 1);
    return p;
}

#endif
