#include "experts/balance.h"

#include <stdlib.h>
#include <string.h>

static size_t entries(const balance_config *c)
{
    return (size_t)(c->step_tokens / c->set_tokens) * (size_t)c->layers * (size_t)c->E;
}

size_t balance_bytes(balance_config c)
{
    return entries(&c) * (sizeof(int64_t) + sizeof(double)) + (size_t)c.layers * sizeof(double) + (size_t)c.E * sizeof(float);
}

moe_err balance_open(balance *b, balance_config c)
{
    *b = (balance){.c = c, .sets = c.step_tokens / c.set_tokens};
    const size_t n = entries(&c);
    b->counts = calloc(n ? n : 1, sizeof *b->counts);
    b->prob_sum = calloc(n ? n : 1, sizeof *b->prob_sum);
    b->z_sum = calloc((size_t)c.layers + 1, sizeof *b->z_sum);
    b->dprobs = calloc((size_t)c.E + 1, sizeof *b->dprobs);
    if (b->counts == NULL || b->prob_sum == NULL || b->z_sum == NULL || b->dprobs == NULL) {
        balance_close(b);
        return moe_fail(MOE_E_OS, "balance statistics: out of memory for %lld sets", (long long)b->sets);
    }
    return MOE_OK;
}

void balance_close(balance *b)
{
    free(b->counts);
    free(b->prob_sum);
    free(b->z_sum);
    free(b->dprobs);
    *b = (balance){0};
}

void balance_begin_step(balance *b)
{
    const size_t n = entries(&b->c);
    memset(b->counts, 0, n * sizeof *b->counts);
    memset(b->prob_sum, 0, n * sizeof *b->prob_sum);
    memset(b->z_sum, 0, (size_t)b->c.layers * sizeof *b->z_sum);
}

static size_t at(const balance *b, int64_t set, int layer)
{
    return ((size_t)set * (size_t)b->c.layers + (size_t)layer) * (size_t)b->c.E;
}

int64_t *balance_counts(balance *b, int64_t set, int layer) { return b->counts + at(b, set, layer); }

double *balance_prob_sum(balance *b, int64_t set, int layer) { return b->prob_sum + at(b, set, layer); }

/* Rows of expert e in the set: of one layer, or of all of them. */
static int64_t set_count(const balance *b, int64_t set, int layer, int e)
{
    if (b->c.per_layer)
        return b->counts[at(b, set, layer) + (size_t)e];
    int64_t sum = 0;
    for (int l = 0; l < b->c.layers; l++)
        sum += b->counts[at(b, set, l) + (size_t)e];
    return sum;
}

static double set_prob(const balance *b, int64_t set, int layer, int e)
{
    if (b->c.per_layer)
        return b->prob_sum[at(b, set, layer) + (size_t)e];
    double sum = 0;
    for (int l = 0; l < b->c.layers; l++)
        sum += b->prob_sum[at(b, set, l) + (size_t)e];
    return sum;
}

double balance_aux(const balance *b)
{
    const int layer_sets = b->c.per_layer ? b->c.layers : 1;
    const double tokens = (double)b->c.set_tokens * (b->c.per_layer ? 1 : b->c.layers);
    double total = 0;
    for (int64_t set = 0; set < b->sets; set++)
        for (int l = 0; l < layer_sets; l++) {
            double sum = 0;
            for (int e = 0; e < b->c.E; e++)
                sum += ((double)set_count(b, set, l, e) / tokens) * (set_prob(b, set, l, e) / tokens);
            total += (double)b->c.E * sum;
        }
    return b->c.layers == 0 ? 0 : total / (double)(b->sets * layer_sets);
}

double balance_z(const balance *b)
{
    double sum = 0;
    for (int l = 0; l < b->c.layers; l++)
        sum += b->z_sum[l];
    return b->c.layers == 0 ? 0 : sum / ((double)b->c.step_tokens * b->c.layers);
}

const float *balance_dprobs(balance *b, int64_t set, int layer)
{
    if (b->c.aux_coef == 0)
        return NULL;
    const double tokens = (double)b->c.set_tokens * (b->c.per_layer ? 1 : b->c.layers);
    const double averaged = (double)b->sets * (b->c.per_layer ? b->c.layers : 1);
    for (int e = 0; e < b->c.E; e++) {
        const double f = (double)set_count(b, set, layer, e) / tokens;
        b->dprobs[e] = (float)(b->c.aux_coef * (double)b->c.E * f / tokens / averaged);
    }
    return b->dprobs;
}

float balance_dz(const balance *b)
{
    return b->c.layers == 0 ? 0 : (float)(b->c.z_coef / ((double)b->c.step_tokens * b->c.layers));
}

static int64_t step_count(const balance *b, int layer, int e)
{
    int64_t sum = 0;
    for (int64_t set = 0; set < b->sets; set++)
        sum += b->counts[at(b, set, layer) + (size_t)e];
    return sum;
}

void balance_update_bias(const balance *b, int layer, double rate, float *bias)
{
    /* sign(mean - load) = sign(rows - E * load): integers, no rounding */
    const int64_t rows = b->c.step_tokens * b->c.K;
    for (int e = 0; e < b->c.E; e++) {
        const int64_t d = rows - b->c.E * step_count(b, layer, e);
        if (d != 0)
            bias[e] += (float)(d > 0 ? rate : -rate);
    }
}

double balance_max_over_mean(const balance *b, int64_t *rows)
{
    int64_t max = 0;
    for (int l = 0; l < b->c.layers; l++)
        for (int e = 0; e < b->c.E; e++) {
            const int64_t n = step_count(b, l, e);
            if (n > max)
                max = n;
            if (rows != NULL)
                rows[(size_t)l * (size_t)b->c.E + (size_t)e] = n;
        }
    const double mean = (double)b->c.step_tokens * b->c.K / b->c.E;
    return b->c.layers == 0 || mean == 0 ? 0 : (double)max / mean;
}
