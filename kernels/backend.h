/* The one table of operations that the engine calls. A backend is a row of function pointers: the plain C reference, AVX2 and AVX-512 on the
 * CPU (same bits), later CUDA and a simulated device. Engine and experts see this table and nothing behind it. */
#ifndef MOE_KERNELS_BACKEND_H
#define MOE_KERNELS_BACKEND_H

#include "kernels/adamw.h"
#include "kernels/attention.h"
#include "kernels/clip.h"
#include "kernels/dispatch.h"
#include "kernels/embedding.h"
#include "kernels/loss.h"
#include "kernels/matmul.h"
#include "kernels/norm.h"
#include "kernels/paged_attention.h"
#include "kernels/qmatmul.h"
#include "kernels/random.h"
#include "kernels/reduce.h"
#include "kernels/rope.h"
#include "kernels/router.h"
#include "kernels/swiglu.h"

typedef struct moe_backend {
    const char *name; /* "ref", "avx2", "avx512" */
    matmul_fn matmul_forward, matmul_dx, matmul_dw;
    qmatmul_fn qmatmul;
    rmsnorm_fn rmsnorm_forward, rmsnorm_backward;
    rope_fn rope;
    clip_fn clip_forward, clip_backward;
    attention_fn attention_forward, attention_backward;
    kv_store_fn kv_store;
    paged_attention_fn paged_attention;
    router_fn router_forward, router_backward;
    router_stats_fn router_stats;
    dispatch_fn dispatch;
    gather_fn gather;
    combine_fn combine;
    swiglu_fn swiglu_forward, swiglu_backward;
    gate_fn gate_forward, gate_backward;
    cross_entropy_fn cross_entropy;
    embedding_fn embedding_forward, embedding_backward;
    adamw_fn adamw;
    adamw_bf16_fn adamw_bf16;
    sum_squares_fn sum_squares;
    add_fn add;
    random_normal_fn random_normal;
} moe_backend;

/* name NULL or "auto": the fastest this processor runs. MOE_E_CONFIG for an unknown or unsupported name (says which exist). */
moe_err moe_backend_find(const moe_backend **out, const char *name) MOE_MUST_CHECK;
/* The i-th backend of this build that runs on this processor, the reference first; NULL past the end. For tests and benchmarks. */
const moe_backend *moe_backend_at(int i);

#endif
