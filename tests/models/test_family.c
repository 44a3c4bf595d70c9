/* Families: every default parses and builds, the rules of each class (which layers have experts, what null means), and what would
 * change numbers but is not computed is refused by name. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "models/family.h"
#include "tests/models/make_spec.h"

Test(family, defaults_build)
{
    for (int i = 0; model_family_at(i) != NULL; i++) {
        const model_family *f = model_family_at(i);
        model_spec m;
        cr_assert_eq(model_family_find(f->model_type), f);
        for (int k = 0; k < f->nkeys; k++)
            for (int j = 0; j < k; j++)
                cr_assert_neq(strcmp(f->keys[k].name, f->keys[j].name), 0, "%s twice", f->keys[k].name);
        if (strstr(f->architecture, "Deepseek") != NULL)
            continue; /* below */
        const bool glm = strcmp(f->model_type, "glm4_moe") == 0; /* its class's own heads are 42 wide, of which no half can turn in pairs */
        cr_assert_eq(make_spec(&m, f->model_type, glm ? "head_dim=128" : ""), MOE_OK, "%s: %s", f->model_type, moe_error_text());
        cr_assert_str_eq(m.model_type, f->model_type);
        cr_assert_eq(spec_moe_layers(&m), m.E > 0 ? m.L - glm : 0);
        cr_assert((m.F_shared > 0) == (glm || strcmp(m.model_type, "qwen2_moe") == 0));
        cr_assert(m.rotary == (glm ? 64 : m.hd));
        const bool oss = strcmp(f->model_type, "gpt_oss") == 0;
        cr_assert(m.correction_bias == glm && m.router.groups == 1 && m.router.scale == 1.0f && m.router.topk_first == oss);
        cr_assert(oss ? m.rope.type == ROPE_YARN && m.rope.factor == 32.0 : m.rope.type == ROPE_DEFAULT && m.rope.factor == 1.0);
        cr_assert((f->served_only != NULL) == oss);
    }
    cr_assert_null(model_family_find("gpt2"));
    cr_assert_null(model_family_at(-1));
}

Test(family, qwen3_moe_defaults)
{
    model_spec m;
    cr_assert_eq(make_spec(&m, "qwen3_moe", ""), MOE_OK);
    cr_assert(m.D == 2048 && m.L == 24 && m.V == 151936 && m.H == 32 && m.Hkv == 4 && m.hd == 64);
    cr_assert(m.F == 768 && m.E == 128 && m.K == 8 && m.F_dense == 6144 && m.max_positions == 32768);
    cr_assert(m.qk_norm == QK_NORM_HEAD && !m.tied && !m.router.normalize && m.rms_eps == 1e-6f && m.rope_theta == 10000.0);
    cr_assert(m.init_std == 0.02 && m.aux_coef == 0.001 && m.clip_qkv == 0);
}

Test(family, olmoe_defaults)
{
    model_spec m;
    cr_assert_eq(make_spec(&m, "olmoe", ""), MOE_OK);
    cr_assert(m.D == 2048 && m.L == 16 && m.V == 50304 && m.H == 16 && m.Hkv == 16 && m.hd == 128);
    cr_assert(m.F == 2048 && m.E == 64 && m.K == 8 && m.max_positions == 4096);
    cr_assert(m.qk_norm == QK_NORM_FULL && !m.tied && !m.router.normalize && m.rms_eps == 1e-5f && m.rope_theta == 10000.0);
    cr_assert(m.init_std == 0.02 && m.aux_coef == 0.01 && m.clip_qkv == 0);
    cr_assert_eq(make_spec(&m, "olmoe", "clip_qkv=8.0"), MOE_OK);
    cr_assert_eq(m.clip_qkv, 8.0f);
}

Test(family, dense_models)
{
    model_spec m;
    cr_assert_eq(make_spec(&m, "llama", ""), MOE_OK, "%s", moe_error_text());
    cr_assert(m.D == 4096 && m.L == 32 && m.V == 32000 && m.Hkv == 32 && m.hd == 128 && m.F_dense == 11008 && m.E == 0 && m.K == 0);
    cr_assert(m.qk_norm == QK_NORM_NONE && !m.qkv_bias && !m.o_bias);
    cr_assert_eq(make_spec(&m, "llama", "attention_bias=true"), MOE_OK);
    cr_assert(m.qkv_bias && m.o_bias);
    cr_assert_eq(make_spec(&m, "qwen2", ""), MOE_OK);
    cr_assert(m.qkv_bias && !m.o_bias && m.qk_norm == QK_NORM_NONE);
    cr_assert_eq(make_spec(&m, "qwen3", ""), MOE_OK);
    cr_assert(!m.qkv_bias && m.hd == 128 && m.qk_norm == QK_NORM_HEAD && m.F_dense == 22016);
}

Test(family, mixtral_and_qwen2_moe)
{
    model_spec m;
    cr_assert_eq(make_spec(&m, "mixtral", ""), MOE_OK, "%s", moe_error_text());
    cr_assert(m.E == 8 && m.K == 2 && m.F == 14336 && m.Hkv == 8 && m.rope_theta == 1e6 && m.router.normalize && m.rms_eps == 1e-5f);
    cr_assert(m.names == NAMES_MIXTRAL && m.qk_norm == QK_NORM_NONE);
    cr_assert_eq(make_spec(&m, "qwen2_moe", ""), MOE_OK, "%s", moe_error_text());
    cr_assert(m.E == 60 && m.K == 4 && m.F == 1408 && m.F_shared == 5632 && m.shared_gate && m.qkv_bias && !m.o_bias);
    cr_assert_eq(make_spec(&m, "qwen2_moe", "qkv_bias=false mlp_only_layers=[0,2]"), MOE_OK);
    cr_assert(!m.qkv_bias && !m.moe_layer[0] && m.moe_layer[1] && !m.moe_layer[2]);
}

Test(family, glm4_moe)
{
    model_spec m;
    cr_assert_eq(make_spec(&m, "glm4_moe", "head_dim=128 attention_bias=true use_qk_norm=true n_shared_experts=2 routed_scaling_factor=2.5"),
                 MOE_OK, "%s", moe_error_text());
    cr_assert(m.rotary == 64 && m.qkv_bias && !m.o_bias && m.qk_norm == QK_NORM_HEAD && m.F_shared == 2816 && !m.shared_gate);
    cr_assert(m.router.score == ROUTER_SIGMOID && m.router.scale == 2.5f && m.router.normalize && !m.moe_layer[0] && m.moe_layer[1]);
}

Test(family, gpt_oss)
{
    model_spec m;
    cr_assert_eq(make_spec(&m, "gpt_oss", ""), MOE_OK, "%s", moe_error_text());
    cr_assert(m.D == 2880 && m.F == 2880 && m.hd == 64 && m.H == 64 && m.Hkv == 8 && m.E == 128 && m.K == 4 && m.qkv_bias && m.o_bias);
    cr_assert(m.sinks && m.logit_bias && m.expert_bias && m.swiglu_alpha == 1.702f && m.swiglu_limit == 7.0f && m.names == NAMES_GPT_OSS);
    cr_assert(m.window == 128 && m.windowed[0] && !m.windowed[1] && m.windowed[34] && !m.windowed[35]);
    cr_assert(!m.rope.truncate && m.rope.original_positions == 4096 && m.rope.beta_fast == 32 && m.rope_theta == 150000.0);
    cr_assert_eq(make_spec(&m, "gpt_oss", "num_hidden_layers=4 sliding_attention_layers=[1,2] rope_type=default swiglu_limit=3.5"), MOE_OK);
    cr_assert(!m.windowed[0] && m.windowed[1] && m.windowed[2] && !m.windowed[3] && m.rope.type == ROPE_DEFAULT && m.swiglu_limit == 3.5f);
    cr_assert_eq(make_spec(&m, "gpt_oss", "num_hidden_layers=2 sliding_attention_layers=[] sliding_window=null"), MOE_OK, "%s", moe_error_text());
    cr_assert(!m.windowed[0] && !m.windowed[1]);
}

Test(family, deepseek)
{
    static const char *const v3[] = {"deepseek_v3", "kimi_k2"};
    model_spec m;
    for (int i = 0; i < 2; i++) {
        cr_assert_eq(make_spec(&m, v3[i], ""), MOE_OK, "%s", moe_error_text());
        cr_assert_str_eq(m.model_type, v3[i]);
        cr_assert(m.hd == 192 && m.rotary == 64 && m.v_head_dim == 128 && m.kv_lora_rank == 512 && m.q_lora_rank == 1536 && m.Hkv == 1 && m.H == 128);
        cr_assert(m.router.score == ROUTER_SIGMOID && m.router.groups == 8 && m.router.groups_used == 4 && !m.router.group_best && m.correction_bias);
        cr_assert(m.rope_interleave && !m.moe_layer[2] && m.moe_layer[3] && m.F_shared == 2048 && m.router.scale == 2.5f && m.router.normalize);
        cr_assert(spec_kv_numbers(&m) == 576 && model_family_find(v3[i])->served_only != NULL);
    }
    cr_assert_eq(make_spec(&m, "deepseek_v2", "num_experts_per_tok=6 q_lora_rank=null n_group=8 topk_group=3"), MOE_OK, "%s", moe_error_text());
    cr_assert(m.q_lora_rank == 0 && m.router.groups == 1 && m.rope_interleave && !m.correction_bias && m.moe_layer[0] && m.F_shared == 2814);
    cr_assert_eq(make_spec(&m, "deepseek_v2", "num_experts_per_tok=6 topk_method=group_limited_greedy n_group=8 topk_group=3"), MOE_OK);
    cr_assert(m.router.groups == 8 && m.router.groups_used == 3 && m.router.group_best && m.router.score == ROUTER_SOFTMAX && !m.router.normalize);
}

static const struct {
    const char *type, *pairs, *sentence;
} wrong_latent[] = {
    {"deepseek_v3", "kv_lora_rank=0", "kv_lora_rank is 0"},
    {"deepseek_v3", "kv_lora_rank=1000", "kv_lora_rank is 1000: expected 1 to 960"},
    {"deepseek_v3", "qk_rope_head_dim=7", "qk_rope_head_dim is 7"},
    {"deepseek_v3", "qk_nope_head_dim=0", "qk_nope_head_dim 0, "},
    {"deepseek_v3", "qk_rope_head_dim=2147483646", "qk_rope_head_dim 2147483646: expected numbers from 1 to 2^20"},
    {"deepseek_v3", "qk_nope_head_dim=1048576", "qk_nope_head_dim + qk_rope_head_dim is 1048640"},
    {"deepseek_v3", "num_attention_heads=1048576 num_key_value_heads=1048576", "(qk_nope_head_dim + qk_rope_head_dim) x num_attention_heads is 201326592"},
    {"deepseek_v3", "v_head_dim=0", "v_head_dim is 0"},
    {"deepseek_v3", "q_lora_rank=-1", "q_lora_rank is -1"},
    {"deepseek_v3", "num_key_value_heads=8", "num_key_value_heads is 8: expected num_attention_heads (128)"},
    {"deepseek_v3", "head_dim=128", "head_dim is 128: expected qk_rope_head_dim (64)"},
    {"deepseek_v3", "qk_head_dim=128", "qk_head_dim is 128"},
    {"deepseek_v3", "moe_layer_freq=2", "moe_layer_freq is 2"},
    {"deepseek_v3", "scoring_func=softmax", "scoring_func is \"softmax\""},
    {"deepseek_v3", "topk_method=greedy", "topk_method is \"greedy\""},
    {"deepseek_v2", "num_experts_per_tok=6 scoring_func=sigmoid", "scoring_func is \"sigmoid\""},
    {"deepseek_v2", "num_experts_per_tok=6 topk_method=noaux_tc", "topk_method is \"noaux_tc\""},
    {"deepseek_v2", "num_experts_per_tok=6 norm_topk_prob=true", "norm_topk_prob is true"},
};

Test(family, what_deepseek_does_not_compute_is_named)
{
    model_spec m;
    for (size_t i = 0; i < sizeof wrong_latent / sizeof *wrong_latent; i++) {
        cr_assert_eq(make_spec(&m, wrong_latent[i].type, wrong_latent[i].pairs), MOE_E_CONFIG, "%s", wrong_latent[i].pairs);
        cr_assert(strstr(moe_error_text(), wrong_latent[i].sentence) != NULL, "%s: %s", wrong_latent[i].pairs, moe_error_text());
    }
}

static void check_layers(const char *pairs, const char *expected)
{
    model_spec m;
    char got[16] = "", text[256];
    snprintf(text, sizeof text, "num_hidden_layers=6 %s", pairs);
    cr_assert_eq(make_spec(&m, "qwen3_moe", text), MOE_OK, "%s: %s", pairs, moe_error_text());
    for (int l = 0; l < m.L; l++)
        strcat(got, m.moe_layer[l] ? "x" : "-");
    cr_assert_str_eq(got, expected, "%s: %s, expected %s", pairs, got, expected);
}

Test(family, layers_with_experts)
{
    check_layers("", "xxxxxx");
    check_layers("decoder_sparse_step=2", "-x-x-x");
    check_layers("decoder_sparse_step=4", "---x--");
    check_layers("decoder_sparse_step=7", "------");
    check_layers("mlp_only_layers=[0,5]", "-xxxx-");
    check_layers("mlp_only_layers=null", "xxxxxx");
    check_layers("mlp_only_layers=[1] decoder_sparse_step=2", "---x-x");
    check_layers("first_k_dense_replace=2", "--xxxx");
    check_layers("first_k_dense_replace=2 decoder_sparse_step=3", "--x--x");
    check_layers("num_experts=0", "------");
}

Test(family, router_variants)
{
    model_spec m;
    cr_assert_eq(make_spec(&m, "qwen3_moe",
                           "scoring_func=sigmoid use_correction_bias=true n_group=8 topk_group=4 routed_scaling_factor=2.5 "
                           "norm_topk_prob=true shared_expert_intermediate_size=2048 shared_expert_gate=true"),
                 MOE_OK, "%s", moe_error_text());
    cr_assert(m.router.score == ROUTER_SIGMOID && m.correction_bias && m.router.groups == 8 && m.router.groups_used == 4);
    cr_assert(m.router.scale == 2.5f && m.router.normalize && m.F_shared == 2048 && m.shared_gate);
    cr_assert_eq(make_spec(&m, "qwen3_moe", "topk_before_softmax=true n_group=null topk_group=null"), MOE_OK);
    cr_assert(m.router.topk_first && m.router.groups == 1);
}

Test(family, refuses_by_name)
{
    static const struct {
        const char *type, *pairs, *key;
    } cases[] = {
        {"qwen3_moe", "hidden_act=gelu", "hidden_act is \"gelu\""},
        {"llama", "mlp_bias=true", "mlp_bias is true"},
        {"llama", "rope_type=longrope", "rope_type is \"longrope\""},
        {"llama", "rope_type=yarn rope_beta_slow=40", "rope_beta_fast is 32"},
        {"llama", "rope_type=yarn rope_beta_slow=-1", "rope_beta_slow is -1"},
        {"llama", "rope_type=yarn rope_theta=1", "rope_theta is 1 with rope_type yarn"},
        {"llama", "rope_type=yarn rope_attention_factor=0", "rope_attention_factor is 0"},
        {"llama", "rope_type=yarn rope_attention_factor=1e-46", "rope_attention_factor is 1e-46"},
        {"llama", "rope_type=yarn rope_attention_factor=1e300", "rope_attention_factor is 1e+300"},
        {"llama", "rope_type=yarn rope_factor=8 rope_mscale=-9 rope_mscale_all_dim=1", "rope_mscale -9"},
        {"llama", "rope_type=yarn rope_original_max_position_embeddings=0", "rope_original_max_position_embeddings is 0"},
        {"llama", "rope_type=linear rope_factor=0.5", "rope_factor is 0.5"},
        {"llama", "rope_factor=8", "rope_factor is 8 with rope_type default"},
        {"llama", "rope_type=llama3 rope_factor=8 rope_low_freq_factor=4", "rope_high_freq_factor is 4"},
        {"llama", "rope_type=llama3 rope_factor=8 rope_low_freq_factor=0", "rope_low_freq_factor is 0"},
        {"llama", "rope_type=llama3 rope_original_max_position_embeddings=0", "rope_original_max_position_embeddings is 0"},
        {"gpt_oss", "sliding_window=0", "sliding_window is 0"},
        {"gpt_oss", "sliding_attention_layers=[36]", "names layer 36"},
        {"gpt_oss", "swiglu_limit=0", "swiglu_limit is 0"},
        {"gpt_oss", "swiglu_limit=1e30", "swiglu_limit is 1e+30"},
        {"gpt_oss", "swiglu_alpha=1e31", "swiglu_alpha is 1e+31"},
        {"gpt_oss", "num_experts=0", "num_experts is 0"},
        {"gpt_oss", "rope_factor=8", "rope_factor is given without rope_type"},
        {"qwen2", "use_sliding_window=true", "use_sliding_window is true"},
        {"mixtral", "sliding_window=4096", "sliding_window is 4096"},
        {"mixtral", "router_jitter_noise=0.1", "router_jitter_noise is 0.1"},
        {"glm4_moe", "n_shared_experts=0", "n_shared_experts is 0"},
        {"glm4_moe", "partial_rotary_factor=1.5", "partial_rotary_factor is 1.5"},
        {"glm4_moe", "partial_rotary_factor=0.08", "partial_rotary_factor makes 3 of"},
        {"qwen2_moe", "shared_expert_intermediate_size=0", "shared_expert_intermediate_size is 0"},
        {"qwen3_moe", "attention_dropout=0.1", "attention_dropout is 0.1"},
        {"qwen3_moe", "use_sliding_window=true", "use_sliding_window is true"},
        {"qwen3_moe", "scoring_func=tanh", "scoring_func is \"tanh\""},
        {"qwen3_moe", "hidden_size=null", "hidden_size is null"},
        {"qwen3_moe", "hidden_act=null", "hidden_act is null"},
        {"qwen3_moe", "num_key_value_heads=null", "num_key_value_heads is null"},
        {"olmoe", "clip_qkv=0", "clip_qkv is 0"},
        {"olmoe", "clip_qkv=-1", "clip_qkv is -1"},
        {"olmoe", "head_dim=64", "16 heads of 64"},
        {"olmoe", "moe_intermediate_size=512", "moe_intermediate_size is 512"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        model_spec m;
        cr_assert_eq(make_spec(&m, cases[i].type, cases[i].pairs), MOE_E_CONFIG, "%s was taken", cases[i].pairs);
        cr_assert_not_null(strstr(moe_error_text(), cases[i].key), "%s: %s", cases[i].pairs, moe_error_text());
    }
}

Test(family, a_wrong_default_is_found)
{
    const model_key keys[] = {
        {"a", MODEL_INT, "1.5", ""}, {"b", MODEL_NUMBER, "x", ""}, {"c", MODEL_BOOL, "yes", ""}, {"d", MODEL_INTS, "[1]", ""}};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        model_value v;
        cr_assert_eq(model_value_default(&v, &keys[i]), MOE_E_CONFIG);
    }
}
