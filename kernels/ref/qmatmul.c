/* Products with weights as they are stored: the definition (kernels/qmatmul.h). Block by block, so that a reader sees the sums.
 * Owns nothing, runs on the calling thread.
 * Rule: the chain of an output lives in y between blocks; every fast version is compared with it bit by bit. */
#include "kernels/qmatmul.h"

#include <math.h>

#include "kernels/half.h"
#include "kernels/qpanel.h"
#include "kernels/tables.h"

typedef struct activations {
    int8_t a[QBLOCK];
    float d, s;
} activations;

static activations quantise(const float *x)
{
    activations q = {.d = 0};
    uint32_t most = 0; /* the bits of magnitudes are in their order, infinities and NaN last */
    for (int i = 0; i < QBLOCK; i++) {
        const uint32_t bits = float_bits(x[i]) & 0x7fffffffu;
        most = bits > most ? bits : most;
    }
    const float amax = bits_float(most);
    int sum = 0;
    const float d = most >= 0x7f800000u ? bits_float(0x7fc00000u) : amax < QACT_LEAST ? 0.0f : amax / 127.0f;
    for (int i = 0; i < QBLOCK && d > 0; i++) {
        q.a[i] = (int8_t)rintf(x[i] * (127.0f / amax));
        sum += q.a[i];
    }
    q.d = qact_scale(d);
    q.s = qact_scale((float)sum * d);
    return q;
}

/* One block's part of the chain. */
static float add_block(float y, const activations *x, const qpanel_piece *w, numfmt f)
{
    const int step = qpanel_halves(f) ? QBLOCK / 2 : QBLOCK;
    for (int first = 0; first < QBLOCK; first += step) {
        int sum = 0;
        for (int i = first; i < first + step; i++)
            sum += w->q[i] * x->a[i];
        y = fmaf((float)sum, w->scale[first / 16] * x->d, y);
    }
    return qpanel_least(f) ? fmaf(x->s, w->least, y) : y;
}

static void block_rows(const qmatmul_args *a, const qmatrix *m, int g, size_t r)
{
    for (int b = 0; b < a->K / QBLOCK; b++) {
        const activations x = quantise(a->x + r * a->ldx + (size_t)b * QBLOCK);
        for (int n = 0; n < m->N; n++) {
            float *y = m->y + r * m->ldy + (size_t)n;
            qpanel_piece w;
            qpanel_read(&w, m->w[g], m->format, n, b, m->N, a->K);
            *y = add_block(*y, &x, &w, m->format);
        }
    }
}

static void chain_rows(const qmatmul_args *a, const qmatrix *m, int g, size_t r)
{
    for (int n = 0; n < m->N; n++) {
        float *y = m->y + r * m->ldy + (size_t)n;
        for (int k = 0; k < a->K; k++)
            *y = fmaf(a->x[r * a->ldx + (size_t)k], qpanel_element(m->w[g], m->format, n, k, m->N, a->K), *y);
    }
}

moe_err qmatmul_ref(const qmatmul_args *a, moe_stream *s)
{
    (void)s;
    TRY(qmatmul_check(a));
    for (int i = 0; i < a->M; i++) {
        const qmatrix *m = &a->mat[i];
        for (int g = 0; g < a->G; g++)
            for (size_t r = (size_t)a->offset[g]; r < (size_t)a->offset[g + 1]; r++) {
                for (int n = 0; n < m->N && !a->accumulate; n++)
                    m->y[r * m->ldy + (size_t)n] = 0.0f;
                if (qpanel_chained(m->format))
                    chain_rows(a, m, g, r);
                else
                    block_rows(a, m, g, r);
            }
    }
    return MOE_OK;
}
