/* The stages that choose among candidates (sampler.h says what each one keeps). Owns no memory; pure functions of their arguments.
 * Nothing sorts the vocabulary: the largest few are selected with a heap of that size, and more of them only when those do not reach
 * the mass that is asked for.
 * Rule: every sum runs over the candidates in their present order, in double. */
#include "engine/serve/sampler_private.h"

enum { FIRST_SELECTED = 256, SELECT_GROWTH = 8 }; /* most nuclei have fewer tokens than the first */

/* key[0, n) is a heap with the smallest on top, but for the element at i. */
static void sift(uint64_t *key, int n, int i)
{
    const uint64_t moved = key[i];
    for (int child; (child = 2 * i + 1) < n; i = child) {
        child += child + 1 < n && key[child + 1] < key[child];
        if (key[child] >= moved)
            break;
        key[i] = key[child];
    }
    key[i] = moved;
}

static void swap(uint64_t *a, uint64_t *b)
{
    const uint64_t t = *a;
    *a = *b;
    *b = t;
}

void candidates_select(uint64_t *key, int n, int k)
{
    if (k == 0)
        return;
    for (int i = k / 2; i-- > 0;)
        sift(key, k, i);
    for (int i = k; i < n; i++)
        if (key[i] > key[0]) {
            swap(&key[i], &key[0]);
            sift(key, k, 0);
        }
    for (int end = k - 1; end > 0; end--) {
        swap(&key[0], &key[end]);
        sift(key, end, 0);
    }
}

static float logit_of(const candidates *c, int i) { return c->logit[key_token(c->key[i])]; }

static float largest(const candidates *c)
{
    uint64_t best = c->key[0];
    for (int i = 1; !c->sorted && i < c->n; i++)
        best = c->key[i] > best ? c->key[i] : best;
    return c->logit[key_token(best)];
}

static double mass(const candidates *c, float top)
{
    double total = 0;
    for (int i = 0; i < c->n; i++)
        total += moe_expf(logit_of(c, i) - top);
    return total;
}

void candidates_top_k(candidates *c, int64_t k)
{
    if (k >= c->n)
        return;
    candidates_select(c->key, c->n, (int)k);
    c->n = (int)k;
    c->sorted = true;
}

/* Orders ever more of order[0, n) until the mass of the first ones reaches `enough`; how many those are. */
static int reach(uint64_t *order, int n, bool sorted, const float *logit, float top, double enough)
{
    for (int k = n < FIRST_SELECTED ? n : FIRST_SELECTED;; k = n / SELECT_GROWTH < k ? n : k * SELECT_GROWTH) {
        if (!sorted)
            candidates_select(order, n, k);
        double sum = 0;
        for (int i = 0; i < k; i++) {
            sum += moe_expf(logit[key_token(order[i])] - top);
            if (sum >= enough)
                return i + 1;
        }
        if (k == n)
            return n;
    }
}

void candidates_top_p(candidates *c, double p)
{
    const float top = largest(c);
    const double total = mass(c, top);
    c->n = reach(c->key, c->n, c->sorted, c->logit, top, p * total);
    c->sorted = true;
}

/* With x = l - top and Z the mass, log p = x - log Z and the entropy is log Z - sum p x: what is compared is |x - sum p x|. */
void candidates_typical(candidates *c, double p)
{
    const float top = largest(c);
    double total = 0, weighted = 0;
    for (int i = 0; i < c->n; i++) {
        const float x = logit_of(c, i) - top, e = moe_expf(x);
        total += e;
        weighted += e > 0 ? (double)e * x : 0;
    }
    const double mean = weighted / total;
    for (int i = 0; i < c->n; i++) {
        const int32_t token = key_token(c->key[i]);
        c->spare[i] = key_make(-(float)fabs((double)(c->logit[token] - top) - mean), token);
    }
    const int n = reach(c->spare, c->n, false, c->logit, top, p * total);
    for (int i = 0; i < n; i++) {
        const int32_t token = key_token(c->spare[i]);
        c->key[i] = key_make(c->logit[token], token);
    }
    c->n = n;
    c->sorted = n == 1;
}

void candidates_min_p(candidates *c, double p)
{
    const float top = largest(c);
    int n = 0;
    for (int i = 0; i < c->n; i++)
        if (moe_expf(logit_of(c, i) - top) >= p)
            c->key[n++] = c->key[i];
    c->n = n;
}

void candidates_xtc(candidates *c, double threshold)
{
    const float top = largest(c);
    const double enough = threshold * mass(c, top);
    uint64_t least = UINT64_MAX;
    int likely = 0, n = 0;
    for (int i = 0; i < c->n; i++)
        if (moe_expf(logit_of(c, i) - top) >= enough) {
            likely++;
            least = c->key[i] < least ? c->key[i] : least;
        }
    if (likely < 2)
        return;
    for (int i = 0; i < c->n; i++)
        if (c->key[i] == least || moe_expf(logit_of(c, i) - top) < enough)
            c->key[n++] = c->key[i];
    c->n = n;
}

int32_t candidates_draw(const candidates *c, double temperature, double u)
{
    const float top = largest(c), scale = (float)temperature;
    double total = 0, sum = 0;
    int last = 0;
    if (temperature < 1e-30) { /* no float is that small */
        uint64_t best = 0;
        for (int i = 0; i < c->n; i++)
            best = c->key[i] > best ? c->key[i] : best;
        return key_token(best);
    }
    for (int i = 0; i < c->n; i++)
        total += moe_expf((logit_of(c, i) - top) / scale);
    for (int i = 0; i < c->n; i++) {
        const float e = moe_expf((logit_of(c, i) - top) / scale);
        sum += e;
        last = e > 0 ? i : last;
        if (sum > u * total)
            return key_token(c->key[i]);
    }
    return key_token(c->key[last]); /* u * total rounded up to the sum */
}
