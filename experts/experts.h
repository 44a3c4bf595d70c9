/* The MoE layer: router, dispatch, the experts in the order they become resident, combine; forward and backward.
 *
 * A layer works on the T tokens of the group at once, so every expert is brought in once per pass. Activations that backward needs go
 * to the stash; weights and gradients come from the tier as leases. The order of every sum is that of the kernels: experts may
 * finish in any order, their rows are combined in choice order, gradients of weights run over the rows in token order.
 * Threads: called from the compute thread; parallel inside each operation. */
#ifndef MOE_EXPERTS_EXPERTS_H
#define MOE_EXPERTS_EXPERTS_H

#include <stdatomic.h>

#include "experts/balance.h"
#include "experts/step_log.h"
#include "kernels/backend.h"
#include "memory/stash.h"
#include "memory/tier.h"
#include "models/spec.h"

typedef struct moe_times {
    double router, experts, update; /* seconds */
} moe_times;

/* What the MoE layers of a model share. Everything is set once by moe_layers_open; evaluation takes `balance` away for a while. */
typedef struct moe_layers {
    const moe_backend *be;
    moe_stream *stream;
    tier *tier;
    stash *stash;
    const step_log *log;
    balance *balance;        /* NULL outside training                                       */
    const atomic_int *stop;  /* non-zero: leave with MOE_E_TEMP before the next expert      */

    int D, F, Fp, E, K, layers;
    router_rule rule;
    expert_layout layout;
    int64_t max_tokens;      /* T of a pass at most                                         */
    int64_t chunk;           /* rows of one expert at a time (scratch; changes no bit)      */
    bool bf16_moments;       /* part M of a record is m then v, [layout.floats] bf16 each; no part V */
    uint64_t seed;           /* of their stochastic rounding                                */
    bool bf16_weights;       /* parts W and R are the halves of the fp32 weights (kernels/halves.h), [layout.floats] each; W is multiplied */

    float *rows;             /* [max_tokens * K, D] outputs, then input gradients, by row   */
    void *routing;           /* of the layer at work                                        */
    float *logits;           /* [max_tokens, E] logits, then their gradient                 */
    float *dweights;         /* [max_tokens, K]                                             */
    float *xg, *og;          /* [chunk, D] gathered inputs / output gradients               */
    float *h;                /* [chunk, Fp]                                                 */
    float *a;                /* [chunk, 2 * Fp] when nothing is kept                        */
    float *weight_rows, *dweight_rows; /* [chunk] router weights of the rows, and their gradients */
    section_id *wanted;      /* [E]                                                         */
    uint8_t *touch;          /* [E]                                                         */
    double *grad_squares;    /* [layers * E] sum of squares of each section's gradient      */
    struct moe_pass *pass;   /* [layers] what forward leaves for backward                   */
    void *memory;            /* the block behind all of the above                           */
    moe_times times;
} moe_layers;

typedef struct moe_config {
    const moe_backend *be;
    moe_stream *stream;
    const model_spec *spec;
    tier *tier;
    stash *stash;
    const step_log *log;
    balance *balance;
    const atomic_int *stop;
    int64_t max_tokens, chunk;
    bool bf16_moments, bf16_weights;
    uint64_t seed;
} moe_config;

/* Bytes that moe_open will allocate. */
size_t moe_layers_bytes(const moe_config *c);
moe_err moe_layers_open(moe_layers *m, const moe_config *c) MOE_MUST_CHECK;
void moe_layers_close(moe_layers *m);

/* Dense weights of one layer's router, and their gradients (NULL when there is no backward). */
typedef struct router_weights {
    const float *w;    /* panels (E, D) */
    const float *bias; /* [E] or NULL   */
    float *dw;
} router_weights;

/* x[T, D] += experts(xn[T, D]); keep: leave in the stash what backward needs. first_token: position of token 0 in the step. */
moe_err moe_forward(moe_layers *m, int layer, router_weights w, float *x, const float *xn, int64_t T, int64_t first_token, bool keep) MOE_MUST_CHECK;

/* dxn[T, D] = gradient by xn, from dy[T, D] (gradient by the layer's output, which stays the residual's). The layer's gradients go to
 * the tier, stamped `step`; grad_squares of the touched sections is renewed. */
typedef struct moe_backward_args {
    float *dxn;        /* [T, D] out */
    const float *dy;   /* [T, D]     */
    const float *xn;   /* [T, D]     */
    int64_t T, first_token;
    uint64_t step;
    const adamw_step *speculate; /* apply this step's update at once (clip 1), or NULL: deferred */
} moe_backward_args;
moe_err moe_backward(moe_layers *m, int layer, router_weights w, const moe_backward_args *a) MOE_MUST_CHECK;

/* The pass is abandoned: forgets what forward left (the stash is reset by the caller). */
void moe_abandon(moe_layers *m);

/* Applies everything that is pending on one section, up to the last step of the log. l holds all its parts, G when a gradient is
 * pending; all but W and R is released. *owed: the change that these must be released with, whatever happens in between (nothing on an error). */
moe_err moe_apply_pending(moe_layers *m, tier_lease *l, tier_change *owed) MOE_MUST_CHECK;
/* AdamW on the section whose W and moments l holds, whichever way those are stored; grad of steps[0], or NULL. */
moe_err moe_update(moe_layers *m, const tier_lease *l, const float *grad, const adamw_step *steps, int nsteps) MOE_MUST_CHECK;
/* The parts a section needs before it can be used in forward. */
unsigned moe_forward_parts(const moe_layers *m, section_id s);

#endif
