/* The backends of this build and the choice among them. Owns the tables; knows nothing of what an operation does.
 * Which rows may run is asked of CPUID once per call: the answer cannot change. Any thread.
 * Rule: no entry of a row is NULL (tests/kernels/test_backend.c); an operation without a fast version names its _ref. */
#include "kernels/backend.h"

#include <cpuid.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "kernels/tables.h"

/* One row; `isa` is the suffix of kernels/tables.h. */
#define CPU_TABLE(isa)                                                                                                           \
    {                                                                                                                            \
        .name = #isa, .matmul_forward = matmul_forward_##isa, .matmul_dx = matmul_dx_##isa, .matmul_dw = matmul_dw_##isa,        \
        .rope = rope_##isa, .clip_forward = clip_forward_##isa, .clip_backward = clip_backward_##isa,                            \
        .attention_forward = attention_forward_##isa, .attention_backward = attention_backward_##isa,                            \
        .qmatmul = qmatmul_##isa,                                                                                                \
        .kv_store = kv_store_##isa, .paged_attention = paged_attention_##isa,                                                    \
        .rmsnorm_forward = rmsnorm_forward_##isa, .rmsnorm_backward = rmsnorm_backward_##isa,                                    \
        .router_forward = router_forward_##isa, .router_backward = router_backward_##isa, .router_stats = router_stats_##isa,    \
        .dispatch = dispatch_##isa, .gather = gather_##isa, .combine = combine_##isa, .swiglu_forward = swiglu_forward_##isa,    \
        .swiglu_backward = swiglu_backward_##isa, .gate_forward = gate_forward_##isa, .gate_backward = gate_backward_##isa,      \
        .cross_entropy = cross_entropy_##isa, .embedding_forward = embedding_forward_##isa,                                      \
        .embedding_backward = embedding_backward_##isa, .adamw = adamw_##isa, .adamw_bf16 = adamw_bf16_##isa,                    \
        .sum_squares = sum_squares_##isa, .add = add_##isa, .random_normal = random_normal_##isa,                                \
    }

static const moe_backend backends[] = {CPU_TABLE(ref), CPU_TABLE(avx2), CPU_TABLE(avx512)}; /* slowest first */
enum { BACKENDS = sizeof backends / sizeof backends[0] };

bool kernels_have_vnni(void) { return __builtin_cpu_supports("avx512vnni"); }

/* One entry of a row that one more bit of CPUID decides. */
moe_err qmatmul_avx512(const qmatmul_args *a, moe_stream *s)
{
    return kernels_have_vnni() ? qmatmul_vnni(a, s) : qmatmul_avx512bw(a, s);
}

/* F16C: bit 29 of ECX in leaf 1. Not asked of the compiler, whose list of names it is not on everywhere. */
static bool have_f16c(void)
{
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c >> 29 & 1) != 0;
}

static bool backend_runs(const moe_backend *b)
{
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && have_f16c();
    if (strcmp(b->name, "avx2") == 0)
        return avx2;
    if (strcmp(b->name, "avx512") == 0)
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
    return true;
}

const moe_backend *moe_backend_at(int i)
{
    for (int b = 0; b < BACKENDS; b++)
        if (backend_runs(&backends[b]) && i-- == 0)
            return &backends[b];
    return NULL;
}

moe_err moe_backend_find(const moe_backend **out, const char *name)
{
    const bool any = name == NULL || strcmp(name, "auto") == 0;
    char names[128] = "";
    *out = NULL;
    for (int b = 0; b < BACKENDS; b++) {
        if (!backend_runs(&backends[b]))
            continue;
        if (any || strcmp(name, backends[b].name) == 0)
            *out = &backends[b];
        snprintf(names + strlen(names), sizeof names - strlen(names), ", %s", backends[b].name);
    }
    if (*out == NULL)
        return moe_fail(MOE_E_CONFIG, "kernels: backend \"%s\" does not exist or does not run on this processor; expected auto%s",
                        name, names);
    return MOE_OK;
}
