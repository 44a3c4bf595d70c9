/* Training steps against PyTorch: losses, logits, every gradient of the first step, every weight after ten steps of AdamW. */
#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/engine/run_fixture.h"

/* Both sides round in fp32, in different orders: each may be as far from the exact value as PyTorch was found to be from its own fp64
 * run (`noise`); 8 covers the worst case over elements that noise, a maximum over one run, does not. */
enum { NOISE_FACTOR = 8 };
static const double NOISE_FLOOR = 2e-7; /* one rounding of a value near 1 */

static double worst;
static char worst_name[128];

/* slack: what one element may differ by besides, or NULL. */
static void compare(const char *name, const float *got, const float *want, int64_t n, double noise, const double *slack)
{
    for (int64_t i = 0; i < n; i++) {
        const double tolerance = NOISE_FACTOR * noise + NOISE_FLOOR + (slack != NULL ? slack[i] : 0);
        const double d = fabs((double)got[i] - (double)want[i]);
        if (d / tolerance > worst) {
            worst = d / tolerance;
            snprintf(worst_name, sizeof worst_name, "%s", name);
        }
        cr_assert(d <= tolerance, "%s[%lld]: got %.9g, PyTorch %.9g, tolerance %.3g", name, (long long)i, (double)got[i], (double)want[i], tolerance);
    }
}

static void compare_number(const char *name, int step, double got, double want, double noise)
{
    const double tolerance = (NOISE_FACTOR * noise + NOISE_FLOOR) * (fabs(want) > 1 ? fabs(want) : 1);
    cr_assert(fabs(got - want) <= tolerance, "step %d: %s: got %.12g, PyTorch %.12g, tolerance %.3g", step, name, got, want, tolerance);
}

/* One tensor of a section, from its layout to row-major. */
static void unpack(float *out, const float *section, const tensor_info *x)
{
    if (x->layout == TENSOR_PANELS)
        panel_unpack(out, section + x->offset, 0, x->rows, x->cols);
    else
        memcpy(out, section + x->offset, (size_t)(x->rows * x->cols) * sizeof *out);
}

static const float *dense_section(const dense_part *d, const float *base, const tensor_info *x)
{
    return base + (x->kind == SECTION_EMBED ? d->embed : x->kind == SECTION_HEAD ? d->head : d->layer[x->layer]);
}

/* Adam's first step is lr * g / (|g| + eps): a gradient near eps turns its own rounding error d into lr * d * eps / (|g| + eps)^2. */
static void adam_slack(const fixture *f, const tensor_info *x, double *slack)
{
    const size_t n = (size_t)(x->rows * x->cols);
    float *g = malloc(n * sizeof *g);
    const double clip = f->clip_norm > 0 && f->grad_norms[0] > f->clip_norm ? f->clip_norm / f->grad_norms[0] : 1;
    const bool known = fixture_tensor(f, "grad", x, g) == MOE_OK;
    for (size_t i = 0; i < n; i++) {
        const double below = fabs(clip * (double)(known ? g[i] : INFINITY)) + f->eps;
        slack[i] = NOISE_FACTOR * f->lr * f->noise.grad * f->eps / (below * below);
    }
    free(g);
}

/* group "grad": g of the first step; "final": w with everything pending applied. */
static void compare_tensors(test_run *r, const fixture *f, const char *group, double noise)
{
    tensor_info *table;
    int64_t n;
    MUST(spec_tensors(&f->spec, &table, &n));
    const bool grad = strcmp(group, "grad") == 0;
    for (int64_t i = 0; i < n; i++) {
        const tensor_info *x = &table[i];
        const size_t floats = (size_t)(x->rows * x->cols);
        float *got = calloc(floats, sizeof *got), *want = malloc(floats * sizeof *want);
        if (fixture_tensor(f, group, x, want) == MOE_OK) {
            if (x->kind != SECTION_EXPERT) {
                unpack(got, dense_section(&r->t.dense, grad ? r->t.dense.g : r->t.dense.w, x), x);
            } else {
                const section_id s = spec_moe_index(&f->spec, x->layer) * f->spec.E + x->expert;
                if (!grad || tier_record(r->t.tier, s).grad_step != 0) { /* an expert without tokens has gradient 0 */
                    tier_lease l;
                    MUST(tier_acquire(r->t.tier, s, grad ? TIER_G : TIER_W | TIER_R, 0, &l));
                    unpack(got, grad ? l.part[STORE_G] : trainer_expert_weights(&r->t, &l, false), x);
                    tier_release(r->t.tier, &l, TIER_ALL, (tier_change){0});
                }
            }
            char name[160];
            snprintf(name, sizeof name, "%s.%s", group, x->name);
            double *slack = malloc(floats * sizeof *slack);
            if (!grad)
                adam_slack(f, x, slack);
            compare(name, got, want, (int64_t)floats, noise, grad ? NULL : slack);
            free(slack);
        }
        free(got);
        free(want);
    }
    free(table);
}

static void set_tokens(test_run *r, const fixture *f, int step)
{
    const int S = f->seq_len, n = f->windows_per_step;
    for (int w = 0; w < n; w++) {
        const int32_t *row = f->tokens + (size_t)(step * n + w) * (size_t)(S + 1);
        memcpy(r->t.tokens + w * S, row, (size_t)S * sizeof *row);
        memcpy(r->t.targets + w * S, row + 1, (size_t)S * sizeof *row);
    }
}

static void compare_logits(test_run *r, const fixture *f)
{
    const size_t floats = (size_t)f->seq_len * (size_t)f->spec.V;
    float *got = malloc(floats * sizeof *got);
    balance *const counted = r->t.decoder.moe.balance;
    r->t.decoder.moe.balance = NULL;
    MUST(decoder_forward(&r->t.decoder, r->t.tokens, f->seq_len, 0, false));
    MUST(decoder_logits(&r->t.decoder, 0, f->seq_len, got));
    r->t.decoder.moe.balance = counted;
    compare("logits", got, f->logits, (int64_t)floats, f->noise.logits, NULL);
    free(got);
}

static void run_fixture(const char *name, const char *const *sets)
{
    fixture f;
    test_run r;
    MUST(fixture_open(&f, name));
    test_run_make(&r, name, 4096, f.spec.V);
    test_run_fixture_yaml(&r, &f);
    MUST(test_run_open(&r, sets));
    set_tokens(&r, &f, 0);
    compare_logits(&r, &f);
    for (int s = 0; s < f.steps; s++) {
        step_metrics m;
        set_tokens(&r, &f, s);
        MUST(trainer_step_tokens(&r.t, &m));
        compare_number("loss", s + 1, m.loss, f.losses[s], f.noise.losses);
        compare_number("aux_loss", s + 1, m.aux_loss, f.aux_losses[s], f.noise.losses);
        compare_number("z_loss", s + 1, m.z_loss, f.z_losses[s], f.noise.losses);
        compare_number("grad_norm", s + 1, m.grad_norm, f.grad_norms[s], f.noise.grad_norms);
        if (s == 0)
            compare_tensors(&r, &f, "grad", f.noise.grad);
    }
    test_run_weights_hash(&r); /* applies what is pending */
    compare_tensors(&r, &f, "final", f.noise.final);
    fprintf(stderr, "%s: worst distance %.2f of the tolerance (%s)\n", name, worst, worst_name);
    test_run_close(&r);
    fixture_close(&f);
}

ParameterizedTestParameters(fixtures, equals_pytorch)
{
    static char names[32][64];
    int n = 0;
    while (fixture_names[n] != NULL) {
        snprintf(names[n], sizeof names[n], "%s", fixture_names[n]);
        n++;
    }
    return cr_make_param_array(char[64], names, (size_t)n);
}

ParameterizedTest(char (*name)[64], fixtures, equals_pytorch) { run_fixture(*name, NULL); }
