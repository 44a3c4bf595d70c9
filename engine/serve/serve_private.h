/* Shared by the files of the serving engine; not for others. */
#ifndef MOE_ENGINE_SERVE_SERVE_PRIVATE_H
#define MOE_ENGINE_SERVE_SERVE_PRIVATE_H

#include "engine/serve/serve.h"
#include "kernels/qmatmul.h"

/* A matrix at rest in memory: panels (N, K). N 0: the model has none. */
typedef struct weight {
    const void *panels;
    numfmt format;
    int N, K;
} weight;

typedef struct serve_layer {
    const float *attn_norm, *ffn_norm;      /* [D]                                          */
    const float *q_norm, *k_norm;           /* NULL: none, as the biases                    */
    const float *q_bias, *k_bias, *v_bias, *o_bias, *router_bias;
    const float *sinks, *logit_bias;        /* [H], [E]                                     */
    const float *expert_bias[3];            /* gate, up [E, F], down [E, D]                 */
    weight q, k, v, o;
    const float *q_a_norm, *kv_a_norm, *q_a_bias, *kv_a_bias; /* latent attention (latent.c)    */
    weight q_a, q_b, kv_a;
    weight k_b, v_b;                        /* of each head, panels head after head; N and K are a head's */
    weight router;
    weight gate, up, down;                  /* of a dense layer                             */
    weight shared_gate, shared_up, shared_down, shared_switch;
    int moe;                                /* number among the MoE layers, -1: dense       */
    numfmt expert_format[3];                /* gate, up, down                               */
    size_t expert_at[3];                    /* where they begin in a slot                   */
} serve_layer;

typedef struct serve_dense {
    serve_layer *layer; /* [L]                                                  */
    const void *embed;  /* rows [V, D] as stored, or the head's panels when tied */
    numfmt embed_format;
    const float *final_norm;
    weight head;
    void *memory;
    uint64_t bytes;
} serve_dense;

/* KV_PAGE positions of all layers. Shared while refs > 1; free when 0, but kept under its tokens for reuse until it is needed. */
typedef struct kv_block {
    int32_t refs;
    int32_t parent;        /* block of the positions before, -1: none. Meaningful while `known`            */
    uint64_t parent_born;  /* what the parent held then: a block that was given out again is another one   */
    uint64_t born, used;   /* counters of the last time it was given out, and touched                      */
    bool known;            /* full, and found by its tokens                                                */
    int32_t next;          /* in its hash chain, -1: end                                                   */
    uint32_t hash;
    int32_t token[KV_PAGE];
} kv_block;

typedef struct kv_sequence {
    bool used, broken;
    int64_t length;
    int blocks;
    int32_t *block;   /* [max_blocks]                                          */
    void **page;      /* [L, max_blocks]                                       */
    int32_t *partial; /* [KV_PAGE] tokens of the block that is being filled    */
} kv_sequence;

typedef struct kv_pool {
    int L, sequences, max_blocks, blocks, chains;
    size_t page_bytes;
    uint64_t clock;
    kv_block *block;       /* [blocks]    */
    int32_t *chain;        /* [chains] first block of a hash, -1 */
    kv_sequence *sequence; /* [sequences] */
    char *pages;           /* [blocks, L, page_bytes] */
    void *memory, *book;
    uint64_t bytes;
} kv_pool;

/* Working memory of a step of T tokens at most: all of it is there from serve_open on. */
typedef struct serve_scratch {
    int64_t T;           /* tokens of this step                          */
    float *x, *xn;       /* [T, D]                                       */
    float *q, *k, *v, *o; /* [T, H*hd], [T, Hkv*hd] x 2, [T, H*hd]        */
    float *rope;         /* [2, T, hd/2] of the tokens' positions        */
    float *q_a;          /* latent attention: [T, q_lora_rank]           */
    float *q_latent, *o_latent, *heads; /* of S = LATENT_TOKENS tokens: [H, S, key], [H, S, kv_lora_rank], [H, S, nope or value] */
    int32_t *head_offset;          /* [H + 1] rows of each head          */
    const void **head_panels;      /* [H]                                */
    float *wide, *wide2; /* dense FFN, shared expert: [T, max(2*Fp, D)] and [T, Fp] */
    float *switches;     /* [2, T] gate of the shared expert, its logits */
    int32_t *token, *pos, *sequence, *span_of, *identity; /* [T]           */
    int32_t *want;       /* [T] tokens whose logits are wanted           */
    void **page;                   /* [T] of the layer                   */
    const void *const **tables;    /* [T] of the layer                   */
    float *logits, *probs, *lse, *weights; /* router: [T, E] x 2, [T], [T, K] */
    int32_t *ids, *row_of, *row_token, *row_slot; /* [T, K]              */
    int32_t *offset;               /* [E + 1]                            */
    float *rows;                   /* [T*K, D] outputs of the experts, as they were computed */
    float *xg, *a, *h;             /* [R, D], [R, 2*Fp], [R, Fp]: rows of one batch of experts */
    int32_t *batch_token;          /* [R]                                */
    int32_t *union_of;             /* [E]                                */
    expert_id *wanted_id;          /* [E]                                */
    expert_lease *lease;           /* [E]                                */
    int32_t *batch_offset;         /* [E + 1]                            */
    const void **batch_w[3];       /* [E]                                */
    int32_t *batch_expert;         /* [E]                                */
    bool *dead;                    /* [sequences] of the span            */
} serve_scratch;

struct serve {
    serve_config c;
    const model_spec *spec;
    serve_dense dense;
    kv_pool kv;
    serve_scratch w;
    void *scratch_memory;
    uint64_t scratch_bytes;
    int64_t expert_rows;       /* R: rows of one batch of experts              */
    int Fp;
    float *inv_freq;           /* [hd/2]                                       */
    struct expert_place *place; /* [MoE layers * E], in place                  */
    size_t slot_bytes;
    expert_cache *cache;       /* NULL: no experts                             */
    const char **path;         /* [files]                                      */
    uint64_t dense_bytes, least_bytes; /* by the plan                         */
    bool open;                 /* serve_open is through                        */
    uint64_t tokens;
    double open_seconds, step_seconds;
};

/* weights.c */
moe_err serve_weights_begin(serve *s) MOE_MUST_CHECK; /* the layers, still without weights */
moe_err serve_weights_measure(const serve *s, uint64_t *bytes) MOE_MUST_CHECK;
moe_err serve_weights_load(serve *s) MOE_MUST_CHECK;
void serve_weights_close(serve *s);
/* Tokens whose queries are in latent form at one time: enough rows for a product per head, few enough for memory. */
enum { LATENT_TOKENS = 64 };

/* The rows that were read, first .. first + n, into the panels (N, cols), shared out over the threads; first is a multiple of PANEL. Rows that must be put
 * together are, a panel at a time, in the scratch of a worker (MOE_E_CONFIG where PANEL of them do not fit). MOE_E_DATA as model_rows. */
typedef struct pack_args {
    void *panels;
    const model_source *from;
    int64_t N, n;
} pack_args;
moe_err serve_pack(moe_stream *stream, const pack_args *a) MOE_MUST_CHECK;
/* TENSOR_HEADS: N rows of each head; from->first and n are multiples of it. */
moe_err serve_pack_heads(moe_stream *stream, const pack_args *a) MOE_MUST_CHECK;

/* load.c: the reads behind serve_weights_load */
typedef struct load_part {
    model_extent at;
    tensor_info info;
    void *to;
    bool damaged;
} load_part;
moe_err serve_load(serve *s, const load_part *part, int64_t n) MOE_MUST_CHECK;

/* kv.c */
uint64_t kv_pool_bytes(const serve_config *c, const model_spec *m);
moe_err kv_pool_open(kv_pool *p, const serve_config *c, const model_spec *m) MOE_MUST_CHECK;
void kv_pool_close(kv_pool *p);
/* Room for n more tokens: never fails, the pool holds every sequence at its longest. */
void kv_extend(kv_pool *p, int sequence, int64_t n);
/* The n tokens behind `length` are stored in every layer: full blocks become known. */
void kv_commit(kv_pool *p, int sequence, const int32_t *token, int n);
/* Takes full blocks of a known prefix; returns their tokens, at most n - 1. */
int64_t kv_reuse(kv_pool *p, int sequence, const int32_t *token, int64_t n);
/* States all invariants; for tests. */
moe_err kv_check_pool(const kv_pool *p) MOE_MUST_CHECK;

/* experts.c */
moe_err serve_experts_place(serve *s) MOE_MUST_CHECK;
expert_cache_config serve_cache_config(serve *s, uint64_t host_bytes);
/* x += the shared expert and the experts of one layer, chosen for xn. Tokens whose expert could not be read: their spans are dead, rc and
 * text say why. At least one span is not dead before. */
moe_err serve_experts(serve *s, const serve_layer *l, serve_span *span, int64_t T) MOE_MUST_CHECK;

/* layers.c */
void serve_add_bias(float *y, size_t ldy, const float *bias, int64_t rows, int n); /* NULL: nothing */
moe_err serve_product(serve *s, const weight *const *w, float *const *y, const size_t *ldy, int n, const float *x, size_t ldx, int64_t rows,
                      bool accumulate) MOE_MUST_CHECK;
moe_err serve_one_product(serve *s, const weight *w, float *y, size_t ldy, const float *x, size_t ldx, int64_t rows, bool accumulate) MOE_MUST_CHECK;
moe_err serve_norm(serve *s, float *y, const float *x, const float *gain, int64_t rows) MOE_MUST_CHECK;
moe_err serve_attention(serve *s, int layer, int64_t T) MOE_MUST_CHECK;
/* Page tables of the tokens in a layer: w.page, w.tables. */
void serve_find_pages(serve *s, int layer, int64_t T);
moe_err serve_dense_ffn(serve *s, const serve_layer *l, int64_t T) MOE_MUST_CHECK;

/* latent.c */
moe_err serve_latent_attention(serve *s, int layer, int64_t T) MOE_MUST_CHECK;

/* plan.c. The same lines measure (base NULL) and point. */
size_t serve_scratch_layout(serve *s, char *base);
/* What is left for experts of c.host_bytes. MOE_E_CONFIG when it does not fit. */
moe_err serve_plan(serve *s, uint64_t *experts) MOE_MUST_CHECK;

#endif
