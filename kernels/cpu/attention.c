/* Causal attention, fast (kernels/attention.h). */
#include "kernels/cpu/simd.h"
#include "kernels/tables.h"

moe_err ISA(attention_forward)(const attention_args *a, moe_stream *s) { return attention_forward_ref(a, s); }
moe_err ISA(attention_backward)(const attention_args *a, moe_stream *s) { return attention_backward_ref(a, s); }
