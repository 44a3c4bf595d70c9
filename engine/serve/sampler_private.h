/* Private to the sampler: one sequence, the working memory, and the stages between them.
 * A candidate is one 64-bit key: the logit as an unsigned number that sorts alike, above the complement of the id; so the larger key
 * is the larger logit, and among equals the lower id. */
#ifndef MOE_ENGINE_SERVE_SAMPLER_PRIVATE_H
#define MOE_ENGINE_SERVE_SAMPLER_PRIVATE_H

#include "engine/serve/sampler.h"
#include "kernels/math.h"

struct sampler {
    sampler_options o;
    int V;
    uint32_t sequence;
    int64_t n, capacity;
    int32_t *history; /* [capacity]                                            */
    int32_t *match;   /* [capacity] of DRY, else NULL                          */
    uint32_t *breaks; /* [V / 32] bit: a breaker of DRY, else NULL             */
    sampler_mask mask;
};

struct sampler_room {
    int V;
    float *logit;      /* [V] after mask, bias, penalties; -inf: no candidate  */
    uint32_t *allowed; /* [V / 32] the mask                                    */
    int32_t *count;    /* [V] zero between the calls                           */
    uint64_t *key;     /* [V] candidates                                       */
    uint64_t *spare;   /* [V]                                                  */
};

typedef struct candidates {
    uint64_t *key;
    uint64_t *spare;
    const float *logit; /* [V] */
    int n;
    bool sorted; /* falling */
} candidates;

static inline int32_t key_token(uint64_t key) { return (int32_t)~(uint32_t)key; }

/* x + 0: -0 and 0 are the same logit. */
static inline uint64_t key_make(float x, int32_t token)
{
    const uint32_t bits = float_bits(x + 0.0f), order = bits >> 31 ? ~bits : bits | 0x80000000u;
    return (uint64_t)order << 32 | (uint32_t)~token;
}

/* The k largest of key[0, n) come first, falling; the others follow in no order. 0 <= k <= n. */
void candidates_select(uint64_t *key, int n, int k);

/* The stages after DRY; each leaves at least one candidate. */
void candidates_top_k(candidates *c, int64_t k);
void candidates_typical(candidates *c, double p);
void candidates_top_p(candidates *c, double p);
void candidates_min_p(candidates *c, double p);
void candidates_xtc(candidates *c, double threshold);
/* u in [0, 1). temperature 0: the largest. */
int32_t candidates_draw(const candidates *c, double temperature, double u);

/* The stages before, on room->logit. */
void sampler_penalize(const sampler *s, sampler_room *room);
void sampler_dry(const sampler *s, sampler_room *room);

#endif
