/* Penalties for what the sequence holds already: repetition, frequency and presence by counts, DRY by the length of the repetition that
 * a token would continue. Works on room->logit; leaves room->count zero.
 * DRY: github.com/oobabooga/text-generation-webui pull request 5677. One thread. */
#include "engine/serve/sampler_private.h"

static int64_t window(const sampler *s, int64_t tokens) { return tokens < 0 || tokens > s->n ? s->n : tokens; }

void sampler_penalize(const sampler *s, sampler_room *room)
{
    const int64_t n = window(s, s->o.penalty_window);
    const int32_t *h = s->history + s->n - n;
    const float repeat = (float)s->o.repeat, frequency = (float)s->o.frequency, presence = (float)s->o.presence;
    for (int64_t i = 0; i < n; i++)
        room->count[h[i]]++;
    for (int64_t i = 0; i < n; i++) {
        const int32_t count = room->count[h[i]];
        if (count == 0)
            continue;
        float *l = &room->logit[h[i]];
        *l = *l > 0 ? *l / repeat : *l * repeat;
        *l -= (float)count * frequency + presence;
        room->count[h[i]] = 0;
    }
}

/* match[j] = length of the longest common suffix of h[0, n) and h[0, n - j), at most `most` (the Z function of the reversed text). */
static void suffix_matches(int32_t *match, const int32_t *h, int64_t n, int64_t most)
{
    int64_t left = 0, right = 0; /* the reversed text repeats its beginning in [left, right) */
    for (int64_t j = 1; j < n; j++) {
        int64_t z = 0;
        if (j < right)
            z = match[j - left] < right - j ? match[j - left] : right - j;
        while (z < most && j + z < n && h[n - 1 - z] == h[n - 1 - j - z])
            z++;
        if (j + z > right) {
            left = j;
            right = j + z;
        }
        match[j] = (int32_t)z;
    }
}

static int64_t since_breaker(const sampler *s, const int32_t *h, int64_t n)
{
    int64_t k = 0;
    while (k < n && !(s->breaks[h[n - 1 - k] / 32] >> h[n - 1 - k] % 32 & 1))
        k++;
    return k;
}

void sampler_dry(const sampler *s, sampler_room *room)
{
    const int64_t n = window(s, s->o.dry_window), allowed = s->o.dry_allowed;
    const int32_t *h = s->history + s->n - n;
    const int64_t most = since_breaker(s, h, n);
    if (most < allowed)
        return;
    suffix_matches(s->match, h, n, most);
    for (int64_t j = 1; j < n; j++) { /* h[n - j] came behind the match that ends j tokens before the end */
        int32_t *longest = &room->count[h[n - j]];
        *longest = s->match[j] > *longest ? s->match[j] : *longest;
    }
    for (int64_t j = 1; j < n; j++) {
        int32_t *longest = &room->count[h[n - j]];
        if (*longest >= allowed) {
            const double penalty = s->o.dry_multiplier * moe_pow(s->o.dry_base, (double)(*longest - allowed));
            room->logit[h[n - j]] -= (float)(penalty < 1e30 ? penalty : 1e30);
        }
        *longest = 0;
    }
}
