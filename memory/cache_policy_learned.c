/* The chance that an expert is chosen in the next pass over its layer, and what is learned from each choice. Owns the features
 * and the weights of one logistic regression for all layers. One thread. Rule: plain multiplications and additions in a fixed
 * order, no libm: two machines that see the same choices evict the same experts.
 * Constants: chosen by replaying the four traces of tests/fixtures/traces, on which they are also tested; no other trace was at
 * hand. Rates of 4, 32 and 256 passes are within half a point of the other sets tried (2 to 5 rates), steps 0.01 .. 0.1 within one.
 * Chances over the next 2 .. 16 passes instead of one: the same on the two made-up routers, up to 5 points worse on recorded text. */
#include <math.h>
#include <string.h>

#include "engine/base/carve.h"
#include "memory/cache_policy_private.h"

#define PRIOR      4.0f /* passes that every expert is taken to have seen at the layer's mean */
#define STEP       0.05f
#define CHANCE_MIN 1e-3f
/* Tokens of a scan that are learned from: 128 passes settle the rates within a tenth, at half a millisecond a layer of 128 experts. */
enum { SCAN_TOKENS = 128 };

/* 2^(-1/4), 2^(-1/32), 2^(-1/256): half is forgotten after so many passes. */
static const float fade[RATES] = {0.840896415f, 0.978572062f, 0.997296056f};

static float bits_float(uint32_t u)
{
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

/* Natural logarithm of a normal positive number, within 1e-5: m in [3/4, 3/2), log m = 2 artanh((m - 1) / (m + 1)). */
static float quick_log(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    const int32_t e = (int32_t)(u - 0x3f400000u) >> 23;
    const float m = bits_float(u - ((uint32_t)e << 23)), t = (m - 1.0f) / (m + 1.0f), t2 = t * t;
    return (float)e * 0.693147181f + 2.0f * t * (1.0f + t2 * (0.333333333f + t2 * 0.2f));
}

/* exp of x in [-20, 20], within 1e-5 of its value. */
static float quick_exp(float x)
{
    const float y = x * 1.44269504f, n = floorf(y + 0.5f), r = (y - n) * 0.693147181f;
    const float p = 1.0f + r * (1.0f + r * (0.5f + r * (0.166666667f + r * (0.0416666667f + r * 0.00833333333f))));
    return p * bits_float((uint32_t)((int32_t)n + 127) << 23);
}

size_t chances_layout(chances *c, char *base, int layers, int experts)
{
    carve v = {base, 0};
    const size_t n = (size_t)layers * (size_t)experts, L = (size_t)layers;
    c->rate = carve_bytes(&v, n * RATES * sizeof *c->rate);
    c->feature = carve_bytes(&v, n * (FEATURES - 1) * sizeof *c->feature);
    c->last = carve_bytes(&v, n * sizeof *c->last);
    c->passes = carve_bytes(&v, L * sizeof *c->passes);
    c->passes_faded = carve_bytes(&v, L * RATES * sizeof *c->passes_faded);
    c->chosen_faded = carve_bytes(&v, L * RATES * sizeof *c->chosen_faded);
    return v.used;
}

void chances_begin(cache_policy *p)
{
    for (int i = 0; i < RATES; i++)
        p->learned.weight[1 + i] = 1.0f / RATES; /* the mean of the three */
    for (int i = 0; i < FEATURES; i++)
        p->learned.squares[i] = 1e-3f;
}

/* Odds against, exp(-w.f), from the features of an expert. */
static float odds_against(const chances *c, const float *f)
{
    float s = c->weight[0];
    for (int i = 1; i < FEATURES; i++)
        s += c->weight[i] * f[i - 1];
    s = s > 20.0f ? 20.0f : s < -20.0f ? -20.0f : s;
    return quick_exp(-s);
}

/* One step down the gradient of the log loss over all experts of the layer. */
static void learn_weights(cache_policy *p, int layer, int n)
{
    chances *c = &p->learned;
    float gradient[FEATURES] = {0};
    const float *f = c->feature + (size_t)layer * (size_t)p->experts * (FEATURES - 1);
    for (int e = 0; e < p->experts; e++, f += FEATURES - 1) {
        const float miss = (float)p->chosen[e] - 1.0f / (1.0f + odds_against(c, f));
        gradient[0] += miss;
        for (int i = 1; i < FEATURES; i++)
            gradient[i] += miss * f[i - 1];
    }
    const float scale = 1.0f / sqrtf((float)(n > 0 ? n : 1));
    for (int i = 0; i < FEATURES; i++) {
        const float g = gradient[i] * scale;
        c->squares[i] += g * g;
        c->weight[i] += STEP * g / sqrtf(c->squares[i]);
    }
}

static float log_age(uint32_t age) { return quick_log((float)age) * 1.44269504f - 3.0f; /* around 0 for ages of some passes */ }

static void count_choice(cache_policy *p, int layer, int n)
{
    chances *c = &p->learned;
    const uint32_t pass = ++c->passes[layer];
    const size_t first = (size_t)layer * (size_t)p->experts;
    float *passes = c->passes_faded + (size_t)layer * RATES, *chosen = c->chosen_faded + (size_t)layer * RATES;
    for (int i = 0; i < RATES; i++) {
        passes[i] = passes[i] * fade[i] + 1.0f;
        chosen[i] = chosen[i] * fade[i] + (float)n;
    }
    float at_first[RATES], scale[RATES];
    for (int i = 0; i < RATES; i++) {
        scale[i] = 1.0f / (passes[i] + PRIOR);
        at_first[i] = PRIOR * chosen[i] / (passes[i] * (float)p->experts);
    }
    for (int e = 0; e < p->experts; e++) {
        const size_t id = first + (size_t)e;
        float *rate = c->rate + id * RATES, *f = c->feature + id * (FEATURES - 1);
        for (int i = 0; i < RATES; i++) {
            rate[i] = rate[i] * fade[i] + (float)p->chosen[e];
            float chance = (rate[i] + at_first[i]) * scale[i];
            chance = chance < CHANCE_MIN ? CHANCE_MIN : chance > 1.0f - CHANCE_MIN ? 1.0f - CHANCE_MIN : chance;
            f[i] = quick_log(chance / (1.0f - chance));
        }
        if (p->chosen[e])
            c->last[id] = pass;
        f[RATES] = log_age(pass + 1 - c->last[id]);
    }
}

/* The choice of one pass becomes part of what is known; keys are left to the caller. */
static void learn(cache_policy *p, int layer, const int32_t *expert, int n)
{
    for (int i = 0; i < n; i++)
        p->chosen[expert[i]] = 1;
    if (p->learned.passes[layer] > 0)
        learn_weights(p, layer, n);
    count_choice(p, layer, n);
    for (int i = 0; i < n; i++)
        p->chosen[expert[i]] = 0;
}

static void update_keys(cache_policy *p, int layer)
{
    const chances *c = &p->learned;
    const size_t first = (size_t)layer * (size_t)p->experts;
    for (size_t id = first; id < first + (size_t)p->experts; id++)
        p->key[id] = (double)odds_against(c, c->feature + id * (FEATURES - 1));
    p->best[layer] = BEST_STALE;
}

void chances_choose(cache_policy *p, int layer, const int32_t *expert, int n)
{
    if (cache_policy_is_scan(p, n))
        return;
    learn(p, layer, expert, n);
    update_keys(p, layer);
}

void chances_tokens(cache_policy *p, int layer, const int32_t *ids, int64_t T, int K)
{
    for (int64_t t = T > SCAN_TOKENS ? T - SCAN_TOKENS : 0; t < T; t++)
        learn(p, layer, ids + t * K, K);
    update_keys(p, layer);
}
