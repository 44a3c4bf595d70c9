/* What the simulated device knows of every cell of its memory, and the verdict on an access: is it ordered by events after the write it needs
 * and, if it writes, after every earlier use? Owns no memory. Guarded by the device's lock. */
#include <stdio.h>

#include "memory/device_sim_private.h"

void sim_clock_join(sim_clock *to, const sim_clock *from)
{
    for (int a = 0; a < SIM_ACTORS; a++)
        if (from->at[a] > to->at[a])
            to->at[a] = from->at[a];
}

sim_block *sim_block_of(const sim *d, const void *p)
{
    for (sim_block *b = d->block; b != NULL; b = b->next)
        if ((const char *)p >= b->base && (const char *)p < b->base + b->bytes)
            return b;
    return NULL;
}

static const char *actor_name(int a) { return a == SIM_HOST ? "host" : device_stream_name((device_stream)a); }

static moe_err verdict(const sim *d, device_stream s, const sim_cell *c, const device_range *r, size_t at)
{
    const sim_clock *now = &d->stream[s].clock;
    if (now->at[c->writer] < c->written)
        return moe_fail(MOE_E_NUMERIC, "the %s stream %s byte %zu of a range of %zu, and no event says that the %s stream has %s it",
                        device_stream_name(s), r->write ? "changes" : "reads", at, r->bytes, actor_name(c->writer),
                        c->valid ? "brought or written" : "forgotten");
    for (int a = 0; r->write && a < SIM_ACTORS; a++)
        if (now->at[a] < c->read[a])
            return moe_fail(MOE_E_NUMERIC, "the %s stream overwrites byte %zu of a range of %zu, and no event says that the %s stream is done with it",
                            device_stream_name(s), at, r->bytes, actor_name(a));
    if (!c->valid && !r->write)
        return moe_fail(MOE_E_NUMERIC, "the %s stream reads byte %zu of a range of %zu, where nothing is", device_stream_name(s), at,
                        r->bytes);
    return MOE_OK;
}

moe_err sim_access(sim *d, device_stream s, const device_range *r)
{
    sim_block *b = sim_block_of(d, r->at);
    if (r->bytes == 0)
        return MOE_OK;
    if (b == NULL || r->bytes > b->bytes - (size_t)((const char *)r->at - b->base))
        return moe_fail(MOE_E_NUMERIC, "the %s stream touches %zu bytes that lie in no allocation", device_stream_name(s), r->bytes);
    const size_t begin = (size_t)((const char *)r->at - b->base), end = begin + r->bytes;
    for (size_t i = begin / DEVICE_ALIGN; i * DEVICE_ALIGN < end; i++) {
        sim_cell *c = &b->cell[i];
        const size_t first = i * DEVICE_ALIGN;
        TRY(verdict(d, s, c, r, first > begin ? first - begin : 0));
        const uint64_t now = d->stream[s].clock.at[s];
        if (r->write) {
            c->written = now;
            c->writer = (uint8_t)s;
            c->valid = true;
        } else {
            c->read[s] = now;
        }
    }
    return MOE_OK;
}

void sim_mark_forgotten(sim *d, const void *p, size_t bytes)
{
    const sim_block *b = sim_block_of(d, p);
    const size_t begin = (size_t)((const char *)p - b->base);
    for (size_t i = begin / DEVICE_ALIGN; i * DEVICE_ALIGN < begin + bytes; i++)
        b->cell[i].valid = false;
}
