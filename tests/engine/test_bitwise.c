/* One model, one answer: losses, gradient norms, weights and moments are the same bits whatever the memory, threads, micro-batches, way of
 * updating, disk interface, prefetch depth, policy and processor. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tests/engine/run_fixture.h"

enum { STEPS = 6 };

typedef struct outcome {
    double loss[STEPS], norm[STEPS], aux[STEPS], z[STEPS];
    uint64_t hash;
} outcome;

/* visit: apply every pending update of every expert after every step, as a dense AdamW would. */
static outcome train(const char *name, const char *extra, const char *const *sets, bool visit)
{
    test_run r;
    outcome o;
    test_run_make(&r, name, 4096, 61);
    test_run_small_yaml(&r, extra);
    MUST(test_run_open(&r, sets));
    for (int s = 0; s < STEPS; s++) {
        step_metrics m;
        MUST(trainer_step(&r.t, &m));
        o.loss[s] = m.loss;
        o.norm[s] = m.grad_norm;
        o.aux[s] = m.aux_loss;
        o.z[s] = m.z_loss;
        if (visit)
            test_run_weights_hash(&r);
    }
    o.hash = test_run_weights_hash(&r);
    test_run_close(&r);
    return o;
}

static outcome expected;
static bool have_expected;

static void same_numbers(const char *what, const char *which, const double *got, const double *want)
{
    for (int s = 0; s < STEPS; s++)
        cr_assert(memcmp(&got[s], &want[s], sizeof *got) == 0, "%s: step %d: %s %.17g, expected %.17g", what, s + 1, which, got[s], want[s]);
}

static void same_outcome(const char *what, const outcome *got, const outcome *want)
{
    same_numbers(what, "loss", got->loss, want->loss);
    same_numbers(what, "gradient norm", got->norm, want->norm);
    same_numbers(what, "aux loss", got->aux, want->aux);
    same_numbers(what, "z loss", got->z, want->z);
    cr_assert(got->hash == want->hash, "%s: weights and moments differ after %d steps", what, STEPS);
}

static void same(const char *what, const char *extra, const char *const *sets)
{
    if (!have_expected) {
        expected = train("plain", "", NULL, true);
        have_expected = true;
    }
    const outcome got = train(what, extra, sets, false);
    same_outcome(what, &got, &expected);
}

/* The least memory the small model runs in, as a --set. */
static const char *least_memory(char *buf, size_t size, const char *const *sets)
{
    test_run r;
    test_run_make(&r, "least", 256, 61);
    test_run_small_yaml(&r, "");
    test_run_least_memory(&r, sets, buf, size);
    test_run_close(&r);
    return buf;
}

Test(bitwise, deferred_equals_visiting_every_expert) { same("deferred", "", NULL); }

Test(bitwise, threads)
{
    same("one_thread", "", (const char *[]){"run.threads=1", NULL});
    same("three_threads", "", (const char *[]){"run.threads=3", NULL});
}

Test(bitwise, micro_batches)
{
    same("small_micro", "", (const char *[]){"train.micro_batch_tokens=16", NULL});
    same("one_micro", "", (const char *[]){"train.micro_batch_tokens=128", NULL});
}

/* Biases of the projections: their gradients are chains over the tokens too. Scaled frequencies beside them. */
Test(bitwise, biases)
{
#define BIASES "model.attention_bias=true", "model.rope_type=linear", "model.rope_factor=3"
    const outcome want = train("biases", "", (const char *[]){BIASES, "run.threads=1", "train.micro_batch_tokens=16", NULL}, false);
    const outcome got = train("biases_whole", "", (const char *[]){BIASES, "run.threads=3", "train.micro_batch_tokens=128", NULL}, false);
    const outcome without = train("no_biases", "", NULL, false);
    same_outcome("biases", &got, &want);
    cr_assert(without.hash != want.hash, "biases change nothing");
#undef BIASES
}

Test(bitwise, smallest_memory)
{
    char host[64];
    same("least_memory", "", (const char *[]){least_memory(host, sizeof host, NULL), NULL});
}

Test(bitwise, smallest_memory_in_groups)
{
    char host[64];
    const char *micro = "train.micro_batch_tokens=16";
    const char *least = least_memory(host, sizeof host, (const char *[]){micro, NULL});
    same("groups", "", (const char *[]){micro, least, NULL});
}

Test(bitwise, speculative_update)
{
    char host[64];
    const char *spec = "optimizer.update=speculative";
    const char *least = least_memory(host, sizeof host, (const char *[]){spec, NULL});
    same("speculative", "", (const char *[]){spec, least, NULL});
    int clipped = 0;
    for (int s = 0; s < STEPS; s++)
        clipped += expected.norm[s] > 1; /* clip_norm of the small model */
    cr_assert(clipped > 0 && clipped < STEPS, "%d of %d steps are clipped: both ends of a speculation must occur", clipped, STEPS);
}

Test(bitwise, disk_interfaces_and_prefetch)
{
    char host[64];
    const char *least = least_memory(host, sizeof host, NULL);
    same("pread", "", (const char *[]){least, "memory.io=pread", NULL});
    same("no_prefetch", "", (const char *[]){least, "memory.prefetch=0", NULL});
    same("deep_prefetch", "", (const char *[]){least, "memory.prefetch=32", NULL});
    same("lru", "", (const char *[]){least, "memory.policy=lru", NULL});
    same("lfu", "", (const char *[]){least, "memory.policy=lfu", NULL});
}

Test(bitwise, processors)
{
    for (int i = 0; moe_backend_at(i) != NULL; i++) {
        char set[64];
        snprintf(set, sizeof set, "run.kernels=%s", moe_backend_at(i)->name);
        same(moe_backend_at(i)->name, "", (const char *[]){set, NULL});
    }
}

/* A checkpoint in the middle, everything closed and opened again: the same end. */
static void resume_at(int stop, const char *const *before, const char *const *after)
{
    test_run r;
    same("plain_again", "", before);
    test_run_make(&r, "resume", 4096, 61);
    test_run_small_yaml(&r, "");
    MUST(test_run_open(&r, before));
    for (int s = 0; s < stop; s++) {
        step_metrics m;
        MUST(trainer_step(&r.t, &m));
        if (s == 0)
            MUST(trainer_checkpoint(&r.t));
    }
    MUST(trainer_checkpoint(&r.t));
    test_run_shut(&r);
    MUST(test_run_open(&r, after));
    cr_assert_eq(r.t.finished, (uint64_t)stop);
    for (int s = stop; s < STEPS; s++) {
        step_metrics m;
        MUST(trainer_step(&r.t, &m));
        cr_assert(m.loss == expected.loss[s], "step %d after resume: loss %.17g, expected %.17g", s + 1, m.loss, expected.loss[s]);
    }
    cr_assert(test_run_weights_hash(&r) == expected.hash, "weights differ after resuming at step %d", stop);
    test_run_close(&r);
}

Test(bitwise, resume)
{
    char host[64];
    const char *least = least_memory(host, sizeof host, NULL);
    for (int stop = 1; stop < STEPS; stop++)
        resume_at(stop, NULL, NULL);
    resume_at(3, (const char *[]){least, NULL}, NULL);
    resume_at(3, NULL, (const char *[]){least, NULL});
    resume_at(2, (const char *[]){least, "checkpoint.keep=1", NULL}, (const char *[]){least, "checkpoint.keep=3", NULL});
    resume_at(3, (const char *[]){least, "checkpoint.keep=3", NULL}, (const char *[]){least, "checkpoint.keep=1", NULL});
    resume_at(2, NULL, (const char *[]){least, "checkpoint.keep=2", "memory.io=pread", "run.threads=1", NULL});
}

/* Capacity is counted in micro-batches: groups, memory and processors change nothing, the micro-batch does. */
Test(bitwise, capacity)
{
    char host[64];
    const char *capacity = "balance.capacity_factor=0.75";
    const outcome dropless = train("dropless", "", NULL, false);
    expected = train("capacity", "", (const char *[]){capacity, NULL}, true);
    have_expected = true;
    cr_assert(expected.hash != dropless.hash, "a capacity of 0.75 dropped nothing");
    same("capacity_least", "", (const char *[]){capacity, least_memory(host, sizeof host, (const char *[]){capacity, NULL}), NULL});
    same("capacity_ref", "", (const char *[]){capacity, "run.kernels=ref", "run.threads=1", NULL});
}

#define BF16 "optimizer.moments=bf16"

static void expect_bf16(void)
{
    if (!have_expected)
        expected = train("bf16_visited", "", (const char *[]){BF16, NULL}, true);
    have_expected = true;
}

/* A rounding moves a moment by less than 2^-7 of it, and w moves by the moments before they are rounded, so steps 1 and 2 see the weights
 * of fp32 moments to the bit (those of step 1 come from zero moments). Later an update is off by a part of it that stays below
 * 2^-7 (m) + 2^-8 (root of v) for each step behind it, here at most 5 * (2^-7 + 2^-8) < 2^-4; if all were off the same way, the loss would
 * to first order be off by that part of what the steps have moved it, summed over |loss(s) - loss(s - 1)|. The roundings are independent
 * and without bias over more than 2^16 weights, so they cancel to the root of that: 2^-12 of the sum, 2e-4 here. Measured: 8e-7. */
Test(bitwise, bf16_moments_stay_near_fp32_moments)
{
    const outcome full = train("moments_f32", "", NULL, false), half = train("moments_bf16", "", (const char *[]){BF16, NULL}, false);
    double moved = 0;
    for (int s = 0; s < STEPS; s++) {
        moved += s > 0 ? fabs(full.loss[s] - full.loss[s - 1]) : 0;
        const double bound = s < 2 ? 0 : moved * 0x1p-12;
        cr_assert(fabs(half.loss[s] - full.loss[s]) <= bound, "step %d: loss %.9g, with fp32 moments %.9g, bound %g", s + 1, half.loss[s],
                  full.loss[s], bound);
    }
    cr_assert(half.hash != full.hash);
}

Test(bitwise, bf16_moments)
{
    char host[64], name[64];
    const char *spec = "optimizer.update=speculative";
    expect_bf16();
    same("bf16_deferred", "", (const char *[]){BF16, NULL});
    same("bf16_one_thread", "", (const char *[]){BF16, "run.threads=1", NULL});
    same("bf16_three_threads", "", (const char *[]){BF16, "run.threads=3", NULL});
    same("bf16_least", "", (const char *[]){BF16, least_memory(host, sizeof host, (const char *[]){BF16, NULL}), NULL});
    same("bf16_no_prefetch", "", (const char *[]){BF16, host, "memory.prefetch=0", "memory.policy=lru", NULL});
    same("bf16_speculative", "", (const char *[]){BF16, spec, least_memory(host, sizeof host, (const char *[]){BF16, spec, NULL}), NULL});
    for (int i = 0; moe_backend_at(i) != NULL; i++) {
        snprintf(name, sizeof name, "run.kernels=%s", moe_backend_at(i)->name);
        same("bf16_kernels", "", (const char *[]){BF16, name, NULL});
    }
}

Test(bitwise, bf16_moments_resume)
{
    char host[64];
    const char *least = least_memory(host, sizeof host, (const char *[]){BF16, NULL});
    expect_bf16();
    resume_at(1, (const char *[]){BF16, NULL}, (const char *[]){BF16, NULL});
    resume_at(4, (const char *[]){BF16, least, NULL}, (const char *[]){BF16, NULL});
    resume_at(3, (const char *[]){BF16, NULL}, (const char *[]){BF16, least, NULL});
}

Test(bitwise, moments_may_not_change_on_resume)
{
    test_run r;
    step_metrics m;
    test_run_make(&r, "moments_resume", 4096, 61);
    test_run_small_yaml(&r, "");
    MUST(test_run_open(&r, NULL));
    MUST(trainer_step(&r.t, &m));
    MUST(trainer_checkpoint(&r.t));
    test_run_shut(&r);
    cr_assert_eq(test_run_open(&r, (const char *[]){BF16, NULL}), MOE_E_CONFIG);
    cr_assert(strstr(moe_error_text(), "optimizer.moments") != NULL, "%s", moe_error_text());
    test_run_close(&r);
}

#define HALF "optimizer.expert_weights=bf16"

/* The products read bf16, AdamW keeps fp32: with fp32 moments, then with bf16 ones. */
static const char *const with_halves[][2] = {{HALF, NULL}, {HALF, BF16}};

/* The sets of with_halves[i] and up to three more. */
typedef struct sets {
    const char *set[6];
} sets;

static sets halves_and(int i, const char *a, const char *b, const char *c)
{
    sets s = {{with_halves[i][0]}};
    int n = 1;
    const char *const more[] = {with_halves[i][1], a, b, c};
    for (int k = 0; k < 4; k++)
        if (more[k] != NULL)
            s.set[n++] = more[k];
    return s;
}

static void expect_halves(int i)
{
    expected = train("halves_visited", "", halves_and(i, NULL, NULL, NULL).set, true);
    have_expected = true;
}

static void bf16_weights(int i)
{
    char host[64], name[64];
    const char *spec = "optimizer.update=speculative", *micro = "train.micro_batch_tokens=16";
    expect_halves(i);
    same("halves_deferred", "", halves_and(i, NULL, NULL, NULL).set);
    same("halves_one_thread", "", halves_and(i, "run.threads=1", micro, NULL).set);
    same("halves_three_threads", "", halves_and(i, "run.threads=3", NULL, NULL).set);
    least_memory(host, sizeof host, halves_and(i, NULL, NULL, NULL).set);
    same("halves_least", "", halves_and(i, host, NULL, NULL).set);
    same("halves_no_prefetch", "", halves_and(i, host, "memory.prefetch=0", "memory.policy=lru").set);
    same("halves_pread", "", halves_and(i, host, "memory.prefetch=32", "memory.io=pread").set);
    same("halves_groups", "", halves_and(i, micro, least_memory(host, sizeof host, halves_and(i, micro, NULL, NULL).set), NULL).set);
    same("halves_speculative", "", halves_and(i, spec, least_memory(host, sizeof host, halves_and(i, spec, NULL, NULL).set), NULL).set);
    for (int k = 0; moe_backend_at(k) != NULL; k++) {
        snprintf(name, sizeof name, "run.kernels=%s", moe_backend_at(k)->name);
        same("halves_kernels", "", halves_and(i, name, NULL, NULL).set);
    }
}

Test(bitwise, bf16_weights) { bf16_weights(0); }
Test(bitwise, bf16_weights_and_moments) { bf16_weights(1); }

Test(bitwise, bf16_weights_resume)
{
    char host[64];
    for (int i = 0; i < 2; i++) {
        const sets plain = halves_and(i, NULL, NULL, NULL);
        least_memory(host, sizeof host, plain.set);
        const sets least = halves_and(i, host, NULL, NULL);
        expect_halves(i);
        resume_at(1, plain.set, plain.set);
        resume_at(4, least.set, plain.set);
        resume_at(3, plain.set, least.set);
        resume_at(2, least.set, least.set);
    }
}

/* The first loss is that of rounded weights: near the other, and not the same. A rounding moves a weight by at most 2^-9 of it to either
 * side, each by itself, so the outputs of an expert move by less than 2^-8 of their size, and the loss, whose first value is about
 * ln 61, by less than 2^-8 of it. */
Test(bitwise, bf16_weights_are_what_is_multiplied)
{
    const outcome full = train("weights_f32", "", NULL, false), half = train("weights_bf16", "", (const char *[]){HALF, NULL}, false);
    for (int s = 0; s < STEPS; s++) {
        cr_assert(half.loss[s] != full.loss[s], "step %d: the loss is that of fp32 weights", s + 1);
        cr_assert(fabs(half.loss[s] - full.loss[s]) <= full.loss[s] * 0x1p-8, "step %d: loss %.9g, with fp32 weights %.9g", s + 1,
                  half.loss[s], full.loss[s]);
    }
}

Test(bitwise, expert_weights_may_not_change_on_resume)
{
    test_run r;
    step_metrics m;
    test_run_make(&r, "weights_resume", 4096, 61);
    test_run_small_yaml(&r, "");
    MUST(test_run_open(&r, (const char *[]){HALF, NULL}));
    MUST(trainer_step(&r.t, &m));
    MUST(trainer_checkpoint(&r.t));
    test_run_shut(&r);
    cr_assert_eq(test_run_open(&r, NULL), MOE_E_CONFIG);
    cr_assert(strstr(moe_error_text(), "optimizer.expert_weights") != NULL, "%s", moe_error_text());
    test_run_close(&r);
}
