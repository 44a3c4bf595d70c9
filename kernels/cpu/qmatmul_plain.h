/* The chained formats (kernels/qpanel.h), for kernels/cpu/qmatmul.c: one fma chain over k (kernels/qmatmul.h). Any thread.
 * Rule: plain_run is given a matrix in F32, F16, BF16 or F8_E4M3 and finishes it. */
#ifndef MOE_KERNELS_CPU_QMATMUL_PLAIN_H
#define MOE_KERNELS_CPU_QMATMUL_PLAIN_H

#include "kernels/qmatmul.h"

moe_err qmatmul_plain_avx2(const qmatmul_args *a, const qmatrix *m, moe_stream *s);
moe_err qmatmul_plain_avx512(const qmatmul_args *a, const qmatrix *m, moe_stream *s);

#endif
