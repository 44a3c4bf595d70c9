/* The vector functions of kernels/cpu/vmath.h behind ordinary symbols, compiled once per instruction set for test_math.c. */
#include "kernels/cpu/vmath.h"
#include "tests/kernels/math_probe.h"

void ISA(math_probe)(float *exps, float *logs, float *sigmoids, float *sines, float *cosines, const float *x)
{
    const v16 a = v16_load(x);
    v16 s, c;
    v16_store(exps, v16_exp(a));
    v16_store(logs, v16_log(a));
    v16_store(sigmoids, v16_sigmoid(a));
    v16_sincospi(a, &s, &c);
    v16_store(sines, s);
    v16_store(cosines, c);
}
