/* Owns the one place where sizes become offsets: the section layouts; and the counts of parameters. Does not know where a size came
 * from (families/) nor any file; the table of tensors is in spec_tensors.c.
 * Threads: pure functions of the spec.
 * Rule: every function here may assume that spec_validate (spec_validate.c) passed. */
#include "models/spec.h"

#include <string.h>

#include "kernels/matmul.h"

static size_t pad16(size_t floats) { return (floats + 15) / 16 * 16; }

/* The next `floats` of a section, 64-byte aligned within it. */
static int64_t place(size_t *used, size_t floats)
{
    const size_t at = *used;
    *used += pad16(floats);
    return (int64_t)at;
}

kv_shape spec_kv(const model_spec *m)
{
    return m->kv_lora_rank > 0 ? (kv_shape){1, m->kv_lora_rank + m->rotary, m->kv_lora_rank} : (kv_shape){m->Hkv, m->hd, 0};
}

int spec_kv_numbers(const model_spec *m)
{
    const kv_shape k = spec_kv(m);
    return k.heads * k.key * (k.value > 0 ? 1 : 2);
}

static void place_latent(const model_spec *m, dense_layout *out, size_t *used)
{
    const size_t H = (size_t)m->H;
    if (m->q_lora_rank > 0) {
        out->q_a = place(used, panel_floats(m->q_lora_rank, m->D));
        if (m->qkv_bias)
            out->q_a_bias = place(used, (size_t)m->q_lora_rank);
        out->q_a_norm = place(used, (size_t)m->q_lora_rank);
    }
    out->q_b = place(used, panel_floats((int64_t)m->H * m->hd, m->q_lora_rank > 0 ? m->q_lora_rank : m->D));
    out->kv_a = place(used, panel_floats(m->kv_lora_rank + m->rotary, m->D));
    if (m->qkv_bias)
        out->kv_a_bias = place(used, (size_t)(m->kv_lora_rank + m->rotary));
    out->kv_a_norm = place(used, (size_t)m->kv_lora_rank);
    out->k_b = place(used, H * panel_floats(m->kv_lora_rank, spec_nope(m)));
    out->v_b = place(used, H * panel_floats(m->v_head_dim, m->kv_lora_rank));
}

void spec_dense_layout(const model_spec *m, int layer, dense_layout *out)
{
    const int64_t q = (int64_t)m->H * m->hd, kv = (int64_t)m->Hkv * m->hd;
    const size_t D = (size_t)m->D;
    size_t used = 0;
    memset(out, 0xff, sizeof *out); /* -1: absent */
    out->attn_norm = place(&used, D);
    if (m->kv_lora_rank > 0)
        place_latent(m, out, &used);
    else
        out->qkv = place(&used, (size_t)(panel_pad(q) + 2 * panel_pad(kv)) * D);
    if (m->qkv_bias && m->kv_lora_rank == 0)
        out->qkv_bias = place(&used, (size_t)(panel_pad(q) + 2 * panel_pad(kv)));
    if (m->qk_norm != QK_NORM_NONE) {
        out->q_norm = place(&used, (size_t)(m->qk_norm == QK_NORM_FULL ? q : m->hd));
        out->k_norm = place(&used, (size_t)(m->qk_norm == QK_NORM_FULL ? kv : m->hd));
    }
    out->o = place(&used, panel_floats(m->D, (int64_t)m->H * spec_value(m)));
    if (m->o_bias)
        out->o_bias = place(&used, D);
    if (m->sinks)
        out->sinks = place(&used, (size_t)m->H);
    out->ffn_norm = place(&used, D);
    if (!m->moe_layer[layer]) {
        out->ffn_w1 = place(&used, 2 * panel_floats(m->F_dense, m->D));
        out->ffn_w2 = place(&used, panel_floats(m->D, m->F_dense));
    } else {
        out->router = place(&used, panel_floats(m->E, m->D));
        if (m->correction_bias)
            out->router_bias = place(&used, (size_t)m->E);
        if (m->logit_bias)
            out->logit_bias = place(&used, (size_t)m->E);
        if (m->expert_bias) {
            out->gate_bias = place(&used, (size_t)m->E * (size_t)m->F);
            out->up_bias = place(&used, (size_t)m->E * (size_t)m->F);
            out->down_bias = place(&used, (size_t)m->E * D);
        }
        if (m->F_shared > 0) {
            out->shared_w1 = place(&used, 2 * panel_floats(m->F_shared, m->D));
            out->shared_w2 = place(&used, panel_floats(m->D, m->F_shared));
            if (m->shared_gate)
                out->shared_gate = place(&used, panel_floats(1, m->D));
        }
    }
    out->floats = used;
}

void spec_expert_layout(const model_spec *m, expert_layout *out)
{
    size_t used = 0;
    out->w1 = place(&used, 2 * panel_floats(m->F, m->D));
    out->w2 = place(&used, panel_floats(m->D, m->F));
    out->floats = used;
}

void spec_embed_layout(const model_spec *m, embed_layout *out)
{
    size_t used = 0;
    out->table = place(&used, m->tied ? panel_floats(m->V, m->D) : (size_t)m->V * (size_t)m->D);
    out->floats = used;
}

void spec_head_layout(const model_spec *m, head_layout *out)
{
    size_t used = 0;
    out->norm = place(&used, (size_t)m->D);
    out->lm_head = m->tied ? -1 : place(&used, panel_floats(m->V, m->D));
    out->floats = used;
}

int spec_moe_layers(const model_spec *m)
{
    int n = 0;
    for (int l = 0; l < m->L; l++)
        n += m->moe_layer[l];
    return n;
}

int spec_moe_index(const model_spec *m, int layer)
{
    if (layer < 0 || layer >= m->L || !m->moe_layer[layer])
        return -1;
    int n = 0;
    for (int l = 0; l < layer; l++)
        n += m->moe_layer[l];
    return n;
}

/* Of latent attention, without the output projection. */
static int64_t latent_parameters(const model_spec *m, bool used)
{
    const int64_t q = (int64_t)m->H * m->hd, a = m->q_lora_rank, kv = m->kv_lora_rank + m->rotary;
    int64_t n = (a > 0 ? a * m->D + q * a : q * m->D) + kv * m->D;
    n += (int64_t)m->H * (spec_nope(m) + m->v_head_dim) * m->kv_lora_rank;
    return used ? n : n + a + m->kv_lora_rank + (m->qkv_bias ? a + kv : 0);
}

/* Parameters of one layer outside its routed experts; `used`: only those in a matrix product. */
static int64_t layer_parameters(const model_spec *m, int l, bool used)
{
    const int64_t D = m->D, q = (int64_t)m->H * m->hd, kv = (int64_t)m->Hkv * m->hd;
    const bool latent = m->kv_lora_rank > 0;
    int64_t n = latent ? latent_parameters(m, used) + (int64_t)m->H * m->v_head_dim * D : 2 * q * D + 2 * kv * D;
    if (!used) {
        n += 2 * D + (m->qkv_bias && !latent ? q + 2 * kv : 0) + (m->o_bias ? D : 0);
        n += m->qk_norm == QK_NORM_FULL ? q + kv : m->qk_norm == QK_NORM_HEAD ? 2 * m->hd : 0;
    }
    n += m->sinks && !used ? m->H : 0;
    if (!m->moe_layer[l])
        return n + 3 * (int64_t)m->F_dense * D;
    if (!used)
        n += (m->logit_bias ? m->E : 0) + (m->expert_bias ? m->E * (2 * (int64_t)m->F + D) : 0);
    n += (int64_t)m->E * D + 3 * (int64_t)m->F_shared * D;
    return n + (m->F_shared > 0 && m->shared_gate ? D : 0);
}

int64_t spec_expert_parameters(const model_spec *m) { return 3 * (int64_t)m->F * m->D * m->E * spec_moe_layers(m); }

int64_t spec_parameters(const model_spec *m)
{
    int64_t n = (m->tied ? 1 : 2) * (int64_t)m->V * m->D + m->D + spec_expert_parameters(m);
    for (int l = 0; l < m->L; l++)
        n += layer_parameters(m, l, false);
    return n;
}

int64_t spec_active_parameters(const model_spec *m)
{
    int64_t n = (int64_t)m->V * m->D + 3 * (int64_t)m->F * m->D * m->K * spec_moe_layers(m);
    for (int l = 0; l < m->L; l++)
        n += layer_parameters(m, l, true);
    return n;
}
