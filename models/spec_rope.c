/* Owns the rules by which the inverse frequencies of the rotary embedding follow from a spec. The table of cosines and sines made of
 * them is kernels/rope.h's.
 * Threads: pure functions of the spec.
 * Rule: every operation is rounded to fp32 where transformers (modeling_rope_utils) rounds; x / tensor is x * (1 / tensor) there. */
#include <math.h>

#include "kernels/math.h"
#include "kernels/rope.h"
#include "models/spec.h"

#define TWO_PI 0x1.921fb6p+2f
#define TWO_PI_DOUBLE 0x1.921fb54442d18p+2

const char *const rope_type_names[ROPE_TYPES] = {
    [ROPE_DEFAULT] = "default", [ROPE_LINEAR] = "linear", [ROPE_LLAMA3] = "llama3", [ROPE_YARN] = "yarn",
};

/* _compute_llama3_parameters: long wavelengths are divided by the factor, short ones stay, between them both are mixed. */
static float llama3_frequency(const rope_scaling *r, float inv_freq)
{
    const float wavelength = 1.0f / inv_freq * TWO_PI;
    const float factor = (float)r->factor, low = (float)r->low_freq_factor;
    if (wavelength > (float)(r->original_positions / r->low_freq_factor))
        return inv_freq / factor;
    if (wavelength < (float)(r->original_positions / r->high_freq_factor))
        return inv_freq;
    const float turns = 1.0f / wavelength * (float)r->original_positions;
    const float smooth = (turns - low) / (float)(r->high_freq_factor - r->low_freq_factor);
    return (1.0f - smooth) * inv_freq / factor + smooth * inv_freq;
}

/* Number of the frequency that turns `turns` times over the original positions. */
static double yarn_dimension(const model_spec *m, double turns)
{
    return m->rotary * moe_log(m->rope.original_positions / (turns * TWO_PI_DOUBLE)) / (2 * moe_log(m->rope_theta));
}

/* _compute_yarn_parameters: frequencies up to number `low` stay, those from `high` on are divided by the factor, a ramp between them. */
static void yarn_range(const model_spec *m, float *low, float *width)
{
    double from = yarn_dimension(m, m->rope.beta_fast), to = yarn_dimension(m, m->rope.beta_slow);
    if (m->rope.truncate) {
        from = floor(from);
        to = ceil(to);
    }
    from = from > 0 ? from : 0;
    to = to < m->rotary - 1 ? to : m->rotary - 1;
    *low = (float)from;
    *width = (float)(from == to ? to + 0.001 - from : to - from);
}

static float yarn_frequency(const rope_scaling *r, float power, int i, float low, float width)
{
    const float ramp = ((float)i - low) / width, divided = ramp < 0.0f ? 0.0f : ramp > 1.0f ? 1.0f : ramp, kept = 1.0f - divided;
    return 1.0f / ((float)r->factor * power) * (1.0f - kept) + 1.0f / power * kept;
}

double spec_yarn_mscale(double factor, double mscale) { return factor <= 1 ? 1 : 0.1 * mscale * moe_log(factor) + 1; }

float spec_rope_scale(const model_spec *m)
{
    const rope_scaling *r = &m->rope;
    if (r->type != ROPE_YARN)
        return 1.0f;
    if (r->attention_factor > 0)
        return (float)r->attention_factor;
    if (r->mscale != 0 && r->mscale_all_dim != 0)
        return (float)(spec_yarn_mscale(r->factor, r->mscale) / spec_yarn_mscale(r->factor, r->mscale_all_dim));
    return (float)spec_yarn_mscale(r->factor, 1);
}

void spec_rope_frequencies(const model_spec *m, float *out)
{
    float low = 0, width = 1;
    if (m->rope.type == ROPE_YARN)
        yarn_range(m, &low, &width);
    for (int i = 0; i < m->rotary / 2; i++) {
        const float exponent = (float)(2 * i) / (float)m->rotary;
        const float power = (float)moe_pow(m->rope_theta, (double)exponent), inv_freq = 1.0f / power;
        switch (m->rope.type) {
        case ROPE_DEFAULT:
            out[i] = inv_freq;
            break;
        case ROPE_LINEAR:
            out[i] = inv_freq / (float)m->rope.factor;
            break;
        case ROPE_LLAMA3:
            out[i] = llama3_frequency(&m->rope, inv_freq);
            break;
        case ROPE_YARN:
            out[i] = yarn_frequency(&m->rope, power, i, low, width);
            break;
        case ROPE_TYPES:
            break;
        }
    }
}

/* yarn_apply_mscale of modeling_deepseek_v3: only latent attention has it. */
float spec_attention_scale(const model_spec *m)
{
    const bool scaled = m->kv_lora_rank > 0 && m->rope.type == ROPE_YARN && m->rope.mscale_all_dim != 0;
    if (!scaled)
        return 1.0f / sqrtf((float)m->hd);
    const double mscale = spec_yarn_mscale(m->rope.factor, m->rope.mscale_all_dim);
    return (float)(mscale * mscale / sqrt((double)m->hd));
}

void spec_rope_table(const model_spec *m, int S, float *table)
{
    float *last = table + (2 * (size_t)S - 1) * (size_t)(m->rotary / 2);
    spec_rope_frequencies(m, last);
    rope_table(table, S, m->rotary, last, spec_rope_scale(m));
}
