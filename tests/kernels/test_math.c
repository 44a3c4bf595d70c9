/* kernels/math.h against libm in double, and kernels/cpu/vmath.h against kernels/math.h bit by bit. The samples are every STRIDE-th (libm:
 * LIBM_STRIDE-th) float of the whole range, so every exponent and both signs, and the values around every special case. */
#include <criterion/criterion.h>
#include <stdio.h>

#include "engine/base/pool.h"
#include "kernels/math.h"
#include "tests/kernels/math_probe.h"

enum { STRIDE = 197, LIBM_STRIDE = 1009, DOUBLES = 300000 };

/* Errors in units of the last place, measured over all floats: exp 0.866, log 0.800, sinpi 0.98, cospi 0.97. */
static const double EXP_ULP = 0.9, LOG_ULP = 0.85, SINPI_ULP = 1.0;
/* 1 / (1 + e): exp 0.9, the sum and the quotient 0.5 each, and e counts at most once; sum of relative errors below 2.5 ulp. */
static const double SIGMOID_ULP = 2.5;
static const double DOUBLE_ULP = 2.0;

static double ulp_of(double x)
{
    int e;
    frexp(x, &e);
    return ldexp(1.0, e - 24);
}

static double error_ulp(float got, double want) { return fabs((double)got - want) / ulp_of(want); }

static double worst, worst_at;

static void note(double error, double at)
{
    if (!(error <= worst))
        worst = error, worst_at = at;
}

static void verdict(const char *name, double limit)
{
    cr_expect(worst <= limit, "%s: error %.3f ulp at %a, limit %.3f", name, worst, worst_at, limit);
    worst = 0;
}

Test(math, exp_is_within_one_ulp_of_libm)
{
    moe_float_setup();
    for (uint64_t u = 0; u < UINT64_C(1) << 32; u += LIBM_STRIDE) {
        const float x = float_from_bits((uint32_t)u);
        if (!(x >= EXP_MIN && x <= EXP_MAX))
            continue;
        note(error_ulp(moe_expf(x), exp((double)x)), (double)x);
    }
    verdict("expf", EXP_ULP);
}

Test(math, log_is_within_one_ulp_of_libm)
{
    moe_float_setup();
    for (uint32_t u = 0x00800000; u < 0x7f800000; u += LIBM_STRIDE) {
        const float x = float_from_bits(u);
        const double want = log((double)x);
        note(want == 0 ? (moe_logf(x) == 0 ? 0 : INFINITY) : error_ulp(moe_logf(x), want), (double)x);
    }
    verdict("logf", LOG_ULP);
}

Test(math, sinpi_and_cospi_are_within_one_ulp_of_libm)
{
    moe_float_setup();
    const double pi = 3.14159265358979323846;
    for (uint32_t u = 0x10000000; u < 0x49800000; u += LIBM_STRIDE) { /* to 2^20 */
        const float x = float_from_bits(u);
        double r = remainder((double)x, 2.0), flip = 1; /* exact; then to [-1/2, 1/2], where pi*r has no cancellation */
        if (fabs(r) > 0.5)
            r = (r > 0 ? 1 - r : -1 - r), flip = -1;
        const double s = sin(pi * r), c = flip * sin(pi * (0.5 - fabs(r)));
        note(s == 0 ? fabs((double)moe_sinpif(x)) : error_ulp(moe_sinpif(x), s), (double)x);
        note(c == 0 ? fabs((double)moe_cospif(x)) : error_ulp(moe_cospif(x), c), (double)x);
        if (moe_sinpif(-x) != -moe_sinpif(x)) /* the assertion itself is slow */
            cr_assert_fail("sinpi(%a) is not odd", (double)x);
    }
    verdict("sinpif, cospif", SINPI_ULP);
}

Test(math, sigmoid_is_close_to_libm)
{
    moe_float_setup();
    for (float x = -87.0f; x < 87.0f; x += 0.0007f)
        note(error_ulp(moe_sigmoidf(x), 1.0 / (1.0 + exp(-(double)x))), (double)x);
    verdict("sigmoidf", SIGMOID_ULP);
}

Test(math, specials)
{
    moe_float_setup();
    const uint32_t nan_bits = 0x7fc12345;
    cr_expect(moe_expf(-INFINITY) == 0 && moe_expf(INFINITY) == INFINITY && moe_expf(0.0f) == 1 && moe_expf(-0.0f) == 1);
    cr_expect(moe_expf(EXP_MAX) <= 0x1.fffffep127f && moe_expf(nextafterf(EXP_MAX, 100)) == INFINITY);
    cr_expect(moe_expf(EXP_MIN) >= 0x1p-126f && moe_expf(nextafterf(EXP_MIN, -100)) == 0);
    cr_expect(float_bits(moe_expf(float_from_bits(nan_bits))) == nan_bits);
    cr_expect(moe_logf(0.0f) == -INFINITY && moe_logf(-0.0f) == -INFINITY && moe_logf(0x1p-127f) == -INFINITY);
    cr_expect(moe_logf(1.0f) == 0 && moe_logf(INFINITY) == INFINITY);
    cr_expect(float_bits(moe_logf(-1.0f)) == 0x7fc00000 && float_bits(moe_logf(-INFINITY)) == 0x7fc00000);
    cr_expect(float_bits(moe_logf(float_from_bits(nan_bits))) == nan_bits);
    cr_expect(float_bits(moe_logf(float_from_bits(nan_bits | 1u << 31))) == (nan_bits | 1u << 31));
    cr_expect(moe_sigmoidf(-INFINITY) == 0 && moe_sigmoidf(INFINITY) == 1 && moe_sigmoidf(0.0f) == 0.5f);
    for (int i = -8; i <= 8; i++) {
        const float want_s[4] = {0, 1, 0, -1}, want_c[4] = {1, 0, -1, 0};
        cr_expect(moe_sinpif((float)i * 0.5f) == want_s[i & 3] && moe_cospif((float)i * 0.5f) == want_c[i & 3], "at %d/2", i);
    }
}

static const char *const FUNCTIONS[] = {"exp", "log", "sigmoid", "sinpi", "cospi"};

static void compare_lanes(math_probe_fn probe, const float x[16])
{
    float got[5][16], want[16][5];
    probe(got[0], got[1], got[2], got[3], got[4], x);
    for (int i = 0; i < 16; i++) {
        want[i][0] = moe_expf(x[i]);
        want[i][1] = moe_logf(x[i]);
        want[i][2] = moe_sigmoidf(x[i]);
        moe_sincospif(x[i], &want[i][3], &want[i][4]);
        for (int f = 0; f < 5; f++)
            if (float_bits(got[f][i]) != float_bits(want[i][f]))
                cr_assert_fail("%s(%a): vector %a, scalar %a", FUNCTIONS[f], (double)x[i], (double)got[f][i], (double)want[i][f]);
    }
}

static void compare_all(math_probe_fn probe)
{
    moe_float_setup();
    static const float special[16] = {0.0f, -0.0f, INFINITY, -INFINITY, NAN, -NAN, 0x1p-149f, -0x1p-127f, EXP_MAX, EXP_MIN, 88.73f, -87.34f,
                                      0x1.fffffep127f, 0x1p-126f, 1.0f, -1.0f};
    compare_lanes(probe, special);
    float x[16];
    int lane = 0;
    for (uint64_t u = 0; u < UINT64_C(1) << 32; u += STRIDE) {
        x[lane++] = float_from_bits((uint32_t)u);
        if (lane == 16)
            compare_lanes(probe, x), lane = 0;
    }
}

Test(math, avx2_has_the_scalar_bits)
{
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma"))
        cr_skip_test("this processor has no AVX2");
    compare_all(math_probe_avx2);
}

Test(math, avx512_has_the_scalar_bits)
{
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
        cr_skip_test("this processor has no AVX-512");
    compare_all(math_probe_avx512);
}

/* A small generator, so that the sample is the same everywhere. */
static double next_unit(uint64_t *state)
{
    *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (double)(*state >> 11) * 0x1p-53;
}

static double error_ulp_double(double got, long double want)
{
    int e;
    frexp((double)want, &e);
    return (double)(fabsl((long double)got - want) / (long double)ldexp(1.0, e - 53));
}

Test(math, double_functions_are_within_two_ulp)
{
    moe_float_setup();
    uint64_t state = 1;
    for (int i = 0; i < DOUBLES; i++) {
        const double u = next_unit(&state), v = next_unit(&state);
        const double x = (u - 0.5) * (i % 2 ? 1300 : 2);
        note(error_ulp_double(moe_exp(x), expl((long double)x)), x);
        verdict("exp", DOUBLE_ULP);
        const double y = exp(x);
        note(error_ulp_double(moe_log(y), logl((long double)y)), y);
        verdict("log", DOUBLE_ULP);
        const double angle = (double)(float)((u - 0.5) * (i % 3 == 0 ? 10 : i % 3 == 1 ? 1e5 : 2e9));
        note(error_ulp_double(moe_sin(angle), sinl((long double)angle)), angle);
        note(error_ulp_double(moe_cos(angle), cosl((long double)angle)), angle);
        verdict("sin, cos", DOUBLE_ULP);
        const double base = i % 2 ? 1 + u * 1e7 : 0.9 + 0.1 * u, power = i % 2 ? (v - 0.5) * 20 : floor(v * 5000);
        const long double want = powl((long double)base, (long double)power);
        note(error_ulp_double(moe_pow(base, power), want) - 0.03 * fabs((double)logl(want)), base);
        verdict("pow", DOUBLE_ULP);
    }
}

Test(math, double_specials)
{
    cr_expect(moe_exp(0) == 1 && moe_exp(-INFINITY) == 0 && moe_exp(INFINITY) == INFINITY && isnan(moe_exp(NAN)));
    cr_expect(moe_log(1) == 0 && moe_log(0) == -INFINITY && isnan(moe_log(-1)) && moe_log(INFINITY) == INFINITY);
    cr_expect(moe_sin(0) == 0 && moe_cos(0) == 1 && isnan(moe_sin(INFINITY)) && isnan(moe_cos(NAN)));
    cr_expect(moe_pow(0.9, 0) == 1 && moe_pow(0, 2) == 0 && moe_pow(2, 10) == 1024 && moe_pow(10000, 0.5) == 100);
    cr_expect(moe_pow(2, 5000) == INFINITY && moe_pow(2, -5000) == 0 && isnan(moe_pow(-1, 2)) && moe_pow(0, -1) == INFINITY);
    cr_expect(moe_pow(0.999, 1) == 0.999);
}
