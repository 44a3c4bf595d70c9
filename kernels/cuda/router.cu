/* The router on a GPU (kernels/router.h): a warp a token. Scores, the choice and its weights in one kernel; the backward pass; the counts.
 * Bits of the CPU: sums along E have sixteen lanes, sums along K are chains that every lane repeats.
 * Rule: the order of the experts is total (falling score, NaN last, then rising id), so K times the best one behind the last one chosen
 * gives what insertion gives in ref/router.c. */
#include "kernels/cuda/device.cuh"
#include "kernels/math.h"
extern "C" {
#include "kernels/ref/router.h"
}

enum { GROUPS_MOST = 256 };

typedef struct choice {
    float score;
    int e; /* -1: none */
} choice;

static __device__ inline bool better(float score, float best) { return score > best || (best != best && score == score); }

/* Does a stand before b? */
static __device__ inline bool before(choice a, choice b)
{
    return a.e >= 0 && (b.e < 0 || better(a.score, b.score) || (!better(b.score, a.score) && a.e < b.e));
}

static __device__ inline float choice_score(const float *p, const float *bias, int e) { return bias != NULL ? p[e] + bias[e] : p[e]; }

static __device__ inline float group_score(const float *p, const float *bias, int first, int experts, bool group_best)
{
    float best = -INFINITY, second = -INFINITY;
    for (int e = first; e < first + experts; e++) {
        const float score = choice_score(p, bias, e);
        if (better(score, best)) {
            second = best;
            best = score;
        } else if (better(score, second)) {
            second = score;
        }
    }
    return experts > 1 && !group_best ? best + second : best;
}

/* in[g]: may experts of group g be chosen? Lane by lane; scores is scratch. */
static __device__ inline void choose_groups(int *in, float *scores, const float *p, const router_args *a, int lane)
{
    const router_rule *rule = &a->rule;
    const int experts = a->E / rule->groups;
    for (int g = lane; g < rule->groups; g += WARP)
        scores[g] = group_score(p, a->bias, g * experts, experts, rule->group_best);
    __syncwarp();
    for (int g = lane; g < rule->groups; g += WARP) {
        int rank = 0;
        for (int other = 0; other < rule->groups; other++)
            rank += other < g ? !better(scores[g], scores[other]) : better(scores[other], scores[g]);
        in[g] = rank < rule->groups_used;
    }
    __syncwarp();
}

/* The best expert behind `last`, the same for all lanes. */
static __device__ inline choice next_choice(choice last, const float *p, const int *in, const router_args *a, int lane)
{
    const int experts = a->E / a->rule.groups;
    choice best = {0.0f, -1};
    for (int e = lane; e < a->E; e += WARP) {
        const choice c = {choice_score(p, a->bias, e), e};
        if (in[e / experts] && (last.e < 0 || before(last, c)) && before(c, best))
            best = c;
    }
    for (int with = WARP / 2; with >= 1; with /= 2) {
        const choice other = {__shfl_xor_sync(ALL_LANES, best.score, with), __shfl_xor_sync(ALL_LANES, best.e, with)};
        if (before(other, best))
            best = other;
    }
    return best;
}

static __device__ inline void weigh(float *weights, const int32_t *ids, const float *l, const float *p, const router_args *a)
{
    const router_rule *rule = &a->rule;
    float n = -INFINITY, sum = 0.0f;
    for (int k = 0; k < a->K; k++)
        n = l[ids[k]] > n ? l[ids[k]] : n;
    for (int k = 0; k < a->K; k++) {
        weights[k] = rule->topk_first ? moe_expf(l[ids[k]] - n) : p[ids[k]];
        sum += weights[k];
    }
    if (rule->score == ROUTER_SIGMOID && !rule->topk_first)
        sum += 1e-20f;
    for (int k = 0; k < a->K; k++)
        weights[k] = (rule->topk_first || rule->normalize ? weights[k] / sum : weights[k]) * rule->scale;
}

/* Probabilities of one token; returns logsumexp. */
static __device__ inline float score(float *p, const float *l, const router_args *a, int lane)
{
    float m = -INFINITY, sum = 0.0f;
    for (int e = lane; e < a->E; e += WARP)
        m = l[e] > m ? l[e] : m;
    for (int with = WARP / 2; with >= 1; with /= 2) {
        const float other = __shfl_xor_sync(ALL_LANES, m, with);
        m = other > m ? other : m;
    }
    for (int e = lane; e < a->E && lane < ROW_LANES; e += ROW_LANES)
        sum += moe_expf(l[e] - m);
    const float S = __shfl_sync(ALL_LANES, lanes_sum(sum, lane % ROW_LANES, a->E), 0);
    for (int e = lane; e < a->E; e += WARP)
        p[e] = a->rule.score == ROUTER_SOFTMAX ? moe_expf(l[e] - m) / S : moe_sigmoidf(l[e]);
    return m + moe_logf(S);
}

static __global__ void router_forward_kernel(router_args a)
{
    __shared__ float scores[GROUPS_MOST];
    __shared__ int in[GROUPS_MOST];
    const int lane = threadIdx.x;
    for (int64_t t = blockIdx.x; t < a.T; t += gridDim.x) {
        const float *l = a.logits + (size_t)t * a.E;
        float *p = a.probs + (size_t)t * a.E;
        const float lse = score(p, l, &a, lane);
        __syncwarp();
        if (a.rule.groups_used < a.rule.groups)
            choose_groups(in, scores, p, &a, lane);
        else
            for (int g = lane; g < a.rule.groups; g += WARP)
                in[g] = true;
        __syncwarp();
        choice last = {0.0f, -1};
        for (int k = 0; k < a.K; k++) {
            last = next_choice(last, p, in, &a, lane);
            if (lane == 0)
                a.ids[(size_t)t * a.K + k] = last.e;
        }
        if (lane == 0) {
            a.lse[t] = lse;
            weigh(a.weights + (size_t)t * a.K, a.ids + (size_t)t * a.K, l, p, &a);
        }
        __syncwarp();
    }
}

/* What the backward pass of a token needs of its choices. */
typedef struct chosen {
    const int32_t *ids;
    const float *weights, *dweights;
    float sum, x; /* of the probabilities; the chain of weight * dweight */
} chosen;

static __device__ inline chosen chosen_of(const router_args *a, int64_t t, const float *p)
{
    const size_t at = (size_t)t * a->K;
    chosen c = {a->ids + at, a->weights + at, a->dweights + at, 0.0f, 0.0f};
    for (int k = 0; k < a->K; k++) {
        c.sum += p[c.ids[k]];
        c.x = fmaf(c.weights[k], c.dweights[k], c.x);
    }
    if (a->rule.score == ROUTER_SIGMOID)
        c.sum += 1e-20f;
    return c;
}

static __device__ inline float dp_of(const router_args *a, const chosen *c, int e)
{
    float dp = a->dprobs != NULL ? a->dprobs[e] : 0.0f;
    for (int k = 0; k < a->K && !a->rule.topk_first; k++)
        if (c->ids[k] == e)
            dp += a->rule.normalize ? (a->rule.scale * c->dweights[k] - c->x) / c->sum : a->rule.scale * c->dweights[k];
    return dp;
}

static __global__ void router_backward_kernel(router_args a)
{
    const int lane = threadIdx.x;
    const bool softmax = a.rule.score == ROUTER_SOFTMAX;
    for (int64_t t = blockIdx.x; t < a.T; t += gridDim.x) {
        const float *p = a.probs + (size_t)t * a.E, z = 2.0f * a.dz * a.lse[t];
        const chosen c = chosen_of(&a, t, p);
        const float x = c.x / a.rule.scale;
        float sum = 0.0f;
        for (int e = lane; e < a.E && lane < ROW_LANES; e += ROW_LANES)
            sum = fmaf(p[e], dp_of(&a, &c, e), sum);
        const float mean = __shfl_sync(ALL_LANES, lanes_sum(sum, lane % ROW_LANES, a.E), 0);
        for (int e = lane; e < a.E; e += WARP) {
            const size_t i = (size_t)t * a.E + e;
            const float dp = dp_of(&a, &c, e);
            float d = softmax ? p[e] * (dp - mean) : dp * (p[e] * (1.0f - p[e]));
            if (a.dz != 0.0f)
                d = fmaf(z, softmax ? p[e] : moe_expf(a.logits[i] - a.lse[t]), d);
            for (int k = 0; k < a.K && a.rule.topk_first; k++)
                if (c.ids[k] == e)
                    d += c.weights[k] * (c.dweights[k] - x);
            a.dlogits[i] = d;
        }
    }
}

static __global__ void router_counts_kernel(router_stats_args a, const cuda_fault *fault)
{
    if (faulty(fault))
        return;
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < a.T * a.K; i += gridDim.x * (int64_t)blockDim.x)
        atomicAdd((unsigned long long *)&a.counts[a.ids[i]], 1ull);
}

/* A thread an expert: its sum adds over the tokens in order. */
static __global__ void router_sums_kernel(router_stats_args a, const cuda_fault *fault)
{
    const int e = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (faulty(fault) || e >= a.E)
        return;
    double sum = a.prob_sum[e];
    for (int64_t t = 0; t < a.T; t++)
        sum += (double)a.probs[(size_t)t * a.E + e];
    a.prob_sum[e] = sum;
}

static moe_err check(const router_args *a)
{
    TRY(router_check(a));
    if (a->rule.groups > GROUPS_MOST)
        return moe_fail(MOE_E_CONFIG, "router: %d groups; expected at most %d on a GPU", a->rule.groups, (int)GROUPS_MOST);
    return MOE_OK;
}

extern "C" moe_err router_forward_cuda(const router_args *a, moe_stream *s)
{
    TRY(check(a));
    if (a->T > 0)
        CUDA_LAUNCH(router_forward_kernel, grid_for((size_t)a->T, 1), WARP, s->cuda->stream, *a);
    return launched("router");
}

extern "C" moe_err router_backward_cuda(const router_args *a, moe_stream *s)
{
    TRY(check(a));
    if (a->T > 0)
        CUDA_LAUNCH(router_backward_kernel, grid_for((size_t)a->T, 1), WARP, s->cuda->stream, *a);
    return launched("router, backward");
}

extern "C" moe_err router_stats_cuda(const router_stats_args *a, moe_stream *s)
{
    const int64_t n = a->T * a->K;
    if (n <= 0)
        return MOE_OK;
    s->cuda->experts = a->E, s->cuda->choices = a->K;
    TRY(check_ids(s->cuda, a->ids, n, a->E, FAULT_ROUTER));
    CUDA_LAUNCH(router_counts_kernel, grid_for((size_t)n, BLOCK_THREADS), BLOCK_THREADS, s->cuda->stream, *a, s->cuda->fault);
    CUDA_LAUNCH(router_sums_kernel, ((unsigned)a->E + BLOCK_THREADS - 1) / BLOCK_THREADS, BLOCK_THREADS, s->cuda->stream, *a, s->cuda->fault);
    return launched("router, counts");
}
