/* Layouts and the tensor table: every tensor lies inside its section, none over another, each aligned; counts agree with the
 * table and with published models; sizes out of range are refused by name. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/matmul.h"
#include "models/spec.h"
#include "tests/models/make_spec.h"

static const char SIZES[] =
    "vocab_size=97 hidden_size=48 num_hidden_layers=3 num_attention_heads=4 num_key_value_heads=2 num_experts=6 "
    "num_experts_per_tok=2 intermediate_size=20 ";

static const char DENSE_SIZES[] =
    "vocab_size=97 hidden_size=48 num_hidden_layers=3 num_attention_heads=4 num_key_value_heads=2 intermediate_size=20 ";

static const struct {
    const char *type, *more;
} VARIANTS[] = {
    {"qwen3_moe", "moe_intermediate_size=20"},
    {"qwen3_moe", "moe_intermediate_size=16 tie_word_embeddings=true head_dim=18"},
    {"qwen3_moe", "moe_intermediate_size=33 mlp_only_layers=[1] head_dim=6"},
    {"qwen3_moe", "moe_intermediate_size=7 decoder_sparse_step=2 shared_expert_intermediate_size=19"},
    {"qwen3_moe", "moe_intermediate_size=7 first_k_dense_replace=1 shared_expert_intermediate_size=19 shared_expert_gate=true "
                  "use_correction_bias=true scoring_func=sigmoid n_group=3 topk_group=2"},
    {"qwen3_moe", "moe_intermediate_size=16 attention_bias=true head_dim=6"},
    {"olmoe", ""},
    {"olmoe", "clip_qkv=2.5 tie_word_embeddings=true num_key_value_heads=1"},
    {"olmoe", "first_k_dense_replace=2 moe_intermediate_size=11 use_correction_bias=true"},
    {"mixtral", "head_dim=10"},
    {"qwen2_moe", "moe_intermediate_size=7 shared_expert_intermediate_size=19 head_dim=6 mlp_only_layers=[2]"},
    {"glm4_moe", "moe_intermediate_size=7 n_shared_experts=3 head_dim=8 attention_bias=true use_qk_norm=true"},
    {"gpt_oss", "head_dim=12"},
    {"llama", ""},
    {"llama", "attention_bias=true head_dim=6 tie_word_embeddings=true"},
    {"qwen2", "num_key_value_heads=1 head_dim=10"},
    {"qwen3", "head_dim=14"},
};

static const char *const DENSE[] = {"llama", "qwen2", "qwen3"};

static void make_variant(model_spec *m, size_t i)
{
    char text[512];
    bool dense = false;
    for (size_t k = 0; k < sizeof DENSE / sizeof *DENSE; k++)
        dense = dense || strcmp(DENSE[k], VARIANTS[i].type) == 0;
    snprintf(text, sizeof text, "%s%s", dense ? DENSE_SIZES : SIZES, VARIANTS[i].more);
    cr_assert_eq(make_spec(m, VARIANTS[i].type, text), MOE_OK, "%s", moe_error_text());
}

static size_t section_floats(const model_spec *m, const tensor_info *t)
{
    dense_layout d;
    expert_layout x;
    embed_layout e;
    head_layout h;
    switch (t->kind) {
    case SECTION_EMBED:
        spec_embed_layout(m, &e);
        return e.floats;
    case SECTION_DENSE:
        spec_dense_layout(m, t->layer, &d);
        return d.floats;
    case SECTION_EXPERT:
        spec_expert_layout(m, &x);
        return x.floats;
    case SECTION_HEAD:
        spec_head_layout(m, &h);
        return h.floats;
    }
    return 0;
}

static bool same_section(const tensor_info *a, const tensor_info *b)
{
    return a->kind == b->kind && a->layer == b->layer && a->expert == b->expert;
}

static void check_table(const model_spec *m)
{
    tensor_info *t;
    int64_t n;
    cr_assert_eq(spec_tensors(m, &t, &n), MOE_OK);
    for (int64_t i = 0; i < n; i++) {
        cr_assert_eq(t[i].id, i);
        cr_assert_eq(t[i].offset % 16, 0, "%s at %zu", t[i].name, t[i].offset);
        cr_assert_eq(t[i].floats % 16, 0, "%s", t[i].name);
        cr_assert_leq(t[i].offset + t[i].floats, section_floats(m, &t[i]), "%s leaves its section", t[i].name);
        cr_assert_geq(t[i].floats, (size_t)(t[i].rows * t[i].cols));
        cr_assert_eq(t[i].panel_row % PANEL, 0);
        cr_assert_eq(t[i].decay, t[i].layout != TENSOR_VECTOR);
        cr_assert_eq(t[i].layout == TENSOR_VECTOR && t[i].init_value == 0.0f, strstr(t[i].name, "bias") != NULL || t[i].role == ROLE_SINKS, "%s", t[i].name);
        cr_assert_eq(t[i].state, strstr(t[i].name, "correction_bias") != NULL);
        for (int64_t j = i + 1; j < n; j++) {
            cr_assert_neq(strcmp(t[i].name, t[j].name), 0, "%s twice", t[i].name);
            if (same_section(&t[i], &t[j]))
                cr_assert(t[i].offset + t[i].floats <= t[j].offset || t[j].offset + t[j].floats <= t[i].offset, "%s over %s",
                          t[i].name, t[j].name);
        }
    }
    free(t);
}

/* The floats of the sections are those of their tensors: nothing is left without an owner. */
static void check_cover(const model_spec *m)
{
    tensor_info *t;
    int64_t n;
    size_t tensors = 0, sections = 0;
    cr_assert_eq(spec_tensors(m, &t, &n), MOE_OK);
    for (int64_t i = 0; i < n; i++) {
        tensors += t[i].floats;
        if (i == 0 || !same_section(&t[i - 1], &t[i]))
            sections += section_floats(m, &t[i]);
    }
    cr_assert_eq(tensors, sections);
    free(t);
}

static void check_counts(const model_spec *m)
{
    tensor_info *t;
    int64_t n, all = 0, experts = 0;
    cr_assert_eq(spec_tensors(m, &t, &n), MOE_OK);
    for (int64_t i = 0; i < n; i++) {
        all += t[i].state ? 0 : t[i].rows * t[i].cols;
        experts += t[i].kind == SECTION_EXPERT ? t[i].rows * t[i].cols : 0;
    }
    cr_assert_eq(all, spec_parameters(m));
    cr_assert_eq(experts, spec_expert_parameters(m));
    cr_assert_lt(spec_active_parameters(m), all + (m->tied ? (int64_t)m->V * m->D : 0));
    free(t);
}

static void check_expert_tensors(const model_spec *m)
{
    tensor_info *t, x[3];
    int64_t n;
    cr_assert_eq(spec_tensors(m, &t, &n), MOE_OK);
    for (int64_t i = 0; i < n; i++) {
        if (t[i].kind != SECTION_EXPERT || (i > 0 && same_section(&t[i - 1], &t[i])))
            continue;
        spec_expert_tensors(m, t[i].layer, t[i].expert, x);
        for (int k = 0; k < 3; k++) {
            cr_assert_str_eq(x[k].name, t[i + k].name);
            cr_assert_eq(x[k].id, t[i + k].id, "%s: %u, %u", x[k].name, x[k].id, t[i + k].id);
            cr_assert_eq(x[k].offset, t[i + k].offset);
            cr_assert_eq(x[k].init_std, t[i + k].init_std);
        }
    }
    free(t);
}

Test(spec, tables)
{
    for (size_t i = 0; i < sizeof VARIANTS / sizeof *VARIANTS; i++) {
        model_spec m;
        make_variant(&m, i);
        check_table(&m);
        check_cover(&m);
        check_counts(&m);
        check_expert_tensors(&m);
    }
}

Test(spec, one_matrix_for_what_is_multiplied_together)
{
    model_spec m;
    dense_layout d;
    expert_layout x;
    tensor_info *t;
    int64_t n;
    make_variant(&m, 2); /* H * hd = 24, Hkv * hd = 12, F = 33: each padded */
    spec_dense_layout(&m, 0, &d);
    spec_expert_layout(&m, &x);
    cr_assert_eq(spec_tensors(&m, &t, &n), MOE_OK);
    for (int64_t i = 0; i < n; i++) {
        if (strcmp(t[i].name, "model.layers.0.self_attn.k_proj.weight") == 0)
            cr_assert(t[i].panel_row == 32 && t[i].offset == (size_t)d.qkv + 32 * 48);
        if (strcmp(t[i].name, "model.layers.0.self_attn.v_proj.weight") == 0)
            cr_assert(t[i].panel_row == 48 && t[i].offset == (size_t)d.qkv + 48 * 48);
        if (strcmp(t[i].name, "model.layers.2.mlp.experts.5.up_proj.weight") == 0)
            cr_assert(t[i].panel_row == 48 && t[i].offset == (size_t)x.w1 + 48 * 48);
    }
    cr_assert_eq(spec_moe_layers(&m), 2);
    cr_assert(spec_moe_index(&m, 0) == 0 && spec_moe_index(&m, 1) == -1 && spec_moe_index(&m, 2) == 1);
    free(t);
}

/* What torch computes for theta 5e5, heads of 128: Llama 3.1's scaling of 8 over 8192 positions, and division by 2.5. */
Test(spec, rope_frequencies)
{
    static const struct {
        int i;
        float plain, llama3, linear;
    } want[] = {
        {0, 0x1p+0f, 0x1p+0f, 0x1.99999ap-2f},
        {1, 0x1.a11582p-1f, 0x1.a11582p-1f, 0x1.4daacep-2f},
        {20, 0x1.0f5386p-6f, 0x1.0f5386p-6f, 0x1.b21f3cp-8f},
        {28, 0x1.a4ee4p-9f, 0x1.a4ee4p-9f, 0x1.50be9ap-10f},
        {29, 0x1.56e5b8p-9f, 0x1.1bfa0cp-9f, 0x1.12516p-10f},
        {30, 0x1.175482p-9f, 0x1.67a23ap-10f, 0x1.beed9cp-11f},
        {34, 0x1.ec07d4p-11f, 0x1.765ba4p-13f, 0x1.899fdcp-12f},
        {36, 0x1.46831ap-11f, 0x1.46831ap-14f, 0x1.0535aep-12f},
        {40, 0x1.1f91fp-12f, 0x1.1f91fp-15f, 0x1.cc1cb4p-14f},
        {63, 0x1.4985fep-19f, 0x1.4985fep-22f, 0x1.079e64p-20f},
    };
    static const char *const pairs[] = {
        "rope_theta=500000", "rope_theta=500000 rope_type=llama3 rope_factor=8 rope_original_max_position_embeddings=8192",
        "rope_theta=500000 rope_type=linear rope_factor=2.5"};
    for (int kind = 0; kind < 3; kind++) {
        model_spec m;
        float got[64];
        cr_assert_eq(make_spec(&m, "llama", pairs[kind]), MOE_OK, "%s", moe_error_text());
        spec_rope_frequencies(&m, got);
        for (size_t k = 0; k < sizeof want / sizeof *want; k++) {
            const float w = kind == 0 ? want[k].plain : kind == 1 ? want[k].llama3 : want[k].linear;
            cr_assert(got[want[k].i] == w, "%s: %d: got %a, torch %a", pairs[kind], want[k].i, (double)got[want[k].i], (double)w);
        }
    }
}

/* What transformers computes for heads of 64: gpt-oss, DeepSeek-V2-Lite, both betas 1, and a factor of its own on cosines and sines. Torch's power in
 * fp32 is at times the float beside the nearest one, so one step is allowed. */
Test(spec, yarn_frequencies)
{
    enum { FREQUENCIES = 12 };
    static const int at[FREQUENCIES] = {0, 1, 5, 8, 9, 10, 12, 15, 17, 18, 22, 31};
    static const struct {
        const char *pairs;
        float scale, want[FREQUENCIES];
    } rules[] = {
        {"rope_theta=150000 rope_factor=32 rope_beta_fast=32 rope_beta_slow=1 rope_truncate=false rope_original_max_position_embeddings=4096",
         0x1.58b90cp+0f,
         {0x1p+0f, 0x1.60ca6ap-1f, 0x1.3e19fap-3f, 0x1.a04328p-5f, 0x1.03bbaap-5f, 0x1.3cc8dep-6f, 0x1.bd508p-8f, 0x1.13eefp-10f, 0x1.0f3372p-13f,
          0x1.415b8cp-15f, 0x1.21c258p-17f, 0x1.44a5a6p-22f}},
        {"rope_theta=10000 rope_factor=40 rope_mscale=0.707 rope_mscale_all_dim=0.707 rope_original_max_position_embeddings=4096", 1.0f,
         {0x1p+0f, 0x1.7ff222p-1f, 0x1.e5a846p-3f, 0x1.99999ap-4f, 0x1.33281ap-4f, 0x1.ccab84p-5f, 0x1.b86436p-6f, 0x1.111aeep-7f, 0x1.d2e0ccp-9f,
          0x1.26d42cp-9f, 0x1.74eea6p-13f, 0x1.bf749ep-19f}},
        {"rope_theta=50000 rope_factor=32 rope_beta_fast=1 rope_mscale=1 rope_mscale_all_dim=0.5 rope_original_max_position_embeddings=4096",
         0x1.25cf3ep+0f,
         {0x1p+0f, 0x1.6d1ce6p-1f, 0x1.79ac46p-3f, 0x1.11ea82p-4f, 0x1.86aa46p-5f, 0x1.16966ep-5f, 0x1.1b56c2p-6f, 0x1.9aff04p-8f, 0x1.a20170p-9f,
          0x1.2a159ep-9f, 0x1.3456b6p-16f, 0x1.d6892cp-21f}},
        {"rope_theta=100 rope_factor=4 rope_attention_factor=0.75 rope_original_max_position_embeddings=64", 0.75f,
         {0x1p+0f, 0x1.a7d02ap-1f, 0x1.84a84ap-2f, 0x1.a30ecp-3f, 0x1.522582p-3f, 0x1.0f659p-3f, 0x1.56c4cp-4f, 0x1.3ff84p-5f, 0x1.62b2fp-6f,
          0x1.33281ap-6f, 0x1.59742ap-7f, 0x1.7a6622p-9f}},
    };
    for (size_t r = 0; r < sizeof rules / sizeof *rules; r++) {
        model_spec m;
        float got[32], table[2 * 2 * 32];
        char pairs[256];
        snprintf(pairs, sizeof pairs, "head_dim=64 rope_type=yarn %s", rules[r].pairs);
        cr_assert_eq(make_spec(&m, "llama", pairs), MOE_OK, "%s", moe_error_text());
        spec_rope_frequencies(&m, got);
        for (int k = 0; k < FREQUENCIES; k++)
            cr_assert(fabsf(got[at[k]] - rules[r].want[k]) <= 0x1p-23f * rules[r].want[k], "%s: %d: got %a, transformers %a", pairs, at[k], (double)got[at[k]], (double)rules[r].want[k]);
        cr_assert(spec_rope_scale(&m) == rules[r].scale, "%s: scale %a, transformers %a", pairs, (double)spec_rope_scale(&m), (double)rules[r].scale);
        spec_rope_table(&m, 2, table);
        cr_assert(table[0] == rules[r].scale && table[2 * 32] == 0, "%s: cosine of position 0 is %a", pairs, (double)table[0]);
    }
}

Test(spec, published_models)
{
    model_spec m;
    cr_assert_eq(make_spec(&m, "olmoe", "intermediate_size=1024"), MOE_OK, "%s", moe_error_text()); /* OLMoE-1B-7B-0924 */
    cr_assert_eq(spec_parameters(&m), 6919161856);
    cr_assert_eq(make_spec(&m, "qwen3_moe", "num_hidden_layers=48 head_dim=128 norm_topk_prob=true rope_theta=1000000.0"), MOE_OK,
                 "%s", moe_error_text()); /* Qwen3-30B-A3B */
    cr_assert_eq(spec_parameters(&m), 30532122624);
    cr_assert_eq(make_spec(&m, "mixtral", ""), MOE_OK, "%s", moe_error_text()); /* Mixtral-8x7B-v0.1 */
    cr_assert_eq(spec_parameters(&m), 46702792704);
    cr_assert_eq(make_spec(&m, "qwen2_moe", ""), MOE_OK, "%s", moe_error_text()); /* Qwen1.5-MoE-A2.7B */
    cr_assert_eq(spec_parameters(&m), 14315784192);
    cr_assert_eq(make_spec(&m, "glm4_moe", "head_dim=128 attention_bias=true"), MOE_OK, "%s", moe_error_text()); /* GLM-4.5-Air */
    cr_assert_eq(spec_parameters(&m), 106852245504);
    cr_assert_eq(make_spec(&m, "gpt_oss", "num_hidden_layers=24 num_experts=32"), MOE_OK, "%s", moe_error_text()); /* gpt-oss-20b */
    cr_assert_eq(spec_parameters(&m), 20914757184);
    cr_assert_eq(make_spec(&m, "llama", "vocab_size=49152 hidden_size=576 intermediate_size=1536 num_hidden_layers=30 num_attention_heads=9 "
                                        "num_key_value_heads=3 tie_word_embeddings=true"),
                 MOE_OK, "%s", moe_error_text()); /* SmolLM2-135M */
    cr_assert_eq(spec_parameters(&m), 134515008);
    cr_assert_eq(make_spec(&m, "qwen2", "hidden_size=896 intermediate_size=4864 num_hidden_layers=24 num_attention_heads=14 "
                                        "num_key_value_heads=2 tie_word_embeddings=true"),
                 MOE_OK, "%s", moe_error_text()); /* Qwen2.5-0.5B */
    cr_assert_eq(spec_parameters(&m), 494032768);
    cr_assert_eq(make_spec(&m, "qwen3", "hidden_size=1024 intermediate_size=3072 num_hidden_layers=28 num_attention_heads=16 "
                                        "num_key_value_heads=8 tie_word_embeddings=true"),
                 MOE_OK, "%s", moe_error_text()); /* Qwen3-0.6B */
    cr_assert_eq(spec_parameters(&m), 596049920);
}

Test(spec, refuses_sizes_by_name)
{
    static const struct {
        const char *pairs, *key;
    } cases[] = {
        {"hidden_size=0", "hidden_size"},
        {"hidden_size=9223372036854775807", "hidden_size"},
        {"hidden_size=-48", "hidden_size"},
        {"vocab_size=0", "vocab_size"},
        {"vocab_size=2147483648", "vocab_size"},
        {"num_hidden_layers=0", "num_hidden_layers"},
        {"num_hidden_layers=1025", "num_hidden_layers"},
        {"num_attention_heads=0", "num_attention_heads"},
        {"num_attention_heads=3", "num_attention_heads"},
        {"num_key_value_heads=3", "num_attention_heads"},
        {"num_key_value_heads=8", "num_key_value_heads"},
        {"head_dim=7", "head_dim"},
        {"head_dim=0", "head_dim"},
        {"head_dim=1048576", "head_dim"},
        {"num_experts=-1", "num_experts"},
        {"num_experts_per_tok=7", "num_experts_per_tok"},
        {"num_experts_per_tok=0", "num_experts_per_tok"},
        {"moe_intermediate_size=0", "moe_intermediate_size"},
        {"intermediate_size=0 mlp_only_layers=[0]", "intermediate_size"},
        {"mlp_only_layers=[3]", "mlp_only_layers"},
        {"mlp_only_layers=[-1]", "mlp_only_layers"},
        {"decoder_sparse_step=0", "decoder_sparse_step"},
        {"first_k_dense_replace=4", "first_k_dense_replace"},
        {"rms_norm_eps=-1", "rms_norm_eps"},
        {"rope_theta=0", "rope_theta"},
        {"initializer_range=-0.1", "initializer_range"},
        {"n_group=4", "n_group"},
        {"n_group=6", "n_group"},
        {"n_group=3 topk_group=4", "topk_group"},
        {"n_group=3 topk_group=1 num_experts_per_tok=3", "num_experts_per_tok"},
        {"scoring_func=sigmoid topk_before_softmax=true", "topk_before_softmax"},
        {"routed_scaling_factor=0", "routed_scaling_factor"},
        {"shared_expert_gate=true", "shared_expert_gate"},
        {"shared_expert_intermediate_size=-1", "shared_expert_intermediate_size"},
        {"num_experts=65536 num_hidden_layers=1024", "num_experts"},
        {"max_position_embeddings=0", "max_position_embeddings"},
        {"router_aux_loss_coef=-1", "router_aux_loss_coef"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[512];
        model_spec m;
        snprintf(text, sizeof text, "%smoe_intermediate_size=20 %s", SIZES, cases[i].pairs);
        cr_assert_eq(make_spec(&m, "qwen3_moe", text), MOE_E_CONFIG, "%s was taken", cases[i].pairs);
        cr_assert(strncmp(moe_error_text(), cases[i].key, strlen(cases[i].key)) == 0, "%s: %s", cases[i].pairs, moe_error_text());
    }
}
