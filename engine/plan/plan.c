/* The plan: what a pass needs at least, how many micro-batches go together, who gets the rest of the memory. */
#include "engine/plan/plan.h"

#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>

#include "engine/plan/record.h"
#include "memory/budget.h"

enum {
    OVERHEAD_BASE = 28 << 20,    /* bytes: program, libraries, rings, libc; guarded by tests/engine/test_limits (smallest_cgroup) */
    OVERHEAD_THREAD = 256 << 10, /* bytes of stack and arenas a thread really touches */
    OVERHEAD_SECTION = 640,      /* bytes: catalog, manifests at work, cache bookkeeping */
    OVERHEAD_KEPT = 64,          /* bytes of a section in each kept manifest */
    OVERHEAD_SLOT = 512,         /* bytes: the book of one expert slot (memory/tier) */
    STASH_LEAST_BLOCKS = 4,      /* one in use, one being read, two being written */
    COMFORT_RECORDS = 12,        /* whole records in RAM that keep reads, writes and products overlapped */
};

char *size_text(char *buf, size_t size, uint64_t bytes)
{
    static const char *const unit[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    double x = (double)bytes;
    size_t u = 0;
    while (x >= 1024 && u + 1 < sizeof unit / sizeof *unit) {
        x /= 1024;
        u++;
    }
    snprintf(buf, size, u == 0 ? "%.0f %s" : "%.2f %s", x, unit[u]);
    return buf;
}

static uint64_t slot_book(const train_plan *p) { return p->half_bytes > 0 ? 2 * OVERHEAD_SLOT : OVERHEAD_SLOT; }

static void record_sizes(train_plan *p, const train_config *c)
{
    size_t bytes[STORE_PARTS];
    record_part_bytes(c, bytes);
    p->part_bytes = bytes[STORE_M];
    p->half_bytes = bytes[STORE_R];
    p->has_v = bytes[STORE_V] > 0;
    p->record_parts = p->has_v ? 4 : 3;
    for (int i = 0; i < STORE_PARTS; i++)
        p->record_bytes += bytes[i];
    p->slot_bytes = tier_slot_bytes(bytes);
    p->tier_full = (uint64_t)p->sections * (uint64_t)p->record_parts * p->slot_bytes;
}

static int thread_count(const train_config *c)
{
    if (c->threads > 0)
        return c->threads;
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0 || CPU_COUNT(&set) < 1)
        return 1;
    return CPU_COUNT(&set);
}

static decoder_config shape_of(const train_config *c, const train_plan *p, bool training)
{
    return (decoder_config){
        .spec = &c->model, .stash = training ? (stash *)&shape_of : NULL /* only asked whether it is there */,
        .seq_len = c->seq_len, .max_tokens = p->group_tokens, .piece_tokens = p->piece_tokens, .expert_rows = p->expert_rows,
        .logits_bytes = p->logits_bytes,
    };
}

/* Everything for `micro` micro-batches a group. Returns the least total. */
static uint64_t measure(train_plan *p, const train_config *c, int64_t micro, bool training)
{
    p->group_tokens = micro * c->micro_batch_tokens;
    p->piece_tokens = c->micro_batch_tokens;
    p->groups = (int)(c->tokens_per_step / p->group_tokens);
    const decoder_config d = shape_of(c, p, training);
    p->dense = dense_bytes(&c->model, c->seq_len, true);
    p->scratch = decoder_bytes(&d) + (uint64_t)p->threads * KERNEL_SCRATCH_BYTES;
    p->scratch += p->half_bytes > 0 ? p->part_bytes : 0; /* an expert's fp32 weights, where they are made and exported */
    p->overhead = OVERHEAD_BASE + (uint64_t)p->threads * OVERHEAD_THREAD + (uint64_t)c->tokens_per_step * 16 +
                  (uint64_t)p->sections * (OVERHEAD_SECTION + (uint64_t)c->checkpoint_keep * OVERHEAD_KEPT) +
                  (training ? balance_bytes(train_plan_balance(p, c)) : 0);
    p->stash_full = training ? decoder_stash_bytes(&d, p->group_tokens, &p->stash_largest) : 0;
    const uint64_t stash_least = training ? STASH_LEAST_BLOCKS * p->stash_largest : 0;
    p->stash = stash_least < p->stash_full ? stash_least : p->stash_full;
    p->tier = p->sections > 0 ? 2 * (uint64_t)p->record_parts * (p->slot_bytes + slot_book(p)) : 0;
    return p->overhead + p->dense + p->scratch + p->stash + p->tier;
}

/* Rows of an expert at a time: scratch of (2D + 4F) floats a row stays under 1/24 of the limit. */
static int64_t pick_rows(const train_config *c, uint64_t limit)
{
    const uint64_t row = (2 * (uint64_t)c->model.D + 4 * (uint64_t)panel_pad(c->model.F) + 8) * 4;
    const int64_t fit = (int64_t)(limit / 24 / row) / 16 * 16;
    return fit < 64 ? 64 : fit > 2048 ? 2048 : fit;
}

/* Every chunk of logits reads and writes the whole gradient of the head: few large ones where memory allows. */
static int64_t pick_logits(uint64_t limit)
{
    const uint64_t share = limit / 24, least = (uint64_t)16 << 20, most = (uint64_t)1 << 30;
    return (int64_t)(share < least ? least : share > most ? most : share);
}

/* What is left after the least goes to expert slots for overlap, then to activations, then to expert slots. Here a slot counts with its
 * book, which goes to the overhead in the end. */
static void share_rest(train_plan *p, uint64_t usable)
{
    uint64_t left = usable - (p->overhead + p->dense + p->scratch + p->stash + p->tier);
    const uint64_t slot = p->slot_bytes + slot_book(p), full = (uint64_t)p->sections * (uint64_t)p->record_parts * slot;
    const uint64_t some = (uint64_t)p->record_parts * slot * COMFORT_RECORDS, comfort = some < full ? some : full;
    uint64_t *const pot[] = {&p->tier, &p->stash, &p->tier};
    const uint64_t want[] = {comfort, p->stash_full, full};
    for (int i = 0; i < 3; i++) {
        const uint64_t more = want[i] > *pot[i] ? want[i] - *pot[i] : 0;
        const uint64_t take = more < left ? more : left;
        *pot[i] += take;
        left -= take;
    }
    p->overhead += p->tier / slot * slot_book(p);
    p->tier = p->tier / slot * p->slot_bytes;
}

static void plan_disk(train_plan *p, const train_config *c)
{
    p->resident = p->tier >= p->tier_full;
    p->spills = p->stash < p->stash_full;
    p->can_speculate = c->update != UPDATE_DEFERRED && !p->resident;
    p->store_slots = c->checkpoint_keep + 1 + (p->can_speculate ? 1 : 0);
    p->spill_bytes = p->spills ? p->stash_full : 0;
    p->store_bytes = (uint64_t)p->sections * p->record_bytes * (uint64_t)p->store_slots;
    p->dense_file_bytes = (p->dense / 4) * 3 * (uint64_t)(c->checkpoint_keep + 1);
}

static void count_flops(train_plan *p, const train_config *c)
{
    const model_spec *m = &c->model;
    const double T = (double)c->tokens_per_step;
    const double attention = 2.0 * c->seq_len * m->H * m->hd * m->L; /* causal: half of the square, q.k and p.v */
    p->flops_forward = T * (2.0 * (double)spec_active_parameters(m) + attention);
    p->flops_backward = 2 * p->flops_forward;
}

balance_config train_plan_balance(const train_plan *p, const train_config *c)
{
    balance_config b = {
        .aux_coef = c->aux_coef, .z_coef = c->z_coef, .per_layer = c->per_layer, .step_tokens = c->tokens_per_step, .layers = p->layers,
        .E = c->model.E, .K = c->model.K,
        .set_tokens = c->scope == BALANCE_MICRO ? c->micro_batch_tokens : c->scope == BALANCE_SEQUENCE ? c->seq_len : c->tokens_per_step,
    };
    if (c->capacity_factor > 0) {
        const double rows = c->capacity_factor * (double)c->micro_batch_tokens * c->model.K / c->model.E;
        b.capacity = rows < 1 ? 1 : rows < (double)c->micro_batch_tokens ? (int32_t)ceil(rows) : (int32_t)c->micro_batch_tokens;
        b.capacity_tokens = c->micro_batch_tokens;
    }
    return b;
}

/* Routed rows of a group are counted in 32 bits. */
static bool can_count(const train_plan *p, const train_config *c, int64_t micro)
{
    return p->layers == 0 || micro * c->micro_batch_tokens <= INT32_MAX / c->model.K;
}

static moe_err does_not_fit(const train_plan *p, uint64_t least, int percent, bool one_group)
{
    char a[32], b[32], d[32], s[32], k[32], t[32];
    const uint64_t needed = (least + (uint64_t)percent - 1) / (uint64_t)percent * 100;
    return moe_fail(MOE_E_CONFIG,
                    "the model does not fit into %s of host memory (%s): at least %s is needed = dense part %s + working buffers %s + "
                    "activations %s + two expert records %s + program, plus %d %%. Give more memory, or reduce "
                    "train.micro_batch_tokens, model.vocab_size or model.hidden_size%s",
                    size_text(a, sizeof a, p->limit), p->limit_source, size_text(b, sizeof b, needed), size_text(d, sizeof d, p->dense),
                    size_text(s, sizeof s, p->scratch), size_text(k, sizeof k, p->stash), size_text(t, sizeof t, p->tier), 100 - percent,
                    one_group ? "; balance.scope global keeps the whole step in one group" : "");
}

moe_err train_plan_make(train_plan *p, const train_config *c, bool training)
{
    *p = (train_plan){.threads = thread_count(c), .layers = spec_moe_layers(&c->model)};
    p->limit = c->host_bytes;
    snprintf(p->limit_source, sizeof p->limit_source, "%s", "memory.host");
    if (p->limit == 0)
        p->limit = budget_detect_host(p->limit_source);
    const int percent = training ? 95 : 85; /* a sampling cache has the rest */
    const uint64_t usable = p->limit / 100 * (uint64_t)percent;
    p->sections = (int64_t)p->layers * c->model.E;
    record_sizes(p, c);
    p->expert_rows = pick_rows(c, p->limit);
    p->logits_bytes = pick_logits(p->limit);

    const int64_t micros = c->tokens_per_step / c->micro_batch_tokens;
    int64_t micro = training && c->scope == BALANCE_GLOBAL && c->aux_coef != 0 ? micros : 0; /* needs the whole step at once */
    if (!can_count(p, c, micro > 0 ? micro : 1))
        return moe_fail(MOE_E_CONFIG, "a group of %lld tokens with %d experts each: expected at most %d routed rows; reduce %s",
                        (long long)((micro > 0 ? micro : 1) * c->micro_batch_tokens), c->model.K, INT32_MAX,
                        micro > 0 ? "train.tokens_per_step (balance.scope global keeps the whole step in one group)"
                                  : "train.micro_batch_tokens");
    p->smallest = measure(p, c, 1, training);
    for (int64_t m = micros; micro == 0 && m > 1; m--)
        if (micros % m == 0 && can_count(p, c, m) && measure(p, c, m, training) <= usable)
            micro = m;
    const uint64_t least = measure(p, c, micro > 0 ? micro : 1, training);
    if (least > usable)
        return does_not_fit(p, least, percent, micro > 1);
    share_rest(p, usable);
    p->total = p->overhead + p->dense + p->scratch + p->stash + p->tier;
    plan_disk(p, c);
    count_flops(p, c);
    return MOE_OK;
}
