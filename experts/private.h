/* Shared by the forward and the backward half of the MoE layer; not for other rooms. */
#ifndef MOE_EXPERTS_PRIVATE_H
#define MOE_EXPERTS_PRIVATE_H

#include "experts/experts.h"

/* What forward of one layer leaves for its backward. The routing is worked on in m->routing and kept in a stash block. */
typedef struct moe_pass {
    stash_id routing;   /* block of layout routing_layout                                    */
    stash_id *first;    /* [E] block of the expert's first chunk; the later ones have the ids before it */
    int32_t *order;     /* [E] experts in the order forward ran them                         */
    int norder;
} moe_pass;

/* The routing of T tokens in one block: the same lines measure (base NULL) and point. */
typedef struct routing {
    float *probs;       /* [T, E] */
    float *lse;         /* [T]    */
    float *weights;     /* [T, K] */
    int32_t *ids;       /* [T, K] */
    int32_t *row_of;    /* [T, K] */
    int32_t *row_token; /* [N]    */
    int32_t *row_slot;  /* [N]    */
    int32_t *offset;    /* [E + 1] */
} routing;

size_t routing_layout(routing *r, char *base, int64_t T, int E, int K);

/* The two matrices of an expert as a product reads them: fp32, or bf16 with w1, w2 NULL. */
typedef struct expert_matrices {
    const float *w1, *w2;
    const uint16_t *h1, *h2;
} expert_matrices;

static inline expert_matrices moe_expert_matrices(const moe_layers *m, const tier_lease *l)
{
    const float *w = l->part[STORE_W];
    const uint16_t *h = (const uint16_t *)(const void *)w;
    return m->bf16_weights ? (expert_matrices){.h1 = h + m->layout.w1, .h2 = h + m->layout.w2}
                           : (expert_matrices){.w1 = w + m->layout.w1, .w2 = w + m->layout.w2};
}

/* The next touched section, leased with the parts it needs. */
moe_err moe_next_section(moe_layers *m, section_id *wanted, int *n, bool backward, unsigned fresh, tier_lease *out) MOE_MUST_CHECK;

moe_err moe_router_logits(moe_layers *m, router_weights w, const float *xn, int64_t T) MOE_MUST_CHECK;

#endif
