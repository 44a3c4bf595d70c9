/* The way of a section through a slot of device memory, and the naming of what holds it up: device_slots.h. One thread. */
#include "memory/device_slots.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/clock.h"

static const device_stream stream_of[MARKS] = {DEVICE_COPY_IN, DEVICE_COMPUTE, DEVICE_COPY_OUT};

static size_t round_up(size_t n) { return (n + DEVICE_ALIGN - 1) / DEVICE_ALIGN * DEVICE_ALIGN; }

/* --- failures --------------------------------------------------------------------------------------------------------------- */

/* The oldest thing that is not done: a mark, or a lease whose work fails before it is passed. */
typedef struct culprit {
    bool found;
    uint64_t number;
    expert_id id;
    device_stream stream;
} culprit;

static void suspect(culprit *c, uint64_t number, expert_id id, device_stream stream)
{
    if (!c->found || number < c->number)
        *c = (culprit){true, number, id, stream};
}

static bool is_done(device_slots *x, const device_mark *m)
{
    bool done = false;
    return m->queued && x->c.device->ops->query(x->c.device, m->event, &done) == MOE_OK && done;
}

/* A lease stands for work of which nothing is marked yet: it is asked about only when compute has failed, or nothing else is there. */
static culprit oldest(device_slots *x)
{
    const device_ops *ops = x->c.device->ops;
    culprit c = {0};
    device_stream failed = DEVICE_STREAMS;
    const bool known = ops->failed != NULL && ops->failed(x->c.device, &failed);
    for (int i = 0; i < x->n; i++)
        for (int k = 0; k < MARKS; k++) {
            const device_mark *m = &x->slot[i].mark[k];
            if (m->pending && (!known || stream_of[k] == failed) && !is_done(x, m))
                suspect(&c, m->number, m->id, stream_of[k]);
        }
    const bool ask_leases = known ? failed == DEVICE_COMPUTE : !c.found;
    for (int i = 0; ask_leases && i < x->n; i++)
        if (x->slot[i].leases > 0)
            suspect(&c, x->slot[i].used, x->slot[i].id, DEVICE_COMPUTE);
    return c;
}

static moe_err broke(device_slots *x, moe_err rc, const char *reason)
{
    char why[SLOTS_TEXT / 2];
    snprintf(why, sizeof why, "%s", reason);
    const culprit c = oldest(x);
    x->broken = rc;
    if (c.found)
        snprintf(x->text, sizeof x->text, "%s, device %s: the %s stream, expert %d of layer %d: %s", x->c.owner, x->c.device->name,
                 device_stream_name(c.stream), (int)(c.id % (expert_id)x->c.experts), (int)(c.id / (expert_id)x->c.experts), why);
    else
        snprintf(x->text, sizeof x->text, "%s, device %s: %s", x->c.owner, x->c.device->name, why);
    return moe_fail(rc, "%s", x->text);
}

moe_err slots_broken(const device_slots *x) { return x->broken == MOE_OK ? MOE_OK : moe_error_set(x->broken, x->text); }

#define DEVICE_TRY(x, call)                                                                                                      \
    do {                                                                                                                         \
        const moe_err device_rc = (call);                                                                                        \
        if (device_rc != MOE_OK)                                                                                                 \
            return broke((x), device_rc, moe_error_text());                                                                      \
    } while (0)

/* --- marks ------------------------------------------------------------------------------------------------------------------ */

/* The mark is done: what it held is returned. */
static void mark_done(device_slots *x, device_slot *s, int kind)
{
    s->mark[kind].pending = false;
    if (kind == MARK_ARRIVED && slot_copying(s))
        x->c.source.give_back(x->c.source.user, &s->from);
    if (kind == MARK_EMPTIED && s->result.to != NULL) {
        const device_result r = s->result;
        s->result = (device_result){0};
        if (r.landed != NULL)
            r.landed(r.user, s->mark[kind].id, r.to);
    }
}

static moe_err mark_look(device_slots *x, device_slot *s, int kind)
{
    bool done = false;
    if (!s->mark[kind].pending)
        return MOE_OK;
    DEVICE_TRY(x, x->c.device->ops->query(x->c.device, s->mark[kind].event, &done));
    if (done)
        mark_done(x, s, kind);
    return MOE_OK;
}

static moe_err mark_wait(device_slots *x, device_slot *s, int kind)
{
    bool done = false;
    const double from = moe_seconds();
    if (!s->mark[kind].pending)
        return MOE_OK;
    DEVICE_TRY(x, x->c.device->ops->sync(x->c.device, s->mark[kind].event, x->c.deadline_seconds, &done));
    x->stall_seconds += moe_seconds() - from;
    if (!done) {
        char text[64];
        snprintf(text, sizeof text, "waited %g s, and it does not come back", x->c.deadline_seconds);
        return broke(x, MOE_E_IO, text);
    }
    mark_done(x, s, kind);
    return MOE_OK;
}

/* From here on it is suspected, also when what comes before the record cannot be queued. */
static void mark_begin(device_slots *x, device_slot *s, int kind)
{
    device_mark *m = &s->mark[kind];
    if (!m->pending)
        *m = (device_mark){.event = m->event, .pending = true, .number = ++x->numbers};
    m->id = s->id;
}

static moe_err mark_record(device_slots *x, device_slot *s, int kind)
{
    device_mark *m = &s->mark[kind];
    DEVICE_TRY(x, x->c.device->ops->record(x->c.device, stream_of[kind], m->event));
    m->queued = true;
    return MOE_OK;
}

/* --- the way through a slot ------------------------------------------------------------------------------------------------- */

void slots_vacate(device_slots *x, int slot)
{
    device_slot *s = &x->slot[slot];
    if (s->full)
        x->slot_of[s->id] = NO_DEVICE_SLOT;
    s->full = false;
}

static moe_err copy_in(device_slots *x, int slot)
{
    device_slot *s = &x->slot[slot];
    device *d = x->c.device;
    DEVICE_TRY(x, d->ops->wait(d, DEVICE_COPY_IN, s->mark[MARK_PASSED].event));
    DEVICE_TRY(x, d->ops->wait(d, DEVICE_COPY_IN, s->mark[MARK_EMPTIED].event));
    if (d->ops->forget != NULL)
        DEVICE_TRY(x, d->ops->forget(d, DEVICE_COPY_IN, slot_memory(x, slot), x->stride));
    DEVICE_TRY(x, d->ops->copy(d, DEVICE_COPY_IN, slot_memory(x, slot), s->from.slot, x->c.slot_bytes));
    x->copies++;
    x->copied_bytes += x->c.slot_bytes;
    return mark_record(x, s, MARK_ARRIVED);
}

moe_err slots_fill(device_slots *x, int slot, expert_lease *from)
{
    device_slot *s = &x->slot[slot];
    slots_vacate(x, slot);
    s->full = true;
    s->id = from->id;
    s->from = *from;
    x->slot_of[s->id] = slot;
    *from = (expert_lease){0};
    mark_begin(x, s, MARK_ARRIVED);
    return copy_in(x, slot);
}

moe_err slots_use(device_slots *x, int slot, device_lease *out)
{
    device_slot *s = &x->slot[slot];
    *out = (device_lease){0};
    DEVICE_TRY(x, x->c.device->ops->wait(x->c.device, DEVICE_COMPUTE, s->mark[MARK_ARRIVED].event));
    if (s->leases++ == 0)
        s->used = ++x->numbers;
    *out = (device_lease){.id = s->id, .slot = slot_memory(x, slot), .index = slot};
    if (x->c.result_bytes > 0)
        out->result = (char *)out->slot + x->result_at;
    return MOE_OK;
}

static moe_err copy_out(device_slots *x, int slot, const device_result *r)
{
    device_slot *s = &x->slot[slot];
    device *d = x->c.device;
    if (r->bytes > x->c.result_bytes)
        return moe_fail(MOE_E_CONFIG, "%s: a result of %zu bytes; there is room for %zu", x->c.owner, r->bytes, x->c.result_bytes);
    TRY(mark_wait(x, s, MARK_EMPTIED));
    s->result = *r;
    mark_begin(x, s, MARK_EMPTIED);
    DEVICE_TRY(x, d->ops->wait(d, DEVICE_COPY_OUT, s->mark[MARK_PASSED].event));
    DEVICE_TRY(x, d->ops->copy(d, DEVICE_COPY_OUT, r->to, (char *)slot_memory(x, slot) + x->result_at, r->bytes));
    x->out_bytes += r->bytes;
    return mark_record(x, s, MARK_EMPTIED);
}

static moe_err pass(device_slots *x, int slot, const device_result *r)
{
    device_slot *s = &x->slot[slot];
    TRY(slots_broken(x));
    if (s->mark[MARK_PASSED].pending && s->mark[MARK_PASSED].id != s->id)
        TRY(mark_wait(x, s, MARK_PASSED));
    mark_begin(x, s, MARK_PASSED);
    TRY(mark_record(x, s, MARK_PASSED));
    return r == NULL ? MOE_OK : copy_out(x, slot, r);
}

moe_err slots_passed(device_slots *x, device_lease *l, const device_result *r)
{
    const int slot = l->index;
    const moe_err rc = pass(x, slot, r);
    x->slot[slot].leases--;
    *l = (device_lease){0};
    return rc;
}

/* --- taking in what is done ------------------------------------------------------------------------------------------------- */

moe_err slots_reap(device_slots *x)
{
    TRY(slots_broken(x));
    for (int i = 0; i < x->n; i++)
        for (int k = 0; k < MARKS; k++)
            TRY(mark_look(x, &x->slot[i], k));
    return MOE_OK;
}

moe_err slots_await(device_slots *x, int kind, bool *any)
{
    device_slot *first = NULL;
    *any = false;
    TRY(slots_broken(x));
    for (int i = 0; i < x->n; i++) {
        device_slot *s = &x->slot[i];
        if (s->mark[kind].pending && (first == NULL || s->mark[kind].number < first->mark[kind].number))
            first = s;
    }
    if (first == NULL)
        return MOE_OK;
    *any = true;
    return mark_wait(x, first, kind);
}

moe_err slots_drain(device_slots *x)
{
    TRY(slots_broken(x));
    for (int i = 0; i < x->n; i++)
        for (int k = 0; k < MARKS; k++)
            TRY(mark_wait(x, &x->slot[i], k));
    return MOE_OK;
}

/* --- open and close --------------------------------------------------------------------------------------------------------- */

static bool measure(const device_slots_config *c, size_t *result_at, size_t *stride)
{
    if (c->slot_bytes > SIZE_MAX / 4 || c->result_bytes > SIZE_MAX / 4)
        return false;
    *result_at = round_up(c->slot_bytes);
    *stride = *result_at + round_up(c->result_bytes);
    return *stride <= SIZE_MAX / (size_t)c->least;
}

size_t slots_least_bytes(const device_slots_config *c)
{
    size_t at, stride;
    return measure(c, &at, &stride) ? stride * (size_t)c->least : SIZE_MAX;
}

static moe_err check_config(device_slots *x, const device_slots_config *c)
{
    if (c->layers <= 0 || c->experts <= 0 || c->layers > CACHE_EXPERTS_MAX / c->experts || c->slot_bytes == 0 ||
        !measure(c, &x->result_at, &x->stride))
        return moe_fail(MOE_E_CONFIG, "%s: %d layers of %d experts of %zu bytes and results of %zu; expected at least one, and no more than memory can hold",
                        c->owner, c->layers, c->experts, c->slot_bytes, c->result_bytes);
    if (c->device_bytes / x->stride < (size_t)c->least)
        return moe_fail(MOE_E_CONFIG, "%s: %zu bytes of device memory hold %zu slots of %zu bytes; %d slots are needed, %zu bytes",
                        c->owner, c->device_bytes, c->device_bytes / x->stride, x->stride, c->least, slots_least_bytes(c));
    return MOE_OK;
}

static moe_err build(device_slots *x)
{
    device *d = x->c.device;
    const size_t room = x->c.device_bytes / x->stride;
    x->ids = (size_t)x->c.layers * (size_t)x->c.experts;
    x->n = room < SLOTS_MAX ? (int)room : SLOTS_MAX;
    if ((size_t)x->n > x->ids) /* more would stay empty */
        x->n = x->ids < (size_t)x->c.least ? x->c.least : (int)x->ids;
    x->slot = calloc((size_t)x->n, sizeof *x->slot);
    x->slot_of = malloc(x->ids * sizeof *x->slot_of);
    if (x->slot == NULL || x->slot_of == NULL)
        return moe_fail(MOE_E_OS, "%s: out of memory for the book of %d slots", x->c.owner, x->n);
    for (size_t id = 0; id < x->ids; id++)
        x->slot_of[id] = NO_DEVICE_SLOT;
    void *memory;
    TRY(d->ops->alloc(d, &memory, (size_t)x->n * x->stride, "the slots of experts"));
    x->base = memory;
    for (int i = 0; i < x->n; i++)
        for (int k = 0; k < MARKS; k++)
            TRY(d->ops->event_open(d, &x->slot[i].mark[k].event));
    return MOE_OK;
}

moe_err slots_open(device_slots *x, const device_slots_config *c)
{
    *x = (device_slots){0};
    TRY(check_config(x, c));
    x->c = *c;
    if (x->c.deadline_seconds <= 0)
        x->c.deadline_seconds = DEVICE_DEADLINE_SECONDS;
    const moe_err rc = build(x);
    if (rc != MOE_OK)
        slots_close(x);
    return rc;
}

void slots_close(device_slots *x)
{
    device *d = x->c.device;
    for (int i = 0; x->slot != NULL && x->base != NULL && i < x->n; i++)
        x->slot[i].result.landed = NULL;
    if (x->base != NULL && x->broken == MOE_OK)
        (void)!slots_drain(x);
    for (int i = 0; x->slot != NULL && i < x->n; i++) {
        if (slot_copying(&x->slot[i])) /* the device is broken */
            x->c.source.give_back(x->c.source.user, &x->slot[i].from);
        for (int k = 0; k < MARKS; k++)
            d->ops->event_close(d, x->slot[i].mark[k].event);
    }
    if (x->base != NULL)
        d->ops->free(d, x->base);
    free(x->slot);
    free(x->slot_of);
    *x = (device_slots){0};
}

/* --- invariants ------------------------------------------------------------------------------------------------------------- */

static moe_err check_slot(const device_slots *x, int i)
{
    const device_slot *s = &x->slot[i];
    if (s->leases < 0 || (s->leases > 0 && !s->full))
        return moe_fail(MOE_E_DATA, "%s: slot %d has %d leases and is %s", x->c.owner, i, s->leases, s->full ? "full" : "empty");
    if (s->full && (s->id >= x->ids || x->slot_of[s->id] != i))
        return moe_fail(MOE_E_DATA, "%s: slot %d holds section %u, which is elsewhere", x->c.owner, i, s->id);
    if (slot_copying(s) && (!s->mark[MARK_ARRIVED].pending || s->from.id != s->mark[MARK_ARRIVED].id))
        return moe_fail(MOE_E_DATA, "%s: slot %d keeps a host lease that nothing reads", x->c.owner, i);
    if ((s->result.to != NULL) != s->mark[MARK_EMPTIED].pending && x->broken == MOE_OK)
        return moe_fail(MOE_E_DATA, "%s: the result of slot %d and its copy disagree", x->c.owner, i);
    for (int k = 0; k < MARKS; k++)
        if (s->mark[k].pending && (s->mark[k].number == 0 || s->mark[k].number > x->numbers))
            return moe_fail(MOE_E_DATA, "%s: a mark of slot %d has number %llu of %llu", x->c.owner, i,
                            (unsigned long long)s->mark[k].number, (unsigned long long)x->numbers);
    return MOE_OK;
}

moe_err slots_check(const device_slots *x)
{
    size_t full = 0, found = 0;
    for (int i = 0; i < x->n; i++) {
        TRY(check_slot(x, i));
        full += x->slot[i].full;
    }
    for (size_t id = 0; id < x->ids; id++)
        found += x->slot_of[id] != NO_DEVICE_SLOT;
    return full == found ? MOE_OK : moe_fail(MOE_E_DATA, "%s: %zu slots are full, %zu sections have one", x->c.owner, full, found);
}
