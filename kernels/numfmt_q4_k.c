/* fp32 -> Q4_K. Owns the search for scales; the layout is ggml's (kernels/numfmt.c reads it), the choice of scales is our own.
 * 256 numbers are eight blocks of 32, each d * scale * q - dmin * least with 4-bit q and 6-bit scale and least. A block first finds its own
 * pair: for a few widths of the grid the numbers are rounded, and the pair that then has the least squared error is computed; the best
 * stays. Then the pairs are rounded to multiples of the 256 numbers' d and dmin, and the numbers once more with what is stored.
 * Any thread, no state. Rule: no libm, fixed order of sums: the same file everywhere. */
#include <math.h>
#include <string.h>

#include "kernels/half.h"
#include "kernels/numfmt_parts.h"

enum { Q = 32, BLOCKS = 8, SUPER = Q * BLOCKS, LEVELS = 15, LEVELS_SCALE = 63, WIDTHS = 20 };
static const float LEAST = 0x1p-100f; /* a smaller range is none */

/* x is about scale * q - least, both not negative. */
typedef struct pair {
    float scale, least;
} pair;

/* Nearest, halves away from zero, into [0, most]; a NaN is 0. */
static int whole(float x, int most) { return x >= (float)most ? most : x > 0 ? (int)(x + 0.5f) : 0; }

static float round_block(uint8_t *q, const float *x, pair p)
{
    const float inverse = p.scale > 0 ? 1.0f / p.scale : 0.0f;
    float error = 0;
    for (int i = 0; i < Q; i++) {
        q[i] = (uint8_t)whole((x[i] + p.least) * inverse, LEVELS);
        const float off = p.scale * (float)q[i] - p.least - x[i];
        error += off * off;
    }
    return error;
}

/* The pair of least squared error for given q. */
static pair fit(const uint8_t *q, const float *x)
{
    float sq = 0, sqq = 0, sx = 0, sxq = 0;
    for (int i = 0; i < Q; i++) {
        const float l = (float)q[i];
        sq += l, sqq += l * l, sx += x[i], sxq += x[i] * l;
    }
    const float det = (float)Q * sqq - sq * sq;
    if (det <= 0)
        return (pair){0, sx < 0 ? -sx / (float)Q : 0};
    pair p = {((float)Q * sxq - sq * sx) / det, (sq * sxq - sqq * sx) / det};
    if (p.least < 0) /* a format without positive offsets: through the origin */
        p = (pair){sqq > 0 ? sxq / sqq : 0, 0};
    if (!(p.scale > 0))
        p.scale = 0;
    return p;
}

static pair search(const float *x)
{
    float low = 0, high = x[0];
    for (int i = 0; i < Q; i++) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
    }
    if (!(high - low >= LEAST))
        return (pair){0, 0};
    uint8_t q[Q];
    pair best = {(high - low) / LEVELS, -low};
    float error = round_block(q, x, best);
    for (int w = 0; w <= WIDTHS; w++) {
        const pair start = {(high - low) / ((float)LEVELS - 1.0f + 0.1f * (float)w), -low};
        round_block(q, x, start);
        const pair p = fit(q, x);
        const float e = round_block(q, x, p);
        if (e < error)
            error = e, best = p;
    }
    return best;
}

static void put_scales(uint8_t *packed, const uint8_t *scale, const uint8_t *least)
{
    for (int b = 0; b < 4; b++) {
        packed[b] = (uint8_t)(scale[b] | scale[4 + b] >> 4 << 6);
        packed[4 + b] = (uint8_t)(least[b] | least[4 + b] >> 4 << 6);
        packed[8 + b] = (uint8_t)((scale[4 + b] & 15) | least[4 + b] << 4);
    }
}

static void super_block(uint8_t *out, const float *in)
{
    pair p[BLOCKS], most = {0, 0};
    uint8_t scale[BLOCKS], least[BLOCKS], q[BLOCKS][Q];
    for (int b = 0; b < BLOCKS; b++) {
        p[b] = search(in + b * Q);
        most.scale = p[b].scale > most.scale ? p[b].scale : most.scale;
        most.least = p[b].least > most.least ? p[b].least : most.least;
    }
    const uint16_t d = half_from_float(most.scale / LEVELS_SCALE), dm = half_from_float(most.least / LEVELS_SCALE);
    const float ds = half_to_float(d), dl = half_to_float(dm);
    for (int b = 0; b < BLOCKS; b++) {
        scale[b] = (uint8_t)(ds > 0 ? whole(p[b].scale / ds, LEVELS_SCALE) : 0);
        least[b] = (uint8_t)(dl > 0 ? whole(p[b].least / dl, LEVELS_SCALE) : 0);
        round_block(q[b], in + b * Q, (pair){ds * (float)scale[b], dl * (float)least[b]});
    }
    memcpy(out, &d, sizeof d), memcpy(out + 2, &dm, sizeof dm);
    put_scales(out + 4, scale, least);
    for (int i = 0; i < SUPER / 2; i++)
        out[16 + i] = (uint8_t)(q[i / Q * 2][i % Q] | q[i / Q * 2 + 1][i % Q] << 4);
}

void numfmt_q4_k_from(uint8_t *out, const float *in, int64_t n)
{
    for (; n > 0; n -= SUPER, out += 16 + SUPER / 2, in += SUPER)
        super_block(out, in);
}
