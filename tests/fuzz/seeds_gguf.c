/* seeds_gguf DIR: small GGUF files for the fuzzer to begin with: a dense model, sparse ones, a tokenizer. */
#include <stdio.h>
#include <string.h>

#include "tests/models/gguf_build.h"

enum { D = 4, V = 3, E = 2 };

static const float zeros[D * D * E];

static void tensor(gguf_build *b, const char *name, int dims, uint64_t cols, uint64_t rows)
{
    gguf_build_tensor(b, name, GGML_F32, dims, (uint64_t[]){cols, rows, E}, zeros, cols * rows * (dims == 3 ? E : 1) * sizeof *zeros);
}

static void metadata(gguf_build *b, const char *arch)
{
    static const char *const keys[] = {"embedding_length", "attention.key_length", "feed_forward_length", "expert_feed_forward_length"};
    static const struct {
        const char *key;
        uint32_t x;
    } counts[] = {{"block_count", 1}, {"context_length", 64}, {"attention.head_count", 1}, {"attention.head_count_kv", 1}};
    char key[96];
    gguf_build_string(b, "general.architecture", arch);
    for (int i = 0; i < (strcmp(arch, "llama") != 0 ? 4 : 3); i++) {
        snprintf(key, sizeof key, "%s.%s", arch, keys[i]);
        gguf_build_u32(b, key, D);
    }
    for (int i = 0; i < 4; i++) {
        snprintf(key, sizeof key, "%s.%s", arch, counts[i].key);
        gguf_build_u32(b, key, counts[i].x);
    }
    snprintf(key, sizeof key, "%s.attention.layer_norm_rms_epsilon", arch);
    gguf_build_f32(b, key, 1e-6f);
    tensor(b, "token_embd.weight", 2, D, V);
    tensor(b, "output_norm.weight", 1, D, 1);
    tensor(b, "blk.0.attn_norm.weight", 1, D, 1);
    tensor(b, strcmp(arch, "glm4moe") == 0 || strcmp(arch, "gpt-oss") == 0 ? "blk.0.post_attention_norm.weight" : "blk.0.ffn_norm.weight", 1, D, 1);
    tensor(b, "blk.0.attn_q.weight", 2, D, D);
    tensor(b, "blk.0.attn_k.weight", 2, D, D);
    tensor(b, "blk.0.attn_v.weight", 2, D, D);
    tensor(b, "blk.0.attn_output.weight", 2, D, D);
}

static void write(gguf_build *b, const char *dir, const char *name)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    gguf_build_write(b, path);
    gguf_build_free(b);
    *b = (gguf_build)GGUF_BUILD;
}

static void experts(gguf_build *b, const char *arch)
{
    char key[96];
    snprintf(key, sizeof key, "%s.expert_count", arch);
    gguf_build_u32(b, key, E);
    snprintf(key, sizeof key, "%s.expert_used_count", arch);
    gguf_build_u32(b, key, 1);
    tensor(b, "blk.0.ffn_gate_inp.weight", 2, D, E);
    tensor(b, "blk.0.ffn_gate_exps.weight", 3, D, D);
    tensor(b, "blk.0.ffn_up_exps.weight", 3, D, D);
    tensor(b, "blk.0.ffn_down_exps.weight", 3, D, D);
}

static void glm(gguf_build *b)
{
    metadata(b, "glm4moe");
    experts(b, "glm4moe");
    gguf_build_u32(b, "glm4moe.rope.dimension_count", D / 2);
    gguf_build_u32(b, "glm4moe.expert_shared_count", 1);
    gguf_build_u32(b, "glm4moe.leading_dense_block_count", 0);
    gguf_build_u32(b, "glm4moe.nextn_predict_layers", 0);
    tensor(b, "blk.0.exp_probs_b.bias", 1, E, 1);
    tensor(b, "blk.0.ffn_gate_shexp.weight", 2, D, D);
    tensor(b, "blk.0.ffn_up_shexp.weight", 2, D, D);
    tensor(b, "blk.0.ffn_down_shexp.weight", 2, D, D);
    tensor(b, "blk.1.nextn.eh_proj.weight", 2, D, D);
}

static void gpt_oss(gguf_build *b)
{
    static const char *const biases[] = {"attn_q", "attn_k", "attn_v", "attn_output"};
    char name[64];
    metadata(b, "gpt-oss");
    experts(b, "gpt-oss");
    gguf_build_u32(b, "gpt-oss.attention.sliding_window", 2);
    gguf_build_string(b, "gpt-oss.rope.scaling.type", "yarn");
    gguf_build_f32(b, "gpt-oss.rope.scaling.factor", 8);
    gguf_build_u32(b, "gpt-oss.rope.scaling.original_context_length", 16);
    tensor(b, "output.weight", 2, D, V);
    tensor(b, "blk.0.attn_sinks.weight", 1, 1, 1);
    tensor(b, "blk.0.ffn_gate_inp.bias", 1, E, 1);
    tensor(b, "blk.0.ffn_gate_exps.bias", 2, D, E);
    tensor(b, "blk.0.ffn_up_exps.bias", 2, D, E);
    tensor(b, "blk.0.ffn_down_exps.bias", 2, D, E);
    for (int i = 0; i < 4; i++) {
        snprintf(name, sizeof name, "blk.0.%s.bias", biases[i]);
        tensor(b, name, 1, D, 1);
    }
}

int main(int argc, char **argv)
{
    static const char *const tokens[] = {"a", "b", "ab"}, *const merges[] = {"a b"};
    static const int32_t types[] = {1, 1, 1};
    const char *dir = argc > 1 ? argv[1] : ".";
    gguf_build b = GGUF_BUILD;
    metadata(&b, "llama");
    tensor(&b, "blk.0.ffn_gate.weight", 2, D, D);
    tensor(&b, "blk.0.ffn_up.weight", 2, D, D);
    tensor(&b, "blk.0.ffn_down.weight", 2, D, D);
    gguf_build_tensor(&b, "rope_freqs.weight", GGML_F32, 1, (uint64_t[]){D / 2}, (float[]){1, 8}, D / 2 * sizeof(float));
    write(&b, dir, "llama");
    metadata(&b, "llama");
    experts(&b, "llama");
    write(&b, dir, "mixtral");
    glm(&b);
    write(&b, dir, "glm4moe");
    gpt_oss(&b);
    write(&b, dir, "gpt_oss");
    metadata(&b, "qwen3moe");
    experts(&b, "qwen3moe");
    tensor(&b, "blk.0.attn_q_norm.weight", 1, D, 1);
    tensor(&b, "blk.0.attn_k_norm.weight", 1, D, 1);
    write(&b, dir, "qwen3moe");
    gguf_build_string(&b, "tokenizer.ggml.model", "gpt2");
    gguf_build_string(&b, "tokenizer.ggml.pre", "smollm");
    gguf_build_strings(&b, "tokenizer.ggml.tokens", tokens, 3);
    gguf_build_array(&b, "tokenizer.ggml.token_type", GGUF_I32, types, 3, sizeof types);
    gguf_build_strings(&b, "tokenizer.ggml.merges", merges, 1);
    gguf_build_u32(&b, "tokenizer.ggml.eos_token_id", 0);
    write(&b, dir, "tokenizer");
    return 0;
}
