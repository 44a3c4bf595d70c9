/* What the tests of the device tier share: a tier below that lends sections from few host slots, reads slowly, forgets at once what is given back
 * (its bytes are overwritten), and can fail; a kernel that knows what must be in a slot; and a device that leaves something out (device_lie), for tests
 * of the tests. */
#ifndef MOE_TESTS_MEMORY_DEVICE_FIXTURE_H
#define MOE_TESTS_MEMORY_DEVICE_FIXTURE_H

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "memory/device_sim.h"
#include "memory/device_source.h"

#define OK(call) cr_assert_eq((call), MOE_OK, "%s", moe_error_text())
#define FAILS(call, code, text)                                                                                                  \
    do {                                                                                                                         \
        cr_assert_eq((call), (code), "%s", moe_error_text());                                                                    \
        cr_assert(strstr(moe_error_text(), (text)), "\"%s\" lacks \"%s\"", moe_error_text(), (text));                            \
    } while (0)

enum { SLOT_BYTES = 600, HOST_SLOTS_MAX = 8, TAKEN_MAX = 4096 };

static inline uint32_t draw(uint64_t *x, uint32_t n)
{
    *x = *x * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*x >> 33) % n;
}

static inline uint8_t byte_of(expert_id id, uint32_t version, size_t i)
{
    const uint32_t x = (id + 1) * 2654435761u + version * 40503u + (uint32_t)i * 97u;
    return (uint8_t)((x >> 13) ^ x);
}

/* --- the tier below ---------------------------------------------------------------------------------------------------------- */

typedef struct below_slot {
    bool full;
    expert_id id;
    int coming, leases; /* coming: calls until the read has come */
    uint8_t bytes[SLOT_BYTES];
} below_slot;

typedef struct below {
    int n;
    below_slot slot[HOST_SLOTS_MAX];
    uint64_t random;
    uint32_t version;
    int64_t failing; /* this section cannot be read; -1: all can */
    int leases, choices;
    expert_id taken[TAKEN_MAX]; /* in order */
    int ntaken;
} below;

static inline below_slot *below_find(below *b, expert_id id)
{
    for (int i = 0; i < b->n; i++)
        if (b->slot[i].full && b->slot[i].id == id)
            return &b->slot[i];
    return NULL;
}

static inline below_slot *below_room(below *b, const expert_id *wanted, int n)
{
    for (int i = 0; i < b->n; i++) {
        below_slot *s = &b->slot[i];
        bool needed = s->full && s->leases > 0;
        for (int k = 0; k < n && !needed; k++)
            needed = s->full && s->id == wanted[k];
        if (!needed)
            return s;
    }
    return NULL;
}

static inline void below_start(below *b, const expert_id *wanted, int n)
{
    for (int k = 0; k < n; k++) {
        below_slot *s = below_find(b, wanted[k]) == NULL && wanted[k] != b->failing ? below_room(b, wanted, n) : NULL;
        if (s != NULL) {
            s->full = true;
            s->id = wanted[k];
            s->coming = (int)draw(&b->random, 6);
            for (size_t i = 0; i < SLOT_BYTES; i++)
                s->bytes[i] = byte_of(s->id, b->version, i);
        }
    }
}

static inline moe_err below_take_any(void *user, const expert_id *wanted, int n, bool wait, int *which, expert_lease *out)
{
    below *b = user;
    *which = -1;
    *out = (expert_lease){0};
    below_start(b, wanted, n);
    for (bool again = true; again; again = wait) {
        bool coming = false;
        for (int k = 0; k < n; k++) {
            below_slot *s = below_find(b, wanted[k]);
            if (s != NULL && s->coming == 0) {
                s->leases++;
                b->leases++;
                b->taken[b->ntaken++ % TAKEN_MAX] = s->id;
                *which = k;
                *out = (expert_lease){.id = s->id, .slot = s->bytes};
                return MOE_OK;
            }
            coming = coming || s != NULL;
            if (s != NULL)
                s->coming--;
        }
        for (int k = 0; k < n && !coming; k++)
            if (wanted[k] == b->failing) {
                *which = k;
                return moe_fail(MOE_E_IO, "file0: section %u: a bad block", wanted[k]);
            }
        if (!coming)
            return moe_fail(MOE_E_FULL, "below: all %d slots are leased", b->n);
    }
    return MOE_OK;
}

static inline void below_give_back(void *user, expert_lease *l)
{
    below *b = user;
    below_slot *s = below_find(b, l->id);
    cr_assert(s != NULL && s->leases > 0 && s->bytes == l->slot, "section %u was not lent", l->id);
    b->leases--;
    if (--s->leases == 0) {
        memset(s->bytes, 0xee, sizeof s->bytes);
        s->full = false;
    }
    *l = (expert_lease){0};
}

static inline moe_err below_choose(void *user, int layer, const int32_t *experts, int n)
{
    below *b = user;
    cr_assert(layer >= 0 && (n == 0 || experts[0] >= 0));
    b->choices += n;
    return MOE_OK;
}

static inline device_source below_source(below *b, int slots, uint64_t seed)
{
    *b = (below){.n = slots, .random = seed, .failing = -1};
    return (device_source){.choose = below_choose, .take_any = below_take_any, .give_back = below_give_back, .user = b};
}

/* --- the kernel -------------------------------------------------------------------------------------------------------------- */

typedef struct look_args {
    const uint8_t *slot;
    uint8_t *result;
    expert_id id;
    uint32_t version;
} look_args;

/* The slot holds its section, all of it; the result is its complement. */
static inline moe_err look_kernel(void *native, const void *args)
{
    const look_args *a = args;
    (void)native;
    for (size_t i = 0; i < SLOT_BYTES; i++) {
        if (a->slot[i] != byte_of(a->id, a->version, i))
            return moe_fail(MOE_E_NUMERIC, "byte %zu of section %u is %02x, expected %02x", i, a->id, a->slot[i],
                            byte_of(a->id, a->version, i));
        if (a->result != NULL)
            a->result[i] = (uint8_t)~a->slot[i];
    }
    return MOE_OK;
}

static inline moe_err launch_look(device *d, const device_lease *l, uint32_t version, bool with_result)
{
    const look_args a = {.slot = l->slot, .result = with_result ? l->result : NULL, .id = l->id, .version = version};
    const device_range touch[] = {{l->slot, SLOT_BYTES, false}, {l->result, SLOT_BYTES, true}};
    return d->ops->launch(d, &(device_work){.fn = look_kernel, .args = &a, .args_bytes = sizeof a, .touch = touch, .ntouch = with_result ? 2 : 1});
}

/* --- a device that leaves something out -------------------------------------------------------------------------------------- */

typedef enum lie { LIE_NONE, LIE_NO_WAIT_COMPUTE, LIE_NO_WAIT_COPY_IN, LIE_NO_WAIT_COPY_OUT, LIE_NO_COPY_OUT, LIE_DONE, LIE_WAIT_ONE } lie;

typedef struct device_lie {
    device base;
    device *d;
    device_ops ops;
    lie what;
    int64_t countdown; /* WAIT_ONE: waits until the one that is left out */
} device_lie;

static inline device *lie_under(device *base) { return ((device_lie *)base)->d; }
#define LIE_PASS(base, op, ...) lie_under(base)->ops->op(lie_under(base), ##__VA_ARGS__)

static inline moe_err lie_alloc(device *b, void **out, size_t n, const char *what) { return LIE_PASS(b, alloc, out, n, what); }
static inline void lie_free(device *b, void *p) { LIE_PASS(b, free, p); }
static inline moe_err lie_event_open(device *b, device_event **out) { return LIE_PASS(b, event_open, out); }
static inline void lie_event_close(device *b, device_event *e) { LIE_PASS(b, event_close, e); }
static inline moe_err lie_launch(device *b, const device_work *w) { return LIE_PASS(b, launch, w); }
static inline moe_err lie_record(device *b, device_stream s, device_event *e) { return LIE_PASS(b, record, s, e); }
static inline bool lie_failed(device *b, device_stream *s) { return LIE_PASS(b, failed, s); }
static inline moe_err lie_forget(device *b, device_stream s, void *p, size_t n) { return LIE_PASS(b, forget, s, p, n); }
static inline void lie_close(device *b) { device_close(lie_under(b)); }

static inline moe_err lie_copy(device *b, device_stream s, void *dst, const void *src, size_t n)
{
    const device_lie *l = (device_lie *)b;
    return s == DEVICE_COPY_OUT && l->what == LIE_NO_COPY_OUT ? MOE_OK : LIE_PASS(b, copy, s, dst, src, n);
}

static inline moe_err lie_wait(device *b, device_stream s, device_event *e)
{
    device_lie *l = (device_lie *)b;
    const bool out = (l->what == LIE_NO_WAIT_COMPUTE && s == DEVICE_COMPUTE) || (l->what == LIE_NO_WAIT_COPY_IN && s == DEVICE_COPY_IN) ||
                     (l->what == LIE_NO_WAIT_COPY_OUT && s == DEVICE_COPY_OUT) || (l->what == LIE_WAIT_ONE && l->countdown-- == 0);
    return out ? MOE_OK : LIE_PASS(b, wait, s, e);
}

static inline moe_err lie_query(device *b, device_event *e, bool *done)
{
    *done = true;
    return ((device_lie *)b)->what == LIE_DONE ? MOE_OK : LIE_PASS(b, query, e, done);
}

static inline moe_err lie_sync(device *b, device_event *e, double seconds, bool *done) { return LIE_PASS(b, sync, e, seconds, done); }

static inline device *device_lie_of(device_lie *l, device *d, lie what)
{
    *l = (device_lie){.d = d, .what = what};
    l->ops = (device_ops){.alloc = lie_alloc, .free = lie_free, .event_open = lie_event_open, .event_close = lie_event_close, .copy = lie_copy,
                          .launch = lie_launch, .record = lie_record, .wait = lie_wait, .query = lie_query, .sync = lie_sync,
                          .failed = lie_failed, .forget = lie_forget, .close = lie_close};
    l->base = (device){.ops = &l->ops, .name = d->name};
    return &l->base;
}

#endif
