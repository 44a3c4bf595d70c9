/* The double-precision functions of kernels/math.h. Owns the series and the argument reductions; the fp32 functions are inline there.
 * Pure, any thread. Rule: fma and + - * / only, never a libm function.
 * Series with exact rational coefficients (Taylor, atanh) cut where the rest is below 2^-58 of the result: longer than a minimax
 * polynomial and easy to check; none of them is in a hot loop. */
#include "kernels/math.h"

static uint64_t double_bits(double x)
{
    uint64_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static double double_from_bits(uint64_t u)
{
    double x;
    memcpy(&x, &u, sizeof x);
    return x;
}

static double times_power_of_two(double x, int n) { return x * double_from_bits((uint64_t)(1023 + n) << 52); }

#define ROUND 0x1.8p52
#define LOG2E 0x1.71547652b82fep+0
#define LN2_HI 0x1.62e42fefa0000p-1 /* 42 bits: exact times any exponent */
#define LN2_LO 0x1.cf79abc9e3b3ap-40

/* exp(x + lost), |lost| tiny beside x. */
static double exp_sum(double x, double lost)
{
    if (x != x)
        return x;
    if (x > 710.0)
        return INFINITY;
    if (x < -708.39)
        return 0.0;
    const double n = fma(x, LOG2E, ROUND) - ROUND;
    const double r = fma(n, -LN2_LO, fma(n, -LN2_HI, x)) + lost;
    static const double c[] = {1.0 / 6227020800.0, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320,
                               1.0 / 5040,       1.0 / 720,       1.0 / 120,      1.0 / 24,      1.0 / 6,      0.5, 1.0, 1.0};
    double p = c[0];
    for (size_t i = 1; i < sizeof c / sizeof *c; i++)
        p = fma(p, r, c[i]);
    const int half = (int)n / 2; /* in two steps: 2^n itself may be out of range */
    return times_power_of_two(times_power_of_two(p, half), (int)n - half);
}

double moe_exp(double x) { return exp_sum(x, 0.0); }

/* hi + lo = log(x) for finite normal x > 0; hi is the rounded value, lo what it misses (about 2^-90 of 1 is lost).
 * x = 2^e * m, m in [sqrt(1/2), sqrt(2)), s = (m - 1) / (m + 1), |s| <= 0.172: log(m) = 2 s + 2 s^3 (1/3 + s^2/5 + s^4/7 ...). */
static void log_parts(double x, double *hi, double *lo)
{
    const uint64_t bits = double_bits(x);
    const int64_t e = (int64_t)(bits - 0x3fe6a09e667f3bcdu) >> 52;
    const double m = double_from_bits(bits - ((uint64_t)e << 52)), n = (double)e;
    const double f = m - 1.0, g = m + 1.0, g_lost = f - (g - 2.0); /* g + g_lost = m + 1 */
    const double s = f / g, s_lost = fma(-s, g_lost, fma(-s, g, f)) / g;
    const double z = s * s;
    double p = 1.0 / 23;
    for (int k = 21; k >= 3; k -= 2)
        p = fma(p, z, 1.0 / k);
    const double head = fma(n, LN2_HI, 2.0 * s); /* |n LN2_HI| > |2 s| or n == 0 */
    const double head_lost = 2.0 * s - fma(-n, LN2_HI, head);
    const double tail = fma(2.0 * s * z, p, head_lost + fma(n, LN2_LO, 2.0 * s_lost));
    *hi = head + tail;
    *lo = tail - (*hi - head);
}

double moe_log(double x)
{
    if (x != x || x == INFINITY)
        return x;
    if (x < 0)
        return NAN;
    if (x < 0x1p-1022)
        return -INFINITY;
    double hi, lo;
    log_parts(x, &hi, &lo);
    return hi;
}

double moe_pow(double x, double y)
{
    if (y == 0 || x == 1)
        return 1.0;
    if (x != x || y != y || x < 0)
        return NAN;
    if (x < 0x1p-1022)
        return y > 0 ? 0.0 : INFINITY;
    if (x == INFINITY)
        return y > 0 ? INFINITY : 0.0;
    double hi, lo;
    log_parts(x, &hi, &lo);
    const double product = y * hi;
    if (!(product < 1000) || product < -1000) /* inf has no lost part; NaN: inf * 0 cannot be, x == 1 is above */
        return product > 0 ? INFINITY : 0.0;
    return exp_sum(product, fma(y, lo, fma(y, hi, -product)));
}

#define TWO_OVER_PI 0x1.45f306dc9c883p-1
#define PIO2_1 0x1.921fb54442d18p+0
#define PIO2_2 0x1.1a62633145c07p-54
#define PIO2_3 -0x1.f1976b7ed8fbcp-110

/* x = n pi/2 + r + lost, |r| <= pi/4; returns n mod 4. */
static unsigned reduce_quadrant(double x, double *r, double *lost)
{
    const double n = fma(x, TWO_OVER_PI, ROUND) - ROUND;
    const double a = fma(n, -PIO2_1, x);
    const double b = fma(n, -PIO2_2, a);
    *lost = fma(n, -PIO2_2, a - b) + n * -PIO2_3; /* exact up to the last term: b is a rounded sum with a small second part */
    *r = b;
    return (unsigned)((int64_t)n & 3);
}

static double sin_series(double r, double lost)
{
    static const double c[] = {1.0 / 355687428096000.0, -1.0 / 1307674368000.0, 1.0 / 6227020800.0, -1.0 / 39916800, 1.0 / 362880, -1.0 / 5040,
                               1.0 / 120,             -1.0 / 6};
    const double z = r * r;
    double p = c[0];
    for (size_t i = 1; i < sizeof c / sizeof *c; i++)
        p = fma(p, z, c[i]);
    return r + fma(r * z, p, fma(-0.5 * z, lost, lost));
}

static double cos_series(double r, double lost)
{
    static const double c[] = {1.0 / 20922789888000.0, -1.0 / 87178291200.0, 1.0 / 479001600, -1.0 / 3628800, 1.0 / 40320, -1.0 / 720, 1.0 / 24};
    const double z = r * r;
    double p = c[0];
    for (size_t i = 1; i < sizeof c / sizeof *c; i++)
        p = fma(p, z, c[i]);
    const double half = 0.5 * z, w = 1.0 - half; /* w + w_lost = 1 - z/2 */
    const double w_lost = (1.0 - w) - half;
    return w + fma(z * z, p, fma(-r, lost, w_lost));
}

static double sin_quadrant(double x, unsigned shift)
{
    if (x != x || x == INFINITY || x == -INFINITY)
        return NAN;
    double r, lost;
    const unsigned q = reduce_quadrant(x, &r, &lost) + shift;
    const double y = q & 1 ? cos_series(r, lost) : sin_series(r, lost);
    return q & 2 ? -y : y;
}

double moe_sin(double x) { return sin_quadrant(x, 0); }
double moe_cos(double x) { return sin_quadrant(x, 1); }
