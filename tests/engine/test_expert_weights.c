/* bf16 expert weights with fp32 master (optimizer.expert_weights): what they save in traffic, by the plan and in a run; what is exported.
 * That the numbers do not depend on the machine is test_bitwise.c, that they are PyTorch's test_fixtures.c. Owns nothing beyond a test. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>

#include "engine/plan/traffic.h"
#include "engine/train/commands.h"
#include "kernels/halves.h"
#include "models/formats/hf.h"
#include "tests/engine/run_fixture.h"

enum { STEPS = 6, WARM = 3 }; /* the cycle of the tier has settled after WARM steps */

#define F32      "optimizer.expert_weights=f32"
#define BF16     "optimizer.expert_weights=bf16"
#define MICRO    "train.micro_batch_tokens=128"
/* Every token goes to every expert; halves are whole pages. */
#define ALL \
    "model.num_experts=8", "model.num_experts_per_tok=8", "model.num_hidden_layers=10", "model.hidden_size=64", \
        "model.moe_intermediate_size=64"
#define DEFERRED "optimizer.update=deferred"
#define AT_ONCE  "optimizer.update=speculative"

static const char *const moments[] = {"optimizer.moments=f32", "optimizer.moments=bf16"};

static double traffic(const train_plan *p, bool speculative)
{
    step_traffic t;
    MUST(traffic_of(&t, p, speculative));
    return phase_bytes(&t.forward) + phase_bytes(&t.backward);
}

static train_plan plan_of(const test_run *r, const char *const *sets, int n)
{
    train_config *c;
    train_plan p;
    MUST(train_config_load(&c, r->yaml, sets, n));
    MUST(train_plan_make(&p, c, true));
    train_config_free(c);
    return p;
}

/* w and its rest are as large as w was, together, on disk and in a slot; a step reads the rest once less: 2 bytes of a parameter. */
Test(expert_weights, the_plan)
{
    test_run r;
    char host[64];
    test_run_make(&r, "weights_plan", 256, 61);
    test_run_small_yaml(&r, "");
    for (int m = 0; m < 2; m++) {
        test_run_least_memory(&r, (const char *[]){BF16, moments[m], NULL}, host, sizeof host);
        const train_plan full = plan_of(&r, (const char *[]){F32, moments[m], host}, 3);
        const train_plan half = plan_of(&r, (const char *[]){BF16, moments[m], host}, 3);
        const double sections = (double)full.sections;
        cr_assert_eq(full.record_parts, half.record_parts);
        cr_assert(half.half_bytes * 2 <= half.part_bytes + 2 * IO_ALIGN);
        cr_assert(half.slot_bytes <= full.slot_bytes + IO_ALIGN);
        for (int speculative = 0; speculative < 2; speculative++) {
            const double saved = traffic(&full, speculative) - traffic(&half, speculative), part = (double)half.half_bytes * sections;
            const double kept = 2.0 * (double)half.tier, padding = 4.0 * IO_ALIGN * sections;
            cr_assert(fabs(saved - part) <= kept + padding, "speculative %d: %g bytes saved, expected %g give or take %g", speculative, saved,
                      part, kept + padding);
        }
    }
    test_run_close(&r);
}

/* Bytes read and written per step with little memory and every expert touched; no step is redone. */
static double measured(const char *weights, const char *m, const char *way, const char *host, train_plan *plan)
{
    test_run r;
    double bytes = 0;
    test_run_make(&r, "weights_run", 4096, 61);
    test_run_small_yaml(&r, "");
    MUST(test_run_open(&r, (const char *[]){weights, m, way, host, ALL, MICRO, "optimizer.clip_norm=0", NULL}));
    *plan = r.t.plan;
    for (int s = 0; s < STEPS; s++) {
        step_metrics x;
        MUST(trainer_step(&r.t, &x));
        if (s >= WARM)
            bytes += (double)(x.ssd_read_bytes + x.ssd_write_bytes) / (STEPS - WARM);
    }
    test_run_close(&r);
    return bytes;
}

/* The plan divides parts of a layer at will, but fills RAM in the order of the parts: a run that keeps the dearer of two parts of the layer
 * at work moves a little less (up to 4 % in these small models, with fp32 weights too). */
Test(expert_weights, a_run_moves_what_the_plan_says)
{
    test_run r;
    char host[64];
    test_run_make(&r, "weights_host", 256, 61);
    test_run_small_yaml(&r, "");
    const char *const sets[] = {BF16, ALL, MICRO};
    const train_plan p = plan_of(&r, sets, sizeof sets / sizeof *sets);
    snprintf(host, sizeof host, "memory.host=%llu", (unsigned long long)(p.smallest / 95 * 100 + 12 * p.slot_bytes));
    test_run_close(&r);
    for (int i = 0; i < 4; i++) {
        const bool speculative = i % 2 != 0;
        const char *way = speculative ? AT_ONCE : DEFERRED;
        train_plan full, half;
        const double f32 = measured(F32, moments[i / 2], way, host, &full), bf16 = measured(BF16, moments[i / 2], way, host, &half);
        const double least = traffic(&half, speculative);
        cr_assert(bf16 <= 1.03 * least && bf16 >= 0.95 * least, "%s %s: %g bytes a step, the plan's least is %g", way, moments[i / 2], bf16,
                  least);
        cr_assert(bf16 <= 0.98 * f32, "%s %s: %g bytes a step, with fp32 weights %g", way, moments[i / 2], bf16, f32); /* 0.958 to 0.969 */
    }
}

static void train_some(test_run *r, const char *const *sets)
{
    MUST(test_run_open(r, sets));
    for (int s = 0; s < 3; s++) {
        step_metrics m;
        MUST(trainer_step(&r->t, &m));
    }
    MUST(trainer_checkpoint(&r->t));
}

/* Evaluation, sampling and export apply what is pending in memory only, halves as well. */
Test(expert_weights, a_finished_run_is_read_as_it_would_go_on)
{
    test_run r;
    test_run_make(&r, "weights_read", 4096, 61);
    test_run_small_yaml(&r, "");
    train_some(&r, (const char *[]){BF16, NULL});
    const uint64_t want = test_run_weights_hash(&r);
    test_run_shut(&r);
    r.options.mode = TRAINER_READ;
    MUST(test_run_open(&r, (const char *[]){BF16, NULL}));
    cr_assert_eq(test_run_weights_hash(&r), want);
    test_run_close(&r);
}

/* All expert tensors of an exported folder, one after the other. */
static float *read_export(const test_run *r, const char *folder, size_t *floats)
{
    hf_reader *h;
    tensor_info *table;
    int64_t n;
    const model_spec *spec = &r->config->model;
    expert_layout e;
    spec_expert_layout(spec, &e);
    *floats = e.floats * (size_t)r->t.plan.sections;
    float *out = calloc(*floats, sizeof *out);
    MUST(spec_tensors(spec, &table, &n));
    MUST(hf_reader_open(&h, folder, spec));
    for (int64_t i = 0; i < n; i++)
        if (table[i].kind == SECTION_EXPERT)
            MUST(hf_reader_read(h, &table[i], out + e.floats * (size_t)(spec_moe_index(spec, table[i].layer) * spec->E + table[i].expert)));
    hf_reader_close(h);
    free(table);
    return out;
}

/* f32 holds the master weights, bf16 exactly what the products read. */
Test(expert_weights, exports_are_the_master_and_what_is_multiplied)
{
    test_run r;
    char master[600], rounded[600];
    size_t n;
    test_run_make(&r, "weights_export", 4096, 61);
    test_run_small_yaml(&r, "");
    train_some(&r, (const char *[]){BF16, NULL});
    test_run_shut(&r);
    r.options.mode = TRAINER_READ;
    MUST(test_run_open(&r, (const char *[]){BF16, NULL}));
    snprintf(master, sizeof master, "%s/master", r.dir);
    snprintf(rounded, sizeof rounded, "%s/rounded", r.dir);
    MUST(command_export(&r.t, master, HF_F32));
    MUST(command_export(&r.t, rounded, HF_BF16));
    float *full = read_export(&r, master, &n), *half = read_export(&r, rounded, &n);
    size_t differ = 0;
    for (size_t i = 0; i < n; i++) {
        const float want = halves_number(halves_near(full[i]), 0);
        cr_assert(memcmp(&half[i], &want, sizeof want) == 0, "weight %zu: %a, expected %a, the nearest bf16 of %a", i, (double)half[i],
                  (double)want, (double)full[i]);
        differ += half[i] != full[i];
    }
    cr_assert(differ > n / 2, "only %zu of %zu weights lie between two bf16", differ, n);
    test_run_shut(&r);
    MUST(test_run_open(&r, (const char *[]){BF16, NULL}));
    for (section_id s = 0; s < r.t.plan.sections; s++) { /* W of an updated section is the exported one */
        tier_lease l;
        tier_change change = {0};
        const size_t floats = r.t.decoder.moe.layout.floats;
        MUST(tier_acquire(r.t.tier, s, moe_forward_parts(&r.t.decoder.moe, s), 0, &l));
        if ((l.parts & TIER_M) != 0)
            MUST(moe_apply_pending(&r.t.decoder.moe, &l, &change));
        const float *w = trainer_expert_weights(&r.t, &l, true);
        cr_assert(memcmp(w, half + (size_t)s * floats, floats * sizeof *w) == 0, "section %d", s);
        tier_release(r.t.tier, &l, TIER_ALL, change);
    }
    free(full);
    free(half);
    test_run_close(&r);
}
