/* bf16 moments of the experts (optimizer.moments): what they save on disk, in slots and in traffic, by the plan and in a run.
 * That the numbers do not depend on the machine is test_bitwise.c. Owns nothing beyond a test. */
#include <criterion/criterion.h>
#include <math.h>

#include "engine/plan/traffic.h"
#include "tests/engine/run_fixture.h"

enum { STEPS = 6, WARM = 3 }; /* the cycle of the tier has settled after WARM steps */

#define F32  "optimizer.moments=f32"
#define BF16 "optimizer.moments=bf16"
#define ALL  "model.num_experts_per_tok=7" /* every token goes to every expert */

static train_plan plan_of(const test_run *r, const char *moments, const char *host)
{
    train_config *c;
    train_plan p;
    MUST(train_config_load(&c, r->yaml, (const char *[]){moments, host}, 2));
    MUST(train_plan_make(&p, c, true));
    train_config_free(c);
    return p;
}

static double traffic(const train_plan *p, bool speculative)
{
    step_traffic t;
    MUST(traffic_of(&t, p, speculative));
    return phase_bytes(&t.forward) + phase_bytes(&t.backward);
}

Test(moments, the_plan_has_three_parts_a_record)
{
    test_run r;
    char host[64];
    test_run_make(&r, "moments_plan", 256, 61);
    test_run_small_yaml(&r, "");
    test_run_least_memory(&r, (const char *[]){F32, NULL}, host, sizeof host);
    const train_plan full = plan_of(&r, F32, host), half = plan_of(&r, BF16, host);
    cr_assert_eq(full.part_bytes, half.part_bytes);
    cr_assert_eq(half.store_bytes * 4, full.store_bytes * 3);
    cr_assert_eq(half.tier_full * 4, full.tier_full * 3);
    cr_assert(half.smallest < full.smallest);
    /* Of 36 bytes per parameter and step (w, m, v, g read; w, m, v written; w read; g written) 8 are gone, give or take what
     * stays in RAM. */
    const double part = (double)full.part_bytes * (double)full.sections;
    for (int speculative = 0; speculative < 2; speculative++) {
        const double saved = traffic(&full, speculative) - traffic(&half, speculative), kept = 2.0 * (double)half.tier;
        cr_assert(fabs(saved - 2 * part) <= kept, "speculative %d: %g bytes saved, expected %g give or take %g", speculative,
                  saved, 2 * part, kept);
    }
    test_run_close(&r);
}

/* Bytes read and written per step, spilled activations included, with eight slots and every expert touched; no step is redone. */
static double measured(const char *moments, const char *way, const char *host, train_plan *plan)
{
    test_run r;
    double bytes = 0;
    test_run_make(&r, "moments_run", 4096, 61);
    test_run_small_yaml(&r, "");
    MUST(test_run_open(&r,
                       (const char *[]){moments, way, host, ALL, "train.micro_batch_tokens=128", "optimizer.clip_norm=0", NULL}));
    *plan = r.t.plan;
    for (int s = 0; s < STEPS; s++) {
        step_metrics m;
        MUST(trainer_step(&r.t, &m));
        for (int64_t i = 0; i < r.t.plan.sections; i++)
            cr_assert(r.t.expert_rows[i] > 0, "step %d: expert %d idles", s + 1, (int)i);
        if (s >= WARM)
            bytes += (double)(m.ssd_read_bytes + m.ssd_write_bytes) / (STEPS - WARM);
    }
    test_run_close(&r);
    return bytes;
}

Test(moments, a_run_moves_what_the_plan_says)
{
    test_run r;
    char host[64];
    test_run_make(&r, "moments_host", 256, 61);
    test_run_small_yaml(&r, "");
    test_run_least_memory(&r, (const char *[]){F32, ALL, "train.micro_batch_tokens=128", NULL}, host, sizeof host);
    test_run_close(&r);
    for (int speculative = 0; speculative < 2; speculative++) {
        const char *way = speculative ? "optimizer.update=speculative" : "optimizer.update=deferred";
        train_plan full, half;
        const double f32 = measured(F32, way, host, &full), bf16 = measured(BF16, way, host, &half);
        const double least = traffic(&half, speculative);
        cr_assert(bf16 <= 1.1 * least, "%s: %g bytes a step, the plan's least is %g", way, bf16,
                  least); /* 0 to 1 % more when it was written */
        cr_assert(bf16 <= 0.9 * f32, "%s: %g bytes a step, with fp32 moments %g", way, bf16, f32); /* 0.82 to 0.84 */
    }
}

/* Evaluation, sampling and export apply what is pending in memory only, with moments that lie in one part. */
Test(moments, a_finished_run_is_read_as_it_would_go_on)
{
    test_run r;
    test_run_make(&r, "moments_read", 4096, 61);
    test_run_small_yaml(&r, "");
    MUST(test_run_open(&r, (const char *[]){BF16, NULL}));
    for (int s = 0; s < 3; s++) {
        step_metrics m;
        MUST(trainer_step(&r.t, &m));
    }
    MUST(trainer_checkpoint(&r.t));
    const uint64_t want = test_run_weights_hash(&r);
    test_run_shut(&r);
    r.options.mode = TRAINER_READ;
    MUST(test_run_open(&r, (const char *[]){BF16, NULL}));
    cr_assert_eq(test_run_weights_hash(&r), want);
    test_run_close(&r);
}
