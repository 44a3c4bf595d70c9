/* AdamW on a GPU (kernels/adamw.h), fp32 and bf16 moments: a thread an element, all steps of a pass in registers; the scalars of the steps
 * are the host's. Bits of the CPU: every line is the line of ref/adamw.c.
 * Rule: no operation here may be fused that is not written as fma (-fmad=false), divisions and roots are IEEE's. */
#include "kernels/cuda/device.cuh"
#include "kernels/halves.h"
#include "kernels/ref/philox.h"

enum { STEPS_PER_PASS = 64 }; /* they are kernel parameters: 4 KiB at most */

typedef struct pass {
    int nsteps;
    uint32_t step[STEPS_PER_PASS];
    adamw_scalars scalars[STEPS_PER_PASS];
} pass;
static_assert(sizeof(pass) + sizeof(adamw_bf16_args) < 4096, "parameters of a kernel");

typedef struct element {
    float w, m, v;
} element;

static __device__ inline float weight(adamw_weights w, size_t i) { return w.w != NULL ? w.w[i] : halves_number(w.near[i], w.rest[i]); }

static __device__ inline void set_weight(adamw_weights w, size_t i, float x)
{
    if (w.w != NULL) {
        w.w[i] = x;
        return;
    }
    w.near[i] = halves_near(x);
    w.rest[i] = halves_rest(x);
}

static __device__ inline element element_step(element e, float grad, const adamw_scalars *k)
{
    const float g = k->clip * grad;
    e.w = e.w * k->decay;
    e.m = fmaf(k->c1, g - e.m, k->from_g ? g : e.m);
    e.v = fmaf(k->c2 * g, g, e.v * k->beta2);
    e.w = e.w + k->minus_size * e.m / (sqrtf(e.v) / k->root2 + k->eps);
    return e;
}

static __global__ void adamw_kernel(adamw_args a, pass p)
{
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < a.n; i += gridDim.x * (size_t)blockDim.x) {
        element e = {weight(a.w, i), a.m[i], a.v[i]};
        for (int j = 0; j < p.nsteps; j++)
            e = element_step(e, j == 0 && a.grad != NULL ? a.grad[i] : 0.0f, &p.scalars[j]);
        set_weight(a.w, i, e.w);
        a.m[i] = e.m;
        a.v[i] = e.v;
    }
}

/* Word (i mod 64) / 16 of random_words. */
static __device__ inline uint32_t random_word(uint64_t seed, uint32_t section, uint32_t step, size_t i)
{
    const uint64_t element = i / 64 * 16 + i % 16;
    uint32_t c0 = (uint32_t)element, c1 = (uint32_t)(element >> 32), c2 = section, c3 = step;
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < PHILOX_ROUNDS; round++) {
        const uint64_t x = (uint64_t)PHILOX_M0 * c0, y = (uint64_t)PHILOX_M1 * c2;
        c0 = (uint32_t)(y >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)y;
        c2 = (uint32_t)(x >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)x;
        k0 += PHILOX_W0;
        k1 += PHILOX_W1;
    }
    const int which = (int)(i % 64 / 16);
    return which == 0 ? c0 : which == 1 ? c1 : which == 2 ? c2 : c3;
}

static __device__ inline uint16_t round_bf16(float x, uint32_t bits)
{
    const uint32_t infinite = 0x7f800000u, largest = 0x7f7f0000u;
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    const uint32_t sign = u & 0x80000000u, size = u ^ sign;
    if (size > infinite)
        return 0x7fc0;
    uint32_t rounded = size + bits;
    if (size < infinite && rounded >= infinite)
        rounded = largest;
    return (uint16_t)((sign | rounded) >> 16);
}

static __device__ inline float widen(uint16_t x) { return halves_number(x, 0); }

static __global__ void adamw_bf16_kernel(adamw_bf16_args a, pass p)
{
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < a.n; i += gridDim.x * (size_t)blockDim.x) {
        element e = {weight(a.w, i), 0, 0};
        uint16_t m = a.m[i], v = a.v[i];
        for (int j = 0; j < p.nsteps; j++) {
            e.m = widen(m), e.v = widen(v);
            e = element_step(e, j == 0 && a.grad != NULL ? a.grad[i] : 0.0f, &p.scalars[j]);
            const uint32_t word = random_word(a.seed, a.section, p.step[j], i);
            m = round_bf16(e.m, word & 0xffff);
            v = round_bf16(e.v, word >> 16);
        }
        set_weight(a.w, i, e.w);
        a.m[i] = m;
        a.v[i] = v;
    }
}

/* The next pass from step `at` on. */
static pass next_pass(const adamw_step *steps, int at, int nsteps, bool decay)
{
    pass p;
    memset(&p, 0, sizeof p);
    p.nsteps = nsteps - at < STEPS_PER_PASS ? nsteps - at : STEPS_PER_PASS;
    for (int j = 0; j < p.nsteps; j++) {
        p.step[j] = (uint32_t)steps[at + j].step;
        p.scalars[j] = adamw_scalars_of(&steps[at + j], decay);
    }
    return p;
}

extern "C" moe_err adamw_cuda(const adamw_args *a, moe_stream *s)
{
    adamw_args rest = *a;
    for (int at = 0; at < a->nsteps && a->n > 0; at += STEPS_PER_PASS, rest.grad = NULL)
        CUDA_LAUNCH(adamw_kernel, grid_for(a->n, BLOCK_THREADS), BLOCK_THREADS, s->cuda->stream, rest, next_pass(a->steps, at, a->nsteps, a->decay));
    return launched("adamw");
}

extern "C" moe_err adamw_bf16_cuda(const adamw_bf16_args *a, moe_stream *s)
{
    adamw_bf16_args rest = *a;
    for (int at = 0; at < a->nsteps && a->n > 0; at += STEPS_PER_PASS, rest.grad = NULL)
        CUDA_LAUNCH(adamw_bf16_kernel, grid_for(a->n, BLOCK_THREADS), BLOCK_THREADS, s->cuda->stream, rest,
                    next_pass(a->steps, at, a->nsteps, a->decay));
    return launched("adamw, bf16 moments");
}
