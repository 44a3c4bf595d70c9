#include "engine/decoder/dense.h"

#include <stdlib.h>
#include <string.h>

#include "memory/budget.h"

static size_t pad_floats(size_t n, size_t to) { return (n + to - 1) / to * to; }

/* Section offsets, in floats; each begins on a cache line. Returns the length of one array. */
static size_t place_sections(dense_part *d, const model_spec *spec)
{
    size_t at = 0;
    spec_embed_layout(spec, &d->embed_layout);
    spec_head_layout(spec, &d->head_layout);
    d->embed = at;
    at += pad_floats(d->embed_layout.floats, 16);
    for (int l = 0; l < spec->L; l++) {
        dense_layout layout;
        spec_dense_layout(spec, l, &layout);
        if (d->layer != NULL) {
            d->layer[l] = at;
            d->layout[l] = layout;
        }
        at += pad_floats(layout.floats, 16);
    }
    d->head = at;
    at += pad_floats(d->head_layout.floats, 16);
    return pad_floats(at, 1024);
}

static size_t rope_floats(const model_spec *spec, int seq_len)
{
    return pad_floats((size_t)seq_len * (size_t)spec->rotary, 16);
}

static size_t layout_arrays(dense_part *d, const model_spec *spec, int seq_len, bool training, float *base)
{
    const size_t n = d->floats;
    size_t at = 0;
    float **const arrays[] = {&d->w, &d->m, &d->v, &d->g};
    for (int i = 0; i < (training ? 4 : 1); i++, at += n)
        *arrays[i] = base == NULL ? NULL : base + at;
    if (training && spec->tied) {
        d->tied_g = base == NULL ? NULL : base + at;
        at += pad_floats(d->embed_layout.floats, 16);
    }
    d->rope = base == NULL ? NULL : base + at;
    return at + rope_floats(spec, seq_len);
}

size_t dense_bytes(const model_spec *spec, int seq_len, bool training)
{
    dense_part d = {0};
    d.floats = place_sections(&d, spec);
    return layout_arrays(&d, spec, seq_len, training, NULL) * sizeof(float);
}

static size_t section_base(const dense_part *d, const tensor_info *t)
{
    return t->kind == SECTION_EMBED ? d->embed : t->kind == SECTION_HEAD ? d->head : d->layer[t->layer];
}

static bool is_correction_bias(const dense_part *d, const tensor_info *t)
{
    return t->kind == SECTION_DENSE && d->layout[t->layer].router_bias >= 0 &&
           t->offset == (size_t)d->layout[t->layer].router_bias;
}

static moe_err list_ranges(dense_part *d)
{
    tensor_info *table;
    int64_t n;
    TRY(spec_tensors(d->spec, &table, &n));
    d->range = calloc((size_t)n, sizeof *d->range);
    if (d->range == NULL) {
        free(table);
        return moe_fail(MOE_E_OS, "dense part: out of memory");
    }
    for (int64_t i = 0; i < n; i++)
        if (table[i].kind != SECTION_EXPERT && !is_correction_bias(d, &table[i]))
            d->range[d->nranges++] =
                (dense_range){.offset = section_base(d, &table[i]) + table[i].offset, .floats = table[i].floats, .decay = table[i].decay};
    free(table);
    return MOE_OK;
}

size_t dense_tensor_at(const dense_part *d, const tensor_info *t) { return section_base(d, t) + t->offset; }

moe_err dense_place(dense_part *d, const model_spec *spec)
{
    *d = (dense_part){.spec = spec};
    d->layer = calloc((size_t)spec->L, sizeof *d->layer);
    d->layout = calloc((size_t)spec->L, sizeof *d->layout);
    if (d->layer != NULL && d->layout != NULL) {
        d->floats = place_sections(d, spec);
        return MOE_OK;
    }
    dense_close(d);
    return moe_fail(MOE_E_OS, "dense part: out of memory");
}

moe_err dense_open(dense_part *d, const model_spec *spec, int seq_len, bool training)
{
    moe_err rc = MOE_OK;
    TRY(dense_place(d, spec));
    TRY_GOTO(list_ranges(d), rc, fail);
    TRY_GOTO(budget_alloc(&d->memory, layout_arrays(d, spec, seq_len, training, NULL) * sizeof(float), "dense part"), rc, fail);
    layout_arrays(d, spec, seq_len, training, d->memory);
    spec_rope_table(spec, seq_len, d->rope);
    return MOE_OK;
fail:
    dense_close(d);
    return rc;
}

void dense_close(dense_part *d)
{
    free(d->layer);
    free(d->layout);
    free(d->range);
    budget_free(d->memory);
    *d = (dense_part){0};
}

static moe_err init_tensor(const tensor_info *t, float *section, const moe_backend *be, moe_stream *s, uint64_t seed)
{
    float *w = section + t->offset;
    if (t->init_std == 0) {
        for (int64_t i = 0; i < t->cols * t->rows; i++)
            w[i] = t->init_value;
        return MOE_OK;
    }
    const random_normal_args a = {
        .w = w, .key = {seed, t->id, 0}, .N = t->rows, .K = t->cols, .std = (float)t->init_std, .panels = t->layout == TENSOR_PANELS,
    };
    return be->random_normal(&a, s);
}

moe_err dense_init(dense_part *d, const moe_backend *be, moe_stream *s, uint64_t seed)
{
    tensor_info *table;
    int64_t n;
    moe_err rc = MOE_OK;
    TRY(spec_tensors(d->spec, &table, &n));
    for (int64_t i = 0; i < n && rc == MOE_OK; i++)
        if (table[i].kind != SECTION_EXPERT)
            rc = init_tensor(&table[i], d->w + section_base(d, &table[i]), be, s, seed);
    free(table);
    return rc;
}

moe_err dense_import(dense_part *d, hf_reader *from)
{
    tensor_info *table;
    int64_t n;
    moe_err rc = MOE_OK;
    TRY(spec_tensors(d->spec, &table, &n));
    for (int64_t i = 0; i < n && rc == MOE_OK; i++)
        if (table[i].kind != SECTION_EXPERT)
            rc = hf_reader_read(from, &table[i], d->w + section_base(d, &table[i]));
    free(table);
    return rc;
}

void dense_zero_gradients(dense_part *d)
{
    memset(d->g, 0, d->floats * sizeof *d->g);
    if (d->tied_g != NULL)
        memset(d->tied_g, 0, d->embed_layout.floats * sizeof *d->tied_g);
}

moe_err dense_gradient_squares(dense_part *d, const moe_backend *be, moe_stream *s, double *squares)
{
    if (d->tied_g != NULL) {
        const add_args a = {.y = d->g + d->embed, .x = d->tied_g, .n = d->embed_layout.floats};
        TRY(be->add(&a, s));
    }
    const int L = d->spec->L;
    for (int i = 0; i < L + 2; i++) {
        const size_t begin = i == 0 ? d->embed : i <= L ? d->layer[i - 1] : d->head;
        const size_t floats = i == 0 ? d->embed_layout.floats : i <= L ? d->layout[i - 1].floats : d->head_layout.floats;
        const sum_squares_args a = {.out = &squares[i], .x = d->g + begin, .n = floats};
        TRY(be->sum_squares(&a, s));
    }
    return MOE_OK;
}

moe_err dense_update(dense_part *d, const moe_backend *be, moe_stream *s, const adamw_step *step)
{
    for (int i = 0; i < d->nranges; i++) {
        const dense_range *r = &d->range[i];
        const adamw_args a = {
            .w = {.w = d->w + r->offset}, .m = d->m + r->offset, .v = d->v + r->offset, .grad = d->g + r->offset, .steps = step, .nsteps = 1,
            .n = r->floats, .decay = r->decay,
        };
        TRY(be->adamw(&a, s));
    }
    return MOE_OK;
}
