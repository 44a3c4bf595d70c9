/* Pieces of block formats that both the conversion (numfmt.c) and the panels (qpanel.c, cpu/qmatmul*.c) read. Private to kernels/.
 * Owns the value tables. Any thread. Rule: ggml's layouts. */
#ifndef MOE_KERNELS_NUMFMT_PARTS_H
#define MOE_KERNELS_NUMFMT_PARTS_H

#include <stdint.h>

/* What the 16 nibbles of IQ4_NL and MXFP4 stand for. */
extern const int8_t numfmt_iq4_nl[16], numfmt_mxfp4[16];
/* The 6-bit scale and least of block b of the twelve bytes of Q4_K and Q5_K. */
void numfmt_k_scale(const uint8_t *packed, int b, uint8_t *scale, uint8_t *least);
/* n numbers, a multiple of 256, to Q4_K (numfmt_q4_k.c). */
void numfmt_q4_k_from(uint8_t *out, const float *in, int64_t n);

#endif
