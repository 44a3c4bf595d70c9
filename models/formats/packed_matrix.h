/* One tensor of an open model -> the form it has in a packed folder (formats/packed.h): rows in order, converted where the format differs,
 * matrices as panels. Private to models/. Owns its scratch; one thread. */
#ifndef MOE_MODELS_FORMATS_PACKED_MATRIX_H
#define MOE_MODELS_FORMATS_PACKED_MATRIX_H

#include "models/model.h"

typedef struct packed_matrix { /* {0} is empty */
    uint8_t *stored, *scales; /* what rows are put together from */
    uint8_t *raw;             /* rows in the format they have */
    uint8_t *rows;            /* some of them in the new format */
    float *floats;            /* one row */
    float *expert;            /* panels of one made from its parts, and which one (+ 1) */
    int layer, number;
    uint8_t *part[MODEL_RANGES];
    size_t part_bytes[MODEL_RANGES], expert_bytes;
    size_t stored_bytes, scales_bytes, raw_bytes, rows_bytes, floats_bytes;
} packed_matrix;

/* out: qpanel_bytes(f, rows, cols) for panels, rows * numfmt_row_bytes(f, cols) otherwise. MOE_E_DATA when a number of the source is not finite and is to be
 * converted, or where model_rows says so. */
moe_err packed_matrix_load(packed_matrix *p, const model *m, const tensor_info *t, numfmt f, uint8_t *out) MOE_MUST_CHECK;
void packed_matrix_free(packed_matrix *p);

#endif
