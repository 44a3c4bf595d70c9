/* Owns the way of one tensor into a packed folder. Reads a few MiB of rows at a time; only rows that stand pairwise per head (model_extent.
 * heads_interleaved), transposed matrices and panels are read whole.
 * Threads: one per packed_matrix.
 * Rule: a tensor whose format stays keeps its bits. */
#include "models/formats/packed_matrix.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/qmatmul.h"

enum { CHUNK_BYTES = 4 << 20 };

static moe_err grow(void *block, size_t *have, size_t want)
{
    void **p = block;
    if (want <= *have)
        return MOE_OK;
    free(*p);
    *have = 0;
    *p = malloc(want);
    if (*p == NULL)
        return moe_fail(MOE_E_OS, "out of memory for %zu bytes of a matrix", want);
    *have = want;
    return MOE_OK;
}

void packed_matrix_free(packed_matrix *p)
{
    for (int i = 0; i < MODEL_RANGES; i++)
        free(p->part[i]);
    free(p->expert);
    free(p->stored);
    free(p->scales);
    free(p->raw);
    free(p->rows);
    free(p->floats);
    *p = (packed_matrix){0};
}

/* Where logical row r of n stored rows in heads of hd lies (model.h). */
static int64_t stored_row(const model_extent *e, int hd, int64_t r)
{
    const int64_t h = r / hd, i = r % hd;
    return !e->heads_interleaved ? r : h * hd + (i < hd / 2 ? 2 * i : 2 * (i - hd / 2) + 1);
}

static moe_err check_finite(const model *m, const model_extent *e, const tensor_info *t, const float *x)
{
    for (int64_t k = 0; k < t->cols; k++)
        if (!isfinite(x[k]))
            return moe_fail(MOE_E_DATA, "%s: %s holds a number that is not finite", model_path(m, e->file), t->name);
    return MOE_OK;
}

/* Rows [first, first + n) in the format they have, to p->raw. */
static moe_err read_rows(packed_matrix *p, const model *m, const model_extent *e, const tensor_info *t, int64_t first, int64_t n)
{
    const model_span span = model_rows_span(e, first, n), scales = model_scales_span(e, first, n);
    TRY(grow(&p->raw, &p->raw_bytes, (size_t)n * numfmt_row_bytes(e->format, t->cols)));
    if (model_rows_plain(e))
        return model_read(m, e->file, e->offset + span.at, p->raw, span.bytes);
    TRY(grow(&p->stored, &p->stored_bytes, span.bytes));
    TRY(grow(&p->scales, &p->scales_bytes, scales.bytes));
    TRY(model_read(m, e->file, e->offset + span.at, p->stored, span.bytes));
    if (scales.bytes > 0)
        TRY(model_read(m, e->scale_file, e->scale_offset + scales.at, p->scales, scales.bytes));
    const model_source from = {.at = e, .path = model_path(m, e->file), .name = t->name, .cols = t->cols, .first = first, .stored = p->stored,
                               .scales = p->scales};
    return model_rows(&from, first, n, p->raw);
}

/* Of the matrices that a tensor of panels is: one, or one for each head. */
static int64_t panel_rows(const model *m, const tensor_info *t) { return t->layout == TENSOR_HEADS ? t->rows / model_spec_of(m)->H : t->rows; }

/* Logical rows [first, first + n) in format f, one after the other, at `to`; raw: the rows from number `base` on. */
static moe_err convert_rows(packed_matrix *p, const model *m, const model_extent *e, const tensor_info *t, numfmt f, int64_t base, int64_t first,
                            int64_t n, uint8_t *to)
{
    const int hd = model_spec_of(m)->hd;
    const size_t row = numfmt_row_bytes(f, t->cols);
    TRY(grow(&p->floats, &p->floats_bytes, (size_t)t->cols * sizeof(float)));
    for (int64_t i = 0; i < n; i++, to += row) {
        const uint8_t *from = p->raw + (size_t)(stored_row(e, hd, first + i) - base) * numfmt_row_bytes(e->format, t->cols);
        if (f == e->format && !e->panels) {
            memcpy(to, from, row);
            continue;
        }
        if (e->panels) {
            const int64_t rows = panel_rows(m, t), part = (first + i) / rows;
            qpanel_row(p->floats, p->raw + (size_t)part * qpanel_bytes(e->format, rows, t->cols), e->format, first + i - part * rows, rows, t->cols);
        } else {
            numfmt_to_f32(p->floats, from, e->format, t->cols);
        }
        TRY(check_finite(m, e, t, p->floats));
        numfmt_from_f32(to, p->floats, f, t->cols);
    }
    return MOE_OK;
}

/* A vector: fp32, its elements in order. */
static moe_err load_vector(packed_matrix *p, const model *m, const model_extent *e, const tensor_info *t, uint8_t *out)
{
    const int hd = model_spec_of(m)->hd;
    TRY(grow(&p->floats, &p->floats_bytes, (size_t)t->cols * sizeof(float)));
    TRY(read_rows(p, m, e, t, 0, 1));
    numfmt_to_f32(p->floats, p->raw, e->format, t->cols);
    for (int64_t i = 0; i < t->cols; i++)
        memcpy(out + 4 * (size_t)i, &p->floats[stored_row(e, hd, i)], 4);
    return MOE_OK;
}

/* The expert of tensor t in p->expert: its three matrices are asked for one after the other. */
static moe_err make_expert(packed_matrix *p, const model *m, const tensor_info *t)
{
    const model_experts *source = model_expert_source(m);
    tensor_info info[3];
    model_range range[MODEL_RANGES];
    void *raw[MODEL_RANGES] = {0};
    size_t bytes = 0;
    if (p->layer == t->layer + 1 && p->number == t->expert + 1)
        return MOE_OK;
    spec_expert_tensors(model_spec_of(m), t->layer, t->expert, info);
    for (int i = 0; i < 3; i++)
        bytes += qpanel_bytes(NUM_F32, info[i].rows, info[i].cols);
    TRY(grow(&p->expert, &p->expert_bytes, bytes));
    p->layer = p->number = 0;
    const int n = source->ranges(source->user, t->layer, t->expert, range);
    for (int i = 0; i < n; i++) {
        TRY(grow(&p->part[i], &p->part_bytes[i], range[i].bytes));
        TRY(model_read(m, range[i].file, range[i].offset, p->part[i], range[i].bytes));
        raw[i] = p->part[i];
    }
    TRY(source->land(source->user, NULL, t->layer, t->expert, raw, p->expert));
    p->layer = t->layer + 1;
    p->number = t->expert + 1;
    return MOE_OK;
}

/* The bytes of panels. */
static moe_err read_panels(packed_matrix *p, const model *m, const model_extent *e, const tensor_info *t, uint8_t *out)
{
    if (t->kind != SECTION_EXPERT || model_expert_source(m) == NULL)
        return model_read(m, e->file, e->offset, out, e->bytes);
    TRY(make_expert(p, m, t));
    memcpy(out, p->expert + t->offset, e->bytes);
    return MOE_OK;
}

moe_err packed_matrix_load(packed_matrix *p, const model *m, const tensor_info *t, numfmt f, uint8_t *out)
{
    model_extent e;
    model_find(m, t, &e);
    if (t->layout == TENSOR_VECTOR)
        return load_vector(p, m, &e, t, out);
    if (e.panels && f == e.format)
        return read_panels(p, m, &e, t, out);
    const bool whole = e.panels || e.heads_interleaved || e.stored == STORED_COLUMNS;
    const size_t row = numfmt_row_bytes(f, t->cols), stored = whole ? 0 : numfmt_row_bytes(e.format, t->cols);
    int64_t rows = (int64_t)(CHUNK_BYTES / (stored > row ? stored : row)) / PANEL * PANEL;
    rows = rows < PANEL ? PANEL : rows > t->rows ? t->rows : rows;
    if (t->layout == TENSOR_HEADS)
        rows = panel_rows(m, t);
    TRY(grow(&p->rows, &p->rows_bytes, (size_t)rows * row));
    if (e.panels) {
        TRY(grow(&p->raw, &p->raw_bytes, e.bytes));
        TRY(read_panels(p, m, &e, t, p->raw));
    } else if (whole) {
        TRY(read_rows(p, m, &e, t, 0, t->rows));
    }
    for (int64_t first = 0; first < t->rows; first += rows) {
        const int64_t n = t->rows - first < rows ? t->rows - first : rows;
        if (!whole)
            TRY(read_rows(p, m, &e, t, first, n));
        if (t->layout == TENSOR_ROWS) {
            TRY(convert_rows(p, m, &e, t, f, whole ? 0 : first, first, n, out + (size_t)first * row));
            continue;
        }
        TRY(convert_rows(p, m, &e, t, f, whole ? 0 : first, first, n, p->rows));
        if (t->layout == TENSOR_HEADS)
            qpanel_pack(out + (size_t)(first / rows) * qpanel_bytes(f, rows, t->cols), p->rows, row, f, rows, t->cols, 0, rows);
        else
            qpanel_pack(out, p->rows, row, f, t->rows, t->cols, first, n);
    }
    return MOE_OK;
}
