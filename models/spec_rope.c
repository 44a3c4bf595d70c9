/* Owns the rules by which the inverse frequencies of the rotary embedding follow from a spec. The table of cosines and sines made of
 * them is kernels/rope.h's.
 * Threads: pure functions of the spec.
 * Rule: every operation is rounded to fp32 where transformers (modeling_rope_utils) rounds; x / tensor is x * (1 / tensor) there. */
#include "kernels/math.h"
#include "kernels/rope.h"
#include "models/spec.h"

#define TWO_PI 0x1.921fb6p+2f

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

void spec_rope_frequencies(const model_spec *m, float *out)
{
    for (int i = 0; i < m->rotary / 2; i++) {
        const float exponent = (float)(2 * i) / (float)m->rotary;
        const float inv_freq = 1.0f / (float)moe_pow(m->rope_theta, (double)exponent);
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
        }
    }
}

void spec_rope_table(const model_spec *m, int S, float *table)
{
    float *last = table + (2 * (size_t)S - 1) * (size_t)(m->rotary / 2);
    spec_rope_frequencies(m, last);
    rope_table(table, S, m->rotary, last);
}
