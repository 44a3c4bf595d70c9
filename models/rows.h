/* Where the rows of one tensor lie at rest, and how they come out of its bytes: most are stored as the engine reads them, some are put together
 * from what lies apart (a matrix of codes and one of scales), between others (gate and up rows in turn) or across (a transposed matrix).
 * Pure: the reader of the bytes asks which ones it needs (spans), reads them as it likes, and gets rows in `format`.
 * Threads: any. Rule: whatever the stored form, the same numbers give the same rows, bit by bit. */
#ifndef MOE_MODELS_ROWS_H
#define MOE_MODELS_ROWS_H

#include "engine/base/error.h"
#include "kernels/numfmt.h"
#include "models/spec.h"

typedef enum model_stored {
    STORED_ROWS,    /* rows of `format`, as they are                                                                                       */
    STORED_FP8,     /* DeepSeek: a code (E4M3) a number; an fp32 scale for 128 x 128 of them in a matrix of its own, [rows / 128, cols / 128]
                       rounded up. `format` is NUM_F8_E4M3                                                                                 */
    STORED_MXFP4,   /* gpt-oss: 16 bytes for 32 numbers, number 2i in the low half of byte i, 2i + 1 in the high one; a byte of scale
                       (E8M0) for them in a matrix of its own [rows, cols / 32]. `format` is NUM_MXFP4                                     */
    STORED_COLUMNS, /* transposed: [cols, row_bytes], numbers of a plain format                                                            */
    STORED_HEADS,        /* head_rows rows of each head, which begin at stored row head * head_step + head_first; with scales: as STORED_FP8 */
    STORED_HEAD_COLUMNS, /* the same, but transposed: head_rows numbers in each of `cols` stored rows, in `stored_format`; `format` is the
                            same, or f32 where that is a block format, whose blocks lie across the rows that come out: exact               */
} model_stored;

/* Row r of the logical matrix [rows, cols] is stored row (STORED_COLUMNS: column) row_step * r + row_first from `offset` on, stored rows
 * row_bytes apart; but for `heads_interleaved` (llama in GGUF: rows of each head are stored pairwise): logical row h * hd + i lies at stored row
 * h * hd + (i < hd / 2 ? 2 * i : 2 * (i - hd / 2) + 1). */
typedef struct model_extent {
    int file;               /* index for model_path                                                   */
    uint64_t offset, bytes; /* of gate and up in turn: of both                                        */
    size_t row_bytes;       /* from one stored row to the next; 0 for panels                          */
    numfmt format;          /* of the rows that come out                                              */
    model_stored stored;
    int row_step, row_first; /* 1 and 0; 2 and 0, 2 and 1 where gate and up rows take turns           */
    int head_rows, head_step, head_first; /* STORED_HEADS, STORED_HEAD_COLUMNS                        */
    numfmt stored_format;    /* STORED_HEADS, STORED_HEAD_COLUMNS                                     */
    int scale_file;          /* the matrix of scales; scale_bytes 0: none                             */
    uint64_t scale_offset, scale_bytes;
    size_t scale_row_bytes;
    bool heads_interleaved; /* of a vector (a bias): its elements, in the same way                    */
    bool panels;            /* packed folders, TENSOR_PANELS: qpanel_bytes(format, rows, cols) bytes, as kernels/qmatmul.h wants them; TENSOR_HEADS: a matrix for each head */
    bool summed;            /* packed folders, all but experts: `sum` is the XXH3-64 of the bytes     */
    uint64_t sum;
} model_extent;

/* The stored bytes are rows of `format`, one after the other: nothing to put together. */
bool model_rows_plain(const model_extent *e);
/* e, whose file, offset, format and scales are known, becomes the keys or the values in kv_b_proj [H * (nope + value), kv_lora_rank]: of each head
 * nope rows that are transposed to [kv_lora_rank, nope], then the values' rows. MOE_E_DATA when a row is no whole number of blocks. */
moe_err model_rows_in_kv_b(model_extent *e, const char *path, bool keys, const model_spec *m) MOE_MUST_CHECK;

typedef struct model_span {
    uint64_t at; /* from the extent's offset, or scale_offset */
    size_t bytes;
} model_span;
/* What must be read for rows [first, first + n): of the matrix, and of its scales (0 bytes: none). Gate and up in turn have the same spans. */
model_span model_rows_span(const model_extent *e, int64_t first, int64_t n);
model_span model_scales_span(const model_extent *e, int64_t first, int64_t n);

/* Rows that have been read: the spans of `first` and any number of them. */
typedef struct model_source {
    const model_extent *at;
    const char *path, *name; /* of the file and the tensor, for messages */
    int64_t cols, first;
    const uint8_t *stored, *scales; /* any alignment */
} model_source;
/* Rows [row, row + n) in at->format, one after the other; they are among those that were read. MOE_E_DATA where a scale or a code
 * is no number, or a scale of FP8 is neither 0 nor from 2^-120 to 2^100. */
moe_err model_rows(const model_source *s, int64_t row, int64_t n, void *out) MOE_MUST_CHECK;

#endif
