/* The whole gradient against central differences along its own direction, for what no fixture covers: capacity with drops. Every dense and
 * expert parameter takes part. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/engine/run_fixture.h"

/* Adds `scale` times the gradient of the step before to every parameter. */
static void move(test_run *r, float *const *expert_g, double scale)
{
    trainer *t = &r->t;
    for (size_t i = 0; i < t->dense.floats; i++)
        t->dense.w[i] += (float)(scale * (double)t->dense.g[i]);
    for (section_id s = 0; s < t->plan.sections; s++) {
        if (expert_g[s] == NULL)
            continue;
        tier_lease l;
        MUST(tier_acquire(t->tier, s, TIER_W, 0, &l));
        for (size_t i = 0; i < t->decoder.moe.layout.floats; i++)
            l.part[STORE_W][i] += (float)(scale * (double)expert_g[s][i]);
        tier_release(t->tier, &l, TIER_ALL, (tier_change){.dirty = TIER_W});
    }
}

/* Mean loss of the tokens that lie in the trainer, with the routing rules of training. */
static double loss_at(test_run *r)
{
    double sum = 0;
    const int64_t T = r->config->tokens_per_step;
    MUST(decoder_forward(&r->t.decoder, r->t.tokens, T, 0, false));
    MUST(decoder_head(&r->t.decoder, r->t.targets, 0, &sum));
    return sum / (double)T;
}

/* d/ds of the loss along the gradient is its squared norm. */
static void check(const char *name, const char *const *sets)
{
    test_run r;
    step_metrics m;
    test_run_make(&r, name, 4096, 61);
    test_run_small_yaml(&r, "");
    MUST(test_run_open(&r, sets));
    const int n = (int)r.t.plan.sections;
    float **g = calloc((size_t)n, sizeof *g);
    const size_t bytes = r.t.decoder.moe.layout.floats * sizeof(float);
    double squares = 0;

    /* learning rate ~ 0: the step leaves the gradient and (almost) the weights it was taken at */
    MUST(trainer_step(&r.t, &m));
    for (section_id s = 0; s < n; s++) {
        if (tier_record(r.t.tier, s).grad_step == 0)
            continue;
        tier_lease l;
        MUST(tier_acquire(r.t.tier, s, TIER_G, 0, &l));
        g[s] = malloc(bytes);
        memcpy(g[s], l.part[STORE_G], bytes);
        tier_release(r.t.tier, &l, TIER_ALL, (tier_change){0});
    }
    squares = m.grad_norm * m.grad_norm;
    (void)loss_at(&r); /* pending updates are applied here, not between the differences */

    const double h = 3e-4 / squares; /* 3e-4 nats each way: rounding is 1e-4 of it, and no token changes its experts */
    move(&r, g, h);
    const double above = loss_at(&r);
    move(&r, g, -2 * h);
    const double below = loss_at(&r);
    const double slope = (above - below) / (2 * h);
    cr_assert(fabs(slope / squares - 1) < 1e-3, "%s: slope %.6g along the gradient, its squared norm is %.6g", name, slope, squares);
    for (section_id s = 0; s < n; s++)
        free(g[s]);
    free(g);
    test_run_close(&r);
}

#define STILL "optimizer.lr=1e-12", "optimizer.schedule.min_lr=0", "optimizer.weight_decay=0", "balance.aux_loss_coef=0", "balance.z_loss_coef=0"

Test(gradient, dropless) { check("gradient", (const char *[]){STILL, NULL}); }

Test(gradient, with_dropped_choices)
{
    check("gradient_capacity", (const char *[]){STILL, "balance.capacity_factor=0.75", NULL});
}
