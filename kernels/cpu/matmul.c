/* The three products with a weight matrix, fast (kernels/matmul.h). */
#include "kernels/cpu/simd.h"
#include "kernels/tables.h"

moe_err ISA(matmul_forward)(const matmul_args *a, moe_stream *s) { return matmul_forward_ref(a, s); }
moe_err ISA(matmul_dx)(const matmul_args *a, moe_stream *s) { return matmul_dx_ref(a, s); }
moe_err ISA(matmul_dw)(const matmul_args *a, moe_stream *s) { return matmul_dw_ref(a, s); }
