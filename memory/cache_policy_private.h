/* The inside of cache_policy, shared by cache_policy.c (the set, the victim, lru and lfu) and cache_policy_learned.c (chances).
 * Rule: whoever changes key[id] marks the layer's best stale. */
#ifndef MOE_MEMORY_CACHE_POLICY_PRIVATE_H
#define MOE_MEMORY_CACHE_POLICY_PRIVATE_H

#include "memory/cache_policy.h"

enum { RATES = 3, FEATURES = RATES + 2 /* a constant, the rates, the age */ };

/* What is learned. */
typedef struct chances {
    float *rate;           /* [layers * experts, RATES]  times chosen, old ones fading           */
    float *feature;        /* [layers * experts, FEATURES - 1]  as of the layer's next pass      */
    uint32_t *last;        /* [layers * experts]  pass of the layer that last chose it, 0: never */
    uint32_t *passes;      /* [layers]                                                           */
    float *passes_faded;   /* [layers, RATES]  passes, old ones fading                           */
    float *chosen_faded;   /* [layers, RATES]  choices, old ones fading                          */
    float weight[FEATURES], squares[FEATURES]; /* squares: of the gradients so far (AdaGrad)     */
} chances;

typedef struct policy_kind {
    const char *name;
    bool by_layer; /* the way to the layer counts; chosen ones are due before they are touched */
    void (*choose)(cache_policy *p, int layer, const int32_t *expert, int n); /* NULL: nothing */
    void (*touch)(cache_policy *p, expert_id id);                             /* NULL: nothing */
    void (*tokens)(cache_policy *p, int layer, const int32_t *ids, int64_t T, int K); /* NULL: nothing */
} policy_kind;

struct cache_policy {
    const policy_kind *kind;
    int layers, experts;
    int at;             /* layer of the last choice: where the computation is             */
    uint64_t uses;      /* touches so far                                                 */
    double *key;        /* [layers * experts]  without the way                            */
    uint8_t *flags;     /* [layers * experts]                                             */
    int32_t *best;      /* [layers]  the expert of the layer to go first; BEST_STALE, BEST_NONE */
    uint8_t *chosen;    /* [experts]  scratch of one choice                               */
    float *hits;        /* [layers * experts]  lfu                                        */
    uint64_t *used;     /* [layers * experts]  lfu: the touch that was its last           */
    chances learned;
};

enum { MAY_GO = 1, DUE = 2 };
enum { BEST_NONE = -1, BEST_STALE = -2 };

size_t chances_layout(chances *c, char *base, int layers, int experts);
void chances_begin(cache_policy *p);
void chances_choose(cache_policy *p, int layer, const int32_t *expert, int n);
void chances_tokens(cache_policy *p, int layer, const int32_t *ids, int64_t T, int K);

#endif
