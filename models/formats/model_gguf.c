/* Owns the opening of a GGUF file as a model: tensors by role -> extents. Does not know the metadata (gguf_config.h), what a configuration means
 * (families/) nor the file format (gguf.h).
 * Threads: one.
 * Rule: a tensor that the spec does not have is refused: it could change the numbers. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "models/formats/gguf_config.h"
#include "models/formats/hf_private.h"
#include "models/formats/model_private.h"

static const struct {
    tensor_role role;
    const char *name;
} ROLES[] = {
    {ROLE_EMBED, "token_embd.weight"},       {ROLE_ATTN_NORM, "attn_norm.weight"},      {ROLE_Q, "attn_q.weight"},
    {ROLE_K, "attn_k.weight"},               {ROLE_V, "attn_v.weight"},                 {ROLE_Q_BIAS, "attn_q.bias"},
    {ROLE_K_BIAS, "attn_k.bias"},            {ROLE_V_BIAS, "attn_v.bias"},              {ROLE_Q_NORM, "attn_q_norm.weight"},
    {ROLE_K_NORM, "attn_k_norm.weight"},     {ROLE_O, "attn_output.weight"},            {ROLE_O_BIAS, "attn_output.bias"},
    {ROLE_Q_A, "attn_q_a.weight"},           {ROLE_Q_A_NORM, "attn_q_a_norm.weight"},   {ROLE_Q_B, "attn_q_b.weight"},
    {ROLE_KV_A, "attn_kv_a_mqa.weight"},     {ROLE_KV_A_NORM, "attn_kv_a_norm.weight"}, {ROLE_K_B, "attn_k_b.weight"},
    {ROLE_V_B, "attn_v_b.weight"},
    {ROLE_FFN_NORM, "ffn_norm.weight"},      {ROLE_ROUTER, "ffn_gate_inp.weight"},      {ROLE_ROUTER_BIAS, "exp_probs_b.bias"},
    {ROLE_GATE, "ffn_gate.weight"},          {ROLE_UP, "ffn_up.weight"},                {ROLE_DOWN, "ffn_down.weight"},
    {ROLE_SHARED_GATE, "ffn_gate_shexp.weight"}, {ROLE_SHARED_UP, "ffn_up_shexp.weight"}, {ROLE_SHARED_DOWN, "ffn_down_shexp.weight"},
    {ROLE_SHARED_SWITCH, "ffn_gate_inp_shexp.weight"}, {ROLE_FINAL_NORM, "output_norm.weight"}, {ROLE_LM_HEAD, "output.weight"},
    {ROLE_SINKS, "attn_sinks.weight"},       {ROLE_LOGIT_BIAS, "ffn_gate_inp.bias"},    {ROLE_GATE_BIAS, "ffn_gate_exps.bias"},
    {ROLE_UP_BIAS, "ffn_up_exps.bias"},      {ROLE_DOWN_BIAS, "ffn_down_exps.bias"},
};

/* The file being opened. */
typedef struct opening {
    const gguf *g;
    const gguf_architecture *arch;
    text_buf json;
    uint8_t *used; /* [gguf_count] the tensor belongs to the spec */
} opening;

static const char *projection(tensor_role r) { return r == ROLE_GATE ? "ffn_gate" : r == ROLE_UP ? "ffn_up" : "ffn_down"; }

/* The name of a tensor in the file; of an expert: that of all experts of its layer. */
static void tensor_name(const opening *o, const tensor_info *info, char out[64])
{
    const char *name = "";
    for (size_t i = 0; i < sizeof ROLES / sizeof *ROLES; i++)
        if (ROLES[i].role == info->role)
            name = ROLES[i].name;
    if (info->kind == SECTION_EXPERT)
        snprintf(out, 64, "blk.%d.%s_exps.weight", info->layer, projection(info->role));
    else if (info->role == ROLE_FFN_NORM && o->arch->post_norm)
        snprintf(out, 64, "blk.%d.post_attention_norm.weight", info->layer);
    else if (info->layer >= 0)
        snprintf(out, 64, "blk.%d.%s", info->layer, name);
    else
        snprintf(out, 64, "%s", name);
}

static moe_err read_spec(opening *o, model *m)
{
    char name[4096];
    TRY(gguf_config(&o->json, &o->arch, m, o->g));
    const size_t bytes = o->json.used;
    TRY(text_take(&o->json, &m->config));
    snprintf(name, sizeof name, "%s (its metadata)", gguf_path(o->g, 0));
    return hf_config_parse(&m->spec, m->config, bytes, name);
}

static moe_err check_shape(const opening *o, const model *m, const gguf_tensor *t, const tensor_info *info, int experts)
{
    const bool vector = info->layout == TENSOR_VECTOR;
    int64_t expected[GGUF_DIMS] = {info->cols, vector ? 1 : info->rows, experts, 1};
    if (info->role == ROLE_GATE_BIAS || info->role == ROLE_UP_BIAS || info->role == ROLE_DOWN_BIAS) { /* a row each */
        expected[0] = info->cols / m->spec.E;
        expected[1] = m->spec.E;
    } else if (info->layout == TENSOR_HEADS) {
        expected[1] = info->rows / m->spec.H;
        expected[2] = m->spec.H;
    }
    if (memcmp(t->shape, expected, sizeof expected) == 0)
        return MOE_OK;
    return moe_fail(MOE_E_DATA, "%s: %s has shape [%lld, %lld, %lld, %lld]: expected [%lld, %lld, %lld, 1] (a row's length first)",
                    gguf_path(o->g, t->file), t->name, (long long)t->shape[0], (long long)t->shape[1], (long long)t->shape[2],
                    (long long)t->shape[3], (long long)expected[0], (long long)expected[1], (long long)expected[2]);
}

static bool is_query_or_key(tensor_role r) { return r == ROLE_Q || r == ROLE_K || r == ROLE_Q_BIAS || r == ROLE_K_BIAS; }

/* Files of 2023 and early 2024 have a tensor for each expert. */
static const gguf_tensor *find_expert(const opening *o, const tensor_info *info)
{
    char name[64];
    snprintf(name, sizeof name, "blk.%d.%s.%d.weight", info->layer, projection(info->role), info->expert);
    return gguf_tensor_find(o->g, name);
}

static void mark_used(const opening *o, const gguf_tensor *t) { o->used[t - gguf_at(o->g, 0)] = 1; }

/* Files before 2025: keys and values of all heads are one tensor, as in kv_b_proj. */
static moe_err fill_together(const opening *o, const model *m, const gguf_tensor *t, const tensor_info *info, model_extent *e)
{
    const model_spec *s = &m->spec;
    const tensor_info whole = {.layout = TENSOR_PANELS, .rows = (int64_t)s->H * (spec_nope(s) + s->v_head_dim), .cols = s->kv_lora_rank};
    TRY(check_shape(o, m, t, &whole, 1));
    *e = (model_extent){.file = t->file, .offset = t->begin, .format = t->format};
    mark_used(o, t);
    return model_rows_in_kv_b(e, gguf_path(o->g, t->file), info->role == ROLE_K_B, s);
}

static moe_err fill_extent(const opening *o, model *m, const tensor_info *info)
{
    char name[64];
    model_extent *e = &m->extent[info->id];
    if (info->layout == TENSOR_HEADS) {
        snprintf(name, sizeof name, "blk.%d.attn_kv_b.weight", info->layer);
        const gguf_tensor *both = gguf_tensor_find(o->g, name);
        if (both != NULL)
            return fill_together(o, m, both, info, e);
    }
    tensor_name(o, info, name);
    const gguf_tensor *t = gguf_tensor_find(o->g, name);
    const bool together = info->kind == SECTION_EXPERT && t != NULL;
    if (info->kind == SECTION_EXPERT && t == NULL)
        t = find_expert(o, info);
    if (t == NULL)
        return moe_fail(MOE_E_DATA, "%s: tensor %s is missing", gguf_path(o->g, 0), name);
    TRY(check_shape(o, m, t, info, together ? m->spec.E : 1));
    TRY(model_rows_extent(e, gguf_path(o->g, t->file), info, t->format));
    e->file = t->file;
    e->offset = t->begin + (together ? (uint64_t)info->expert * e->bytes : 0);
    e->heads_interleaved = o->arch->interleaved && is_query_or_key(info->role);
    mark_used(o, t);
    return MOE_OK;
}

/* Is this of a layer behind the last one that predicts a further token? */
static bool is_beyond(const opening *o, const model *m, const char *name)
{
    int layer;
    char entrance[64];
    if (sscanf(name, "blk.%d.", &layer) != 1 || layer < m->spec.L)
        return false;
    snprintf(entrance, sizeof entrance, "blk.%d.nextn.eh_proj.weight", layer);
    return gguf_tensor_find(o->g, entrance) != NULL;
}

static moe_err check_unused(const opening *o, const model *m)
{
    for (int64_t i = 0; i < gguf_count(o->g); i++) {
        const gguf_tensor *t = gguf_at(o->g, i);
        if (!o->used[i] && strcmp(t->name, GGUF_ROPE_FACTORS) != 0 && !is_beyond(o, m, t->name))
            return moe_fail(MOE_E_DATA, "%s: %.200s is not a tensor of this %s model as its metadata describes it", gguf_path(o->g, t->file), t->name,
                            o->arch->name);
    }
    return MOE_OK;
}

static moe_err fill_extents(opening *o, model *m)
{
    tensor_info *table;
    int64_t n;
    moe_err rc;
    TRY(spec_tensors(&m->spec, &table, &n));
    TRY_GOTO(model_make_extents(m, n), rc, out);
    o->used = calloc((size_t)gguf_count(o->g) + 1, 1);
    if (o->used == NULL) {
        rc = moe_fail(MOE_E_OS, "out of memory");
        goto out;
    }
    for (int64_t i = 0; i < n; i++)
        TRY_GOTO(fill_extent(o, m, &table[i]), rc, out);
    rc = check_unused(o, m);
out:
    free(table);
    return rc;
}

moe_err model_open_gguf(model *m, const char *path)
{
    gguf *g = NULL;
    moe_err rc;
    TRY(gguf_open(&g, path));
    opening o = {.g = g};
    for (int i = 0; i < gguf_files(g); i++) {
        TRY_GOTO(model_add_file(m, gguf_path(g, i)), rc, out);
        if (m->file[i].bytes != gguf_file_bytes(g, i)) {
            rc = moe_fail(MOE_E_DATA, "%s changed while it was opened", gguf_path(g, i));
            goto out;
        }
    }
    TRY_GOTO(read_spec(&o, m), rc, out);
    TRY_GOTO(fill_extents(&o, m), rc, out);
    if (gguf_find(g, "tokenizer.ggml.model") != NULL && (m->tokenizer = strdup(path)) == NULL)
        rc = moe_fail(MOE_E_OS, "out of memory");
out:
    free(o.used);
    text_free(&o.json);
    gguf_close(g);
    return rc;
}
