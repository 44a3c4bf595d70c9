/* One token from one row of logits. Owns the history of one sequence and its options; knows no model, no text, no batch.
 * The token is a function of (options, sequence number, tokens accepted, logits): never of the neighbours, threads, memory or time.
 * Threads: a sampler and a room belong to one thread at a time; different samplers with different rooms are independent.
 * Rule: accept every token of the sequence, prompt included, in order; sample draws and leaves the history as it is.
 *
 * Stages, in the order of llama.cpp's default chain:
 *   mask, logit bias, penalties, DRY, top-k, typical, top-p, min-p, XTC, temperature, draw.
 * A candidate is a token that the mask allows and whose logit is not -inf. Each stage leaves at least one candidate. p below is the
 * softmax over the candidates that are left when the stage begins, at temperature 1; ties go to the lowest id.
 *   penalties  over the last `penalty_window` accepted tokens, c = how often the token is among them: when c > 0,
 *              l = l > 0 ? l / repeat : l * repeat, then l -= c * frequency + presence
 *   DRY        l -= multiplier * base^(n - allowed) for a token that would make a repetition of n >= allowed tokens longer; n is the
 *              longest suffix of the window, free of breakers, that occurs earlier in it with that token behind it
 *   top-k      the k largest
 *   typical    (arXiv 2202.00666) by |log p + entropy| ascending until their p reach `typical_p`
 *   top-p      (arXiv 1904.09751) the largest until their p reach `top_p`
 *   min-p      (arXiv 2407.01082) those with p >= min_p * the largest p
 *   XTC        with probability `xtc_probability`: of the tokens with p >= xtc_threshold only the least likely stays
 *   draw       softmax(l / temperature); temperature 0: the largest
 * Random numbers: random_uniform of (seed, sequence, purpose, number of tokens accepted). Sums: in double, in candidate order (by id,
 * after top-k or top-p by falling logit, after typical in its own order). */
#ifndef MOE_ENGINE_SERVE_SAMPLER_H
#define MOE_ENGINE_SERVE_SAMPLER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/error.h"

enum { SAMPLER_MAX_LOGPROBS = 20 };

typedef struct sampler_bias {
    int32_t token;
    float bias; /* added to the logit; -inf forbids */
} sampler_bias;

/* What a value means "off" for stands beside it. Arrays must live as long as the sampler. */
typedef struct sampler_options {
    double temperature;      /* 0: the most likely token                                */
    int64_t top_k;           /* 0                                                       */
    double top_p;            /* 1                                                       */
    double min_p;            /* 0                                                       */
    double typical_p;        /* 1                                                       */
    double repeat;           /* 1                                                       */
    double presence;         /* 0                                                       */
    double frequency;        /* 0                                                       */
    int64_t penalty_window;  /* tokens; 0: no penalties, -1: the whole sequence         */
    double dry_multiplier;   /* 0                                                       */
    double dry_base;
    int64_t dry_allowed;     /* tokens of a repetition that cost nothing, less one      */
    int64_t dry_window;      /* as penalty_window                                       */
    const int32_t *breaker;  /* [nbreaker] tokens that no repetition of DRY reaches over */
    int nbreaker;
    double xtc_probability;  /* 0                                                       */
    double xtc_threshold;
    const sampler_bias *bias; /* [nbias], one a token                                    */
    int nbias;
    uint64_t seed;
    int logprobs;            /* 0: none; n: the n most likely tokens too, see sampler_result */
} sampler_options;

/* Temperature 0.8, top-k 40, top-p 0.95, min-p 0.05, windows 64 and -1, DRY base 1.75, allowed 2, XTC threshold 0.1; the rest off. */
sampler_options sampler_defaults(void);
/* MOE_E_USAGE names the option as the command line spells it, what was found and what was expected. */
moe_err sampler_check(const sampler_options *o, int V) MOE_MUST_CHECK;

/* For a grammar: clears the bits of the tokens that must not come next (bit v % 32 of word v / 32; all V are set when it is called). */
typedef struct sampler_mask {
    moe_err (*fill)(void *state, uint32_t *allowed, int V);
    void *state;
} sampler_mask;

typedef struct sampler sampler;
/* Working memory for one call, shared by the samplers of a thread. */
typedef struct sampler_room sampler_room;

moe_err sampler_room_open(sampler_room **out, int V) MOE_MUST_CHECK;
void sampler_room_close(sampler_room *r); /* NULL: no-op */

/* capacity: tokens that will be accepted at most. sequence: its number; the same number and seed give the same tokens. */
moe_err sampler_open(sampler **out, const sampler_options *o, int V, uint32_t sequence, int64_t capacity) MOE_MUST_CHECK;
void sampler_close(sampler *s); /* NULL: no-op */
void sampler_set_mask(sampler *s, sampler_mask mask);

/* MOE_E_DATA: no token of the vocabulary. MOE_E_CONFIG: past the capacity. */
moe_err sampler_accept(sampler *s, const int32_t *token, int64_t n) MOE_MUST_CHECK;
int64_t sampler_accepted(const sampler *s);

typedef struct sampler_logprob {
    int32_t token;
    float logprob;
} sampler_logprob;

/* Log probabilities are those of the model: of the logits as they came, before mask, bias and every other stage. */
typedef struct sampler_result {
    int32_t token;
    float logprob; /* of token, when options.logprobs > 0 */
    int ntop;
    sampler_logprob top[SAMPLER_MAX_LOGPROBS]; /* falling */
} sampler_result;

/* logits: [V]. MOE_E_NUMERIC: NaN or +inf among them, or nothing but -inf. MOE_E_DATA: mask and bias forbid every token. What the mask
 * returns is passed on. */
moe_err sampler_sample(const sampler *s, sampler_room *room, const float *logits, sampler_result *out) MOE_MUST_CHECK;

#endif
