/* Every operation of backend.h under its three names; private to kernels/ and its tests. Owns no code.
 * Naming rule: the definition is NAME_ref in kernels/ref/, the fast version is written as ISA(NAME) in kernels/cpu/ and becomes
 * NAME_avx2 and NAME_avx512. An operation that has no fast version appears in backend.c with its _ref name on every row.
 * Reached only through the tables of backend.c: which of these may run is a matter of CPUID. */
#ifndef MOE_KERNELS_TABLES_H
#define MOE_KERNELS_TABLES_H

#include "kernels/backend.h"

/* X(operation, argument structure): the one list of operations, in the order of backend.h. */
#define KERNEL_LIST(X)                        \
    X(matmul_forward, matmul_args)            \
    X(matmul_dx, matmul_args)                 \
    X(matmul_dw, matmul_args)                 \
    X(qmatmul, qmatmul_args)                  \
    X(rmsnorm_forward, rmsnorm_args)          \
    X(rmsnorm_backward, rmsnorm_args)         \
    X(rope, rope_args)                        \
    X(clip_forward, clip_args)                \
    X(clip_backward, clip_args)               \
    X(attention_forward, attention_args)      \
    X(attention_backward, attention_args)     \
    X(kv_store, kv_store_args)                \
    X(paged_attention, paged_attention_args)  \
    X(router_forward, router_args)            \
    X(router_backward, router_args)           \
    X(router_stats, router_stats_args)        \
    X(dispatch, dispatch_args)                \
    X(gather, gather_args)                    \
    X(combine, combine_args)                  \
    X(swiglu_forward, swiglu_args)            \
    X(swiglu_backward, swiglu_args)           \
    X(gate_forward, gate_args)                \
    X(gate_backward, gate_args)               \
    X(cross_entropy, cross_entropy_args)      \
    X(embedding_forward, embedding_args)      \
    X(embedding_backward, embedding_args)     \
    X(adamw, adamw_args)                      \
    X(adamw_bf16, adamw_bf16_args)            \
    X(sum_squares, sum_squares_args)          \
    X(add, add_args)                          \
    X(random_normal, random_normal_args)

#define KERNEL_DECLARE(op, args)                        \
    moe_err op##_ref(const args *a, moe_stream *s);     \
    moe_err op##_avx2(const args *a, moe_stream *s);    \
    moe_err op##_avx512(const args *a, moe_stream *s);
KERNEL_LIST(KERNEL_DECLARE)
#undef KERNEL_DECLARE

/* qmatmul_avx512 is the first of these that runs here (backend.c). */
moe_err qmatmul_vnni(const qmatmul_args *a, moe_stream *s);
moe_err qmatmul_avx512bw(const qmatmul_args *a, moe_stream *s);
bool kernels_have_vnni(void);

#endif
