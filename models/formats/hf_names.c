/* Owns where Hugging Face checkpoints keep a tensor of the spec: under its own name, or under the names that other versions of
 * transformers and fused experts use. Does not know files.
 * Threads: pure.
 * Rule: places are listed in the order in which they are looked up; what is written is always the first. */
#include <stdio.h>
#include <string.h>

#include "models/formats/hf_private.h"

static hf_place own_place(const tensor_info *info)
{
    hf_place p = {.dims = info->layout == TENSOR_VECTOR ? 1 : 2, .shape = {info->rows, info->cols}};
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
    };
    snprintf(p.name, sizeof p.name, "model.layers.%d.mlp.experts.%s", info->layer, down ? "down_proj" : "gate_up_proj");
    return p;
}

int hf_places(const model_spec *m, const tensor_info *info, hf_place out[HF_PLACES])
{
    static const char block[] = ".block_sparse_moe.";
    const char *at = strstr(info->name, block);
    int n = 0;
    out[n++] = own_place(info);
    if (at != NULL) { /* transformers 5 calls Mixtral's block mlp */
        out[n] = own_place(info);
        snprintf(out[n].name, sizeof out[n].name, "%.*s.mlp.%s", (int)(at - info->name), info->name, at + strlen(block));
        n++;
    }
    if (info->kind == SECTION_EXPERT)
        out[n++] = fused_place(m, info);
    return n;
}
