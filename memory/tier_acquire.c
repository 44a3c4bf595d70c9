/* Leases of the host tier: acquire. Owns the wait of the computation; tier_release.c ends what is granted here. The compute
 * thread only.
 *
 * A waiting acquire has one target: the wanted section with the least left to bring. Its resident parts are pinned and it gets
 * every slot that comes free until it has them all; only then reads for the other wanted sections are started and the prefetcher
 * goes on. So with two whole records of slots, one of them leased, an acquire always ends: the slots of everything else become
 * clean and may be taken. Whichever wanted section is complete first is returned. */
#include <string.h>
#include <time.h>

#include "memory/tier_private.h"

typedef struct request {
    const section_id *wanted;
    int n;
    unsigned fresh;
    int target;      /* index into wanted */
    unsigned pinned; /* parts of the target */
} request;

static double seconds_now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + 1e-9 * (double)ts.tv_nsec;
}

/* The parts that a lease of `parts` may change. */
static unsigned parts_changed(unsigned parts, unsigned fresh)
{
    return ((parts & (TIER_M | TIER_V)) != 0 ? parts & TIER_STATE : 0) | (parts & fresh & TIER_G);
}

static moe_err check_wanted(tier *t, section_id s, unsigned parts, unsigned fresh)
{
    if (s < 0 || s >= t->sections || parts == 0 || (parts & ~(unsigned)TIER_ALL) != 0)
        return moe_fail(MOE_E_CONFIG, "tier: section %d of %d with parts %#x cannot be leased", s, t->sections, parts);
    const tier_section *x = &t->section[s];
    const unsigned change = parts_changed(parts, fresh);
    for (int p = 0; p < STORE_PARTS; p++) {
        const unsigned bit = 1u << p;
        const tier_slot *h = part_slot(t, s, (store_part)p);
        if ((parts & bit) != 0 && h != NULL && h->leases > 0 && ((x->changing | change) & bit) != 0)
            return moe_fail(MOE_E_CONFIG, "tier: part %c of section %d is leased already", STORE_LETTERS[p], s);
    }
    if ((parts & TIER_G) != 0 && (fresh & TIER_G) == 0 && x->grad_step == 0)
        return moe_fail(MOE_E_CONFIG, "tier: section %d has no pending gradient to lease", s);
    if ((parts & fresh & TIER_G) != 0 && x->grad_step > x->step && x->grad_step <= t->finished)
        return moe_fail(MOE_E_CONFIG,
                        "tier: section %d still has the gradient of step %llu; it must be applied before a new one is made", s,
                        (unsigned long long)x->grad_step);
    if (t->c.read_only && (parts & (TIER_M | TIER_V)) != 0 && x->step != x->disk.step)
        return moe_fail(MOE_E_CONFIG, "tier: section %d was updated in memory only (read-only run); its moments are gone", s);
    return MOE_OK;
}

static bool is_ready(tier *t, section_id s, unsigned parts, unsigned fresh)
{
    for (int p = 0; p < STORE_PARTS; p++) {
        const tier_slot *h = part_slot(t, s, (store_part)p);
        if ((parts & (1u << p)) != 0 && (h == NULL || (h->state != SLOT_READY && h->state != SLOT_FILL)))
            return false;
    }
    if ((t->section[s].flight & parts_changed(parts, fresh)) != 0)
        return false;
    return !speculation_blocks(t, s, parts);
}

/* Leases what is_ready has found. */
static void take(tier *t, section_id s, unsigned parts, unsigned fresh, tier_lease *out)
{
    tier_section *x = &t->section[s];
    out->section = s;
    out->parts = parts;
    x->used = t->clock;
    x->changing |= (uint8_t)parts_changed(parts, fresh);
    t->lease_count++;
    for (int p = 0; p < STORE_PARTS; p++) {
        if ((parts & (1u << p)) == 0)
            continue;
        tier_slot *h = part_slot(t, s, (store_part)p);
        if (h->state == SLOT_READY && !h->missed)
            t->stats.hits++;
        else if (h->state == SLOT_READY)
            t->stats.misses++;
        h->missed = h->ahead = false;
        h->leases++;
        h->last = t->lease_count;
        x->hits[p] += 1.0f;
        t->leased_count++;
        out->part[p] = h->buf;
        slot_place(t, h);
    }
}

/* What is left to bring, to choose the target: a read costs 2, one in flight 1, a part that is made here nothing. */
static int cost(tier *t, section_id s, unsigned parts)
{
    int sum = 0;
    for (int p = 0; p < STORE_PARTS; p++) {
        if ((parts & (1u << p)) == 0)
            continue;
        const tier_slot *h = part_slot(t, s, (store_part)p);
        if (h == NULL)
            sum += part_on_disk(t, s, (store_part)p) ? 2 : 0;
        else
            sum += h->state == SLOT_READING ? 1 : 0;
    }
    return sum;
}

static int choose_target(tier *t, const request *r)
{
    int best = 0, least = cost(t, r->wanted[0], t->want[0]);
    for (int i = 1; i < r->n && least > 0; i++) {
        const int c = cost(t, r->wanted[i], t->want[i]);
        if (c < least) {
            least = c;
            best = i;
        }
    }
    return best;
}

static void pin(tier *t, request *r, tier_slot *h)
{
    const unsigned bit = 1u << h->part;
    if ((r->pinned & bit) != 0)
        return;
    r->pinned |= bit;
    h->pins++;
    slot_place(t, h);
}

static void promote(tier *t, tier_slot *h)
{
    if (h->state != SLOT_READING || h->missed)
        return;
    h->missed = true; /* the computation waits for it: late is a miss */
    if (!h->demanded)
        store_promote(t->c.store, &h->op);
}

/* Gives the target its slots, as far as there are any, and starts its reads. Returns how many slots it lacks. */
static int serve_target(tier *t, request *r)
{
    const section_id s = r->wanted[r->target];
    int lacking = 0;
    for (int p = 0; p < STORE_PARTS; p++) {
        if ((t->want[r->target] & (1u << p)) == 0)
            continue;
        tier_slot *h = part_slot(t, s, (store_part)p);
        if (h == NULL) {
            r->pinned &= ~(1u << p); /* a forgotten gradient may have gone */
            if (p == STORE_R ? !slot_tail_free(t, s) : !slot_make_room(t, (double)t->clock, false)) {
                lacking += p != STORE_R; /* r waits for w, or for the end of a write */
                continue;
            }
            if (part_on_disk(t, s, (store_part)p))
                read_start(t, s, (store_part)p, true);
            else
                slot_take(t, s, (store_part)p, SLOT_FILL);
            h = part_slot(t, s, (store_part)p);
        }
        promote(t, h);
        pin(t, r, h);
    }
    return lacking;
}

/* Reads for the other wanted sections, into slots of what is needed later. */
static void serve_others(tier *t, const request *r)
{
    for (int i = 0; i < r->n; i++)
        for (int p = 0; p < STORE_PARTS; p++) {
            const section_id s = r->wanted[i];
            tier_slot *h = part_slot(t, s, (store_part)p);
            if ((t->want[i] & (1u << p)) == 0 || i == r->target)
                continue;
            if (h != NULL) {
                promote(t, h);
            } else if (part_on_disk(t, s, (store_part)p)) {
                if (t->reads_demand >= TIER_FLIGHT_MAX ||
                    (p == STORE_R ? !slot_tail_free(t, s) : !slot_make_room(t, (double)t->clock, false)))
                    return;
                read_start(t, s, (store_part)p, true);
            }
        }
}

/* The target lacks slots: everything that could become one is dirty or in flight. Writes what goes first; when nothing is in
 * flight any more, clean parts go that are needed in this very phase. false: there is nothing left that could go. */
static bool find_slots(tier *t, int lacking)
{
    while (t->writes < lacking && t->heap[HEAP_DIRTY].n > 0 && t->c.store != NULL)
        if (!write_start(t, &t->slot[t->heap[HEAP_DIRTY].item[0]]))
            break;
    if (t->writes + t->reads_ahead + t->reads_demand > 0)
        return true;
    return slot_make_room(t, 0, true);
}

/* The sentence of a failed read or, when that is what is in the way, of a failed write; afterwards both may be tried again. */
static moe_err read_failure(tier *t, const request *r)
{
    for (int i = 0; i < r->n; i++)
        for (int p = 0; p < STORE_PARTS; p++) {
            tier_slot *h = part_slot(t, r->wanted[i], (store_part)p);
            if ((t->want[i] & (1u << p)) == 0 || h == NULL || h->state != SLOT_FAILED)
                continue;
            const tier_slot *tail = slot_tail(t, h);
            if (tail != NULL && tail->state == SLOT_READING) /* the slot is the store's until that has ended */
                continue;
            const moe_err rc = moe_fail(h->op.rc, "%s", h->op.text);
            h->pins = 0;
            slot_free(t, h);
            return rc;
        }
    return MOE_OK;
}

static moe_err stuck(tier *t, const request *r)
{
    const moe_err rc = t->write_rc;
    if (rc == MOE_OK)
        return moe_fail(MOE_E_FULL, "tier: no slot for section %d: %d of %d parts are leased", r->wanted[r->target],
                        t->leased_count, t->slots);
    writes_forgive(t);
    return moe_fail(rc, "%s", t->write_text);
}

static void unpin(tier *t, const request *r)
{
    for (int p = 0; p < STORE_PARTS; p++) {
        tier_slot *h = part_slot(t, r->wanted[r->target], (store_part)p);
        if (h == NULL || (r->pinned & (1u << p)) == 0 || h->pins == 0)
            continue;
        h->pins = 0;
        if (h->state == SLOT_FILL && h->leases == 0)
            slot_free(t, h);
        else
            slot_place(t, h);
    }
}

static int first_ready(tier *t, const request *r)
{
    for (int i = 0; i < r->n; i++)
        if (is_ready(t, r->wanted[i], t->want[i], r->fresh))
            return i;
    return -1;
}

/* Until one of the wanted sections is complete; leases it. */
static moe_err wait_for_any(tier *t, request *r, int *which, tier_lease *out)
{
    moe_err rc = MOE_OK;
    const double start = seconds_now();
    r->target = choose_target(t, r);
    t->starving = true;
    for (;;) {
        const int lacking = serve_target(t, r);
        const int i = first_ready(t, r);
        if (i >= 0) {
            take(t, r->wanted[i], t->want[i], r->fresh, out);
            *which = i;
            break;
        }
        rc = read_failure(t, r);
        if (rc != MOE_OK)
            break;
        t->starving = lacking > 0;
        if (lacking == 0)
            serve_others(t, r);
        else if (!find_slots(t, lacking)) {
            rc = stuck(t, r);
            break;
        }
        if (lacking == 0)
            tier_pump(t);
        const int flight = t->writes + t->reads_ahead + t->reads_demand;
        if (flight == 0 && lacking == 0) {
            rc = stuck(t, r);
            break;
        }
        if (flight > 0)
            TRY_GOTO(wait_landed(t, "tier: an acquire"), rc, out);
    }
out:
    t->starving = false;
    unpin(t, r);
    tier_pump(t);
    t->stats.stall_seconds += seconds_now() - start;
    return rc;
}

/* Gives back what a failed fill has leased. */
static void undo(tier *t, tier_lease *l)
{
    pthread_mutex_lock(&t->lock);
    for (int p = STORE_PARTS - 1; p >= 0; p--) /* a tail before its head */
        if (l->part[p] != NULL) {
            tier_slot *h = part_slot(t, l->section, (store_part)p);
            h->leases--;
            t->leased_count--;
            if (h->state == SLOT_FILL)
                slot_free(t, h);
            else
                slot_place(t, h);
        }
    t->section[l->section].changing &= (uint8_t)~l->parts;
    pthread_mutex_unlock(&t->lock);
    *l = (tier_lease){0};
}

/* Makes the parts that exist nowhere yet: initial values, or a place for a gradient. Without the lock: they are leased. */
static moe_err fill_parts(tier *t, tier_lease *l)
{
    for (int p = 0; p < STORE_PARTS; p++) {
        if (l->part[p] == NULL)
            continue;
        tier_slot *h = part_slot(t, l->section, (store_part)p);
        if (h->state != SLOT_FILL) /* only this thread makes or ends this state */
            continue;
        const size_t kept = p == STORE_G ? t->c.part_bytes[p] : 0; /* whoever asked for a new gradient begins it himself */
        memset((char *)l->part[p] + kept, 0, part_padded(t, (store_part)p) - kept);
        const moe_err rc = p == STORE_G ? MOE_OK : t->c.fill(t->c.user, l->section, (store_part)p, l->part[p]);
        if (rc != MOE_OK) {
            undo(t, l);
            return moe_error_trace(rc, "fill", __FILE__, __LINE__);
        }
        pthread_mutex_lock(&t->lock);
        h->state = SLOT_READY;
        pthread_mutex_unlock(&t->lock);
    }
    return MOE_OK;
}

/* Leases wanted[i] if nothing has to be waited for: all of it is here, or can be made in slots that are there. */
static bool take_now(tier *t, const section_id *wanted, int i, unsigned fresh, tier_lease *out)
{
    if (cost(t, wanted[i], t->want[i]) > 0)
        return false;
    request r = {.wanted = wanted, .n = i + 1, .fresh = fresh, .target = i};
    const bool ready = serve_target(t, &r) == 0 && is_ready(t, wanted[i], t->want[i], fresh);
    if (ready)
        take(t, wanted[i], t->want[i], fresh, out);
    unpin(t, &r);
    return ready;
}

moe_err tier_acquire_any(tier *t, const section_id *wanted, int n, tier_parts_fn parts_of, void *user, unsigned fresh, int *which,
                         tier_lease *out)
{
    *which = -1;
    *out = (tier_lease){0};
    if (n <= 0 || n > t->sections)
        return moe_fail(MOE_E_CONFIG, "tier: %d sections wanted of %d", n, t->sections);
    for (int i = 0; i < n && *which < 0; i++) {
        t->want[i] = parts_of(user, wanted[i]) & t->parts; /* without the lock: it may ask tier_record */
        pthread_mutex_lock(&t->lock);
        const moe_err rc = check_wanted(t, wanted[i], t->want[i], fresh);
        if (rc == MOE_OK && take_now(t, wanted, i, fresh, out)) {
            *which = i;
            tier_pump(t);
        }
        pthread_mutex_unlock(&t->lock);
        TRY(rc);
    }
    if (*which < 0) {
        request r = {.wanted = wanted, .n = n, .fresh = fresh};
        pthread_mutex_lock(&t->lock);
        const moe_err rc = wait_for_any(t, &r, which, out);
        pthread_mutex_unlock(&t->lock);
        TRY(rc);
    }
    const moe_err rc = fill_parts(t, out);
    if (rc != MOE_OK)
        *which = -1;
    return rc;
}

static unsigned same_parts(void *user, section_id s)
{
    (void)s;
    return *(const unsigned *)user;
}

moe_err tier_acquire(tier *t, section_id s, unsigned parts, unsigned fresh, tier_lease *out)
{
    int which;
    return tier_acquire_any(t, &s, 1, same_parts, &parts, fresh, &which, out);
}
