/* What a model is: sizes, variants, and the table of its tensors. Data for the engine; knows no files (formats/ does) and no
 * numbers. One small file per family (families/) fills it from a Hugging Face config; names are those of config.json. */
#ifndef MOE_MODELS_SPEC_H
#define MOE_MODELS_SPEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/error.h"
#include "kernels/router.h"

typedef enum qk_norm { QK_NORM_NONE, QK_NORM_HEAD /* Qwen3 */, QK_NORM_FULL /* OLMoE: the whole projection */ } qk_norm;

enum { MODEL_MAX_LAYERS = 1024 };

/* How the inverse frequencies of the rotary embedding follow from rope_theta; names and formulas of transformers' modeling_rope_utils. */
typedef enum rope_type { ROPE_DEFAULT, ROPE_LINEAR, ROPE_LLAMA3, ROPE_YARN, ROPE_TYPES } rope_type;
extern const char *const rope_type_names[ROPE_TYPES]; /* as in config.json */

typedef struct rope_scaling {
    rope_type type;
    double factor;                            /* linear, llama3, yarn; 1 by default           */
    double low_freq_factor, high_freq_factor; /* llama3                                       */
    int original_positions;                   /* llama3, yarn: original_max_position_embeddings */
    double beta_fast, beta_slow;              /* yarn                                         */
    bool truncate;                            /* yarn: the range of frequencies that are mixed begins and ends at whole ones */
    double attention_factor;                  /* yarn: on cos and sin; 0: what factor, mscale and mscale_all_dim give        */
    double mscale, mscale_all_dim;            /* yarn; 0: none                                */
} rope_scaling;

/* How a family's checkpoints name the tensors of an MoE block. */
typedef enum tensor_naming {
    NAMES_QWEN,    /* mlp.gate, mlp.experts.N.gate_proj, mlp.shared_expert.gate_proj          */
    NAMES_DEEPSEEK, /* as Qwen, mlp.shared_experts.gate_proj; layers behind the last one (multi-token prediction) are not read */
    NAMES_MIXTRAL, /* block_sparse_moe.gate, block_sparse_moe.experts.N.w1 (gate), w3 (up), w2 (down) */
    NAMES_GPT_OSS, /* mlp.router, mlp.experts.gate_up_proj (rows of gate and up in turn), mlp.experts.down_proj: all experts in one tensor */
} tensor_naming;

typedef struct model_spec {
    char model_type[32];            /* "qwen3_moe", "olmoe", ...                       */
    int D;                          /* hidden_size                                     */
    int L;                          /* num_hidden_layers                               */
    int V;                          /* vocab_size                                      */
    int H, Hkv, hd;                 /* heads, kv heads, head_dim                       */
    int rotary;                     /* floats of a head that the rotary embedding turns: hd, or its first ones */
    bool rope_interleave;           /* pairs (2i, 2i+1) turn, not (i, i + rotary/2)    */
    /* Latent attention (MLA, DeepSeek): kv_lora_rank > 0. hd is qk_nope_head_dim + qk_rope_head_dim (rotary), of which the last turn. What
     * is kept of a position is one key for all heads, kv_lora_rank + rotary numbers; the first kv_lora_rank are also its value. Hkv is 1. */
    int kv_lora_rank, q_lora_rank;  /* q_lora_rank 0: queries in one product           */
    int v_head_dim;                 /* of a head's output                              */
    int F;                          /* moe_intermediate_size                           */
    int E, K;                       /* num_experts, num_experts_per_tok; 0 in a dense model */
    int F_dense;                    /* intermediate_size of dense layers               */
    int F_shared;                   /* width of the shared expert, 0: none             */
    bool shared_gate;               /* sigmoid(x . gate) on the shared expert          */
    bool moe_layer[MODEL_MAX_LAYERS];
    tensor_naming names;
    qk_norm qk_norm;
    bool qkv_bias, o_bias;          /* biases of the attention projections             */
    bool sinks;                     /* a score for nothing in the softmax of each head (gpt-oss)               */
    int window;                     /* sliding_window of the layers below: newest positions a token sees       */
    bool windowed[MODEL_MAX_LAYERS]; /* layer_types: the layer's attention sees the window only                */
    bool tied;                      /* tie_word_embeddings                             */
    bool correction_bias;           /* router has a correction bias (aux-loss-free)    */
    float rms_eps;
    double rope_theta;
    rope_scaling rope;
    int max_positions;
    float clip_qkv;                 /* OLMoE; 0: none                                  */
    router_rule router;
    bool logit_bias;                /* added to the router's logits (gpt-oss)          */
    bool expert_bias;               /* biases of gate, up and down of each expert (gpt-oss) */
    float swiglu_alpha, swiglu_limit; /* of clamped SwiGLU in experts (kernels/swiglu.h); limit 0: the plain one */
    double init_std;                /* initializer_range                               */
    double aux_coef;                /* router_aux_loss_coef                            */
} model_spec;

/* Where a tensor lives: section kind, and offset in floats inside the section. Panels as in kernels/matmul.h. */
typedef enum section_kind { SECTION_EMBED, SECTION_DENSE, SECTION_EXPERT, SECTION_HEAD } section_kind;

/* TENSOR_HEADS: [H * n, cols], n rows for each head: in memory, and in packed folders, panels (n, cols) head after head. */
typedef enum tensor_layout { TENSOR_VECTOR, TENSOR_ROWS, TENSOR_PANELS, TENSOR_HEADS } tensor_layout;

/* What a tensor is, whatever its family calls it. */
typedef enum tensor_role {
    ROLE_EMBED, ROLE_ATTN_NORM, ROLE_Q, ROLE_K, ROLE_V, ROLE_Q_BIAS, ROLE_K_BIAS, ROLE_V_BIAS, ROLE_Q_NORM, ROLE_K_NORM, ROLE_O, ROLE_O_BIAS,
    ROLE_Q_A, ROLE_Q_A_BIAS, ROLE_Q_A_NORM, ROLE_Q_B,   /* of latent attention: queries in two products (else ROLE_Q) */
    ROLE_KV_A, ROLE_KV_A_BIAS, ROLE_KV_A_NORM,          /* x -> latent and shared rotary key           */
    ROLE_K_B, ROLE_V_B,                                 /* of each head: [kv_lora_rank, nope], [v_head_dim, kv_lora_rank] */
    ROLE_SINKS, ROLE_FFN_NORM, ROLE_ROUTER, ROLE_ROUTER_BIAS, ROLE_LOGIT_BIAS,
    ROLE_GATE_BIAS, ROLE_UP_BIAS, ROLE_DOWN_BIAS,       /* of all experts of a layer, [E, F], [E, F], [E, D], as vectors */
    ROLE_GATE, ROLE_UP, ROLE_DOWN,                      /* of a dense layer, or of an expert (kind SECTION_EXPERT) */
    ROLE_SHARED_GATE, ROLE_SHARED_UP, ROLE_SHARED_DOWN, /* of the shared expert                */
    ROLE_SHARED_SWITCH,                                 /* its sigmoid gate, [1, D]            */
    ROLE_FINAL_NORM, ROLE_LM_HEAD,
} tensor_role;

typedef struct tensor_info {
    char name[96];          /* Hugging Face name, e.g. model.layers.3.mlp.experts.17.gate_proj.weight */
    tensor_role role;
    section_kind kind;
    int layer, expert;      /* -1 where it does not apply                               */
    tensor_layout layout;
    int64_t rows, cols;     /* logical shape [rows, cols]; a vector has rows 1          */
    size_t offset;          /* floats, from the beginning of the section: of this tensor's own first float, also inside a
                               shared panel matrix (q, k, v; gate, up), so that it can be filled as a matrix of its own */
    size_t floats;          /* padded length inside the section                         */
    int64_t panel_row;      /* TENSOR_PANELS: row of the panel matrix where it begins (a multiple of PANEL): q, k, v of one
                               projection, gate and up of one expert are one matrix     */
    bool decay;             /* weight decay applies                                     */
    bool state;             /* not a parameter: no gradient, no moments (the router's correction bias) */
    float init_value;       /* 1 for gains, 0 for biases; used when init_std == 0       */
    double init_std;
    uint32_t id;            /* number in the whole model's table: key of its random numbers */
} tensor_info;

/* Layouts the decoder uses; offsets in floats inside the section, -1 when absent. Each matrix begins on a PANEL boundary. */
typedef struct dense_layout {
    int64_t attn_norm;      /* [D]                                                      */
    int64_t qkv;            /* panels (pad(H*hd) + 2*pad(Hkv*hd), D): q | k | v, each padded to PANEL */
    int64_t qkv_bias;       /* [pad(H*hd) + 2*pad(Hkv*hd)] beside the rows of qkv       */
    int64_t q_norm, k_norm; /* [hd] or [H*hd], [Hkv*hd]                                 */
    int64_t q_a, q_a_bias, q_a_norm, q_b;     /* latent attention instead of qkv: panels (q_lora_rank, D), (H*hd, q_lora_rank or D) */
    int64_t kv_a, kv_a_bias, kv_a_norm;       /* panels (kv_lora_rank + rotary, D)      */
    int64_t k_b, v_b;       /* panels of each head: (kv_lora_rank, nope), (v_head_dim, kv_lora_rank) */
    int64_t o;              /* panels (D, H*hd, or H*v_head_dim)                        */
    int64_t o_bias;         /* [D]                                                      */
    int64_t ffn_norm;       /* [D]                                                      */
    int64_t router;         /* panels (E, D), MoE layers                                */
    int64_t router_bias;    /* [E] correction bias: state, not trained by gradient      */
    int64_t sinks, logit_bias;             /* [H], [E]                                  */
    int64_t gate_bias, up_bias, down_bias; /* of the experts: [E, F], [E, F], [E, D]    */
    int64_t shared_w1, shared_w2, shared_gate; /* panels (2*pad(F_shared), D), (D, F_shared), (1, D) */
    int64_t ffn_w1, ffn_w2; /* dense layers: panels (2*pad(F_dense), D), (D, F_dense)   */
    size_t floats;          /* of the section                                           */
} dense_layout;

typedef struct expert_layout {
    int64_t w1;             /* panels (2*pad(F), D): gate rows, pad, up rows, pad       */
    int64_t w2;             /* panels (D, F)                                            */
    size_t floats;
} expert_layout;

typedef struct embed_layout {
    int64_t table;          /* rows [V, D], or panels (V, D) when tied                  */
    size_t floats;
} embed_layout;

typedef struct head_layout {
    int64_t norm;           /* [D]                                                      */
    int64_t lm_head;        /* panels (V, D), or -1 when tied                           */
    size_t floats;
} head_layout;

/* Numbers of a head's query that do not turn, and of its output. */
static inline int spec_nope(const model_spec *m) { return m->hd - m->rotary; }
static inline int spec_value(const model_spec *m) { return m->kv_lora_rank > 0 ? m->v_head_dim : m->hd; }

/* What a layer keeps of a position: `heads` keys of `key` numbers; value 0: as many values, else a value is the first ones of its key. */
typedef struct kv_shape {
    int heads, key, value;
} kv_shape;
kv_shape spec_kv(const model_spec *m);
int spec_kv_numbers(const model_spec *m);
/* What q.k is multiplied with before the softmax. */
float spec_attention_scale(const model_spec *m);

void spec_dense_layout(const model_spec *m, int layer, dense_layout *out);
void spec_expert_layout(const model_spec *m, expert_layout *out);
void spec_embed_layout(const model_spec *m, embed_layout *out);
void spec_head_layout(const model_spec *m, head_layout *out);

/* MoE layers, and the i-th one's number (and back: -1 for a dense layer). */
int spec_moe_layers(const model_spec *m);
int spec_moe_index(const model_spec *m, int layer);

/* All parameters; those of experts; those a token uses in a matrix product (no embedding rows, no norms). */
int64_t spec_parameters(const model_spec *m);
int64_t spec_expert_parameters(const model_spec *m);
int64_t spec_active_parameters(const model_spec *m);

/* Every size positive, divisible where it must be, products within range. MOE_E_CONFIG names the key and what was expected. */
moe_err spec_validate(const model_spec *m) MOE_MUST_CHECK;

/* The whole table, malloc'ed (free it): embedding, layers in order (dense part, then experts), head. Also the tensors of one expert. */
moe_err spec_tensors(const model_spec *m, tensor_info **out, int64_t *n) MOE_MUST_CHECK;
/* The three tensors (gate, up, down) of one expert, without building the table. */
void spec_expert_tensors(const model_spec *m, int layer, int expert, tensor_info out[3]);

/* out[i], i < rotary/2: radians per position of the pair (i, i + rotary/2), by rope_theta and the scaling rule; for rope_table. Rounded to
 * fp32 after every operation of transformers' _compute_..._rope_parameters. And the table of positions 0 .. S-1 made of them, [2, S, rotary/2]. */
void spec_rope_frequencies(const model_spec *m, float *out);
/* What cos and sin are multiplied with: 1 but for yarn. */
float spec_rope_scale(const model_spec *m);
/* 0.1 mscale ln(factor) + 1, of yarn; 1 for a factor <= 1. */
double spec_yarn_mscale(double factor, double mscale);
void spec_rope_table(const model_spec *m, int S, float *table);

#endif
