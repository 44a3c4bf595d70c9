/* Sixteen values through every function of kernels/cpu/vmath.h; a twin per instruction set. */
#ifndef MOE_TESTS_KERNELS_MATH_PROBE_H
#define MOE_TESTS_KERNELS_MATH_PROBE_H

typedef void (*math_probe_fn)(float *exps, float *logs, float *sigmoids, float *sines, float *cosines, const float *x);

void math_probe_avx2(float *exps, float *logs, float *sigmoids, float *sines, float *cosines, const float *x);
void math_probe_avx512(float *exps, float *logs, float *sigmoids, float *sines, float *cosines, const float *x);

#endif
