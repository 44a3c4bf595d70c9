/* A sampler's life: options, history, and the way of a row of logits through the stages. Owns the memory of a sequence and of a room.
 * Does not own the arithmetic of the stages (sampler_chain.c, sampler_penalty.c). One thread.
 * Rule: a NaN is an error here, it never becomes a token. */
#include "engine/serve/sampler.h"

#include <string.h>

#include "engine/base/carve.h"
#include "engine/serve/sampler_private.h"
#include "kernels/random.h"
#include "memory/budget.h"

enum { DRAW, XTC }; /* what a random number is for */

sampler_options sampler_defaults(void)
{
    return (sampler_options){
        .temperature = 0.8, .top_k = 40, .top_p = 0.95, .min_p = 0.05, .typical_p = 1, .repeat = 1, .penalty_window = 64,
        .dry_base = 1.75, .dry_allowed = 2, .dry_window = -1, .xtc_threshold = 0.1,
    };
}

static moe_err check_numbers(const sampler_options *o)
{
    const struct {
        const char *name;
        double value, low, high;
    } row[] = {
        {"temperature", o->temperature, 0, 100},
        {"top-k", (double)o->top_k, 0, 1e18},
        {"top-p", o->top_p, 0, 1},
        {"min-p", o->min_p, 0, 1},
        {"typical-p", o->typical_p, 0, 1},
        {"repeat-penalty", o->repeat, 0.01, 100},
        {"presence-penalty", o->presence, -1000, 1000},
        {"frequency-penalty", o->frequency, -1000, 1000},
        {"penalty-window", (double)o->penalty_window, -1, 1e18},
        {"dry-multiplier", o->dry_multiplier, 0, 1000},
        {"dry-base", o->dry_base, 1, 1000},
        {"dry-allowed", (double)o->dry_allowed, 1, 1e9},
        {"dry-window", (double)o->dry_window, -1, 1e18},
        {"xtc-probability", o->xtc_probability, 0, 1},
        {"xtc-threshold", o->xtc_threshold, 0, 1},
        {"logprobs", o->logprobs, 0, SAMPLER_MAX_LOGPROBS},
    };
    for (size_t i = 0; i < sizeof row / sizeof *row; i++)
        if (!(row[i].value >= row[i].low && row[i].value <= row[i].high))
            return moe_fail(MOE_E_USAGE, "%s: %g; expected a number from %g to %g", row[i].name, row[i].value, row[i].low, row[i].high);
    return MOE_OK;
}

moe_err sampler_check(const sampler_options *o, int V)
{
    TRY(check_numbers(o));
    for (int i = 0; i < o->nbias; i++) {
        if (o->bias[i].token < 0 || o->bias[i].token >= V)
            return moe_fail(MOE_E_USAGE, "logit-bias: token %d; the vocabulary has %d", o->bias[i].token, V);
        if (!(o->bias[i].bias <= 1000))
            return moe_fail(MOE_E_USAGE, "logit-bias: %g for token %d; expected a number up to 1000, or -inf", (double)o->bias[i].bias,
                            o->bias[i].token);
    }
    for (int i = 0; i < o->nbreaker; i++)
        if (o->breaker[i] < 0 || o->breaker[i] >= V)
            return moe_fail(MOE_E_USAGE, "dry-breaker: token %d; the vocabulary has %d", o->breaker[i], V);
    return MOE_OK;
}

static size_t words(int V) { return ((size_t)V + 31) / 32; }

static size_t room_layout(sampler_room *r, char *base)
{
    carve c = {base, 0};
    const size_t V = (size_t)r->V;
    r->logit = carve_bytes(&c, V * sizeof *r->logit);
    r->allowed = carve_bytes(&c, words(r->V) * sizeof *r->allowed);
    r->count = carve_bytes(&c, V * sizeof *r->count);
    r->key = carve_bytes(&c, V * sizeof *r->key);
    r->spare = carve_bytes(&c, V * sizeof *r->spare);
    return c.used;
}

moe_err sampler_room_open(sampler_room **out, int V)
{
    sampler_room r = {.V = V};
    *out = NULL;
    const size_t bytes = room_layout(&r, NULL), head = CARVE_ALIGN * ((sizeof r + CARVE_ALIGN - 1) / CARVE_ALIGN);
    void *memory;
    TRY(budget_alloc(&memory, head + bytes, "sampling"));
    room_layout(&r, (char *)memory + head);
    *out = memory;
    **out = r;
    return MOE_OK;
}

void sampler_room_close(sampler_room *r) { budget_free(r); }

static size_t sampler_layout(sampler *s, char *base)
{
    carve c = {base, 0};
    const bool dry = s->o.dry_multiplier > 0;
    carve_bytes(&c, sizeof *s);
    s->history = carve_bytes(&c, (size_t)s->capacity * sizeof *s->history);
    s->match = dry ? carve_bytes(&c, (size_t)s->capacity * sizeof *s->match) : NULL;
    s->breaks = dry ? carve_bytes(&c, words(s->V) * sizeof *s->breaks) : NULL;
    return c.used;
}

moe_err sampler_open(sampler **out, const sampler_options *o, int V, uint32_t sequence, int64_t capacity)
{
    *out = NULL;
    TRY(sampler_check(o, V));
    if (capacity < 0 || capacity > INT32_MAX)
        return moe_fail(MOE_E_CONFIG, "a sequence of %lld tokens; expected at most %d", (long long)capacity, INT32_MAX);
    sampler s = {.o = *o, .V = V, .sequence = sequence, .capacity = capacity};
    void *memory;
    TRY(budget_alloc(&memory, sampler_layout(&s, NULL), "sampling of a sequence"));
    sampler_layout(&s, memory);
    *out = memory;
    **out = s;
    for (int i = 0; s.breaks != NULL && i < o->nbreaker; i++)
        s.breaks[o->breaker[i] / 32] |= 1u << o->breaker[i] % 32;
    return MOE_OK;
}

void sampler_close(sampler *s) { budget_free(s); }

void sampler_set_mask(sampler *s, sampler_mask mask) { s->mask = mask; }

int64_t sampler_accepted(const sampler *s) { return s->n; }

moe_err sampler_accept(sampler *s, const int32_t *token, int64_t n)
{
    if (n > s->capacity - s->n)
        return moe_fail(MOE_E_CONFIG, "the sequence has room for %lld tokens, has %lld and is given %lld more", (long long)s->capacity,
                        (long long)s->n, (long long)n);
    for (int64_t i = 0; i < n; i++)
        if (token[i] < 0 || token[i] >= s->V)
            return moe_fail(MOE_E_DATA, "token %d at position %lld; the vocabulary has %d", token[i], (long long)(s->n + i), s->V);
    if (n > 0) /* nothing may come from NULL */
        memcpy(s->history + s->n, token, (size_t)n * sizeof *token);
    s->n += n;
    return MOE_OK;
}

/* The largest logit; MOE_E_NUMERIC for what no softmax has. */
static moe_err check_logits(const sampler *s, const float *logits, float *top)
{
    float best = *top = -INFINITY;
    for (int v = 0; v < s->V; v++) {
        if (!(logits[v] < INFINITY))
            return moe_fail(MOE_E_NUMERIC, "the logit of token %d after %lld tokens is %g", v, (long long)s->n, (double)logits[v]);
        best = logits[v] > best ? logits[v] : best;
    }
    if (best == -INFINITY)
        return moe_fail(MOE_E_NUMERIC, "every logit after %lld tokens is -inf", (long long)s->n);
    *top = best;
    return MOE_OK;
}

static moe_err apply_mask(const sampler *s, sampler_room *room)
{
    if (s->mask.fill == NULL)
        return MOE_OK;
    memset(room->allowed, 0xFF, words(s->V) * sizeof *room->allowed);
    TRY(s->mask.fill(s->mask.state, room->allowed, s->V));
    for (int v = 0; v < s->V; v++)
        if (!(room->allowed[v / 32] >> v % 32 & 1))
            room->logit[v] = -INFINITY;
    return MOE_OK;
}

static moe_err gather(const sampler *s, sampler_room *room, candidates *c)
{
    *c = (candidates){.key = room->key, .spare = room->spare, .logit = room->logit};
    for (int v = 0; v < s->V; v++) {
        if (!(room->logit[v] < INFINITY))
            return moe_fail(MOE_E_NUMERIC, "bias and penalties make the logit of token %d %g", v, (double)room->logit[v]);
        c->key[c->n] = key_make(room->logit[v], v);
        c->n += room->logit[v] > -INFINITY;
    }
    return c->n > 0 ? MOE_OK : moe_fail(MOE_E_DATA, "no token is left to choose after %lld tokens: mask and bias forbid all", (long long)s->n);
}

static double uniform(const sampler *s, uint32_t purpose)
{
    return random_uniform((random_key){s->o.seed, s->sequence, purpose}, (uint64_t)s->n);
}

static int32_t choose(const sampler *s, candidates *c)
{
    const sampler_options *o = &s->o;
    if (o->top_k > 0)
        candidates_top_k(c, o->top_k);
    if (o->typical_p < 1)
        candidates_typical(c, o->typical_p);
    if (o->top_p < 1)
        candidates_top_p(c, o->top_p);
    if (o->min_p > 0)
        candidates_min_p(c, o->min_p);
    if (o->xtc_probability > 0 && uniform(s, XTC) < o->xtc_probability)
        candidates_xtc(c, o->xtc_threshold);
    return candidates_draw(c, o->temperature, o->temperature > 0 ? uniform(s, DRAW) : 0);
}

/* log p = l - top - log sum exp(l - top), the sum in order of the ids. */
static void log_probabilities(const sampler *s, sampler_room *room, const float *logits, float top, sampler_result *out)
{
    const int k = s->o.logprobs < s->V ? s->o.logprobs : s->V;
    double total = 0;
    for (int v = 0; v < s->V; v++) {
        total += moe_expf(logits[v] - top);
        room->key[v] = key_make(logits[v], v);
    }
    const double norm = moe_log(total);
    candidates_select(room->key, s->V, k);
    out->logprob = (float)((double)(logits[out->token] - top) - norm);
    out->ntop = k;
    for (int i = 0; i < k; i++) {
        const int32_t token = key_token(room->key[i]);
        out->top[i] = (sampler_logprob){token, (float)((double)(logits[token] - top) - norm)};
    }
}

moe_err sampler_sample(const sampler *s, sampler_room *room, const float *logits, sampler_result *out)
{
    float top;
    candidates c;
    *out = (sampler_result){.token = -1};
    TRY(check_logits(s, logits, &top));
    memcpy(room->logit, logits, (size_t)s->V * sizeof *logits);
    TRY(apply_mask(s, room));
    for (int i = 0; i < s->o.nbias; i++)
        room->logit[s->o.bias[i].token] += s->o.bias[i].bias;
    if (s->o.repeat != 1 || s->o.presence != 0 || s->o.frequency != 0)
        sampler_penalize(s, room);
    if (s->o.dry_multiplier > 0)
        sampler_dry(s, room);
    TRY(gather(s, room, &c));
    out->token = choose(s, &c);
    if (s->o.logprobs > 0)
        log_probabilities(s, room, logits, top, out);
    return MOE_OK;
}
