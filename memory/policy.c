#include "memory/policy.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

static double key_schedule(const policy_use *u) { return u->next; }

static double key_lru(const policy_use *u) { return -(double)u->last; }

/* Two bands: every cold part goes before any hot one. In a band fewer hits go first, in steps of 1/256 hit; the last use, scaled
 * below such a step, decides between equals. */
static double key_lfu(const policy_use *u)
{
    const double order = -floor(256.0 * u->hits) - 0x1p-40 * (double)u->last;
    return u->hits < u->threshold ? order : order - 1e9;
}

static const policy policies[] = {
    {"schedule", key_schedule, true, false},
    {"lru", key_lru, false, false},
    {"lfu", key_lfu, false, true},
};

moe_err policy_find(const policy **out, const char *name)
{
    *out = NULL;
    if (name == NULL || name[0] == '\0')
        name = policies[0].name;
    for (size_t i = 0; i < sizeof policies / sizeof policies[0]; i++)
        if (strcmp(policies[i].name, name) == 0) {
            *out = &policies[i];
            return MOE_OK;
        }
    return moe_fail(MOE_E_CONFIG, "memory.policy: there is no policy \"%s\"; known: schedule, lru, lfu", name);
}
