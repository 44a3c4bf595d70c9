/* Owns where Hugging Face checkpoints keep a tensor of the spec, and in which form: under its own name, or under the names that other
 * versions of transformers and fused experts use. Does not know files.
 * Threads: pure.
 * Rule: places are listed in the order in which they are looked up; what is written is always the first. */
#include <stdio.h>
#include <string.h>

#include "models/formats/hf_private.h"

static hf_place own_place(const tensor_info *info)
{
    hf_place p = {.dims = info->layout == TENSOR_VECTOR ? 1 : 2, .shape = {info->rows, info->cols}, .row_step = 1};
    if (p.dims == 1)
        p.shape[0] = info->cols;
    snprintf(p.name, sizeof p.name, "%s", info->name);
    return p;
}

/* experts.gate_up_proj [E, 2F, D] (gate rows, then up rows) and experts.down_proj [E, D, F]: the fused form of transformers 5. */
static hf_place fused_place(const model_spec *m, const tensor_info *info)
{
    const bool down = info->role == ROLE_DOWN;
    const int64_t size = info->rows * info->cols;
    hf_place p = {
        .dims = 3,
        .shape = {m->E, down ? m->D : 2 * (int64_t)m->F, down ? m->F : m->D},
        .first = info->expert * (down ? size : 2 * size) + (info->role == ROLE_UP ? size : 0),
        .row_step = 1,
    };
    snprintf(p.name, sizeof p.name, "model.layers.%d.mlp.experts.%s", info->layer, down ? "down_proj" : "gate_up_proj");
    return p;
}

/* gpt-oss: rows (columns, where the matrix is transposed) of gate and up take turns. */
static void take_turns(hf_place *p, const tensor_info *info)
{
    const bool down = info->role == ROLE_DOWN;
    p->row_step = down ? 1 : 2;
    p->row_first = info->role == ROLE_UP ? 1 : 0;
}

/* experts.gate_up_proj_blocks [E, 2F, D/32, 16], experts.down_proj_blocks [E, D, F/32, 16]: MXFP4, the scales in .._scales, without the last
 * dimension. */
static hf_place mxfp4_place(const model_spec *m, const tensor_info *info)
{
    const bool down = info->role == ROLE_DOWN;
    hf_place p = {.dims = 4, .stored = STORED_MXFP4};
    take_turns(&p, info);
    p.shape[0] = m->E, p.shape[1] = info->rows * p.row_step, p.shape[2] = info->cols / 32, p.shape[3] = 16;
    p.first = info->expert * p.shape[1] * p.shape[2] * p.shape[3];
    snprintf(p.name, sizeof p.name, "model.layers.%d.mlp.experts.%s_blocks", info->layer, down ? "down_proj" : "gate_up_proj");
    return p;
}

/* experts.gate_up_proj [E, D, 2F], experts.down_proj [E, F, D]. */
static hf_place columns_place(const model_spec *m, const tensor_info *info)
{
    const bool down = info->role == ROLE_DOWN;
    hf_place p = {.dims = 3, .stored = STORED_COLUMNS};
    take_turns(&p, info);
    p.shape[0] = m->E, p.shape[1] = info->cols, p.shape[2] = info->rows * p.row_step;
    p.first = info->expert * p.shape[1] * p.shape[2];
    snprintf(p.name, sizeof p.name, "model.layers.%d.mlp.experts.%s", info->layer, down ? "down_proj" : "gate_up_proj");
    return p;
}

/* experts.gate_up_proj_bias [E, 2F], numbers of gate and up in turn, as one row; experts.down_proj_bias [E, D]. */
static hf_place bias_place(const model_spec *m, const tensor_info *info)
{
    const bool down = info->role == ROLE_DOWN_BIAS;
    hf_place p = {.dims = 2, .shape = {m->E, down ? m->D : 2 * (int64_t)m->F}, .row_step = 1};
    if (!down) {
        p.stored = STORED_COLUMNS;
        p.row_step = 2;
        p.row_first = info->role == ROLE_UP_BIAS;
    }
    snprintf(p.name, sizeof p.name, "model.layers.%d.mlp.experts.%s_bias", info->layer, down ? "down_proj" : "gate_up_proj");
    return p;
}

/* kv_b_proj: keys and values of each head. */
static hf_place kv_b_place(const model_spec *m, const tensor_info *info)
{
    hf_place p = {.dims = 2, .shape = {(int64_t)m->H * (spec_nope(m) + m->v_head_dim), m->kv_lora_rank}, .row_step = 1,
                  .stored = info->role == ROLE_K_B ? STORED_HEAD_COLUMNS : STORED_HEADS};
    snprintf(p.name, sizeof p.name, "model.layers.%d.self_attn.kv_b_proj.weight", info->layer);
    return p;
}

int hf_places(const model_spec *m, const tensor_info *info, hf_place out[HF_PLACES])
{
    static const char block[] = ".block_sparse_moe.";
    const char *at = strstr(info->name, block);
    int n = 0;
    if (info->role == ROLE_GATE_BIAS || info->role == ROLE_UP_BIAS || info->role == ROLE_DOWN_BIAS) {
        out[n++] = bias_place(m, info);
        return n;
    }
    if (info->layout == TENSOR_HEADS) {
        out[n++] = kv_b_place(m, info);
        return n;
    }
    out[n++] = own_place(info);
    if (at != NULL) { /* transformers 5 calls Mixtral's block mlp */
        out[n] = own_place(info);
        snprintf(out[n].name, sizeof out[n].name, "%.*s.mlp.%s", (int)(at - info->name), info->name, at + strlen(block));
        n++;
    }
    if (info->kind == SECTION_EXPERT && m->names == NAMES_GPT_OSS) {
        out[n++] = columns_place(m, info);
        out[n++] = mxfp4_place(m, info);
    } else if (info->kind == SECTION_EXPERT) {
        out[n++] = fused_place(m, info);
    }
    return n;
}
