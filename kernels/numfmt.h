/* How numbers are stored: one enum, one table of descriptors, and the conversion of rows to fp32. Everything that reads weights at rest
 * (safetensors, GGUF, packed records) names its format with this. Block formats follow ggml: `block` numbers along a row share a scale.
 * In F8_E4M3 what is stored as NaN is NaN, and a number is the nearest fp32 of code times scale.
 * Conversions are exact and the same everywhere (no libm). */
#ifndef MOE_KERNELS_NUMFMT_H
#define MOE_KERNELS_NUMFMT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum numfmt {
    NUM_F32,
    NUM_F16,
    NUM_BF16,
    NUM_Q4_0,
    NUM_Q4_1,
    NUM_Q8_0,
    NUM_Q5_0,
    NUM_Q5_1,
    NUM_Q4_K,
    NUM_Q5_K,
    NUM_Q6_K,
    NUM_IQ4_NL,
    NUM_MXFP4,
    NUM_F8_E4M3, /* fp32 scale, 128 numbers in E4M3: a row of DeepSeek's 128 x 128 blocks */
    NUM_FORMATS
} numfmt;

typedef struct numfmt_info {
    const char *name; /* "q4_0": command line and output */
    int block;        /* numbers that are stored together, 1 for plain formats */
    int bytes;        /* of one block */
    bool writable;    /* numfmt_from_f32 exists; the others are only read */
} numfmt_info;

const numfmt_info *numfmt_about(numfmt f);
/* -1 when there is no such name. */
int numfmt_find(const char *name);
/* Bytes of a row of K numbers; K is a multiple of the block (checked where files are opened). */
static inline size_t numfmt_row_bytes(numfmt f, int64_t K)
{
    return (size_t)(K / numfmt_about(f)->block) * (size_t)numfmt_about(f)->bytes;
}
/* K numbers at rest -> fp32, and back (nearest; block formats as ggml's reference quantisers, but for
 * the scales of Q4_K, which are our own choice; F8_E4M3: the largest magnitude becomes 448). An MXFP4 scale below
 * 2^-126 is a denormal: engine threads read it as 0. */
void numfmt_to_f32(float *out, const void *row, numfmt f, int64_t K);
void numfmt_from_f32(void *row, const float *in, numfmt f, int64_t K);

#endif
