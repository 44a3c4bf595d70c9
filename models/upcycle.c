/* Owns the way from a dense model to its MoE, tensor by tensor in the order of the new model's table.
 * Does not know how folders are written (formats/hf_writer.c) nor how tensors at rest are read (formats/packed_matrix.c).
 * Threads: the caller's; random numbers are shared out by the backend.
 * Rule: random numbers are keyed by (seed, tensor of the new model), so that neither order nor threads change them. */
#include "models/upcycle.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "models/formats/packed_matrix.h"

static const struct {
    const char *dense, *moe;
    tensor_naming names;
} FAMILIES[] = {
    {"llama", "mixtral", NAMES_MIXTRAL},
    {"qwen3", "qwen3_moe", NAMES_QWEN},
};

enum { NOISE_STEP = 1 /* random_key.step of noise; initial weights are step 0 */ };

moe_err upcycle_spec(model_spec *out, const model_spec *dense, const upcycle_options *o)
{
    const int n = (int)(sizeof FAMILIES / sizeof *FAMILIES);
    int f = 0;
    if (spec_moe_layers(dense) > 0)
        return moe_fail(MOE_E_CONFIG, "upcycle: this %s model has experts already, expected a dense one", dense->model_type);
    while (f < n && strcmp(dense->model_type, FAMILIES[f].dense) != 0)
        f++;
    if (f == n)
        return moe_fail(MOE_E_CONFIG, "upcycle: a %s model; expected llama (becomes mixtral) or qwen3 (becomes qwen3_moe)", dense->model_type);
    if (dense->qkv_bias || dense->o_bias)
        return moe_fail(MOE_E_CONFIG, "upcycle: attention_bias is true, and %s has no such biases", FAMILIES[f].moe);
    if (o->experts < 1 || o->top_k < 1 || o->top_k > o->experts)
        return moe_fail(MOE_E_CONFIG, "upcycle: %d experts, %d of them for a token; expected 1 <= top-k <= experts", o->experts, o->top_k);
    *out = *dense;
    snprintf(out->model_type, sizeof out->model_type, "%s", FAMILIES[f].moe);
    out->names = FAMILIES[f].names;
    out->F = dense->F_dense;
    out->E = o->experts;
    out->K = o->top_k;
    for (int l = 0; l < out->L; l++)
        out->moe_layer[l] = true;
    out->router = (router_rule){.score = ROUTER_SOFTMAX, .normalize = true, .scale = 1.0f, .groups = 1, .groups_used = 1};
    out->aux_coef = out->aux_coef > 0 ? out->aux_coef : 0.001; /* the default of both families */
    return spec_validate(out);
}

typedef struct upcycle {
    const model *dense;
    const upcycle_options *o;
    tensor_info *from; /* the dense model's table */
    int64_t nfrom;
    packed_matrix scratch;
    float *section; /* of the new tensor, at its offset; what is before it is not used */
    float *noise;   /* as large as the tensor                                          */
} upcycle;

/* The dense tensor that a new one is made of; NULL for the router. */
static const tensor_info *origin(const upcycle *u, const tensor_info *t)
{
    for (int64_t i = 0; i < u->nfrom; i++)
        if (u->from[i].role == t->role && u->from[i].layer == t->layer)
            return &u->from[i];
    return NULL;
}

static moe_err random_tensor(const upcycle *u, const tensor_info *t, float std, uint32_t step, float *out)
{
    const random_normal_args a = {.w = out, .key = {u->o->seed, t->id, step}, .N = t->rows, .K = t->cols, .std = std, .panels = true};
    return u->o->be->random_normal(&a, u->o->stream);
}

/* The pads of a panel are zero in both, and stay so. */
static moe_err add_noise(upcycle *u, const tensor_info *t, float *w)
{
    double squares = 0;
    for (size_t i = 0; i < t->floats; i++)
        squares += (double)w[i] * (double)w[i];
    const double rms = sqrt(squares / ((double)t->rows * (double)t->cols));
    TRY(random_tensor(u, t, (float)(u->o->noise * rms), NOISE_STEP, u->noise));
    for (size_t i = 0; i < t->floats; i++)
        w[i] += u->noise[i];
    return MOE_OK;
}

static moe_err make_tensor(upcycle *u, const tensor_info *t, hf_writer *w)
{
    float *at = u->section + t->offset;
    const tensor_info *from = origin(u, t);
    if (from == NULL) {
        TRY(random_tensor(u, t, (float)t->init_std, 0, at));
    } else {
        if (from->rows != t->rows || from->cols != t->cols || from->layout != t->layout)
            return moe_fail(MOE_E_DATA, "upcycle: %s is %lld x %lld, and %s wants %lld x %lld", from->name, (long long)from->rows,
                            (long long)from->cols, t->name, (long long)t->rows, (long long)t->cols);
        TRY(packed_matrix_load(&u->scratch, u->dense, from, NUM_F32, (uint8_t *)at));
        if (t->kind == SECTION_EXPERT && u->o->noise > 0)
            TRY(add_noise(u, t, at));
    }
    return hf_writer_write(w, t, u->section);
}

static moe_err open_buffers(upcycle *u, const tensor_info *table, int64_t n)
{
    size_t section = 0, floats = 0;
    for (int64_t i = 0; i < n; i++) {
        const size_t end = table[i].offset + table[i].floats;
        section = end > section ? end : section;
        floats = table[i].floats > floats ? table[i].floats : floats;
    }
    if (section > SIZE_MAX / sizeof(float) - PANEL)
        return moe_fail(MOE_E_CONFIG, "upcycle: a section of %zu numbers", section);
    u->section = aligned_alloc(64, (section * sizeof(float) + 63) / 64 * 64);
    u->noise = u->o->noise > 0 ? malloc(floats * sizeof(float)) : NULL;
    if (u->section == NULL || (u->o->noise > 0 && u->noise == NULL))
        return moe_fail(MOE_E_OS, "upcycle: out of memory for %zu numbers", section);
    return MOE_OK;
}

moe_err upcycle_write(const model *dense, const char *dir, const upcycle_options *o)
{
    model_spec *spec = malloc(sizeof *spec);
    upcycle u = {.dense = dense, .o = o};
    tensor_info *table = NULL;
    hf_writer *w = NULL;
    int64_t n = 0;
    moe_err rc;
    if (spec == NULL)
        return moe_fail(MOE_E_OS, "upcycle: out of memory");
    TRY_GOTO(upcycle_spec(spec, model_spec_of(dense), o), rc, done);
    TRY_GOTO(spec_tensors(model_spec_of(dense), &u.from, &u.nfrom), rc, done);
    TRY_GOTO(spec_tensors(spec, &table, &n), rc, done);
    TRY_GOTO(open_buffers(&u, table, n), rc, done);
    TRY_GOTO(hf_writer_open(&w, dir, spec, o->dtype), rc, done);
    for (int64_t i = 0; i < n; i++) {
        TRY_GOTO(make_tensor(&u, &table[i], w), rc, done);
        if (o->progress != NULL)
            o->progress(o->user, (uint64_t)i + 1, (uint64_t)n);
    }
    rc = hf_writer_finish(w);
done:
    hf_writer_close(w);
    packed_matrix_free(&u.scratch);
    free(u.noise);
    free(u.section);
    free(u.from);
    free(table);
    free(spec);
    return rc;
}
